//! How long to wait before something that died is started again. Pure: time is an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// For a worker: 1 s, doubled to 30 s, back to 1 s after a life of 60 s.
#[derive(Debug)]
pub(super) struct BackOff {
    next: Duration,
}

impl BackOff {
    pub(super) const fn new() -> Self {
        Self { next: FIRST }
    }

    /// The pause after a life of `lived`.
    pub(super) fn after(&mut self, lived: Duration) -> Duration {
        if lived >= Duration::from_mins(1) {
            self.next = FIRST;
        }
        let pause = self.next;
        self.next = pause.saturating_mul(2).min(LONGEST);
        pause
    }
}

/// For the gateway: at once, later when it dies young, never again after five deaths in 30 s.
#[derive(Debug, Default)]
pub(super) struct Deaths {
    recent: VecDeque<Instant>,
}

impl Deaths {
    /// The pause after a death at `now`; `None`: give up.
    pub(super) fn add(&mut self, now: Instant, lived: Duration) -> Option<Duration> {
        self.recent.push_back(now);
        while self
            .recent
            .front()
            .is_some_and(|d| now.duration_since(*d) > Duration::from_secs(30))
        {
            self.recent.pop_front();
        }
        match self.recent.len() {
            5.. => None,
            _ if lived >= Duration::from_secs(1) => Some(Duration::ZERO),
            n => Some(Duration::from_millis(100).saturating_mul(1 << n)),
        }
    }
}

const FIRST: Duration = Duration::from_secs(1);

const LONGEST: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_keeps_dying_waits_longer_and_a_long_life_is_forgiven() {
        let mut back_off = BackOff::new();
        let short = Duration::from_millis(5);
        let pauses: Vec<u64> = (0..7).map(|_| back_off.after(short).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(back_off.after(Duration::from_secs(60)).as_secs(), 1);
    }

    #[test]
    fn a_gateway_comes_back_at_once_and_five_deaths_in_a_row_end_it() {
        let start = Instant::now();
        let mut deaths = Deaths::default();
        let long = Duration::from_secs(100);
        assert_eq!(deaths.add(start, long), Some(Duration::ZERO));
        let young = Duration::from_millis(10);
        let at = |s| start + Duration::from_secs(s);
        assert_eq!(deaths.add(at(1), young), Some(Duration::from_millis(400)));
        assert_eq!(deaths.add(at(2), young), Some(Duration::from_millis(800)));
        assert_eq!(deaths.add(at(3), young), Some(Duration::from_millis(1600)));
        assert_eq!(deaths.add(at(4), young), None);
        assert_eq!(
            deaths.add(at(60), long),
            Some(Duration::ZERO),
            "old deaths are forgotten"
        );
    }
}
