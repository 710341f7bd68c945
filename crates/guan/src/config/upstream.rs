//! An upstream's URL: how it is reached and which path stands in front of `/v1`.
//!
//! It decides which URLs are good; user info never passes and is never repeated. Called by `meant` and `guan init`.

use std::path::PathBuf;

use gateway::settings::Target;

/// A URL, read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Upstream {
    /// Its name in records: without path.
    pub(crate) name: String,
    /// How it is reached; `https` without its own authorities.
    pub(crate) target: Target,
    /// Path in front of `/v1/…`, without a slash at its end.
    pub(crate) base_path: String,
}

/// Reads `http://host:port/path`, `https://…`, `unix:/path`.
///
/// # Errors
/// Why not, without a part that may hold a password.
pub(crate) fn parse(url: &str) -> Result<Upstream, String> {
    if let Some(path) = url.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        if !path.starts_with('/') || path.contains('\0') {
            return Err("names no socket; write \"unix:/run/vllm.sock\"".to_owned());
        }
        if path.len() > 107 {
            return Err("names a socket whose path is longer than 107 bytes".to_owned());
        }
        return Ok(Upstream {
            name: format!("unix:{path}"),
            target: Target::Unix(PathBuf::from(path)),
            base_path: String::new(),
        });
    }
    let Some((scheme @ ("http" | "https"), rest)) = url.split_once("://") else {
        return Err("must start with \"http://\", \"https://\" or \"unix:/\"".to_owned());
    };
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at_checked(slash).unwrap_or((rest, "")),
        None => (rest, ""),
    };
    if rest.contains('@') {
        return Err(
            "holds a user or a password; give the key as key = \"file:…\" instead".to_owned(),
        );
    }
    if rest.contains(['?', '#']) {
        return Err("holds a query or a fragment; leave it out".to_owned());
    }
    let (host, port) = split_authority(authority, if scheme == "https" { 443 } else { 80 })?;
    let base_path = base_path(path)?;
    let shown = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.clone()
    };
    let name = format!("{scheme}://{shown}:{port}");
    let target = if scheme == "https" {
        Target::Https {
            host,
            port,
            ca: None,
        }
    } else {
        Target::Http { host, port }
    };
    Ok(Upstream {
        name,
        target,
        base_path,
    })
}

fn split_authority(authority: &str, default: u16) -> Result<(String, u16), String> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest
            .split_once(']')
            .ok_or("lacks the \"]\" of its address")?;
        host.parse::<std::net::Ipv6Addr>()
            .map_err(|_not| "holds no IPv6 address in its brackets")?;
        (host, port)
    } else {
        match authority.find(':') {
            Some(colon) => authority.split_at_checked(colon).unwrap_or((authority, "")),
            None => (authority, ""),
        }
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => default,
        Some(digits) => digits
            .parse()
            .ok()
            .filter(|port| *port != 0 && digits.bytes().all(|b| b.is_ascii_digit()))
            .ok_or("has a port that is no number from 1 to 65535")?,
        None => return Err("holds something after its address that is no port".to_owned()),
    };
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
    if host.is_empty() || host.len() > 253 || !host.bytes().all(good) {
        return Err("names no host".to_owned());
    }
    Ok((host.to_ascii_lowercase(), port))
}

/// The path in front of `/v1`: people write the URL with it and without.
fn base_path(path: &str) -> Result<String, String> {
    let path = path.trim_end_matches('/');
    let path = path
        .strip_suffix("/v1")
        .unwrap_or(path)
        .trim_end_matches('/');
    let good = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%:+,=@!$&'()*;".contains(&b);
    if !path.bytes().all(good) || path.split('/').any(|part| part == "..") {
        return Err("has a path with characters that a URL can't hold".to_owned());
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(host: &str, port: u16) -> Target {
        Target::Http {
            host: host.to_owned(),
            port,
        }
    }

    #[test]
    fn urls_read_as_people_write_them() {
        let table = [
            (
                "http://10.0.0.11:8000",
                "http://10.0.0.11:8000",
                http("10.0.0.11", 8000),
                "",
            ),
            ("http://Vllm/v1", "http://vllm:80", http("vllm", 80), ""),
            ("http://vllm:1/v1/", "http://vllm:1", http("vllm", 1), ""),
            (
                "http://h/openai/v1",
                "http://h:80",
                http("h", 80),
                "/openai",
            ),
            ("http://h/v1beta/", "http://h:80", http("h", 80), "/v1beta"),
            (
                "http://[::1]:8000/",
                "http://[::1]:8000",
                http("::1", 8000),
                "",
            ),
            (
                "unix:/run/v.sock",
                "unix:/run/v.sock",
                Target::Unix("/run/v.sock".into()),
                "",
            ),
            (
                "unix:///run/v.sock",
                "unix:/run/v.sock",
                Target::Unix("/run/v.sock".into()),
                "",
            ),
        ];
        for (url, name, target, base_path) in table {
            let read = parse(url).unwrap();
            assert_eq!(
                (read.name.as_str(), read.base_path.as_str()),
                (name, base_path),
                "{url}"
            );
            assert_eq!(read.target, target, "{url}");
        }
        let https = Target::Https {
            host: "h".to_owned(),
            port: 443,
            ca: None,
        };
        assert_eq!(parse("https://h").unwrap().target, https);
    }

    #[test]
    fn bad_urls_are_refused_and_no_password_is_repeated() {
        let bad = [
            "",
            "vllm:8000",
            "ftp://h",
            "http://",
            "http://:80",
            "http://h:0",
            "http://h:x",
            "http://h:+80",
            "http://[::1",
            "http://[x]:1",
            "http://h:80:80",
            "http://h?x=1",
            "http://h/#f",
            "http://h/a b",
            "http://h/../x",
            "unix:run.sock",
            "http://h\r\nx",
            "http://root:hunter2@h:8000",
            "https://hunter2@h/v1",
        ];
        for url in bad {
            let why = parse(url).unwrap_err();
            assert!(!why.contains("hunter2"), "{why}");
        }
    }
}
