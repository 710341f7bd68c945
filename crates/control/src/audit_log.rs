//! The audit log: one chained file a generation, written by one thread of its own.
//!
//! Decides when a record counts as written (the kernel has the line), what happens when it can't be (nothing more is
//! accepted until it can), and how a new chain names the one before. It never drops a record silently, never changes
//! the order, and never writes what was asked or answered. Each minute and at its end a checkpoint is signed. Called by the wiring; the gateway and `keys` send records.

mod backwards;
pub mod files;
pub mod heads;
pub mod judge;
pub mod keep;
pub(crate) mod key;
mod past;
mod previous;
mod recorded;
mod rotate;
mod sign;
pub mod tail;
mod write;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::Duration;

use rules::chain::{Checkpoint, Entry, Head, Link, Record, Signer};
use serde_json::json;
use tokio::sync::mpsc::{self, Sender};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::clock::{self, Clock};
use crate::folder;

pub use key::PUBLIC;
pub use past::past_calls;
pub use recorded::recorded;
pub use rotate::Rotate;

/// When a written record is on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fsync {
    /// At the latest 100 ms after it was written; a power cut may take that interval.
    #[default]
    Interval,
    /// Before it counts as written.
    Each,
}

/// Which chain to write.
#[derive(Clone)]
pub struct AuditSpec {
    /// `state/audit`.
    pub dir: PathBuf,
    /// This node's id.
    pub node: String,
    /// Greater than all that ever wrote to this folder. `guan init` writes generation 0.
    pub generation: u64,
    /// For the timestamps of the chain's own records.
    pub clock: Clock,
    /// When a record is on disk.
    pub fsync: Fsync,
    /// What signs checkpoints.
    pub signer: Arc<Signer>,
    /// How long records may stand without one.
    pub checkpoint_every: Duration,
    /// When it goes on in another file.
    pub rotate: Rotate,
}

impl std::fmt::Debug for AuditSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuditSpec")
            .field("dir", &self.dir)
            .field("node", &self.node)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// Why the audit log can't be opened or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditFault {
    /// A chain of this generation is there already: it is never written on.
    #[error(
        "{path} is there already, and a finished chain is never written on. Start guan again; if it stays so, another guan uses this data folder"
    )]
    Used {
        /// Which file.
        path: PathBuf,
    },
    /// A file or folder can't be read or written.
    #[error("{path}: {cause}. Check that this user owns state/audit and that its disk isn't full")]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// The thread can't be started.
    #[error("the audit thread can't be started ({0}). Raise the limit on this user's processes")]
    Thread(String),
    /// A record was not written.
    #[error(
        "the audit log can't be written, so nothing is done that would belong in it. Make room on the disk of state/audit; guan goes on by itself then"
    )]
    Unwritten,
}

/// Begins this generation's chain and starts the thread that writes it. The chain ends when the last sender is
/// dropped.
///
/// # Errors
/// [`AuditFault`]; then nothing was started.
pub fn open(spec: AuditSpec) -> Result<(Sender<Entry>, Log), AuditFault> {
    let name = format!("{}-{}", spec.node, spec.generation);
    let path = spec.dir.join(files::name_of(&name, 0));
    let previous = previous::find(&spec.dir, &path)?;
    let file = begin(&path)?;
    let mut link = Link {
        seq: 0,
        head: Head::NONE,
    };
    let mut line = Vec::new();
    let mut start = blank(&spec.clock, "chain-start");
    start.act = Some(
        json!({ "chain": name, "previous": previous, "key": spec.signer.public().to_string() }),
    );
    link.append(&start, &mut line)
        .map_err(io::Error::from)
        .and_then(|()| (&file).write_all(&line))
        .and_then(|()| file.sync_all())
        .and_then(|()| folder::sync(&spec.dir))
        .map_err(|cause| at(&path, &cause))?;

    key::publish(&spec.dir, &spec.signer);
    let healthy = Arc::new(AtomicBool::new(true));
    let (tell, heads) = watch::channel(None);
    let length = u64::try_from(line.len()).unwrap_or(0);
    let next = rotate::files(spec.dir.clone(), name.clone());
    let rotation = rotate::Rotation::new(spec.rotate, next);
    let signing = sign::Signing::new(name, &spec, tell);
    let writer = write::Writer::new(file, (link, length), &spec, (signing, rotation), &healthy);
    let (to, from) = mpsc::channel(QUEUE);
    let thread = std::thread::Builder::new()
        .name("guan-audit".to_owned())
        .spawn(move || writer.run(from))
        .map_err(|cause| AuditFault::Thread(cause.to_string()))?;
    let log = Log {
        path,
        healthy,
        heads,
        thread,
    };
    Ok((to, log))
}

