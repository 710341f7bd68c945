//! Routes below `/admin/v1/keys`.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use rules::key::KeyId;
use rules::policy::{Own, Said};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::guard::Who;
use super::pages::{ListQuery, Page};
use super::precondition::{expected, tagged};
use super::{ApiFault, ApiState, answer, ends, query_fault, read, whole};
use crate::clock;
use crate::keys::{
    Created, Foreign, KeyChange, KeyRow, NewKey, SecretRow, is_due, read_list, time,
};

pub(super) async fn list(
    State(state): State<ApiState>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, ApiFault> {
    let Query(query) = query.map_err(|cause| query_fault(&cause))?;
    let limit = query.limit()?;
    let after = query
        .after
        .map(|text| KeyId::parse(&text))
        .transpose()
        .map_err(|_shape| {
            ApiFault::bad("after must be the id of a key".to_owned(), Some("after"))
        })?;
    let page = state.keys.page(after, limit).await?;
    let (roles, now) = ((state.roles)(), clock::seconds((state.clock)()));
    let (has_more, rows) = (page.has_more, page.rows.into_iter());
    let rows = rows.map(|row| Listed {
        rotation_due: is_due(&row, &roles, now),
        row,
    });
    let path = format!("/admin/v1/keys?limit={limit}");
    Ok(
        Page::of(rows.collect(), has_more).answered(StatusCode::OK, &path, |listed: &Listed| {
            listed.row.id.to_string()
        }),
    )
}

pub(super) async fn create(
    State(state): State<ApiState>,
    Extension(who): Extension<Who>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiFault> {
    let asked: CreateBody = read(body)?;
    let new = asked.meant(clock::seconds((state.clock)()))?;
    let (keys, roles, actor) = (state.keys, (state.roles)(), who.actor);
    let created = whole(Box::pin(
        async move { keys.create(new, &roles, &actor).await },
    ))
    .await?;
    Ok(once(StatusCode::CREATED, created))
}

pub(super) async fn show(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<Response, ApiFault> {
    let roles = (state.roles)();
    let key = state.keys.show(&id, &roles).await?;
    let now = clock::seconds((state.clock)());
    let version = key.row.version;
    let shown = Shown {
        rotation_due: is_due(&key.row, &roles, now),
        row: key.row,
        secrets: key.secrets,
        policy: key.policy,
        project_disabled: key.project_disabled,
    };
    Ok(tagged(answer(StatusCode::OK, &shown), version))
}

pub(super) async fn change(
    State(state): State<ApiState>,
    Extension(who): Extension<Who>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiFault> {
    let expected = expected(&headers)?;
    let change: KeyChange = read(body)?;
    let (keys, roles, actor) = (state.keys, (state.roles)(), who.actor);
    let row = whole(Box::pin(async move {
        keys.change(&id, &expected, change, &roles, &actor).await
    }))
    .await?;
    Ok(tagged(answer(StatusCode::OK, &row), row.version))
}

pub(super) async fn rotate(
    State(state): State<ApiState>,
    Extension(who): Extension<Who>,
    Path(id): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiFault> {
    let asked: RotateBody = read(body)?;
    let (keys, actor) = (state.keys, who.actor);
    let rotated = whole(Box::pin(async move {
        keys.rotate(&id, asked.overlap_seconds, &actor).await
    }))
    .await?;
    Ok(once(StatusCode::OK, rotated))
}

pub(super) async fn import(
    State(state): State<ApiState>,
    Extension(who): Extension<Who>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiFault> {
    let asked: ImportBody = read(body)?;
    let like = asked.like.meant(clock::seconds((state.clock)()))?;
    let form = match asked.form {
        Form::Plain => Foreign::Plain,
        Form::Sha256 => Foreign::Sha256,
    };
    let list = read_list(&zeroize::Zeroizing::new(asked.list), form)?;
    let (keys, roles, actor) = (state.keys, (state.roles)(), who.actor);
    let imported = whole(Box::pin(async move {
        keys.import(list, like, &roles, &actor).await
    }))
    .await?;
    Ok(answer(StatusCode::CREATED, &Page::of(imported.rows, false)))
}

pub(super) async fn revoke(
    State(state): State<ApiState>,
    Extension(who): Extension<Who>,
    Path(id): Path<String>,
) -> Result<Response, ApiFault> {
    let (keys, actor) = (state.keys, who.actor);
    let revoked = whole(Box::pin(async move { keys.revoke(&id, &actor).await })).await?;
    let shown = Revoked {
        row: revoked.row,
        already_revoked: revoked.already,
    };
    Ok(answer(StatusCode::OK, &shown))
}

/// A key with its text: the only answers that carry one.
fn once(status: StatusCode, created: Created) -> Response {
    let version = created.row.version;
    let shown = Once {
        row: created.row,
        key: Some(created.text.to_string()),
    };
    tagged(answer(status, &shown), version)
}

/// A key in a list.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "KeyListed")]
pub(super) struct Listed {
    #[serde(flatten)]
    row: KeyRow,
    /// Its newest secret is older than its role allows.
    rotation_due: bool,
}

/// A key, whole.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "KeyShown")]
pub(super) struct Shown {
    #[serde(flatten)]
    row: KeyRow,
    /// Its secrets, newest first; never their text.
    secrets: Vec<SecretRow>,
    /// What it may do after all, and who says so; empty when its role isn't in the config file.
    policy: Vec<Said>,
    /// Its project is disabled, so it is refused.
    project_disabled: bool,
    /// Its newest secret is older than its role allows.
    rotation_due: bool,
}

/// A key with its text: the only answer that carries one.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "KeyOnce")]
pub(super) struct Once {
    #[serde(flatten)]
    row: KeyRow,
    /// The key; null when the request was sent again under its idempotency key.
    key: Option<String>,
}

/// A key that was taken back.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "KeyRevoked")]
pub(super) struct Revoked {
    #[serde(flatten)]
    row: KeyRow,
    /// It was already: this request changed nothing.
    already_revoked: bool,
}

/// A new key.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "NewKey")]
pub(super) struct CreateBody {
    /// What it is for.
    name: String,
    /// Its role: one of the config file's.
    role: String,
    /// Who pays.
    #[serde(default)]
    project: Option<String>,
    /// From when it is good, RFC 3339.
    #[serde(default)]
    #[schemars(with = "Option<clock::Stamp>")]
    not_before: Option<String>,
    /// When it ends, RFC 3339.
    #[serde(default)]
    #[schemars(with = "Option<clock::Stamp>")]
    expires_at: Option<String>,
    /// Or after how long it ends.
    #[serde(default)]
    expires_in_seconds: Option<u32>,
    /// What it narrows of its role.
    #[serde(default)]
    own: Own,
    /// What to remember of it.
    #[serde(default)]
    notes: String,
}

impl CreateBody {
    fn meant(self, now: i64) -> Result<NewKey, ApiFault> {
        let expires_at = ends(self.expires_at, self.expires_in_seconds, now)?;
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

/// How a key gets a new secret.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Rotation")]
pub(super) struct RotateBody {
    /// How long the old secrets work on, at most 90 days; 0: they end now.
    overlap_seconds: u32,
}

/// Keys of another gateway.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Import")]
pub(super) struct ImportBody {
    /// How the list is written.
    form: Form,
    /// One key a line, then perhaps a blank and a name.
    list: String,
    /// What they shall be; its name is for those without one.
    like: CreateBody,
}

/// How a list of foreign keys is written.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Form {
    /// The keys themselves.
    Plain,
    /// Their SHA-256, 64 hex digits each.
    Sha256,
}
