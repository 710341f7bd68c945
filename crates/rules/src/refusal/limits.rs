//! How a limit that a call doesn't fit in is answered: status, code, audit word, and a text that names the limit.

use std::time::Duration;

use super::{INVALID, spoken};
use crate::limit::{Class, Denied, Measure, Shape, Span};

/// A longer wait than this is no retry: SDKs sleep as long as they are told, or don't wait at all.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(120);

pub(super) const fn limit_word(denied: &Denied) -> &'static str {
    if denied.never() {
        return "exceeds-limit";
    }
    if matches!(denied.limit.shape, Shape::Calendar) {
        return "budget";
    }
    match denied.limit.measure {
        Measure::Requests => "request-rate",
        Measure::Running => "concurrency",
        Measure::Input | Measure::Output | Measure::Tokens | Measure::Money => "token-rate",
    }
}

pub(super) const fn limit_head(denied: &Denied) -> (u16, &'static str, Option<&'static str>) {
    if denied.never() {
        return (400, INVALID, Some("exceeds_limit"));
    }
    if matches!(denied.limit.shape, Shape::Calendar) {
        return (429, "insufficient_quota", Some("insufficient_quota"));
    }
    let kind = match denied.limit.measure {
        Measure::Requests | Measure::Running => "requests",
        Measure::Input | Measure::Output | Measure::Tokens | Measure::Money => "tokens",
    };
    (429, kind, Some("rate_limit_exceeded"))
}

/// Names the limit, whose it is and how it stands, in the words that people and programs look for.
pub(super) fn limit_message(denied: &Denied) -> String {
    let Denied {
        class,
        limit,
        asked,
        used,
        retry,
    } = denied;
    let whose = class.spoken();
    if denied.never() {
        return format!(
            "This request needs up to {} and can never fit the limit of {whose}, {limit}. \
             Ask for a shorter answer (`max_tokens`) or send less.",
            amount(limit.measure, *asked)
        );
    }
    let wait = spoken(*retry);
    if limit.measure == Measure::Running {
        let who = match class {
            Class::Key => "",
            Class::Project => " in your project",
            Class::Role => " in your role",
            Class::Model => " of the model",
            Class::Node => " on this server",
        };
        return format!(
            "Limit reached on concurrent requests: {} may run at the same time{who}. \
             Please try again when one has ended.",
            limit.size
        );
    }
    if limit.shape == Shape::Calendar {
        return format!(
            "The budget of {whose} is spent: {limit}, used {}, requested {}. It starts again in {wait}.",
            amount(limit.measure, *used),
            amount(limit.measure, *asked)
        );
    }
    let unit = match (limit.measure, limit.span) {
        (Measure::Requests, Span::Minute) => "requests per min (RPM)".to_owned(),
        (Measure::Requests, Span::Day) => "requests per day (RPD)".to_owned(),
        (Measure::Tokens, Span::Minute) => "tokens per min (TPM)".to_owned(),
        (Measure::Tokens, Span::Day) => "tokens per day (TPD)".to_owned(),
        (measure, span) => format!("{} per {}", measure.name().replace('_', " "), span.name()),
    };
    let size = limit.size;
    format!(
        "Rate limit reached for {whose} on {unit}: Limit {size}, Used {used}, Requested {asked}. \
         Please try again in {wait}."
    )
}

fn amount(measure: Measure, number: u64) -> String {
    match measure {
        Measure::Money => format!("{}.{:06}", number / 1_000_000, number % 1_000_000),
        Measure::Requests
        | Measure::Running
        | Measure::Input
        | Measure::Output
        | Measure::Tokens => format!("{number} {}", measure.name().replace('_', " ")),
    }
}
