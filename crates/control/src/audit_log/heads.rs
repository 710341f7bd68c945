//! Signed heads of chains in the store: what a log is held against when somebody could have written it anew.
//!
//! Called by the wiring while a server runs, and by commands when their chain has ended.

use rules::chain::Checkpoint;
use tokio::sync::watch;

use crate::store::Store;

/// Keeps each checkpoint of a running log, until the log ends. A store that is away gets the next one.
pub async fn keep(store: Store, mut heads: watch::Receiver<Option<Checkpoint>>) {
    while heads.changed().await.is_ok() {
        let head = heads.borrow_and_update().clone();
        keep_one(&store, head).await;
    }
}

/// Keeps one.
pub async fn keep_one(store: &Store, head: Option<Checkpoint>) {
    let Some(head) = head else {
        return;
    };
    if let Err(fault) = store.keep_head(&head).await {
        tracing::warn!(%fault, chain = head.chain, "the head of the audit chain isn't in the store yet");
    }
}
