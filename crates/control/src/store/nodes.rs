//! Rows of nodes: who shares this store, and since when nobody heard of them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Store, StoreFault, read, within};

/// A node as it last said it was. Times are seconds since 1970, RFC 3339 in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeRow {
    /// Its id.
    pub id: String,
    /// When its gateway was started.
    #[serde(with = "crate::clock::text")]
    #[schemars(with = "crate::clock::Stamp")]
    pub started_at: i64,
    /// When it was last heard of.
    #[serde(with = "crate::clock::text")]
    #[schemars(with = "crate::clock::Stamp")]
    pub seen_at: i64,
    /// Its version.
    pub version: String,
    /// A digest of its config: nodes that differ in it judge differently.
    pub config: String,
}

impl Store {
    /// Says that a node lives.
    ///
    /// # Errors
    /// [`StoreFault`].
    pub async fn node_lives(&self, node: &NodeRow) -> Result<(), StoreFault> {
        let mut tx = self.begin().await?;
        within!(&mut tx, c => sqlx::query(
            "INSERT INTO nodes (id, started_at, seen_at, version, config) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (id) DO UPDATE SET started_at = excluded.started_at, seen_at = excluded.seen_at, \
             version = excluded.version, config = excluded.config")
            .bind(node.id.clone())
            .bind(node.started_at)
            .bind(node.seen_at)
            .bind(node.version.clone())
            .bind(node.config.clone())
            .execute(c)
            .await
            .map(drop))?;
        tx.commit().await
    }

    /// All nodes that ever were, by id.
    ///
    /// # Errors
    /// [`StoreFault`].
    pub async fn nodes(&self) -> Result<Vec<NodeRow>, StoreFault> {
        let rows: Vec<(String, i64, i64, String, String)> = read!(self, pool => sqlx::query_as(
            "SELECT id, started_at, seen_at, version, config FROM nodes ORDER BY id")
            .fetch_all(pool).await)?;
        let rows = rows
            .into_iter()
            .map(|(id, started_at, seen_at, version, config)| NodeRow {
                id,
                started_at,
                seen_at,
                version,
                config,
            });
        Ok(rows.collect())
    }
}
