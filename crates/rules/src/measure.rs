//! What a call is charged: one rule for each ending.
//!
//! | what is known | input tokens | output tokens |
//! |---|---|---|
//! | the upstream reported usage | as reported | as reported |
//! | no usage, the upstream had the call | the reservation's bound | one a text event received |
//! | no usage, killed in mid-call (`node-died`) | the bound, or what the slot says | text events in the slot + 64 |
//! | the call never reached an upstream | 0 | 0 |
//!
//! Without a reported figure a charge is never above the reservation, and an answer that carried text never costs
//! nothing. A reported figure is charged as reported even above the reservation, and [`Charge::above`] says so.

use serde::{Deserialize, Serialize};

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// The whole answer was relayed, success or the upstream's own error.
    Finished,
    /// Refused by Guan before any upstream had it.
    Refused,
    /// The client left first.
    ClientGone,
    /// The upstream failed, refused or vanished.
    UpstreamFailed,
    /// A time limit of Guan's ended it.
    TimedOut,
    /// The server was stopping.
    Drained,
    /// The process died in mid-call; written at the next start.
    NodeDied,
}

/// Tokens of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Of the prompt.
    pub input: u64,
    /// Of all choices.
    pub output: u64,
}

impl Tokens {
    /// Both together.
    #[must_use]
    pub const fn total(self) -> u64 {
        self.input.saturating_add(self.output)
    }
}

/// What was seen of a call when it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The request was written to an upstream.
    pub forwarded: bool,
    /// The last usage that the upstream reported: a running total, never a difference.
    pub reported: Option<Tokens>,
    /// Events that carried text, or 1 for a whole answer with text.
    pub text_events: u64,
}

/// Where a charge comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The upstream's own figures.
    Reported,
    /// Guan's count, by the table above.
    Counted,
    /// No upstream had the call.
    Nothing,
}

/// What is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// The tokens.
    pub tokens: Tokens,
    /// Where the figures come from.
    pub source: Source,
    /// The upstream reported more than was reserved.
    pub above: bool,
}

/// Tokens that a killed process may have relayed since it last wrote its slot.
pub const SLOT_STEP: u64 = 64;

/// Settles a call.
#[must_use]
pub fn settle(ending: Ending, reserved: Tokens, seen: Seen) -> Charge {
    if let Some(mut tokens) = seen.reported {
        // A figure that came before the text, or with none of it, doesn't make the text free.
        let text = seen.text_events.min(reserved.output);
        let least = if ending == Ending::Finished {
            text.min(1)
        } else {
            text
        };
        tokens.output = tokens.output.max(least);
        let above = tokens.input > reserved.input || tokens.output > reserved.output;
        return Charge {
            tokens,
            source: Source::Reported,
            above,
        };
    }
    if !seen.forwarded {
        return Charge {
            tokens: Tokens::default(),
            source: Source::Nothing,
            above: false,
        };
    }
    let output = match ending {
        Ending::NodeDied => seen.text_events.saturating_add(SLOT_STEP),
        Ending::Finished
        | Ending::Refused
        | Ending::ClientGone
        | Ending::UpstreamFailed
        | Ending::TimedOut
        | Ending::Drained => seen.text_events,
    };
    let tokens = Tokens {
        input: reserved.input,
        output: output.min(reserved.output),
    };
    Charge {
        tokens,
        source: Source::Counted,
        above: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESERVED: Tokens = Tokens {
        input: 100,
        output: 50,
    };

    fn seen(reported: Option<Tokens>, text_events: u64) -> Seen {
        Seen {
            forwarded: true,
            reported,
            text_events,
        }
    }

    #[test]
    fn a_reported_figure_wins_even_above_the_reservation_and_says_so() {
        let reported = Tokens {
            input: 7,
            output: 60,
        };
        let charge = settle(Ending::Finished, RESERVED, seen(Some(reported), 3));
        assert_eq!(
            charge,
            Charge {
                tokens: reported,
                source: Source::Reported,
                above: true
            }
        );
    }

    #[test]
    fn without_a_report_text_is_never_free_and_never_above_the_reservation() {
        for ending in [Ending::Finished, Ending::ClientGone, Ending::UpstreamFailed] {
            assert_eq!(settle(ending, RESERVED, seen(None, 1)).tokens.output, 1);
            assert_eq!(settle(ending, RESERVED, seen(None, 900)).tokens, RESERVED);
        }
        assert_eq!(
            settle(Ending::NodeDied, RESERVED, seen(None, 0))
                .tokens
                .output,
            50
        );
        let roomy = Tokens {
            input: 100,
            output: 500,
        };
        assert_eq!(
            settle(Ending::NodeDied, roomy, seen(None, 10))
                .tokens
                .output,
            74
        );
    }

    #[test]
    fn a_figure_that_came_before_the_text_does_not_make_it_free() {
        let early = Tokens {
            input: 7,
            output: 0,
        };
        let gone = settle(Ending::ClientGone, RESERVED, seen(Some(early), 30));
        assert_eq!(
            gone.tokens,
            Tokens {
                input: 7,
                output: 30
            }
        );
        let finished = settle(Ending::Finished, RESERVED, seen(Some(early), 30));
        assert_eq!(finished.tokens.output, 1);
    }

    #[test]
    fn a_call_that_no_upstream_had_costs_nothing() {
        let charge = settle(Ending::Refused, RESERVED, Seen::default());
        assert_eq!((charge.tokens.total(), charge.source), (0, Source::Nothing));
    }
}
