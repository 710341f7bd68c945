//! Rows of admin tokens: who may use the admin API, and what it may do there.

use rules::key::{Digest, KeyId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::keys::key_id;
use super::{Pending, Store, StoreFault, Tx, read, within};

/// What an admin token may do. Each may all that those before it may.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// Look.
    Viewer,
    /// Make, change and take back keys and projects.
    Operator,
    /// Make and take back admin tokens; seal secrets and rewrap the data key.
    Owner,
}

impl Right {
    /// All of them, the least first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Owner];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Owner => "owner",
        }
    }

    /// The right of this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|right| right.as_str() == text)
    }
}

/// An admin token as it is kept and shown: never its text, never its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AdminRow {
    /// Its public name.
    #[schemars(with = "String")]
    pub id: KeyId,
    /// Whose it is.
    pub name: String,
    /// What it may do.
    pub right: Right,
    /// The roles whose keys an operator may make, change, rotate and take back; null: all.
    pub roles: Option<Vec<String>>,
    /// When it was made.
    #[serde(with = "crate::clock::text")]
    #[schemars(with = "crate::clock::Stamp")]
    pub created_at: i64,
    /// Who made it: `local:UID` or `admin:ID`.
    pub created_by: String,
    /// From when it is no longer valid.
    #[serde(with = "crate::clock::text_or_null")]
    #[schemars(with = "Option<crate::clock::Stamp>")]
    pub expires_at: Option<i64>,
    /// When it was taken back.
    #[serde(with = "crate::clock::text_or_null")]
    #[schemars(with = "Option<crate::clock::Stamp>")]
    pub revoked_at: Option<i64>,
    /// When it was last used, to the minute.
    #[serde(with = "crate::clock::text_or_null")]
    #[schemars(with = "Option<crate::clock::Stamp>")]
    pub last_used: Option<i64>,
    /// The last four letters of its text, to tell tokens apart by eye.
    pub last4: String,
}

type Columns = (
    String,
    String,
    String,
    Option<String>,
    i64,
    String,
    Option<i64>,
    Option<i64>,
    Option<i64>,
    String,
);

macro_rules! columns {
    () => {
        "SELECT id, name, may, roles, created_at, created_by, expires_at, revoked_at, last_used, last4 FROM admins "
    };
}

fn row(columns: Columns) -> Result<AdminRow, StoreFault> {
    let (id, name, may, roles, created_at, created_by, expires_at, revoked_at, last_used, last4) =
        columns;
    let broken = |what: &str| StoreFault::Broken(format!("{what} of admin token {id}"));
    let roles = roles
        .map(|text| serde_json::from_str(&text).map_err(|_json| broken("roles")))
        .transpose()?;
    Ok(AdminRow {
        right: Right::parse(&may).ok_or_else(|| broken("right"))?,
        id: key_id(&id)?,
        name,
        roles,
        created_at,
        created_by,
        expires_at,
        revoked_at,
        last_used,
        last4,
    })
}

impl Store {
    /// Writes a new token that others see only after [`Pending::commit`].
    pub(crate) async fn add_admin(
        &self,
        row: &AdminRow,
        digest: &Digest,
    ) -> Result<Pending, StoreFault> {
        let mut tx = self.begin().await?;
        tx.insert_admin(row, digest.bytes()).await?;
        Ok(Pending::new(tx))
    }

    /// At most `limit` tokens, oldest first, those after the token `after`; none if there is no such token.
    pub(crate) async fn admins_after(
        &self,
        after: Option<KeyId>,
        limit: u32,
    ) -> Result<Vec<AdminRow>, StoreFault> {
        let rows: Vec<Columns> = match after {
            None => read!(self, pool => sqlx::query_as(concat!(columns!(),
                "ORDER BY created_at, id LIMIT $1"))
                .bind(i64::from(limit)).fetch_all(pool).await)?,
            Some(id) => read!(self, pool => sqlx::query_as(concat!(columns!(),
                "WHERE (created_at, id) > (SELECT created_at, id FROM admins WHERE id = $1) ",
                "ORDER BY created_at, id LIMIT $2"))
                .bind(id.as_str().to_owned()).bind(i64::from(limit)).fetch_all(pool).await)?,
        };
        rows.into_iter().map(row).collect()
    }

