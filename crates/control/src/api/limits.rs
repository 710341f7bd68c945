//! Routes below `/admin/v1/keys/{id}/limits`: what is left of each limit that holds for a key, and a fresh start.
//!
//! Who counts is outside: the gateway, through a question that the wiring fills in. Without a running server nobody
//! does.

use std::pin::Pin;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, State};
use axum::response::Response;
use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::guard::Who;
use super::{ApiFault, ApiState, answer, whole};
use crate::keys::KeyRow;

/// How one limit stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LimitRow {
    /// Whose it is: `key`, `project`, `role`, `model` or `node`. All but the first are shared with others.
    pub holder: String,
    /// The limit as it is written in the config file.
    pub limit: String,
    /// How much it lets through at once; of budgets in money, millionths.
    pub size: u64,
    /// What is used, running calls' reservations included.
    pub used: u64,
    /// What would be let through now.
    pub remaining: u64,
    /// Until all of it is free again, milliseconds.
    pub resets_in_ms: u64,
}

/// What is being counted now; `None`: it can't be asked.
pub type Counting = Pin<Box<dyn Future<Output = Option<Vec<LimitRow>>> + Send>>;

/// Asks whoever counts for the limits of a key; `true`: forget first what it used itself.
pub type LimitsNow = Arc<dyn Fn(&KeyRow, bool) -> Counting + Send + Sync>;

/// A key and its limits.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "LimitsShown")]
pub(super) struct Shown {
    /// The key's id.
    key: String,
    /// Its own first, then those that it shares.
    limits: Vec<LimitRow>,
}

pub(super) async fn show(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<Response, ApiFault> {
    let row = state.keys.row(&id).await?;
    let limits = counter(&state)?(&row, false).await.ok_or_else(away)?;
    let key = row.id.to_string();
    Ok(answer(StatusCode::OK, &Shown { key, limits }))
}

pub(super) async fn reset(
    State(state): State<ApiState>,
    Extension(who): Extension<Who>,
    Path(id): Path<String>,
) -> Result<Response, ApiFault> {
    let (count, actor) = (counter(&state)?, who.actor);
    let shown = whole(Box::pin(async move {
        let row = state.keys.row(&id).await?;
        let before = count(&row, false).await.ok_or_else(away)?;
        // Recorded before it is done: nobody's limits are freed without a trace.
        let used: Vec<_> = before.iter().filter(|l| l.holder == "key").collect();
        state.keys.note_reset(&row, &used, &actor).await?;
        let limits = count(&row, true).await.ok_or_else(away)?;
        let key = row.id.to_string();
        Ok::<_, ApiFault>(Shown { key, limits })
    }))
    .await?;
    Ok(answer(StatusCode::OK, &shown))
}

fn counter(state: &ApiState) -> Result<LimitsNow, ApiFault> {
    state.limits.clone().ok_or_else(|| {
        let text = "limits are counted by a running server, and none runs; start `guan serve`";
        ApiFault::new(StatusCode::SERVICE_UNAVAILABLE, text.to_owned())
    })
}

fn away() -> ApiFault {
    let text = "the store of limits doesn't answer, or the key's role isn't in the config file; try again, or look at the server's log";
    ApiFault::new(StatusCode::SERVICE_UNAVAILABLE, text.to_owned())
}
