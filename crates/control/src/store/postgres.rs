//! PostgreSQL: how the server is reached, its schema brought up to date, and how nodes tell each other of a change.
//!
//! Migrations go forward only, in one transaction under an advisory lock, so that nodes that start together do it
//! once. A database of a newer schema or of another program is refused. Every statement has a time limit, so that a
//! server that hangs costs seconds, not threads.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolOptions, PgSslMode};
use sqlx::{ConnectOptions, Postgres, Transaction};

use super::fault::classify;
use super::{Server, StoreFault};

/// One database on a server. Clones share its connections.
#[derive(Clone, Debug)]
pub(super) struct Base {
    url: Arc<str>,
    pool: PgPool,
}

/// Hears of changes that any node commits.
#[derive(Debug)]
pub struct Listener(PgListener);

impl Listener {
    /// Returns when something has changed, or when the connection was lost and is there again: then something may
    /// have.
    ///
    /// # Errors
    /// [`StoreFault`]: it can't be had again for now.
    pub async fn changed(&mut self) -> Result<(), StoreFault> {
        self.0
            .try_recv()
            .await
            .map(drop)
            .map_err(|fault| classify(&fault))
    }
}

impl Base {
    pub(super) async fn open(server: &Server, patience: Duration) -> Result<Self, StoreFault> {
        let options = options(server, patience)?;
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(patience)
            .connect_with(options)
            .await
            .map_err(|fault| match classify(&fault) {
                // Nothing is held by anybody yet: the server let us wait.
                StoreFault::Busy => StoreFault::Unreachable("no connection in time".to_owned()),
                other => other,
            })?;
        let base = Self {
            url: server.url.as_str().into(),
            pool,
        };
        base.migrate(MIGRATIONS).await?;
        Ok(base)
    }

    pub(super) const fn pool(&self) -> &PgPool {
        &self.pool
    }

    pub(super) async fn begin(&self) -> Result<Transaction<'static, Postgres>, StoreFault> {
        self.pool.begin().await.map_err(|fault| classify(&fault))
    }

    pub(super) async fn listen(&self) -> Result<Listener, StoreFault> {
        let mut listener = PgListener::connect_with(&self.pool)
            .await
            .map_err(|fault| classify(&fault))?;
        listener
            .listen(CHANNEL)
            .await
            .map_err(|fault| classify(&fault))?;
        Ok(Listener(listener))
    }

    async fn migrate(&self, migrations: &[&'static str]) -> Result<(), StoreFault> {
        let mut tx = self.begin().await?;
        let failed = |fault: sqlx::Error| classify(&fault);
        // Held until the transaction ends; the second node then finds the work done.
        let _held = sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(LOCK)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        let ours: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_tables WHERE schemaname = current_schema() AND tablename = 'guan_schema')",
        )
        .fetch_one(&mut *tx)
        .await
        .map_err(failed)?;
        let version: i64 = if ours {
            sqlx::query_scalar("SELECT version FROM guan_schema")
                .fetch_one(&mut *tx)
                .await
                .map_err(failed)?
        } else {
            let tables: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_catalog.pg_tables WHERE schemaname = current_schema()",
            )
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
            if tables > 0 {
                return Err(StoreFault::Foreign { path: self.place() });
            }
            0
        };
        let known = i64::try_from(migrations.len()).unwrap_or(i64::MAX);
        if version > known {
            return Err(StoreFault::TooNew {
                path: self.place(),
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
                .map_err(failed)?;
        }
        tx.commit().await.map_err(failed)
    }

    fn place(&self) -> PathBuf {
        PathBuf::from(&*self.url)
    }
}

fn options(server: &Server, patience: Duration) -> Result<PgConnectOptions, StoreFault> {
    let mut options =
        PgConnectOptions::from_str(&server.url).map_err(|fault| StoreFault::Open {
            path: PathBuf::from(&server.url),
            cause: fault.to_string(),
        })?;
    // Names go over the wire in the clear unless the URL says how they don't: then TLS is a must, not a hope.
    let names_mode = server.url.contains("sslmode=") || server.url.contains("ssl-mode=");
    let local = options.get_socket().is_some()
        || options.get_host().starts_with('/')
        || options
            .get_host()
            .parse()
            .is_ok_and(|a: std::net::IpAddr| a.is_loopback());
    if !names_mode {
        options = options.ssl_mode(if local {
            PgSslMode::Disable
        } else {
            PgSslMode::VerifyFull
        });
    }
    if let Some(password) = &server.password {
        options = options.password(password);
    }
    let limit = patience.as_millis().to_string();
    Ok(options
        .application_name("guan")
        .options([
            ("lock_timeout", limit.as_str()),
            ("statement_timeout", STATEMENT_MS),
            ("idle_in_transaction_session_timeout", STATEMENT_MS),
            ("client_min_messages", "warning"),
        ])
        .disable_statement_logging())
}

