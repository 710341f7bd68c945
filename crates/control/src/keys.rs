//! Keys: making them, giving them new secrets, listing them, taking them back.
//!
//! Decides what a valid name, role and expiry are, and the order of an act: the record is written before a new key
//! exists, a revocation holds before its record is written; success is reported after both. It never keeps, logs or
//! records a key's text. Called by `api` (while the server runs) and by `guan`'s commands (while none does).

mod admins;
mod change;
mod due;
mod import;
mod own;
mod projects;

use std::fmt;

use aws_lc_rs::rand;
use rules::chain::{Entry, Record};
use rules::ident;
use rules::key::{Digest, KeyId, Minted, Pepper, mint, mint_again};
use rules::policy::{Own, Said, explain};
use rules::snapshot::Roles;
use serde_json::json;
use tokio::sync::mpsc::Sender;
use zeroize::Zeroizing;

use crate::actor::Actor;
use crate::audit_log::{self, AuditFault};
use crate::clock::{self, Clock};
use crate::publish::Publisher;
use crate::store::{Pending, Store, StoreFault};

pub use crate::store::{AdminRow, KeyRow, ProjectRow, Right, SecretRow};
pub(crate) use admins::Refused;
pub use admins::{CreatedAdmin, NewAdmin};
pub(crate) use change::time;
pub use change::{Expected, KeyChange, Members, ProjectChange};
pub use due::{count_due, due_by_role, is_due};
pub use import::{Foreign, ForeignKey, Imported, read_list};
use own::check_own;
pub use projects::NewProject;

/// What a new key shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewKey {
    /// What its owner calls it: 1 to 128 printable characters.
    pub name: String,
    /// The name of a role in the config file.
    pub role: String,
    /// Who pays.
    pub project: Option<String>,
    /// Before which it isn't valid yet, seconds since 1970.
    pub not_before: Option<i64>,
    /// From when it is no longer valid, seconds since 1970.
    pub expires_at: Option<i64>,
    /// What it narrows of its role.
    pub own: Own,
    /// What its owner wants to remember: at most 1,000 characters.
    pub notes: String,
}

