//! Routes below `/admin/v1/audit`: what the audit log is judged by.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;

use super::pages::{ListQuery, Page};
use super::{ApiFault, ApiState, answer, query_fault};
use crate::keys::KeysFault;

/// The public key that checkpoints are judged by.
pub(super) async fn key(State(state): State<ApiState>) -> Result<Response, ApiFault> {
    let key = state.secrets.audit_key().await?;
    let shown = Shown {
        id: key.id(),
        key: key.to_string(),
    };
    Ok(answer(StatusCode::OK, &shown))
}

/// The last signed head of each chain.
pub(super) async fn heads(
    State(state): State<ApiState>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, ApiFault> {
    let Query(query) = query.map_err(|cause| query_fault(&cause))?;
    let limit = query.limit()?;
    let after = query.after.as_deref().unwrap_or_default();
    let rows = state
        .store
        .heads_after(after, limit.saturating_add(1))
        .await;
    let path = format!("/admin/v1/audit/heads?limit={limit}");
    Ok(Page::cut(rows.map_err(KeysFault::from)?, limit)
        .answered(StatusCode::OK, &path, |row| row.chain.clone()))
}

/// What signs the audit log, its public half.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AuditKey")]
pub(super) struct Shown {
    /// Its short name, in each checkpoint.
    id: String,
    /// Ed25519, base64.
    key: String,
}
