//! Rows of projects: who pays, and what they narrow for all their keys.

use rules::policy::Own;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::keys::{json, read_own};
use super::{Pending, Store, StoreFault, Tx, read, within};

/// A project as it is kept and shown. Times are seconds since 1970, RFC 3339 in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectRow {
    /// Twelve letters.
    pub id: String,
    /// What keys name it by.
    pub name: String,
    /// Keys of a disabled project are refused.
    pub enabled: bool,
    /// What it narrows for all its keys.
    #[serde(default)]
    pub own: Own,
    /// What its owner wants to remember.
    #[serde(default)]
    pub notes: String,
    /// When it was made.
    #[serde(with = "crate::clock::text")]
    #[schemars(with = "crate::clock::Stamp")]
    pub created_at: i64,
    /// Who made it: `local:UID` or `admin:ID`.
    pub created_by: String,
    /// Raised by each change, so that two who change it at once find out.
    #[serde(default)]
    pub version: i64,
}

type Columns = (String, String, bool, String, String, i64, String, i64);

fn row(columns: Columns) -> Result<ProjectRow, StoreFault> {
    let (id, name, enabled, own, notes, created_at, created_by, version) = columns;
    Ok(ProjectRow {
        id,
        name,
        enabled,
        own: read_own(&own)?,
        notes,
        created_at,
        created_by,
        version,
    })
}

impl Store {
    /// Writes a new project that others see only after [`Pending::commit`].
    pub(crate) async fn add_project(&self, new: &ProjectRow) -> Result<Pending, StoreFault> {
        let mut tx = self.begin().await?;
        let _revision = tx.next_revision().await?;
        tx.insert_project(new).await?;
        Ok(Pending::new(tx))
    }

    /// All projects by name.
    pub(crate) async fn projects(&self) -> Result<Vec<ProjectRow>, StoreFault> {
        let rows: Vec<Columns> = read!(self, pool => sqlx::query_as(
            "SELECT id, name, enabled, own, notes, created_at, created_by, version FROM projects ORDER BY name")
            .fetch_all(pool).await)?;
        rows.into_iter().map(row).collect()
    }

    /// At most `limit` projects by name, those after the name `after`.
    pub(crate) async fn projects_after(
        &self,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<ProjectRow>, StoreFault> {
        let rows: Vec<Columns> = read!(self, pool => sqlx::query_as(
            "SELECT id, name, enabled, own, notes, created_at, created_by, version FROM projects \
             WHERE $1 IS NULL OR name > $1 ORDER BY name LIMIT $2")
            .bind(after.map(str::to_owned)).bind(i64::from(limit)).fetch_all(pool).await)?;
        rows.into_iter().map(row).collect()
    }

    /// The project of this name or id.
    pub(crate) async fn project(&self, named: &str) -> Result<Option<ProjectRow>, StoreFault> {
        let found: Option<Columns> = read!(self, pool => sqlx::query_as(
            "SELECT id, name, enabled, own, notes, created_at, created_by, version FROM projects \
             WHERE name = $1 OR id = $1 ORDER BY name = $1 DESC LIMIT 1")
            .bind(named.to_owned()).fetch_optional(pool).await)?;
        found.map(row).transpose()
    }

    /// Writes what may be different in a project, if it is still of `row`'s version: others see it, and the version
    /// after it, only after [`Pending::commit`]. `None`: it was changed meanwhile.
    pub(crate) async fn change_project(
        &self,
        row: &ProjectRow,
    ) -> Result<Option<Pending>, StoreFault> {
        let mut tx = self.begin().await?;
        let _revision = tx.next_revision().await?;
        let own = json(&row.own)?;
        let changed = within!(&mut tx, c => sqlx::query(
            "UPDATE projects SET own = $3, notes = $4, version = version + 1 WHERE id = $1 AND version = $2")
            .bind(row.id.clone())
            .bind(row.version)
            .bind(own)
            .bind(row.notes.clone())
            .execute(c).await.map(|done| done.rows_affected()))?;
        Ok((changed > 0).then_some(Pending::new(tx)))
    }

    /// Enables or disables a project. `None`: no such one; `false`: it was so already.
    pub(crate) async fn enable_project(
        &self,
        name: &str,
        enabled: bool,
    ) -> Result<Option<(ProjectRow, bool)>, StoreFault> {
        let mut tx = self.begin().await?;
        let _revision = tx.next_revision().await?;
        let changed = within!(&mut tx, c => sqlx::query(
            "UPDATE projects SET enabled = $2, version = version + 1 WHERE name = $1 AND enabled <> $2")
            .bind(name.to_owned()).bind(enabled)
            .execute(c).await.map(|done| done.rows_affected()))?;
        tx.commit().await?;
        Ok(self.project(name).await?.map(|row| (row, changed > 0)))
    }
}

impl Tx {
    pub(super) async fn insert_project(&mut self, new: &ProjectRow) -> Result<(), StoreFault> {
        let own = json(&new.own)?;
        within!(self, c => sqlx::query(
            "INSERT INTO projects (id, name, enabled, own, notes, created_at, created_by, version) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)")
            .bind(new.id.clone())
            .bind(new.name.clone())
            .bind(new.enabled)
            .bind(own)
            .bind(new.notes.clone())
            .bind(new.created_at)
            .bind(new.created_by.clone())
            .bind(new.version)
            .execute(c)
            .await
            .map(drop))
    }
}
