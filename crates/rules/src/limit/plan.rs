//! All that one call takes: which limit of whom, and how much of it. A backend decides a plan in one step.

use std::time::Duration;

use super::{Class, Denied, Kind, Limit, Measure, Scope, Shape, Span, Standing};

/// What a call needs, or cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Tokens of its prompts.
    pub input: u64,
    /// Tokens of its answers.
    pub output: u64,
    /// Millionths of the price table's currency.
    pub money: u64,
}

/// What a million tokens cost, in millionths of the currency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Price {
    /// Of prompts.
    pub input: u64,
    /// Of answers.
    pub output: u64,
}

/// One limit of one holder, and what a call takes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Whose.
    pub scope: Scope,
    /// Which.
    pub limit: Limit,
    /// How much.
    pub amount: u64,
}

/// All demands of one call. Those of one holder stand together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    demands: Vec<Demand>,
}

/// How the limits stand once a call was admitted: the tightest of each sort, for its headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Of calls.
    pub requests: Option<Standing>,
    /// Of tokens.
    pub tokens: Option<Standing>,
}

impl Price {
    /// What these tokens cost, rounded up.
    #[must_use]
    pub fn of(&self, input: u64, output: u64) -> u64 {
        let cost = |tokens: u64, price: u64| u128::from(tokens).saturating_mul(u128::from(price));
        let sum = cost(input, self.input).saturating_add(cost(output, self.output));
        u64::try_from(sum.div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }
}

impl Amounts {
    /// These tokens at this price.
    #[must_use]
    pub fn of(input: u64, output: u64, price: &Price) -> Self {
        Self {
            input,
            output,
            money: price.of(input, output),
        }
    }

    /// How much of a limit that is.
    #[must_use]
    pub const fn measured(&self, measure: Measure) -> u64 {
        match measure {
            Measure::Requests | Measure::Running => 1,
            Measure::Input => self.input,
            Measure::Output => self.output,
            Measure::Tokens => self.input.saturating_add(self.output),
            Measure::Money => self.money,
        }
    }
}

impl Plan {
    /// An empty one with room for the usual.
    #[must_use]
    pub fn new() -> Self {
        Self {
            demands: Vec::with_capacity(12),
        }
    }

    /// Adds limits of one holder. Of two of one kind the narrowest stands.
    pub fn add(&mut self, scope: Scope, limits: impl IntoIterator<Item = Limit>) {
        for limit in limits {
            let same = |d: &&mut Demand| d.scope == scope && d.limit.kind() == limit.kind();
            if let Some(demand) = self.demands.iter_mut().find(same) {
                demand.limit = demand.limit.narrowest(limit);
                continue;
            }
            let demand = Demand {
                scope,
                limit,
                amount: 0,
            };
            let place = self.demands.iter().rposition(|d| d.scope == scope);
            match place {
                Some(place) => self.demands.insert(place.saturating_add(1), demand),
                None => self.demands.push(demand),
            }
        }
    }

    /// Says how much the call takes.
    pub fn ask(&mut self, amounts: &Amounts) {
        for demand in &mut self.demands {
            demand.amount = amounts.measured(demand.limit.measure);
        }
    }

    /// One node's part of every limit, when each of `nodes` decides alone.
    #[must_use]
    pub fn part(&self, nodes: u64) -> Self {
        let part = |demand: &Demand| Demand {
            limit: demand.limit.part(nodes, demand.amount),
            ..*demand
        };
        Self {
            demands: self.demands.iter().map(part).collect(),
        }
    }

    /// The limits of one class of holders.
    #[must_use]
    pub fn of(&self, class: Class) -> Self {
        let own = self.demands.iter().filter(|d| d.scope.class == class);
        Self {
            demands: own.copied().collect(),
        }
    }

    /// Keeps the budgets only, and says of each how much `spent` says; those of which nothing is are left out.
    #[must_use]
    pub fn budgets(mut self, spent: impl Fn(&Scope, Span) -> Amounts) -> Self {
        for demand in &mut self.demands {
            let is_budget = demand.limit.shape == Shape::Calendar;
            demand.amount = if is_budget {
                spent(&demand.scope, demand.limit.span).measured(demand.limit.measure)
            } else {
                0
            };
        }
        self.demands.retain(|demand| demand.amount > 0);
        self
    }

    /// Whether a budget is among them.
    #[must_use]
    pub fn has_budget(&self) -> bool {
        let mut shapes = self.demands.iter().map(|demand| demand.limit.shape);
        shapes.any(|shape| shape == Shape::Calendar)
    }

    /// Keeps only limits of these measures.
    pub fn only(&mut self, keep: impl Fn(Measure) -> bool) {
        self.demands.retain(|demand| keep(demand.limit.measure));
    }

    /// The demands.
    #[must_use]
    pub fn demands(&self) -> &[Demand] {
        &self.demands
    }

    /// The one limit that this call can't ever fit in.
    #[must_use]
    pub fn never(&self) -> Option<Denied> {
        let large = |d: &&Demand| d.limit.measure.is_amount() && d.amount > d.limit.size;
        self.demands.iter().find(large).map(|demand| Denied {
            class: demand.scope.class,
            limit: demand.limit,
            asked: demand.amount,
            used: 0,
            retry: Duration::ZERO,
        })
    }

    /// How many output tokens each of `answers` answers may have so that the call fits into the *size* of every
    /// limit, whatever is left of them now.
    #[must_use]
    pub fn room(&self, input: u64, answers: u64, price: &Price) -> u64 {
        let each = |room: u64| room.checked_div(answers.max(1)).unwrap_or(0);
        let rooms = self.demands.iter().map(|d| match d.limit.measure {
            Measure::Requests | Measure::Running | Measure::Input => u64::MAX,
            Measure::Output => each(d.limit.size),
            Measure::Tokens => each(d.limit.size.saturating_sub(input)),
            Measure::Money => {
                let left = d.limit.size.saturating_sub(price.of(input, 0));
                let tokens = u128::from(left).saturating_mul(1_000_000);
                match tokens.checked_div(u128::from(price.output)) {
                    // Rounding up may cost one more millionth.
                    Some(tokens) => {
                        each(u64::try_from(tokens).unwrap_or(u64::MAX).saturating_sub(1))
                    }
                    None => u64::MAX,
                }
            }
        });
        rooms.min().unwrap_or(u64::MAX)
    }

    /// Whether a limit of this kind of this holder is among them.
    #[must_use]
    pub fn has(&self, class: Class, kind: Kind) -> bool {
        self.demands
            .iter()
            .any(|d| d.scope.class == class && d.limit.kind() == kind)
    }
}

impl Told {
    /// Takes account of one limit's standing: what is tightest is told.
    pub fn note(&mut self, limit: &Limit, standing: Standing) {
        let place = match limit.measure {
            Measure::Requests => &mut self.requests,
            Measure::Input | Measure::Output | Measure::Tokens
                if limit.shape != Shape::Calendar =>
            {
                &mut self.tokens
            }
            Measure::Running
            | Measure::Money
            | Measure::Input
            | Measure::Output
            | Measure::Tokens => return,
        };
        if place.is_none_or(|told| standing.remaining < told.remaining) {
            *place = Some(standing);
        }
    }
}
