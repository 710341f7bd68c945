//! Picks the next token from the logits. Pure but for its own seeded generator: the same seed and
//! the same logits give the same tokens. The order is that of the servers clients know: bias and
//! penalties, temperature, `top_k`, `min_p`, `top_p`, then one draw.
//! Called by `generate` once a token; buffers are kept between calls.

use std::collections::HashMap;

/// How to pick; every value is in its range already (`ask` saw to that).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sampling {
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    /// 0 means all.
    pub(crate) top_k: usize,
    pub(crate) min_p: f32,
    pub(crate) frequency_penalty: f32,
    pub(crate) presence_penalty: f32,
    pub(crate) repetition_penalty: f32,
    pub(crate) seed: u64,
    /// Added to the logit of a token.
    pub(crate) bias: Vec<(usize, f32)>,
    /// How many alternatives to report; `None` reports nothing.
    pub(crate) top_logprobs: Option<usize>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            bias: Vec::new(),
            top_logprobs: None,
        }
    }
}

/// A picked token, with what the model thought of it if that was asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pick {
    pub(crate) token: usize,
    /// Natural logarithm of the model's own probability, before penalties and temperature.
    pub(crate) logprob: Option<f32>,
    /// The most probable tokens, best first.
    pub(crate) top: Vec<(usize, f32)>,
}

/// The state of one sequence's sampling.
#[derive(Debug)]
pub(crate) struct Sampler {
    how: Sampling,
    random: SplitMix,
    /// Times each token was generated.
    counts: HashMap<usize, u16>,
    /// Tokens of the prompt; kept only where the repetition penalty needs them.
    prompt: Vec<usize>,
}

/// Buffers that all sequences share.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    logits: Vec<f32>,
    candidates: Vec<(usize, f32)>,
}

impl Sampler {
    /// A sampler for a sequence that begins with `prompt`.
    pub(crate) fn new(how: Sampling, prompt: impl Iterator<Item = usize>) -> Self {
        let repeats = differs(how.repetition_penalty, 1.0);
        let mut prompt: Vec<usize> = if repeats {
            prompt.collect()
        } else {
            Vec::new()
        };
        prompt.sort_unstable();
        prompt.dedup();
        Self {
            random: SplitMix(how.seed),
            how,
            counts: HashMap::new(),
            prompt,
        }
    }

    /// Picks a token from the model's `logits` (one per token of the vocabulary).
    pub(crate) fn pick(&mut self, logits: &[f32], scratch: &mut Scratch) -> Pick {
        let token = if self.changes_logits() {
            let mut changed = std::mem::take(&mut scratch.logits);
            changed.clear();
            changed.extend_from_slice(logits);
            self.change(&mut changed);
            let token = self.choose(&changed, scratch);
            scratch.logits = changed;
            token
        } else {
            self.choose(logits, scratch)
        };
        if self.penalises() {
            let count = self.counts.entry(token).or_default();
            *count = count.saturating_add(1);
        }
        let (logprob, top) = match self.how.top_logprobs {
            None => (None, Vec::new()),
            Some(count) => report(logits, token, count, scratch),
        };
        Pick {
            token,
            logprob,
            top,
        }
    }

    fn penalises(&self) -> bool {
        differs(self.how.frequency_penalty, 0.0)
            || differs(self.how.presence_penalty, 0.0)
            || differs(self.how.repetition_penalty, 1.0)
    }

    fn changes_logits(&self) -> bool {
        !self.how.bias.is_empty() || self.penalises()
    }

    fn change(&self, logits: &mut [f32]) {
        for (token, bias) in &self.how.bias {
            if let Some(logit) = logits.get_mut(*token) {
                *logit += bias;
            }
        }
        let repetition = self.how.repetition_penalty;
        let repeated = |logit: &mut f32| {
            *logit = if *logit > 0.0 {
                *logit / repetition
            } else {
                *logit * repetition
            };
        };
        for token in self
            .prompt
            .iter()
            .filter(|token| !self.counts.contains_key(token))
        {
            logits.get_mut(*token).map(repeated).unwrap_or_default();
        }
        for (token, count) in &self.counts {
            if let Some(logit) = logits.get_mut(*token) {
                repeated(logit);
                let often = f32::from(*count) * self.how.frequency_penalty;
                *logit -= often + self.how.presence_penalty;
            }
        }
    }

    fn choose(&mut self, logits: &[f32], scratch: &mut Scratch) -> usize {
        let best = highest(logits);
        if self.how.temperature <= 0.0 || self.how.top_k == 1 {
            return best;
        }
        let most = logits.get(best).copied().unwrap_or_default();
        let candidates = &mut scratch.candidates;
        weigh(logits, most, &self.how, candidates);
        let total = if self.how.top_p < 1.0 {
            keep_nucleus(candidates, self.how.top_p)
        } else {
            sum(candidates)
        };
        let mut left = self.random.unit() * total;
        for (token, weight) in candidates.iter() {
            left -= f64::from(*weight);
            if left < 0.0 {
                return *token;
            }
        }
        // rounding at the very end of the range
        candidates.last().map_or(best, |(token, _)| *token)
    }
}

