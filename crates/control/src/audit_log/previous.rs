//! Where the chain before this one stands, and what to do when its end is torn.
//!
//! The last line that is whole and names the hash of the line before it is the head. What stands behind it is set
//! aside in a `.torn` file, said aloud, and never trusted. A chain that another process still writes is not touched.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rules::chain::{Chain, Head};
use serde::{Deserialize, Serialize};

use super::backwards::{Backwards, Line};
use super::files::{ChainFile, list};
use super::{AuditFault, EXTENSION, at};
use crate::folder;

/// The head of an older chain, as the new chain's first record names it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Previous {
    /// `NODE-GEN`.
    pub chain: String,
    /// The number of its last good line; `None`: no line of it is good.
    pub seq: Option<u64>,
    /// That line's hash, hex.
    pub head: Option<String>,
}

/// The newest chain in `dir` by generation, less `own` and less files without a byte.
pub(super) fn find(dir: &Path, own: &Path) -> Result<Option<Previous>, AuditFault> {
    let mut chains = list(dir).map_err(|cause| at(dir, &cause))?;
    chains.retain(|file| file.path != own);
    chains.sort_by_key(|file| std::cmp::Reverse((file.generation, file.part)));
    for file in chains {
        let stood = if file.packed {
            packed(&file)
        } else {
            stand(&file)
        };
        if let Some(previous) = stood.map_err(|cause| at(&file.path, &cause))? {
            return Ok(Some(previous));
        }
    }
    Ok(None)
}

/// A packed part was closed whole before it was packed.
fn packed(of: &ChainFile) -> io::Result<Option<Previous>> {
    let mut lines = of.lines()?;
    let mut last = None;
    while let Some((line, _)) = lines.next_line()? {
        last = place(line).map(|chain| (chain.seq, Head::of(line)));
    }
    Ok(Some(Previous {
        chain: of.chain(),
        seq: last.map(|(seq, _)| seq),
        head: last.map(|(_, head)| head.to_string()),
    }))
}

fn stand(of: &ChainFile) -> io::Result<Option<Previous>> {
    let path = &*of.path;
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mine = match file.try_lock() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(cause)) => return Err(cause),
    };
    let length = file.metadata()?.len();
    if length == 0 {
        return Ok(None);
    }
    let mut previous = Previous {
        chain: of.chain(),
        seq: None,
        head: None,
    };
    let Some((end, seq, head)) = last_good(&file, of.part)? else {
        if of.part > 0 {
            // Cut while it was begun: the part before it ends the chain.
            if mine && let Err(cause) = set_aside(path, &file, 0, length) {
                tracing::warn!(file = %path.display(), %cause, "a part of the audit chain that was cut while it was begun can't be set aside");
            }
            return Ok(None);
        }
        tracing::warn!(file = %path.display(), "no good line at the end of this audit chain: it is left as it is; judge it before you trust it");
        return Ok(Some(previous));
    };
    if mine && end < length {
        match set_aside(path, &file, end, length) {
            Ok(aside) => {
                tracing::warn!(file = %path.display(), aside = %aside.display(), bytes = length.saturating_sub(end), "the end of this audit chain was torn: set aside, not trusted");
            }
            Err(cause) => {
                tracing::warn!(file = %path.display(), %cause, "the end of this audit chain is torn and can't be set aside: left as it is, not trusted");
            }
        }
    }
    previous.seq = Some(seq);
    previous.head = Some(head.to_string());
    Ok(Some(previous))
}

/// Where the last good line ends, its number and its hash.
fn last_good(file: &File, part: u32) -> io::Result<Option<(u64, u64, Head)>> {
    let mut lines = Backwards::new(file)?.take(MOST_BAD_LINES);
    let mut line = lines.next().transpose()?;
    while let Some(this) = line {
        let before = lines.next().transpose()?;
        if let Some(seq) = links(&this, before.as_ref(), part) {
            return Ok(Some((this.end(), seq, Head::of(&this.bytes))));
        }
        line = before;
    }
    Ok(None)
}

/// The line's number, if it is whole, JSON, and follows the one before.
fn links(line: &Line, before: Option<&Line>, part: u32) -> Option<u64> {
    if !line.whole {
        return None;
    }
    let chain = place(&line.bytes)?;
    let follows = match before {
        Some(before) => {
            Head::parse(&chain.prev)? == Head::of(&before.bytes)
                && place(&before.bytes)?.seq.checked_add(1)? == chain.seq
        }
        // The line before that of a further part stands in another file.
        None => line.offset == 0 && (chain.seq == 0 || part > 0),
    };
    follows.then_some(chain.seq)
}

fn place(line: &[u8]) -> Option<Chain> {
    #[derive(Deserialize)]
    struct Placed {
        #[serde(rename = "guan.chain")]
        chain: Chain,
    }
    serde_json::from_slice::<Placed>(line)
        .ok()
        .map(|placed| placed.chain)
}

/// Copies what stands behind `end` to a file beside it and cuts it off.
fn set_aside(path: &Path, file: &File, end: u64, length: u64) -> io::Result<PathBuf> {
    let size = usize::try_from(length.saturating_sub(end)).map_err(io::Error::other)?;
    let mut torn = vec![0; size];
    file.read_exact_at(&mut torn, end)?;
    for number in 0..MOST_TORN_FILES {
        let ending = if number == 0 {
            "torn".to_owned()
        } else {
            format!("{number}.torn")
        };
        let aside = path.with_extension(format!("{EXTENSION}.{ending}"));
        match folder::write_new(&aside, 0o600, &torn) {
            Ok(()) => {
                file.set_len(end)?;
                file.sync_all()?;
                return Ok(aside);
            }
            Err(there) if there.kind() == io::ErrorKind::AlreadyExists => {}
            Err(cause) => return Err(cause),
        }
    }
    Err(io::Error::other("too many .torn files of this chain"))
}

/// A power cut tears the end of one write. More bad lines than this are no tear.
const MOST_BAD_LINES: usize = 1024;
const MOST_TORN_FILES: u32 = 100;
