//! Issuers of tokens: when their keys are fetched, and what is published of them.
//!
//! Decides only when: before what was fetched grows old, soon again after a failure, and when a request shows a token
//! of a key that nobody knows; questions that come soon after a look wait for the next, which is seconds away. Keys that were fetched stay
//! published while their issuer is away; how long they are good is the gateway's to judge. Whether a token is good is
//! `rules::token`'s business. Called by the wiring; the gateway asks through a channel that the wiring joins.

pub mod oidc;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rules::token::Looked;
use rules::token::key_set::KeySet;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use oidc::{Fetched, IssuerFault, Source};

/// A request's question: has this issuer new keys?
pub type Question = (Arc<str>, oneshot::Sender<Looked>);

/// Keeps the keys of all issuers young. `publish` is given an issuer's keys after each fetch, or `None` when they no
/// longer count.
///
/// Ends when the asking side is dropped.
pub async fn follow(
    mut sources: watch::Receiver<Vec<Source>>,
    mut questions: mpsc::Receiver<Question>,
    publish: impl Fn(&str, Option<Arc<KeySet>>),
) {
    let mut watched: BTreeMap<String, Watched> = BTreeMap::new();
    let mut fetching: JoinSet<Done> = JoinSet::new();
    let now_meant = sources.borrow_and_update().clone();
    take_over(&mut watched, now_meant, &publish);
    loop {
        let now = Instant::now();
        for one in watched.values_mut() {
            if !one.is_fetching && one.next <= now {
                one.fetch(&mut fetching);
            }
        }
        let waiting = watched.values().filter(|one| !one.is_fetching);
        let next = waiting.map(|one| one.next).min();
        tokio::select! {
            biased;
            changed = sources.changed() => {
                if changed.is_err() {
                    return;
                }
                let now_meant = sources.borrow_and_update().clone();
                take_over(&mut watched, now_meant, &publish);
            }
            question = questions.recv() => {
                let Some((issuer, answer)) = question else {
                    return;
                };
                match watched.get_mut(&*issuer) {
                    Some(one) => one.asked(answer, &mut fetching),
                    // The config file has just lost it. Who has left needs no answer.
                    None => {
                        let _gone = answer.send(Looked::Away);
                    }
                }
            }
            Some(Ok(done)) = fetching.join_next() => {
                if let Some(one) = watched.get_mut(done.source.issuer()) {
                    one.fetched(done, &publish);
                }
            }
            () = sleep_until(next.unwrap_or(now)), if next.is_some() => {}
        }
    }
}

/// One issuer.
struct Watched {
    source: Source,
    keys: Option<Arc<KeySet>>,
    next: Instant,
    is_fetching: bool,
    is_healthy: bool,
    failures: u32,
    /// When the last look that somebody waited for began.
    asked: Option<Instant>,
    /// Who waits for the next look's end, or for that of the one that runs, and what it is to him if it goes well.
    waiting: Vec<(oneshot::Sender<Looked>, Looked)>,
}

struct Done {
    source: Source,
    result: Result<Fetched, IssuerFault>,
}

/// Other issuers than before: what is fetched of those that stay as they are is kept.
fn take_over(
    watched: &mut BTreeMap<String, Watched>,
    meant: Vec<Source>,
    publish: &impl Fn(&str, Option<Arc<KeySet>>),
) {
    watched.retain(|issuer, one| {
        let stays = meant.contains(&one.source);
        if !stays {
            publish(issuer, None);
        }
        stays
    });
    for source in meant {
        watched
            .entry(source.issuer().to_owned())
            .or_insert_with(|| Watched::new(source));
    }
}

impl Watched {
    fn new(source: Source) -> Self {
        Self {
            source,
            keys: None,
            next: Instant::now(),
            is_fetching: false,
            is_healthy: true,
            failures: 0,
            asked: None,
            waiting: Vec::new(),
        }
    }

