//! The part of the conversion that limits are about: pools, budgets, caps, prices.
//!
//! Called by `meant::convert` and `meant::models`; the text form of a limit is read by `rules::limit`.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use rules::limit::{Limit, MOST_LISTED, Measure, Price, Shape, money, parse_budget, parse_limit};
use rules::policy::{Caps, Pool};

use super::super::{Seat, nearest, written};
use super::{Judge, PER_MINUTE};

/// `[prices]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Prices {
    /// What sums are in: for people.
    pub(crate) currency: String,
    /// By a model's public name.
    pub(crate) models: BTreeMap<String, Price>,
}

/// Limits and budgets as written side by side.
pub(super) struct Lists<'w> {
    pub(super) limits: &'w [String],
    pub(super) budget: &'w [String],
}

impl Judge {
    /// `limits` and `budget` of a table.
    pub(super) fn limits(&mut self, seat: &Seat, written: &Lists<'_>) -> Arc<[Limit]> {
        let mut found: Vec<Limit> = Vec::new();
        for (key, list, parse) in [
            ("limits", written.limits, parse_limit as fn(&str) -> _),
            ("budget", written.budget, parse_budget),
        ] {
            if list.len() > MOST_LISTED {
                self.fault(seat, key, &format!("holds more than {MOST_LISTED}"));
            }
            for (n, text) in list.iter().enumerate() {
                match parse(text) {
                    Ok(limit) if found.iter().any(|before| before.kind() == limit.kind()) => {
                        let why =
                            format!("{text:?} counts what another one of {key} counts already");
                        self.problem(&seat.key(key).index(n), why);
                    }
                    Ok(limit) => found.push(limit),
                    Err(fault) => self.problem(&seat.key(key).index(n), fault.to_string()),
                }
            }
        }
        found.into()
    }

    /// What many share.
    pub(super) fn pool(&mut self, seat: &Seat, written: &written::Pool) -> Pool {
        let lists = Lists {
            limits: &written.limits,
            budget: &written.budget,
        };
        Pool {
            concurrent_requests: self.concurrent(seat, written.concurrent_requests),
            limits: self.limits(seat, &lists),
        }
    }

    /// `concurrent_requests` of a table.
    pub(super) fn concurrent(&mut self, seat: &Seat, written: Option<i64>) -> Option<u32> {
        let n = self.number(seat, "concurrent_requests", written, &PER_MINUTE)?;
        u32::try_from(n).ok()
    }

    /// `[limits.node]`: a node has no calendar of its own.
    pub(super) fn node(&mut self, seat: &Seat, written: &written::Pool) -> Pool {
        if !written.budget.is_empty() {
            let why =
                "is for keys, projects, roles and models: what a node spends isn't kept apart";
            self.fault(seat, "budget", why);
        }
        self.pool(seat, written)
    }

    /// A table of caps.
    pub(super) fn caps(&mut self, seat: &Seat, written: &written::Caps) -> Caps {
        let mut cap =
            |key: &str, value, range: RangeInclusive<u64>| self.number(seat, key, value, &range);
        Caps {
            prompts: cap("prompts", written.prompts, 1..=64),
            messages: cap("messages", written.messages, 1..=2048),
            tools: cap("tools", written.tools, 0..=128),
            images: cap("images", written.images, 0..=32),
            logprobs: cap("logprobs", written.logprobs, 0..=20),
            context: None,
        }
    }

    /// `[prices]`; `known` are the models.
    pub(super) fn prices(
        &mut self,
        seat: &Seat,
        written: &written::Prices,
        known: &[&str],
    ) -> Prices {
        let currency = written.currency.clone().unwrap_or_default();
        if currency.len() > 16 || currency.chars().any(char::is_control) {
            self.fault(seat, "currency", "must be a short name such as \"EUR\"");
        }
        let mut models = BTreeMap::new();
        for (name, price) in &written.models {
            let seat = seat.key("models").key(name);
            if !known.contains(&name.as_str()) {
                let hint = match nearest(name, known.iter().copied()) {
                    Some(near) => format!("; did you mean \"{near}\"?"),
                    None => String::new(),
                };
                self.problem(
                    &seat,
                    format!(
                        "[prices.models] names {name:?}, which no [[models]] has as its name{hint}"
                    ),
                );
            }
            let mut sum = |key: &str, text: &Option<String>| {
                let text = text.as_deref().unwrap_or("0");
                money(text).filter(|n| *n <= MOST_PRICE).unwrap_or_else(|| {
                    self.fault(
                        &seat,
                        key,
                        "must be a sum for a million tokens in quotes, such as \"0.15\", at most 1000000",
                    );
                    0
                })
            };
            let price = Price {
                input: sum("input", &price.input),
                output: sum("output", &price.output),
            };
            models.insert(name.clone(), price);
        }
        Prices { currency, models }
    }

    /// A budget in money that nothing can be counted for would hold for ever.
    pub(super) fn money_needs_prices(&mut self, seat: &Seat, limits: &[Limit], prices: &Prices) {
        let in_money = limits
            .iter()
            .any(|limit| limit.measure == Measure::Money && limit.shape == Shape::Calendar);
        if in_money && prices.models.is_empty() {
            self.fault(
                seat,
                "budget",
                "is in money, and there is no [prices.models.NAME]",
            );
        }
    }
}

/// Millionths, for a million tokens.
const MOST_PRICE: u64 = 1_000_000_000_000;
