//! Who goes next when a model's places are taken: fair between tenants, and between the callers of a tenant.
//!
//! Start-time fair queueing (Goyal, Vin, Cheng 1996) in two levels. What is shared is token-seconds: the tokens that
//! a call holds times the time that it holds them, which is what fills a model server's memory. A call is charged an
//! estimate when it starts and what it really took when it ends. Whoever has had least for his weight goes next;
//! first come, first served only within one caller. A tenant that was idle gains nothing by it.
//!
//! Two rules more. When the line is full, the newest call of the tenant with the longest line makes room, so that
//! nobody is kept out by another's heap. And of four places and more, a quarter can't be taken by a tenant that has
//! all the rest while others were here in the last ten seconds: their next call finds a place at once.
//!
//! Pure: time is an argument, milliseconds on one clock. Called by `gateway::check::admit`.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

/// A call in the line or in a place.
pub type Ticket = u64;

/// How long a tenant counts as present after its last call came or ended, milliseconds.
const PRESENT_MS: u64 = 10_000;

/// Comings and goings that are remembered.
const RECENT: usize = 64;

/// What a service is taken to last before one has ended, milliseconds.
const FIRST_SERVICE_MS: u64 = 1000;

/// Idle tenants and callers that may lie around before they are swept out.
const IDLE: usize = 64;

/// A call that wants a place.
#[derive(Clone, Debug)]
pub struct Ask<T> {
    /// Who pays for it.
    pub tenant: T,
    /// Who of the tenant makes it.
    pub caller: T,
    /// Tokens that it may hold.
    pub tokens: u64,
    /// The tenant's share against others, at least one.
    pub weight: u32,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entered {
    /// It has a place.
    Started(Ticket),
    /// It waits. `instead` had to leave the line for it.
    Waiting {
        /// Its ticket.
        ticket: Ticket,
        /// A waiting call that is refused now.
        instead: Option<Ticket>,
    },
    /// The line is full, and its own tenant's calls fill it.
    Full,
}

/// How a waiting call stands: an estimate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// 1 for the next.
    pub position: usize,
    /// How long it will wait.
    pub wait: Duration,
}

/// The line of one model.
#[derive(Debug)]
pub struct Queue<T> {
    places: u32,
    running: u32,
    most_waiting: usize,
    waiting: usize,
    /// Virtual time: the start tag of the tenant that was served last.
    now: u128,
    tenants: BTreeMap<T, Tenant<T>>,
    /// Tenants that wait, by start tag.
    ready: BTreeSet<(u128, T)>,
    calls: HashMap<Ticket, Call<T>>,
    next: Ticket,
    service_ms: u64,
    recent: VecDeque<(u64, T)>,
    /// Tenants that the last walk left.
    left: usize,
}

#[derive(Debug)]
struct Tenant<T> {
    tag: u128,
    weight: u128,
    running: u32,
    waiting: usize,
    seen: u64,
    /// Callers that the last walk left.
    left: usize,
    now: u128,
    callers: BTreeMap<T, Caller>,
    ready: BTreeSet<(u128, T)>,
}

#[derive(Debug, Default)]
struct Caller {
    tag: u128,
    running: u32,
    seen: u64,
    line: VecDeque<Ticket>,
}

#[derive(Debug)]
struct Call<T> {
    tenant: T,
    caller: T,
    tokens: u64,
    /// When it started, and what it was charged then, token-milliseconds.
    started: Option<(u64, u128)>,
}

impl<T: Clone + Ord> Queue<T> {
    /// A line before `places` places, at least one, in which at most `most_waiting` calls wait.
    #[must_use]
    pub fn new(places: u32, most_waiting: usize) -> Self {
        Self {
            places: places.max(1),
            running: 0,
            most_waiting,
            waiting: 0,
            now: 0,
            tenants: BTreeMap::new(),
            ready: BTreeSet::new(),
            calls: HashMap::new(),
            next: 0,
            service_ms: FIRST_SERVICE_MS,
            recent: VecDeque::new(),
            left: 0,
        }
    }

