//! Decides which addresses are used: whole `https` ones, and `http` on this machine only (tests, a local mirror).
//! Joins redirects and index links to their base. Never shows a query (signed links carry their secret there)
//! and never takes user info. Called by `client`, `hub`, `wheel` and `commands::model`.

use std::net::IpAddr;

use ureq::http::Uri;

use super::fault::Fault;

/// An absolute `http` or `https` address without user info and fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    uri: Uri,
}

impl Address {
    /// Reads a whole address.
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        let text = text.trim();
        let whole = text.split_once('#').map_or(text, |(before, _)| before);
        let bad = |why| Fault::BadAddress {
            address: tame(whole),
            why,
        };
        let uri: Uri = whole
            .parse()
            .map_err(|_e| bad("it is not a valid address"))?;
        let authority = uri.authority().ok_or_else(|| bad("it names no server"))?;
        if authority.as_str().contains('@') {
            return Err(Fault::UserInfo);
        }
        if authority.host().is_empty() {
            return Err(bad("it names no server"));
        }
        let address = match uri.scheme_str() {
            Some("https" | "http") => Self { uri },
            _ => return Err(bad("it is neither https nor http")),
        };
        if address.is_https() || address.is_loopback() {
            Ok(address)
        } else {
            Err(bad("it is not HTTPS"))
        }
    }

    /// Where `reference`, found at this address, leads.
    pub(super) fn join(&self, reference: &str) -> Result<Self, Fault> {
        let reference = reference.trim();
        let scheme = self.uri.scheme_str().unwrap_or("https");
        let authority = self.uri.authority().map_or("", |a| a.as_str());
        if is_absolute(reference) {
            Self::parse(reference)
        } else if reference.starts_with("//") {
            Self::parse(&format!("{scheme}:{reference}"))
        } else if reference.starts_with('/') {
            Self::parse(&format!("{scheme}://{authority}{reference}"))
        } else {
            let folder = self
                .uri
                .path()
                .rsplit_once('/')
                .map_or("", |(folder, _)| folder);
            let path = without_dots(&format!("{folder}/{reference}"));
            Self::parse(&format!("{scheme}://{authority}{path}"))
        }
    }

    pub(super) fn uri(&self) -> &Uri {
        &self.uri
    }

    pub(super) fn host(&self) -> &str {
        self.uri.host().unwrap_or("")
    }

    pub(super) fn path(&self) -> &str {
        self.uri.path()
    }

    /// The last component of the path: a file's name.
    pub(super) fn file(&self) -> &str {
        self.path().rsplit_once('/').map_or("", |(_, file)| file)
    }

    pub(super) fn is_https(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }

    pub(super) fn is_loopback(&self) -> bool {
        let host = self.host().trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// Whether both are the same server: scheme, host and port.
    pub(super) fn same_origin(&self, other: &Self) -> bool {
        let port = |a: &Self| {
            a.uri
                .port_u16()
                .unwrap_or(if a.is_https() { 443 } else { 80 })
        };
        self.is_https() == other.is_https()
            && self.host().eq_ignore_ascii_case(other.host())
            && port(self) == port(other)
    }

    /// For people and records: without the query.
    pub(super) fn shown(&self) -> String {
        let scheme = self.uri.scheme_str().unwrap_or("https");
        let authority = self.uri.authority().map_or("", |a| a.as_str());
        format!("{scheme}://{authority}{}", self.path())
    }

    /// Whether a redirect from here to `next` is followed. Out of HTTPS: never. Plain `http`, which exists for
    /// servers on this machine only, may also lead up to HTTPS.
    pub(super) fn may_lead_to(&self, next: &Self) -> bool {
        next.is_https() || (!self.is_https() && self.is_loopback() && next.is_loopback())
    }
}

