//! The store in SQLite: all SQL of this crate is here.
//!
//! WAL, one connection that writes and a few that read. Migrations go forward only, each in one transaction with the
//! number it leaves in `user_version`. A database of a newer schema or of another program is refused.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rules::key::{Digest, KeyId};
use rules::snapshot;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Sqlite, Transaction};

use super::{KeyRow, StoreFault};

/// The database of one data folder. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Store {
    path: Arc<Path>,
    write: SqlitePool,
    read: SqlitePool,
}

impl Store {
    /// Opens the database, makes it if there is none (mode 0600), and brings its schema up to date. Waits at most
    /// five seconds for whoever holds it.
    ///
    /// # Errors
    /// [`StoreFault`].
    pub async fn open(path: &Path) -> Result<Self, StoreFault> {
        Self::open_within(path, BUSY_TIMEOUT).await
    }

    /// The same, with the time that each act waits for whoever holds the database.
    ///
    /// # Errors
    /// [`StoreFault`].
    pub async fn open_within(path: &Path, busy_timeout: Duration) -> Result<Self, StoreFault> {
        make_private(path)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .busy_timeout(busy_timeout)
            .foreign_keys(true)
            .pragma("trusted_schema", "OFF")
            .disable_statement_logging();
        let writer = options
            .clone()
            .journal_mode(SqliteJournalMode::Wal)
            // FULL: a power cut must not bring a revoked key back to life. Writes are few.
            .synchronous(SqliteSynchronous::Full);
        let write = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(busy_timeout)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(writer)
            .await
            .map_err(|fault| at_open(path, &fault))?;
        let read = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(busy_timeout)
            .connect_lazy_with(options.read_only(true));
        let store = Self {
            path: path.into(),
            write,
            read,
        };
        store.migrate(MIGRATIONS).await?;
        Ok(store)
    }

