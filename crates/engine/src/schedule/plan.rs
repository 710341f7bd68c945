//! Decides what the next batch step holds: one token of every sequence that generates, and a
//! bounded share of the prompts, oldest first. Pure. Called by `schedule` before each step.

/// What the planner sees of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    /// Its slot.
    pub(crate) slot: usize,
    /// Order of arrival.
    pub(crate) born: u64,
    /// Prompt tokens that aren't in the cache yet; 0 once it generates.
    pub(crate) prompt_left: usize,
    /// Whether its reader has room for what a step may bring.
    pub(crate) room: bool,
    /// Whether it waits for another sequence's prompt, to copy it.
    pub(crate) waits: bool,
}

/// What one sequence puts into the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// Its newest token.
    Token { slot: usize },
    /// The next `count` tokens of its prompt.
    Prompt { slot: usize, count: usize },
}

/// Plans a step with at most `most` prompt tokens while nobody generates, and half of that while
/// somebody does: a long prompt shouldn't make the others stutter.
pub(crate) fn plan(views: &[View], most: usize, shares: &mut Vec<Share>) {
    shares.clear();
    // who can't take the outcome of a step isn't part of it; others don't notice
    let ready = || views.iter().filter(|view| view.room && !view.waits);
    shares.extend(
        ready()
            .filter(|view| view.prompt_left == 0)
            .map(|view| Share::Token { slot: view.slot }),
    );
    let mut left = if shares.is_empty() {
        most
    } else {
        most.div_ceil(2)
    };
    let mut prompts: Vec<&View> = ready().filter(|view| view.prompt_left > 0).collect();
    prompts.sort_unstable_by_key(|view| view.born);
    for view in prompts {
        let count = view.prompt_left.min(left);
        if count == 0 {
            return;
        }
        shares.push(Share::Prompt {
            slot: view.slot,
            count,
        });
        left = left.saturating_sub(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(slot: usize, prompt_left: usize) -> View {
        View {
            slot,
            born: slot as u64,
            prompt_left,
            room: true,
            waits: false,
        }
    }

    fn planned(views: &[View]) -> Vec<Share> {
        let mut shares = Vec::new();
        plan(views, 128, &mut shares);
        shares
    }

    #[test]
    fn prompts_share_a_bounded_step_oldest_first() {
        let old = View {
            born: 0,
            ..view(1, 100)
        };
        let young = View {
            born: 5,
            ..view(0, 100)
        };
        assert_eq!(
            planned(&[young, old]),
            [
                Share::Prompt {
                    slot: 1,
                    count: 100
                },
                Share::Prompt { slot: 0, count: 28 }
            ]
        );
    }

    #[test]
    fn generating_sequences_always_get_their_token() {
        assert_eq!(
            planned(&[view(0, 0), view(1, 1000), view(2, 0)]),
            [
                Share::Token { slot: 0 },
                Share::Token { slot: 2 },
                Share::Prompt { slot: 1, count: 64 }
            ]
        );
    }

    #[test]
    fn a_slow_reader_pauses_only_itself() {
        let slow = View {
            room: false,
            ..view(0, 0)
        };
        assert_eq!(planned(&[slow, view(1, 0)]), [Share::Token { slot: 1 }]);
        assert_eq!(planned(&[slow]), []);
    }

    #[test]
    fn a_copy_waits_for_its_original() {
        let copy = View {
            waits: true,
            ..view(1, 50)
        };
        assert_eq!(
            planned(&[view(0, 50), copy]),
            [Share::Prompt { slot: 0, count: 50 }]
        );
    }
}
