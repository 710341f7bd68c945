//! What requests read and never lock: an immutable view of keys, projects and roles, swapped whole.
//!
//! `control` builds keys and projects, `guan` the roles; the gateway reads them. A look-up is a short search in
//! memory, never a query. Keys lie in shards, so that a change copies the shards it touches and shares the rest, and
//! a million keys take less than 300 bytes each.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::key::{Digest, KeyId};
use crate::policy::{Own, Role};
use crate::refusal::{Unadmitted, Unfit};

/// One key, as requests see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its public name.
    pub id: KeyId,
    /// What its owner calls it.
    pub name: Arc<str>,
    /// Its role: a name in the config file. A key whose role doesn't exist may do nothing.
    pub role: Arc<str>,
    /// Who pays: the name of a [`Project`].
    pub project: Option<Arc<str>>,
    /// Seconds since 1970, before which it isn't valid yet.
    pub not_before: Option<i64>,
    /// Seconds since 1970, from which it is no longer valid.
    pub expires_at: Option<i64>,
    /// Taken back: kept so that audit can tell a revoked key from an unknown one.
    pub revoked: bool,
    /// What it narrows; `None`: nothing.
    pub own: Option<Arc<Own>>,
}

/// Who pays, as requests see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    /// Keys of a disabled one are refused.
    pub enabled: bool,
    /// What it narrows for all its keys.
    pub own: Own,
}

/// All projects by name.
pub type Projects = HashMap<Arc<str>, Project>;

/// One secret of a key: during a rotation's overlap a key has two.
#[derive(Clone, Debug)]
pub struct Secret {
    /// What it is found by.
    pub digest: Digest,
    /// The key.
    pub key: Arc<Key>,
    /// Seconds since 1970, from which this secret is no longer valid; `i64::MAX`: as long as the key is.
    pub until: i64,
}

/// A key that is not valid now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// The caller isn't told why.
    Unfit(Unfit),
    /// It was valid once: the caller may know.
    Expired,
}

/// All keys at one moment.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// None, or [`SHARDS`] of them, each sorted by digest. Digests are spread evenly: nobody can choose one.
    shards: Vec<Arc<[Secret]>>,
    projects: Arc<Projects>,
}

impl Keys {
    /// This view with these secrets in place of those of the same digest, or added.
    #[must_use]
    pub fn with(&self, secrets: impl IntoIterator<Item = Secret>) -> Self {
        let mut touched: BTreeMap<usize, Vec<Secret>> = BTreeMap::new();
        for secret in secrets {
            touched
                .entry(shard_of(&secret.digest))
                .or_default()
                .push(secret);
        }
        let mut shards = self.shards.clone();
        if shards.is_empty() && !touched.is_empty() {
            let empty: Arc<[Secret]> = Arc::new([]);
            shards.resize(SHARDS, empty);
        }
        for (number, mut new) in touched {
            let Some(shard) = shards.get_mut(number) else {
                continue;
            };
            // Stable, and the last of equals stays: what came later is newer.
            new.reverse();
            new.sort_by(|a, b| a.digest.bytes().cmp(b.digest.bytes()));
            new.dedup_by(|later, first| later.digest == first.digest);
            let replaced = |old: &&Secret| search(&new, &old.digest).is_none();
            let mut merged: Vec<Secret> = shard.iter().filter(replaced).cloned().collect();
            merged.append(&mut new);
            merged.sort_unstable_by(|a, b| a.digest.bytes().cmp(b.digest.bytes()));
            *shard = merged.into();
        }
        Self {
            shards,
            projects: Arc::clone(&self.projects),
        }
    }

    /// This view with other projects.
    #[must_use]
    pub fn with_projects(self, projects: Projects) -> Self {
        Self {
            projects: Arc::new(projects),
            ..self
        }
    }

    /// The secret with this digest, whether or not it is valid.
    #[must_use]
    pub fn find(&self, digest: &Digest) -> Option<&Secret> {
        search(self.shards.get(shard_of(digest))?, digest)
    }