/// Takes `user:password@` out of an address. Returns the address and the pair, still percent-encoded.
pub(super) fn split_user_info(text: &str) -> (String, Option<String>) {
    let Some((scheme, rest)) = text.split_once("://") else {
        return (text.to_owned(), None);
    };
    let (authority, path) = match rest.find(['/', '?', '#']) {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    match authority.rsplit_once('@') {
        Some((user, host)) => (format!("{scheme}://{host}{path}"), Some(user.to_owned())),
        None => (text.to_owned(), None),
    }
}

/// Percent-decoding, as user info needs it. Not valid hex stays as it is.
pub(super) fn percent_decoded(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes().iter();
    while let Some(&byte) = bytes.next() {
        let hex = bytes
            .as_slice()
            .get(..2)
            .and_then(|h| std::str::from_utf8(h).ok());
        match hex
            .filter(|_| byte == b'%')
            .and_then(|h| u8::from_str_radix(h, 16).ok())
        {
            Some(decoded) => {
                out.push(decoded);
                bytes.nth(1);
            }
            None => out.push(byte),
        }
    }
    out
}

fn is_absolute(reference: &str) -> bool {
    let before = reference.split(['/', '?', '#']).next().unwrap_or("");
    before.contains(':')
}

fn without_dots(path: &str) -> String {
    let (path, query) = path
        .split_once('?')
        .map_or((path, None), |(p, q)| (p, Some(q)));
    let mut kept: Vec<&str> = Vec::new();
    for component in path.split('/').skip(1) {
        match component {
            "." => {}
            ".." => {
                kept.pop();
            }
            other => kept.push(other),
        }
    }
    let joined = format!("/{}", kept.join("/"));
    query.map_or(joined.clone(), |q| format!("{joined}?{q}"))
}

/// What of a broken address may be shown.
fn tame(text: &str) -> String {
    let (text, _user) = split_user_info(text);
    let shown = text
        .split_once('?')
        .map_or(text.as_str(), |(before, _)| before);
    shown
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    #[test]
    fn plain_http_is_for_this_machine_only() {
        assert!(matches!(
            Address::parse("http://hub.example/a"),
            Err(Fault::BadAddress { .. })
        ));
        assert!(matches!(
            Address::parse("ftp://hub.example/a"),
            Err(Fault::BadAddress { .. })
        ));
        assert!(matches!(
            Address::parse("file:///etc/passwd"),
            Err(Fault::BadAddress { .. })
        ));
        for good in [
            "http://127.0.0.1:9/a",
            "http://[::1]:9/a",
            "http://localhost/a",
            "https://a.b/c",
        ] {
            assert!(Address::parse(good).is_ok(), "{good}");
        }
        // a name that only looks like this machine
        assert!(Address::parse("http://127.0.0.1.example/a").is_err());
    }

    #[test]
    fn user_info_is_refused_and_never_shown() {
        assert!(matches!(
            Address::parse("https://u:hunter2@h/x"),
            Err(Fault::UserInfo)
        ));
        let text = Address::parse("gopher://u:hunter2@h/x?token=s3cret")
            .unwrap_err()
            .to_string();
        assert!(
            !text.contains("hunter2") && !text.contains("s3cret"),
            "{text}"
        );
        assert!(!at("https://h/x?token=s3cret").shown().contains("s3cret"));
    }

    #[test]
    fn redirects_never_leave_https() {
        let (https, local) = (at("https://hub/a"), at("http://127.0.0.1:1/a"));
        assert!(https.may_lead_to(&at("https://cdn/b")));
        assert!(!https.may_lead_to(&local));
        assert!(local.may_lead_to(&at("http://127.0.0.1:2/b")));
        assert!(local.may_lead_to(&https));
    }

    #[test]
    fn references_are_joined_as_the_rules_say() {
        let base = at("https://h:1/simple/pkg/?x=1");
        for (reference, whole) in [
            ("../../files/a.whl#sha256=00", "https://h:1/files/a.whl"),
            ("./a.whl", "https://h:1/simple/pkg/a.whl"),
            ("/b/c?d=../e", "https://h:1/b/c?d=../e"),
            ("//other/x", "https://other/x"),
            ("https://z/y", "https://z/y"),
            ("../../../../up", "https://h:1/up"),
        ] {
            assert_eq!(base.join(reference).unwrap(), at(whole), "{reference}");
        }
        assert!(base.join("javascript:alert(1)").is_err());
    }

    #[test]
    fn user_info_is_split_off_and_decoded() {
        let (rest, user) = split_user_info("https://me:p%40ss@h/simple/");
        assert_eq!(rest, "https://h/simple/");
        assert_eq!(percent_decoded(&user.unwrap()), b"me:p@ss");
        assert_eq!(split_user_info("https://h/a@b").1, None);
        assert_eq!(percent_decoded("100%"), b"100%");
    }

    #[test]
    fn the_same_server_is_scheme_host_and_port() {
        assert!(at("https://H/a").same_origin(&at("https://h:443/b")));
        assert!(!at("https://h/a").same_origin(&at("https://h:444/a")));
    }
}
