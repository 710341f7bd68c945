//! The thread that writes the chain: drains the queue, one write a batch, answers after the write has returned.
//!
//! A write that fails is cut off again, everything in it is answered `false`, and nothing is accepted until a later
//! write stands; that write says first how many records were refused. Waiting for the disk happens beside it.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rules::chain::{Entry, Link, Record};
use serde_json::json;
use tokio::runtime::{Builder, Handle};
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, timeout_at};

use super::rotate::Rotation;
use super::sign::Signing;
use super::{AuditSpec, Fsync, blank};
use crate::clock::Clock;

/// A file that only grows.
pub(super) trait Out: Send + Sync + 'static {
    /// Writes at the end; may write less than all.
    fn append(&self, bytes: &[u8]) -> io::Result<usize>;
    /// Cuts the file to `length` bytes.
    fn cut(&self, length: u64) -> io::Result<()>;
    /// Waits until what is written is on disk.
    fn sync(&self) -> io::Result<()>;
}

impl Out for File {
    fn append(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut file = self;
        file.write(bytes)
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// One chain's writer.
pub(super) struct Writer<O> {
    out: Arc<O>,
    link: Link,
    /// Bytes of whole lines in the file.
    length: u64,
    /// Bytes of a failed write may stand behind them.
    uncut: bool,
    /// Records answered `false` since the last good write.
    refused: u64,
    clock: Clock,
    fsync: Fsync,
    signing: Signing,
    rotation: Rotation<O>,
    /// Something was written that nobody waits for the disk with.
    dirty: bool,
    healthy: Arc<AtomicBool>,
    syncing: Arc<AtomicBool>,
}

impl<O: Out> Writer<O> {
    pub(super) fn new(
        out: O,
        (link, length): (Link, u64),
        spec: &AuditSpec,
        (signing, rotation): (Signing, Rotation<O>),
        healthy: &Arc<AtomicBool>,
    ) -> Self {
        Self {
            out: Arc::new(out),
            link,
            length,
            uncut: false,
            refused: 0,
            clock: Arc::clone(&spec.clock),
            fsync: spec.fsync,
            signing,
            rotation,
            dirty: false,
            healthy: Arc::clone(healthy),
            syncing: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Until the last sender is gone. `true`: everything that was answered `true` is on disk and the chain is closed.
    pub(super) fn run(self, from: Receiver<Entry>) -> bool {
        let closing = Closing(Arc::clone(&self.healthy));
        let runtime = match Builder::new_current_thread()
            .enable_time()
            .thread_name("guan-audit-sync")
            .max_blocking_threads(1)
            .build()
        {
            Ok(runtime) => runtime,
            Err(cause) => {
                tracing::error!(%cause, "the audit thread can't start: no record can be written");
                return false;
            }
        };
        let closed = runtime.block_on(self.drain(from));
        drop(closing);
        closed
    }

    pub(super) async fn drain(mut self, mut from: Receiver<Entry>) -> bool {
        let runtime = Handle::current();
        let mut batch = Vec::with_capacity(BATCH);
        let mut due: Option<Instant> = None;
        loop {
            // What can't be written can't be signed either, and must not be waited for.
            let healthy = self.healthy.load(Ordering::Acquire);
            let sign_at = self.signing.grown(&self.link).filter(|_| healthy);
            let next = [due, sign_at].into_iter().flatten().min();
            let got = match next {
                None => from.recv_many(&mut batch, BATCH).await,
                Some(at) => match timeout_at(at, from.recv_many(&mut batch, BATCH)).await {
                    Ok(got) => got,
                    Err(_elapsed) => {
                        self.checkpoint_if(sign_at);
                        if due.is_some_and(|at| at <= Instant::now()) {
                            due = self.wake(&runtime);
                        } else if self.dirty || !self.healthy.load(Ordering::Acquire) {
                            due = Some(due.unwrap_or_else(|| after(INTERVAL)));
                        }
                        continue;
                    }
                },
            };
            if got == 0 {
                return self.close();
            }
            self.write(&mut batch);
            // Under a steady load the wait above never ends by itself.
            self.checkpoint_if(sign_at);
            self.rotate_if_due();
            if !self.healthy.load(Ordering::Acquire) {
                due = Some(after(PROBE));
            } else if self.fsync == Fsync::Interval {
                let at = *due.get_or_insert_with(|| after(INTERVAL));
                if Instant::now() >= at {
                    due = self.wake(&runtime);
                }
            }
        }
    }

    /// Signs the chain when the time has come. Nothing is signed while it can't be written.
    fn checkpoint_if(&mut self, at: Option<Instant>) {
        let healthy = self.healthy.load(Ordering::Acquire);
        if !healthy || at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        let Some(signed) = self.signing.sign(&self.link) else {
            return;
        };
        let mut record = blank(&self.clock, "checkpoint");
        record.act = Some(json!({ "checkpoint": signed }));
        let (before, mut bytes) = (self.link, Vec::new());
        if !self.chain(&record, &mut bytes) {
            return;
        }
        match self.append(&bytes) {
            Ok(()) => {
                self.dirty = true;
                self.signing.signed(signed, &self.link);
            }
            Err(cause) => {
                self.link = before;
                self.failed(&cause);
            }
        }
    }

    /// Goes on in another file when this one is full or old. What was written is on disk before.
    fn rotate_if_due(&mut self) {
        if !self.healthy.load(Ordering::Acquire) {
            return;
        }
        let Some(next) = self.rotation.next_if_due(self.length) else {
            return;
        };
        let signed = self.signing.sign(&self.link);
        let part = self.rotation.part();
        let mut ends = blank(&self.clock, "part-end");
        ends.act = Some(json!({ "part": part.saturating_sub(1), "checkpoint": signed }));
        let mut starts = blank(&self.clock, "part-start");
        starts.act = Some(json!({ "chain": self.signing.chain(), "part": part }));
        let before = self.link;
        let mut bytes = Vec::new();
        let chained = self.chain(&ends, &mut bytes);
        let ended = self.append(&bytes).and_then(|()| self.out.sync());
        if let Err(cause) = ended {
            self.link = before;
            return self.failed(&cause);
        }
        if let Some(signed) = signed.filter(|_| chained) {
            self.signing.signed(signed, &self.link);
        }
        self.out = Arc::new(next);
        self.length = 0;
        self.dirty = false;
        let (before, mut bytes) = (self.link, Vec::new());
        let _chained = self.chain(&starts, &mut bytes);
        if let Err(cause) = self.append(&bytes).and_then(|()| self.out.sync()) {
            self.link = before;
            self.failed(&cause);
        }
    }

    /// From now on nothing is accepted until a write stands.
    fn failed(&self, cause: &io::Error) {
        complain(cause);
        self.healthy.store(false, Ordering::Release);
    }

    /// What is to do when the time has come; the next time, if there is more.
    fn wake(&mut self, runtime: &Handle) -> Option<Instant> {
        if !self.healthy.load(Ordering::Acquire) {
            self.write(&mut Vec::new());
            return (!self.healthy.load(Ordering::Acquire)).then(|| after(PROBE));
        }
        // One wait at a time. Its result is looked at when it has ended, so there is always one more time.
        if self.syncing.load(Ordering::Acquire) {
            return Some(after(INTERVAL));
        }
        if !self.dirty {
            return None;
        }
        self.dirty = false;
        self.syncing.store(true, Ordering::Release);
        let (out, healthy, syncing) = (
            Arc::clone(&self.out),
            Arc::clone(&self.healthy),
            Arc::clone(&self.syncing),
        );
        let waiting = runtime.spawn_blocking(move || {
            if let Err(cause) = out.sync() {
                healthy.store(false, Ordering::Release);
                complain(&cause);
            }
            syncing.store(false, Ordering::Release);
        });
        drop(waiting);
        Some(after(INTERVAL))
    }

    /// Chains and writes a batch, then answers it. While unhealthy it first tells of the gap.
    fn write(&mut self, batch: &mut Vec<Entry>) {
        let resuming = !self.healthy.load(Ordering::Acquire);
        let before = self.link;
        let mut bytes = Vec::with_capacity(batch.len().saturating_add(1).saturating_mul(768));
        if resuming {
            let mut resumed = blank(&self.clock, "log-resumed");
            resumed.act = Some(json!({ "refused": self.refused }));
            let _chained = self.chain(&resumed, &mut bytes);
        }
        let mut answers = Vec::with_capacity(batch.len());
        for entry in batch.drain(..) {
            if self.chain(&entry.record, &mut bytes) {
                answers.push(entry.done);
            } else {
                (entry.done)(false);
            }
        }
        let durable = resuming || self.fsync == Fsync::Each;
        let result = match self.append(&bytes) {
            Ok(()) if durable => self.out.sync(),
            Ok(()) => {
                self.dirty = true;
                Ok(())
            }
            Err(cause) => {
                self.link = before;
                Err(cause)
            }
        };
        match result {
            Ok(()) => {
                if resuming {
                    tracing::info!(refused = self.refused, "the audit log can be written again");
                    self.refused = 0;
                    self.healthy.store(true, Ordering::Release);
                }
            }
            Err(cause) => {
                if !resuming {
                    complain(&cause);
                }
                let count = u64::try_from(answers.len()).unwrap_or(u64::MAX);
                self.refused = self.refused.saturating_add(count);
                self.healthy.store(false, Ordering::Release);
                answers.into_iter().for_each(|done| done(false));
                return;
            }
        }
        answers.into_iter().for_each(|done| done(true));
    }

    fn chain(&mut self, record: &Record, bytes: &mut Vec<u8>) -> bool {
        let start = bytes.len();
        match self.link.append(record, bytes) {
            Ok(()) => true,
            Err(cause) => {
                bytes.truncate(start);
                tracing::error!(%cause, "an audit record can't be written as JSON: refused");
                false
            }
        }
    }

    /// All of it, or nothing.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.uncut {
            self.out.cut(self.length)?;
            self.uncut = false;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.out.append(rest) {
                Ok(0) => return Err(self.undo(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.uncut = true;
                    rest = rest.get(count..).unwrap_or_default();
                }
                Err(again) if again.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(self.undo(cause)),
            }
        }
        self.uncut = false;
        let written = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.length = self.length.saturating_add(written);
        Ok(())
    }

    fn undo(&mut self, cause: io::Error) -> io::Error {
        // If this fails too it is tried again before the next write.
        if self.uncut && self.out.cut(self.length).is_ok() {
            self.uncut = false;
        }
        cause
    }

    fn close(mut self) -> bool {
        let mut bytes = Vec::new();
        let mut end = blank(&self.clock, "chain-end");
        let signed = self.signing.sign(&self.link);
        let (records, refused) = (self.link.seq, self.refused);
        end.act = Some(json!({ "records": records, "refused": refused, "checkpoint": signed }));
        let chained = self.chain(&end, &mut bytes);
        match self.append(&bytes).and_then(|()| self.out.sync()) {
            Ok(()) => {
                if let Some(signed) = signed {
                    self.signing.signed(signed, &self.link);
                }
                chained
            }
            Err(cause) => {
                complain(&cause);
                false
            }
        }
    }
}

/// However the thread ends, nobody may go on believing that records are written.
struct Closing(Arc<AtomicBool>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

fn complain(cause: &io::Error) {
    tracing::error!(%cause, "the audit log can't be written: calls are refused until it can. Make room on the disk of state/audit");
}

fn after(wait: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(wait).unwrap_or(now)
}

const BATCH: usize = 1024;
const INTERVAL: Duration = Duration::from_millis(100);
/// How often a log that can't be written is tried.
const PROBE: Duration = Duration::from_secs(1);
