//! The limits of one node, in memory: cells in shards, a call's whole plan decided under the locks of its shards.
//!
//! Locks are taken in the order of the shards, so two calls never wait for each other in a circle, and all limits of
//! a call are taken or none. A decision allocates nothing once its cells are there. Cells that are as good as new
//! are forgotten when a shard grows, and a shard has an end: nobody can make it grow for ever.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rules::limit::{Amounts, Cell, Demand, Denied, Kind, Limit, Plan, Scope, Standing, Told};
use rules::refusal::Refusal;

const SHARDS: usize = 64;

/// Scopes of one call: key, project, role, model, node.
const SCOPES: usize = 8;

/// Scopes of one shard before those at rest are let go; then twice as many as were left.
const SWEEP: usize = 16;

/// Scopes that one shard holds at most: a million in all.
const MOST: usize = 16 << 10;

/// The state of all limits.
#[derive(Debug)]
pub struct Memory {
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Debug)]
struct Shard {
    cells: HashMap<Scope, Vec<Slot>>,
    sweep: usize,
}

/// One limit of a scope.
#[derive(Debug)]
struct Slot {
    kind: Kind,
    limit: Limit,
    cell: Cell,
}

/// What a decision says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    /// How the tightest limits stand after it.
    pub told: Told,
    /// What the call doesn't fit in: then nothing was taken.
    pub denied: Option<Denied>,
}

type Guard<'m> = MutexGuard<'m, Shard>;

impl Default for Memory {
    fn default() -> Self {
        let shard = || Shard {
            cells: HashMap::new(),
            sweep: SWEEP,
        };
        Self {
            shards: std::array::from_fn(|_| Mutex::new(shard())),
        }
    }
}

impl Memory {
    /// Takes all that `plan` asks for at `now` (microseconds), or nothing; then the limit that has the longest wait
    /// among those that the call doesn't fit in is told.
    ///
    /// # Errors
    /// [`Refusal::Busy`] when there is no room for one more scope.
    pub fn take(&self, plan: &Plan, now: u64) -> Result<Decided, Refusal> {
        let mut locked = self.lock(plan);
        let mut denied: Option<Denied> = None;
        for demand in plan.demands() {
            let slot = locked.slot(demand, now).ok_or(Refusal::Busy)?;
            if let Err(wait) = slot.cell.fits(now, &demand.limit, demand.amount) {
                let more = refused(demand, slot, now, wait);
                denied = denied.filter(|d| d.retry >= more.retry).or(Some(more));
            }
        }
        let mut told = Told::default();
        for demand in plan.demands() {
            if let Some(slot) = locked.found(demand) {
                if denied.is_none() {
                    slot.cell.force(now, &demand.limit, demand.amount);
                }
                told.note(&demand.limit, slot.cell.look(now, &demand.limit));
            }
        }
        Ok(Decided { told, denied })
    }

    /// Takes all that `plan` asks for, whether it fits or not: it was let through elsewhere.
    pub fn force(&self, plan: &Plan, now: u64) {
        let mut locked = self.lock(plan);
        for demand in plan.demands() {
            if let Some(slot) = locked.slot(demand, now) {
                slot.cell.force(now, &demand.limit, demand.amount);
            }
        }
    }

    /// Ends a call that took `plan` at `taken` and cost `actual`.
    pub fn settle(&self, plan: &Plan, taken: u64, now: u64, actual: &Amounts) {
        let mut locked = self.lock(plan);
        for demand in plan.demands() {
            let cost = actual.measured(demand.limit.measure);
            if let Some(slot) = locked.slot(demand, now) {
                slot.cell
                    .settle(taken, now, &demand.limit, demand.amount, cost);
            }
        }
    }

    /// How each limit of `plan` stands, taking nothing.
    #[must_use]
    pub fn look(&self, plan: &Plan, now: u64) -> Vec<Standing> {
        let mut locked = self.lock(plan);
        let stand = |demand: &Demand| {
            locked.found(demand).map_or_else(
                || Cell::new(&demand.limit).look(now, &demand.limit),
                |slot| slot.cell.look(now, &demand.limit),
            )
        };
        plan.demands().iter().map(stand).collect()
    }

