//! Limits: what can be limited, for whom, and what a call takes of each.
//!
//! A [`Limit`] is a size over a span; a [`Scope`] says whose it is; a [`Cell`] is how far it is used up, on a clock
//! that is an argument (microseconds); a [`Plan`] is all that one call takes, which a backend decides in one step:
//! all of it, or nothing. Backends (memory, Redis) keep the cells; nothing here does. Called by `gateway::limits`
//! and `gateway::check`, by `guan::config` and by `control` for the text form.

mod cell;
mod period;
mod plan;
mod scope;
mod written;

use std::time::Duration;

pub use cell::{Cell, Windowed};
pub use period::{Period, period};
pub use plan::{Amounts, Demand, Plan, Price, Told};
pub use scope::{CallerId, Class, Scope};
pub use written::{LimitFault, MOST_LISTED, budgets, money, parse_budget, parse_limit, rates};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Measure {
    /// Calls that were admitted.
    Requests,
    /// Calls that run at the same time.
    Running,
    /// Tokens of prompts.
    Input,
    /// Tokens of answers.
    Output,
    /// Both together.
    Tokens,
    /// Millionths of the price table's currency.
    Money,
}

/// Over which time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Span {
    /// At the same time: no window.
    Now,
    /// A second.
    Second,
    /// Sixty.
    Minute,
    /// Sixty minutes.
    Hour,
    /// A day: 24 hours back, or a calendar day in UTC for a budget.
    Day,
    /// A week from Monday on, UTC.
    Week,
    /// A calendar month, UTC.
    Month,
}

/// How a limit is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Shape {
    /// GCRA: at most the burst at once, and burst + size·t/span in any time t.
    Gcra,
    /// At most the size in any span.
    Sliding,
    /// Held while the call runs.
    Held,
    /// A calendar period in UTC: a budget.
    Calendar,
}

/// What a cell is for within its scope: limits of one kind share a cell whatever their sizes.
pub type Kind = (Measure, Span, Shape);

/// One limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What is counted.
    pub measure: Measure,
    /// Over which time.
    pub span: Span,
    /// How.
    pub shape: Shape,
    /// How much, at least 1 and at most [`MOST`].
    pub size: u64,
    /// For [`Shape::Gcra`]: how much at once, 1 to `size`. Else the size.
    pub burst: u64,
}

/// The largest size: what a double holds exactly, so that every backend counts alike.
pub const MOST: u64 = 1 << 53;

/// Microseconds of a second.
pub const SECOND: u64 = 1_000_000;

impl Span {
    /// Microseconds; zero for [`Self::Now`]. Weeks and months are calendar periods.
    #[must_use]
    pub const fn micros(self) -> u64 {
        SECOND.saturating_mul(match self {
            Self::Now => 0,
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3600,
            Self::Day => 86_400,
            Self::Week => 7 * 86_400,
            Self::Month => 31 * 86_400,
        })
    }

    /// Its name in texts.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Now => "once",
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
        }
    }
}

impl Measure {
    /// Its name in texts.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Running => "concurrent requests",
            Self::Input => "input_tokens",
            Self::Output => "output_tokens",
            Self::Tokens => "tokens",
            Self::Money => "money",
        }
    }

    /// Whether it counts tokens or what they cost.
    #[must_use]
    pub const fn is_amount(self) -> bool {
        matches!(
            self,
            Self::Input | Self::Output | Self::Tokens | Self::Money
        )
    }
}

impl Limit {
    /// `size` calls a minute, `size` of them at once.
    #[must_use]
    pub const fn per_minute(size: u64) -> Self {
        Self {
            measure: Measure::Requests,
            span: Span::Minute,
            shape: Shape::Gcra,
            size,
            burst: size,
        }
    }

    /// `size` calls at the same time.
    #[must_use]
    pub const fn running(size: u64) -> Self {
        Self {
            measure: Measure::Running,
            span: Span::Now,
            shape: Shape::Held,
            size,
            burst: size,
        }
    }

    /// What it shares a cell with.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        (self.measure, self.span, self.shape)
    }

    /// The narrower of two of one kind.
    #[must_use]
    pub fn narrowest(self, other: Self) -> Self {
        Self {
            size: self.size.min(other.size),
            burst: self.burst.min(other.burst),
            ..self
        }
    }

    /// Nanoseconds between two calls in the long run, rounded up: never more than the size in a span.
    #[must_use]
    pub const fn interval_ns(&self) -> u64 {
        let span = self.span.micros().saturating_mul(1000);
        let size = if self.size == 0 { 1 } else { self.size };
        span.div_ceil(size)
    }

    /// One of `nodes` equal parts; at least so much that one call of `amount` fits that fits in the whole.
    #[must_use]
    pub fn part(self, nodes: u64, amount: u64) -> Self {
        let part = |whole: u64| {
            let part = whole.checked_div(nodes).unwrap_or(whole);
            part.max(amount.min(whole)).max(1)
        };
        Self {
            size: part(self.size),
            burst: part(self.burst),
            ..self
        }
    }

    /// How finely a sliding window is kept, microseconds: to the microsecond for few calls, else to a 60th of it.
    /// What was taken counts until its grain has left the window whole, so it never counts too short.
    #[must_use]
    pub const fn grain(&self) -> u64 {
        if matches!(self.measure, Measure::Requests) && self.size <= EXACT {
            1
        } else {
            self.span.micros() / GRAINS
        }
    }
}

/// Sliding windows of at most so many calls are kept call by call.
const EXACT: u64 = 128;

/// Larger ones in so many grains.
const GRAINS: u64 = 60;

/// What a limit says at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How much it lets through at once.
    pub limit: u64,
    /// How much would be let through now.
    pub remaining: u64,
    /// Until all of it is free again.
    pub reset: Duration,
}

/// A limit that a call doesn't fit in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// Whose.
    pub class: Class,
    /// Which.
    pub limit: Limit,
    /// What was asked for.
    pub asked: u64,
    /// What is used now.
    pub used: u64,
    /// When the same call fits, if nobody else takes from it.
    pub retry: Duration,
}

impl Denied {
    /// A call that is larger than the limit itself: it can't ever fit.
    #[must_use]
    pub const fn never(&self) -> bool {
        self.asked > self.limit.size
    }
}

#[cfg(test)]
mod tests;
