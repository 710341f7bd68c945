//! Callers with a token of an identity provider: whose it is, whether its keys signed it, what it gives.
//!
//! The keys of issuers are published by whoever fetches them (`control`, joined by `guan::wiring`); what claims give
//! is `rules::token`'s to say. Signatures are checked off the core that owns streams, a few at a time; what was
//! verified is remembered, in a bounded table, until the token ends or its issuer's keys or rules change. Called by
//! `authenticate`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rules::chain;
use rules::key::Digest;
use rules::policy::effective;
use rules::refusal::{Refusal, Unadmitted, Untrusted};
use rules::snapshot::Key;
use rules::token::key_set::KeySet;
use rules::token::{Admitted, Issuer, Looked, Token};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::check::authenticate::Caller;
use crate::settings::Settings;
use crate::state::Gateway;

/// A question to whoever fetches keys: has this issuer new ones? Dropped unanswered: too many ask.
pub type Question = (Arc<str>, oneshot::Sender<Looked>);

/// The longest wait for an issuer: five seconds for its turn, two documents, five seconds each.
const LOOK: Duration = Duration::from_secs(16);

/// Tables of verified tokens, each under a lock of its own.
const SHARDS: usize = 16;

/// Verified tokens in one of them.
const MOST_IN_SHARD: usize = 1024;

/// Tokens that may wait for a thread that verifies them.
const MOST_WAITING: usize = 1024;

/// The same from addresses that have guessed too often.
const MOST_BEHIND: usize = 64;

/// The keys of one issuer.
#[derive(Clone, Debug)]
struct Published {
    keys: Arc<KeySet>,
    fetched_ns: u64,
}

/// The keys of all issuers, and what was verified by them.
#[derive(Debug)]
pub struct Issuers {
    published: ArcSwap<HashMap<Arc<str>, Published>>,
    questions: mpsc::Sender<Question>,
    verified: [Mutex<HashMap<Digest, Verified>>; SHARDS],
    /// For those whose address may still guess; [`Issuers::behind`] is for the others.
    threads: Lane,
    behind: Lane,
}

/// Threads that verify, and who may wait for one.
#[derive(Debug)]
struct Lane {
    threads: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    most_waiting: usize,
}

/// A token that was verified by these keys and judged by these rules.
#[derive(Clone, Debug)]
struct Verified {
    issuer: Arc<Issuer>,
    keys: Arc<KeySet>,
    key: Arc<Key>,
    identity: Arc<chain::Identity>,
    until: i64,
}

