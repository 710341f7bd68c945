//! What becomes of the log's closed files: packed after a while, removed at the end of their time.
//!
//! It decides that nothing is packed or removed before its usage is counted, that a removal is recorded before it is
//! done, and that a crash in between leaves a file or its packed self, never neither. It touches files of this node
//! only, and none that is still written. Called by the wiring.

use std::fs::{File, FileTimes, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use rules::chain::Entry;
use serde_json::json;
use tokio::sync::mpsc::Sender;

use super::files::{ChainFile, PACKED, list};
use super::{blank, record};
use crate::clock::Clock;
use crate::folder;
use crate::store::Store;

/// What the config file says of closed files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keeping {
    /// After how long they are packed; `None`: never.
    pub pack_after: Option<Duration>,
    /// After how long they are removed; `None`: never.
    pub remove_after: Option<Duration>,
}

/// Whose log is kept.
#[derive(Clone)]
pub struct Keeper {
    /// `state/audit`.
    pub dir: PathBuf,
    /// This node's id.
    pub node: String,
    /// Where usage was counted to.
    pub store: Store,
    /// Where removals are recorded.
    pub audit: Sender<Entry>,
    /// The time.
    pub clock: Clock,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl Keeper {
    /// Looks each minute, until it is dropped.
    pub async fn keep(self, keeping: impl Fn() -> Keeping) -> ! {
        let mut failing = false;
        loop {
            match self.look(keeping()).await {
                Ok(()) => failing = false,
                Err(cause) if failing => {
                    tracing::debug!(%cause, "old files of the audit log are still left as they are");
                }
                Err(cause) => {
                    tracing::warn!(%cause, "old files of the audit log are left as they are for now");
                    failing = true;
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Packs and removes what is due.
    pub(super) async fn look(&self, keeping: Keeping) -> io::Result<()> {
        if keeping.pack_after.is_none() && keeping.remove_after.is_none() {
            return Ok(());
        }
        for file in list(&self.dir)? {
            if file.node != self.node {
                continue;
            }
            let opened = File::open(&file.path)?;
            let about = opened.metadata()?;
            // A part that is still written is held, and so is a chain that another process writes.
            if !file.packed && opened.try_lock_shared().is_err() {
                continue;
            }
            let written = about.modified()?;
            let age = self.age(written);
            let due = |after: Option<Duration>| after.is_some_and(|after| age >= after);
            if due(keeping.remove_after) {
                if file.packed || self.is_counted(&file, about.len()).await? {
                    self.remove(&file, about.len(), written).await?;
                }
            } else if !file.packed
                && due(keeping.pack_after)
                && self.is_counted(&file, about.len()).await?
            {
                let packing = tokio::task::spawn_blocking(move || pack(&file.path, written));
                packing.await.map_err(io::Error::other)??;
            }
        }
        Ok(())
    }

    fn age(&self, written: SystemTime) -> Duration {
        let since = written.duration_since(UNIX_EPOCH).unwrap_or_default();
        let written = i128::try_from(since.as_nanos()).unwrap_or(i128::MAX);
        let age = (self.clock)().saturating_sub(written);
        Duration::from_nanos(u64::try_from(age).unwrap_or(0))
    }

    async fn is_counted(&self, file: &ChainFile, length: u64) -> io::Result<bool> {
        let Some(name) = file.name() else {
            return Ok(false);
        };
        let cursor = self.store.cursor(&name).await.map_err(io::Error::other)?;
        Ok(i64::try_from(length).is_ok_and(|length| cursor.offset >= length))
    }

    async fn remove(&self, file: &ChainFile, bytes: u64, written: SystemTime) -> io::Result<()> {
        let since = written.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(0);
        let mut removed = blank(&self.clock, "audit-removed");
        removed.act = Some(json!({
            "file": file.name(),
            "chain": file.chain(),
            "part": file.part,
            "bytes": bytes,
            "written": crate::clock::rfc3339_seconds(seconds),
        }));
        record(&self.audit, removed)
            .await
            .map_err(io::Error::other)?;
        std::fs::remove_file(&file.path)?;
        folder::sync(&self.dir)?;
        tracing::info!(file = %file.path.display(), "a file of the audit log has reached its age and is removed");
        Ok(())
    }
}

/// Writes a file's packed self beside it, whole and on disk, then removes the file.
fn pack(path: &Path, written: SystemTime) -> io::Result<()> {
    let Some(name) = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
    else {
        return Ok(());
    };
    let packed = path.with_file_name(format!("{name}{PACKED}"));
    let aside = path.with_file_name(format!("{name}{PACKED}.new"));
    let out = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)?;
    let mut encoder = GzEncoder::new(BufWriter::new(&out), Compression::default());
    io::copy(&mut BufReader::new(File::open(path)?), &mut encoder)?;
    encoder.finish()?.flush()?;
    // Its age is that of its records.
    out.set_times(FileTimes::new().set_modified(written))?;
    out.sync_all()?;
    std::fs::rename(&aside, &packed)?;
    let dir = path.parent().unwrap_or(path);
    folder::sync(dir)?;
    std::fs::remove_file(path)?;
    folder::sync(dir)
}

const EVERY: Duration = Duration::from_mins(1);
