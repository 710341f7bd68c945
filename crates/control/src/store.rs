//! What is kept: keys and their secrets' digests, projects, usage, nodes, sealed secrets, and a few facts.
//!
//! One [`Store`] over two databases: SQLite in the data folder (`sqlite`) or PostgreSQL (`postgres`); the acts
//! below are one SQL text for both. It decides how rows are written and what a failing database means to people. It
//! knows no key text, no role's meaning and no time but what it is given. Every act that requests must see raises
//! one number in its transaction, so that whoever follows reads only what changed. Called by `keys`, `publish`,
//! `usage` and `bootstrap`.

mod admins;
mod copy;
mod counted;
mod fault;
mod heads;
mod keys;
mod nodes;
mod once;
mod postgres;
mod projects;
mod sealed;
mod sqlite;
mod usage;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::{Postgres, Sqlite, Transaction};

pub(crate) use admins::USED_EVERY;
pub use admins::{AdminRow, Right};
pub use copy::Copied;
pub use fault::StoreFault;
pub use keys::{KeyRow, SecretRow};
pub(crate) use keys::{Pending, Seen, read_own};
pub use nodes::NodeRow;
pub(crate) use once::Earlier;
pub use postgres::Listener;
pub use projects::ProjectRow;
pub(crate) use usage::{Cursor, UsageKey};
pub use usage::{Spent, Sums, UsageBy, UsageRow};

use fault::classify;

/// Which database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A file.
    Sqlite(PathBuf),
    /// A server.
    Postgres(Server),
}

/// Where a PostgreSQL server is, and how to be let in.
#[derive(Clone, PartialEq, Eq)]
pub struct Server {
    /// `postgres://USER@HOST:PORT/DATABASE?sslmode=…`, without a password.
    pub url: String,
    /// The password; wiped when dropped.
    pub password: Option<zeroize::Zeroizing<String>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// An open database. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Store {
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Sqlite(sqlite::Base),
    Postgres(postgres::Base),
}

/// A transaction of either.
#[derive(Debug)]
pub(crate) enum Tx {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

/// One text for both databases, outside a transaction: `$pool` is where it runs.
macro_rules! read {
    ($store:expr, $pool:ident => $act:expr) => {
        match &$store.kind {
            crate::store::Kind::Sqlite(base) => {
                let $pool = base.reader();
                $act
            }
            crate::store::Kind::Postgres(base) => {
                let $pool = base.pool();
                $act
            }
        }
        .map_err(|fault| crate::store::fault::classify(&fault))
    };
}

/// The same inside a transaction: `$connection` is where it runs.
macro_rules! within {
    ($tx:expr, $connection:ident => $act:expr) => {
        match $tx {
            crate::store::Tx::Sqlite(tx) => {
                let $connection = &mut **tx;
                $act
            }
            crate::store::Tx::Postgres(tx) => {
                let $connection = &mut **tx;
                $act
            }
        }
        .map_err(|fault| crate::store::fault::classify(&fault))
    };
}

pub(in crate::store) use {read, within};

impl Store {
    /// Opens the database and brings its schema up to date; a file is made if there is none (mode 0600). Waits at
    /// most five seconds for whoever holds it.
    ///
    /// # Errors
    /// [`StoreFault`].
    pub async fn open(target: &Target) -> Result<Self, StoreFault> {
        Self::open_within(target, PATIENCE).await
    }

    /// The same, with the time that each act waits for whoever holds the database.
    ///
    /// # Errors
    /// [`StoreFault`].
    pub async fn open_within(target: &Target, patience: Duration) -> Result<Self, StoreFault> {
        let kind = match target {
            Target::Sqlite(path) => Kind::Sqlite(sqlite::Base::open(path, patience).await?),
            Target::Postgres(server) => {
                Kind::Postgres(postgres::Base::open(server, patience).await?)
            }
        };
        Ok(Self { kind })
    }

    /// Ends all connections; SQLite folds its write-ahead log into the file.
    pub async fn close(&self) {
        match &self.kind {
            Kind::Sqlite(base) => base.close().await,
            Kind::Postgres(base) => base.pool().close().await,
        }
    }

    /// Whether other nodes may write to it at the same time.
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        matches!(self.kind, Kind::Postgres(_))
    }

