//! Who goes next when a model's places are taken: fair between tenants, and between the callers of a tenant.
//!
//! Start-time fair queueing (Goyal, Vin, Cheng 1996) in two levels. What is shared is token-seconds: the tokens that
//! a call holds times the time that it holds them, which is what fills a model server's memory. A call is charged an
//! estimate when it starts and what it really took when it ends, both divided by the weight that it came with. Whoever
//! has had least goes next; first come, first served only within one caller. A tenant that was idle gains nothing by
//! it, and loses nothing by others' estimates: what has been served is counted by what was really taken.
//!
//! Two rules more. When the line is full, the newest call of the tenant with the longest line makes room, or within a
//! tenant that of its busiest caller, so that nobody is kept out by another's heap. And of four places and more, a
//! quarter can't be taken by a tenant that has all the rest while others were here in the last ten seconds: their next
//! call finds a place at once.
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

/// How many times the mean one service may count in the mean.
const OUTLIER: u64 = 8;

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
    /// By how much less it counts against its tenant, at least one.
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
    /// It would wait for longer than it may. Nobody had to leave for it.
    TooLate(Duration),
    /// The line is full, and nobody in it has more than he should.
    Full {
        /// Calls of the same caller are in it.
        own: bool,
    },
}

/// What a call has to show for its place when it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing: it never went on, so it pays for nothing.
    Unused,
    /// It held so many tokens in the end.
    Held(u64),
    /// It isn't known: what it asked for counts.
    Unknown,
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
    /// Virtual time: what the tenant that was served last had really had by then. Estimates of running calls aren't in
    /// it: they go back, and time doesn't.
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

/// What somebody has had.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    /// By calls that have ended.
    settled: u128,
    /// And by estimates of those that run.
    outstanding: u128,
}

impl Share {
    /// What decides who goes next.
    const fn tag(self) -> u128 {
        self.settled.saturating_add(self.outstanding)
    }

    /// Having been away gains nothing.
    fn catch_up(&mut self, now: u128) {
        self.settled = self.settled.max(now);
    }

    fn start(&mut self, estimate: u128) {
        self.outstanding = self.outstanding.saturating_add(estimate);
    }

    fn end(&mut self, estimate: u128, real: u128) {
        self.outstanding = self.outstanding.saturating_sub(estimate);
        self.settled = self.settled.saturating_add(real);
    }
}

#[derive(Debug)]
struct Tenant<T> {
    share: Share,
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
    share: Share,
    running: u32,
    seen: u64,
    line: VecDeque<Ticket>,
}

#[derive(Debug)]
struct Call<T> {
    tenant: T,
    caller: T,
    tokens: u64,
    weight: u128,
    started: Option<Started>,
}

/// A call's place.
#[derive(Clone, Copy, Debug)]
struct Started {
    since: u64,
    /// What it was charged then, token-milliseconds, before its weight.
    estimate: u128,
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

    /// Time has passed: a place that was kept for somebody may be anybody's now. Calls that may start are added to
    /// `started`.
    pub fn tick(&mut self, at: u64, started: &mut Vec<Ticket>) {
        self.start_all(at, started);
    }

    /// A call comes at `at` and would wait for `patience`. Others that may start now are added to `started`.
    pub fn enter(
        &mut self,
        ask: Ask<T>,
        patience: Duration,
        at: u64,
        started: &mut Vec<Ticket>,
    ) -> Entered {
        self.sweep(at);
        self.start_all(at, started);
        let (name, caller_name) = (ask.tenant.clone(), ask.caller.clone());
        let now = self.now;
        let tenant = self.tenants.entry(name.clone()).or_insert_with(|| Tenant {
            share: Share::default(),
            running: 0,
            waiting: 0,
            seen: at,
            left: 0,
            now: 0,
            callers: BTreeMap::new(),
            ready: BTreeSet::new(),
        });
        tenant.seen = at;
        if tenant.waiting == 0 {
            tenant.share.catch_up(now);
        }
        tenant.sweep(at);
        let inner = tenant.now;
        let caller = tenant.callers.entry(caller_name.clone()).or_default();
        caller.seen = at;
        if caller.line.is_empty() {
            caller.share.catch_up(inner);
        }
        let own = tenant.waiting;
        let mine = caller.line.len();
        self.next = self.next.wrapping_add(1);
        let ticket = self.next;
        let call = Call {
            tenant: name.clone(),
            caller: caller_name,
            tokens: ask.tokens,
            weight: ask.weight.max(1).into(),
            started: None,
        };
        self.calls.insert(ticket, call);
        // Whoever waits while a place is free waits for a place that is kept for others.
        if own == 0 && self.running < self.places && self.may_start(&name, at) {
            self.remember(at, name);
            self.start(ticket, at);
            return Entered::Started(ticket);
        }
        let entered = self.queue_up(ticket, own, mine, patience);
        if let Entered::Waiting { .. } = entered {
            self.remember(at, name);
        } else {
            self.calls.remove(&ticket);
        }
        entered
    }