/// Fills `candidates` with the tokens that may be drawn and their weights, the best one's being 1.
fn weigh(logits: &[f32], most: f32, how: &Sampling, candidates: &mut Vec<(usize, f32)>) {
    let inverse = 1.0 / how.temperature;
    let floor = if how.min_p > 0.0 {
        how.min_p.ln().max(NEGLIGIBLE)
    } else {
        NEGLIGIBLE
    };
    candidates.clear();
    let scaled = logits
        .iter()
        .enumerate()
        .map(|(token, x)| (token, (x - most) * inverse));
    candidates.extend(scaled.filter(|(_, x)| *x >= floor));
    if how.top_k > 0 && how.top_k < candidates.len() {
        let last = how.top_k.saturating_sub(1);
        candidates.select_nth_unstable_by(last, by_weight);
        candidates.truncate(how.top_k);
        // the order must not depend on the selection's inner workings
        candidates.sort_unstable_by(by_weight);
    }
    for (_, x) in candidates.iter_mut() {
        *x = x.exp();
    }
}

/// Cuts `candidates` to the fewest that hold `share` of the weight; returns what they weigh.
fn keep_nucleus(candidates: &mut Vec<(usize, f32)>, share: f32) -> f64 {
    let goal = sum(candidates) * f64::from(share);
    let mut sorted = 0_usize;
    let mut held = 0.0_f64;
    // sort a little, look, sort more: a full sort of a large vocabulary would cost milliseconds
    while let Some(rest) = candidates.get_mut(sorted..).filter(|rest| !rest.is_empty()) {
        let step = sorted.saturating_mul(15).max(256);
        let part = if step < rest.len() {
            let (before, _, _) = rest.select_nth_unstable_by(step, by_weight);
            before
        } else {
            rest
        };
        part.sort_unstable_by(by_weight);
        for (at, (_, weight)) in part.iter().enumerate() {
            held += f64::from(*weight);
            if held >= goal {
                candidates.truncate(sorted.saturating_add(at).saturating_add(1));
                return held;
            }
        }
        sorted = sorted.saturating_add(part.len());
    }
    held
}

/// The model's own log-probability of `token` and of the `count` best.
fn report(
    logits: &[f32],
    token: usize,
    count: usize,
    scratch: &mut Scratch,
) -> (Option<f32>, Vec<(usize, f32)>) {
    let most = logits.get(highest(logits)).copied().unwrap_or_default();
    let total: f64 = logits.iter().map(|x| f64::from((x - most).exp())).sum();
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a logarithm of a small number"
    )]
    let base = most + total.ln() as f32;
    let candidates = &mut scratch.candidates;
    candidates.clear();
    candidates.extend(
        logits
            .iter()
            .enumerate()
            .map(|(token, x)| (token, x - base)),
    );
    let own = candidates.get(token).map(|(_, x)| *x);
    if count == 0 {
        return (own, Vec::new());
    }
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count, by_weight);
        candidates.truncate(count);
    }
    candidates.sort_unstable_by(by_weight);
    (own, candidates.clone())
}

fn sum(candidates: &[(usize, f32)]) -> f64 {
    candidates
        .iter()
        .map(|(_, weight)| f64::from(*weight))
        .sum()
}

