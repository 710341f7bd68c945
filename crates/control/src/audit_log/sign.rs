//! When the chain is signed, and what a checkpoint's line says.
//!
//! It decides that records stand unsigned for a bounded time only, and that an idle chain gets no lines. Called by
//! `write`.

use std::sync::Arc;
use std::time::Duration;

use rules::chain::{Checkpoint, Link, Signer};
use tokio::sync::watch;
use tokio::time::Instant;

use super::AuditSpec;
use crate::clock::{self, Clock};

/// What signs one chain.
pub(super) struct Signing {
    chain: String,
    signer: Arc<Signer>,
    every: Duration,
    clock: Clock,
    /// The first line that no checkpoint covers.
    unsigned: u64,
    /// Since when there is one.
    since: Option<Instant>,
    heads: watch::Sender<Option<Checkpoint>>,
}

impl Signing {
    pub(super) fn new(
        chain: String,
        spec: &AuditSpec,
        heads: watch::Sender<Option<Checkpoint>>,
    ) -> Self {
        Self {
            chain,
            signer: Arc::clone(&spec.signer),
            every: spec.checkpoint_every,
            clock: Arc::clone(&spec.clock),
            unsigned: 0,
            since: None,
            heads,
        }
    }

    /// The chain's name.
    pub(super) fn chain(&self) -> &str {
        &self.chain
    }

    /// Takes in that the chain has grown; gives when it is to be signed.
    pub(super) fn grown(&mut self, link: &Link) -> Option<Instant> {
        if link.seq <= self.unsigned {
            return None;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        Some(since.checked_add(self.every).unwrap_or(since))
    }

    /// A checkpoint of the chain as it stands; `None`: it has no line.
    pub(super) fn sign(&self, link: &Link) -> Option<Checkpoint> {
        let last = link.seq.checked_sub(1)?;
        let at = clock::rfc3339_nanos((self.clock)());
        Some(self.signer.sign(&self.chain, last, link.head, at))
    }

    /// Takes in that a checkpoint is written, with the chain as it stands since.
    pub(super) fn signed(&mut self, checkpoint: Checkpoint, link: &Link) {
        // Its own line waits for the next one that has something to say.
        self.unsigned = link.seq;
        self.since = None;
        self.heads.send_replace(Some(checkpoint));
    }
}
