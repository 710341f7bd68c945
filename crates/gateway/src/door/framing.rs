//! What hyper lets through and one meaning forbids: each request has one host, one length, one path.
//!
//! hyper refuses most malformed framing itself; it drops `Content-Length` beside `Transfer-Encoding` and closes.
//! The rest is refused here, before anything is looked up (RFC 9112 sections 3.2 and 6).

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::{Method, Version};
use rules::refusal::Refusal;

/// Refuses a request that two readers could read in two ways.
///
/// # Errors
/// [`Refusal::Framing`].
pub(crate) fn judge(request: &Parts) -> Result<(), Refusal> {
    let headers = &request.headers;
    let count = |name| headers.get_all(name).iter().count();
    let refuse = |why| Err(Refusal::Framing(why));
    if count(CONTENT_LENGTH) > 1 || count(TRANSFER_ENCODING) > 1 {
        return refuse("The request has more than one length.");
    }
    if count(CONTENT_LENGTH) + count(TRANSFER_ENCODING) > 1 {
        return refuse("The request has both Content-Length and Transfer-Encoding.");
    }
    if request.version < Version::HTTP_2 {
        match (count(HOST), request.version) {
            (1, _) | (0, Version::HTTP_10) => {}
            (0, _) => return refuse("The request has no Host."),
            _ => return refuse("The request has more than one Host."),
        }
        let host = headers.get(HOST).map(http::HeaderValue::as_bytes);
        if let (Some(authority), Some(host)) = (request.uri.authority(), host)
            && !authority.as_str().as_bytes().eq_ignore_ascii_case(host)
        {
            return refuse("The request's target and its Host differ.");
        }
    }
    let sized = headers
        .get(CONTENT_LENGTH)
        .is_some_and(|length| length.as_bytes() != b"0");
    let bodiless = matches!(request.method, Method::GET | Method::HEAD | Method::OPTIONS);
    if bodiless && (sized || headers.contains_key(TRANSFER_ENCODING)) {
        return refuse("A request of this method has no body.");
    }
    if !escapes_are_whole(request.uri.path()) {
        return refuse("The path has a malformed percent escape.");
    }
    Ok(())
}

fn escapes_are_whole(path: &str) -> bool {
    let mut rest = path.as_bytes();
    while let Some(at) = memchr::memchr(b'%', rest) {
        let Some([a, b, ..]) = rest.get(at.saturating_add(1)..) else {
            return false;
        };
        if !a.is_ascii_hexdigit() || !b.is_ascii_hexdigit() {
            return false;
        }
        rest = rest.get(at.saturating_add(3)..).unwrap_or_default();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&'static str, &'static str)], uri: &str, method: Method) -> Parts {
        let mut builder = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    #[test]
    fn two_meanings_are_refused() {
        let h = ("host", "a");
        for (headers, uri, method) in [
            (vec![], "/x", Method::GET),
            (vec![h, ("host", "b")], "/x", Method::GET),
            (
                vec![h, ("content-length", "1"), ("content-length", "1")],
                "/x",
                Method::POST,
            ),
            (
                vec![h, ("transfer-encoding", "chunked"), ("content-length", "1")],
                "/x",
                Method::POST,
            ),
            (
                vec![
                    h,
                    ("transfer-encoding", "chunked"),
                    ("transfer-encoding", "chunked"),
                ],
                "/x",
                Method::POST,
            ),
            (vec![h, ("content-length", "5")], "/x", Method::GET),
            (vec![h], "http://other/x", Method::GET),
            (vec![h], "/%zz", Method::GET),
            (vec![h], "/%a", Method::GET),
        ] {
            assert!(
                judge(&request(&headers, uri, method)).is_err(),
                "{headers:?} {uri}"
            );
        }
        assert!(judge(&request(&[h], "http://A/x%41", Method::GET)).is_ok());
        assert!(judge(&request(&[h, ("content-length", "0")], "/x", Method::GET)).is_ok());
    }
}
