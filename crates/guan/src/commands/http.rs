//! One HTTP/1.1 exchange on a connection that exists: for the admin socket and for asking an upstream its models.
//!
//! It decides how much is read and for how long; it follows nothing and keeps nothing. Called by `door` and `probe`.

use std::io::{self, Read, Write};

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    /// The status code.
    pub(super) status: u16,
    /// The `server` header.
    pub(super) server: Option<String>,
    /// The body, whole.
    pub(super) body: Vec<u8>,
}

/// Sends one request and reads its answer to the end of the connection.
///
/// # Errors
/// When the connection fails, or what came isn't HTTP or is too large.
pub(super) fn exchange(
    mut on: impl Read + Write,
    method: &str,
    host: &str,
    path: &str,
    bearer: Option<&str>,
    more: &[(&str, &str)],
    body: Option<&[u8]>,
) -> io::Result<Answer> {
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\naccept: application/json\r\nuser-agent: guan/{}\r\n",
        env!("CARGO_PKG_VERSION")
    )
    .into_bytes();
    if let Some(bearer) = bearer {
        request.extend_from_slice(format!("authorization: Bearer {bearer}\r\n").as_bytes());
    }
    for (name, value) in more {
        request.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    if let Some(body) = body {
        let head = format!(
            "content-type: application/json\r\ncontent-length: {}\r\n",
            body.len()
        );
        request.extend_from_slice(head.as_bytes());
    }
    request.extend_from_slice(b"\r\n");
    request.extend_from_slice(body.unwrap_or_default());
    on.write_all(&request)?;
    on.flush()?;
    let mut all = Vec::new();
    let read = on.take(MOST_BYTES).read_to_end(&mut all);
    // A server that closes hard after its answer has answered.
    match parse(&all) {
        Some(answer) => Ok(answer),
        None => Err(read
            .err()
            .unwrap_or_else(|| io::Error::other("the answer isn't HTTP/1.1, or is too large"))),
    }
}

/// The whole answer, or `None` while a part is missing or wrong.
fn parse(all: &[u8]) -> Option<Answer> {
    let end = all.windows(4).position(|w| w == b"\r\n\r\n")?;
    let (head, rest) = all.split_at_checked(end)?;
    let body = rest.get(4..)?;
    let head = std::str::from_utf8(head).ok()?;
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.splitn(3, ' ');
    let status = match (first.next()?, first.next()?) {
        ("HTTP/1.1" | "HTTP/1.0", code) if code.len() == 3 => code.parse().ok()?,
        _ => return None,
    };
    let headers: Vec<(String, &str)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim()))
        .collect();
    let header = |name: &str| {
        headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| *value)
    };
    let body = if header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        unchunk(body)?
    } else if let Some(length) = header("content-length") {
        body.get(..length.parse().ok()?)?.to_vec()
    } else {
        body.to_vec()
    };
    Some(Answer {
        status,
        server: header("server").map(str::to_owned),
        body,
    })
}

/// A chunked body, whole.
fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|w| w == b"\r\n")?;
        let line = std::str::from_utf8(rest.get(..end)?).ok()?;
        let size = line.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        rest = rest.get(end.checked_add(2)?..)?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size.checked_add(2)?..)?;
    }
}

/// More than any list of models or keys, bytes.
const MOST_BYTES: u64 = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_in_all_three_framings() {
        let length =
            parse(b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 2\r\n\r\nhello").unwrap();
        assert_eq!(
            (length.status, length.body.as_slice()),
            (200, b"he".as_slice())
        );
        assert_eq!(length.server.as_deref(), Some("x"));
        let chunked =
            parse(b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1;x\r\nd\r\n0\r\n\r\n").unwrap();
        assert_eq!(
            (chunked.status, chunked.body.as_slice()),
            (404, b"abcd".as_slice())
        );
        assert_eq!(parse(b"HTTP/1.0 200 OK\r\n\r\nrest").unwrap().body, b"rest");
    }

    #[test]
    fn what_is_cut_or_no_http_is_none() {
        let bad: [&[u8]; 5] = [
            b"",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
            b"SSH-2.0-OpenSSH\r\n\r\n",
        ];
        for answer in bad {
            assert!(parse(answer).is_none(), "{answer:?}");
        }
    }
}
