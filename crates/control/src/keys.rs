//! Keys: making them, listing them, taking them back.
//!
//! Decides what a valid name, role and expiry are, and the order of an act: the record is written before a new key
//! exists, a revocation holds before its record is written; success is reported after both. It never keeps, logs or
//! records a key's text. Called by `api` (while the server runs) and by `guan`'s commands (while none does).

use std::fmt;

use aws_lc_rs::rand;
use rules::chain::{Entry, Record};
use rules::key::{KeyId, Minted, Pepper, mint};
use serde_json::json;
use tokio::sync::mpsc::Sender;
use zeroize::Zeroizing;

use crate::audit_log::{self, AuditFault};
use crate::clock::{self, Clock};
use crate::publish::Publisher;
use crate::store::{Store, StoreFault};

pub use crate::store::KeyRow;

/// What a new key shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    /// What its owner calls it: 1 to 128 printable characters.
    pub name: String,
    /// The name of a role in the config file.
    pub role: String,
    /// Who pays.
    pub project: Option<String>,
    /// From when it is no longer valid, seconds since 1970.
    pub expires_at: Option<i64>,
}

/// A key that was made. Its text is here and nowhere else.
pub struct Created {
    /// Its public name.
    pub id: KeyId,
    /// The key itself, to be shown once; wiped when dropped.
    pub text: Zeroizing<String>,
    /// What is kept of it.
    pub row: KeyRow,
}

impl fmt::Debug for Created {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Created")
            .field("row", &self.row)
            .finish_non_exhaustive()
    }
}

/// A key that was taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// What is kept of it.
    pub row: KeyRow,
    /// It was already: this call changed nothing.
    pub already: bool,
}

/// Some keys, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The keys.
    pub rows: Vec<KeyRow>,
    /// There are more after the last of these.
    pub has_more: bool,
}

/// Why a key can't be made, listed or taken back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeysFault {
    /// A name or project that isn't one.
    #[error("{what} must be 1 to 128 printable characters, without spaces at its ends")]
    Name {
        /// `name` or `project`.
        what: &'static str,
    },
    /// No such role.
    #[error("there is no role {given:?}. The config file has: {known}")]
    Role {
        /// What was asked for.
        given: String,
        /// What there is, with commas.
        known: String,
    },
    /// An expiry that has passed.
    #[error(
        "expires_at is {given}, which has passed. Give a later time, or none for a key that doesn't expire"
    )]
    Expiry {
        /// What was asked for, RFC 3339.
        given: String,
    },
    /// Not an id and not the beginning of one.
    #[error(
        "a key is named by its id (12 letters and digits, see `guan key list`) or by at least 4 of its first letters; never type a whole key"
    )]
    NotAnId,
    /// No key of that id.
    #[error("there is no key {0}. See `guan key list`")]
    Unknown(String),
    /// Several ids begin so.
    #[error("several keys begin with {given}: {found}. Give more letters")]
    Ambiguous {
        /// What was asked for.
        given: String,
        /// Some that there are, with commas.
        found: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreFault),
    /// The audit log; nothing was done.
    #[error(transparent)]
    Audit(#[from] AuditFault),
    /// Revoked in the store, but requests may still read the view before.
    #[error(
        "the key is revoked in the database, but this server couldn't load the keys anew and may still accept it. Revoke it again"
    )]
    Unpublished,
    /// Revoked, but not recorded.
    #[error(
        "the key is revoked and no longer accepted, but the audit log can't be written. Make room on the disk of state/audit and revoke it again, so that it is recorded"
    )]
    Unrecorded,
    /// No randomness.
    #[error("the system gives no randomness, so no key can be made. Check the kernel's log")]
    NoRandom,
}

/// What acts on keys.
#[derive(Clone)]
pub struct Keys {
    store: Store,
    pepper: Pepper,
    publisher: Publisher,
    audit: Sender<Entry>,
    clock: Clock,
}

impl Keys {
    /// With everything an act touches.
    #[must_use]
    pub const fn new(
        store: Store,
        pepper: Pepper,
        publisher: Publisher,
        audit: Sender<Entry>,
        clock: Clock,
    ) -> Self {
        Self {
            store,
            pepper,
            publisher,
            audit,
            clock,
        }
    }

    /// Makes a key. `roles` are the names in the config file; `actor` is who asks (`local:UID`).
    ///
    /// # Errors
    /// [`KeysFault`]; then no key was made.
    pub async fn create(
        &self,
        new: NewKey,
        roles: &[String],
        actor: &str,
    ) -> Result<Created, KeysFault> {
        let now = clock::seconds((self.clock)());
        check(&new, roles, now)?;
        let minted = fresh()?;
        let digest = self.pepper.digest(&minted.text);
        let row = KeyRow {
            id: minted.id,
            name: new.name,
            role: new.role,
            project: new.project,
            created_at: now,
            expires_at: new.expires_at,
            revoked_at: None,
            created_by: actor.to_owned(),
            last4: last_letters(&minted.text),
        };
        let pending = self.store.add_key(&row, &digest).await?;
        // Recorded first: a key without a record can't be; a record of a key that never came to be does no harm.
        audit_log::record(&self.audit, self.act("key-create", &row, actor)).await?;
        if let Err(fault) = pending.commit().await {
            let mut failed = self.act("key-create", &row, actor);
            "failure".clone_into(&mut failed.outcome);
            failed.reason = Some("not-stored".to_owned());
            let told = audit_log::record(&self.audit, failed).await;
            tracing::warn!(key = %row.id, told = told.is_ok(), "a key was recorded and then not stored");
            return Err(fault.into());
        }
        if let Err(fault) = self.publisher.publish().await {
            // The next refresh finds it; the key is good.
            tracing::warn!(key = %row.id, %fault, "new key not published at once");
        }
        Ok(Created {
            id: minted.id,
            text: minted.text,
            row,
        })
    }