    /// The token of this id.
    pub(crate) async fn admin(&self, id: KeyId) -> Result<Option<AdminRow>, StoreFault> {
        let found: Option<Columns> = read!(self, pool => sqlx::query_as(concat!(columns!(), "WHERE id = $1"))
            .bind(id.as_str().to_owned()).fetch_optional(pool).await)?;
        found.map(row).transpose()
    }

    /// The token of this digest.
    pub(crate) async fn admin_of(&self, digest: &Digest) -> Result<Option<AdminRow>, StoreFault> {
        let found: Option<Columns> = read!(self, pool => sqlx::query_as(concat!(columns!(), "WHERE digest = $1"))
            .bind(digest.bytes().to_vec()).fetch_optional(pool).await)?;
        found.map(row).transpose()
    }

    /// Takes a token back at `now` unless it was. `true`: by this call. `None`: no such token.
    pub(crate) async fn revoke_admin(
        &self,
        id: KeyId,
        now: i64,
    ) -> Result<Option<(AdminRow, bool)>, StoreFault> {
        let mut tx = self.begin().await?;
        let changed = within!(&mut tx, c => sqlx::query(
            "UPDATE admins SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL")
            .bind(id.as_str().to_owned()).bind(now)
            .execute(c).await.map(|done| done.rows_affected()))?;
        tx.commit().await?;
        Ok(self.admin(id).await?.map(|row| (row, changed > 0)))
    }

    /// Says that a token was used, unless that was said less than a minute ago.
    pub(crate) async fn admin_used(&self, id: KeyId, now: i64) -> Result<(), StoreFault> {
        let mut tx = self.begin().await?;
        within!(&mut tx, c => sqlx::query(
            "UPDATE admins SET last_used = $2 WHERE id = $1 AND (last_used IS NULL OR last_used <= $3)")
            .bind(id.as_str().to_owned()).bind(now).bind(now.saturating_sub(USED_EVERY))
            .execute(c).await.map(drop))?;
        tx.commit().await
    }

    /// All tokens with their digests, for a copy.
    pub(super) async fn admins_whole(&self) -> Result<Vec<(AdminRow, Vec<u8>)>, StoreFault> {
        let digests: Vec<(String, Vec<u8>)> = read!(self, pool => sqlx::query_as(
            "SELECT id, digest FROM admins").fetch_all(pool).await)?;
        let mut digests: std::collections::HashMap<String, Vec<u8>> = digests.into_iter().collect();
        let rows = self.admins_after(None, u32::MAX).await?;
        let whole = rows.into_iter().filter_map(|row| {
            let digest = digests.remove(row.id.as_str())?;
            Some((row, digest))
        });
        Ok(whole.collect())
    }
}

impl Tx {
    pub(super) async fn insert_admin(
        &mut self,
        row: &AdminRow,
        digest: &[u8],
    ) -> Result<(), StoreFault> {
        let roles = row.roles.as_ref().map(serde_json::to_string).transpose();
        let roles = roles.map_err(|fault| StoreFault::Failed(fault.to_string()))?;
        within!(self, c => sqlx::query(
            "INSERT INTO admins (id, name, may, roles, created_at, created_by, expires_at, revoked_at, last_used, \
             last4, digest) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)")
            .bind(row.id.as_str().to_owned())
            .bind(row.name.clone())
            .bind(row.right.as_str())
            .bind(roles)
            .bind(row.created_at)
            .bind(row.created_by.clone())
            .bind(row.expires_at)
            .bind(row.revoked_at)
            .bind(row.last_used)
            .bind(row.last4.clone())
            .bind(digest.to_vec())
            .execute(c)
            .await
            .map(drop))
    }
}

/// Seconds between two notes of a token's use.
pub(crate) const USED_EVERY: i64 = 60;
