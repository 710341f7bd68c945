//! What each caller holds on this node besides his limits: calls whose bodies are coming, bytes of bodies, and how
//! often he was refused. In shards, each decision under one short lock.
//!
//! Keyed by callers whose credential is valid; before a shard grows, meters that are as good as new are forgotten, so
//! that it holds those who called lately, however many subjects an issuer has.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rules::limit::{CallerId, Cell, Class, Denied, Limit, Scope};
use rules::policy::Policy;
use rules::refusal::Refusal;

const SHARDS: usize = 16;

/// How many refused calls a caller may make for each call of its rate.
const REFUSALS_FOR_EACH_CALL: u32 = 10;

/// Calls of one key whose bodies may be coming at the same time.
const MOST_ARRIVING: u32 = 256;

/// The meters of all callers.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    shards: [Arc<Shard>; SHARDS],
}

type Shard = Mutex<HashMap<CallerId, Meter>>;

#[derive(Debug, Default)]
struct Meter {
    refusals: Option<Cell>,
    arriving: u32,
    body_bytes: u64,
}

impl Meter {
    /// Whether nothing is held and no refusal counts any more.
    fn is_new(&mut self, now: u64) -> bool {
        // What drains away does so at one pace, whatever the rate it was taken at.
        let any = Limit::per_minute(1);
        let refusals = self.refusals.as_mut();
        self.arriving == 0 && self.body_bytes == 0 && refusals.is_none_or(|c| c.is_idle(now, &any))
    }
}

/// A place among a caller's calls whose body is still coming; given back on drop.
#[derive(Debug)]
pub(crate) struct Arriving {
    shard: Arc<Shard>,
    key: CallerId,
}

impl Drop for Arriving {
    fn drop(&mut self) {
        with(&self.shard, self.key, |meter| {
            meter.arriving = meter.arriving.saturating_sub(1);
        });
    }
}

/// Bytes of request bodies that a caller holds in memory; given back on drop.
#[derive(Debug)]
pub(crate) struct BodyShare {
    shard: Arc<Shard>,
    key: CallerId,
    bytes: u64,
}

impl BodyShare {
    /// Takes `more` bytes if the key then holds at most `most`.
    pub(crate) fn grow(&mut self, more: u64, most: u64) -> bool {
        let fits = with(&self.shard, self.key, |meter| {
            let after = meter.body_bytes.saturating_add(more);
            let fits = after <= most;
            if fits {
                meter.body_bytes = after;
            }
            fits
        });
        if fits {
            self.bytes = self.bytes.saturating_add(more);
        }
        fits
    }
}

impl Drop for BodyShare {
    fn drop(&mut self) {
        let bytes = self.bytes;
        with(&self.shard, self.key, |meter| {
            meter.body_bytes = meter.body_bytes.saturating_sub(bytes);
        });
    }
}

impl Meters {
    /// Refuses who was refused too often, from the headers alone.
    ///
    /// # Errors
    /// [`Refusal::TooManyRefusals`].
    pub(crate) fn look(&self, key: CallerId, policy: &Policy, now: u64) -> Result<(), Refusal> {
        let rate = refusal_rate(policy);
        make_room(self.shard(key), key, now);
        with(self.shard(key), key, |meter| {
            let Some(cell) = &meter.refusals else {
                return Ok(());
            };
            // Taken from a copy: only refusals count.
            cell.clone()
                .take(now, &rate, 1)
                .map_err(|wait| Refusal::TooManyRefusals {
                    retry: Duration::from_micros(wait),
                })
        })
    }

    /// Takes a place among the caller's calls that arrive: bodies that never come can't use up the node.
    ///
    /// # Errors
    /// [`MOST_ARRIVING`] are coming already.
    pub(crate) fn arrive(&self, key: CallerId) -> Result<Arriving, Refusal> {
        let shard = self.shard(key);
        let free = with(shard, key, |meter| {
            let free = meter.arriving < MOST_ARRIVING;
            meter.arriving = meter.arriving.saturating_add(u32::from(free));
            free
        });
        if free {
            Ok(Arriving {
                shard: Arc::clone(shard),
                key,
            })
        } else {
            let most = u64::from(MOST_ARRIVING);
            Err(Refusal::Limit(Denied {
                class: Class::Key,
                limit: Limit::running(most),
                asked: 1,
                used: most,
                retry: Duration::from_secs(1),
            }))
        }
    }

