//! SQLite: how the file is opened and its schema brought up to date.
//!
//! WAL, one connection that writes and a few that read. Migrations go forward only, each in one transaction with the
//! number it leaves in `user_version`. A database of a newer schema or of another program is refused.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Sqlite, Transaction};

use super::StoreFault;
use super::fault::{SQLITE_NOTADB, classify, sqlite_code};

/// The database of one data folder. Clones share its connections.
#[derive(Clone, Debug)]
pub(super) struct Base {
    path: Arc<Path>,
    write: SqlitePool,
    read: SqlitePool,
}

impl Base {
    /// Opens the database, makes it if there is none (mode 0600), and brings its schema up to date.
    pub(super) async fn open(path: &Path, busy_timeout: Duration) -> Result<Self, StoreFault> {
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
    pub(super) async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }

    /// Connections that only read.
    pub(super) const fn reader(&self) -> &SqlitePool {
        &self.read
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

    pub(super) async fn begin(&self) -> Result<Transaction<'static, Sqlite>, StoreFault> {
        // IMMEDIATE: a transaction that reads and then writes must not find out late that it can't.
        self.write
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(|fault| classify(&fault))
    }
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
    match (sqlite_code(fault), classify(fault)) {
        (Some(SQLITE_NOTADB), _) => StoreFault::Foreign { path },
        (_, StoreFault::Failed(cause)) => StoreFault::Open { path, cause },
        (_, known) => known,
    }
}

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
", "
CREATE TABLE revision (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    number INTEGER NOT NULL
) STRICT;
INSERT INTO revision VALUES (1, 1);
CREATE TABLE projects (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    enabled INTEGER NOT NULL,
    own TEXT NOT NULL,
    notes TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL
) STRICT;
INSERT INTO projects SELECT lower(hex(randomblob(6))), project, 1, '{}', '', min(created_at), 'upgrade'
    FROM keys WHERE project IS NOT NULL GROUP BY project;
CREATE TABLE keys_2 (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    project TEXT REFERENCES projects (name),
    created_at INTEGER NOT NULL,
    not_before INTEGER,
    expires_at INTEGER,
    revoked_at INTEGER,
    rotated_at INTEGER NOT NULL,
    last_used INTEGER,
    created_by TEXT NOT NULL,
    last4 TEXT NOT NULL,
    own TEXT NOT NULL,
    notes TEXT NOT NULL,
    revision INTEGER NOT NULL
) STRICT;
INSERT INTO keys_2 SELECT id, name, role, project, created_at, NULL, expires_at, revoked_at, created_at, NULL,
    created_by, last4, '{}', '', 1 FROM keys;
CREATE TABLE digests (
    digest BLOB PRIMARY KEY CHECK (length(digest) = 32),
    key_id TEXT NOT NULL REFERENCES keys_2 (id),
    last4 TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    valid_until INTEGER
) STRICT, WITHOUT ROWID;
INSERT INTO digests SELECT digest, id, last4, created_at, NULL FROM keys;
DROP TABLE keys;
ALTER TABLE keys_2 RENAME TO keys;
CREATE INDEX keys_by_age ON keys (created_at, id);
CREATE INDEX keys_by_revision ON keys (revision);
CREATE INDEX digests_by_key ON digests (key_id);
CREATE TABLE usage (
    day INTEGER NOT NULL,
    key_id TEXT NOT NULL,
    project TEXT NOT NULL,
    model TEXT NOT NULL,
    calls INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    input INTEGER NOT NULL,
    output INTEGER NOT NULL,
    PRIMARY KEY (day, key_id, project, model)
) STRICT, WITHOUT ROWID;
CREATE TABLE cursors (
    chain TEXT PRIMARY KEY,
    seq INTEGER NOT NULL,
    offset_bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE nodes (
    id TEXT PRIMARY KEY,
    started_at INTEGER NOT NULL,
    seen_at INTEGER NOT NULL,
    version TEXT NOT NULL,
    config TEXT NOT NULL
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 2;
", "
CREATE TABLE secrets (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL,
    changed_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 3;
", "
ALTER TABLE keys ADD COLUMN version INTEGER NOT NULL DEFAULT 1;
ALTER TABLE projects ADD COLUMN version INTEGER NOT NULL DEFAULT 1;
PRAGMA user_version = 4;
", "
CREATE TABLE admins (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    may TEXT NOT NULL,
    roles TEXT,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER,
    last_used INTEGER,
    last4 TEXT NOT NULL,
    digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32)
) STRICT, WITHOUT ROWID;
CREATE TABLE once (
    actor TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    request BLOB NOT NULL,
    taken_at INTEGER NOT NULL,
    status INTEGER,
    answer TEXT,
    PRIMARY KEY (actor, idempotency_key)
) STRICT, WITHOUT ROWID;
CREATE INDEX once_by_age ON once (taken_at);
PRAGMA user_version = 5;
", "
CREATE TABLE audit_heads (
    chain TEXT PRIMARY KEY,
    seq INTEGER NOT NULL,
    head TEXT NOT NULL,
    signed_at TEXT NOT NULL,
    signed_by TEXT NOT NULL,
    signature TEXT NOT NULL
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 6;
"];

#[cfg(test)]
mod tests;