    /// The limit of `plan` that a call wouldn't fit in now, if there is one, and how the rest stands; takes nothing.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn glance(&self, plan: &Plan, now: u64) -> Result<Told, Refusal> {
        let mut locked = self.lock(plan);
        let mut told = Told::default();
        for demand in plan.demands() {
            let limit = &demand.limit;
            let Some(slot) = locked.found(demand) else {
                told.note(limit, Cell::new(limit).look(now, limit));
                continue;
            };
            if demand.amount > 0
                && let Err(wait) = slot.cell.fits(now, limit, demand.amount)
            {
                return Err(Refusal::Limit(refused(demand, slot, now, wait)));
            }
            told.note(limit, slot.cell.look(now, limit));
        }
        Ok(told)
    }

    /// Counts a call of the past again: oldest first.
    pub fn replay(&self, plan: &Plan, taken: u64) {
        let mut locked = self.lock(plan);
        for demand in plan.demands() {
            if let Some(slot) = locked.slot(demand, taken) {
                slot.cell.replay(taken, &demand.limit, demand.amount);
            }
        }
    }

    /// Takes over what the store says was spent of each budget in `plan`, in the amounts of its demands.
    pub fn spent(&self, plan: &Plan, now: u64) {
        let mut locked = self.lock(plan);
        for demand in plan.demands() {
            if let Some(slot) = locked.slot(demand, now) {
                slot.cell.spent(now, &demand.limit, demand.amount);
            }
        }
    }

    /// Forgets what was used of the limits in `plan`.
    pub fn reset(&self, plan: &Plan) {
        let mut locked = self.lock(plan);
        for demand in plan.demands() {
            if let Some(slot) = locked.found(demand) {
                slot.cell.reset();
            }
        }
    }

    /// How many scopes are held.
    #[must_use]
    pub fn len(&self) -> usize {
        let count = |shard: &Mutex<Shard>| open(shard).cells.len();
        self.shards.iter().map(count).sum()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self, plan: &Plan) -> Locked<'_> {
        let mut numbers = [usize::MAX; SCOPES];
        let mut count = 0_usize;
        for demand in plan.demands() {
            let number = shard_of(&demand.scope);
            let known = numbers.get(..count).unwrap_or_default().contains(&number);
            if !known && let Some(place) = numbers.get_mut(count) {
                *place = number;
                count = count.saturating_add(1);
            }
        }
        let wanted = numbers.get_mut(..count).unwrap_or_default();
        wanted.sort_unstable();
        let mut guards: [Option<(usize, Guard<'_>)>; SCOPES] = [const { None }; SCOPES];
        for (place, &number) in guards.iter_mut().zip(wanted.iter()) {
            *place = self.shards.get(number).map(|shard| (number, open(shard)));
        }
        Locked { guards }
    }
}

/// The shards of one plan.
struct Locked<'m> {
    guards: [Option<(usize, Guard<'m>)>; SCOPES],
}

impl Locked<'_> {
    fn shard(&mut self, scope: &Scope) -> Option<&mut Shard> {
        let number = shard_of(scope);
        let mut held = self.guards.iter_mut().flatten();
        held.find(|(of, _)| *of == number)
            .map(|(_, guard)| &mut **guard)
    }

    fn found(&mut self, demand: &Demand) -> Option<&mut Slot> {
        let kind = demand.limit.kind();
        let slots = self.shard(&demand.scope)?.cells.get_mut(&demand.scope)?;
        slots.iter_mut().find(|slot| slot.kind == kind)
    }

    /// The limit's cell, made if need be; `None` when the shard is full.
    fn slot(&mut self, demand: &Demand, now: u64) -> Option<&mut Slot> {
        let (kind, limit) = (demand.limit.kind(), demand.limit);
        let shard = self.shard(&demand.scope)?;
        if shard.cells.len() >= shard.sweep && !shard.cells.contains_key(&demand.scope) {
            shard.tidy(now);
            if shard.cells.len() >= MOST {
                return None;
            }
        }
        let slots = shard.cells.entry(demand.scope).or_default();
        let place = slots.iter().position(|slot| slot.kind == kind);
        let place = place.unwrap_or(slots.len());
        if place == slots.len() {
            slots.push(Slot {
                kind,
                limit,
                cell: Cell::new(&limit),
            });
        }
        let slot = slots.get_mut(place)?;
        slot.limit = limit;
        Some(slot)
    }
}

impl Shard {
    fn tidy(&mut self, now: u64) {
        self.cells
            .retain(|_, slots| !slots.iter_mut().all(|s| s.cell.is_idle(now, &s.limit)));
        self.sweep = self.cells.len().saturating_mul(2).clamp(SWEEP, MOST);
    }
}

fn refused(demand: &Demand, slot: &mut Slot, now: u64, wait: u64) -> Denied {
    let standing = slot.cell.look(now, &demand.limit);
    Denied {
        class: demand.scope.class,
        limit: demand.limit,
        asked: demand.amount,
        used: standing.limit.saturating_sub(standing.remaining),
        retry: Duration::from_micros(wait),
    }
}

fn shard_of(scope: &Scope) -> usize {
    usize::try_from(scope.spread()).unwrap_or(0) % SHARDS
}

fn open(shard: &Mutex<Shard>) -> Guard<'_> {
    // A panic elsewhere can't leave a cell half changed: each change is a few assignments.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
