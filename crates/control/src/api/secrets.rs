//! Routes below `/admin/v1/secrets`. A secret comes in once and is never shown.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::guard::Who;
use super::{ApiFault, ApiState, answer, read, whole};
use crate::clock;
use crate::keys::{KeysFault, count_due};
use crate::secrets::Status;

pub(super) async fn seal(
    State(state): State<ApiState>,
    Extension(who): Extension<Who>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiFault> {
    let asked: SealBody = read(body)?;
    let secret = Zeroizing::new(asked.secret);
    let (secrets, actor) = (state.secrets, who.actor);
    let sealed = whole(Box::pin(async move { secrets.seal(&secret, &actor).await })).await?;
    Ok(answer(StatusCode::OK, &Sealed { sealed }))
}

pub(super) async fn rewrap(
    State(state): State<ApiState>,
    Extension(who): Extension<Who>,
) -> Result<Response, ApiFault> {
    let (secrets, actor) = (state.secrets, who.actor);
    let done = whole(Box::pin(async move { secrets.rewrap(&actor).await })).await?;
    Ok(answer(StatusCode::OK, &done))
}

/// How secrets are kept, how the key service was last seen, and how many keys are due for a new secret.
pub(super) async fn status(State(state): State<ApiState>) -> Result<Response, ApiFault> {
    let roles = (state.roles)();
    let now = clock::seconds((state.clock)());
    let status = state.secrets.status().await?;
    let keys_due = count_due(&state.store, &roles, now).await;
    let shown = Kept {
        status,
        keys_due: keys_due.map_err(KeysFault::Store)?,
    };
    Ok(answer(StatusCode::OK, &shown))
}

/// How secrets are kept.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SecretsStatus")]
pub(super) struct Kept {
    #[serde(flatten)]
    status: Status,
    /// Keys whose newest secret is older than their role allows.
    keys_due: u64,
}

/// A secret to seal.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SealBody {
    /// It is sealed and forgotten.
    secret: String,
}

/// A sealed value.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Sealed {
    /// `sealed:…`, for the config file.
    sealed: String,
}