impl Issuers {
    /// Joins the channel to whoever fetches keys.
    #[must_use]
    pub fn new(questions: mpsc::Sender<Question>) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            published: ArcSwap::default(),
            questions,
            verified: std::array::from_fn(|_| Mutex::default()),
            threads: Lane::new(threads, MOST_WAITING),
            behind: Lane::new(1, MOST_BEHIND),
        }
    }

    /// These keys were fetched at `now` (nanoseconds since 1970); `None`: those of before no longer count.
    pub fn publish(&self, issuer: &str, keys: Option<Arc<KeySet>>, now: u64) {
        self.published.rcu(|before| {
            let mut next = HashMap::clone(before);
            match &keys {
                Some(keys) => {
                    let published = Published {
                        keys: Arc::clone(keys),
                        fetched_ns: now,
                    };
                    let _before = next.insert(issuer.into(), published);
                }
                None => {
                    let _gone = next.remove(issuer);
                }
            }
            next
        });
    }

    /// An issuer's keys, as long as they are good.
    fn keys(&self, issuer: &Issuer, now: u64) -> Option<Arc<KeySet>> {
        let published = self.published.load();
        let one = published.get(&issuer.url)?;
        let age = now.saturating_sub(one.fetched_ns);
        (age <= issuer.keys_max_stale).then(|| Arc::clone(&one.keys))
    }

    /// Waits for a look at the issuer.
    async fn look(&self, issuer: &Issuer) -> Result<Looked, Refusal> {
        let (answer, answered) = oneshot::channel();
        let question = (Arc::clone(&issuer.url), answer);
        if self.questions.try_send(question).is_err() {
            return Err(Refusal::Busy);
        }
        match tokio::time::timeout(LOOK, answered).await {
            Ok(Ok(looked)) => Ok(looked),
            Ok(Err(_unanswered)) => Err(Refusal::Busy),
            Err(_elapsed) => Ok(Looked::Away),
        }
    }

    fn shard(&self, digest: &Digest) -> &Mutex<HashMap<Digest, Verified>> {
        let [first, ..] = digest.bytes();
        let [other, ..] = &self.verified;
        self.verified
            .get(usize::from(*first) % SHARDS)
            .unwrap_or(other)
    }

    fn recall(&self, digest: &Digest) -> Option<Verified> {
        let shard = self.shard(digest).lock();
        shard
            .unwrap_or_else(PoisonError::into_inner)
            .get(digest)
            .cloned()
    }

    fn remember(&self, digest: Digest, verified: Verified, now: i64) {
        let shard = self.shard(&digest).lock();
        let mut shard = shard.unwrap_or_else(PoisonError::into_inner);
        if shard.len() >= MOST_IN_SHARD {
            shard.retain(|_, one| one.until > now);
        }
        if shard.len() >= MOST_IN_SHARD {
            // All are good: any of them is verified again when it comes back. Nobody can choose which.
            let any = shard.keys().next().copied();
            if let Some(any) = any {
                let _forgotten = shard.remove(&any);
            }
        }
        let _before = shard.insert(digest, verified);
    }

    fn forget(&self, digest: &Digest) {
        let shard = self.shard(digest).lock();
        let _gone = shard.unwrap_or_else(PoisonError::into_inner).remove(digest);
    }

    /// Checks the signature on a thread that has no streams.
    async fn verify(
        &self,
        token: &Arc<Token>,
        issuer: &Arc<Issuer>,
        keys: &Arc<KeySet>,
        is_behind: bool,
    ) -> Result<(), Refusal> {
        let lane = if is_behind {
            &self.behind
        } else {
            &self.threads
        };
        let place = Waiting::take(lane)?;
        let Ok(thread) = Arc::clone(&lane.threads).acquire_owned().await else {
            return Err(Refusal::Internal);
        };
        let (token, issuer, keys) = (Arc::clone(token), Arc::clone(issuer), Arc::clone(keys));
        tokio::task::spawn_blocking(move || {
            // They go with the work: whoever hangs up doesn't make room for more of it.
            let _taken = (place, thread);
            token.verify(&issuer, &keys)
        })
        .await
        .map_err(|_panic| Refusal::Internal)?
        .map_err(Refusal::BadToken)
    }
}

impl Lane {
    fn new(threads: usize, most_waiting: usize) -> Self {
        Self {
            threads: Arc::new(Semaphore::new(threads)),
            waiting: Arc::default(),
            most_waiting,
        }
    }
}

