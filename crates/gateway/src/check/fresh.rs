//! How young the keys in memory are, and the one way to ask for younger ones.
//!
//! A request with a key that nobody knows waits for the next look at the store, which comes at most once a second
//! for all of them; only so many may wait. Whoever follows the store (`control`, joined by `guan::wiring`) answers,
//! and says here when it was last heard. Called by `authenticate`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

/// The longest wait for a look at the store.
const LOOK: Duration = Duration::from_secs(8);

/// A store that wasn't heard for this long can't be asked.
const LOST: Duration = Duration::from_secs(3);

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Looked {
    /// The keys in memory are younger than the question.
    Fresh,
    /// The store doesn't answer.
    Unavailable,
    /// Too many wait already: nobody was asked.
    Full,
}

/// The asking side.
#[derive(Debug)]
pub struct Freshness {
    questions: mpsc::Sender<oneshot::Sender<bool>>,
    start: Instant,
    /// Milliseconds from `start` to when the store was last heard.
    heard: AtomicU64,
    /// Before the first word of the follower the keys are as young as this process.
    started: AtomicBool,
}

impl Freshness {
    /// Joins the channel to whoever follows the store.
    #[must_use]
    pub fn new(questions: mpsc::Sender<oneshot::Sender<bool>>) -> Self {
        Self {
            questions,
            start: Instant::now(),
            heard: AtomicU64::new(0),
            started: AtomicBool::new(false),
        }
    }

    /// The store was heard now.
    pub fn heard(&self) {
        let ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard.store(ms, Ordering::Relaxed);
        self.started.store(true, Ordering::Relaxed);
    }

    /// How long ago the store was heard.
    pub(crate) fn age(&self) -> Duration {
        let heard = Duration::from_millis(self.heard.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(heard)
    }

    /// Whether what is known is too old to be acted on.
    pub(crate) fn is_stale(&self, most: Duration) -> bool {
        self.age() > most
    }

    /// Whether the store is silent.
    pub(crate) fn is_lost(&self) -> bool {
        self.age() > LOST
    }

    /// Waits for the next look at the store.
    pub(crate) async fn look(&self) -> Looked {
        let (question, answer) = oneshot::channel();
        if self.questions.try_send(question).is_err() {
            return Looked::Full;
        }
        match tokio::time::timeout(LOOK, answer).await {
            Ok(Ok(true)) => Looked::Fresh,
            Ok(Ok(false) | Err(_)) | Err(_) => Looked::Unavailable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bounded_number_waits_and_the_rest_is_told_at_once() {
        let (ask, mut asked) = mpsc::channel(2);
        let freshness = Freshness::new(ask);
        let first = freshness.look();
        let answers = async {
            let (a, b) = (asked.recv().await.unwrap(), asked.recv().await.unwrap());
            a.send(true).unwrap();
            b.send(false).unwrap();
        };
        let full = async {
            tokio::task::yield_now().await;
            freshness.look().await
        };
        let (first, second, third, ()) = tokio::join!(first, freshness.look(), full, answers);
        assert_eq!((first, second), (Looked::Fresh, Looked::Unavailable));
        // Either it found no place, or it took the one that was just given back and nobody answered.
        assert_ne!(third, Looked::Fresh);
        drop(asked);
        assert_eq!(freshness.look().await, Looked::Full);
    }

    #[test]
    fn keys_grow_old_until_the_store_is_heard() {
        let freshness = Freshness::new(mpsc::channel(1).0);
        assert!(!freshness.is_lost());
        assert!(freshness.is_stale(Duration::ZERO) || freshness.age().is_zero());
        freshness.heard();
        assert!(!freshness.is_stale(Duration::from_secs(60)));
    }
}
