//! Who may read the figures: the answer to a request at the metrics door.
//!
//! One token opens it and nothing else does: no key for models, no admin token. Without it every path is 401,
//! whether it exists or not; with it there is `GET /metrics`. It reads no body. Called by `guan::wiring`, which lends
//! the door.

use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body_util::Full;
use rules::refusal::Answer;

use crate::refuse;
use crate::state::Gateway;

/// The answer to a request from `peer`.
#[must_use]
pub fn answer<B>(
    gateway: &Gateway,
    peer: SocketAddr,
    request: &Request<B>,
) -> Response<Full<Bytes>> {
    let settings = gateway.settings.load();
    let token = settings.metrics_token.as_ref();
    let shown = bearer(request.headers());
    if !token.is_some_and(|token| shown.is_some_and(|shown| token.is(shown))) {
        gateway.metrics.refused(REFUSED);
        gateway.strangers.count(peer.ip(), REFUSED);
        let mut response = refused(401, Some("invalid_metrics_token"), UNKNOWN);
        let scheme = HeaderValue::from_static("Bearer");
        response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
        return response;
    }
    if request.uri().path() != PATH {
        return refused(404, None, "There is nothing here but /metrics.");
    }
    if request.method() != Method::GET {
        let mut response = refused(405, Some("method_not_allowed"), "/metrics takes GET.");
        let allowed = HeaderValue::from_static("GET");
        response.headers_mut().insert(ALLOW, allowed);
        return response;
    }
    let mut response = Response::new(Full::from(gateway.metrics.text(gateway)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The credential of the only `Authorization` there is.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let (Some(one), None) = (all.next(), all.next()) else {
        return None;
    };
    let (scheme, rest) = one.as_bytes().split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| rest.trim_ascii())
}

fn refused(status: u16, code: Option<&str>, message: &str) -> Response<Full<Bytes>> {
    let answer = Answer {
        status,
        kind: "invalid_request_error",
        code: code.map(str::to_owned),
        message: message.to_owned(),
        param: None,
        retry: None,
        should_retry: None,
    };
    refuse::plain(&answer).map(Full::new)
}

const PATH: &str = "/metrics";
const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The word for records and figures.
const REFUSED: &str = "metrics-token";
const UNKNOWN: &str =
    "This door opens to the token of [metrics] alone. Send it as \"Authorization: Bearer …\".";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_header_of_the_right_scheme_is_a_credential() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, HeaderValue::from_static(value));
            }
            bearer(&headers).map(<[u8]>::to_vec)
        };
        assert_eq!(of(&["Bearer abc"]), Some(b"abc".to_vec()));
        assert_eq!(of(&["bearer  abc "]), Some(b"abc".to_vec()));
        for none in [
            &[][..],
            &["abc"],
            &["Basic abc"],
            &["Bearer"],
            &["Bearer a", "Bearer a"],
        ] {
            assert_eq!(of(none), None, "{none:?}");
        }
    }
}
