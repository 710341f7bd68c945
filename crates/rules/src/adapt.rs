//! How many calls a model server takes at the same time, learned from how long its first tokens take.
//!
//! A gradient method, after Netflix's concurrency-limits: the limit follows the ratio of the time that first tokens
//! take while little runs to the time that they take now. While they are nearly as fast, it grows by a part of its root;
//! when they are slower by half, it shrinks in proportion. What they take while little runs is learned whenever at most
//! half of the limit runs; if that never happens by itself, the limit is halved for a moment after every 512 calls, so
//! that a server which is always full doesn't come to look as if slow were usual. A server that says itself that it has
//! too much (429, 503, a time-out) shrinks the limit by a quarter, once for all calls that ran then.
//!
//! Pure: time is an argument, milliseconds on one clock. Called by `gateway::check::admit`.

/// By how much first tokens may be slower than usual before the limit shrinks.
const TOLERANCE: f64 = 1.5;

/// Share of a new sample in a mean.
const SHARE: f64 = 0.1;
const SLOWLY: f64 = 0.01;

/// How much of a change is made with each sample.
const STEP: f64 = 0.1;

/// Samples under load after which the limit is halved for a moment.
const PROBE_AFTER: u32 = 512;

/// Samples that the halved limit then lasts.
const PROBES: u32 = 8;

/// What a server that says "too much" leaves of the limit.
const CUT: f64 = 0.75;

/// What one call had to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Its first token came after so many milliseconds in its place.
    FirstToken {
        /// The time, milliseconds.
        ms: u64,
    },
    /// The server refused it for load, or didn't answer in time.
    TooMuch,
}

/// A limit that learns.
#[derive(Clone, Debug)]
pub struct Adaptive {
    limit: f64,
    least: f64,
    most: f64,
    /// Milliseconds to a first token while little runs; `None` before the first.
    light: Option<f64>,
    /// And now.
    now: f64,
    /// Samples since little ran; and samples that the halved limit still lasts.
    loaded: u32,
    probing: u32,
    /// Calls that started before this moment have told their "too much" already.
    cut_at: u64,
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
            light: None,
            now: 0.0,
            loaded: 0,
            probing: 0,
            cut_at: 0,
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
                if started >= self.cut_at {
                    self.cut_at = at;
                    self.set(self.limit * CUT);
                }
            }
            Told::FirstToken { ms } => {
                let sample = f64::from(u32::try_from(ms.max(1)).unwrap_or(u32::MAX));
                self.first_token(sample, f64::from(running));
            }
        }
    }

    fn first_token(&mut self, sample: f64, running: f64) {
        let mut light = self.light.unwrap_or(sample);
        let full = running * 2.0 > self.limit + 1.0;
        // With one place or two nothing is less.
        if !full || self.limit < 2.0 {
            // Slower only slowly: a server that is still too full looks slow as well.
            let share = if sample > light { SLOWLY } else { SHARE };
            light += (sample - light) * share;
        }
        self.light = Some(light);
        if !full && self.limit >= 2.0 {
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
        if self.loaded == 0 {
            self.now = sample;
        }
        self.now += (sample - self.now) * SHARE;
        self.loaded = self.loaded.saturating_add(1);
        if self.loaded >= PROBE_AFTER {
            (self.probing, self.loaded) = (PROBES, 0);
            return;
        }
        let gradient = (TOLERANCE * light / self.now).clamp(0.5, 1.0);
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
    fn too_much_counts_once_for_all_that_ran_then() {
        let mut adaptive = Adaptive::new(100, 1, 1000);
        for _ in 0..50 {
            adaptive.learn(Told::TooMuch, 10, 20, 100);
        }
        assert_eq!(adaptive.limit(), 75);
        adaptive.learn(Told::TooMuch, 21, 30, 75);
        assert_eq!(adaptive.limit(), 56);
        for n in 0..100 {
            adaptive.learn(Told::TooMuch, 100 * n + 31, 100 * n + 131, 1);
        }
        assert_eq!(adaptive.limit(), 1);
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
