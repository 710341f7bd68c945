//! What all cores share: the immutable views that requests read, and the few things that they change.
//!
//! Made once by `guan::wiring`; swapped parts are swapped whole.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rules::ident::RequestId;
use rules::key::Pepper;
use rules::snapshot::Keys;

use crate::check::admit::Lines;
use crate::check::fresh::Freshness;
use crate::check::token::Issuers;
use crate::door::handshake::Tls;
use crate::limits::addresses::Failures;
use crate::limits::backend::Limits;
use crate::limits::meter::Meters;
use crate::record::metrics::Metrics;
use crate::record::slot::Slots;
use crate::record::trail::{Strangers, Trail};
use crate::settings::Settings;
use crate::upstream::replicas::Replicas;

/// Everything that requests need, shared by all cores.
#[derive(Debug)]
pub struct Gateway {
    /// The config as meant; replaced by [`Gateway::take_up`].
    pub settings: ArcSwap<Settings>,
    /// Who waits for which model.
    pub(crate) lines: Lines,
    /// What each replica has to do.
    pub(crate) replicas: Replicas,
    /// The keys; replaced by [`Gateway::publish`].
    pub keys: ArcSwap<Keys>,
    /// Told each time the keys are replaced.
    pub(crate) news: tokio::sync::watch::Sender<()>,
    /// Certificate, protocol versions and ticket keys.
    pub tls: ArcSwap<Tls>,
    /// What keys are hashed under.
    pub pepper: Pepper,
    /// Limits.
    pub limits: Limits,
    /// What callers hold on this node besides.
    pub(crate) meters: Meters,
    /// Credentials that weren't valid, by address.
    pub(crate) failures: Failures,
    /// In-flight slots.
    pub slots: Arc<Slots>,
    /// The way to the audit log.
    pub trail: Trail,
    /// How young the keys are, and how to ask for younger ones.
    pub freshness: Arc<Freshness>,
    /// The keys of issuers, and what was verified by them.
    pub issuers: Arc<Issuers>,
    /// Refusals of callers without a credential, summed up.
    pub strangers: Strangers,
    /// Names of supervised workers that are ready.
    pub workers: ArcSwap<HashMap<String, ()>>,
    /// The last reload was refused: the running config is older than the file.
    pub config_stale: AtomicBool,
    /// What is counted.
    pub metrics: Metrics,
    /// No new call is accepted.
    pub draining: AtomicBool,
    /// Calls that hold a slot.
    pub in_flight: AtomicUsize,
    /// Bytes of request bodies in memory.
    pub(crate) bodies: AtomicU64,
    /// Where the search for a replica starts.
    pub(crate) turn: AtomicUsize,
    /// The clock.
    pub clock: Clock,
    ids: Ids,
}

/// What `wiring` brings.
#[derive(Debug)]
pub struct Parts {
    /// The config as meant.
    pub settings: Settings,
    /// The keys.
    pub keys: Keys,
    /// TLS.
    pub tls: Tls,
    /// What keys are hashed under.
    pub pepper: Pepper,
    /// Limits, rebuilt from the chain.
    pub limits: Limits,
    /// In-flight slots of this generation.
    pub slots: Slots,
    /// The way to the audit log.
    pub trail: Trail,
    /// How young the keys are, and how to ask for younger ones.
    pub freshness: Arc<Freshness>,
    /// The keys of issuers.
    pub issuers: Arc<Issuers>,
    /// The clock.
    pub clock: Clock,
}

impl Gateway {
    /// Joins the parts.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let lines = Lines::default();
        lines.take_up(&parts.settings);
        let replicas = Replicas::default();
        replicas.take_up(&parts.settings);
        Self {
            lines,
            replicas,
            settings: ArcSwap::from_pointee(parts.settings),
            keys: ArcSwap::from_pointee(parts.keys),
            news: tokio::sync::watch::Sender::default(),
            tls: ArcSwap::from_pointee(parts.tls),
            pepper: parts.pepper,
            limits: parts.limits,
            meters: Meters::default(),
            failures: Failures::default(),
            slots: Arc::new(parts.slots),
            trail: parts.trail,
            freshness: parts.freshness,
            issuers: parts.issuers,
            strangers: Strangers::default(),
            workers: ArcSwap::default(),
            config_stale: AtomicBool::new(false),
            metrics: Metrics::default(),
            draining: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            bodies: AtomicU64::new(0),
            turn: AtomicUsize::new(0),
            clock: parts.clock,
            ids: Ids::default(),
        }
    }

    /// Replaces the config.
    pub fn take_up(&self, settings: Settings) {
        self.lines.take_up(&settings);
        self.replicas.take_up(&settings);
        self.settings.store(Arc::new(settings));
    }

    /// Replaces the keys; streams whose key was taken back end now if `[server] on_revoke` says so.
    pub fn publish(&self, keys: Keys) {
        self.keys.store(Arc::new(keys));
        self.news.send_replace(());
    }

    /// A new request id.
    pub(crate) fn next_id(&self) -> RequestId {
        self.ids.next(self.clock.unix_ns())
    }

    /// Whether any model could be called now.
    pub(crate) fn any_model(&self) -> bool {
        let workers = self.workers.load();
        self.settings
            .load()
            .models
            .values()
            .flat_map(|model| &model.replicas)
            .any(|replica| {
                replica
                    .worker
                    .as_ref()
                    .is_none_or(|name| workers.contains_key(name))
            })
    }
}

/// Wall-clock time that never steps back while the process lives.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    start_unix_ns: u64,
}

impl Clock {
    /// Starts from the system's clocks.
    #[must_use]
    pub fn system() -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            start: Instant::now(),
            start_unix_ns: u64::try_from(since.as_nanos()).unwrap_or(0),
        }
    }

    /// Nanoseconds since 1970.
    #[must_use]
    pub fn unix_ns(&self) -> u64 {
        let passed = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.start_unix_ns.saturating_add(passed)
    }

    /// Microseconds since 1970: the clock of limits.
    #[must_use]
    pub fn unix_us(&self) -> u64 {
        self.unix_ns() / 1000
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn unix_seconds(&self) -> i64 {
        i64::try_from(self.unix_ns() / 1_000_000_000).unwrap_or(i64::MAX)
    }
}

/// Request ids: a counter through a keyed hash (`SipHash`), so they can't be guessed and cost no system call.
#[derive(Debug, Default)]
struct Ids {
    key: RandomState,
    count: AtomicU64,
}

impl Ids {
    fn next(&self, unix_ns: u64) -> RequestId {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let high = self.key.hash_one((count, 0_u8)).to_be_bytes();
        let low = self.key.hash_one((count, 1_u8)).to_be_bytes();
        let mut random = [0_u8; 10];
        for (to, from) in random.iter_mut().zip(high.iter().chain(&low)) {
            *to = *from;
        }
        RequestId::new(unix_ns / 1_000_000, random)
    }
}