    /// Counts a call that was refused after its caller was known.
    pub(crate) fn refused(&self, key: CallerId, policy: &Policy, now: u64) {
        let rate = refusal_rate(policy);
        with(self.shard(key), key, |meter| {
            let cell = meter.refusals.get_or_insert_with(|| Cell::new(&rate));
            // Whether it fits was asked in `look`; here it is only counted.
            cell.take(now, &rate, 1).ok();
        });
    }

    /// An empty share of body memory.
    pub(crate) fn body_share(&self, key: CallerId) -> BodyShare {
        BodyShare {
            shard: Arc::clone(self.shard(key)),
            key,
            bytes: 0,
        }
    }

    fn shard(&self, key: CallerId) -> &Arc<Shard> {
        let number = Scope::caller(key).spread() % (SHARDS as u64);
        let [first, ..] = &self.shards;
        let place = usize::try_from(number).unwrap_or(0);
        self.shards.get(place).unwrap_or(first)
    }
}

fn with<T>(shard: &Shard, key: CallerId, decide: impl FnOnce(&mut Meter) -> T) -> T {
    // A panic elsewhere can't leave a meter half changed: each decision is a few assignments.
    let mut meters = shard.lock().unwrap_or_else(PoisonError::into_inner);
    decide(meters.entry(key).or_default())
}

/// Forgets meters that say nothing any more, if the table is full and this caller isn't in it. A table that stays more
/// than half full doubles, so that walks over it stay rare.
fn make_room(shard: &Shard, key: CallerId, now: u64) {
    let mut meters = shard.lock().unwrap_or_else(PoisonError::into_inner);
    if meters.len() < meters.capacity() || meters.contains_key(&key) {
        return;
    }
    meters.retain(|_, meter| !meter.is_new(now));
    let kept = meters.len();
    if kept > meters.capacity() / 2 {
        meters.reserve(kept);
    }
}

fn refusal_rate(policy: &Policy) -> Limit {
    let rate = policy
        .requests_per_minute
        .saturating_mul(REFUSALS_FOR_EACH_CALL);
    Limit::per_minute(rate.into())
}

#[cfg(test)]
mod tests {
    use rules::key::KeyId;
    use rules::policy::{Role, effective};

    use super::*;

    const S: u64 = 1_000_000;

    #[test]
    fn refused_calls_have_a_bucket_of_their_own() {
        let role = Role::defaults().remove("user").unwrap();
        let policy = effective(&role, None, None);
        let key = KeyId::parse("abcdefghijkl").unwrap().into();
        let meters = Meters::default();
        for _ in 0..100 {
            meters.look(key, &policy, S).unwrap();
            meters.refused(key, &policy, S);
        }
        assert!(matches!(
            meters.look(key, &policy, S),
            Err(Refusal::TooManyRefusals { .. })
        ));
        assert!(meters.look(key, &policy, 2 * S).is_ok());
    }

    #[test]
    fn callers_that_come_once_leave_little_behind_and_who_holds_something_stays() {
        let role = Role::defaults().remove("user").unwrap();
        let policy = effective(&role, None, None);
        let meters = Meters::default();
        let pepper = rules::key::Pepper::new(&[7; 32]);
        let first = KeyId::parse("abcdefghijkl").unwrap().into();
        let held = meters.arrive(first).unwrap();
        // A thousand a minute, each refused once: a bucket of a hundred a minute is full again after 0.6 seconds.
        for n in 0..200_000_u64 {
            let (key, now) = (pepper.caller_id(&[&n.to_string()]).into(), S + n * 60_000);
            meters.look(key, &policy, now).unwrap();
            meters.refused(key, &policy, now);
        }
        let shards = meters.shards.iter();
        let kept: usize = shards.map(|shard| shard.lock().unwrap().len()).sum();
        assert!(kept < 1000, "{kept}");
        let arriving = with(meters.shard(first), first, |meter| meter.arriving);
        assert_eq!(arriving, 1);
        drop(held);
    }
}
