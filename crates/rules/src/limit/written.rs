//! Limits as people write them: `"600 requests/hour burst 20"`, `"40000 tokens/minute"`, `"2000000 tokens/month"`.
//!
//! One text form for the config file, the command line, the API and the store. What can't be read is refused with
//! the forms that can be.

use std::fmt;

use super::{Limit, MOST, Measure, Shape, Span};

/// The most limits in one list.
pub const MOST_LISTED: usize = 8;

/// Why a text is no limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}: {why}")]
pub struct LimitFault {
    text: String,
    what: &'static str,
    why: &'static str,
}

const RATE: &str = "write for example \"600 requests/hour\", \"600 requests/hour burst 20\", \
    \"60 requests/minute sliding\", \"40000 tokens/minute\", \"20000 input_tokens/minute\" or \
    \"5000 output_tokens/day\"; a window is a second, a minute, an hour or a day, a size is at least 1";

const BUDGET: &str = "write for example \"2000000 tokens/month\" or \"25.50 money/month\"; a period is a day, \
    a week or a month, a size is more than 0";

/// Reads a limit over a window.
///
/// # Errors
/// [`LimitFault`].
pub fn parse_limit(text: &str) -> Result<Limit, LimitFault> {
    let fault = || LimitFault {
        text: text.chars().take(80).collect(),
        what: "limit",
        why: RATE,
    };
    let mut words = text.split_ascii_whitespace();
    let size = whole(words.next().ok_or_else(fault)?).ok_or_else(fault)?;
    let (unit, span) = words
        .next()
        .and_then(|word| word.split_once('/'))
        .ok_or_else(fault)?;
    let span = match span {
        "second" => Span::Second,
        "minute" => Span::Minute,
        "hour" => Span::Hour,
        "day" => Span::Day,
        _ => return Err(fault()),
    };
    let measure = match unit {
        "requests" => Measure::Requests,
        "tokens" => Measure::Tokens,
        "input_tokens" => Measure::Input,
        "output_tokens" => Measure::Output,
        _ => return Err(fault()),
    };
    let is_calls = measure == Measure::Requests;
    if is_calls && size > MOST_REQUESTS {
        return Err(fault());
    }
    let rest: Vec<&str> = words.collect();
    let (shape, burst) = match rest.as_slice() {
        [] if is_calls => (Shape::Gcra, size),
        [] => (Shape::Sliding, size),
        ["sliding"] => (Shape::Sliding, size),
        ["burst", burst] if is_calls => {
            let burst = whole(burst).filter(|n| *n <= size).ok_or_else(fault)?;
            (Shape::Gcra, burst)
        }
        _ => return Err(fault()),
    };
    Ok(Limit {
        measure,
        span,
        shape,
        size,
        burst,
    })
}

/// Reads a budget.
///
/// # Errors
/// [`LimitFault`].
pub fn parse_budget(text: &str) -> Result<Limit, LimitFault> {
    let fault = || LimitFault {
        text: text.chars().take(80).collect(),
        what: "budget",
        why: BUDGET,
    };
    let mut words = text.split_ascii_whitespace();
    let size = words.next().ok_or_else(fault)?;
    let (unit, span) = words
        .next()
        .and_then(|word| word.split_once('/'))
        .ok_or_else(fault)?;
    if words.next().is_some() {
        return Err(fault());
    }
    let span = match span {
        "day" => Span::Day,
        "week" => Span::Week,
        "month" => Span::Month,
        _ => return Err(fault()),
    };
    let (measure, size) = match unit {
        "tokens" => (Measure::Tokens, whole(size)),
        "money" => (Measure::Money, money(size).filter(|n| *n > 0)),
        _ => return Err(fault()),
    };
    let size = size.ok_or_else(fault)?;
    Ok(Limit {
        measure,
        span,
        shape: Shape::Calendar,
        size,
        burst: size,
    })
}

/// Millionths of a sum such as `12`, `0.15` or `25.50`; at most a billion.
#[must_use]
pub fn money(text: &str) -> Option<u64> {
    let (units, parts) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if units.is_empty()
        || !digits(units)
        || !digits(parts)
        || parts.len() > 6
        || text.ends_with('.')
    {
        return None;
    }
    let units: u64 = units.parse().ok().filter(|n| *n <= 1_000_000_000)?;
    let parts: u64 = format!("{parts:0<6}").parse().ok()?;
    units.checked_mul(1_000_000)?.checked_add(parts)
}

