//! The admin API on `state/run/admin.sock`: what `guan key …` speaks to while the server runs.
//!
//! Decides who may connect (by the peer's uid, which the kernel vouches for) and how acts and faults look as JSON.
//! It holds no rule of its own: every act is one of [`Keys`]. Only `/admin/v1/keys` is here. Called by the wiring.

mod serve;

use std::fmt;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use axum::{Extension, Json, Router};
use http::{HeaderValue, StatusCode, header};
use rules::key::KeyId;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::clock::{self, Clock};
use crate::keys::{KeyRow, Keys, KeysFault, NewKey};
use crate::store::StoreFault;

pub use serve::serve;

/// The names of the roles in the config file as it is now.
pub type RoleNames = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// What the API acts on.
#[derive(Clone)]
pub struct ApiState {
    /// The keys.
    pub keys: Keys,
    /// The roles a new key may have.
    pub roles: RoleNames,
    /// For `expires_in_seconds`.
    pub clock: Clock,
}

impl fmt::Debug for ApiState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiState")
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

/// The user at the other end of the socket. Every request must carry one as an extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// His uid.
    pub uid: u32,
}

/// The routes. `serve` adds the [`Peer`] to each request; without one they answer 500 and do nothing.
pub fn router(state: ApiState) -> Router {
    Router::new()
        .route("/admin/v1/keys", get(list).post(create))
        .route("/admin/v1/keys/{id}", delete(revoke))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(MOST_BODY_BYTES))
        .with_state(state)
}

async fn list(
    State(state): State<ApiState>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, ApiFault> {
    let Query(query) = query.map_err(|cause| ApiFault::bad(cause.body_text(), None))?;
    let limit = query.limit.unwrap_or(DEFAULT_PAGE);
    if !(1..=LARGEST_PAGE).contains(&limit) {
        let text = format!("limit must be 1 to {LARGEST_PAGE}");
        return Err(ApiFault::bad(text, Some("limit")));
    }
    let after = query
        .after
        .map(|text| KeyId::parse(&text))
        .transpose()
        .map_err(|_shape| {
            ApiFault::bad("after must be the id of a key".to_owned(), Some("after"))
        })?;
    let page = state.keys.page(after, limit).await?;
    let body = json!({ "object": "list", "data": page.rows, "has_more": page.has_more });
    Ok(answer(StatusCode::OK, &body))
}

async fn create(
    State(state): State<ApiState>,
    Extension(peer): Extension<Peer>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiFault> {
    let body = body.map_err(|cause| ApiFault::body(&cause))?;
    let asked: CreateBody = serde_json::from_slice(&body).map_err(|cause| {
        ApiFault::bad(format!("the body isn't what was expected: {cause}"), None)
    })?;
    let now = clock::seconds((state.clock)());
    let expires_at = match (asked.expires_at, asked.expires_in_seconds) {
        (None, None) => None,
        (Some(text), None) => Some(clock::parse_rfc3339(&text).ok_or_else(|| {
            let text = "expires_at must be a time like 2030-12-31T23:59:59Z";
            ApiFault::bad(text.to_owned(), Some("expires_at"))
        })?),
        (None, Some(seconds)) => Some(now.saturating_add(i64::from(seconds))),
        (Some(_), Some(_)) => {
            let text = "give expires_at or expires_in_seconds, not both";
            return Err(ApiFault::bad(text.to_owned(), Some("expires_at")));
        }
    };
    let new = NewKey {
        name: asked.name,
        role: asked.role,
        project: asked.project,
        expires_at,
    };
    let (keys, roles, actor) = (state.keys, (state.roles)(), actor(peer));
    // A task of its own: an act that has begun ends, whether or not the asker waits.
    let created = tokio::spawn(async move { keys.create(new, &roles, &actor).await })
        .await
        .map_err(|_panic| ApiFault::ours())??;
    let mut body = shown(&created.row);
    if let Value::Object(members) = &mut body {
        let text: &str = &created.text;
        let _none = members.insert("key".to_owned(), Value::from(text));
    }
    Ok(answer(StatusCode::CREATED, &body))
}

async fn revoke(
    State(state): State<ApiState>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
) -> Result<Response, ApiFault> {
    let (keys, actor) = (state.keys, actor(peer));
    let revoked = tokio::spawn(async move { keys.revoke(&id, &actor).await })
        .await
        .map_err(|_panic| ApiFault::ours())??;
    let mut body = shown(&revoked.row);
    if let Value::Object(members) = &mut body {
        let _none = members.insert("already_revoked".to_owned(), Value::from(revoked.already));
    }
    Ok(answer(StatusCode::OK, &body))
}

async fn no_route() -> ApiFault {
    ApiFault::new(
        StatusCode::NOT_FOUND,
        "nothing is here; this socket knows /admin/v1/keys only".to_owned(),
    )
}

async fn no_method() -> ApiFault {
    ApiFault::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this method isn't allowed here".to_owned(),
    )
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    limit: Option<u32>,
    after: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    name: String,
    role: String,
    #[serde(default)]
    project: Option<String>,
    #[serde(default)]
    expires_at: Option<String>,
    #[serde(default)]
    expires_in_seconds: Option<u32>,
}

/// A fault as it is answered: the shape of `OpenAI`'s error object.
#[derive(Debug)]
struct ApiFault {
    status: StatusCode,
    message: String,
    param: Option<&'static str>,
}

impl ApiFault {
    const fn new(status: StatusCode, message: String) -> Self {
        Self {
            status,
            message,
            param: None,
        }
    }

    const fn bad(message: String, param: Option<&'static str>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            message,
            param,
        }
    }

    fn body(cause: &BytesRejection) -> Self {
        let message = if cause.status() == StatusCode::PAYLOAD_TOO_LARGE {
            format!("the body is larger than {MOST_BODY_BYTES} bytes")
        } else {
            "the body didn't arrive whole".to_owned()
        };
        Self::new(cause.status(), message)
    }

    fn ours() -> Self {
        let message = "that failed inside guan; its log says more".to_owned();
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }
}