    /// Puts a call into the line, if it has a chance there: the line is as before otherwise.
    fn queue_up(&mut self, ticket: Ticket, own: usize, mine: usize, patience: Duration) -> Entered {
        let instead = if self.waiting < self.most_waiting {
            None
        } else if let Some(newest) = self.longest(ticket, own, mine) {
            self.leave_line(newest);
            Some(newest)
        } else {
            return Entered::Full { own: mine > 0 };
        };
        self.join_line(ticket);
        let wait = self
            .place(ticket)
            .map_or(Duration::ZERO, |place| place.wait);
        if wait > patience {
            self.leave_line(ticket);
            if let Some(newest) = instead {
                // It was the last of its caller's line, and is again.
                self.join_line(newest);
            }
            return Entered::TooLate(wait);
        }
        if let Some(newest) = instead {
            self.calls.remove(&newest);
        }
        Entered::Waiting { ticket, instead }
    }

    /// A call leaves: its place, or the line. Calls that may start now are added to `started`.
    pub fn leave(&mut self, ticket: Ticket, left: Left, at: u64, started: &mut Vec<Ticket>) {
        if self.calls.get(&ticket).is_some_and(|c| c.started.is_none()) {
            self.leave_line(ticket);
        }
        let Some(call) = self.calls.remove(&ticket) else {
            return;
        };
        if let Some(place) = call.started {
            self.end(&call, place, left, at);
        }
        self.start_all(at, started);
        if self.calls.is_empty() {
            // A new day: nobody owes anything.
            self.tenants.clear();
            self.left = 0;
            self.now = 0;
        }
    }

    /// A call gives its place back: what it really took replaces its estimate.
    fn end(&mut self, call: &Call<T>, place: Started, left: Left, at: u64) {
        let held = at.saturating_sub(place.since).max(1);
        let tokens = match left {
            Left::Unused => None,
            Left::Held(tokens) => Some(tokens.max(1)),
            Left::Unknown => Some(call.tokens.max(1)),
        };
        let real = tokens.map_or(0, |n| u128::from(n).saturating_mul(held.into()));
        self.charge(call, |share, weight| {
            share.end(part(place.estimate, weight), part(real, weight));
        });
        self.running = self.running.saturating_sub(1);
        if let Some(tenant) = self.tenants.get_mut(&call.tenant) {
            tenant.running = tenant.running.saturating_sub(1);
            if let Some(caller) = tenant.callers.get_mut(&call.caller) {
                caller.running = caller.running.saturating_sub(1);
            }
        }
        if tokens.is_some() {
            // An eighth of each: a mean that follows, but not one that hung.
            let held = held.min(self.service_ms.saturating_mul(OUTLIER));
            self.service_ms = self
                .service_ms
                .saturating_mul(7)
                .saturating_add(held)
                .div_ceil(8)
                .max(1);
        }
        self.remember(at, call.tenant.clone());
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
        let mut kept = 0_u32;
        for (seen, other) in self.recent.iter().rev() {
            if at.saturating_sub(*seen) > PRESENT_MS || kept >= quarter {
                break;
            }
            let idle = |t: &Tenant<T>| t.running == 0 && t.waiting == 0;
            if other != tenant && self.tenants.get(other).is_none_or(idle) {
                kept = kept.saturating_add(1);
            }
        }
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
        let Some(mut call) = self.calls.remove(&ticket) else {
            return;
        };
        let tokens = u128::from(call.tokens.max(1));
        let estimate = tokens.saturating_mul(self.service_ms.max(1).into());
        call.started = Some(Started {
            since: at,
            estimate,
        });
        self.running = self.running.saturating_add(1);
        if let Some(tenant) = self.tenants.get_mut(&call.tenant) {
            self.now = self.now.max(tenant.share.settled);
            tenant.running = tenant.running.saturating_add(1);
            if let Some(caller) = tenant.callers.get_mut(&call.caller) {
                tenant.now = tenant.now.max(caller.share.settled);
                caller.running = caller.running.saturating_add(1);
            }
        }
        self.charge(&call, |share, weight| share.start(part(estimate, weight)));
        self.calls.insert(ticket, call);
    }

