//! Lists in pages: a cursor, a bound, and where the next page is.

use axum::response::{IntoResponse, Response};
use http::header::LINK;
use http::{HeaderValue, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ApiFault, answer};

/// Which page.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    /// At most so many, 1 to 1000; 100 if it isn't given.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<u32>,
    /// Those after this one: the last id of the page before.
    pub(super) after: Option<String>,
}

impl ListQuery {
    pub(super) fn limit(&self) -> Result<u32, ApiFault> {
        limit(self.limit)
    }
}

/// A page's size.
pub(super) fn limit(given: Option<u32>) -> Result<u32, ApiFault> {
    let limit = given.unwrap_or(DEFAULT);
    if (1..=LARGEST).contains(&limit) {
        return Ok(limit);
    }
    let text = format!("limit must be 1 to {LARGEST}");
    Err(ApiFault::bad(text, Some("limit")))
}

/// One page.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "{T}Page")]
pub(super) struct Page<T> {
    /// `list`.
    object: &'static str,
    /// What is on it.
    data: Vec<T>,
    /// There are more after the last of these; `Link` says where.
    has_more: bool,
}

impl<T> Page<T> {
    pub(super) const fn of(data: Vec<T>, has_more: bool) -> Self {
        Self {
            object: "list",
            data,
            has_more,
        }
    }

    /// Of rows of which one more than `limit` was asked for.
    pub(super) fn cut(mut data: Vec<T>, limit: u32) -> Self {
        let most = usize::try_from(limit).unwrap_or(usize::MAX);
        let has_more = data.len() > most;
        data.truncate(most);
        Self::of(data, has_more)
    }
}

impl<T: Serialize> Page<T> {
    /// The answer; `path` with its query less the cursor, and the cursor of a row.
    pub(super) fn answered(
        self,
        status: StatusCode,
        path: &str,
        cursor: impl Fn(&T) -> String,
    ) -> Response {
        let next = self.data.last().filter(|_| self.has_more).map(cursor);
        let mut response = answer(status, &self).into_response();
        let link = next.map(|after| {
            let joint = if path.contains('?') { '&' } else { '?' };
            format!("<{path}{joint}after={}>; rel=\"next\"", escaped(&after))
        });
        if let Some(link) = link.and_then(|link| HeaderValue::try_from(link).ok()) {
            let _none = response.headers_mut().insert(LINK, link);
        }
        response
    }
}

/// As one value of a query.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

const DEFAULT: u32 = 100;
const LARGEST: u32 = 1000;
