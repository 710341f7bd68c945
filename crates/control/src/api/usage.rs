//! Routes `/admin/v1/usage` and `/admin/v1/nodes`.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;

use super::pages::{ListQuery, Page, limit};
use super::{ApiFault, ApiState, query_fault};
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
    let limit = limit(query.limit)?;
    let rows = state
        .store
        .usage_after(
            by,
            query.since_day,
            query.after.as_deref(),
            limit.saturating_add(1),
        )
        .await
        .map_err(KeysFault::from)?;
    let path = format!(
        "/admin/v1/usage?by={}&since_day={}&limit={limit}",
        query.by.as_str(),
        query.since_day
    );
    Ok(Page::cut(rows, limit).answered(StatusCode::OK, &path, |row| row.of.clone()))
}

pub(super) async fn nodes(
    State(state): State<ApiState>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, ApiFault> {
    let Query(query) = query.map_err(|cause| query_fault(&cause))?;
    let limit = query.limit()?;
    // There are few: whoever shares a store is a machine.
    let mut rows = state.store.nodes().await.map_err(KeysFault::from)?;
    if let Some(after) = &query.after {
        rows.retain(|row| row.id > *after);
    }
    let path = format!("/admin/v1/nodes?limit={limit}");
    Ok(Page::cut(rows, limit).answered(StatusCode::OK, &path, |row| row.id.clone()))
}

/// Which sums.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UsageQuery {
    /// What is summed by.
    by: By,
    /// From this day on: days since 1970, UTC.
    since_day: i64,
    /// At most so many, 1 to 1000; 100 if it isn't given.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<u32>,
    /// Those after this one: the last `of` of the page before.
    after: Option<String>,
}

/// What usage is summed by.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum By {
    /// Each key.
    Key,
    /// Each project.
    Project,
    /// Each model.
    Model,
}

impl By {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Project => "project",
            Self::Model => "model",
        }
    }
}
