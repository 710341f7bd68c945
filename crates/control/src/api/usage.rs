//! Routes `/admin/v1/usage` and `/admin/v1/nodes`.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use super::{ApiFault, ApiState, answer, query_fault};
use crate::keys::KeysFault;
use crate::store::UsageBy;

pub(super) async fn usage(
    State(state): State<ApiState>,
    query: Result<Query<UsageQuery>, QueryRejection>,
) -> Result<Response, ApiFault> {
    let Query(query) = query.map_err(|cause| query_fault(&cause))?;
    let by = match query.by {
        By::Key => UsageBy::Key,
        By::Project => UsageBy::Project,
        By::Model => UsageBy::Model,
    };
    let rows = state.store.usage(by, query.since_day).await;
    let body = json!({ "object": "list", "data": rows.map_err(KeysFault::from)? });
    Ok(answer(StatusCode::OK, &body))
}

pub(super) async fn nodes(State(state): State<ApiState>) -> Result<Response, ApiFault> {
    let rows = state.store.nodes().await.map_err(KeysFault::from)?;
    Ok(answer(
        StatusCode::OK,
        &json!({ "object": "list", "data": rows }),
    ))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UsageQuery {
    by: By,
    /// Days since 1970, UTC.
    since_day: i64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum By {
    Key,
    Project,
    Model,
}
