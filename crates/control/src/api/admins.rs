//! Routes below `/admin/v1/admins`, and `/admin/v1/me`.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::Response;
use http::StatusCode;
use rules::key::KeyId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::guard::Who;
use super::pages::{ListQuery, Page};
use super::{ApiFault, ApiState, answer, ends, query_fault, read, whole};
use crate::clock;
use crate::keys::{AdminRow, NewAdmin, Right};

/// Who asks.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Me {
    /// `admin:ID`, or `local:UID` on the Unix socket.
    id: String,
    /// What he may do.
    right: Right,
    /// The roles whose keys he may look after; null: all.
    roles: Option<Vec<String>>,
    /// When his token ends.
    expires_at: Option<String>,
}

pub(super) async fn me(Extension(who): Extension<Who>) -> Response {
    let me = Me {
        id: who.actor.id().to_owned(),
        right: who.right,
        roles: who.actor.roles().map(<[String]>::to_vec),
        expires_at: who.actor.until().map(clock::rfc3339_seconds),
    };
    answer(StatusCode::OK, &me)
}

pub(super) async fn list(
    State(state): State<ApiState>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, ApiFault> {
    let Query(query) = query.map_err(|cause| query_fault(&cause))?;
    let limit = query.limit()?;
    let after = query.after.as_deref().map(KeyId::parse).transpose();
    let after = after.map_err(|_shape| {
        ApiFault::bad(
            "after must be the id of an admin token".to_owned(),
            Some("after"),
        )
    })?;
    let (rows, has_more) = state.keys.admins(after, limit).await?;
    let path = format!("/admin/v1/admins?limit={limit}");
    Ok(Page::of(rows, has_more).answered(StatusCode::OK, &path, |row| row.id.to_string()))
}

pub(super) async fn create(
    State(state): State<ApiState>,
    Extension(who): Extension<Who>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiFault> {
    let asked: CreateBody = read(body)?;
    let now = clock::seconds((state.clock)());
    let new = NewAdmin {
        name: asked.name,
        right: asked.right,
        roles: asked.roles,
        expires_at: ends(asked.expires_at, asked.expires_in_seconds, now)?,
    };
    let (keys, roles) = (state.keys, (state.roles)());
    let made = whole(Box::pin(async move {
        keys.create_admin(new, &roles, &who.actor).await
    }))
    .await?;
    let shown = Once {
        row: made.row,
        token: Some(made.text.to_string()),
    };
    Ok(answer(StatusCode::CREATED, &shown))
}

pub(super) async fn revoke(
    State(state): State<ApiState>,
    Extension(who): Extension<Who>,
    Path(id): Path<String>,
    query: Result<Query<RevokeQuery>, QueryRejection>,
) -> Result<Response, ApiFault> {
    let Query(query) = query.map_err(|cause| query_fault(&cause))?;
    let keys = state.keys;
    let (row, already_revoked, made) = whole(Box::pin(async move {
        keys.revoke_admin(&id, query.with_made, &who.actor).await
    }))
    .await?;
    let shown = Revoked {
        row,
        already_revoked,
        made,
    };
    Ok(answer(StatusCode::OK, &shown))
}

/// A new admin token.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "NewAdmin")]
pub(super) struct CreateBody {
    /// Whose it is.
    name: String,
    /// What it may do.
    right: Right,
    /// For an operator: the roles whose keys it may look after; all if it isn't given.
    #[serde(default)]
    roles: Option<Vec<String>>,
    /// When it ends, RFC 3339.
    #[serde(default)]
    #[schemars(with = "Option<crate::clock::Stamp>")]
    expires_at: Option<String>,
    /// Or after how long it ends.
    #[serde(default)]
    expires_in_seconds: Option<u32>,
}

/// An admin token with its text: the only answer that carries one.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AdminOnce")]
pub(super) struct Once {
    #[serde(flatten)]
    row: AdminRow,
    /// The token; null when the request was sent again under its idempotency key.
    token: Option<String>,
}

/// A token that was taken back.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AdminRevoked")]
pub(super) struct Revoked {
    #[serde(flatten)]
    row: AdminRow,
    /// It was already: this request changed nothing of it.
    already_revoked: bool,
    /// Tokens that were made with it, or with one of those, and were good until now: still good unless `with_made` was
    /// asked for.
    made: Vec<AdminRow>,
}

/// How far a token is taken back.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RevokeQuery {
    /// The tokens that were made with it too, and with those.
    #[serde(default)]
    with_made: bool,
}
