//! Refusals and answers become bytes here, and nowhere else: one envelope, one set of headers.

use std::time::Duration;

use http::header::{
    CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderMap, Response, StatusCode};
use rules::ident::RequestId;
use rules::limit::{Standing, Told};
use rules::refusal::{Answer, Refusal, spoken};

use crate::body::Body;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// An answer of media type `media_type`, with the headers that every answer has.
pub(crate) fn respond(
    id: RequestId,
    status: u16,
    media_type: &'static str,
    body: Body,
) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        http::header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    if let Ok(value) = HeaderValue::try_from(id.to_string()) {
        headers.insert(REQUEST_ID, value);
    }
    response
}

/// A refusal as an OpenAI-shaped error.
pub(crate) fn refuse(id: RequestId, refusal: &Refusal) -> Response<Body> {
    let answer = refusal.answer();
    let body = error_bytes(&answer);
    let mut response = respond(id, answer.status, "application/json", Body::whole(body));
    let headers = response.headers_mut();
    if answer.status == 401 {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Refusal::MethodNotAllowed(allowed) = refusal {
        headers.insert(http::header::ALLOW, HeaderValue::from_static(allowed));
    }
    if let Some(wait) = answer.retry {
        insert_number(headers, RETRY_AFTER, whole_seconds(wait));
        insert_number(
            headers,
            RETRY_AFTER_MS,
            u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1),
        );
    }
    if let Some(retry) = answer.should_retry {
        headers.insert(
            SHOULD_RETRY,
            HeaderValue::from_static(if retry { "true" } else { "false" }),
        );
    }
    response
}

/// A refusal of a door that isn't the data door: it has no request ids.
pub(crate) fn plain(answer: &Answer) -> Response<bytes::Bytes> {
    let mut response = Response::new(error_bytes(answer).into());
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_REQUEST);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The error object of an answer.
pub(crate) fn error_bytes(answer: &Answer) -> Vec<u8> {
    wire::openai::error_body(
        &answer.message,
        answer.kind,
        answer.param.as_deref(),
        answer.code.as_deref(),
    )
}

/// How the caller's tightest limits on calls and on tokens stand.
pub(crate) fn tell_limits(headers: &mut HeaderMap, told: &Told) {
    let requests = [
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
    ];
    let tokens = [
        "x-ratelimit-limit-tokens",
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-tokens",
    ];
    for (standing, names) in [(told.requests, requests), (told.tokens, tokens)] {
        if let Some(standing) = standing {
            tell(headers, &standing, names.map(HeaderName::from_static));
        }
    }
}

fn tell(headers: &mut HeaderMap, standing: &Standing, names: [HeaderName; 3]) {
    let [limit, remaining, reset] = names;
    insert_number(headers, limit, standing.limit);
    insert_number(headers, remaining, standing.remaining);
    if let Ok(value) = HeaderValue::try_from(spoken(standing.reset)) {
        headers.insert(reset, value);
    }
}

/// `Retry-After` counts whole seconds; a shorter one would come too early.
fn whole_seconds(wait: Duration) -> u64 {
    let more = u64::from(wait.subsec_nanos() > 0);
    wait.as_secs().saturating_add(more).max(1)
}

pub(crate) fn insert_number(headers: &mut HeaderMap, name: HeaderName, number: u64) {
    headers.insert(name, HeaderValue::from(number));
}

#[cfg(test)]
mod tests {
    use rules::limit::{Class, Denied, Limit, parse_budget, parse_limit};

    use super::*;

    #[test]
    fn a20_each_limit_names_itself_and_says_whether_waiting_helps() {
        let id = RequestId::new(1, [0; 10]);
        let refused = |limit: Limit, asked, seconds| {
            let response = refuse(
                id,
                &Refusal::Limit(Denied {
                    class: Class::Project,
                    limit,
                    asked,
                    used: 5,
                    retry: Duration::from_secs(seconds),
                }),
            );
            let text = |name: &str| {
                let value = response.headers().get(name);
                value.map(|v| v.to_str().unwrap_or_default().to_owned())
            };
            (
                response.status().as_u16(),
                text("retry-after"),
                text("x-should-retry"),
            )
        };
        let tokens = parse_limit("100 tokens/minute").unwrap();
        let budget = parse_budget("100 tokens/month").unwrap();
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(refused(tokens, 60, 12), (429, some("12"), None));
        assert_eq!(refused(Limit::running(4), 1, 1), (429, some("1"), None));
        assert_eq!(
            refused(budget, 60, 9000),
            (429, some("9000"), some("false"))
        );
        assert_eq!(refused(tokens, 101, 0), (400, None, some("false")));
    }

    #[test]
    fn retry_after_rounds_up_and_is_never_zero() {
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::ZERO), 1);
        assert_eq!(whole_seconds(Duration::from_millis(5001)), 6);
    }

    #[test]
    fn a_401_names_the_scheme_and_a_429_the_wait() {
        let id = RequestId::new(1, [0; 10]);
        let response = refuse(id, &Refusal::NoCredential);
        assert_eq!(response.headers()[WWW_AUTHENTICATE], "Bearer");
        let retry = Duration::from_millis(1500);
        let denied = Denied {
            class: Class::Key,
            limit: Limit::per_minute(10),
            asked: 1,
            used: 10,
            retry,
        };
        let response = refuse(id, &Refusal::Limit(denied));
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        assert_eq!(response.headers()[RETRY_AFTER_MS], "1500");
        assert!(response.headers().contains_key(REQUEST_ID));
    }
}