    /// Calls that have a place.
    #[must_use]
    pub const fn running(&self) -> u32 {
        self.running
    }

    /// Calls that wait.
    #[must_use]
    pub const fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many may wait.
    #[must_use]
    pub const fn most_waiting(&self) -> usize {
        self.most_waiting
    }

    /// Places now.
    #[must_use]
    pub const fn places(&self) -> u32 {
        self.places
    }

    /// Other sizes. Calls that have a place keep it; those that may start now are added to `started`.
    pub fn resize(&mut self, places: u32, most_waiting: usize, at: u64, started: &mut Vec<Ticket>) {
        self.places = places.max(1);
        self.most_waiting = most_waiting;
        self.start_all(at, started);
    }

    /// A call comes at `at`.
    pub fn enter(&mut self, ask: Ask<T>, at: u64) -> Entered {
        self.sweep(at);
        let Ask {
            tenant: name,
            caller: caller_name,
            tokens,
            weight,
        } = ask;
        let now = self.now;
        let tenant = self.tenants.entry(name.clone()).or_insert_with(|| Tenant {
            tag: now,
            weight: 1,
            running: 0,
            waiting: 0,
            seen: at,
            left: 0,
            now: 0,
            callers: BTreeMap::new(),
            ready: BTreeSet::new(),
        });
        tenant.seen = at;
        tenant.weight = u128::from(weight.max(1));
        if tenant.waiting == 0 {
            // Having been away gains nothing.
            tenant.tag = tenant.tag.max(now);
        }
        tenant.sweep(at);
        let inner = tenant.now;
        let caller = tenant.callers.entry(caller_name.clone()).or_default();
        caller.seen = at;
        if caller.line.is_empty() {
            caller.tag = caller.tag.max(inner);
        }
        let own = tenant.waiting;
        self.next = self.next.wrapping_add(1);
        let ticket = self.next;
        let call = Call {
            tenant: name.clone(),
            caller: caller_name,
            tokens,
            started: None,
        };
        self.calls.insert(ticket, call);
        // Whoever waits while a place is free waits for a place that is kept for others.
        if own == 0 && self.running < self.places && self.may_start(&name, at) {
            self.remember(at, name);
            self.start(ticket, at);
            return Entered::Started(ticket);
        }
        let mut instead = None;
        if self.waiting >= self.most_waiting {
            instead = self.longest(own);
            let Some(newest) = instead else {
                self.calls.remove(&ticket);
                return Entered::Full;
            };
            self.leave_line(newest);
            self.calls.remove(&newest);
        }
        self.remember(at, name);
        self.join_line(ticket);
        Entered::Waiting { ticket, instead }
    }

    /// A call leaves: its place, or the line. `tokens` is what it held in the end, if that is known. Calls that may
    /// start now are added to `started`.
    pub fn leave(
        &mut self,
        ticket: Ticket,
        tokens: Option<u64>,
        at: u64,
        started: &mut Vec<Ticket>,
    ) {
        if self.calls.get(&ticket).is_some_and(|c| c.started.is_none()) {
            self.leave_line(ticket);
        }
        let Some(call) = self.calls.remove(&ticket) else {
            return;
        };
        if let Some((since, charged)) = call.started {
            let held = at.saturating_sub(since);
            let real = u128::from(tokens.unwrap_or(call.tokens).max(1))
                .saturating_mul(u128::from(held.max(1)));
            self.charge(&call.tenant, &call.caller, real, charged);
            self.running = self.running.saturating_sub(1);
            if let Some(tenant) = self.tenants.get_mut(&call.tenant) {
                tenant.running = tenant.running.saturating_sub(1);
                if let Some(caller) = tenant.callers.get_mut(&call.caller) {
                    caller.running = caller.running.saturating_sub(1);
                }
            }
            // An eighth of each: a mean that follows.
            self.service_ms = self
                .service_ms
                .saturating_mul(7)
                .saturating_add(held)
                .div_ceil(8)
                .max(1);
            self.remember(at, call.tenant);
        }
        self.start_all(at, started);
        if self.calls.is_empty() {
            // A new day: nobody owes anything.
            self.tenants.clear();
            self.left = 0;
            self.now = 0;
        }
    }

