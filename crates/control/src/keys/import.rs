//! Foreign keys: those of a vLLM `--api-key` file, LiteLLM or One API, taken over so that no client changes.
//!
//! They come as text (once, over standard input) or as SHA-256 (no text at all) and are kept as ours are. A list is
//! taken whole or not at all; no message repeats a part of a key.

use aws_lc_rs::digest;
use rules::key::{Digest, KeyId};
use rules::snapshot::Roles;
use rules::token;
use serde_json::json;

use super::{Keys, KeysFault, NewKey, fresh, is_name, row_of};
use crate::actor::Actor;
use crate::audit_log;
use crate::clock;
use crate::store::{KeyRow, StoreFault};

/// How the keys of a list are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// The key itself.
    Plain,
    /// Its SHA-256, 64 hex digits.
    Sha256,
}

/// One foreign key: never its text.
#[derive(Clone, PartialEq, Eq)]
pub struct ForeignKey {
    /// SHA-256 of its text.
    pub sha256: [u8; 32],
    /// What it is called.
    pub name: Option<String>,
    /// The last four letters of its text, where it came as text.
    pub last4: Option<String>,
}

impl std::fmt::Debug for ForeignKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ForeignKey")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What was taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The keys as they are kept.
    pub rows: Vec<KeyRow>,
}

/// Reads a list: one key a line, then perhaps blanks and a name; empty lines and lines that begin with `#` aside.
///
/// # Errors
/// [`KeysFault::Import`] names the line.
pub fn read_list(text: &str, form: Foreign) -> Result<Vec<ForeignKey>, KeysFault> {
    let mut keys = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let fault = |why| KeysFault::Import {
            line: number.saturating_add(1),
            why,
        };
        let (key, name) = match line.split_once([' ', '\t']) {
            Some((key, name)) => (key, Some(name.trim().to_owned())),
            None => (line, None),
        };
        if name.as_deref().is_some_and(|name| !is_name(name)) {
            return Err(fault("the name isn't 1 to 128 printable characters"));
        }
        let (sha256, last4) = match form {
            Foreign::Sha256 => {
                let why = "a SHA-256 is 64 hex digits; for keys as text say --plain";
                (unhex(key).ok_or_else(|| fault(why))?, None)
            }
            Foreign::Plain => {
                if rules::key::is_admin(key) {
                    return Err(fault("this is an admin token, which is never a key"));
                }
                // What a header can carry and `authenticate` reads.
                let legal = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=:".contains(&b);
                if !(8..=longest(key)).contains(&key.len()) || !key.bytes().all(legal) {
                    return Err(fault(
                        "a key is 8 to 512 letters, digits or -._~+/=: without blanks",
                    ));
                }
                let mut sha256 = [0; 32];
                let hash = digest::digest(&digest::SHA256, key.as_bytes());
                for (to, from) in sha256.iter_mut().zip(hash.as_ref()) {
                    *to = *from;
                }
                (sha256, Some(super::last_letters(key)))
            }
        };
        keys.push(ForeignKey {
            sha256,
            name,
            last4,
        });
    }
    if keys.is_empty() {
        return Err(KeysFault::Import {
            line: 1,
            why: "there is no key in the list",
        });
    }
    if keys.len() > MOST {
        return Err(KeysFault::Import {
            line: MOST,
            why: "there are more than 10000 keys; import them in parts",
        });
    }
    Ok(keys)
}

/// As long as requests may bring them.
fn longest(key: &str) -> usize {
    if token::has_form(key) {
        token::LONGEST
    } else {
        512
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (to, pair) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
        *to = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

impl Keys {
    /// Takes foreign keys over, all or none. `like` says role, project, limits and the name of those without one.
    ///
    /// # Errors
    /// [`KeysFault`]; then none was taken.
    pub async fn import(
        &self,
        keys: Vec<ForeignKey>,
        like: NewKey,
        roles: &Roles,
        actor: &Actor,
    ) -> Result<Imported, KeysFault> {
        let now = clock::seconds((self.clock)());
        self.check(&like, roles, now).await?;
        super::reaches(actor, &like.role)?;
        let mut new: Vec<(KeyRow, Digest)> = Vec::with_capacity(keys.len());
        for key in keys {
            // Only the id is ours; the text stays theirs.
            let id: KeyId = fresh()?.id;
            let each = NewKey {
                name: key.name.unwrap_or_else(|| like.name.clone()),
                ..like.clone()
            };
            let last4 = key.last4.unwrap_or_default();
            let digest = self.pepper.digest_of_sha256(&key.sha256);
            new.push((row_of(each, id, last4, now, actor), digest));
        }
        let pending = self
            .store
            .add_keys(&new)
            .await
            .map_err(|fault| match fault {
                StoreFault::Taken => KeysFault::Import {
                    line: 1,
                    why: "a key of the list is here already, or stands in it twice",
                },
                other => other.into(),
            })?;
        let rows: Vec<KeyRow> = new.into_iter().map(|(row, _)| row).collect();
        let mut record = audit_log::blank(&self.clock, "key-import");
        actor.sign(&mut record);
        let ids: Vec<&KeyId> = rows.iter().map(|row| &row.id).collect();
        record.act = Some(json!({ "ids": ids, "role": like.role, "project": like.project }));
        self.record_then_commit(record, pending).await?;
        Ok(Imported { rows })
    }
}

/// Keys of one list: one audit record names them all.
const MOST: usize = 10_000;
