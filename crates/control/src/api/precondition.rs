//! Versions on the wire: `ETag` on what can be changed, `If-Match` before it is changed (RFC 9110, section 13.1.1).
//!
//! Decides that nobody changes what he hasn't seen: without `If-Match` it is 428, with another version's tag 412.

use axum::response::Response;
use http::header::{ETAG, IF_MATCH};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::ApiFault;
use crate::keys::Expected;

/// What `If-Match` expects.
///
/// # Errors
/// 428 without one, 400 when it can't be read.
pub(super) fn expected(headers: &HeaderMap) -> Result<Expected, ApiFault> {
    let mut versions = Vec::new();
    let mut is_there = false;
    for line in headers.get_all(IF_MATCH) {
        is_there = true;
        let line = line.to_str().map_err(|_bytes| unreadable())?.trim();
        if line == "*" {
            return Ok(Expected::Any);
        }
        for tag in line.split(',').map(str::trim) {
            let strong = tag.strip_prefix("W/").unwrap_or(tag);
            let inner = strong.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
            let inner = inner.ok_or_else(unreadable)?;
            // A weak tag never matches here, and a tag that isn't ours matches nothing.
            if strong == tag {
                versions.extend(inner.parse::<i64>().ok());
            }
        }
    }
    if is_there {
        Ok(Expected::Versions(versions))
    } else {
        Err(ApiFault {
            status: StatusCode::PRECONDITION_REQUIRED,
            message: "If-Match is missing: send the ETag of what you saw, or * to change whatever is there".to_owned(),
            param: Some("If-Match"),
            code: Some("precondition_required"),
        })
    }
}

fn unreadable() -> ApiFault {
    let text = "If-Match must be an ETag such as \"3\", or *".to_owned();
    ApiFault::bad(text, Some("If-Match"))
}

/// The answer with its version's tag.
pub(super) fn tagged(mut response: Response, version: i64) -> Response {
    if let Ok(tag) = HeaderValue::try_from(format!("\"{version}\"")) {
        let _none = response.headers_mut().insert(ETAG, tag);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&'static str]) -> Result<Expected, StatusCode> {
        let headers = lines
            .iter()
            .map(|line| (IF_MATCH, HeaderValue::from_static(line)))
            .collect();
        expected(&headers).map_err(|fault| fault.status)
    }

    #[test]
    fn tags_are_read_as_the_rfc_writes_them() {
        assert_eq!(of(&["*"]), Ok(Expected::Any));
        assert_eq!(of(&["\"3\""]), Ok(Expected::Versions(vec![3])));
        let several = of(&["\"3\", \"x\" ,W/\"5\"", "\"4\""]);
        assert_eq!(several, Ok(Expected::Versions(vec![3, 4])));
        assert_eq!(of(&[]), Err(StatusCode::PRECONDITION_REQUIRED));
        for wrong in ["3", "", "\"3"] {
            assert_eq!(of(&[wrong]), Err(StatusCode::BAD_REQUEST), "{wrong}");
        }
    }
}