/// Heaviest first; equal ones by token, so that the order is always the same.
fn by_weight(a: &(usize, f32), b: &(usize, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

fn differs(a: f32, b: f32) -> bool {
    (a - b).abs() > f32::EPSILON
}

/// The place of the highest logit, the first of equals; not-a-number never wins.
fn highest(logits: &[f32]) -> usize {
    // eight lanes without a place let the compiler use vector registers; the place comes after
    let mut lanes = [f32::NEG_INFINITY; 8];
    let (rows, rest) = logits.as_chunks::<8>();
    for row in rows {
        for (lane, x) in lanes.iter_mut().zip(row) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    let most = lanes
        .iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
    logits.iter().position(|x| *x >= most).unwrap_or(0)
}

/// A token whose weight is below e^-30 of the best is never drawn: all of a large vocabulary
/// together would get less than one draw in ten million.
const NEGLIGIBLE: f32 = -30.0;

/// Sebastiano Vigna's splitmix64: small, and any seed is a good one.
#[derive(Debug)]
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    fn unit(&mut self) -> f64 {
        let high = u32::try_from(self.next() >> 32).unwrap_or(0);
        f64::from(high) / 4_294_967_296.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(how: Sampling) -> Sampler {
        Sampler::new(how, [0, 3].into_iter())
    }

    fn draws(how: Sampling, logits: &[f32], times: usize) -> Vec<usize> {
        let mut sampler = sampler(how);
        let mut scratch = Scratch::default();
        (0..times)
            .map(|_| sampler.pick(logits, &mut scratch).token)
            .collect()
    }

    #[test]
    fn zero_temperature_is_the_highest_logit() {
        let greedy = Sampling {
            temperature: 0.0,
            ..Sampling::default()
        };
        assert_eq!(
            draws(greedy.clone(), &[0.1, 2.0, f32::NAN, 1.9], 3),
            [1, 1, 1]
        );
        let mut wide = vec![0.0; 1000];
        wide[777] = 5.0;
        wide[999] = 5.0;
        assert_eq!(draws(greedy, &wide, 1), [777]);
    }

    #[test]
    fn a_seed_repeats_and_another_differs() {
        let logits: Vec<f32> = (0..1000_u16).map(|i| f32::from(i % 7)).collect();
        let with = |seed| {
            draws(
                Sampling {
                    seed,
                    ..Sampling::default()
                },
                &logits,
                50,
            )
        };
        assert_eq!(with(7), with(7));
        assert_ne!(with(7), with(8));
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [0.75_f32.ln(), 0.25_f32.ln()];
        let drawn = draws(
            Sampling {
                seed: 1,
                ..Sampling::default()
            },
            &logits,
            10_000,
        );
        let first = drawn.iter().filter(|token| **token == 0).count();
        assert!((7300..7700).contains(&first), "{first}");
    }

    #[test]
    fn cuts_keep_only_the_best() {
        let logits = [0.5_f32.ln(), 0.3_f32.ln(), 0.15_f32.ln(), 0.05_f32.ln()];
        let seen = |how: Sampling| {
            let mut seen = draws(how, &logits, 2000);
            seen.sort_unstable();
            seen.dedup();
            seen
        };
        let usual = Sampling::default;
        assert_eq!(seen(usual()), [0, 1, 2, 3]);
        assert_eq!(
            seen(Sampling {
                top_k: 2,
                ..usual()
            }),
            [0, 1]
        );
        assert_eq!(
            seen(Sampling {
                top_p: 0.75,
                ..usual()
            }),
            [0, 1]
        );
        assert_eq!(
            seen(Sampling {
                top_p: 0.0,
                ..usual()
            }),
            [0]
        );
        assert_eq!(
            seen(Sampling {
                min_p: 0.25,
                ..usual()
            }),
            [0, 1, 2]
        );
    }

    #[test]
    fn nucleus_of_a_large_vocabulary_is_exact() {
        let logits: Vec<f32> = (0..50_000_u16)
            .map(|i| f32::from(i % 997) / 100.0)
            .collect();
        let mut all: Vec<(usize, f32)> = logits
            .iter()
            .map(|x| (x - 9.96).exp())
            .enumerate()
            .collect();
        let goal = sum(&all) * f64::from(0.9_f32);
        let mut cut = all.clone();
        let held = keep_nucleus(&mut cut, 0.9);
        all.sort_unstable_by(by_weight);
        let mut weight = 0.0;
        let wanted = all.iter().take_while(|c| {
            let more = weight < goal;
            weight += f64::from(c.1);
            more
        });
        assert_eq!(cut, wanted.copied().collect::<Vec<_>>());
        assert!((held - sum(&cut)).abs() < 1e-6);
    }

    #[test]
    fn penalties_and_bias_move_the_choice() {
        let greedy = || Sampling {
            temperature: 0.0,
            ..Sampling::default()
        };
        let logits = [3.0, 2.9, 0.0, 1.0];
        assert_eq!(draws(greedy(), &logits, 3), [0, 0, 0]);
        let biased = Sampling {
            bias: vec![(2, 100.0)],
            ..greedy()
        };
        assert_eq!(draws(biased, &logits, 2), [2, 2]);
        let present = Sampling {
            presence_penalty: 0.5,
            ..greedy()
        };
        assert_eq!(draws(present, &logits, 3), [0, 1, 0]);
        let frequent = Sampling {
            frequency_penalty: 2.0,
            ..greedy()
        };
        assert_eq!(draws(frequent, &logits, 4), [0, 1, 0, 3]);
        // token 0 stands in the prompt, so it is penalised from the start
        let repeated = Sampling {
            repetition_penalty: 2.0,
            ..greedy()
        };
        assert_eq!(draws(repeated, &logits, 1), [1]);
    }

    #[test]
    fn logprobs_are_the_models_own() {
        let logits = [0.5_f32.ln(), 0.3_f32.ln(), 0.2_f32.ln()];
        let how = Sampling {
            temperature: 0.0,
            top_logprobs: Some(2),
            ..Sampling::default()
        };
        let pick = sampler(how).pick(&logits, &mut Scratch::default());
        assert!((pick.logprob.unwrap() - 0.5_f32.ln()).abs() < 1e-5);
        assert_eq!(
            pick.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(),
            [0, 1]
        );
        assert!((pick.top[1].1 - 0.3_f32.ln()).abs() < 1e-5);
    }
}
