//! A trace of what was refused: one record at once, and one more a minute for all that followed it.
//!
//! Bounded, whatever comes: a table of [`MOST`] callers and reasons a minute, the rest share one line. These records
//! wait for nobody and nobody waits for them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use rules::chain::Record;
use rules::key::KeyId;
use serde_json::json;

use super::guard::Rule;
use crate::actor::Actor;
use crate::audit_log;
use crate::clock::{self, Clock};

/// One refusal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Denied {
    user: Option<String>,
    address: Option<String>,
    route: Option<(&'static str, &'static str)>,
    status: u16,
    reason: &'static str,
}

impl Denied {
    /// Somebody without a valid credential, perhaps with one that was valid once; an IPv6 caller owns a /64.
    pub(super) fn stranger(address: IpAddr, reason: &'static str, once: Option<KeyId>) -> Self {
        let network = match address.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
            v4 @ IpAddr::V4(_) => v4,
        };
        Self {
            user: once.map(Actor::id_of_token),
            address: Some(network.to_string()),
            route: None,
            status: 401,
            reason,
        }
    }

    /// A user of this machine who is neither root nor the server's own.
    pub(super) fn foreign_user(uid: u32) -> Self {
        Self {
            user: Some(format!("local:{uid}")),
            address: None,
            route: None,
            status: 403,
            reason: "foreign-user",
        }
    }

    /// A token whose right is less than the route's.
    pub(super) fn without_right(actor: &Actor, rule: Rule) -> Self {
        Self::known(actor, rule, "right")
    }

    /// Something that he doesn't hold and so can't give.
    pub(super) fn beyond(actor: &Actor, rule: Rule) -> Self {
        Self::known(actor, rule, "not-his-to-give")
    }

    fn known(actor: &Actor, rule: Rule, reason: &'static str) -> Self {
        Self {
            user: Some(actor.id().to_owned()),
            address: actor.address().map(|address| address.to_string()),
            route: Some((rule.method, rule.path)),
            status: 403,
            reason,
        }
    }

    fn other() -> Self {
        Self {
            user: None,
            address: None,
            route: None,
            status: 401,
            reason: "other",
        }
    }

    fn record(self, clock: &Clock, times: u64) -> Record {
        let mut record = audit_log::blank(clock, "admin-denied");
        "failure".clone_into(&mut record.outcome);
        record.reason = Some(self.reason.to_owned());
        record.user_id = self.user;
        record.source_ip = self.address;
        record.status = Some(self.status);
        record.path = self.route.map(|(_, path)| path.to_owned());
        record.act = Some(match self.route {
            Some((method, _)) => json!({ "method": method, "times": times }),
            None => json!({ "times": times }),
        });
        record
    }
}

/// What was refused in this minute.
#[derive(Debug, Default)]
pub(super) struct Denials(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    minute: i64,
    counts: HashMap<Denied, u64>,
}

impl Denials {
    /// Counts one; gives the records that are due now.
    pub(super) fn count(&self, denied: Denied, clock: &Clock) -> Vec<Record> {
        let mut due = self.flush(clock);
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let denied = if window.counts.len() < MOST || window.counts.contains_key(&denied) {
            denied
        } else {
            Denied::other()
        };
        match window.counts.get_mut(&denied) {
            Some(times) => *times = times.saturating_add(1),
            None => {
                let _none = window.counts.insert(denied.clone(), 0);
                due.push(denied.record(clock, 1));
            }
        }
        due
    }

    /// When the minute is over: a record for each that was refused more than once in it.
    pub(super) fn flush(&self, clock: &Clock) -> Vec<Record> {
        let minute = clock::seconds(clock()).div_euclid(60);
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if window.minute == minute {
            return Vec::new();
        }
        window.minute = minute;
        let counts = std::mem::take(&mut window.counts);
        let repeated = counts.into_iter().filter(|(_, more)| *more > 0);
        repeated
            .map(|(denied, more)| denied.record(clock, more))
            .collect()
    }
}

/// Callers and reasons that get lines of their own in a minute.
const MOST: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_leaves_a_bounded_trace_with_every_refusal_in_it() {
        let denials = Denials::default();
        let now = clock::fixed(120 * 1_000_000_000);
        let mut records = Vec::new();
        for n in 0..10_000_u32 {
            let address = IpAddr::V4((n % 500).into());
            records.extend(denials.count(Denied::stranger(address, "no-credential", None), &now));
        }
        assert_eq!(records.len(), MOST + 1);
        assert!(denials.flush(&now).is_empty());
        records.extend(denials.flush(&clock::fixed(180 * 1_000_000_000)));
        assert_eq!(records.len(), 2 * (MOST + 1));
        let times = |record: &Record| record.act.as_ref().unwrap()["times"].as_u64().unwrap();
        assert_eq!(records.iter().map(times).sum::<u64>(), 10_000);
    }
}