    /// How a waiting call stands; `None` if it doesn't wait.
    #[must_use]
    pub fn place(&self, ticket: Ticket) -> Option<Place> {
        let call = self.calls.get(&ticket).filter(|c| c.started.is_none())?;
        let tenant = self.tenants.get(&call.tenant)?;
        let line = &tenant.callers.get(&call.caller)?.line;
        let own = line.iter().position(|t| *t == ticket)?.saturating_add(1);
        // Each of the own ones waits for one of every other caller and tenant.
        let position = own
            .saturating_mul(tenant.ready.len().max(1))
            .min(tenant.waiting)
            .saturating_mul(self.ready.len().max(1))
            .min(self.waiting);
        Some(Place {
            position,
            wait: self.wait_of(position),
        })
    }

    /// How long a call that came now would wait.
    #[must_use]
    pub fn wait_of_next(&self) -> Duration {
        self.wait_of(self.waiting.saturating_add(1))
    }

    fn wait_of(&self, position: usize) -> Duration {
        let position = u64::try_from(position).unwrap_or(u64::MAX);
        let all = self.service_ms.saturating_mul(position);
        Duration::from_millis(all.checked_div(self.places.into()).unwrap_or(all))
    }

    /// Whether a tenant may have one place more.
    fn may_start(&self, tenant: &T, at: u64) -> bool {
        let quarter = self.places / 4;
        let has = self.tenants.get(tenant).map_or(0, |t| t.running);
        if quarter == 0 || has < self.places.saturating_sub(quarter) {
            return true;
        }
        // Others that were here a moment ago and have nothing now: each keeps a place, a quarter of them at most.
        let mut others: Vec<&T> = Vec::new();
        for (seen, other) in self.recent.iter().rev() {
            if at.saturating_sub(*seen) > PRESENT_MS || others.len() >= places(quarter) {
                break;
            }
            let idle = |t: &Tenant<T>| t.running == 0 && t.waiting == 0;
            if other != tenant
                && !others.contains(&other)
                && self.tenants.get(other).is_none_or(idle)
            {
                others.push(other);
            }
        }
        let kept = u32::try_from(others.len()).unwrap_or(u32::MAX);
        self.running.saturating_add(kept) < self.places
    }

    fn start_all(&mut self, at: u64, started: &mut Vec<Ticket>) {
        while self.running < self.places {
            let next = self.ready.iter().find(|(_, name)| self.may_start(name, at));
            let Some(ticket) = next.and_then(|(_, name)| self.head(name)) else {
                return;
            };
            self.leave_line(ticket);
            self.start(ticket, at);
            started.push(ticket);
        }
    }

    /// The call that a tenant sends next.
    fn head(&self, name: &T) -> Option<Ticket> {
        let tenant = self.tenants.get(name)?;
        let (_, caller) = tenant.ready.first()?;
        tenant.callers.get(caller)?.line.front().copied()
    }

    fn start(&mut self, ticket: Ticket, at: u64) {
        let Some(call) = self.calls.get_mut(&ticket) else {
            return;
        };
        let estimate =
            u128::from(call.tokens.max(1)).saturating_mul(u128::from(self.service_ms.max(1)));
        call.started = Some((at, estimate));
        let (name, caller_name) = (call.tenant.clone(), call.caller.clone());
        self.running = self.running.saturating_add(1);
        if let Some(tenant) = self.tenants.get_mut(&name) {
            self.now = self.now.max(tenant.tag);
            tenant.running = tenant.running.saturating_add(1);
            if let Some(caller) = tenant.callers.get_mut(&caller_name) {
                tenant.now = tenant.now.max(caller.tag);
                caller.running = caller.running.saturating_add(1);
            }
        }
        self.charge(&name, &caller_name, estimate, 0);
    }

