//! Pages of other origins: which of them a browser may let call, and what it is told before they do.
//!
//! Decides by the exact origins of `[server] cors_origins`, none unless they are listed; a preflight of one of them is
//! answered here, does no work and needs no credential, since browsers send none. Nobody else sees a header of it.
//! It opens nothing: every call still needs its key. Called by `accept` around `way::walk`.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};

use crate::body::Body;
use crate::endpoints;

/// The origin a request comes from, if it is listed: exactly, and only one.
pub(crate) fn allowed(origins: &[String], headers: &HeaderMap) -> Option<HeaderValue> {
    let mut all = headers.get_all(ORIGIN).iter();
    let (Some(origin), None) = (all.next(), all.next()) else {
        return None;
    };
    let is_listed = origins.iter().any(|it| it.as_bytes() == origin.as_bytes());
    is_listed.then(|| origin.clone())
}

/// The answer to a browser's question whether it may send what it is about to; `None`: it isn't one, or of a path that
/// nobody calls.
pub(crate) fn preflight(head: &Parts, origin: &HeaderValue) -> Option<Response<Body>> {
    let asks = head.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    if head.method != Method::OPTIONS || !asks {
        return None;
    }
    let (endpoint, _) = endpoints::find(head.uri.path())?;
    let mut response = Response::new(Body::Whole(None));
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    let method = if endpoint.method == Method::POST {
        "POST"
    } else {
        "GET, HEAD"
    };
    headers.insert(
        ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static(method),
    );
    if let Some(names) = asked(&head.headers) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names);
    }
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    mark(&mut response, origin);
    Some(response)
}

/// Lets the page read an answer, errors and streams included.
pub(crate) fn mark(response: &mut Response<Body>, origin: &HeaderValue) {
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    headers.insert(
        ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static(READABLE),
    );
    headers.append(VARY, HeaderValue::from_static("Origin"));
}

/// Of the headers that are asked about, those that calls may have.
fn asked(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = headers.get(ACCESS_CONTROL_REQUEST_HEADERS)?.to_str().ok()?;
    let names = asked
        .split(',')
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| {
            let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            plain && (SENT.contains(&name.as_str()) || name.starts_with("x-stainless-"))
        })
        .collect::<Vec<_>>();
    HeaderValue::try_from(names.join(", ")).ok()
}

/// What a call has of its own; the SDKs add `x-stainless-…`.
const SENT: [&str; 8] = [
    "accept",
    "api-key",
    "authorization",
    "content-type",
    "openai-organization",
    "openai-project",
    "traceparent",
    "x-api-key",
];

const READABLE: &str = "retry-after, retry-after-ms, x-guan-dropped, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, x-request-id, x-should-retry";

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: Method, path: &str, headers: &[(&'static str, &'static str)]) -> Parts {
        let mut builder = http::Request::builder().method(method).uri(path);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    #[test]
    fn only_a_listed_origin_is_one() {
        let listed = ["https://app.example".to_owned()];
        let of = |origins: &[&'static str]| {
            let headers: Vec<_> = origins.iter().map(|it| ("origin", *it)).collect();
            allowed(&listed, &head(Method::GET, "/", &headers).headers)
        };
        assert!(of(&["https://app.example"]).is_some());
        for foreign in [
            &["https://app.example.evil"][..],
            &["https://APP.example"],
            &["http://app.example"],
            &["null"],
            &["https://app.example", "https://app.example"],
            &[],
        ] {
            assert_eq!(of(foreign), None, "{foreign:?}");
        }
    }

    #[test]
    fn a_preflight_names_what_calls_may_have_and_nothing_else() {
        let origin = HeaderValue::from_static("https://app.example");
        let asks = [
            ("access-control-request-method", "POST"),
            (
                "access-control-request-headers",
                "Authorization, content-type,x-stainless-lang, x-evil, x-stainless-a b",
            ),
        ];
        let said = preflight(
            &head(Method::OPTIONS, "/v1/chat/completions", &asks),
            &origin,
        )
        .unwrap();
        assert_eq!(said.status(), 204);
        let headers = said.headers();
        assert_eq!(
            headers[ACCESS_CONTROL_ALLOW_HEADERS],
            "authorization, content-type, x-stainless-lang"
        );
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_METHODS], "POST");
        assert_eq!(headers[VARY], "Origin");
        assert!(!headers.contains_key("access-control-allow-credentials"));
        assert!(preflight(&head(Method::OPTIONS, "/v1/none", &asks), &origin).is_none());
        assert!(preflight(&head(Method::POST, "/v1/models", &asks), &origin).is_none());
        assert!(preflight(&head(Method::OPTIONS, "/v1/models", &[]), &origin).is_none());
    }
}