impl From<KeysFault> for ApiFault {
    fn from(fault: KeysFault) -> Self {
        let (status, param) = match &fault {
            KeysFault::Name { what } => (StatusCode::BAD_REQUEST, Some(*what)),
            KeysFault::Role { .. } => (StatusCode::BAD_REQUEST, Some("role")),
            KeysFault::Expiry { .. } => (StatusCode::BAD_REQUEST, Some("expires_at")),
            KeysFault::NotAnId => (StatusCode::BAD_REQUEST, Some("id")),
            KeysFault::Ambiguous { .. } => (StatusCode::CONFLICT, Some("id")),
            KeysFault::Unknown(_) => (StatusCode::NOT_FOUND, Some("id")),
            KeysFault::Store(_)
            | KeysFault::Audit(_)
            | KeysFault::Unpublished
            | KeysFault::Unrecorded
            | KeysFault::NoRandom => (StatusCode::SERVICE_UNAVAILABLE, None),
        };
        let message = match &fault {
            // Paths and SQLite's words are for the server's log.
            KeysFault::Store(inner)
                if !matches!(
                    inner,
                    StoreFault::Busy | StoreFault::Full | StoreFault::ReadOnly
                ) =>
            {
                tracing::error!(fault = %inner, "the store failed an act on the admin socket");
                "the database failed; the server's log says more. Try again".to_owned()
            }
            KeysFault::Audit(inner) => {
                tracing::error!(fault = %inner, "the audit log failed an act on the admin socket");
                fault.to_string()
            }
            _ => fault.to_string(),
        };
        Self {
            status,
            message,
            param,
        }
    }
}

impl IntoResponse for ApiFault {
    fn into_response(self) -> Response {
        let kind = match self.status {
            StatusCode::SERVICE_UNAVAILABLE => "service_unavailable_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let error = json!({
            "message": self.message,
            "type": kind,
            "param": self.param,
            "code": null,
        });
        let mut response = answer(self.status, &json!({ "error": error }));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            let _none = response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

fn answer(status: StatusCode, body: &Value) -> Response {
    let mut response = (status, Json(body)).into_response();
    let _none = response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn shown(row: &KeyRow) -> Value {
    serde_json::to_value(row).unwrap_or_default()
}

fn actor(peer: Peer) -> String {
    format!("local:{}", peer.uid)
}

const MOST_BODY_BYTES: usize = 64 * 1024;
const DEFAULT_PAGE: u32 = 100;
const LARGEST_PAGE: u32 = 1000;

#[cfg(test)]
mod tests;