    /// Ends all connections and folds the write-ahead log into the file.
    pub async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    async fn migrate(&self, migrations: &[&'static str]) -> Result<(), StoreFault> {
        let mut tx = self.begin().await?;
        let version: i64 = sqlx::query_scalar("PRAGMA user_version")
            .fetch_one(&mut *tx)
            .await
            .map_err(|fault| at_open(&self.path, &fault))?;
        let application: i64 = sqlx::query_scalar("PRAGMA application_id")
            .fetch_one(&mut *tx)
            .await
            .map_err(|fault| at_open(&self.path, &fault))?;
        let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema")
            .fetch_one(&mut *tx)
            .await
            .map_err(|fault| at_open(&self.path, &fault))?;
        if application != APPLICATION_ID && (application != 0 || version != 0 || tables != 0) {
            let path = self.path.to_path_buf();
            return Err(StoreFault::Foreign { path });
        }
        let known = i64::try_from(migrations.len()).unwrap_or(i64::MAX);
        if version > known {
            return Err(StoreFault::TooNew {
                path: self.path.to_path_buf(),
                found: version,
                known,
            });
        }
        let done = usize::try_from(version)
            .map_err(|_negative| StoreFault::Broken(format!("schema {version}")))?;
        for migration in migrations.iter().skip(done) {
            sqlx::raw_sql(*migration)
                .execute(&mut *tx)
                .await
                .map_err(|fault| classify(&fault))?;
        }
        tx.commit().await.map_err(|fault| classify(&fault))
    }

    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, StoreFault> {
        // IMMEDIATE: a transaction that reads and then writes must not find out late that it can't.
        self.write
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(|fault| classify(&fault))
    }

    /// A fact of this data folder.
    ///
    /// # Errors
    /// [`StoreFault`].
    pub async fn fact(&self, name: &str) -> Result<Option<Vec<u8>>, StoreFault> {
        sqlx::query_scalar("SELECT value FROM meta WHERE name = $1")
            .bind(name)
            .fetch_optional(&self.read)
            .await
            .map_err(|fault| classify(&fault))
    }

    /// Keeps facts that are not there yet, all or none.
    ///
    /// # Errors
    /// [`StoreFault::Taken`] when one is there.
    pub(crate) async fn add_facts(&self, facts: &[(&str, &[u8])]) -> Result<(), StoreFault> {
        let mut tx = self.begin().await?;
        for (name, value) in facts {
            sqlx::query("INSERT INTO meta (name, value) VALUES ($1, $2)")
                .bind(*name)
                .bind(*value)
                .execute(&mut *tx)
                .await
                .map_err(|fault| classify(&fault))?;
        }
        tx.commit().await.map_err(|fault| classify(&fault))
    }

    /// Writes a new key that others see only after [`PendingKey::commit`].
    pub(crate) async fn add_key(
        &self,
        row: &KeyRow,
        digest: &Digest,
    ) -> Result<PendingKey, StoreFault> {
        let mut tx = self.begin().await?;
        sqlx::query(
            "INSERT INTO keys (id, digest, name, role, project, created_at, expires_at, revoked_at, created_by, last4) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(row.id.as_str().to_owned())
        .bind(digest.bytes().to_vec())
        .bind(row.name.clone())
        .bind(row.role.clone())
        .bind(row.project.clone())
        .bind(row.created_at)
        .bind(row.expires_at)
        .bind(row.revoked_at)
        .bind(row.created_by.clone())
        .bind(row.last4.clone())
        .execute(&mut *tx)
        .await
        .map_err(|fault| classify(&fault))?;
        Ok(PendingKey { tx })
    }

    /// At most `limit` keys, oldest first, those after the key `after`; none if there is no such key.
    pub(crate) async fn keys_after(
        &self,
        after: Option<KeyId>,
        limit: u32,
    ) -> Result<Vec<KeyRow>, StoreFault> {
        let rows: Vec<Columns> = sqlx::query_as(
            "SELECT id, name, role, project, created_at, expires_at, revoked_at, created_by, last4 FROM keys \
             WHERE $1 IS NULL OR (created_at, id) > (SELECT created_at, id FROM keys WHERE id = $1) \
             ORDER BY created_at, id LIMIT $2",
        )
        .bind(after.map(|id| id.as_str().to_owned()))
        .bind(i64::from(limit))
        .fetch_all(&self.read)
        .await
        .map_err(|fault| classify(&fault))?;
        rows.into_iter().map(row).collect()
    }

    /// At most `limit` keys whose id begins so, letter for letter.
    pub(crate) async fn keys_named(
        &self,
        prefix: &str,
        limit: u32,
    ) -> Result<Vec<KeyRow>, StoreFault> {
        let rows: Vec<Columns> = sqlx::query_as(
            "SELECT id, name, role, project, created_at, expires_at, revoked_at, created_by, last4 FROM keys \
             WHERE substr(id, 1, length($1)) = $1 ORDER BY created_at, id LIMIT $2",
        )
        .bind(prefix.to_owned())
        .bind(i64::from(limit))
        .fetch_all(&self.read)
        .await
        .map_err(|fault| classify(&fault))?;
        rows.into_iter().map(row).collect()
    }

    /// Takes a key back at `now` unless it was. `true`: by this call. `None`: no such key.
    pub(crate) async fn revoke(
        &self,
        id: KeyId,
        now: i64,
    ) -> Result<Option<(KeyRow, bool)>, StoreFault> {
        let mut tx = self.begin().await?;
        let changed =
            sqlx::query("UPDATE keys SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL")
                .bind(id.as_str().to_owned())
                .bind(now)
                .execute(&mut *tx)
                .await
                .map_err(|fault| classify(&fault))?
                .rows_affected();
        let columns: Option<Columns> = sqlx::query_as(
            "SELECT id, name, role, project, created_at, expires_at, revoked_at, created_by, last4 FROM keys \
             WHERE id = $1",
        )
        .bind(id.as_str().to_owned())
        .fetch_optional(&mut *tx)
        .await
        .map_err(|fault| classify(&fault))?;
        tx.commit().await.map_err(|fault| classify(&fault))?;
        columns
            .map(|columns| row(columns).map(|key| (key, changed > 0)))
            .transpose()
    }

    /// How many keys there are, revoked ones too.
    pub(crate) async fn count_keys(&self) -> Result<i64, StoreFault> {
        sqlx::query_scalar("SELECT count(*) FROM keys")
            .fetch_one(&self.read)
            .await
            .map_err(|fault| classify(&fault))
    }

    /// All keys as requests see them.
    pub(crate) async fn snapshot(&self) -> Result<snapshot::Keys, StoreFault> {
        let rows: Vec<Seen> = sqlx::query_as(
            "SELECT digest, id, name, role, project, expires_at, revoked_at IS NOT NULL FROM keys",
        )
        .fetch_all(&self.read)
        .await
        .map_err(|fault| classify(&fault))?;
        let keys: Result<Vec<_>, StoreFault> = rows.into_iter().map(seen).collect();
        Ok(snapshot::Keys::new(keys?))
    }
}

/// A key that is written but not there yet. Dropped, it never was.
#[derive(Debug)]
pub(crate) struct PendingKey {
    tx: Transaction<'static, Sqlite>,
}

impl PendingKey {
    /// Makes it there.
    pub(crate) async fn commit(self) -> Result<(), StoreFault> {
        self.tx.commit().await.map_err(|fault| classify(&fault))
    }
}

type Columns = (
    String,
    String,
    String,
    Option<String>,
    i64,
    Option<i64>,
    Option<i64>,
    String,
    String,
);

type Seen = (
    Vec<u8>,
    String,
    String,
    String,
    Option<String>,
    Option<i64>,
    bool,
);

fn row(columns: Columns) -> Result<KeyRow, StoreFault> {
    let (id, name, role, project, created_at, expires_at, revoked_at, created_by, last4) = columns;
    Ok(KeyRow {
        id: key_id(&id)?,
        name,
        role,
        project,
        created_at,
        expires_at,
        revoked_at,
        created_by,
        last4,
    })
}

fn seen(columns: Seen) -> Result<(Digest, snapshot::Key), StoreFault> {
    let (digest, id, name, role, project, expires_at, revoked) = columns;
    let id = key_id(&id)?;
    let digest: [u8; 32] = digest
        .try_into()
        .map_err(|_length| StoreFault::Broken(format!("digest of key {id}")))?;
    let key = snapshot::Key {
        id,
        name: name.into(),
        role: role.into(),
        project: project.map(Arc::from),
        expires_at,
        revoked,
    };
    Ok((Digest::from_bytes(digest), key))
}

fn key_id(text: &str) -> Result<KeyId, StoreFault> {
    KeyId::parse(text).map_err(|_shape| StoreFault::Broken("a key's id".to_owned()))
}

/// Makes the file if there is none, so that SQLite (which gives its side files the same mode) never makes it wider.
fn make_private(path: &Path) -> Result<(), StoreFault> {
    let open = |cause: std::io::Error| StoreFault::Open {
        path: path.to_path_buf(),
        cause: cause.to_string(),
    };
    match fs::metadata(path) {
        Ok(there) => {
            let mode = there.mode() & 0o7777;
            if mode & 0o077 == 0 {
                return Ok(());
            }
            Err(StoreFault::Exposed {
                path: path.to_path_buf(),
                mode,
            })
        }
        Err(none) if none.kind() == std::io::ErrorKind::NotFound => OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map(drop)
            .map_err(open),
        Err(other) => Err(open(other)),
    }
}

fn at_open(path: &Path, fault: &sqlx::Error) -> StoreFault {
    let path: PathBuf = path.to_path_buf();
    match (primary_code(fault), classify(fault)) {
        (Some(SQLITE_NOTADB), _) => StoreFault::Foreign { path },
        (_, StoreFault::Failed(cause)) => StoreFault::Open { path, cause },
        (_, known) => known,
    }
}

fn primary_code(fault: &sqlx::Error) -> Option<i64> {
    let code: i64 = fault.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}

/// SQLite's result codes, as what they mean to people. The text of a fault names columns, never values.
fn classify(fault: &sqlx::Error) -> StoreFault {
    if let sqlx::Error::PoolTimedOut = fault {
        return StoreFault::Busy;
    }
    let text = fault
        .as_database_error()
        .map_or_else(|| fault.to_string(), |inner| inner.message().to_owned());
    match primary_code(fault) {
        Some(5 | 6) => StoreFault::Busy,
        Some(8) => StoreFault::ReadOnly,
        Some(11 | SQLITE_NOTADB) => StoreFault::Broken(text),
        Some(13) => StoreFault::Full,
        Some(19) => StoreFault::Taken,
        _ => StoreFault::Failed(text),
    }
}

const SQLITE_NOTADB: i64 = 26;
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const READERS: u32 = 2;
/// "guan" in ASCII: tells our file from any other SQLite file. Must fit what the first migration writes.
const APPLICATION_ID: i64 = 0x6775_616e;

/// Never changed once released: a new schema is a new entry. Each ends with its own number.
const MIGRATIONS: &[&str] = &["
PRAGMA application_id = 0x6775616e;
CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    project TEXT,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER,
    created_by TEXT NOT NULL,
    last4 TEXT NOT NULL
) STRICT;
CREATE INDEX keys_by_age ON keys (created_at, id);
PRAGMA user_version = 1;
"];

#[cfg(test)]
mod tests;
