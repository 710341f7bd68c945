//! How an upstream's HTTP/1.1 answer is cut: the head by `httparse`, the body by length, chunks or the end.
//!
//! Faces model servers only. A decoder never allocates by what the peer announces.

use bytes::{Buf, Bytes, BytesMut};

/// The largest head, bytes.
const HEAD: usize = 64 << 10;

/// The longest chunk-size line with its extensions, bytes.
const SIZE_LINE: usize = 1 << 10;

/// What can't be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model server's answer isn't HTTP/1.1: {0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

/// The head of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// The status.
    pub(crate) status: u16,
    /// Its media type, lower case, without parameters.
    pub(crate) media_type: String,
    /// `Retry-After` as written.
    pub(crate) retry_after: Option<String>,
    /// Headers that pass to the client.
    pub(crate) passing: Vec<(String, Vec<u8>)>,
    /// How the body ends.
    pub(crate) framing: Framing,
    /// The connection may serve again.
    pub(crate) keep: bool,
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// After so many bytes.
    Length(u64),
    /// With a chunk of size 0.
    Chunked,
    /// With the connection.
    Close,
}

/// Takes a whole head off `buffer`; `None` when more must be read.
///
/// # Errors
/// [`Malformed`].
pub(crate) fn take_head(buffer: &mut BytesMut) -> Result<Option<Head>, Malformed> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(buffer) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if buffer.len() < HEAD => return Ok(None),
        Ok(httparse::Status::Partial) => return Err(Malformed("its head is too large")),
        Err(_) => return Err(Malformed("its head can't be parsed")),
    };
    let head = read_head(&response)?;
    buffer.advance(length);
    Ok(Some(head))
}

fn read_head(response: &httparse::Response<'_, '_>) -> Result<Head, Malformed> {
    let status = response.code.unwrap_or(0);
    let mut head = Head {
        status,
        media_type: String::new(),
        retry_after: None,
        passing: Vec::new(),
        framing: Framing::Close,
        keep: response.version == Some(1),
    };
    let (mut length, mut chunked) = (None, false);
    for header in response.headers.iter() {
        let name = header.name.to_ascii_lowercase();
        let text = std::str::from_utf8(header.value).unwrap_or_default().trim();
        match name.as_str() {
            "content-length" => length = Some(one_length(length, text)?),
            "transfer-encoding" if text.eq_ignore_ascii_case("chunked") && !chunked => {
                chunked = true;
            }
            "transfer-encoding" => return Err(Malformed("its transfer encoding")),
            "content-encoding" if !text.eq_ignore_ascii_case("identity") => {
                return Err(Malformed("it is encoded though nobody asked for that"));
            }
            "connection"
                if text
                    .split(',')
                    .any(|t| t.trim().eq_ignore_ascii_case("close")) =>
            {
                head.keep = false;
            }
            "content-type" => {
                let essence = text.split(';').next().unwrap_or_default().trim();
                head.media_type = essence.to_ascii_lowercase();
            }
            "retry-after" => head.retry_after = Some(text.chars().take(64).collect()),
            _ if wire::headers::forwards_response(&name) => {
                head.passing.push((name, header.value.to_vec()));
            }
            _ => {}
        }
    }
    head.framing = match (chunked, length) {
        (true, None) => Framing::Chunked,
        // Two lengths: the chunks count (RFC 9112 section 6.3), the connection isn't trusted again.
        (true, Some(_)) => {
            head.keep = false;
            Framing::Chunked
        }
        (false, Some(length)) => Framing::Length(length),
        (false, None) if matches!(status, 204 | 304) => Framing::Length(0),
        (false, None) => {
            head.keep = false;
            Framing::Close
        }
    };
    Ok(head)
}

fn one_length(before: Option<u64>, text: &str) -> Result<u64, Malformed> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let length = text
        .parse::<u64>()
        .ok()
        .filter(|_| digits)
        .ok_or(Malformed("its length"))?;
    if before.is_some_and(|before| before != length) {
        Err(Malformed("two lengths"))
    } else {
        Ok(length)
    }
}

/// Cuts the body out of what was read.
#[derive(Debug)]
pub(crate) struct Decoder {
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Length(u64),
    Size,
    Data(u64),
    DataEnd,
    Trailers,
    Close,
    Done,
}