/// A place among those that wait for a thread; given back on drop.
struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    fn take(lane: &Lane) -> Result<Self, Refusal> {
        let place = Self(Arc::clone(&lane.waiting));
        if place.0.fetch_add(1, Ordering::Relaxed) >= lane.most_waiting {
            return Err(Refusal::Busy);
        }
        Ok(place)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The caller of a token. `None`: the text isn't a token.
pub(crate) async fn admit(
    gateway: &Gateway,
    settings: &Settings,
    (text, digest): (&str, &Digest),
    address: IpAddr,
    may_guess: Result<(), Refusal>,
) -> Option<Result<Caller, Refusal>> {
    let issuers = &gateway.issuers;
    if let Some(verified) = issuers.recall(digest) {
        if verified.holds(gateway, settings) {
            return Some(caller(gateway, settings, &verified, address));
        }
        issuers.forget(digest);
    }
    let token = match Token::read(text)? {
        Ok(token) => Arc::new(token),
        Err(why) => return Some(Err(Refusal::BadToken(why))),
    };
    let issuer = token
        .issuer()
        .and_then(|issuer| settings.issuers.get(issuer));
    let Some(issuer) = issuer else {
        return Some(Err(Refusal::BadToken(Untrusted::UnknownIssuer)));
    };
    let judged = async {
        let (keys, admitted) = judge(gateway, &token, issuer, may_guess).await?;
        let verified = Verified::new(gateway, issuer, keys, admitted);
        issuers.remember(*digest, verified.clone(), gateway.clock.unix_seconds());
        caller(gateway, settings, &verified, address)
    };
    Some(judged.await)
}

/// Verifies a token, by new keys of its issuer if the known ones don't have its own. An address that has guessed too
/// often is verified behind the others, and brings no look.
async fn judge(
    gateway: &Gateway,
    token: &Arc<Token>,
    issuer: &Arc<Issuer>,
    may_guess: Result<(), Refusal>,
) -> Result<(Arc<KeySet>, Admitted), Refusal> {
    let issuers = &gateway.issuers;
    let is_behind = may_guess.is_err();
    let mut looks = 0;
    let keys = loop {
        let known = issuers.keys(issuer, gateway.clock.unix_ns());
        let verdict = match &known {
            Some(keys) => issuers.verify(token, issuer, keys, is_behind).await,
            None => Err(Refusal::IssuerUnavailable),
        };
        let fault = match (verdict, known) {
            (Ok(()), Some(keys)) => break keys,
            (Ok(()), None) => Refusal::IssuerUnavailable,
            (Err(fault), _) => fault,
        };
        let is_new = matches!(
            fault,
            Refusal::BadToken(Untrusted::UnknownKey) | Refusal::IssuerUnavailable
        );
        if !is_new || looks == MOST_LOOKS {
            return Err(fault);
        }
        may_guess.clone()?;
        looks = match issuers.look(issuer).await? {
            Looked::Fresh => MOST_LOOKS,
            Looked::Joined => looks + 1,
            Looked::Away => return Err(Refusal::IssuerUnavailable),
        };
    };
    let admitted = token.admit(issuer, gateway.clock.unix_seconds())?;
    Ok((keys, admitted))
}

/// One that was on its way already, and one of its own.
const MOST_LOOKS: u8 = 2;

impl Verified {
    fn new(gateway: &Gateway, issuer: &Arc<Issuer>, keys: Arc<KeySet>, admitted: Admitted) -> Self {
        let identity = chain::Identity {
            issuer: Some(issuer.url.to_string()),
            subject: Some(admitted.subject.clone()),
            ..chain::Identity::default()
        };
        let words = ["token", &issuer.url, &admitted.subject];
        Self {
            issuer: Arc::clone(issuer),
            keys,
            key: Arc::new(Key {
                id: gateway.pepper.caller_id(&words),
                name: admitted.subject.into(),
                role: admitted.role,
                project: admitted.project,
                not_before: None,
                expires_at: None,
                revoked: false,
                own: None,
            }),
            identity: Arc::new(identity),
            until: admitted.until,
        }
    }

    /// Whether nothing has changed that it was judged by.
    fn holds(&self, gateway: &Gateway, settings: &Settings) -> bool {
        let same_rules = settings
            .issuers
            .get(&*self.issuer.url)
            .is_some_and(|issuer| Arc::ptr_eq(issuer, &self.issuer));
        let keys = gateway.issuers.keys(&self.issuer, gateway.clock.unix_ns());
        same_rules
            && keys.is_some_and(|keys| Arc::ptr_eq(&keys, &self.keys))
            && self.until > gateway.clock.unix_seconds()
    }
}

/// What the caller may do now: his role and his project may have changed since his token was verified.
fn caller(
    gateway: &Gateway,
    settings: &Settings,
    verified: &Verified,
    address: IpAddr,
) -> Result<Caller, Refusal> {
    let identity = Arc::clone(&verified.identity);
    Caller::vouched_for(gateway, settings, &verified.key, identity, address).map_err(|why| {
        // Whoever holds a stolen token elsewhere learns nothing of it.
        if why == Unadmitted::ForeignAddress {
            Refusal::BadToken(Untrusted::ForeignAddress)
        } else {
            Refusal::NotAdmitted(why)
        }
    })
}

impl Caller {
    /// A caller who is vouched for by somebody else, by his role and his project as they are now.
    pub(crate) fn vouched_for(
        gateway: &Gateway,
        settings: &Settings,
        key: &Arc<Key>,
        identity: Arc<chain::Identity>,
        address: IpAddr,
    ) -> Result<Self, Unadmitted> {
        let role = settings.roles.get(&*key.role).ok_or(Unadmitted::NoRole)?;
        let keys = gateway.keys.load();
        let project = match &key.project {
            Some(name) => Some(keys.admit(name, address)?),
            None => None,
        };
        Ok(Self {
            policy: effective(role, project, None),
            key: Arc::clone(key),
            proof: None,
            identity: Some(identity),
        })
    }
}
