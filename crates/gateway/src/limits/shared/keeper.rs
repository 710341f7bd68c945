//! Keeps the connection to the shared store: connects, says that this node lives, ends calls there, begins leases again.
//!
//! A thread of its own, so that no core waits for it. It closes the circuit once the store has done a node's sign of
//! life, which is a write: a server that can only be read doesn't count. Ends of calls wait here while it is away,
//! and each is done once however often it is sent. Started by `backend`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::{RedisError, RedisResult};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, timeout};

use super::link::{Link, STEP};
use super::words;
use super::{End, LEASE, Store, Word, lock, spoken};

/// Between two signs of life: one that is lost doesn't end a lease.
const BEAT: Duration = Duration::from_secs(3);

/// Between two tries to connect, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// A connection that isn't there after so long won't be: sentinel, server and role.
const CONNECTED: Duration = Duration::from_secs(4);

/// Ends of calls in one round trip.
const BATCH: usize = 128;

/// Tries of a batch before its ends are sent one by one, and those that fail are let go.
const TRIES: u32 = 3;

/// Why the keeper stopped working with a connection.
enum Stop {
    Broken,
    Closed,
}

/// Runs until the store is closed.
pub(crate) async fn keep(store: Arc<Store>, mut ends: mpsc::Receiver<Word>) {
    let mut keeper = Keeper {
        store,
        waiting: VecDeque::new(),
        tries: 0,
    };
    let mut pause = PAUSES.0;
    let mut was_heard = true;
    loop {
        match keeper.connect().await {
            Ok(mut link) => {
                pause = PAUSES.0;
                let shared = Arc::new(link.clone());
                keeper.store.link.store(Some(Arc::clone(&shared)));
                tracing::info!(nodes = keeper.store.nodes(), "the shared limits answer");
                was_heard = true;
                let stopped = keeper.work(&mut link, &mut ends).await;
                if matches!(stopped, Stop::Closed) {
                    keeper.store.link.store(None);
                    return;
                }
                keeper.store.open(&shared, "a sign of life wasn't answered");
            }
            Err(why) => {
                if was_heard {
                    tracing::warn!(why, "the shared limits can't be connected to");
                }
                was_heard = false;
                // Whoever closes waits a bounded time, and wants no more than another try.
                tokio::time::sleep(pause).await;
                pause = pause.saturating_mul(2).min(PAUSES.1);
                if keeper.store.closing.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
    }
}

struct Keeper {
    store: Arc<Store>,
    /// Ends that were sent and not answered, oldest first.
    waiting: VecDeque<End>,
    tries: u32,
}

impl Keeper {
    async fn connect(&self) -> Result<Link, String> {
        let connecting = async {
            let mut link = Link::open(&self.store.told.address).await?;
            self.beat(&mut link).await?;
            Ok(link)
        };
        match timeout(CONNECTED, connecting).await {
            Ok(Ok(link)) => Ok(link),
            Ok(Err(fault)) => {
                let fault: RedisError = fault;
                Err(spoken(&fault))
            }
            Err(_elapsed) => Err("no answer".to_owned()),
        }
    }

    async fn work(&mut self, link: &mut Link, ends: &mut mpsc::Receiver<Word>) -> Stop {
        let mut ticks = tokio::time::interval(BEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let store = Arc::clone(&self.store);
        loop {
            // What waits goes first; then leases, so that no lease of an ended call begins again.
            if !self.waiting.is_empty() && self.send(link).await.is_err() {
                return Stop::Broken;
            }
            let mut batch = Vec::new();
            tokio::select! {
                biased;
                () = store.doubt.notified() => return Stop::Broken,
                _now = ticks.tick() => {
                    if self.beat(link).await.is_err() || self.renew(link).await.is_err() {
                        return Stop::Broken;
                    }
                }
                count = ends.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return Stop::Closed;
                    }
                    let is_last = batch.iter().any(|word| matches!(word, Word::Last));
                    self.waiting.extend(batch.into_iter().filter_map(|word| match word {
                        Word::End(end) => Some(end),
                        Word::Last => None,
                    }));
                    if is_last {
                        return self.finish(link).await;
                    }
                }
            }
        }
    }

    /// The last ends, and no more sign of life.
    async fn finish(&mut self, link: &mut Link) -> Stop {
        while !self.waiting.is_empty() {
            if self.send(link).await.is_err() {
                return Stop::Broken;
            }
        }
        Stop::Closed
    }

    /// Sends what waits, in one round trip.
    async fn send(&mut self, link: &mut Link) -> RedisResult<()> {
        let count = self.waiting.len().min(BATCH);
        let words =
            |end: &End| words::on_plan(&self.store.names, end.act, &end.id, &end.plan, (0, LEASE));
        if self.tries < TRIES {
            self.tries = self.tries.saturating_add(1);
            let mut pipe = redis::pipe();
            for end in self.waiting.iter().take(count) {
                pipe.add_command(words(end));
            }
            within(link.ask_all(&pipe)).await?;
        } else {
            // One of them may be what the store won't do: the others shall not wait for it.
            for end in self.waiting.iter().take(count) {
                if let Err(fault) = within(link.ask(&words(end))).await {
                    tracing::error!(
                        why = spoken(&fault),
                        "the end of a call can't be told to the shared limits"
                    );
                    self.store.lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        self.tries = 0;
        drop(self.waiting.drain(..count));
        Ok(())
    }

    /// Says that this node lives, and hears how many do.
    async fn beat(&self, link: &mut Link) -> RedisResult<()> {
        let store = &self.store;
        let cmd = words::beat(&store.names, &store.node, LEASE);
        let answer = within(link.ask(&cmd)).await?;
        if let Some(nodes) = words::nodes(&answer) {
            store.nodes.store(nodes, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Begins the leases of running calls again.
    async fn renew(&self, link: &mut Link) -> RedisResult<()> {
        let store = &self.store;
        let running: Vec<_> = lock(&store.running)
            .iter()
            .map(|(id, held)| (*id, held.clone()))
            .collect();
        for some in running.chunks(BATCH) {
            let mut pipe = redis::pipe();
            for (id, held) in some {
                pipe.add_command(words::renew(&store.names, id, held, LEASE));
            }
            within(link.ask_all(&pipe)).await?;
        }
        Ok(())
    }
}

async fn within<T>(asked: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    match timeout(STEP, asked).await {
        Ok(answered) => answered,
        Err(_elapsed) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}
