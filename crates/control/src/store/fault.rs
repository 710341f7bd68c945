//! What a failing database means to people: one list for SQLite and PostgreSQL.
//!
//! Texts name columns, paths and hosts, never values.

use std::path::PathBuf;

use sqlx::postgres::PgDatabaseError;

/// Why the store can't do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreFault {
    /// Somebody else holds the database.
    #[error(
        "the database is held by another program for too long. Try again in a moment; if it stays so, find out who has it open (a backup, a database shell) and end that"
    )]
    Busy,
    /// The disk is full.
    #[error("the disk under the database is full, nothing was changed. Make room and try again")]
    Full,
    /// The database can't be written: mode, owner, a read-only file system, or a standby server.
    #[error(
        "the database can't be written, nothing was changed. Check the owner of state/guan.db and that its file system is mounted read-write; with PostgreSQL, that [store] url names the primary"
    )]
    ReadOnly,
    /// The database server doesn't answer.
    #[error(
        "the database server doesn't answer ({0}). Check that it runs and that [store] url names it"
    )]
    Unreachable(String),
    /// The database server doesn't let us in.
    #[error(
        "the database server doesn't let guan in ({0}). Check user and database in [store] url, and [store] password"
    )]
    Denied(String),
    /// It was made by a later version.
    #[error(
        "{path}: made by a newer guan (schema {found}; this version knows {known}). Start the newer version, or restore the backup from before the upgrade"
    )]
    TooNew {
        /// Which file, or the server's URL.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The last one that this version knows.
        known: i64,
    },
    /// It is a database of something else, or no database at all.
    #[error(
        "{path}: not a database of guan. Move it away, or check the data folder's path or [store] url"
    )]
    Foreign {
        /// Which file, or the server's URL.
        path: PathBuf,
    },
    /// Others may read it.
    #[error("{path}: other users may read it (mode {mode:03o}). Type: chmod 600 {path}")]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its mode bits.
        mode: u32,
    },
    /// It can't be opened.
    #[error("{path}: {cause}. Check that the folder exists and that this user owns it")]
    Open {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// Its content contradicts itself.
    #[error(
        "the database is broken ({0}). Stop guan, keep a copy of it, and restore your last backup"
    )]
    Broken(String),
    /// A row of that name is there already.
    #[error("there is one of that name already")]
    Taken,
    /// Anything else.
    #[error(
        "the database failed ({0}). Try again; if it stays so, look at the disk and the system's log"
    )]
    Failed(String),
}

/// SQLite's primary result code.
pub(super) fn sqlite_code(fault: &sqlx::Error) -> Option<i64> {
    let inner = fault.as_database_error()?;
    let code: i64 = inner
        .try_downcast_ref::<sqlx::sqlite::SqliteError>()
        .and_then(|_ours| inner.code()?.parse().ok())?;
    Some(code & 0xff)
}

/// Result codes of both databases, as what they mean to people.
pub(super) fn classify(fault: &sqlx::Error) -> StoreFault {
    if let sqlx::Error::PoolTimedOut = fault {
        return StoreFault::Busy;
    }
    let inner = fault.as_database_error();
    let text = inner.map_or_else(|| fault.to_string(), |inner| inner.message().to_owned());
    if let Some(ours) = inner.and_then(|inner| inner.try_downcast_ref::<PgDatabaseError>()) {
        return postgres(ours.code(), text);
    }
    match sqlite_code(fault) {
        Some(5 | 6) => StoreFault::Busy,
        Some(8) => StoreFault::ReadOnly,
        Some(11 | SQLITE_NOTADB) => StoreFault::Broken(text),
        Some(13) => StoreFault::Full,
        Some(19) => StoreFault::Taken,
        _ if matches!(
            fault,
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolClosed
        ) =>
        {
            StoreFault::Unreachable(text)
        }
        _ => StoreFault::Failed(text),
    }
}

/// SQLSTATE codes (appendix A of PostgreSQL's manual).
fn postgres(code: &str, text: String) -> StoreFault {
    match code {
        "23505" => StoreFault::Taken,
        "25006" => StoreFault::ReadOnly,
        "53100" => StoreFault::Full,
        // Lock not available, statement cancelled by its time limit, deadlock.
        "55P03" | "57014" | "40P01" => StoreFault::Busy,
        "28000" | "28P01" | "3D000" | "42501" => StoreFault::Denied(text),
        _ if code.starts_with("57P") || code.starts_with("08") || code.starts_with("53") => {
            StoreFault::Unreachable(text)
        }
        _ if code.starts_with("XX") => StoreFault::Broken(text),
        _ => StoreFault::Failed(text),
    }
}

pub(super) const SQLITE_NOTADB: i64 = 26;
