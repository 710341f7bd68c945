//! The admin API on `state/run/admin.sock`: what `guan key …` speaks to while the server runs.
//!
//! Decides who may connect (by the peer's uid, which the kernel vouches for) and how acts and faults look as JSON.
//! It holds no rule of its own: every act is one of [`Keys`]. Called by the wiring.

mod ask;
mod keys;
mod precondition;
mod projects;
mod secrets;
mod serve;
mod usage;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{HeaderValue, StatusCode, header};
use rules::snapshot::Roles;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::keys::{Keys, KeysFault};
use crate::seal::SealFault;
use crate::secrets::{Secrets, SecretsFault};
use crate::store::{Store, StoreFault};

pub use ask::{Asked, ask};
pub use serve::serve;

/// The roles of the config file as it is now.
pub type RolesNow = Arc<dyn Fn() -> Roles + Send + Sync>;

/// What the API acts on.
#[derive(Clone)]
pub struct ApiState {
    /// The keys.
    pub keys: Keys,
    /// The roles a new key may have.
    pub roles: RolesNow,
    /// For `expires_in_seconds`.
    pub clock: Clock,
    /// For usage and nodes.
    pub store: Store,
    /// For sealed values and the data key.
    pub secrets: Secrets,
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
        .route("/admin/v1/keys", get(keys::list).post(keys::create))
        .route(
            "/admin/v1/keys/{id}",
            get(keys::show).patch(keys::change).delete(keys::revoke),
        )
        .route("/admin/v1/keys/{id}/rotate", post(keys::rotate))
        .route(
            "/admin/v1/keys/import",
            post(keys::import).layer(DefaultBodyLimit::max(MOST_IMPORT_BYTES)),
        )
        .route(
            "/admin/v1/projects",
            get(projects::list).post(projects::create),
        )
        .route(
            "/admin/v1/projects/{id}",
            get(projects::show).patch(projects::change),
        )
        .route("/admin/v1/projects/{id}/enable", post(projects::enable))
        .route("/admin/v1/projects/{id}/disable", post(projects::disable))
        .route("/admin/v1/secrets", get(secrets::status))
        .route("/admin/v1/secrets/seal", post(secrets::seal))
        .route("/admin/v1/secrets/rewrap", post(secrets::rewrap))
        .route("/admin/v1/usage", get(usage::usage))
        .route("/admin/v1/nodes", get(usage::nodes))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(MOST_BODY_BYTES))
        .with_state(state)
}

async fn no_route() -> ApiFault {
    ApiFault::new(
        StatusCode::NOT_FOUND,
        "nothing is here; this socket knows /admin/v1/keys, /admin/v1/projects, /admin/v1/secrets, /admin/v1/usage and /admin/v1/nodes".to_owned(),
    )
}

async fn no_method() -> ApiFault {
    ApiFault::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this method isn't allowed here".to_owned(),
    )
}

/// A fault as it is answered: the shape of `OpenAI`'s error object.
#[derive(Debug)]
struct ApiFault {
    status: StatusCode,
    message: String,
    param: Option<&'static str>,
    code: Option<&'static str>,
}

impl ApiFault {
    const fn new(status: StatusCode, message: String) -> Self {
        Self {
            status,
            message,
            param: None,
            code: None,
        }
    }

    const fn bad(message: String, param: Option<&'static str>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            message,
            param,
            code: None,
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
            KeysFault::Never => (StatusCode::BAD_REQUEST, Some("not_before")),
            KeysFault::Own { what, .. } => (StatusCode::BAD_REQUEST, Some(*what)),
            KeysFault::Changed => (StatusCode::PRECONDITION_FAILED, Some("If-Match")),
            KeysFault::Overlap => (StatusCode::BAD_REQUEST, Some("overlap_seconds")),
            KeysFault::Import { .. } => (StatusCode::BAD_REQUEST, Some("list")),
            KeysFault::Project(_) => (StatusCode::NOT_FOUND, Some("project")),
            KeysFault::IsRevoked(_) | KeysFault::Store(StoreFault::Taken) => {
                (StatusCode::CONFLICT, None)
            }
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
                    StoreFault::Busy | StoreFault::Full | StoreFault::ReadOnly | StoreFault::Taken
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
        let code = matches!(fault, KeysFault::Changed).then_some("precondition_failed");
        Self {
            status,
            message,
            param,
            code,
        }
    }
}

impl From<SecretsFault> for ApiFault {
    fn from(fault: SecretsFault) -> Self {
        match fault {
            SecretsFault::Value => Self::bad(fault.to_string(), Some("secret")),
            SecretsFault::Changed => Self::new(StatusCode::CONFLICT, fault.to_string()),
            SecretsFault::Store(inner) | SecretsFault::Seal(SealFault::Store(inner)) => {
                KeysFault::Store(inner).into()
            }
            SecretsFault::Audit(inner) => KeysFault::Audit(inner).into(),
            // What the provider says is for the one who acts: he is root or the server's own user.
            SecretsFault::Seal(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, fault.to_string()),
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
            "code": self.code,
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

fn shown<T: serde::Serialize>(row: &T) -> Value {
    serde_json::to_value(row).unwrap_or_default()
}

/// A row with more members.
fn shown_with<T: serde::Serialize>(row: &T, more: &[(&str, Value)]) -> Value {
    let mut body = shown(row);
    if let Value::Object(members) = &mut body {
        for (name, value) in more {
            let _none = members.insert((*name).to_owned(), value.clone());
        }
    }
    body
}

fn read<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, ApiFault> {
    let body = body.map_err(|cause| ApiFault::body(&cause))?;
    serde_json::from_slice(&body)
        .map_err(|cause| ApiFault::bad(format!("the body isn't what was expected: {cause}"), None))
}

fn query_fault(cause: &QueryRejection) -> ApiFault {
    ApiFault::bad(cause.body_text(), None)
}

/// In a task of its own: an act that has begun ends, whether or not the asker waits.
async fn whole<T: Send + 'static, F: Into<ApiFault> + Send + 'static>(
    act: Pin<Box<dyn Future<Output = Result<T, F>> + Send>>,
) -> Result<T, ApiFault> {
    let done = tokio::spawn(act).await;
    done.map_err(|_panic| ApiFault::ours())?.map_err(Into::into)
}

fn actor(peer: Peer) -> String {
    format!("local:{}", peer.uid)
}

const MOST_BODY_BYTES: usize = 64 * 1024;
/// A list of 10,000 keys with names.
const MOST_IMPORT_BYTES: usize = 8 * 1024 * 1024;
const DEFAULT_PAGE: u32 = 100;
const LARGEST_PAGE: u32 = 1000;

#[cfg(test)]
mod tests;