    /// All keys, revoked and expired ones too, oldest first.
    ///
    /// # Errors
    /// [`KeysFault::Store`].
    pub async fn list(&self) -> Result<Vec<KeyRow>, KeysFault> {
        Ok(self.store.keys_after(None, u32::MAX).await?)
    }

    /// At most `limit` keys after the key `after`.
    ///
    /// # Errors
    /// [`KeysFault::Store`], [`KeysFault::Unknown`].
    pub async fn page(&self, after: Option<KeyId>, limit: u32) -> Result<Page, KeysFault> {
        if let Some(after) = after
            && self.store.keys_named(after.as_str(), 1).await?.is_empty()
        {
            return Err(KeysFault::Unknown(after.to_string()));
        }
        let mut rows = self
            .store
            .keys_after(after, limit.saturating_add(1))
            .await?;
        let most = usize::try_from(limit).unwrap_or(usize::MAX);
        let has_more = rows.len() > most;
        rows.truncate(most);
        Ok(Page { rows, has_more })
    }

    /// Takes a key back, named by its id or by the first letters of it. Doing it again changes nothing and says so.
    ///
    /// # Errors
    /// [`KeysFault`]. [`KeysFault::Unrecorded`] and [`KeysFault::Unpublished`] say what holds nevertheless.
    pub async fn revoke(&self, id_or_prefix: &str, actor: &str) -> Result<Revoked, KeysFault> {
        let id = self.named(id_or_prefix).await?;
        let now = clock::seconds((self.clock)());
        let (row, first) = self
            .store
            .revoke(id, now)
            .await?
            .ok_or_else(|| KeysFault::Unknown(id.to_string()))?;
        let published = self.publisher.publish().await;
        let mut record = self.act("key-revoke", &row, actor);
        if !first {
            record.reason = Some("already-revoked".to_owned());
        }
        let recorded = audit_log::record(&self.audit, record).await;
        // In force before it is recorded: a full disk must not keep a leaked key alive.
        if let Err(fault) = published {
            tracing::error!(key = %row.id, %fault, "a revoked key may still be accepted: keys not loaded anew");
            return Err(KeysFault::Unpublished);
        }
        recorded.map_err(|_unwritten| KeysFault::Unrecorded)?;
        Ok(Revoked {
            row,
            already: !first,
        })
    }

    async fn named(&self, given: &str) -> Result<KeyId, KeysFault> {
        let letters = given.len() <= 12 && given.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !letters || given.len() < SHORTEST_PREFIX {
            return Err(KeysFault::NotAnId);
        }
        let found = self.store.keys_named(given, 4).await?;
        match found.as_slice() {
            [] => Err(KeysFault::Unknown(given.to_owned())),
            [one] => Ok(one.id),
            several => Err(KeysFault::Ambiguous {
                given: given.to_owned(),
                found: joined(several.iter().map(|row| row.id.to_string())),
            }),
        }
    }

    fn act(&self, action: &str, row: &KeyRow, actor: &str) -> Record {
        let mut record = audit_log::blank(&self.clock, action);
        record.user_id = Some(actor.to_owned());
        record.act = Some(json!({
            "id": row.id,
            "name": row.name,
            "role": row.role,
            "project": row.project,
            "expires_at": row.expires_at.map(clock::rfc3339_seconds),
        }));
        record
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

fn check(new: &NewKey, roles: &[String], now: i64) -> Result<(), KeysFault> {
    if !is_name(&new.name) {
        return Err(KeysFault::Name { what: "name" });
    }
    if new
        .project
        .as_deref()
        .is_some_and(|project| !is_name(project))
    {
        return Err(KeysFault::Name { what: "project" });
    }
    if !roles.contains(&new.role) {
        return Err(KeysFault::Role {
            given: new.role.chars().take(64).collect(),
            known: joined(roles.iter().cloned()),
        });
    }
    match new.expires_at {
        Some(at) if at <= now => Err(KeysFault::Expiry {
            given: clock::rfc3339_seconds(at),
        }),
        Some(_) | None => Ok(()),
    }
}

/// What can be shown in a list without moving the cursor, hiding or turning the text around it.
fn is_name(text: &str) -> bool {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    };
    (1..=128).contains(&text.chars().count()) && text.trim() == text && !text.chars().any(hidden)
}

fn fresh() -> Result<Minted, KeysFault> {
    let mut random = Zeroizing::new([0; 44]);
    rand::fill(random.as_mut()).map_err(|_unspecified| KeysFault::NoRandom)?;
    Ok(mint(&random))
}

fn last_letters(text: &str) -> String {
    let skip = text.chars().count().saturating_sub(4);
    text.chars().skip(skip).collect()
}

fn joined(names: impl Iterator<Item = String>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

const SHORTEST_PREFIX: usize = 4;

#[cfg(test)]
mod tests;