/// A key, whole, for whoever looks after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// What is kept of it.
    pub row: KeyRow,
    /// Its secrets, newest first.
    pub secrets: Vec<SecretRow>,
    /// What it may do after all, and who says so; empty when its role isn't in the config file.
    pub policy: Vec<Said>,
    /// Its project is disabled, so it is refused.
    pub project_disabled: bool,
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
    /// No such project.
    #[error(
        "there is no project {0:?}. Make it with `guan project create {0}`, or see `guan project list`"
    )]
    Project(String),
    /// A time before which it would be valid lies after its end.
    #[error("not_before is after expires_at: the key would never be valid. Give an earlier one")]
    Never,
    /// A limit or list of its own that isn't one.
    #[error("{what} {why}")]
    Own {
        /// Which.
        what: &'static str,
        /// What is wrong with it and what to write.
        why: String,
    },
    /// It was taken back.
    #[error(
        "the key {0} is revoked: it gets no new secret and isn't changed any more. Make a new key"
    )]
    IsRevoked(KeyId),
    /// It isn't any more what the change was made for.
    #[error(
        "it was changed meanwhile; nothing was done. Look at it again, then change what is there now"
    )]
    Changed,
    /// An overlap that isn't one.
    #[error("an overlap is at most 90 days; give a shorter one, or --at-once")]
    Overlap,
    /// A list of foreign keys that can't be read.
    #[error("line {line}: {why}. Nothing was imported")]
    Import {
        /// From 1.
        line: usize,
        /// What is wrong with it, never with a part of it.
        why: &'static str,
    },
    /// Not an id and not the beginning of one.
    #[error(
        "a key is named by its id (12 letters and digits, see `guan key list`) or by at least 4 of its first letters; never type a whole key"
    )]
    NotAnId,
    /// No key of that id.
    #[error("there is no key {0}. See `guan key list`")]
    Unknown(String),
    /// No admin token of that id.
    #[error("there is no admin token {0}. See `guan admin list`")]
    NoAdmin(String),
    /// Whoever asks looks after keys of some roles only, and a project bears on all.
    #[error("a project bears on keys of every role, and your token is only for: {may}")]
    NotAll {
        /// Those that it reaches, with commas.
        may: String,
    },
    /// Whoever asks may not look after keys of this role.
    #[error("your token doesn't reach keys of the role {0:?}; it is for: {1}", .role, .may)]
    NotYours {
        /// The role.
        role: String,
        /// Those that it reaches, with commas.
        may: String,
    },
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

    /// Makes a key. `roles` are those of the config file; `actor` is who asks.
    ///
    /// # Errors
    /// [`KeysFault`]; then no key was made.
    pub async fn create(
        &self,
        new: NewKey,
        roles: &Roles,
        actor: &Actor,
    ) -> Result<Created, KeysFault> {
        let now = clock::seconds((self.clock)());
        self.check(&new, roles, now).await?;
        reaches(actor, &new.role)?;
        let minted = fresh()?;
        let row = row_of(new, minted.id, last_letters(&minted.text), now, actor);
        let digest = self.pepper.digest(&minted.text);
        let pending = self.store.add_keys(&[(row.clone(), digest)]).await?;
        self.record_then_commit(self.act("key-create", &row, actor), pending)
            .await?;
        Ok(Created {
            id: minted.id,
            text: minted.text,
            row,
        })
    }

    /// Gives a key a new secret. The ones before end after `overlap` seconds; 0: at once.
    ///
    /// # Errors
    /// [`KeysFault`]; then nothing has changed.
    pub async fn rotate(
        &self,
        id_or_prefix: &str,
        overlap: u32,
        actor: &Actor,
    ) -> Result<Created, KeysFault> {
        if overlap > LONGEST_OVERLAP {
            return Err(KeysFault::Overlap);
        }
        let id = self.named(id_or_prefix).await?;
        let now = clock::seconds((self.clock)());
        let until = now.saturating_add(i64::from(overlap));
        let mut random = Zeroizing::new([0; 32]);
        rand::fill(random.as_mut()).map_err(|_unspecified| KeysFault::NoRandom)?;
        let minted = mint_again(id, &random);
        let digest: Digest = self.pepper.digest(&minted.text);
        let last4 = last_letters(&minted.text);
        let (row, pending) = self
            .store
            .add_secret(id, &digest, &last4, now, until)
            .await?
            .ok_or(KeysFault::IsRevoked(id))?;
        // A new secret is a key in hand: of no role that he couldn't have given.
        reaches(actor, &row.role)?;
        let mut record = self.act("key-rotate", &row, actor);
        if let Some(act) = record.act.as_mut().and_then(|act| act.as_object_mut()) {
            let _none = act.insert("old_until".to_owned(), clock::rfc3339_seconds(until).into());
        }
        self.record_then_commit(record, pending).await?;
        Ok(Created {
            id,
            text: minted.text,
            row,
        })
    }

    /// Recorded first: what has no record can't be; a record of what never came to be does no harm, and a second
    /// one says so.
    async fn record_then_commit(&self, record: Record, pending: Pending) -> Result<(), KeysFault> {
        audit_log::record(&self.audit, record.clone()).await?;
        if let Err(fault) = pending.commit().await {
            let mut failed = record;
            "failure".clone_into(&mut failed.outcome);
            failed.reason = Some("not-stored".to_owned());
            let told = audit_log::record(&self.audit, failed).await;
            tracing::warn!(
                told = told.is_ok(),
                "an act was recorded and then not stored"
            );
            return Err(fault.into());
        }
        if let Err(fault) = self.publisher.publish().await {
            // The next look at the store finds it; the act holds.
            tracing::warn!(%fault, "an act isn't seen by requests at once");
        }
        Ok(())
    }

    /// A key with its secrets and what it may do after all.
    ///
    /// # Errors
    /// [`KeysFault`].
    pub async fn show(&self, id_or_prefix: &str, roles: &Roles) -> Result<Shown, KeysFault> {
        let row = self.row(id_or_prefix).await?;
        let project = match &row.project {
            Some(name) => self.store.project(name).await?,
            None => None,
        };
        let own = project.as_ref().map(|project| &project.own);
        let policy = roles
            .get(&row.role)
            .map(|role| explain(role, own, Some(&row.own)));
        Ok(Shown {
            secrets: self.store.secrets_of(row.id).await?,
            policy: policy.unwrap_or_default(),
            project_disabled: project.is_some_and(|project| !project.enabled),
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
    pub async fn revoke(&self, id_or_prefix: &str, actor: &Actor) -> Result<Revoked, KeysFault> {
        let row = self.row(id_or_prefix).await?;
        reaches(actor, &row.role)?;
        let id = row.id;
        let now = clock::seconds((self.clock)());
        // A key of whatever role, unless he looks after some only: then of the one that was judged.
        let role = actor.roles().map(|_some| row.role.as_str());
        let (row, first) = match self.store.revoke(id, role, now).await? {
            Some(done) => done,
            None if role.is_some() => return Err(KeysFault::Changed),
            None => return Err(KeysFault::Unknown(id.to_string())),
        };
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

    /// Records that what a key used of its limits is forgotten, and how much that was.
    ///
    /// # Errors
    /// When it isn't recorded: then it must not be done.
    pub(crate) async fn note_reset(
        &self,
        row: &KeyRow,
        used: &impl serde::Serialize,
        actor: &Actor,
    ) -> Result<(), KeysFault> {
        reaches(actor, &row.role)?;
        let mut record = self.act("limits-reset", row, actor);
        if let Some(serde_json::Value::Object(act)) = &mut record.act {
            let _none = act.insert("used".to_owned(), json!(used));
        }
        audit_log::record(&self.audit, record)
            .await
            .map_err(|_unwritten| KeysFault::Unrecorded)
    }

    /// Records what nobody waits for; lost when the log can't take it, which the log says itself.
    pub(crate) fn note(&self, record: Record) {
        let entry = Entry {
            record,
            done: Box::new(|_written| ()),
        };
        if self.audit.try_send(entry).is_err() {
            tracing::warn!(
                "a refusal of the admin API isn't recorded: the audit log takes nothing"
            );
        }
    }

    /// What a request asked, so that it is known again: keyed, since it may hold secrets.
    pub(crate) fn digest_of_request(&self, parts: &[&[u8]]) -> [u8; 32] {
        // Begins with what no key does: no request is digested as a key is.
        let mut hash = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        for part in [b"request\n".as_slice()].iter().chain(parts) {
            hash.update(part);
        }
        *self.pepper.digest_of_sha256(hash.finish().as_ref()).bytes()
    }

    async fn named(&self, given: &str) -> Result<KeyId, KeysFault> {
        self.row(given).await.map(|row| row.id)
    }

    /// The key of this id, or the only one whose id begins so.
    pub(crate) async fn row(&self, given: &str) -> Result<KeyRow, KeysFault> {
        let letters = given.len() <= 12 && given.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !letters || given.len() < SHORTEST_PREFIX {
            return Err(KeysFault::NotAnId);
        }
        let mut found = self.store.keys_named(given, 4).await?;
        match (found.pop(), found.as_slice()) {
            (None, _) => Err(KeysFault::Unknown(given.to_owned())),
            (Some(one), []) => Ok(one),
            (Some(last), others) => Err(KeysFault::Ambiguous {
                given: given.to_owned(),
                found: joined(others.iter().chain([&last]).map(|row| row.id.to_string())),
            }),
        }
    }

    fn act(&self, action: &str, row: &KeyRow, actor: &Actor) -> Record {
        let mut record = audit_log::blank(&self.clock, action);
        actor.sign(&mut record);
        record.act = Some(json!({
            "id": row.id,
            "name": row.name,
            "role": row.role,
            "project": row.project,
            "expires_at": row.expires_at.map(clock::rfc3339_seconds),
            "own": row.own,
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

impl Keys {
    async fn check(&self, new: &NewKey, roles: &Roles, now: i64) -> Result<(), KeysFault> {
        check(new, roles, now)?;
        self.check_project(new).await
    }

    async fn check_project(&self, new: &NewKey) -> Result<(), KeysFault> {
        if let Some(project) = &new.project
            && self
                .store
                .project(project)
                .await?
                .is_none_or(|row| row.name != *project)
        {
            return Err(KeysFault::Project(project.clone()));
        }
        Ok(())
    }
}

fn row_of(new: NewKey, id: KeyId, last4: String, now: i64, actor: &Actor) -> KeyRow {
    KeyRow {
        id,
        name: new.name,
        role: new.role,
        project: new.project,
        created_at: now,
        not_before: new.not_before,
        expires_at: new.expires_at,
        revoked_at: None,
        rotated_at: now,
        last_used: None,
        created_by: actor.id().to_owned(),
        last4,
        own: new.own,
        notes: new.notes,
        version: 1,
    }
}

fn check(new: &NewKey, roles: &Roles, now: i64) -> Result<(), KeysFault> {
    check_name(&new.name, "name")?;
    if let Some(project) = &new.project {
        check_name(project, "project")?;
    }
    check_notes(&new.notes)?;
    check_own(&new.own)?;
    check_role(&new.role, roles)?;
    check_times(new.not_before, new.expires_at, Some(now))
}

/// Nobody gives what he doesn't hold.
fn reaches(actor: &Actor, role: &str) -> Result<(), KeysFault> {
    if actor.may_give(role) {
        return Ok(());
    }
    Err(KeysFault::NotYours {
        role: role.chars().take(64).collect(),
        may: joined(actor.roles().into_iter().flatten().cloned()),
    })
}

/// A project narrows the keys of every role: whoever looks after some roles only leaves it alone.
fn bears_on_all(actor: &Actor) -> Result<(), KeysFault> {
    match actor.roles() {
        None => Ok(()),
        Some(roles) => Err(KeysFault::NotAll {
            may: joined(roles.iter().cloned()),
        }),
    }
}

fn check_name(name: &str, what: &'static str) -> Result<(), KeysFault> {
    if is_name(name) {
        return Ok(());
    }
    Err(KeysFault::Name { what })
}

fn check_role(role: &str, roles: &Roles) -> Result<(), KeysFault> {
    if roles.contains_key(role) {
        return Ok(());
    }
    Err(KeysFault::Role {
        given: role.chars().take(64).collect(),
        known: joined(roles.keys().cloned()),
    })
}

/// `now`: an end that has passed is no end to give. `None`: it was given before.
fn check_times(from: Option<i64>, to: Option<i64>, now: Option<i64>) -> Result<(), KeysFault> {
    match (from, to) {
        (_, Some(at)) if now.is_some_and(|now| at <= now) => Err(KeysFault::Expiry {
            given: clock::rfc3339_seconds(at),
        }),
        (Some(from), Some(at)) if at <= from => Err(KeysFault::Never),
        (_, Some(_) | None) => Ok(()),
    }
}

fn check_notes(notes: &str) -> Result<(), KeysFault> {
    let bad = notes.chars().count() > 1000 || notes.chars().any(|c| c.is_control() && c != '\n');
    if bad {
        let why = "must be at most 1000 printable characters".to_owned();
        return Err(KeysFault::Own { what: "notes", why });
    }
    Ok(())
}

/// What can be shown in a list.
fn is_name(text: &str) -> bool {
    (1..=128).contains(&text.chars().count()) && text.trim() == text && !ident::hides(text)
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
/// 90 days.
const LONGEST_OVERLAP: u32 = 90 * 86_400;

#[cfg(test)]
mod tests;
