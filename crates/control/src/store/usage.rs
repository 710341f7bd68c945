//! Rows of usage: what each key, project and model took on each day (UTC), and how far each chain was counted.

use std::collections::BTreeMap;

use rules::key::KeyId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Store, StoreFault, read, within};

/// PostgreSQL sums BIGINTs as NUMERIC, so each is cast back.
macro_rules! sums_by {
    ($column:literal) => {
        concat!(
            "SELECT ",
            $column,
            ", CAST(sum(calls) AS BIGINT), CAST(sum(failed) AS BIGINT), CAST(sum(input) AS BIGINT), \
             CAST(sum(output) AS BIGINT) FROM usage WHERE day >= $1 GROUP BY 1 \
             ORDER BY sum(input) + sum(output) DESC, sum(calls) DESC, 1"
        )
    };
}

/// The same by name, those after a name.
macro_rules! sums_after {
    ($column:literal) => {
        concat!(
            "SELECT ",
            $column,
            ", CAST(sum(calls) AS BIGINT), CAST(sum(failed) AS BIGINT), CAST(sum(input) AS BIGINT), \
             CAST(sum(output) AS BIGINT) FROM usage WHERE day >= $1 AND ($2 IS NULL OR ",
            $column,
            " > $2) GROUP BY 1 ORDER BY 1 LIMIT $3"
        )
    };
}

/// What a sum is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UsageKey {
    /// Days since 1970, UTC.
    pub(crate) day: i64,
    /// The key's id.
    pub(crate) key: String,
    /// Who paid; empty: nobody named.
    pub(crate) project: String,
    /// The model; empty: refused before it was known.
    pub(crate) model: String,
}

/// What was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sums {
    /// Calls.
    pub calls: i64,
    /// Calls that failed or were refused.
    pub failed: i64,
    /// Prompt tokens that were charged.
    pub input_tokens: i64,
    /// Output tokens that were charged.
    pub output_tokens: i64,
}

/// How far a chain was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// The number of the next line.
    pub(crate) seq: i64,
    /// Where it begins, bytes.
    pub(crate) offset: i64,
}

/// What usage is summed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageBy {
    /// Each key.
    Key,
    /// Each project.
    Project,
    /// Each model.
    Model,
}

/// One sum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UsageRow {
    /// A key's id, a project's or a model's name; empty where a call had none.
    pub of: String,
    /// What it took.
    #[serde(flatten)]
    pub sums: Sums,
}

/// What a key took of a model since a day, and who paid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spent {
    /// The caller's id.
    pub key: String,
    /// Who paid; empty: nobody named.
    pub project: String,
    /// The model; empty: refused before it was known.
    pub model: String,
    /// Prompt tokens that were charged.
    pub input: u64,
    /// Output tokens that were charged.
    pub output: u64,
}

impl Store {
    /// What was charged since a day (days since 1970, UTC): budgets start from it.
    ///
    /// # Errors
    /// When the store doesn't answer.
    pub async fn spent_since(&self, day: i64) -> Result<Vec<Spent>, StoreFault> {
        let found: Vec<(String, String, String, i64, i64)> = read!(self, pool => sqlx::query_as(
            "SELECT key_id, project, model, CAST(sum(input) AS BIGINT), CAST(sum(output) AS BIGINT) FROM usage \
             WHERE day >= $1 GROUP BY key_id, project, model HAVING sum(input) + sum(output) > 0")
            .bind(day).fetch_all(pool).await)?;
        let count = |n: i64| u64::try_from(n).unwrap_or(0);
        let row = |(key, project, model, input, output)| Spent {
            key,
            project,
            model,
            input: count(input),
            output: count(output),
        };
        Ok(found.into_iter().map(row).collect())
    }

    /// Adds sums and moves the chain's cursor, both or neither.
    pub(crate) async fn add_usage(
        &self,
        chain: &str,
        to: Cursor,
        sums: &BTreeMap<UsageKey, Sums>,
        uses: &[(KeyId, i64)],
    ) -> Result<(), StoreFault> {
        let mut tx = self.begin().await?;
        for (key, sum) in sums {
            within!(&mut tx, c => sqlx::query(
                "INSERT INTO usage (day, key_id, project, model, calls, failed, input, output) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
                 ON CONFLICT (day, key_id, project, model) DO UPDATE SET calls = usage.calls + excluded.calls, \
                 failed = usage.failed + excluded.failed, input = usage.input + excluded.input, \
                 output = usage.output + excluded.output")
                .bind(key.day)
                .bind(key.key.clone())
                .bind(key.project.clone())
                .bind(key.model.clone())
                .bind(sum.calls)
                .bind(sum.failed)
                .bind(sum.input_tokens)
                .bind(sum.output_tokens)
                .execute(c)
                .await
                .map(drop))?;
        }
        tx.note_uses(uses).await?;
        within!(&mut tx, c => sqlx::query(
            "INSERT INTO cursors (chain, seq, offset_bytes) VALUES ($1, $2, $3) \
             ON CONFLICT (chain) DO UPDATE SET seq = excluded.seq, offset_bytes = excluded.offset_bytes")
            .bind(chain.to_owned()).bind(to.seq).bind(to.offset).execute(c).await.map(drop))?;
        tx.commit().await
    }

    /// How far a chain was counted.
    pub(crate) async fn cursor(&self, chain: &str) -> Result<Cursor, StoreFault> {
        let found: Option<(i64, i64)> = read!(self, pool => sqlx::query_as(
            "SELECT seq, offset_bytes FROM cursors WHERE chain = $1")
            .bind(chain.to_owned()).fetch_optional(pool).await)?;
        Ok(found.map_or_else(Cursor::default, |(seq, offset)| Cursor { seq, offset }))
    }

    /// The same for programs: by name, those after `after`, at most `limit`.
    pub(crate) async fn usage_after(
        &self,
        by: UsageBy,
        since_day: i64,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<UsageRow>, StoreFault> {
        let text = match by {
            UsageBy::Key => sums_after!("key_id"),
            UsageBy::Project => sums_after!("project"),
            UsageBy::Model => sums_after!("model"),
        };
        let rows: Vec<SumColumns> = read!(self, pool => sqlx::query_as(text)
            .bind(since_day)
            .bind(after.map(str::to_owned))
            .bind(i64::from(limit))
            .fetch_all(pool).await)?;
        Ok(rows.into_iter().map(sum).collect())
    }

    /// Usage from a day (days since 1970, UTC) on, the largest first.
    ///
    /// # Errors
    /// [`StoreFault`].
    pub async fn usage(&self, by: UsageBy, since_day: i64) -> Result<Vec<UsageRow>, StoreFault> {
        let text = match by {
            UsageBy::Key => sums_by!("key_id"),
            UsageBy::Project => sums_by!("project"),
            UsageBy::Model => sums_by!("model"),
        };
        let rows: Vec<SumColumns> = read!(self, pool => sqlx::query_as(text)
            .bind(since_day).fetch_all(pool).await)?;
        Ok(rows.into_iter().map(sum).collect())
    }
}

type SumColumns = (String, i64, i64, i64, i64);

fn sum((of, calls, failed, input, output): SumColumns) -> UsageRow {
    UsageRow {
        of,
        sums: Sums {
            calls,
            failed,
            input_tokens: input,
            output_tokens: output,
        },
    }
}
