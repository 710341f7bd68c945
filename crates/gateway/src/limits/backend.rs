//! Where limits are decided: which plan a call has, and who keeps its cells.
//!
//! `check` takes a plan before a call, `record::settle` ends it once; `guan::wiring` rebuilds it after a restart. What
//! the arithmetic says is `rules::limit`'s.

use rules::limit::{Amounts, CallerId, Class, Measure, Plan, Price, Scope, Told};
use rules::policy::{Policy, Pool};
use rules::refusal::Refusal;

use crate::limits::memory::Memory;
use crate::settings::Model;

/// The limits of all calls.
#[derive(Debug)]
pub struct Limits {
    memory: Memory,
    node: Scope,
}

/// What a call has taken, until it is settled.
#[derive(Debug)]
pub(crate) struct Taken {
    plan: Plan,
    at: u64,
    price: Price,
}

impl Limits {
    /// Of the node with this name, nothing used.
    #[must_use]
    pub fn new(node: &str) -> Self {
        Self {
            memory: Memory::default(),
            node: Scope::named(Class::Node, node),
        }
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
        self.memory.glance(&plan, now)
    }

    /// How the limits stand, for headers.
    pub(crate) fn told(&self, plan: &Plan, now: u64) -> Told {
        let mut told = Told::default();
        for (demand, standing) in plan.demands().iter().zip(self.memory.look(plan, now)) {
            told.note(&demand.limit, standing);
        }
        told
    }

    /// Takes all that a plan asks for at `now` (microseconds since 1970), or nothing.
    ///
    /// # Errors
    /// As [`Memory::take`].
    pub(crate) fn take(
        &self,
        plan: Plan,
        price: Price,
        now: u64,
    ) -> Result<(Told, Taken), Refusal> {
        let told = self.memory.take(&plan, now)?;
        let taken = Taken {
            plan,
            at: now,
            price,
        };
        Ok((told, taken))
    }

    /// Ends a call that cost these tokens.
    pub(crate) fn settle(&self, taken: &Taken, now: u64, input: u64, output: u64) {
        let actual = Amounts::of(input, output, &taken.price);
        self.memory.settle(&taken.plan, taken.at, now, &actual);
    }

    /// Counts a call of the past again: oldest first. `taken` in microseconds since 1970.
    pub fn replay(&self, mut plan: Plan, amounts: &Amounts, taken: u64) {
        plan.ask(amounts);
        self.memory.replay(&plan, taken);
    }
}