    /// The secret with this digest if its key is valid at `now` (seconds since 1970) for a caller at `address`, and what its
    /// project narrows.
    ///
    /// # Errors
    /// [`Invalid`]: why it isn't.
    pub fn judge(
        &self,
        digest: &Digest,
        now: i64,
        address: IpAddr,
    ) -> Result<(&Secret, Option<&Own>), Invalid> {
        let unfit = |why| Err(Invalid::Unfit(why));
        let Some(secret) = self.find(digest) else {
            return unfit(Unfit::Unknown);
        };
        let Secret { key, until, .. } = secret;
        if key.revoked {
            return unfit(Unfit::Revoked);
        }
        if *until <= now {
            return unfit(Unfit::Rotated);
        }
        // Before the expiry, which is told: who holds a stolen key elsewhere learns nothing of it.
        let project = key
            .project
            .as_ref()
            .and_then(|name| self.projects.get(name));
        let owns = [key.own.as_deref(), project.map(|project| &project.own)];
        let lists = owns
            .into_iter()
            .flatten()
            .filter_map(|own| own.addresses.as_ref());
        for list in lists {
            if !list.iter().any(|network| network.contains(address)) {
                return unfit(Unfit::ForeignAddress);
            }
        }
        if key.not_before.is_some_and(|at| now < at) {
            return unfit(Unfit::NotYetValid);
        }
        if key.expires_at.is_some_and(|at| at <= now) {
            return Err(Invalid::Expired);
        }
        if project.is_some_and(|project| !project.enabled) {
            return unfit(Unfit::ProjectDisabled);
        }
        Ok((secret, project.map(|project| &project.own)))
    }

    /// Why what a running call began with was taken back since, if it was: its key revoked, its secret replaced before
    /// its time (`until` as it was then), or its project disabled. What ends by itself takes nothing back.
    #[must_use]
    pub fn taken_back(&self, digest: &Digest, until: i64, now: i64) -> Option<Unfit> {
        let Some(secret) = self.find(digest) else {
            return Some(Unfit::Unknown);
        };
        let project = secret.key.project.as_ref();
        let project = project.and_then(|name| self.projects.get(name));
        if secret.key.revoked {
            Some(Unfit::Revoked)
        } else if secret.until < until && secret.until <= now {
            Some(Unfit::Rotated)
        } else if project.is_some_and(|project| !project.enabled) {
            Some(Unfit::ProjectDisabled)
        } else {
            None
        }
    }

    /// The project of this name.
    #[must_use]
    pub fn project(&self, name: &str) -> Option<&Project> {
        self.projects.get(name)
    }

    /// What a project narrows for a caller at `address` who has no key of ours. Unlike a key's, this project must
    /// exist: nobody checked its name when it was written down.
    ///
    /// # Errors
    /// Why its callers are refused.
    pub fn admit(&self, project: &str, address: IpAddr) -> Result<&Own, Unadmitted> {
        let project = self.projects.get(project).ok_or(Unadmitted::NoProject)?;
        let list = project.own.addresses.as_ref();
        if list.is_some_and(|list| !list.iter().any(|network| network.contains(address))) {
            return Err(Unadmitted::ForeignAddress);
        }
        if !project.enabled {
            return Err(Unadmitted::ProjectDisabled);
        }
        Ok(&project.own)
    }

    /// All keys by id: a walk over all, for rare acts only.
    #[must_use]
    pub fn by_id(&self) -> HashMap<KeyId, Arc<Key>> {
        self.secrets()
            .map(|secret| (secret.key.id, Arc::clone(&secret.key)))
            .collect()
    }

    fn secrets(&self) -> impl Iterator<Item = &Secret> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }

    /// How many secrets there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.len()).sum()
    }

    /// Whether there is none: then nothing is answered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn shard_of(digest: &Digest) -> usize {
    let [high, low, ..] = *digest.bytes();
    usize::from(u16::from_be_bytes([high, low]) >> 4)
}

fn search<'s>(sorted: &'s [Secret], digest: &Digest) -> Option<&'s Secret> {
    let at = sorted
        .binary_search_by(|secret| secret.digest.bytes().cmp(digest.bytes()))
        .ok()?;
    sorted.get(at)
}

/// Twelve bits: a million keys are 244 a shard.
const SHARDS: usize = 4096;