impl Decoder {
    /// For a body that ends like this.
    pub(crate) fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size,
            Framing::Close => State::Close,
        };
        Self { state }
    }

    /// The body has ended.
    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The body ends with the connection.
    pub(crate) fn ends_with_connection(&self) -> bool {
        self.state == State::Close
    }

    /// All body bytes that `buffer` holds, joined: many chunks that came together become one piece.
    ///
    /// # Errors
    /// [`Malformed`].
    pub(crate) fn take(&mut self, buffer: &mut BytesMut) -> Result<Bytes, Malformed> {
        let mut joined: Option<BytesMut> = None;
        loop {
            let piece = match self.state {
                State::Length(left) => {
                    let piece = split(buffer, left);
                    let left = left.saturating_sub(piece.len() as u64);
                    self.state = if left == 0 {
                        State::Done
                    } else {
                        State::Length(left)
                    };
                    piece
                }
                State::Close => buffer.split(),
                State::Data(left) => {
                    let piece = split(buffer, left);
                    let left = left.saturating_sub(piece.len() as u64);
                    self.state = if left == 0 {
                        State::DataEnd
                    } else {
                        State::Data(left)
                    };
                    piece
                }
                State::Size | State::DataEnd | State::Trailers => {
                    if self.step(buffer)? {
                        continue;
                    } else {
                        break;
                    }
                }
                State::Done => break,
            };
            if piece.is_empty() {
                break;
            }
            match &mut joined {
                None => joined = Some(piece),
                Some(before) => before.extend_from_slice(&piece),
            }
        }
        Ok(joined.map(BytesMut::freeze).unwrap_or_default())
    }

    /// One line of the chunk framing; `false` when more must be read.
    fn step(&mut self, buffer: &mut BytesMut) -> Result<bool, Malformed> {
        let Some(end) = memchr::memchr(b'\n', buffer) else {
            return if buffer.len() > SIZE_LINE {
                Err(Malformed("a chunk line is too long"))
            } else {
                Ok(false)
            };
        };
        let line = buffer.split_to(end.saturating_add(1));
        let line = line
            .strip_suffix(b"\r\n")
            .ok_or(Malformed("a bare LF in its chunks"))?;
        self.state = match self.state {
            State::DataEnd if line.is_empty() => State::Size,
            State::DataEnd => return Err(Malformed("a chunk is longer than it says")),
            State::Trailers if line.is_empty() => State::Done,
            State::Trailers => State::Trailers,
            _ => match chunk_size(line)? {
                0 => State::Trailers,
                size => State::Data(size),
            },
        };
        Ok(true)
    }
}

fn chunk_size(line: &[u8]) -> Result<u64, Malformed> {
    let end = memchr::memchr(b';', line).unwrap_or(line.len());
    let digits = line.get(..end).unwrap_or_default().trim_ascii_end();
    if digits.is_empty() || digits.len() > 15 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(Malformed("a chunk size"));
    }
    let text = std::str::from_utf8(digits).unwrap_or_default();
    u64::from_str_radix(text, 16).map_err(|_digits| Malformed("a chunk size"))
}

fn split(buffer: &mut BytesMut, most: u64) -> BytesMut {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    buffer.split_to(most.min(buffer.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(framing: Framing, bytes: &[u8], step: usize) -> Result<(Vec<u8>, bool), Malformed> {
        let (mut decoder, mut buffer, mut out) =
            (Decoder::new(framing), BytesMut::new(), Vec::new());
        for part in bytes.chunks(step) {
            buffer.extend_from_slice(part);
            out.extend_from_slice(&decoder.take(&mut buffer)?);
        }
        Ok((out, decoder.is_done()))
    }

    #[test]
    fn chunks_are_joined_whatever_the_cut() {
        let body = b"5\r\nhello\r\n1;x=y\r\n \r\n5\r\nworld\r\n0\r\nx-t: 1\r\n\r\n";
        for step in 1..=body.len() {
            assert_eq!(
                decode(Framing::Chunked, body, step),
                Ok((b"hello world".to_vec(), true))
            );
        }
    }

    #[test]
    fn a_cut_body_is_not_done() {
        assert_eq!(
            decode(Framing::Chunked, b"5\r\nhel", 3),
            Ok((b"hel".to_vec(), false))
        );
        assert_eq!(
            decode(Framing::Length(4), b"abc", 1),
            Ok((b"abc".to_vec(), false))
        );
        assert_eq!(
            decode(Framing::Length(3), b"abcd", 4),
            Ok((b"abc".to_vec(), true))
        );
    }

    #[test]
    fn bad_chunks_are_refused() {
        for bad in [
            &b"0x1\r\n"[..],
            b"\r\n",
            b"5\nhello",
            b"2\r\nhello\r\n",
            b"ffffffffffffffff\r\n",
            b"-1\r\n",
        ] {
            assert!(decode(Framing::Chunked, bad, 64).is_err(), "{bad:?}");
        }
        assert!(decode(Framing::Chunked, &[b'1'; 2000], 2000).is_err());
    }

    #[test]
    fn heads_are_read_whole_and_two_lengths_refused() {
        let mut buffer = BytesMut::from(
            &b"HTTP/1.1 200 OK\r\nContent-Type: text/Event-stream; charset=x\r\nSet-Cookie: a\r\nContent-Length: 3\r\n\r\nabc"[..],
        );
        let head = take_head(&mut buffer).unwrap().unwrap();
        assert_eq!(
            (head.status, head.framing, head.keep),
            (200, Framing::Length(3), true)
        );
        assert_eq!(
            (head.media_type.as_str(), head.passing.len()),
            ("text/event-stream", 0)
        );
        assert_eq!(&buffer[..], b"abc");
        for bad in [
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
            "nonsense\r\n\r\n",
        ] {
            assert!(take_head(&mut BytesMut::from(bad)).is_err(), "{bad}");
        }
        assert_eq!(take_head(&mut BytesMut::from("HTTP/1.1 200")), Ok(None));
    }
}