    /// What tells when another node has changed something; none where no other node can.
    ///
    /// # Errors
    /// [`StoreFault`].
    pub async fn listen(&self) -> Result<Option<Listener>, StoreFault> {
        match &self.kind {
            Kind::Sqlite(_) => Ok(None),
            Kind::Postgres(base) => base.listen().await.map(Some),
        }
    }

    async fn begin(&self) -> Result<Tx, StoreFault> {
        match &self.kind {
            Kind::Sqlite(base) => base.begin().await.map(Tx::Sqlite),
            Kind::Postgres(base) => base.begin().await.map(Tx::Postgres),
        }
    }

    /// The number of the last change that requests must see.
    pub(crate) async fn revision(&self) -> Result<i64, StoreFault> {
        read!(self, pool => sqlx::query_scalar("SELECT number FROM revision WHERE one = 1").fetch_one(pool).await)
    }

    /// A fact of this store.
    ///
    /// # Errors
    /// [`StoreFault`].
    pub async fn fact(&self, name: &str) -> Result<Option<Vec<u8>>, StoreFault> {
        read!(self, pool => sqlx::query_scalar("SELECT value FROM meta WHERE name = $1")
            .bind(name)
            .fetch_optional(pool)
            .await)
    }

    /// Keeps facts that are not there yet, all or none.
    ///
    /// # Errors
    /// [`StoreFault::Taken`] when one is there.
    pub(crate) async fn add_facts(&self, facts: &[(&str, &[u8])]) -> Result<(), StoreFault> {
        let mut tx = self.begin().await?;
        for (name, value) in facts {
            let _done = within!(&mut tx, c => sqlx::query("INSERT INTO meta (name, value) VALUES ($1, $2)")
                .bind((*name).to_owned())
                .bind(value.to_vec())
                .execute(c)
                .await
                .map(|done| done.rows_affected()))?;
        }
        tx.commit().await
    }

    /// Keeps new facts and replaces others that are still as they were, all or none; others see it only after
    /// [`Pending::commit`].
    ///
    /// # Errors
    /// [`StoreFault::Taken`] when one is there already, or isn't as it was.
    pub(crate) async fn change_facts(
        &self,
        new: &[(&str, &[u8])],
        changed: &[(&str, &[u8], &[u8])],
    ) -> Result<Pending, StoreFault> {
        let mut tx = self.begin().await?;
        for (name, value) in new {
            let _done = within!(&mut tx, c => sqlx::query("INSERT INTO meta (name, value) VALUES ($1, $2)")
                .bind((*name).to_owned())
                .bind(value.to_vec())
                .execute(c)
                .await
                .map(|done| done.rows_affected()))?;
        }
        for (name, old, value) in changed {
            let done = within!(&mut tx, c => sqlx::query(
                "UPDATE meta SET value = $3 WHERE name = $1 AND value = $2")
                .bind((*name).to_owned())
                .bind(old.to_vec())
                .bind(value.to_vec())
                .execute(c)
                .await
                .map(|done| done.rows_affected()))?;
            if done != 1 {
                return Err(StoreFault::Taken);
            }
        }
        Ok(Pending::new(tx))
    }
}

impl Tx {
    /// The next revision: whoever takes it writes alone until his transaction ends, so that the order of revisions
    /// is the order of commits.
    async fn next_revision(&mut self) -> Result<i64, StoreFault> {
        let number = within!(self, c => sqlx::query_scalar(
            "UPDATE revision SET number = number + 1 WHERE one = 1 RETURNING number"
        )
        .fetch_one(c)
        .await)?;
        if let Self::Postgres(tx) = self {
            // Sent when the transaction commits.
            let _told = sqlx::query("SELECT pg_notify($1, '')")
                .bind(postgres::CHANNEL)
                .execute(&mut **tx)
                .await
                .map_err(|fault| classify(&fault))?;
        }
        Ok(number)
    }

    pub(crate) async fn commit(self) -> Result<(), StoreFault> {
        match self {
            Self::Sqlite(tx) => tx.commit().await,
            Self::Postgres(tx) => tx.commit().await,
        }
        .map_err(|fault| classify(&fault))
    }
}

impl Target {
    /// The database of a data folder that says nothing else.
    #[must_use]
    pub fn in_folder(data: &Path) -> Self {
        Self::Sqlite(data.join("state/guan.db"))
    }
}

/// How long an act waits for whoever holds the database.
const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