/// The roles of the config file.
pub type Roles = BTreeMap<String, Role>;

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u32) -> Digest {
        let mut bytes = [0; 32];
        // Spread over the shards, and many in one.
        for (to, from) in bytes
            .iter_mut()
            .zip(n.wrapping_mul(2_654_435_761).to_be_bytes())
        {
            *to = from;
        }
        Digest::from_bytes(bytes)
    }

    fn key(id: &str) -> Key {
        Key {
            id: KeyId::parse(id).unwrap(),
            name: "k".into(),
            role: "user".into(),
            project: None,
            not_before: None,
            expires_at: None,
            revoked: false,
            own: None,
        }
    }

    fn secret(n: u32, key: Key) -> Secret {
        Secret {
            digest: digest(n),
            key: Arc::new(key),
            until: i64::MAX,
        }
    }

    fn here() -> IpAddr {
        [127, 0, 0, 1].into()
    }

    #[test]
    fn what_is_put_in_is_found_and_a_change_touches_nothing_else() {
        let base = key("abcdefghijkl");
        let keys = Keys::default().with((0..20_000).map(|n| secret(n, base.clone())));
        assert_eq!(keys.len(), 20_000);
        assert!((0..20_000).all(|n| keys.judge(&digest(n), 0, here()).is_ok()));
        assert!(keys.find(&digest(20_000)).is_none());
        let revoked = Key {
            revoked: true,
            ..base
        };
        let next = keys.with([secret(7, revoked), secret(20_000, key("abcdefghijkm"))]);
        assert_eq!((keys.len(), next.len()), (20_000, 20_001));
        assert!(keys.judge(&digest(7), 0, here()).is_ok());
        let unfit = next.judge(&digest(7), 0, here()).unwrap_err();
        assert_eq!(unfit, Invalid::Unfit(Unfit::Revoked));
        assert!((8..20_001).all(|n| next.judge(&digest(n), 0, here()).is_ok()));
        assert_eq!(next.by_id().len(), 2);
    }

    #[test]
    fn a_key_is_valid_in_its_time_at_its_place_for_a_project_that_is_enabled() {
        let own = |text: &str| Own {
            addresses: Some(Arc::new([text.parse().unwrap()])),
            ..Own::default()
        };
        let project = |enabled, text| Project {
            enabled,
            own: own(text),
        };
        let told = Key {
            not_before: Some(10),
            expires_at: Some(20),
            own: Some(Arc::new(own("127.0.0.0/8"))),
            project: Some("p".into()),
            ..key("abcdefghijkl")
        };
        let with = |project| {
            Keys::default()
                .with([
                    secret(1, told.clone()),
                    Secret {
                        until: 15,
                        ..secret(2, told.clone())
                    },
                ])
                .with_projects(Projects::from([("p".into(), project)]))
        };
        let keys = with(project(true, "0.0.0.0/0"));
        let mapped: IpAddr = "::ffff:127.0.0.1".parse().unwrap();
        for (n, now, address, why) in [
            (1, 10, here(), None),
            (1, 19, mapped, None),
            (1, 9, here(), Some(Invalid::Unfit(Unfit::NotYetValid))),
            (1, 20, here(), Some(Invalid::Expired)),
            (
                1,
                20,
                [10, 0, 0, 1].into(),
                Some(Invalid::Unfit(Unfit::ForeignAddress)),
            ),
            (2, 14, here(), None),
            (2, 15, here(), Some(Invalid::Unfit(Unfit::Rotated))),
            (3, 15, here(), Some(Invalid::Unfit(Unfit::Unknown))),
        ] {
            assert_eq!(
                keys.judge(&digest(n), now, address).err(),
                why,
                "{n} at {now}"
            );
        }
        let disabled = with(project(false, "0.0.0.0/0"))
            .judge(&digest(1), 10, here())
            .err();
        assert_eq!(disabled, Some(Invalid::Unfit(Unfit::ProjectDisabled)));
        let elsewhere = with(project(true, "10.0.0.0/8"))
            .judge(&digest(1), 10, here())
            .err();
        assert_eq!(elsewhere, Some(Invalid::Unfit(Unfit::ForeignAddress)));
        // Who has no key of ours needs a project that is there.
        let open = with(project(true, "127.0.0.0/8"));
        assert!(open.admit("p", here()).is_ok());
        assert_eq!(open.admit("q", here()), Err(Unadmitted::NoProject));
        let away = [10, 0, 0, 1].into();
        assert_eq!(open.admit("p", away), Err(Unadmitted::ForeignAddress));
        let closed = with(project(false, "0.0.0.0/0"));
        assert_eq!(closed.admit("p", here()), Err(Unadmitted::ProjectDisabled));
    }
}
