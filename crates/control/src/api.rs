//! The admin API, on `state/run/admin.sock` for this machine and on the admin listener for whoever has a token.
//!
//! `table` is the whole of it: routes, rights, description. `guard` decides who asks and whether he may; the rest is
//! how acts and faults look as JSON. What an act may do is decided in [`Keys`]. Called by the wiring and by commands.

mod table;
mod guard;
mod denials;
mod once;
mod precondition;
mod pages;
mod keys;
mod limits;
mod projects;
mod admins;
mod secrets;
mod usage;
mod audit;
mod openapi;
mod ask;
mod remote;
mod serve;

use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use rules::snapshot::Roles;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::clock::Clock;
use crate::keys::{Keys, KeysFault, time};
use crate::seal::SealFault;
use crate::secrets::{Secrets, SecretsFault};
use crate::store::{Store, StoreFault};
use denials::{Denials, Denied};

pub use ask::{Asked, ask};
pub use limits::{Counting, LimitRow, LimitsNow};
pub use openapi::description;
pub use remote::Remote;
pub use serve::serve;

/// The roles of the config file as it is now.
pub type RolesNow = Arc<dyn Fn() -> Roles + Send + Sync>;

/// What the API acts on.
#[derive(Clone)]
pub struct ApiState {
    keys: Keys,
    roles: RolesNow,
    clock: Clock,
    store: Store,
    secrets: Secrets,
    denials: Arc<Denials>,
    limits: Option<LimitsNow>,
}

impl ApiState {
    /// With everything an act touches; `roles` are those that a new key may have.
    #[must_use]
    pub fn new(keys: Keys, roles: RolesNow, clock: Clock, store: Store, secrets: Secrets) -> Self {
        Self {
            keys,
            roles,
            clock,
            store,
            secrets,
            denials: Arc::default(),
            limits: None,
        }
    }

    /// Where a server counts: with whom to ask for limits.
    #[must_use]
    pub fn with_limits(mut self, limits: LimitsNow) -> Self {
        self.limits = Some(limits);
        self
    }

    /// Leaves a trace of a refusal.
    fn denied(&self, denied: Denied) {
        for record in self.denials.count(denied, &self.clock) {
            self.keys.note(record);
        }
    }

    /// Leaves a trace of what was refused more than once in a minute that is over.
    fn flush_denials(&self) {
        for record in self.denials.flush(&self.clock) {
            self.keys.note(record);
        }
    }
}

impl fmt::Debug for ApiState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiState")
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

/// Where a request comes from. Every request carries one as an extension; without it none is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A user of this machine on the Unix socket; the kernel says which.
    Local {
        /// His uid.
        uid: u32,
    },
    /// Through TLS from an address: an admin token must say who.
    Remote {
        /// The peer's.
        address: IpAddr,
    },
}

async fn no_route() -> ApiFault {
    ApiFault::new(
        StatusCode::NOT_FOUND,
        "nothing is here; /admin/v1/openapi.json says what there is".to_owned(),
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
            "the body is larger than this route takes: 64 KiB, 8 MiB for an import".to_owned()
        } else {
            "the body didn't arrive whole".to_owned()
        };
        Self::new(cause.status(), message)
    }

    fn unauthenticated() -> Self {
        let mut fault = Self::new(
            StatusCode::UNAUTHORIZED,
            "this needs a valid admin token: Authorization: Bearer sk-guan-admin-…, made by `guan admin create`; a key for models doesn't open it".to_owned(),
        );
        fault.code = Some("invalid_admin_token");
        fault
    }

    const fn forbidden(message: String) -> Self {
        let mut fault = Self::new(StatusCode::FORBIDDEN, message);
        fault.code = Some("insufficient_right");
        fault
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
            KeysFault::NoAdmin(_) => (StatusCode::NOT_FOUND, Some("id")),
            KeysFault::NotYours { .. } => (StatusCode::FORBIDDEN, Some("role")),
            KeysFault::NotAll { .. } => (StatusCode::FORBIDDEN, None),
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
        let code = match &fault {
            KeysFault::Changed => Some("precondition_failed"),
            KeysFault::NotYours { .. } | KeysFault::NotAll { .. } => Some("insufficient_right"),
            _ => None,
        };
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
            // What the provider says is for the one who acts: an owner.
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
        if self.status == StatusCode::UNAUTHORIZED {
            let _none = response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            let _none = response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

fn answer<T: serde::Serialize>(status: StatusCode, body: &T) -> Response {
    let mut response = (status, Json(body)).into_response();
    let headers = response.headers_mut();
    let _none = headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let _none = headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

/// When something shall end: at a time, or after seconds.
fn ends(at: Option<String>, after: Option<u32>, now: i64) -> Result<Option<i64>, ApiFault> {
    match (at, after) {
        (None, None) => Ok(None),
        (Some(text), None) => Ok(Some(time(&text, "expires_at")?)),
        (None, Some(seconds)) => Ok(Some(now.saturating_add(i64::from(seconds)))),
        (Some(_), Some(_)) => {
            let text = "give expires_at or expires_in_seconds, not both";
            Err(ApiFault::bad(text.to_owned(), Some("expires_at")))
        }
    }
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

const MOST_BODY_BYTES: usize = 64 * 1024;
/// A list of 10,000 keys with names.
const MOST_IMPORT_BYTES: usize = 8 * 1024 * 1024;

#[cfg(test)]
mod tests;
