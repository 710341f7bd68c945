//! Request rates: the generic cell rate algorithm (GCRA, ITU-T I.371), decided on a clock that is an argument.
//!
//! `requests_per_minute = N` with burst N: at most N at once, and N + N·t/60 in any t seconds.

use std::time::Duration;

const MINUTE_NANOS: u64 = 60_000_000_000;

/// A rate: how many calls, how far apart in the long run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Nanoseconds between two calls in the long run.
    interval: u64,
    /// Calls at once.
    burst: u64,
}

impl Rate {
    /// `count` calls a minute, `count` of them at once. A count of 0 is taken as 1: the config refuses it earlier.
    #[must_use]
    pub fn per_minute(count: u32) -> Self {
        let count = u64::from(count.max(1));
        Self {
            interval: MINUTE_NANOS.checked_div(count).unwrap_or(MINUTE_NANOS),
            burst: count,
        }
    }

    /// Calls at once, which is also the number in `x-ratelimit-limit-requests`.
    #[must_use]
    pub const fn limit(&self) -> u64 {
        self.burst
    }

    const fn tolerance(&self) -> u64 {
        self.interval.saturating_mul(self.burst.saturating_sub(1))
    }
}

/// One bucket: the theoretical arrival time of the next call, nanoseconds on the caller's clock. Starts full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    arrival: u64,
}

/// What a bucket says at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Calls a bucket of this rate allows at once.
    pub limit: u64,
    /// Calls that would be let through now.
    pub remaining: u64,
    /// Until the bucket is full again.
    pub reset: Duration,
    /// Until one call would be let through; zero when one would be now.
    pub retry: Duration,
}

impl Bucket {
    /// Takes one call at `now`; when it doesn't fit nothing is taken.
    ///
    /// # Errors
    /// The standing, whose `retry` says when the same call fits if nobody else takes from the bucket.
    pub fn take(&mut self, now: u64, rate: Rate) -> Result<Standing, Standing> {
        let before = self.look(now, rate);
        if before.remaining == 0 {
            return Err(before);
        }
        self.arrival = self.arrival.max(now).saturating_add(rate.interval);
        Ok(self.look(now, rate))
    }

    /// Says how it stands, taking nothing.
    #[must_use]
    pub fn look(self, now: u64, rate: Rate) -> Standing {
        let ahead = self.arrival.saturating_sub(now);
        let free = rate
            .tolerance()
            .saturating_add(rate.interval)
            .saturating_sub(ahead);
        Standing {
            limit: rate.burst,
            remaining: free.checked_div(rate.interval).unwrap_or(0).min(rate.burst),
            reset: Duration::from_nanos(ahead),
            retry: Duration::from_nanos(ahead.saturating_sub(rate.tolerance())),
        }
    }

    /// Whether it is full again at `now`, so that it may be forgotten.
    #[must_use]
    pub const fn is_full(self, now: u64) -> bool {
        self.arrival <= now
    }

    /// Takes a call that was already let through (replay after a restart): never refused.
    pub fn replay(&mut self, at: u64, rate: Rate) {
        self.arrival = self.arrival.max(at).saturating_add(rate.interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn ten_a_minute_lets_ten_through_at_once_and_the_formula_holds_after() {
        let rate = Rate::per_minute(10);
        let mut bucket = Bucket::default();
        let start = 1_000 * S;
        let mut passed = 0;
        for tick in 0..600 {
            passed += u64::from(bucket.take(start + tick * S / 2, rate).is_ok());
            let most = 10 + 10 * (tick / 2) / 60;
            assert!(passed <= most + 1, "{passed} after {tick} half seconds");
        }
        assert_eq!(passed, 10 + 49);
    }

    #[test]
    fn a_retry_at_the_told_moment_succeeds_and_one_a_second_earlier_does_not() {
        let rate = Rate::per_minute(10);
        let mut bucket = Bucket::default();
        let now = 5 * S;
        for _ in 0..10 {
            bucket.take(now, rate).unwrap();
        }
        let told = bucket.take(now, rate).unwrap_err();
        assert_eq!((told.remaining, told.retry), (0, Duration::from_secs(6)));
        assert_eq!(told.reset, Duration::from_secs(60));
        assert!(bucket.take(now + 5 * S, rate).is_err());
        assert!(bucket.take(now + 6 * S, rate).is_ok());
    }

    #[test]
    fn a_clock_that_steps_back_frees_nothing_and_locks_nobody_out_for_ever() {
        let rate = Rate::per_minute(2);
        let mut bucket = Bucket::default();
        bucket.take(100 * S, rate).unwrap();
        bucket.take(100 * S, rate).unwrap();
        assert!(bucket.take(99 * S, rate).is_err());
        assert!(bucket.take(131 * S, rate).is_ok());
    }
}
