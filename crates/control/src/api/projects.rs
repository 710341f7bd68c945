//! Routes below `/admin/v1/projects`.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use rules::policy::Own;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::guard::Who;
use super::pages::{ListQuery, Page};
use super::precondition::{expected, tagged};
use super::{ApiFault, ApiState, answer, query_fault, read, whole};
use crate::keys::{NewProject, ProjectChange, ProjectRow};

pub(super) async fn list(
    State(state): State<ApiState>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, ApiFault> {
    let Query(query) = query.map_err(|cause| query_fault(&cause))?;
    let limit = query.limit()?;
    let (rows, has_more) = state
        .keys
        .projects_page(query.after.as_deref(), limit)
        .await?;
    let path = format!("/admin/v1/projects?limit={limit}");
    Ok(Page::of(rows, has_more).answered(StatusCode::OK, &path, |row| row.id.clone()))
}

pub(super) async fn create(
    State(state): State<ApiState>,
    Extension(who): Extension<Who>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiFault> {
    let asked: CreateBody = read(body)?;
    let new = NewProject {
        name: asked.name,
        own: asked.own,
        notes: asked.notes,
    };
    let (keys, actor) = (state.keys, who.actor);
    let row = whole(Box::pin(
        async move { keys.create_project(new, &actor).await },
    ))
    .await?;
    Ok(tagged(answer(StatusCode::CREATED, &row), row.version))
}

pub(super) async fn show(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<Response, ApiFault> {
    let row = state.keys.project(&id).await?;
    Ok(tagged(answer(StatusCode::OK, &row), row.version))
}

pub(super) async fn change(
    State(state): State<ApiState>,
    Extension(who): Extension<Who>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiFault> {
    let expected = expected(&headers)?;
    let change: ProjectChange = read(body)?;
    let (keys, actor) = (state.keys, who.actor);
    let row = whole(Box::pin(async move {
        keys.change_project(&id, &expected, change, &actor).await
    }))
    .await?;
    Ok(tagged(answer(StatusCode::OK, &row), row.version))
}

pub(super) async fn enable(
    state: State<ApiState>,
    who: Extension<Who>,
    id: Path<String>,
) -> Result<Response, ApiFault> {
    set(state, who, id, true).await
}

pub(super) async fn disable(
    state: State<ApiState>,
    who: Extension<Who>,
    id: Path<String>,
) -> Result<Response, ApiFault> {
    set(state, who, id, false).await
}

async fn set(
    State(state): State<ApiState>,
    Extension(who): Extension<Who>,
    Path(id): Path<String>,
    enabled: bool,
) -> Result<Response, ApiFault> {
    let (keys, actor) = (state.keys, who.actor);
    let (row, changed) = whole(Box::pin(async move {
        keys.enable_project(&id, enabled, &actor).await
    }))
    .await?;
    let version = row.version;
    let shown = Switched {
        row,
        already: !changed,
    };
    Ok(tagged(answer(StatusCode::OK, &shown), version))
}

/// A new project.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "NewProject")]
pub(super) struct CreateBody {
    /// What keys name it by.
    name: String,
    /// What it narrows for all its keys.
    #[serde(default)]
    own: Own,
    /// What to remember of it.
    #[serde(default)]
    notes: String,
}

/// A project that was enabled or disabled.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ProjectSwitched")]
pub(super) struct Switched {
    #[serde(flatten)]
    row: ProjectRow,
    /// It was so already: this request changed nothing.
    already: bool,
}
