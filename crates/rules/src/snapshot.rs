//! What requests read and never lock: an immutable view of keys and roles, swapped whole.
//!
//! `control` builds the keys, `guan` the roles; the gateway reads both. A look-up is a hash map, never a query.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::key::{Digest, KeyId};
use crate::policy::Role;

/// One key, as requests see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its public name.
    pub id: KeyId,
    /// What its owner calls it.
    pub name: Arc<str>,
    /// Its role: a name in the config file. A key whose role doesn't exist may do nothing.
    pub role: Arc<str>,
    /// Who pays.
    pub project: Option<Arc<str>>,
    /// Seconds since 1970, from which it is no longer valid.
    pub expires_at: Option<i64>,
    /// Taken back: kept so that audit can tell a revoked key from an unknown one.
    pub revoked: bool,
}

/// All keys at one moment.
#[derive(Debug, Default)]
pub struct Keys {
    by_digest: HashMap<Digest, Arc<Key>>,
}

impl Keys {
    /// From the store's rows.
    #[must_use]
    pub fn new(keys: impl IntoIterator<Item = (Digest, Key)>) -> Self {
        Self {
            by_digest: keys
                .into_iter()
                .map(|(d, key)| (d, Arc::new(key)))
                .collect(),
        }
    }

    /// The key with this digest, revoked or expired ones too.
    #[must_use]
    pub fn find(&self, digest: &Digest) -> Option<&Arc<Key>> {
        self.by_digest.get(digest)
    }

    /// The key with this id: a search over all, for the rare act only.
    #[must_use]
    pub fn by_id(&self, id: KeyId) -> Option<&Arc<Key>> {
        self.by_digest.values().find(|key| key.id == id)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_digest.len()
    }

    /// Whether there is none: then nothing is answered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_digest.is_empty()
    }
}

/// The roles of the config file.
pub type Roles = BTreeMap<String, Role>;
