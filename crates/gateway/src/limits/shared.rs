//! Limits that several nodes share, in Redis or Valkey: one script and one round trip a decision.
//!
//! It decides what happens while the store doesn't answer: a decision waits for it a bounded time once, then the
//! circuit is open and nobody waits until the keeper has heard from it again. A decision whose outcome isn't known is
//! taken back. Called by `backend`.

pub(crate) mod keeper;
pub(crate) mod link;
pub(crate) mod words;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use redis::RedisError;
use rules::ident::RequestId;
use rules::limit::{Amounts, Denied, Plan, Scope};
use tokio::sync::{Notify, mpsc};

use link::Link;
pub use link::{Address, Form};
use words::{Act, Names, Verdict};

/// What a shared store needs to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Where it is.
    pub address: Address,
    /// How the names of its keys begin.
    pub prefix: String,
    /// How long a decision waits for it.
    pub timeout: Duration,
    /// What holds while it doesn't answer.
    pub when_unreachable: WhenUnreachable,
}

/// What holds while the shared store doesn't answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenUnreachable {
    /// This node's share of each limit, in its own memory.
    Local,
    /// No call.
    Refuse,
    /// Every call.
    Allow,
}

/// How long what a node holds outlives it.
pub(crate) const LEASE: Duration = Duration::from_secs(10);

/// Ends of calls that wait for the store; beyond that their reservations stand until they are over by themselves.
const MOST_WAITING: usize = 1 << 16;

/// A refusal is repeated from memory at most so long: who changed a limit doesn't wait for it.
const REPEATED: u64 = 1_000_000;

/// Callers whose refusals are repeated.
const MOST_REPEATED: usize = 4096;

/// The store as it is known now.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) told: Shared,
    names: Names,
    /// This process among all nodes: a restarted one holds nothing of what it held before.
    node: String,
    /// `None`: the circuit is open.
    link: ArcSwapOption<Link>,
    /// A decision wasn't answered.
    doubt: Notify,
    /// Nodes that lived when the store was last heard.
    nodes: AtomicU64,
    ends: mpsc::Sender<Word>,
    /// Calls that run, and their keys that have leases.
    running: Mutex<HashMap<RequestId, Vec<String>>>,
    refused: Mutex<HashMap<Scope, (u64, Denied)>>,
    /// The keeper is to end.
    closing: AtomicBool,
    /// Decisions made without the store.
    pub(crate) alone: AtomicU64,
    /// Ends of calls that found no place to wait.
    pub(crate) lost: AtomicU64,
}

/// A word to the keeper.
#[derive(Debug)]
pub(crate) enum Word {
    /// A call has ended.
    End(End),
    /// No other word comes.
    Last,
}

/// The end of a call.
#[derive(Debug)]
pub(crate) struct End {
    id: RequestId,
    plan: Plan,
    act: Act,
}

/// The store doesn't answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unreachable;

impl Store {
    /// Of the node with this name, not yet connected; the receiver is the keeper's.
    pub(crate) fn new(told: Shared, node: String) -> (Arc<Self>, mpsc::Receiver<Word>) {
        let (ends, ended) = mpsc::channel(MOST_WAITING);
        let names = Names::new(&told.prefix);
        let store = Self {
            told,
            names,
            node,
            link: ArcSwapOption::empty(),
            doubt: Notify::new(),
            nodes: AtomicU64::new(1),
            ends,
            running: Mutex::default(),
            refused: Mutex::default(),
            closing: AtomicBool::new(false),
            alone: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        };
        (Arc::new(store), ended)
    }

    /// Takes all that a plan asks for, or nothing.
    ///
    /// # Errors
    /// The store doesn't answer in time, or answers with an error: then nothing is taken, now or later.
    pub(crate) async fn take(
        &self,
        id: RequestId,
        plan: Plan,
        now: u64,
    ) -> Result<(Verdict, Plan), (Unreachable, Plan)> {
        let Some(link) = self.link.load_full() else {
            return Err((Unreachable, plan));
        };
        let mut doubt = Doubt {
            store: self,
            id,
            plan: Some(plan),
        };
        let Some(plan) = &doubt.plan else {
            return Err((Unreachable, Plan::default()));
        };
        match self.act(&link, Act::Take, &id, plan).await {
            Ok(verdict) => {
                let plan = doubt.is_over();
                if let Some(denied) = verdict.denied {
                    self.remember(&plan, denied, now);
                } else {
                    let held = words::held(&self.names, &plan);
                    let _none = lock(&self.running).insert(id, held);
                }
                Ok((verdict, plan))
            }
            Err(Unreachable) => {
                let plan = doubt.plan.clone().unwrap_or_default();
                Err((Unreachable, plan))
            }
        }
    }

    /// An act that takes nothing for a call: how limits stand, a reset, what is known to be spent.
    ///
    /// # Errors
    /// The store doesn't answer in time.
    pub(crate) async fn ask(
        &self,
        act: Act,
        id: &RequestId,
        plan: &Plan,
    ) -> Result<Verdict, Unreachable> {
        let link = self.link.load_full().ok_or(Unreachable)?;
        self.act(&link, act, id, plan).await
    }