/// A whole number from 1 on; underscores may stand in it.
fn whole(text: &str) -> Option<u64> {
    let good = text.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    let digits = text.replace('_', "");
    let number = digits.parse().ok().filter(|_| good)?;
    (1..=MOST).contains(&number).then_some(number)
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.measure == Measure::Money {
            let (units, parts) = (self.size / 1_000_000, self.size % 1_000_000);
            let parts = format!("{parts:06}");
            let parts = parts.trim_end_matches('0');
            write!(f, "{units}")?;
            if !parts.is_empty() {
                write!(f, ".{parts:0<2}")?;
            }
        } else {
            write!(f, "{}", self.size)?;
        }
        write!(f, " {}", self.measure.name())?;
        if self.span != Span::Now {
            write!(f, "/{}", self.span.name())?;
        }
        match self.shape {
            Shape::Gcra if self.burst != self.size => write!(f, " burst {}", self.burst),
            Shape::Sliding if self.measure == Measure::Requests => f.write_str(" sliding"),
            Shape::Gcra | Shape::Sliding | Shape::Held | Shape::Calendar => Ok(()),
        }
    }
}

const MOST_REQUESTS: u64 = 1_000_000;

macro_rules! as_texts {
    ($name:ident, $parse:path, $what:literal) => {
        #[doc = $what]
        pub mod $name {
            use std::sync::Arc;

            use serde::{Deserialize, Deserializer, Serializer};

            use super::super::Limit;

            /// As a list of texts.
            ///
            /// # Errors
            /// The serializer's.
            #[expect(clippy::ref_option, reason = "the signature that serde asks for")]
            pub fn serialize<S: Serializer>(
                list: &Option<Arc<[Limit]>>,
                to: S,
            ) -> Result<S::Ok, S::Error> {
                let limits = list.as_deref().unwrap_or_default();
                to.collect_seq(limits.iter().map(ToString::to_string))
            }

            /// From a list of texts, or nothing.
            ///
            /// # Errors
            /// A text that is none, or more than a list may hold.
            pub fn deserialize<'de, D: Deserializer<'de>>(
                from: D,
            ) -> Result<Option<Arc<[Limit]>>, D::Error> {
                let Some(texts) = Option::<Vec<String>>::deserialize(from)? else {
                    return Ok(None);
                };
                if texts.len() > super::MOST_LISTED {
                    return Err(serde::de::Error::custom("at most 8 limits in one list"));
                }
                let limits: Result<Arc<[Limit]>, _> =
                    texts.iter().map(|text| $parse(text)).collect();
                limits.map(Some).map_err(serde::de::Error::custom)
            }
        }
    };
}

as_texts!(
    rates,
    super::parse_limit,
    "Lists of limits over windows, for `serde(with)`."
);
as_texts!(
    budgets,
    super::parse_budget,
    "Lists of budgets, for `serde(with)`."
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_and_the_rest_is_refused() {
        for text in [
            "600 requests/hour",
            "600 requests/hour burst 20",
            "60 requests/minute sliding",
            "5 requests/second",
            "40000 tokens/minute",
            "1 input_tokens/second",
            "5000 output_tokens/day",
        ] {
            assert_eq!(parse_limit(text).unwrap().to_string(), text);
        }
        for text in ["2000000 tokens/month", "25.50 money/week", "3 money/day"] {
            assert_eq!(parse_budget(text).unwrap().to_string(), text);
        }
        assert_eq!(parse_limit("1_000 requests/day").unwrap().size, 1000);
        for text in [
            "",
            "0 requests/hour",
            "-1 requests/hour",
            "10",
            "10 requests",
            "10 request/hour",
            "10 requests/month",
            "10 requests/hour burst 11",
            "10 requests/hour burst 0",
            "10 tokens/hour burst 5",
            "10 requests/hour fast",
            "1.5 requests/hour",
            "10 money/hour",
            "2000000 requests/hour",
        ] {
            let fault = parse_limit(text).unwrap_err().to_string();
            assert!(fault.contains("requests/hour"), "{fault}");
        }
        for text in [
            "0 tokens/day",
            "0 money/day",
            "5 tokens/hour",
            "1. money/day",
            "5 tokens/day sliding",
        ] {
            assert!(parse_budget(text).is_err(), "{text}");
        }
    }

    #[test]
    fn money_is_counted_in_millionths() {
        assert_eq!(money("12"), Some(12_000_000));
        assert_eq!(money("0.15"), Some(150_000));
        assert_eq!(money("0.000001"), Some(1));
        for text in ["", ".5", "1.", "1,5", "-1", "0.0000001", "2000000000"] {
            assert_eq!(money(text), None, "{text}");
        }
    }
}
