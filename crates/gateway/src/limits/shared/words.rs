//! The script's arguments and answers: what `script.lua` is told, and what it says.
//!
//! Pure; called by `shared` and its keeper.

use std::fmt::Write as _;
use std::sync::LazyLock;
use std::time::Duration;

use redis::{Cmd, Script, Value};
use rules::ident::RequestId;
use rules::limit::{Amounts, Demand, Denied, Measure, Plan, Shape, Span, Standing, Told};

/// One decision, one settlement, one sign of life: all in this script.
pub(crate) static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(BODY));

/// Its text.
pub(crate) const BODY: &str = include_str!("script.lua");

/// What the script shall do with a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// All of it, or nothing.
    Take,
    /// The call has ended and cost this much.
    Settle(Amounts),
    /// Whether it was taken isn't known, and nobody wants it any more.
    Cancel,
    /// Nothing: how does it stand?
    Look,
    /// Forget what was used.
    Reset,
    /// So much is known to be spent of budgets.
    Spent,
}

impl Act {
    const fn word(self) -> &'static str {
        match self {
            Self::Take => "take",
            Self::Settle(_) => "settle",
            Self::Cancel => "cancel",
            Self::Look => "look",
            Self::Reset => "reset",
            Self::Spent => "spent",
        }
    }
}

/// How keys of one deployment begin: one hash tag, so that a cluster keeps them together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names(String);

impl Names {
    /// Under this prefix.
    pub(crate) fn new(prefix: &str) -> Self {
        Self(format!("{{{prefix}}}:"))
    }

    /// The key of a call.
    pub(crate) fn call(&self, id: &RequestId) -> String {
        format!("{}c:{id}", self.0)
    }

    /// The key of a limit.
    pub(crate) fn cell(&self, demand: &Demand) -> String {
        let (measure, span, shape) = demand.limit.kind();
        let measure = match measure {
            Measure::Requests => 'r',
            Measure::Running => 'c',
            Measure::Input => 'i',
            Measure::Output => 'o',
            Measure::Tokens => 't',
            Measure::Money => 'm',
        };
        let shape = match shape {
            Shape::Gcra => 'g',
            Shape::Sliding => 's',
            Shape::Held => 'h',
            Shape::Calendar => 'c',
        };
        let mut name = self.0.clone();
        // Writing to a text can't fail.
        write!(name, "{}:{measure}{shape}{}", demand.scope, span.name()).ok();
        name
    }

    /// The key of the nodes that live.
    pub(crate) fn nodes(&self) -> String {
        format!("{}nodes", self.0)
    }
}

/// The words for an act on a plan. `now` is zero but in tests: then the server's clock counts.
pub(crate) fn on_plan(
    names: &Names,
    act: Act,
    id: &RequestId,
    plan: &Plan,
    (now, lease): (u64, Duration),
) -> Cmd {
    let demands = plan.demands();
    let mut cmd = evaluate(demands.len().saturating_add(1));
    cmd.arg(names.call(id));
    for demand in demands {
        cmd.arg(names.cell(demand));
    }
    cmd.arg(act.word())
        .arg(now)
        .arg(id.to_string())
        .arg(micros(lease));
    let cost = match act {
        Act::Settle(actual) => actual,
        Act::Take | Act::Cancel | Act::Look | Act::Reset | Act::Spent => Amounts::default(),
    };
    for demand in demands {
        say(&mut cmd, demand, cost.measured(demand.limit.measure));
    }
    cmd
}

/// The words that begin the leases of a running call again; `held` are its keys that have one.
pub(crate) fn renew(names: &Names, id: &RequestId, held: &[String], lease: Duration) -> Cmd {
    let mut cmd = evaluate(held.len().saturating_add(1));
    cmd.arg(names.call(id)).arg(held);
    cmd.arg("renew")
        .arg(0)
        .arg(id.to_string())
        .arg(micros(lease));
    cmd
}

