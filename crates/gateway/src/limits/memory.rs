//! Limits of one node, in memory: a few buckets a key, in shards, each decision under one short lock.
//!
//! Keyed by the ids of callers whose credential is valid only, so outsiders can't make it grow; and before it grows,
//! meters that are as good as new are forgotten, so that it holds those who called lately, however many subjects an
//! issuer has. Decisions are `rules::limit`'s; this file keeps the buckets. Rebuilt at start from the audit chain.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rules::chain::PastCall;
use rules::key::KeyId;
use rules::limit::{Bucket, Rate, Standing};
use rules::policy::Policy;
use rules::refusal::Refusal;

const SHARDS: usize = 16;

/// How many refused calls a caller may make for each call of its rate.
const REFUSALS_FOR_EACH_CALL: u32 = 10;

/// Calls of one key whose bodies may be coming at the same time.
const MOST_ARRIVING: u32 = 256;

/// The state of all keys.
#[derive(Debug, Default)]
pub struct Memory {
    shards: [Shard; SHARDS],
}

#[derive(Debug, Default)]
struct Shard(Arc<Mutex<HashMap<KeyId, Meter>>>);

#[derive(Debug, Default)]
struct Meter {
    calls: Bucket,
    refusals: Bucket,
    running: u32,
    arriving: u32,
    body_bytes: u64,
}

impl Meter {
    /// Whether nothing is held and every bucket is full again.
    const fn is_new(&self, now: u64) -> bool {
        self.running == 0
            && self.arriving == 0
            && self.body_bytes == 0
            && self.calls.is_full(now)
            && self.refusals.is_full(now)
    }
}

/// A place among a key's concurrent calls; given back on drop.
#[derive(Debug)]
pub(crate) struct Hold {
    shard: Arc<Mutex<HashMap<KeyId, Meter>>>,
    key: KeyId,
}

impl Drop for Hold {
    fn drop(&mut self) {
        with(&self.shard, self.key, |meter| {
            meter.running = meter.running.saturating_sub(1);
        });
    }
}

/// A place among a key's calls whose body is still coming; given back on drop.
#[derive(Debug)]
pub(crate) struct Arriving {
    shard: Arc<Mutex<HashMap<KeyId, Meter>>>,
    key: KeyId,
}

impl Drop for Arriving {
    fn drop(&mut self) {
        with(&self.shard, self.key, |meter| {
            meter.arriving = meter.arriving.saturating_sub(1);
        });
    }
}

/// Bytes of request bodies that a key holds in memory; given back on drop.
#[derive(Debug)]
pub(crate) struct BodyShare {
    shard: Arc<Mutex<HashMap<KeyId, Meter>>>,
    key: KeyId,
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

impl Memory {
    /// The free look before a body is read: refuses what the headers alone can tell, takes nothing.
    ///
    /// # Errors
    /// The rate of calls, or of refused calls, is used up.
    pub(crate) fn look(&self, key: KeyId, policy: &Policy, now: u64) -> Result<Standing, Refusal> {
        let rate = Rate::per_minute(policy.requests_per_minute);
        make_room(self.shard(key), key, now);
        with(self.shard(key), key, |meter| {
            let refusals = meter.refusals.look(now, refusal_rate(policy));
            if refusals.remaining == 0 {
                return Err(Refusal::TooManyRefusals {
                    retry: refusals.retry,
                });
            }
            let calls = meter.calls.look(now, rate);
            if calls.remaining == 0 {
                Err(too_many(calls))
            } else {
                Ok(calls)
            }
        })
    }

    /// How the calls of a key stand, taking nothing.
    pub(crate) fn standing(&self, key: KeyId, policy: &Policy, now: u64) -> Standing {
        let rate = Rate::per_minute(policy.requests_per_minute);
        with(self.shard(key), key, |meter| meter.calls.look(now, rate))
    }

    /// Takes a place among the key's calls that arrive: bodies that never come can't use up the node.
    ///
    /// # Errors
    /// [`MOST_ARRIVING`] are coming already.
    pub(crate) fn arrive(&self, key: KeyId) -> Result<Arriving, Refusal> {
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
            Err(Refusal::Concurrency {
                limit: u64::from(MOST_ARRIVING),
            })
        }
    }

    /// Takes one call and one place among the concurrent ones: both, or neither.
    ///
    /// # Errors
    /// One of the two is used up.
    pub(crate) fn reserve(
        &self,
        key: KeyId,
        policy: &Policy,
        now: u64,
    ) -> Result<(Standing, Hold), Refusal> {
        let rate = Rate::per_minute(policy.requests_per_minute);
        let shard = self.shard(key);
        let standing = with(shard, key, |meter| {
            if let Some(limit) = policy.concurrent_requests
                && meter.running >= limit
            {
                return Err(Refusal::Concurrency {
                    limit: u64::from(limit),
                });
            }
            let standing = meter.calls.take(now, rate).map_err(too_many)?;
            meter.running = meter.running.saturating_add(1);
            Ok(standing)
        })?;
        Ok((
            standing,
            Hold {
                shard: Arc::clone(shard),
                key,
            },
        ))
    }

    /// Counts a call that was refused after its key was known.
    pub(crate) fn refused(&self, key: KeyId, policy: &Policy, now: u64) {
        with(self.shard(key), key, |meter| {
            // Whether it fits was asked in `look`; here it is only counted.
            meter.refusals.take(now, refusal_rate(policy)).ok();
        });
    }