    /// Moves a tenant's and its caller's tags on by `real`, and back by what was `charged` before.
    fn charge(&mut self, name: &T, caller_name: &T, real: u128, charged: u128) {
        let Some(tenant) = self.tenants.get_mut(name) else {
            return;
        };
        // Both weights are at least one.
        let part = |of: u128, by: u128| of.checked_div(by).unwrap_or(of);
        let moved = |tag: u128, by: u128| {
            tag.saturating_add(part(real, by))
                .saturating_sub(part(charged, by))
        };
        let (before, after) = (tenant.tag, moved(tenant.tag, tenant.weight));
        tenant.tag = after;
        if tenant.waiting > 0 && self.ready.remove(&(before, name.clone())) {
            self.ready.insert((after, name.clone()));
        }
        if let Some(caller) = tenant.callers.get_mut(caller_name) {
            let (before, after) = (caller.tag, moved(caller.tag, 1));
            caller.tag = after;
            if !caller.line.is_empty() && tenant.ready.remove(&(before, caller_name.clone())) {
                tenant.ready.insert((after, caller_name.clone()));
            }
        }
    }

    fn join_line(&mut self, ticket: Ticket) {
        let Some(call) = self.calls.get(&ticket) else {
            return;
        };
        let Some(tenant) = self.tenants.get_mut(&call.tenant) else {
            return;
        };
        let caller = tenant.callers.entry(call.caller.clone()).or_default();
        caller.line.push_back(ticket);
        tenant.ready.insert((caller.tag, call.caller.clone()));
        tenant.waiting = tenant.waiting.saturating_add(1);
        self.ready.insert((tenant.tag, call.tenant.clone()));
        self.waiting = self.waiting.saturating_add(1);
    }

    fn leave_line(&mut self, ticket: Ticket) {
        let Some(call) = self.calls.get(&ticket) else {
            return;
        };
        let Some(tenant) = self.tenants.get_mut(&call.tenant) else {
            return;
        };
        let Some(caller) = tenant.callers.get_mut(&call.caller) else {
            return;
        };
        let Some(at) = caller.line.iter().position(|t| *t == ticket) else {
            return;
        };
        caller.line.remove(at);
        if caller.line.is_empty() {
            tenant.ready.remove(&(caller.tag, call.caller.clone()));
        }
        tenant.waiting = tenant.waiting.saturating_sub(1);
        if tenant.waiting == 0 {
            self.ready.remove(&(tenant.tag, call.tenant.clone()));
        }
        self.waiting = self.waiting.saturating_sub(1);
    }

    /// The newest call of the busiest caller of the tenant with the longest line, if that is longer by more than one
    /// than a line of `own`.
    fn longest(&self, own: usize) -> Option<Ticket> {
        let longest = self
            .ready
            .iter()
            .filter_map(|(_, name)| self.tenants.get(name))
            .max_by_key(|tenant| tenant.waiting)?;
        if longest.waiting <= own.saturating_add(1) {
            return None;
        }
        let callers = longest.callers.values();
        let busiest = callers.max_by_key(|caller| caller.line.len())?;
        busiest.line.back().copied()
    }

    fn remember(&mut self, at: u64, tenant: T) {
        if let Some((seen, last)) = self.recent.back_mut()
            && *last == tenant
        {
            *seen = at;
            return;
        }
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((at, tenant));
    }

    /// Forgets who has nothing here and has been away for a while, so that only those of now take memory. Each walk
    /// waits until there are twice as many as the one before left.
    fn sweep(&mut self, at: u64) {
        if self.tenants.len() <= self.left.saturating_mul(2).saturating_add(IDLE) {
            return;
        }
        let away = |seen: u64| at.saturating_sub(seen) > PRESENT_MS;
        self.tenants
            .retain(|_, t| t.running > 0 || t.waiting > 0 || !away(t.seen));
        self.left = self.tenants.len();
    }
}

impl<T: Ord> Tenant<T> {
    fn sweep(&mut self, at: u64) {
        if self.callers.len() <= self.left.saturating_mul(2).saturating_add(IDLE) {
            return;
        }
        let away = |seen: u64| at.saturating_sub(seen) > PRESENT_MS;
        self.callers
            .retain(|_, c| c.running > 0 || !c.line.is_empty() || !away(c.seen));
        self.left = self.callers.len();
    }
}

fn places(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
