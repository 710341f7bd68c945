//! How many calls a model server takes at the same time, learned from how fast it answers.
//!
//! A gradient method, after Netflix's concurrency-limits: the limit follows the ratio of what a call takes while little
//! runs to what it takes now. A stream tells how long its first token took, a whole answer how long each of its tokens
//! took; each of the two is compared with its own kind only. While they are nearly as fast, the limit grows by a part of
//! its root; when they are slower by half, it shrinks in proportion. What they take while little runs is learned
//! whenever at most half of the limit runs; if that never happens by itself, the limit is halved for a moment after every
//! 512 calls, so that a server which is always full doesn't come to look as if slow were usual. Prompts differ, so a call
//! counts as three times the usual at most, and both sides are means of the same mix. A server that says itself that it
//! has too much (429, 503, no answer in time) shrinks the limit by a quarter, once for all calls that ran then, and at
//! most every two seconds.
//!
//! Pure: time is an argument, milliseconds on one clock. Called by `gateway::check::admit`.

/// By how much a call may be slower than usual before the limit shrinks.
const TOLERANCE: f64 = 1.5;

/// Share of a new sample in the mean of now, and in that of little load.
const SHARE: f64 = 0.1;
const LIGHT_SHARE: f64 = 0.05;

/// How many times the usual a sample may count.
const OUTLIER: f64 = 3.0;

/// How much of a change is made with each sample.
const STEP: f64 = 0.1;

/// Samples under load after which the limit is halved for a moment.
const PROBE_AFTER: u32 = 512;

/// Samples that the halved limit then lasts.
const PROBES: u32 = 8;

/// What a server that says "too much" leaves of the limit.
const CUT: f64 = 0.75;

/// Between two cuts, milliseconds: until calls that started under the smaller limit have their say.
const COOL_DOWN_MS: u64 = 2000;

/// What one call had to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Its first token came after so many milliseconds in its place.
    FirstToken {
        /// The time, milliseconds.
        ms: u64,
    },
    /// It was answered in one piece.
    Whole {
        /// The time in its place, milliseconds.
        ms: u64,
        /// Tokens of the answer.
        tokens: u64,
    },
    /// The server refused it for load, or didn't answer in time.
    TooMuch,
}

/// What calls of one kind take, in its own unit.
#[derive(Clone, Copy, Debug, Default)]
struct Speed {
    /// While little runs; `None` before the first.
    light: Option<f64>,
    /// Under load, since little ran last.
    now: Option<f64>,
}

impl Speed {
    /// A sample while little runs.
    fn light(&mut self, sample: f64) {
        let light = self.light.unwrap_or(sample);
        self.light = Some(light + (sample.min(light * OUTLIER) - light) * LIGHT_SHARE);
    }

    /// A sample under load: how many times the usual calls take now.
    fn loaded(&mut self, sample: f64) -> f64 {
        let light = *self.light.get_or_insert(sample);
        let now = self.now.unwrap_or(light);
        let now = now + (sample.min(light * OUTLIER) - now) * SHARE;
        self.now = Some(now);
        now / light
    }
}

/// A limit that learns.
#[derive(Clone, Debug)]
pub struct Adaptive {
    limit: f64,
    least: f64,
    most: f64,
    first_token: Speed,
    whole: Speed,
    /// Samples since little ran; and samples that the halved limit still lasts.
    loaded: u32,
    probing: u32,
    /// When the limit was cut last: calls that started before have told their "too much" already.
    cut_at: Option<u64>,
}

impl Adaptive {
    /// A limit between `least` (at least one) and `most`, beginning at `first`.
    #[must_use]
    pub fn new(first: u32, least: u32, most: u32) -> Self {
        let least = f64::from(least.max(1));
        let most = f64::from(most).max(least);
        Self {
            limit: f64::from(first).clamp(least, most),
            least,
            most,
            first_token: Speed::default(),
            whole: Speed::default(),
            loaded: 0,
            probing: 0,
            cut_at: None,
        }
    }

    /// The limit now.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between one and a u32 by construction"
    )]
    pub fn limit(&self) -> u32 {
        let limit = if self.probing > 0 {
            (self.limit * 0.5).max(self.least)
        } else {
            self.limit
        };
        limit.round() as u32
    }

    /// Learns from a call that started at `started` and tells now, at `at`, while `running` ran.
    pub fn learn(&mut self, told: Told, started: u64, at: u64, running: u32) {
        match told {
            Told::TooMuch => {
                let new = |cut_at| started >= cut_at && at.saturating_sub(cut_at) >= COOL_DOWN_MS;
                if self.cut_at.is_none_or(new) {
                    self.cut_at = Some(at);
                    self.set(self.limit * CUT);
                }
            }
            Told::FirstToken { ms } => self.sample(|all| &mut all.first_token, float(ms), running),
            Told::Whole { ms, tokens } => {
                let each = float(ms) / float(tokens);
                self.sample(|all| &mut all.whole, each, running);
            }
        }
    }

    fn sample(&mut self, of: fn(&mut Self) -> &mut Speed, sample: f64, running: u32) {
        let full = f64::from(running) * 2.0 > self.limit + 1.0;
        // With one place or two nothing is less.
        if !full || self.limit < 2.0 {
            of(self).light(sample);
        }
        if !full && self.limit >= 2.0 {
            (self.first_token.now, self.whole.now) = (None, None);
            self.loaded = 0;
            self.probing = self.probing.saturating_sub(1);
            return;
        }
        if self.probing > 0 {
            // Those that came before the limit was halved are still running; but not for ever.
            self.loaded = self.loaded.saturating_add(1);
            if self.loaded >= PROBE_AFTER {
                (self.probing, self.loaded) = (0, 0);
            }
            return;
        }
        let times = of(self).loaded(sample);
        self.loaded = self.loaded.saturating_add(1);
        if self.loaded >= PROBE_AFTER {
            (self.probing, self.loaded) = (PROBES, 0);
            return;
        }
        let gradient = (TOLERANCE / times).clamp(0.5, 1.0);
        let next = if gradient < 1.0 {
            self.limit * gradient
        } else {
            self.limit + self.limit.sqrt()
        };
        self.set(self.limit + (next - self.limit) * STEP);
    }

    fn set(&mut self, limit: f64) {
        self.limit = limit.clamp(self.least, self.most);
    }
}