    /// An empty share of body memory.
    pub(crate) fn body_share(&self, key: KeyId) -> BodyShare {
        BodyShare {
            shard: Arc::clone(self.shard(key)),
            key,
            bytes: 0,
        }
    }

    /// Counts the calls of the audit chain again, oldest first, with the rate of each key's role.
    pub fn replay(&self, calls: &mut [PastCall], mut role: impl FnMut(&KeyId) -> Option<Rate>) {
        calls.sort_by_key(|call| call.taken_ns);
        for call in calls.iter() {
            let Ok(key) = KeyId::parse(&call.key) else {
                continue;
            };
            let Some(rate) = role(&key) else { continue };
            with(self.shard(key), key, |meter| {
                meter.calls.replay(call.taken_ns, rate);
            });
        }
    }

    fn shard(&self, key: KeyId) -> &Arc<Mutex<HashMap<KeyId, Meter>>> {
        let sum: usize = key.bytes().iter().map(|&byte| usize::from(byte)).sum();
        let [first, ..] = &self.shards;
        &self.shards.get(sum % SHARDS).unwrap_or(first).0
    }
}

fn with<T>(
    shard: &Mutex<HashMap<KeyId, Meter>>,
    key: KeyId,
    decide: impl FnOnce(&mut Meter) -> T,
) -> T {
    // A panic elsewhere can't leave a meter half changed: each decision is a few assignments.
    let mut meters = shard.lock().unwrap_or_else(PoisonError::into_inner);
    decide(meters.entry(key).or_default())
}

/// Forgets meters that say nothing any more, if the table is full and this key isn't in it. A table that stays more
/// than half full doubles, so that walks over it stay rare.
fn make_room(shard: &Mutex<HashMap<KeyId, Meter>>, key: KeyId, now: u64) {
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

fn refusal_rate(policy: &Policy) -> Rate {
    Rate::per_minute(
        policy
            .requests_per_minute
            .saturating_mul(REFUSALS_FOR_EACH_CALL),
    )
}

fn too_many(standing: Standing) -> Refusal {
    Refusal::RequestRate {
        limit: standing.limit,
        retry: standing.retry,
    }
}

#[cfg(test)]
mod tests {
    use rules::policy::{Role, effective};

    use super::*;

    const S: u64 = 1_000_000_000;

    fn user() -> (KeyId, Policy) {
        let role = Role::defaults().remove("user").unwrap();
        (
            KeyId::parse("abcdefghijkl").unwrap(),
            effective(&role, None, None),
        )
    }

    #[test]
    fn two_hundred_threads_take_exactly_the_limit() {
        let (memory, (key, mut policy)) = (Memory::default(), user());
        policy.concurrent_requests = None;
        let passed: usize = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..200)
                .map(|_| scope.spawn(|| usize::from(memory.reserve(key, &policy, S).is_ok())))
                .collect();
            tries.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(passed, 10);
    }

    #[test]
    fn a_place_comes_back_on_drop_and_a_refusal_takes_none() {
        let (memory, (key, policy)) = (Memory::default(), user());
        let held: Vec<_> = (0..4)
            .map(|_| memory.reserve(key, &policy, S).unwrap())
            .collect();
        for _ in 0..20 {
            let refused = memory.reserve(key, &policy, S).unwrap_err();
            assert_eq!(refused, Refusal::Concurrency { limit: 4 });
        }
        drop(held);
        let (standing, _hold) = memory.reserve(key, &policy, S).unwrap();
        assert_eq!(standing.remaining, 5);
    }

    #[test]
    fn refused_calls_have_a_bucket_of_their_own() {
        let (memory, (key, policy)) = (Memory::default(), user());
        for _ in 0..100 {
            memory.look(key, &policy, S).unwrap();
            memory.refused(key, &policy, S);
        }
        assert!(matches!(
            memory.look(key, &policy, S),
            Err(Refusal::TooManyRefusals { .. })
        ));
        assert!(memory.look(key, &policy, 2 * S).is_ok());
    }

    #[test]
    fn callers_that_come_once_leave_little_behind_and_who_holds_something_stays() {
        let (memory, (first, policy)) = (Memory::default(), user());
        let pepper = rules::key::Pepper::new(&[7; 32]);
        let held = memory.reserve(first, &policy, S).unwrap();
        // A thousand a minute, each with one call: a bucket of ten a minute is full again after six seconds.
        for n in 0..200_000_u64 {
            let (key, now) = (pepper.caller_id(&[&n.to_string()]), S + n * 60_000_000);
            memory.look(key, &policy, now).unwrap();
            drop(memory.reserve(key, &policy, now).unwrap());
        }
        let kept: usize = memory
            .shards
            .iter()
            .map(|shard| shard.0.lock().unwrap().len())
            .sum();
        assert!(kept < 1000, "{kept}");
        let first_is_there = with(memory.shard(first), first, |meter| meter.running);
        assert_eq!(first_is_there, 1);
        drop(held);
    }

    #[test]
    fn a_rebuilt_limiter_still_refuses_who_had_used_up_his_minute() {
        let (memory, (key, policy)) = (Memory::default(), user());
        let mut past: Vec<_> = (0..10_u64)
            .map(|i| PastCall {
                key: key.to_string(),
                role: None,
                project: None,
                taken_ns: 100 * S + i,
            })
            .collect();
        memory.replay(&mut past, |_| {
            Some(Rate::per_minute(policy.requests_per_minute))
        });
        assert!(memory.reserve(key, &policy, 101 * S).is_err());
        assert!(memory.reserve(key, &policy, 107 * S).is_ok());
    }
}