/// What nodes tell each other on.
pub(super) const CHANNEL: &str = "guan_changed";
/// "guan" in ASCII, as the number of the advisory lock.
const LOCK: i64 = 0x6775_616e;
const CONNECTIONS: u32 = 6;
/// Reading a million keys takes seconds; nothing takes minutes.
const STATEMENT_MS: &str = "60000";

/// Never changed once released: a new schema is a new entry. Each ends with its own number.
const MIGRATIONS: &[&str] = &[
    "
CREATE TABLE guan_schema (version BIGINT NOT NULL);
INSERT INTO guan_schema VALUES (1);
CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value BYTEA NOT NULL
);
CREATE TABLE revision (
    one BIGINT PRIMARY KEY CHECK (one = 1),
    number BIGINT NOT NULL
);
INSERT INTO revision VALUES (1, 1);
CREATE TABLE projects (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    enabled BOOLEAN NOT NULL,
    own TEXT NOT NULL,
    notes TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    created_by TEXT NOT NULL
);
CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    project TEXT REFERENCES projects (name),
    created_at BIGINT NOT NULL,
    not_before BIGINT,
    expires_at BIGINT,
    revoked_at BIGINT,
    rotated_at BIGINT NOT NULL,
    last_used BIGINT,
    created_by TEXT NOT NULL,
    last4 TEXT NOT NULL,
    own TEXT NOT NULL,
    notes TEXT NOT NULL,
    revision BIGINT NOT NULL
);
CREATE TABLE digests (
    digest BYTEA PRIMARY KEY CHECK (length(digest) = 32),
    key_id TEXT NOT NULL REFERENCES keys (id),
    last4 TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    valid_until BIGINT
);
CREATE INDEX keys_by_age ON keys (created_at, id);
CREATE INDEX keys_by_revision ON keys (revision);
CREATE INDEX digests_by_key ON digests (key_id);
CREATE TABLE usage (
    day BIGINT NOT NULL,
    key_id TEXT NOT NULL,
    project TEXT NOT NULL,
    model TEXT NOT NULL,
    calls BIGINT NOT NULL,
    failed BIGINT NOT NULL,
    input BIGINT NOT NULL,
    output BIGINT NOT NULL,
    PRIMARY KEY (day, key_id, project, model)
);
CREATE TABLE cursors (
    chain TEXT PRIMARY KEY,
    seq BIGINT NOT NULL,
    offset_bytes BIGINT NOT NULL
);
CREATE TABLE nodes (
    id TEXT PRIMARY KEY,
    started_at BIGINT NOT NULL,
    seen_at BIGINT NOT NULL,
    version TEXT NOT NULL,
    config TEXT NOT NULL
);
",
    "
CREATE TABLE secrets (
    name TEXT PRIMARY KEY,
    value BYTEA NOT NULL,
    changed_at BIGINT NOT NULL
);
UPDATE guan_schema SET version = 2;
",
    "
ALTER TABLE keys ADD COLUMN version BIGINT NOT NULL DEFAULT 1;
ALTER TABLE projects ADD COLUMN version BIGINT NOT NULL DEFAULT 1;
UPDATE guan_schema SET version = 3;
",
    "
CREATE TABLE admins (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    may TEXT NOT NULL,
    roles TEXT,
    created_at BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT,
    last_used BIGINT,
    last4 TEXT NOT NULL,
    digest BYTEA NOT NULL UNIQUE CHECK (length(digest) = 32)
);
CREATE TABLE once (
    actor TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    request BYTEA NOT NULL,
    taken_at BIGINT NOT NULL,
    status BIGINT,
    answer TEXT,
    PRIMARY KEY (actor, idempotency_key)
);
CREATE INDEX once_by_age ON once (taken_at);
UPDATE guan_schema SET version = 4;
",
    "
CREATE TABLE audit_heads (
    chain TEXT PRIMARY KEY,
    seq BIGINT NOT NULL,
    head TEXT NOT NULL,
    signed_at TEXT NOT NULL,
    signed_by TEXT NOT NULL,
    signature TEXT NOT NULL
);
UPDATE guan_schema SET version = 5;
",
];

#[cfg(test)]
mod tests;
