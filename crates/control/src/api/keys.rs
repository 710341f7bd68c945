//! Routes below `/admin/v1/keys`.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use rules::key::KeyId;
use rules::policy::Own;
use serde::Deserialize;
use serde_json::{Value, json};

use super::precondition::{expected, tagged};
use super::{
    ApiFault, ApiState, DEFAULT_PAGE, LARGEST_PAGE, Peer, actor, answer, query_fault, read, shown,
    shown_with, whole,
};
use crate::clock;
use crate::keys::{Created, Foreign, KeyChange, NewKey, is_due, read_list, time};

pub(super) async fn list(
    State(state): State<ApiState>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, ApiFault> {
    let Query(query) = query.map_err(|cause| query_fault(&cause))?;
    let limit = query.limit.unwrap_or(DEFAULT_PAGE);
    if !(1..=LARGEST_PAGE).contains(&limit) {
        let text = format!("limit must be 1 to {LARGEST_PAGE}");
        return Err(ApiFault::bad(text, Some("limit")));
    }
    let after = query
        .after
        .map(|text| KeyId::parse(&text))
        .transpose()
        .map_err(|_shape| {
            ApiFault::bad("after must be the id of a key".to_owned(), Some("after"))
        })?;
    let page = state.keys.page(after, limit).await?;
    let (roles, now) = ((state.roles)(), clock::seconds((state.clock)()));
    let rows: Vec<Value> = page
        .rows
        .iter()
        .map(|row| shown_with(row, &[("rotation_due", is_due(row, &roles, now).into())]))
        .collect();
    let body = json!({ "object": "list", "data": rows, "has_more": page.has_more });
    Ok(answer(StatusCode::OK, &body))
}

pub(super) async fn create(
    State(state): State<ApiState>,
    Extension(peer): Extension<Peer>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiFault> {
    let asked: CreateBody = read(body)?;
    let new = asked.meant(clock::seconds((state.clock)()))?;
    let (keys, roles, actor) = (state.keys, (state.roles)(), actor(peer));
    let created = whole(Box::pin(
        async move { keys.create(new, &roles, &actor).await },
    ))
    .await?;
    Ok(once(StatusCode::CREATED, &created))
}

pub(super) async fn show(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<Response, ApiFault> {
    let roles = (state.roles)();
    let key = state.keys.show(&id, &roles).await?;
    let now = clock::seconds((state.clock)());
    let body = shown_with(
        &key.row,
        &[
            ("secrets", shown(&key.secrets)),
            ("policy", shown(&key.policy)),
            ("project_disabled", key.project_disabled.into()),
            ("rotation_due", is_due(&key.row, &roles, now).into()),
        ],
    );
    Ok(tagged(answer(StatusCode::OK, &body), key.row.version))
}

pub(super) async fn change(
    State(state): State<ApiState>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiFault> {
    let expected = expected(&headers)?;
    let change: KeyChange = read(body)?;
    let (keys, roles, actor) = (state.keys, (state.roles)(), actor(peer));
    let row = whole(Box::pin(async move {
        keys.change(&id, &expected, change, &roles, &actor).await
    }))
    .await?;
    Ok(tagged(answer(StatusCode::OK, &shown(&row)), row.version))
}

pub(super) async fn rotate(
    State(state): State<ApiState>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiFault> {
    let asked: RotateBody = read(body)?;
    let (keys, actor) = (state.keys, actor(peer));
    let rotated = whole(Box::pin(async move {
        keys.rotate(&id, asked.overlap_seconds, &actor).await
    }))
    .await?;
    Ok(once(StatusCode::OK, &rotated))
}

pub(super) async fn import(
    State(state): State<ApiState>,
    Extension(peer): Extension<Peer>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiFault> {
    let asked: ImportBody = read(body)?;
    let like = asked.like.meant(clock::seconds((state.clock)()))?;
    let form = match asked.form {
        Form::Plain => Foreign::Plain,
        Form::Sha256 => Foreign::Sha256,
    };
    let list = read_list(&zeroize::Zeroizing::new(asked.list), form)?;
    let (keys, roles, actor) = (state.keys, (state.roles)(), actor(peer));
    let imported = whole(Box::pin(async move {
        keys.import(list, like, &roles, &actor).await
    }))
    .await?;
    let body = json!({ "object": "list", "data": imported.rows, "has_more": false });
    Ok(answer(StatusCode::CREATED, &body))
}

pub(super) async fn revoke(
    State(state): State<ApiState>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
) -> Result<Response, ApiFault> {
    let (keys, actor) = (state.keys, actor(peer));
    let revoked = whole(Box::pin(async move { keys.revoke(&id, &actor).await })).await?;
    let body = shown_with(&revoked.row, &[("already_revoked", revoked.already.into())]);
    Ok(answer(StatusCode::OK, &body))
}

/// A key with its text: the only answers that carry one.
fn once(status: StatusCode, created: &Created) -> Response {
    let text: &str = &created.text;
    let shown = shown_with(&created.row, &[("key", text.into())]);
    tagged(answer(status, &shown), created.row.version)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    limit: Option<u32>,
    after: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    name: String,
    role: String,
    #[serde(default)]
    project: Option<String>,
    #[serde(default)]
    not_before: Option<String>,
    #[serde(default)]
    expires_at: Option<String>,
    #[serde(default)]
    expires_in_seconds: Option<u32>,
    #[serde(default)]
    own: Own,
    #[serde(default)]
    notes: String,
}

impl CreateBody {
    fn meant(self, now: i64) -> Result<NewKey, ApiFault> {
        let expires_at = match (self.expires_at, self.expires_in_seconds) {
            (None, None) => None,
            (Some(text), None) => Some(time(&text, "expires_at")?),
            (None, Some(seconds)) => Some(now.saturating_add(i64::from(seconds))),
            (Some(_), Some(_)) => {
                let text = "give expires_at or expires_in_seconds, not both";
                return Err(ApiFault::bad(text.to_owned(), Some("expires_at")));
            }
        };
        let not_before = self.not_before.map(|text| time(&text, "not_before"));
        Ok(NewKey {
            name: self.name,
            role: self.role,
            project: self.project,
            not_before: not_before.transpose()?,
            expires_at,
            own: self.own,
            notes: self.notes,
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RotateBody {
    overlap_seconds: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ImportBody {
    form: Form,
    list: String,
    like: CreateBody,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Form {
    Plain,
    Sha256,
}