/// At least one.
fn float(n: u64) -> f64 {
    f64::from(u32::try_from(n.max(1)).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that is as fast with up to `good` calls, and slower in proportion above.
    fn run(adaptive: &mut Adaptive, good: u64, calls: u64) {
        for n in 0..calls {
            let running = adaptive.limit();
            let ms = (100 * u64::from(running) / good).max(100);
            adaptive.learn(Told::FirstToken { ms }, n, n, running);
        }
    }

    #[test]
    fn it_finds_about_what_a_server_takes_and_stays_there() {
        for good in [8_u32, 32, 200] {
            let mut adaptive = Adaptive::new(8, 1, 1000);
            run(&mut adaptive, good.into(), 30_000);
            let found = adaptive.limit / f64::from(good);
            assert!((0.9..2.0).contains(&found), "{good}: {found}");
        }
    }

    #[test]
    fn it_follows_a_server_that_gets_weaker() {
        let mut adaptive = Adaptive::new(8, 1, 1000);
        run(&mut adaptive, 100, 3000);
        let before = adaptive.limit;
        run(&mut adaptive, 10, 1000);
        let after = adaptive.limit;
        assert!(after * 2.0 < before, "{before} {after}");
    }

    #[test]
    fn too_much_counts_once_for_all_that_ran_then_and_once_in_a_while() {
        let mut adaptive = Adaptive::new(100, 1, 1000);
        for _ in 0..50 {
            adaptive.learn(Told::TooMuch, 10, 20, 100);
        }
        assert_eq!(adaptive.limit(), 75);
        // A server that refuses at once: calls that start after the cut are refused as well, until it has fewer.
        for n in 0..50 {
            adaptive.learn(Told::TooMuch, 21 + n * 30, 30 + n * 30, 75);
        }
        assert_eq!(adaptive.limit(), 75);
        adaptive.learn(Told::TooMuch, 19, 2020, 75);
        assert_eq!(adaptive.limit(), 75, "it ran before the cut");
        adaptive.learn(Told::TooMuch, 2010, 2020, 75);
        assert_eq!(adaptive.limit(), 56);
        for n in 1..100 {
            adaptive.learn(Told::TooMuch, 2000 * n + 2019, 2000 * n + 2020, 1);
        }
        assert_eq!(adaptive.limit(), 1);
    }

    #[test]
    fn whole_answers_let_it_grow_and_shrink_too() {
        let mut adaptive = Adaptive::new(8, 1, 1000);
        for n in 0..30_000_u64 {
            let running = adaptive.limit();
            // 20 ms a token with up to 64 calls, slower in proportion above; answers of all lengths.
            let tokens = 50 + n * 7919 % 400;
            let ms = tokens * (20 * u64::from(running) / 64).max(20);
            adaptive.learn(Told::Whole { ms, tokens }, n, n, running);
        }
        let found = adaptive.limit / 64.0;
        assert!((0.9..2.0).contains(&found), "{found}");
    }

    #[test]
    fn streams_and_whole_answers_are_not_taken_for_each_other() {
        let mut adaptive = Adaptive::new(8, 1, 1000);
        for n in 0..5000_u64 {
            let running = adaptive.limit().min(200);
            let told = if n % 2 == 0 {
                Told::FirstToken { ms: 900 }
            } else {
                Told::Whole {
                    ms: 2000,
                    tokens: 100,
                }
            };
            adaptive.learn(told, n, n, running);
        }
        assert!(adaptive.limit() > 200, "{}", adaptive.limit());
    }

    #[test]
    fn prompts_of_all_lengths_are_not_taken_for_load() {
        // Nine short ones and a long one; half and half; a rare giant. The server is far from full.
        for (every, long) in [(10, 3000), (2, 400), (50, 60_000)] {
            let mut adaptive = Adaptive::new(8, 1, 1000);
            let mut n = 0;
            for _ in 0..20_000_u64 {
                n += 1;
                // A busy time after a quiet one, again and again.
                let running = if n % 2000 < 100 { 1 } else { adaptive.limit() };
                let ms = if n * 7919 % every == 0 { long } else { 100 };
                adaptive.learn(Told::FirstToken { ms }, n, n, running);
            }
            assert!(
                adaptive.limit() > 200,
                "{every} {long}: {}",
                adaptive.limit()
            );
        }
    }

    #[test]
    fn a_server_that_is_slower_for_good_is_not_starved() {
        let mut adaptive = Adaptive::new(64, 1, 1000);
        run(&mut adaptive, 100, 3000);
        for n in 0..6000 {
            let running = adaptive.limit();
            adaptive.learn(Told::FirstToken { ms: 900 }, n, n, running);
        }
        assert!(adaptive.limit() > 50, "{}", adaptive.limit());
    }

    #[test]
    fn without_load_nothing_is_learned() {
        let mut adaptive = Adaptive::new(100, 1, 1000);
        for n in 0..1000 {
            adaptive.learn(Told::FirstToken { ms: 5 + n % 900 }, n, n, 3);
        }
        assert_eq!(adaptive.limit(), 100);
    }
}
