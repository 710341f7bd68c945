//! Where limits are decided: which plan a call has, and who keeps its cells.
//!
//! Memory, or a store that nodes share. With a shared one memory keeps what this node let through as well, so that
//! its own share goes on from there while the store doesn't answer. `check` takes a plan before a call,
//! `record::settle` ends it once; `guan::wiring` rebuilds it after a restart. What the arithmetic says is
//! `rules::limit`'s.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rules::ident::RequestId;
use rules::limit::{Amounts, CallerId, Class, Demand, Measure, Plan, Price, Scope, Standing, Told};
use rules::policy::{Policy, Pool};
use rules::refusal::Refusal;

use crate::limits::memory::{Decided, Memory};
use crate::limits::shared::words::Act;
use crate::limits::shared::{Shared, Store, Unreachable, WhenUnreachable, keeper};
use crate::settings::Model;

/// The limits of all calls.
#[derive(Debug)]
pub struct Limits {
    memory: Memory,
    node: Scope,
    shared: Option<Arc<Store>>,
    /// Tells when the shared store's keeper has ended.
    keeper: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
}

/// What a call has taken, until it is settled.
#[derive(Debug)]
pub(crate) struct Taken {
    id: RequestId,
    plan: Plan,
    at: u64,
    price: Price,
    /// The shared store knows of it.
    is_shared: bool,
}

/// A decision: how the limits stand, and what was taken.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// As far as it is known.
    pub(crate) told: Told,
    /// All of it, or why nothing.
    pub(crate) taken: Result<Taken, Refusal>,
}

/// How long the end of a process waits until the shared store knows of its last calls.
const LAST_WORDS: Duration = Duration::from_secs(2);

impl Limits {
    /// Of the node with this name, nothing used.
    #[must_use]
    pub fn new(node: &str) -> Self {
        Self {
            memory: Memory::default(),
            node: Scope::named(Class::Node, node),
            shared: None,
            keeper: Mutex::default(),
        }
    }

