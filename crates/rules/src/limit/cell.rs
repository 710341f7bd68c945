//! How far one limit is used up: the arithmetic of each shape, on a clock that is an argument (microseconds).
//!
//! Every figure is a whole number below 2^53, so the script that Redis runs, which counts in doubles, comes to the
//! same answers. A clock that steps back frees nothing; one that steps back by more than the window is taken as it is.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Limit, Period, SECOND, Shape, Standing, period};

/// The state of one limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// [`Shape::Gcra`].
    Gcra {
        /// When it was last taken from.
        last: u64,
        /// What had to drain away then before it was full again, nanoseconds.
        debt: u64,
    },
    /// [`Shape::Sliding`].
    Sliding(Windowed),
    /// [`Shape::Held`]: how many run.
    Held(u64),
    /// [`Shape::Calendar`].
    Calendar {
        /// The period's first microsecond.
        start: u64,
        /// What was charged in it.
        spent: u64,
        /// What running calls reserved.
        held: u64,
    },
}

/// What was taken in a sliding window, by grain, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Windowed {
    grains: VecDeque<(u64, u64)>,
    used: u64,
}

impl Cell {
    /// Nothing used.
    #[must_use]
    pub fn new(limit: &Limit) -> Self {
        match limit.shape {
            Shape::Gcra => Self::Gcra { last: 0, debt: 0 },
            Shape::Sliding => Self::Sliding(Windowed::default()),
            Shape::Held => Self::Held(0),
            Shape::Calendar => Self::Calendar {
                start: 0,
                spent: 0,
                held: 0,
            },
        }
    }

    /// Takes `amount`, or says in how many microseconds it fits if nobody else takes; then nothing is taken.
    ///
    /// # Errors
    /// That wait.
    pub fn take(&mut self, now: u64, limit: &Limit, amount: u64) -> Result<(), u64> {
        self.fits(now, limit, amount)?;
        self.force(now, limit, amount);
        Ok(())
    }

    /// Whether `amount` fits, taking nothing.
    ///
    /// # Errors
    /// In how many microseconds it does if nobody else takes.
    pub fn fits(&mut self, now: u64, limit: &Limit, amount: u64) -> Result<(), u64> {
        self.turn(now, limit);
        let size = limit.size;
        match self {
            Self::Gcra { debt, .. } => {
                let after = debt.saturating_add(amount.saturating_mul(limit.interval_ns()));
                let most = limit.burst.saturating_mul(limit.interval_ns());
                if after > most {
                    return Err(after.saturating_sub(most).div_ceil(1000));
                }
            }
            Self::Sliding(window) => {
                if window.used.saturating_add(amount) > size {
                    return Err(window.wait(now, limit, amount));
                }
            }
            Self::Held(running) => {
                if running.saturating_add(amount) > size {
                    return Err(SECOND);
                }
            }
            Self::Calendar { spent, held, .. } => {
                if spent.saturating_add(*held).saturating_add(amount) > size {
                    // Without what runs it would fit: that ends sooner than the period.
                    let waits_for_calls = spent.saturating_add(amount) <= size;
                    let end = period(limit.span, now).end;
                    return Err(if waits_for_calls {
                        SECOND
                    } else {
                        end.saturating_sub(now)
                    });
                }
            }
        }
        Ok(())
    }

    /// Takes `amount` whether it fits or not: it was let through elsewhere.
    pub fn force(&mut self, now: u64, limit: &Limit, amount: u64) {
        self.turn(now, limit);
        match self {
            Self::Gcra { last, debt } => {
                let after = debt.saturating_add(amount.saturating_mul(limit.interval_ns()));
                (*last, *debt) = (now.max(*last), after);
            }
            Self::Sliding(window) => window.add(now, limit, amount),
            Self::Held(running) => *running = running.saturating_add(amount),
            Self::Calendar { held, .. } => *held = held.saturating_add(amount),
        }
    }

    /// Ends a call that took `reserved` at `taken` and cost `actual`: the difference comes back, an over-run is
    /// charged. What has left its window is neither.
    pub fn settle(&mut self, taken: u64, now: u64, limit: &Limit, reserved: u64, actual: u64) {
        self.turn(now, limit);
        match self {
            // A call that was admitted is a call.
            Self::Gcra { .. } => {}
            Self::Sliding(window) => {
                if !limit.measure.is_amount() {
                    return;
                }
                window.give_back(limit.stamp(taken), reserved.saturating_sub(actual));
                let more = actual.saturating_sub(reserved);
                if more > 0 {
                    window.add(now, limit, more);
                }
            }
            Self::Held(running) => *running = running.saturating_sub(reserved),
            // A call belongs to the period that it was admitted in.
            Self::Calendar { start, .. } if taken < *start => {}
            Self::Calendar { spent, held, .. } => {
                *held = held.saturating_sub(reserved);
                *spent = spent.saturating_add(actual);
            }
        }
    }

    /// Counts a call that was let through before this process began: never refused, and over.
    pub fn replay(&mut self, taken: u64, limit: &Limit, amount: u64) {
        match self {
            Self::Gcra { .. } | Self::Sliding(_) => self.force(taken, limit, amount),
            // What runs isn't past, and budgets are known by the store.
            Self::Held(_) | Self::Calendar { .. } => {}
        }
    }