    fn fetch(&mut self, fetching: &mut JoinSet<Done>) {
        self.is_fetching = true;
        if !self.waiting.is_empty() {
            self.asked = Some(Instant::now());
        }
        let source = self.source.clone();
        let _handle = fetching.spawn(async move {
            let one = source.clone();
            // A panic in it is that look's end, not the issuer's.
            let result = tokio::spawn(async move { one.fetch().await }).await;
            let result = result.unwrap_or(Err(IssuerFault::Ours));
            Done { source, result }
        });
    }

    /// Waits for a fetch that runs, else for one to come: at once, unless the last began a moment ago.
    fn asked(&mut self, answer: oneshot::Sender<Looked>, fetching: &mut JoinSet<Done>) {
        self.waiting.retain(|(one, _)| !one.is_closed());
        if self.waiting.len() >= MOST_WAITING {
            // Dropped unanswered: too many ask.
            return;
        }
        if self.is_fetching {
            self.waiting.push((answer, Looked::Joined));
            return;
        }
        let soonest = self.asked.and_then(|at| at.checked_add(BETWEEN_LOOKS));
        let is_soon = soonest.filter(|at| *at > Instant::now());
        if is_soon.is_some() && !self.is_healthy {
            let _gone = answer.send(Looked::Away);
            return;
        }
        self.waiting.push((answer, Looked::Fresh));
        match is_soon {
            Some(at) => self.next = self.next.min(at),
            None => self.fetch(fetching),
        }
    }

    fn fetched(&mut self, done: Done, publish: &impl Fn(&str, Option<Arc<KeySet>>)) {
        if done.source != self.source {
            // Of an issuer as the config file meant it before.
            return;
        }
        let issuer = self.source.issuer();
        self.is_fetching = false;
        let was_healthy = std::mem::replace(&mut self.is_healthy, done.result.is_ok());
        let wait = match done.result {
            Ok(fetched) => {
                self.failures = 0;
                let keys = match self.keys.take() {
                    // The same again: what was verified by it needs no second look.
                    Some(keys) if *keys == fetched.keys => keys,
                    Some(_) | None => {
                        tracing::info!(
                            issuer,
                            keys = fetched.keys.len(),
                            "keys of an issuer are in use"
                        );
                        Arc::new(fetched.keys)
                    }
                };
                publish(issuer, Some(Arc::clone(&keys)));
                self.keys = Some(keys);
                if !was_healthy {
                    tracing::info!(issuer, "the issuer answers again");
                }
                // Twice in the time that they are good for, so that one look may fail.
                let half = self.source.max_stale() / 2;
                fetched.good_for.min(half).mul_f64(portion(0.8, 0.95))
            }
            Err(fault) => {
                if was_healthy {
                    let kept = self.keys.is_some();
                    tracing::error!(issuer, %fault, kept, "keys of an issuer can't be fetched: those that are known stay in use, tokens of others get 503");
                }
                let doubled = FIRST_RETRY.saturating_mul(1 << self.failures.min(6));
                self.failures = self.failures.saturating_add(1);
                doubled.min(LAST_RETRY).mul_f64(portion(0.8, 1.0))
            }
        };
        self.next = Instant::now()
            .checked_add(wait)
            .unwrap_or_else(Instant::now);
        for (answer, good) in self.waiting.drain(..) {
            let looked = if self.is_healthy { good } else { Looked::Away };
            // Who has left needs no answer.
            let _gone = answer.send(looked);
        }
    }
}

/// A number between two others, by chance: nodes that started together don't ask together.
fn portion(from: f64, to: f64) -> f64 {
    let mut byte = [0_u8; 1];
    // Without chance it is the first.
    let _first = aws_lc_rs::rand::fill(&mut byte);
    let [byte] = byte;
    from + (to - from) * f64::from(byte) / 255.0
}

/// Between the beginnings of two looks at one issuer that questions bring, however many ask.
const BETWEEN_LOOKS: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// Requests that may wait for one issuer's look.
const MOST_WAITING: usize = 256;
/// Questions on their way.
pub const MOST_ASKED: usize = 256;

#[cfg(test)]
mod tests;