    /// Changes what a call's tenant and its caller have had. The weight counts between tenants only.
    fn charge(&mut self, call: &Call<T>, change: impl Fn(&mut Share, u128)) {
        let Some(tenant) = self.tenants.get_mut(&call.tenant) else {
            return;
        };
        let before = tenant.share.tag();
        change(&mut tenant.share, call.weight);
        let after = tenant.share.tag();
        if tenant.waiting > 0 && self.ready.remove(&(before, call.tenant.clone())) {
            self.ready.insert((after, call.tenant.clone()));
        }
        if let Some(caller) = tenant.callers.get_mut(&call.caller) {
            let before = caller.share.tag();
            change(&mut caller.share, 1);
            let after = caller.share.tag();
            if !caller.line.is_empty() && tenant.ready.remove(&(before, call.caller.clone())) {
                tenant.ready.insert((after, call.caller.clone()));
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
        tenant
            .ready
            .insert((caller.share.tag(), call.caller.clone()));
        tenant.waiting = tenant.waiting.saturating_add(1);
        self.ready.insert((tenant.share.tag(), call.tenant.clone()));
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
            tenant
                .ready
                .remove(&(caller.share.tag(), call.caller.clone()));
        }
        tenant.waiting = tenant.waiting.saturating_sub(1);
        if tenant.waiting == 0 {
            self.ready
                .remove(&(tenant.share.tag(), call.tenant.clone()));
        }
        self.waiting = self.waiting.saturating_sub(1);
    }

    /// Who makes room for `ticket`, whose tenant has `own` calls in the line and its caller `mine`: the newest call of
    /// the tenant with the longest line, or of the own tenant's busiest caller, if that line is longer by more than
    /// one.
    fn longest(&self, ticket: Ticket, own: usize, mine: usize) -> Option<Ticket> {
        let waiting = self.ready.iter();
        let longest = waiting
            .filter_map(|(_, name)| self.tenants.get(name))
            .max_by_key(|tenant| tenant.waiting)?;
        if longest.waiting > own.saturating_add(1) {
            return longest.busiest()?.back().copied();
        }
        let call = self.calls.get(&ticket)?;
        let line = self.tenants.get(&call.tenant)?.busiest()?;
        (line.len() > mine.saturating_add(1))
            .then(|| line.back().copied())
            .flatten()
    }

    /// A tenant was here at `at`. Each is remembered once, so that one that comes often pushes nobody out.
    fn remember(&mut self, at: u64, tenant: T) {
        let known = self.recent.iter().rposition(|(_, name)| *name == tenant);
        if let Some(known) = known {
            self.recent.remove(known);
        } else if self.recent.len() >= RECENT {
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
    /// The line of the caller with most waiting calls.
    fn busiest(&self) -> Option<&VecDeque<Ticket>> {
        let lines = self.callers.values().map(|caller| &caller.line);
        lines.max_by_key(|line| line.len())
    }

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

/// A weight's part; weights are at least one.
fn part(of: u128, weight: u128) -> u128 {
    of.checked_div(weight).unwrap_or(of)
}

#[cfg(test)]
mod tests;
