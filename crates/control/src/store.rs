//! What is kept: keys, and a few facts of this data folder. SQLite here; another database is a second room beside it.
//!
//! Decides how rows are written and what a failing database means to people. It knows no key text, no role's
//! meaning and no time but what it is given. Called by `keys`, `publish` and `bootstrap`.

mod sqlite;

use std::path::PathBuf;

use rules::key::KeyId;
use serde::{Deserialize, Serialize};

pub use sqlite::Store;

/// A key as it is kept and shown: never its text, never its digest. Times are seconds since 1970, RFC 3339 in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRow {
    /// Its public name.
    pub id: KeyId,
    /// What its owner calls it.
    pub name: String,
    /// The role's name.
    pub role: String,
    /// Who pays.
    pub project: Option<String>,
    /// When it was made.
    #[serde(with = "crate::clock::text")]
    pub created_at: i64,
    /// From when it is no longer valid.
    #[serde(with = "crate::clock::text_or_null")]
    pub expires_at: Option<i64>,
    /// When it was taken back.
    #[serde(with = "crate::clock::text_or_null")]
    pub revoked_at: Option<i64>,
    /// Who made it: `local:UID`.
    pub created_by: String,
    /// The last four letters of its text, to tell keys apart by eye.
    pub last4: String,
}

/// Why the store can't do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreFault {
    /// Somebody else holds the database.
    #[error(
        "the database is held by another program for too long. Try again in a moment; if it stays so, find out who has state/guan.db open (a backup, a sqlite3 shell) and end that"
    )]
    Busy,
    /// The disk is full.
    #[error("the disk under the database is full, nothing was changed. Make room and try again")]
    Full,
    /// The database can't be written: mode, owner, or a read-only file system.
    #[error(
        "the database can't be written, nothing was changed. Check the owner of state/guan.db and that its file system is mounted read-write"
    )]
    ReadOnly,
    /// It was made by a later version.
    #[error(
        "{path}: made by a newer guan (schema {found}; this version knows {known}). Start the newer version, or restore the backup from before the upgrade"
    )]
    TooNew {
        /// Which file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The last one that this version knows.
        known: i64,
    },
    /// It is a database of something else, or no database at all.
    #[error("{path}: not a database of guan. Move it away, or check the data folder's path")]
    Foreign {
        /// Which file.
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
        "the database is broken ({0}). Stop guan, keep a copy of state/, and restore your last backup"
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