    /// The same, decided in a store that nodes share. `life` names this process among all there were.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn shared(node: &str, life: String, shared: Shared) -> io::Result<Self> {
        let (store, ends) = Store::new(shared, life);
        let (ended, is_ended) = std::sync::mpsc::channel();
        let kept = Arc::clone(&store);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::Builder::new()
            .name("limits".to_owned())
            .spawn(move || {
                runtime.block_on(keeper::keep(kept, ends));
                // Nobody may be waiting.
                ended.send(()).ok();
            })?;
        Ok(Self {
            shared: Some(store),
            keeper: Mutex::new(Some(is_ended)),
            ..Self::new(node)
        })
    }

    /// Tells the shared store the last ends of calls, and waits a little until it knows. Blocks: for the end of a
    /// process.
    pub fn close(&self) {
        let keeper = self
            .keeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let (Some(store), Some(keeper)) = (&self.shared, keeper) {
            store.close();
            if keeper.recv_timeout(LAST_WORDS).is_err() {
                tracing::warn!(
                    "the shared limits weren't told of the last calls: what those reserved counts until it is over"
                );
            }
        }
    }

    /// Whether the shared store answers; `None`: there is none.
    #[must_use]
    pub fn is_up(&self) -> Option<bool> {
        self.shared.as_ref().map(|store| store.is_up())
    }

    /// All limits that hold for a call; no amounts yet.
    #[must_use]
    pub fn plan(
        &self,
        caller: CallerId,
        policy: &Policy,
        project: Option<&str>,
        model: Option<&Model>,
        node: &Pool,
    ) -> Plan {
        let mut plan = policy.plan(caller, project);
        if let Some(model) = model {
            plan.add(Scope::named(Class::Model, &model.name), model.pool.each());
        }
        plan.add(self.node, node.each());
        plan
    }

    /// The free look before a body is read: refuses what the headers alone can tell, takes nothing.
    ///
    /// # Errors
    /// A limit on calls is used up.
    pub(crate) fn look(&self, mut plan: Plan, now: u64) -> Result<Told, Refusal> {
        plan.only(|measure| measure != Measure::Running);
        let calls = Amounts::default();
        plan.ask(&calls);
        let Some(store) = &self.shared else {
            return self.memory.glance(&plan, now);
        };
        if store.is_up() {
            // Only what was heard a moment ago: a round trip is for calls.
            return match store.refused_before(&plan, now) {
                Some(denied) => Err(Refusal::Limit(denied)),
                None => Ok(Told::default()),
            };
        }
        match store.told.when_unreachable {
            WhenUnreachable::Local => self.memory.glance(&plan.part(store.nodes()), now),
            WhenUnreachable::Refuse => Err(Refusal::LimitsUnavailable),
            WhenUnreachable::Allow => Ok(Told::default()),
        }
    }

    /// How the limits stand, for headers; nothing, where that would cost a round trip.
    pub(crate) fn told(&self, plan: &Plan, now: u64) -> Told {
        if self.shared.is_some() {
            return Told::default();
        }
        let mut told = Told::default();
        for (demand, standing) in plan.demands().iter().zip(self.memory.look(plan, now)) {
            told.note(&demand.limit, standing);
        }
        told
    }

    /// Takes all that a plan asks for at `now` (microseconds since 1970), or nothing.
    pub(crate) async fn take(&self, id: RequestId, plan: Plan, price: Price, now: u64) -> Outcome {
        let taken = |plan, is_shared| Taken {
            id,
            plan,
            at: now,
            price,
            is_shared,
        };
        let Some(store) = &self.shared else {
            return self.decide(plan, now, |plan| taken(plan, false));
        };
        let plan = match store.take(id, plan, now).await {
            Ok((verdict, plan)) => {
                let told = verdict.told(&plan);
                let taken = match verdict.denied {
                    Some(denied) => Err(Refusal::Limit(denied)),
                    None => {
                        self.memory.force(&plan, now);
                        Ok(taken(plan, true))
                    }
                };
                return Outcome { told, taken };
            }
            Err((Unreachable, plan)) => plan,
        };
        store.count_alone();
        match store.told.when_unreachable {
            WhenUnreachable::Local => {
                let part = plan.part(store.nodes());
                self.decide(part, now, |plan| taken(plan, false))
            }
            WhenUnreachable::Refuse => Outcome {
                told: Told::default(),
                taken: Err(Refusal::LimitsUnavailable),
            },
            WhenUnreachable::Allow => {
                self.memory.force(&plan, now);
                Outcome {
                    told: Told::default(),
                    taken: Ok(taken(plan, false)),
                }
            }
        }
    }

    fn decide(&self, plan: Plan, now: u64, taken: impl FnOnce(Plan) -> Taken) -> Outcome {
        match self.memory.take(&plan, now) {
            Ok(Decided { told, denied }) => Outcome {
                told,
                taken: match denied {
                    Some(denied) => Err(Refusal::Limit(denied)),
                    None => Ok(taken(plan)),
                },
            },
            Err(refusal) => Outcome {
                told: Told::default(),
                taken: Err(refusal),
            },
        }
    }

    /// How each limit of a plan stands; `None`: the shared store doesn't answer.
    pub async fn standing(&self, plan: &Plan, now: u64) -> Option<Vec<(Demand, Standing)>> {
        let standings = match &self.shared {
            None => self.memory.look(plan, now),
            Some(store) => {
                store
                    .ask(Act::Look, &RequestId::new(0, [0; 10]), plan)
                    .await
                    .ok()?
                    .standings
            }
        };
        Some(plan.demands().iter().copied().zip(standings).collect())
    }

    /// Forgets what was used of a key's own limits; what runs goes on running. `None`: the shared store doesn't answer.
    pub async fn forget(&self, plan: &Plan) -> Option<()> {
        let own = plan.of(Class::Key);
        if let Some(store) = &self.shared {
            let _verdict = store
                .ask(Act::Reset, &RequestId::new(0, [0; 10]), &own)
                .await
                .ok()?;
            store.forget();
        }
        self.memory.reset(&own);
        Some(())
    }

    /// Ends a call that cost these tokens.
    pub(crate) fn settle(&self, taken: Taken, now: u64, input: u64, output: u64) {
        let actual = Amounts::of(input, output, &taken.price);
        self.memory.settle(&taken.plan, taken.at, now, &actual);
        if let Some(store) = self.shared.as_ref().filter(|_| taken.is_shared) {
            store.settle(taken.id, taken.plan, actual);
        }
    }

    /// Tells the shared store of a call whose process died: what it had reserved, and what it cost.
    pub fn bury(&self, id: RequestId, mut plan: Plan, (reserved, actual): (&Amounts, &Amounts)) {
        if let Some(store) = &self.shared {
            plan.ask(reserved);
            store.settle(id, plan, *actual);
        }
    }

    /// Takes over what is known to be spent of budgets: the amounts of `plan`. The larger figure stands.
    pub fn spent(&self, plan: Plan, now: u64) {
        if plan.demands().is_empty() {
            return;
        }
        self.memory.spent(&plan, now);
        if let Some(store) = &self.shared {
            store.spent(plan);
        }
    }

    /// Counts a call of the past again: oldest first. `taken` in microseconds since 1970.
    pub fn replay(&self, mut plan: Plan, amounts: &Amounts, taken: u64) {
        plan.ask(amounts);
        self.memory.replay(&plan, taken);
    }
}