/// The words by which a node says that it lives.
pub(crate) fn beat(names: &Names, node: &str, lease: Duration) -> Cmd {
    let mut cmd = evaluate(1);
    cmd.arg(names.nodes())
        .arg("beat")
        .arg(0)
        .arg(node)
        .arg(micros(lease));
    cmd
}

/// The keys of a plan whose limits are held while a call runs.
pub(crate) fn held(names: &Names, plan: &Plan) -> Vec<String> {
    let demands = plan.demands().iter();
    demands
        .filter(|demand| demand.limit.shape == Shape::Held)
        .map(|demand| names.cell(demand))
        .collect()
}

/// What a decision says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// When, on the clock that decided.
    pub(crate) at: u64,
    /// How the limits stand after it.
    pub(crate) standings: Vec<Standing>,
    /// What it doesn't fit in.
    pub(crate) denied: Option<Denied>,
}

impl Verdict {
    /// The tightest of each sort.
    pub(crate) fn told(&self, plan: &Plan) -> Told {
        let mut told = Told::default();
        for (demand, standing) in plan.demands().iter().zip(&self.standings) {
            told.note(&demand.limit, *standing);
        }
        told
    }
}

/// Reads an answer to an act on this plan. `None`: it isn't one.
pub(crate) fn read(plan: &Plan, answer: &Value) -> Option<Verdict> {
    let numbers = numbers(answer)?;
    let (is_taken, at, mut rest) = match numbers.as_slice() {
        [1, at, rest @ ..] => (true, *at, rest),
        [0, at, rest @ ..] => (false, *at, rest),
        _ => return None,
    };
    let mut denied = None;
    if !is_taken {
        let [worst, wait, used, after @ ..] = rest else {
            return None;
        };
        rest = after;
        let place = usize::try_from(*worst).ok()?.checked_sub(1)?;
        let demand = plan.demands().get(place)?;
        denied = Some(Denied {
            class: demand.scope.class,
            limit: demand.limit,
            asked: demand.amount,
            used: *used,
            retry: Duration::from_micros(*wait),
        });
    }
    let mut standings = Vec::with_capacity(plan.demands().len());
    for demand in plan.demands() {
        let [remaining, reset, after @ ..] = rest else {
            return None;
        };
        rest = after;
        standings.push(Standing {
            limit: demand.limit.burst,
            remaining: *remaining,
            reset: Duration::from_micros(*reset),
        });
    }
    Some(Verdict {
        at,
        standings,
        denied,
    })
}

/// How many nodes live, from the answer to [`beat`].
pub(crate) fn nodes(answer: &Value) -> Option<u64> {
    match numbers(answer)?.as_slice() {
        [1, _now, nodes] => Some(*nodes),
        _ => None,
    }
}

fn numbers(answer: &Value) -> Option<Vec<u64>> {
    let Value::Array(items) = answer else {
        return None;
    };
    let number = |item: &Value| match item {
        Value::Int(n) => u64::try_from(*n).ok(),
        _ => None,
    };
    items.iter().map(number).collect()
}

fn evaluate(keys: usize) -> Cmd {
    let mut cmd = redis::cmd("EVALSHA");
    cmd.arg(SCRIPT.get_hash()).arg(keys);
    cmd
}

fn say(cmd: &mut Cmd, demand: &Demand, cost: u64) {
    let limit = &demand.limit;
    let shape = match limit.shape {
        Shape::Gcra => "gcra",
        Shape::Sliding => "sliding",
        Shape::Held => "held",
        Shape::Calendar => "calendar",
    };
    cmd.arg(shape);
    match (limit.shape, limit.span) {
        (Shape::Calendar, span @ (Span::Week | Span::Month)) => cmd.arg(span.name()),
        (Shape::Calendar, _) => cmd.arg(Span::Day.name()),
        (Shape::Gcra | Shape::Sliding | Shape::Held, span) => cmd.arg(span.micros()),
    };
    cmd.arg(limit.size)
        .arg(limit.burst)
        .arg(limit.interval_ns())
        .arg(limit.grain())
        .arg(demand.amount)
        .arg(cost)
        .arg(u8::from(limit.measure.is_amount()));
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
