//! The way from the store to the requests: an immutable snapshot of all keys, swapped whole.
//!
//! Decides when it is loaded anew: at once after each act, and at most once a second when a request shows a key that
//! nobody knows (it may have been made elsewhere). Called by `keys` and, through `guan`, by the gateway's check.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rules::snapshot;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::store::{Store, StoreFault};

/// Puts a snapshot where requests read it.
pub type Swap = Arc<dyn Fn(snapshot::Keys) + Send + Sync>;

/// All keys as they are in the store now.
///
/// # Errors
/// [`StoreFault`].
pub async fn load(store: &Store) -> Result<snapshot::Keys, StoreFault> {
    store.snapshot().await
}

/// Loads the keys and swaps them in. Clones share one order: an older view never replaces a newer one.
#[derive(Clone)]
pub struct Publisher {
    store: Store,
    swap: Swap,
    order: Arc<Mutex<()>>,
}

impl Publisher {
    /// Into a running server.
    #[must_use]
    pub fn new(store: Store, swap: Swap) -> Self {
        Self {
            store,
            swap,
            order: Arc::new(Mutex::new(())),
        }
    }

    /// For a command that acts while no server runs: nobody reads, so nothing is loaded.
    #[must_use]
    pub fn nobody(store: Store) -> Self {
        Self::new(store, Arc::new(|_keys| ()))
    }

    /// Loads and swaps now.
    ///
    /// # Errors
    /// [`StoreFault`]: requests go on reading the view before.
    pub async fn publish(&self) -> Result<(), StoreFault> {
        let _turn = self.order.lock().await;
        let keys = load(&self.store).await?;
        (self.swap)(keys);
        Ok(())
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Load {
    began: Instant,
    ended: Instant,
    result: Result<(), StoreFault>,
}

/// Loads the keys for requests whose key nobody knows: one load for all who ask at the same time, at most one a
/// second, so that made-up keys can't keep the store busy.
#[derive(Debug)]
pub struct Refresher {
    publisher: Publisher,
    last: Mutex<Option<Load>>,
}

impl Refresher {
    /// With the publisher of the running server.
    #[must_use]
    pub fn new(publisher: Publisher) -> Self {
        Self {
            publisher,
            last: Mutex::new(None),
        }
    }

    /// Returns when a view is swapped in that is at most a second old.
    ///
    /// # Errors
    /// [`StoreFault`] of the last load: the key can't be judged now, which isn't the same as unknown.
    pub async fn refresh(&self) -> Result<(), StoreFault> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        // Who waited while a load ran takes its result, so that a store that hangs isn't asked once for each.
        if let Some(load) = &*last
            && (load.ended > asked || load.began.elapsed() < SHORTEST)
        {
            return load.result.clone();
        }
        let began = Instant::now();
        let result = self.publisher.publish().await;
        *last = Some(Load {
            began,
            ended: Instant::now(),
            result: result.clone(),
        });
        result
    }
}

const SHORTEST: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::testbench::{Bench, new_key, roles};

    async fn pass(time: Duration) {
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
    }

    #[tokio::test]
    async fn an_unknown_key_brings_one_load_a_second_for_all_who_ask() {
        let bench = Bench::new().await;
        let refresher = Refresher::new(bench.publisher.clone());
        let loads = || bench.swaps.load(Ordering::SeqCst);
        let (a, b, c) = tokio::join!(
            refresher.refresh(),
            refresher.refresh(),
            refresher.refresh()
        );
        assert!(a.is_ok() && b.is_ok() && c.is_ok());
        assert_eq!(loads(), 1);
        refresher.refresh().await.unwrap();
        assert_eq!(loads(), 1);
        pass(SHORTEST).await;
        refresher.refresh().await.unwrap();
        assert_eq!(loads(), 2);
    }

    #[tokio::test]
    async fn a_key_made_elsewhere_is_found_by_a_refresh() {
        let bench = Bench::new().await;
        let other = crate::keys::Keys::new(
            bench.store.clone(),
            bench.pepper.clone(),
            Publisher::nobody(bench.store.clone()),
            swallow(),
            Arc::clone(&bench.clock),
        );
        let created = other
            .create(new_key("a"), &roles(), "local:0")
            .await
            .unwrap();
        assert_eq!(bench.accepts(&created.text), None);
        Refresher::new(bench.publisher.clone())
            .refresh()
            .await
            .unwrap();
        assert_eq!(bench.accepts(&created.text), Some(true));
    }

    #[tokio::test]
    async fn a_failing_store_is_told_to_all_and_asked_again_after_a_second() {
        let bench = Bench::new().await;
        let refresher = Refresher::new(bench.publisher.clone());
        bench.store.close().await;
        assert!(refresher.refresh().await.is_err());
        assert!(refresher.refresh().await.is_err());
        assert_eq!(bench.swaps.load(Ordering::SeqCst), 0);
    }

    fn swallow() -> tokio::sync::mpsc::Sender<rules::chain::Entry> {
        let (to, mut from) = tokio::sync::mpsc::channel::<rules::chain::Entry>(4);
        let _task = tokio::spawn(async move {
            while let Some(entry) = from.recv().await {
                (entry.done)(true);
            }
        });
        to
    }
}