/// The thread that writes, seen from outside.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    healthy: Arc<AtomicBool>,
    heads: watch::Receiver<Option<Checkpoint>>,
    thread: JoinHandle<bool>,
}

impl Log {
    /// `true` while records can be written. Whoever accepts work that must be recorded asks first.
    #[must_use]
    pub fn healthy(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.healthy)
    }

    /// Its checkpoints, each as soon as its line is written; the last one comes at the chain's end.
    #[must_use]
    pub fn heads(&self) -> watch::Receiver<Option<Checkpoint>> {
        self.heads.clone()
    }

    /// The chain's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until all senders are gone and what they sent is on disk. Blocks its thread. `false`: the last records
    /// couldn't be written; the log says why.
    #[must_use]
    pub fn join(self) -> bool {
        self.thread.join().unwrap_or(false)
    }
}

/// Sends a record and waits until the kernel has it.
///
/// # Errors
/// [`AuditFault::Unwritten`], also when it takes longer than five seconds.
pub async fn record(to: &Sender<Entry>, record: Record) -> Result<(), AuditFault> {
    let (done, written) = oneshot::channel();
    let entry = Entry {
        record,
        done: Box::new(move |ok| {
            // Nobody may wait any more: then the answer has no reader.
            let _unread = done.send(ok);
        }),
    };
    let way = async {
        to.send(entry).await.ok()?;
        written.await.ok()
    };
    match timeout(LONGEST_WAIT, way).await {
        Ok(Some(true)) => Ok(()),
        Ok(Some(false) | None) | Err(_) => Err(AuditFault::Unwritten),
    }
}

/// A record of which only time and action are set.
pub(crate) fn blank(clock: &Clock, action: &str) -> Record {
    Record {
        timestamp: clock::rfc3339_nanos(clock()),
        action: action.to_owned(),
        outcome: "success".to_owned(),
        reason: None,
        duration_ns: None,
        source_ip: None,
        user_id: None,
        role: None,
        identity: None,
        status: None,
        path: None,
        request_id: None,
        call: None,
        act: None,
    }
}

fn begin(path: &Path) -> Result<File, AuditFault> {
    let file = OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|cause| match cause.kind() {
            io::ErrorKind::AlreadyExists => AuditFault::Used {
                path: path.to_path_buf(),
            },
            _ => at(path, &cause),
        })?;
    // Held until the process ends: who finds it held knows that the chain still grows.
    file.try_lock()
        .map_err(|cause| at(path, &io::Error::from(cause)))?;
    Ok(file)
}

fn at(path: &Path, cause: &io::Error) -> AuditFault {
    AuditFault::File {
        path: path.to_path_buf(),
        cause: cause.to_string(),
    }
}

/// How long records may stand unsigned, unless the config file says otherwise.
pub const CHECKPOINT_EVERY: Duration = Duration::from_mins(1);
/// Records that may wait for the thread.
const QUEUE: usize = 65_536;
const LONGEST_WAIT: Duration = Duration::from_secs(5);
const EXTENSION: &str = "jsonl";

#[cfg(test)]
mod tests;