    /// Ends a call that was taken.
    pub(crate) fn settle(&self, id: RequestId, plan: Plan, actual: Amounts) {
        let _held = lock(&self.running).remove(&id);
        self.end(End {
            id,
            plan,
            act: Act::Settle(actual),
        });
    }

    /// Tells the store what is known to be spent of budgets.
    pub(crate) fn spent(&self, plan: Plan) {
        self.end(End {
            id: RequestId::new(0, [0; 10]),
            plan,
            act: Act::Spent,
        });
    }

    /// The refusal that this caller would get again, from memory: for a look before a body is read.
    pub(crate) fn refused_before(&self, plan: &Plan, now: u64) -> Option<Denied> {
        let refused = lock(&self.refused);
        let scope = plan.demands().first()?.scope;
        let (until, denied) = refused.get(&scope)?;
        (*until > now).then_some(*denied)
    }

    /// Forgets refusals that it would repeat.
    pub(crate) fn forget(&self) {
        lock(&self.refused).clear();
    }

    /// Whether decisions are made there now.
    pub(crate) fn is_up(&self) -> bool {
        self.link.load().is_some()
    }

    /// Nodes that lived when it was last heard.
    pub(crate) fn nodes(&self) -> u64 {
        self.nodes.load(Ordering::Relaxed).max(1)
    }

    /// Asks the keeper to end once it has told the store of all ends.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        // A full queue means that the store is away: then nothing is told to it any more.
        self.ends.try_send(Word::Last).ok();
    }

    async fn act(
        &self,
        link: &Arc<Link>,
        act: Act,
        id: &RequestId,
        plan: &Plan,
    ) -> Result<Verdict, Unreachable> {
        // The server's clock: all nodes share it.
        let cmd = words::on_plan(&self.names, act, id, plan, (0, LEASE));
        let mut to = Link::clone(link);
        let why = match tokio::time::timeout(self.told.timeout, to.ask(&cmd)).await {
            Ok(Ok(answer)) => match words::read(plan, &answer) {
                Some(verdict) => return Ok(verdict),
                None => "its answer can't be understood".to_owned(),
            },
            Ok(Err(fault)) => spoken(&fault),
            Err(_elapsed) => format!("no answer within {} ms", self.told.timeout.as_millis()),
        };
        self.open(link, &why);
        Err(Unreachable)
    }

    /// Opens the circuit, if this connection is still the one in use.
    fn open(&self, link: &Arc<Link>, why: &str) {
        let before = self.link.compare_and_swap(link, None);
        if before
            .as_ref()
            .is_some_and(|before| Arc::ptr_eq(before, link))
        {
            let holds = match self.told.when_unreachable {
                WhenUnreachable::Local => "this node's share of each limit holds",
                WhenUnreachable::Refuse => "calls are refused",
                WhenUnreachable::Allow => "every call is let through",
            };
            tracing::error!(
                why,
                "the shared limits can't be reached: {holds} until they answer"
            );
            self.doubt.notify_one();
        }
    }

    /// A decision was made without the store.
    pub(crate) fn count_alone(&self) {
        self.alone.fetch_add(1, Ordering::Relaxed);
    }

    fn end(&self, end: End) {
        if self.ends.try_send(Word::End(end)).is_err() {
            let before = self.lost.fetch_add(1, Ordering::Relaxed);
            if before == 0 {
                tracing::error!(
                    "too many ended calls wait for the shared limits: what they reserved counts until it is over"
                );
            }
        }
    }

    /// Only what the head of a request tells, too: its caller's own limits on calls.
    fn remember(&self, plan: &Plan, denied: Denied, now: u64) {
        use rules::limit::{Class, Measure};
        if denied.class != Class::Key || denied.limit.measure != Measure::Requests {
            return;
        }
        let Some(scope) = plan.demands().first().map(|demand| demand.scope) else {
            return;
        };
        let wait = u64::try_from(denied.retry.as_micros()).unwrap_or(u64::MAX);
        let until = now.saturating_add(wait.min(REPEATED));
        let mut refused = lock(&self.refused);
        if refused.len() >= MOST_REPEATED {
            refused.retain(|_, (until, _)| *until > now);
        }
        if refused.len() < MOST_REPEATED {
            let _before = refused.insert(scope, (until, denied));
        }
    }
}

/// A decision that was asked for and not heard: whatever became of it, it is taken back.
struct Doubt<'s> {
    store: &'s Store,
    id: RequestId,
    plan: Option<Plan>,
}

impl Doubt<'_> {
    fn is_over(&mut self) -> Plan {
        self.plan.take().unwrap_or_default()
    }
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if let Some(plan) = self.plan.take() {
            self.store.end(End {
                id: self.id,
                plan,
                act: Act::Cancel,
            });
        }
    }
}

/// What a fault is, without what was sent.
pub(crate) fn spoken(fault: &RedisError) -> String {
    match (fault.code(), fault.is_io_error()) {
        (Some(code), _) => code.to_owned(),
        (None, true) => fault.to_string(),
        (None, false) => fault.category().to_owned(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panic elsewhere can't leave these half changed: each change is one assignment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
