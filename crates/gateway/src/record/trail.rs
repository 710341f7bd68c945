//! The way to the audit log: records go through one bounded channel, and each is answered once it is written.
//!
//! A call takes its place in the channel before it begins, so its record can always be sent, from `Drop` too.
//! Callers without a credential get one line an address and minute, from a bounded table: they can't fill a disk.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rules::chain::{Entry, Record};
use rules::refusal::Refusal;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

/// Addresses that get a line of their own each minute; the rest share one.
const ADDRESSES: usize = 1000;

/// The sending side.
#[derive(Clone, Debug)]
pub struct Trail {
    entries: mpsc::Sender<Entry>,
    healthy: Arc<AtomicBool>,
    stamp: fn(u64) -> String,
}

/// A place in the channel: the right to send one record, whatever happens.
#[derive(Debug)]
pub(crate) struct Permit(mpsc::OwnedPermit<Entry>);

impl Trail {
    /// Joins the channel to the log, the log's own word on its health, and the writer of time stamps
    /// (nanoseconds since 1970 to RFC 3339).
    #[must_use]
    pub fn new(
        entries: mpsc::Sender<Entry>,
        healthy: Arc<AtomicBool>,
        stamp: fn(u64) -> String,
    ) -> Self {
        Self {
            entries,
            healthy,
            stamp,
        }
    }

    /// Takes a place.
    ///
    /// # Errors
    /// The log can't be written, or all places are taken: the call must not begin.
    pub(crate) fn permit(&self) -> Result<Permit, Refusal> {
        if !self.is_healthy() {
            return Err(Refusal::RecordsUnavailable);
        }
        self.entries
            .clone()
            .try_reserve_owned()
            .map(Permit)
            .map_err(|full| match full {
                TrySendError::Full(_) => Refusal::Busy,
                TrySendError::Closed(_) => Refusal::RecordsUnavailable,
            })
    }

    /// Records that wait to be written, and places that calls hold for theirs.
    pub(crate) fn waiting(&self) -> usize {
        let free = self.entries.capacity();
        self.entries.max_capacity().saturating_sub(free)
    }

    /// Whether the log can be written.
    pub(crate) fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// A time stamp as records carry it.
    pub(crate) fn stamp(&self, unix_ns: u64) -> String {
        (self.stamp)(unix_ns)
    }

    /// Sends a record that no call waits for, and tells when it is written.
    ///
    /// # Errors
    /// When the log has ended.
    pub async fn write(&self, record: Record) -> Result<(), TrailEnded> {
        let (done, written) = oneshot::channel();
        let entry = Entry {
            record,
            done: Box::new(move |ok| {
                done.send(ok).ok();
            }),
        };
        self.entries
            .send(entry)
            .await
            .map_err(|_closed| TrailEnded)?;
        match written.await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(TrailEnded),
        }
    }
}

/// The audit log can't take a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the audit log can't be written: look at the disk under state/audit")]
pub struct TrailEnded;

impl Permit {
    /// Sends the record. `after` runs on the audit thread, with whether it was written.
    pub(crate) fn send(self, record: Record, after: impl FnOnce(bool) + Send + 'static) {
        self.0.send(Entry {
            record,
            done: Box::new(after),
        });
    }
}

/// How many were refused for each reason: the reasons are a closed set.
type Words = BTreeMap<&'static str, u64>;

/// Refusals of callers without a valid credential.
#[derive(Debug, Default)]
pub struct Strangers {
    counts: Mutex<HashMap<Option<IpAddr>, Words>>,
}

impl Strangers {
    /// Counts one.
    pub(crate) fn count(&self, address: IpAddr, word: &'static str) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let place = Some(network(address));
        let place = if counts.len() < ADDRESSES || counts.contains_key(&place) {
            place
        } else {
            None
        };
        let count = counts.entry(place).or_default().entry(word).or_default();
        *count = count.saturating_add(1);
    }

    /// Writes one line for each address and forgets them; called once a minute.
    pub async fn flush(&self, trail: &Trail, unix_ns: u64) {
        let counts =
            std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner));
        for (address, words) in counts {
            let refused: u64 = words.values().sum();
            let record = Record {
                source_ip: address.map(|a| a.to_string()),
                reason: Some(
                    if address.is_some() {
                        "unauthenticated"
                    } else {
                        "unauthenticated-other"
                    }
                    .to_owned(),
                ),
                act: Some(serde_json::json!({ "refused": refused, "reasons": words })),
                ..blank(trail.stamp(unix_ns), "unauthenticated", "failure")
            };
            // The log says itself that it can't be written; these lines are a sum, not evidence of a call.
            if trail.write(record).await.is_err() {
                return;
            }
        }
    }
}

/// A record with nothing but its time and what happened.
pub(crate) fn blank(timestamp: String, action: &str, outcome: &str) -> Record {
    Record {
        timestamp,
        action: action.to_owned(),
        outcome: outcome.to_owned(),
        reason: None,
        duration_ns: None,
        source_ip: None,
        user_id: None,
        role: None,
        identity: None,
        status: None,
        path: None,
        request_id: None,
        call: None,
        act: None,
    }
}

/// An IPv6 caller owns a /64: its addresses count as one.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_can_not_make_the_table_grow() {
        let strangers = Strangers::default();
        for n in 0..5000_u32 {
            strangers.count(IpAddr::V4(n.into()), "unknown-key");
        }
        for n in 0..5000_u128 {
            strangers.count(IpAddr::V6((0x2001_u128 << 112 | n).into()), "revoked-key");
        }
        let counts = strangers.counts.lock().unwrap();
        assert_eq!(counts.len(), ADDRESSES + 1);
        assert_eq!(
            counts.values().flat_map(BTreeMap::values).sum::<u64>(),
            10_000
        );
    }
}
