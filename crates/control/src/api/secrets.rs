//! Routes below `/admin/v1/secrets`. A secret comes in once and is never shown.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::{ApiFault, ApiState, Peer, actor, answer, read, shown, shown_with, whole};
use crate::clock;
use crate::keys::{KeysFault, count_due};

pub(super) async fn seal(
    State(state): State<ApiState>,
    Extension(peer): Extension<Peer>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiFault> {
    let asked: SealBody = read(body)?;
    let secret = Zeroizing::new(asked.secret);
    let (secrets, actor) = (state.secrets, actor(peer));
    let sealed = whole(Box::pin(async move { secrets.seal(&secret, &actor).await })).await?;
    Ok(answer(StatusCode::OK, &json!({ "sealed": sealed })))
}

pub(super) async fn rewrap(
    State(state): State<ApiState>,
    Extension(peer): Extension<Peer>,
) -> Result<Response, ApiFault> {
    let (secrets, actor) = (state.secrets, actor(peer));
    let done = whole(Box::pin(async move { secrets.rewrap(&actor).await })).await?;
    Ok(answer(StatusCode::OK, &shown(&done)))
}

/// How secrets are kept, how the key service was last seen, and how many keys are due for a new secret.
pub(super) async fn status(State(state): State<ApiState>) -> Result<Response, ApiFault> {
    let roles = (state.roles)();
    let now = clock::seconds((state.clock)());
    let status = state.secrets.status().await?;
    let due = count_due(&state.store, &roles, now).await;
    let due = due.map_err(KeysFault::Store)?;
    Ok(answer(
        StatusCode::OK,
        &shown_with(&status, &[("keys_due", due.into())]),
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SealBody {
    secret: String,
}
