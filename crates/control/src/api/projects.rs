//! Routes below `/admin/v1/projects`.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use rules::policy::Own;
use serde::Deserialize;
use serde_json::json;

use super::precondition::{expected, tagged};
use super::{ApiFault, ApiState, Peer, actor, answer, read, shown, shown_with, whole};
use crate::keys::{NewProject, ProjectChange};

pub(super) async fn list(State(state): State<ApiState>) -> Result<Response, ApiFault> {
    let rows = state.keys.projects().await?;
    let body = json!({ "object": "list", "data": rows, "has_more": false });
    Ok(answer(StatusCode::OK, &body))
}

pub(super) async fn create(
    State(state): State<ApiState>,
    Extension(peer): Extension<Peer>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiFault> {
    let asked: CreateBody = read(body)?;
    let new = NewProject {
        name: asked.name,
        own: asked.own,
        notes: asked.notes,
    };
    let (keys, actor) = (state.keys, actor(peer));
    let row = whole(Box::pin(
        async move { keys.create_project(new, &actor).await },
    ))
    .await?;
    Ok(tagged(
        answer(StatusCode::CREATED, &shown(&row)),
        row.version,
    ))
}

pub(super) async fn show(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<Response, ApiFault> {
    let row = state.keys.project(&id).await?;
    Ok(tagged(answer(StatusCode::OK, &shown(&row)), row.version))
}

pub(super) async fn change(
    State(state): State<ApiState>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiFault> {
    let expected = expected(&headers)?;
    let change: ProjectChange = read(body)?;
    let (keys, actor) = (state.keys, actor(peer));
    let row = whole(Box::pin(async move {
        keys.change_project(&id, &expected, change, &actor).await
    }))
    .await?;
    Ok(tagged(answer(StatusCode::OK, &shown(&row)), row.version))
}

pub(super) async fn enable(
    state: State<ApiState>,
    peer: Extension<Peer>,
    id: Path<String>,
) -> Result<Response, ApiFault> {
    set(state, peer, id, true).await
}

pub(super) async fn disable(
    state: State<ApiState>,
    peer: Extension<Peer>,
    id: Path<String>,
) -> Result<Response, ApiFault> {
    set(state, peer, id, false).await
}

async fn set(
    State(state): State<ApiState>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    enabled: bool,
) -> Result<Response, ApiFault> {
    let (keys, actor) = (state.keys, actor(peer));
    let (row, changed) = whole(Box::pin(async move {
        keys.enable_project(&id, enabled, &actor).await
    }))
    .await?;
    Ok(answer(
        StatusCode::OK,
        &shown_with(&row, &[("already", (!changed).into())]),
    ))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    name: String,
    #[serde(default)]
    own: Own,
    #[serde(default)]
    notes: String,
}
