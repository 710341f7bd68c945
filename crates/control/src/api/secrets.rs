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

use super::{ApiFault, ApiState, Peer, actor, answer, read, shown, whole};

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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SealBody {
    secret: String,
}