    /// What a budget's store says was spent in the period of `now`: the larger figure stands, since each of the two
    /// may know of calls that the other doesn't know of yet.
    pub fn spent(&mut self, now: u64, limit: &Limit, known: u64) {
        self.turn(now, limit);
        if let Self::Calendar { spent, .. } = self {
            *spent = known.max(*spent);
        }
    }

    /// Forgets what was used; what runs goes on running.
    pub fn reset(&mut self) {
        match self {
            Self::Gcra { debt, .. } => *debt = 0,
            Self::Sliding(window) => *window = Windowed::default(),
            Self::Held(_) => {}
            Self::Calendar { spent, .. } => *spent = 0,
        }
    }

    /// How it stands, taking nothing.
    pub fn look(&mut self, now: u64, limit: &Limit) -> Standing {
        self.turn(now, limit);
        let (used, reset) = match self {
            Self::Gcra { debt, .. } => {
                let most = limit.burst.saturating_mul(limit.interval_ns());
                let free = most.saturating_sub(*debt);
                let remaining = free.checked_div(limit.interval_ns()).unwrap_or(0);
                (limit.burst.saturating_sub(remaining), debt.div_ceil(1000))
            }
            Self::Sliding(window) => (window.used, window.reset(now, limit)),
            Self::Held(running) => (*running, 0),
            Self::Calendar { spent, held, .. } => (
                spent.saturating_add(*held),
                period(limit.span, now).end.saturating_sub(now),
            ),
        };
        Standing {
            limit: limit.burst,
            remaining: limit.burst.saturating_sub(used),
            reset: Duration::from_micros(reset),
        }
    }

    /// Whether it is as good as new at `now`, so that it may be forgotten.
    pub fn is_idle(&mut self, now: u64, limit: &Limit) -> bool {
        self.turn(now, limit);
        match self {
            Self::Gcra { debt, .. } => *debt == 0,
            Self::Sliding(window) => window.grains.is_empty(),
            Self::Held(running) => *running == 0,
            Self::Calendar { spent, held, .. } => *spent == 0 && *held == 0,
        }
    }

    /// Lets go of what is over at `now`.
    fn turn(&mut self, now: u64, limit: &Limit) {
        match self {
            Self::Gcra { last, debt } => {
                let passed = now.saturating_sub(*last);
                *debt = debt.saturating_sub(passed.saturating_mul(1000));
                let is_far_back = now.saturating_add(limit.span.micros()) < *last;
                if now > *last || is_far_back {
                    *last = now;
                }
            }
            Self::Sliding(window) => window.turn(now, limit),
            Self::Held(_) => {}
            Self::Calendar { start, spent, held } => {
                let Period { start: this, .. } = period(limit.span, now);
                if *start != this {
                    (*start, *spent, *held) = (this, 0, 0);
                }
            }
        }
    }
}

impl Limit {
    /// When the grain that `at` lies in ends.
    const fn stamp(&self, at: u64) -> u64 {
        let grain = self.grain();
        if grain <= 1 {
            return at;
        }
        at.div_ceil(grain).saturating_mul(grain)
    }
}

impl Windowed {
    fn turn(&mut self, now: u64, limit: &Limit) {
        let span = limit.span.micros();
        let far_ahead = now.saturating_add(span).saturating_add(limit.grain());
        while let Some((stamp, amount)) = self.grains.front() {
            let is_over = stamp.saturating_add(span) <= now || *stamp > far_ahead;
            if !is_over {
                return;
            }
            self.used = self.used.saturating_sub(*amount);
            self.grains.pop_front();
        }
    }

    fn add(&mut self, now: u64, limit: &Limit, amount: u64) {
        self.used = self.used.saturating_add(amount);
        let stamp = limit.stamp(now);
        match self.grains.back_mut() {
            // Also where a clock stepped back: what came later can't leave earlier.
            Some((last, sum)) if *last >= stamp => *sum = sum.saturating_add(amount),
            _ => self.grains.push_back((stamp, amount)),
        }
    }

    /// Only from the grain that it was taken in: what isn't there any more has left the window already.
    fn give_back(&mut self, stamp: u64, amount: u64) {
        let Ok(place) = self.grains.binary_search_by_key(&stamp, |(at, _)| *at) else {
            return;
        };
        if let Some((_, sum)) = self.grains.get_mut(place) {
            let back = amount.min(*sum);
            *sum = sum.saturating_sub(back);
            self.used = self.used.saturating_sub(back);
            if *sum == 0 {
                self.grains.remove(place);
            }
        }
    }

    fn wait(&self, now: u64, limit: &Limit, amount: u64) -> u64 {
        let mut left = self.used;
        let mut wait = limit.span.micros();
        for (stamp, sum) in &self.grains {
            left = left.saturating_sub(*sum);
            wait = stamp
                .saturating_add(limit.span.micros())
                .saturating_sub(now);
            if left.saturating_add(amount) <= limit.size {
                break;
            }
        }
        wait
    }

    fn reset(&self, now: u64, limit: &Limit) -> u64 {
        self.grains.back().map_or(0, |(stamp, _)| {
            stamp
                .saturating_add(limit.span.micros())
                .saturating_sub(now)
        })
    }
}
