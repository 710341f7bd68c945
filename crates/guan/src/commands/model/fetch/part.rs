//! Decides how a file that is still coming lies on the disk: `FILE.part` with a running SHA-256, `FILE.part.json`
//! with what a later run needs to go on. Never judges whether to go on; `fetch` does. Called by `fetch` only.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use crate::commands::model::fault::Fault;
use crate::commands::model::store;

/// What a later run needs to know.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Note {
    /// Without query.
    pub(super) address: String,
    /// A strong one, or none.
    pub(super) etag: Option<String>,
    /// Bytes in all.
    pub(super) size: Option<u64>,
    /// What it must be, when known.
    pub(super) sha256: Option<String>,
}

/// The growing file.
#[derive(Debug)]
pub(super) struct Part {
    file: File,
    path: PathBuf,
    note_path: PathBuf,
    hash: Hash,
    head: Vec<u8>,
    /// Bytes in the file; all of them hashed.
    pub(super) len: u64,
    /// Bytes that an earlier run left.
    pub(super) inherited: u64,
    /// Bytes that this run brought, over all its requests.
    pub(super) loaded: u64,
    /// As the earlier run, or the last request, wrote it.
    pub(super) note: Note,
}

struct Hash(Context);

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hash")
    }
}

impl Part {
    /// Opens what is there, or begins.
    pub(super) fn open(place: &Path) -> Result<Self, Fault> {
        let beside = |suffix: &str| {
            let mut name = place.file_name().unwrap_or_default().to_owned();
            name.push(suffix);
            place.with_file_name(name)
        };
        let (path, note_path) = (beside(".part"), beside(".part.json"));
        let file = store::open_part(&path)?;
        let note: Option<Note> = std::fs::read(&note_path)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok());
        let mut part = Self {
            file,
            path,
            note_path,
            hash: Hash(Context::new(&SHA256)),
            head: Vec::new(),
            len: 0,
            inherited: 0,
            loaded: 0,
            note: note.clone().unwrap_or_default(),
        };
        if note.is_some() {
            part.take_in_what_is_there()?;
        } else {
            part.clear()?;
        }
        Ok(part)
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.file
            .write_all(bytes)
            .map_err(|e| Fault::io("write", &self.path, e))?;
        self.count(bytes);
        self.loaded = self
            .loaded
            .saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        Ok(())
    }

    /// Back to nothing.
    pub(super) fn clear(&mut self) -> Result<(), Fault> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .map_err(|e| Fault::io("empty", &self.path, e))?;
        self.hash = Hash(Context::new(&SHA256));
        self.head.clear();
        self.len = 0;
        self.inherited = 0;
        self.note.etag = None;
        Ok(())
    }

    /// Removes both files.
    pub(super) fn discard(&mut self) -> Result<(), Fault> {
        store::remove(&self.path)?;
        store::remove(&self.note_path)
    }

    pub(super) fn write_note(&mut self, note: Note) -> Result<(), Fault> {
        if self.note != note || !self.note_path.exists() {
            let text = serde_json::to_vec_pretty(&note).unwrap_or_default();
            store::put(&self.note_path, &text, 0o644)?;
            self.note = note;
        }
        Ok(())
    }

    /// SHA-256 of all bytes so far.
    pub(super) fn digest(&self) -> String {
        store::hex(self.hash.0.clone().finish().as_ref())
    }

    /// False as soon as the first bytes are other than `GGUF`.
    pub(super) fn begins_as_gguf(&self) -> bool {
        MAGIC.starts_with(&self.head)
    }

    /// The checked file takes its place.
    pub(super) fn settle(&mut self, place: &Path) -> Result<(), Fault> {
        self.file
            .sync_all()
            .map_err(|e| Fault::io("sync", &self.path, e))?;
        store::settle(&self.path, place)?;
        store::remove(&self.note_path)
    }

    fn take_in_what_is_there(&mut self) -> Result<(), Fault> {
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = self
                .file
                .read(&mut buffer)
                .map_err(|e| Fault::io("read", &self.path, e))?;
            let Some(bytes) = buffer.get(..n).filter(|b| !b.is_empty()) else {
                break;
            };
            self.count(bytes);
        }
        self.inherited = self.len;
        Ok(())
    }

    fn count(&mut self, bytes: &[u8]) {
        self.hash.0.update(bytes);
        let missing = MAGIC.len().saturating_sub(self.head.len());
        self.head.extend(bytes.iter().take(missing));
        self.len = self
            .len
            .saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    }
}

const MAGIC: &[u8] = b"GGUF";
