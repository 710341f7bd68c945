//! The data folder: where things lie, who holds it, which generation comes next.
//!
//! It makes the folders that stand before anything else and takes the lock; it never opens the store or a secret.
//! Called by the supervisor and by commands that act on a folder.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::commands::Failure;

/// A data folder, absolute.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder at `path`, made when it isn't there.
    ///
    /// # Errors
    /// When it can't be made or isn't a folder.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let at = |e: io::Error| {
            Failure::new(format!(
                "the data folder {} can't be used: {e}; choose another with --data DIR",
                path.display()
            ))
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(at)?;
        Ok(Self {
            path: path.canonicalize().map_err(at)?,
        })
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Models: no secret, no right for the gateway.
    pub(crate) fn models(&self) -> PathBuf {
        self.path.join("models")
    }

    /// Sockets and other things of this run.
    pub(crate) fn run(&self) -> PathBuf {
        self.path.join("state/run")
    }

    /// The admin socket.
    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.run().join("admin.sock")
    }

    /// Audit chains.
    pub(crate) fn audit(&self) -> PathBuf {
        self.path.join("state/audit")
    }

    /// Slots of calls that run.
    fn inflight(&self) -> PathBuf {
        self.path.join("state/inflight")
    }

    /// The file that holds a first key nobody saw on a terminal.
    pub(crate) fn first_key(&self) -> PathBuf {
        self.path.join("secrets/first-key")
    }

    /// Writes the certificate where clients look for it, whole or not at all, and removes the private key that an
    /// older version left beside it.
    ///
    /// # Errors
    /// When it is no certificate, or can't be written.
    pub(crate) fn publish_certificate(&self, chain: &str) -> io::Result<()> {
        let is_chain = chain.len() <= MOST_CHAIN
            && chain.starts_with("-----BEGIN CERTIFICATE-----\n")
            && !chain.contains("PRIVATE");
        if !is_chain {
            return Err(io::Error::other("that is no certificate in PEM form"));
        }
        let secrets = self.path.join("secrets");
        let (file, key) = (secrets.join("tls.crt"), secrets.join("tls.key"));
        if !std::fs::read(&file).is_ok_and(|old| old == chain.as_bytes()) {
            let new = secrets.join("tls.crt.new");
            let absent = |e: io::Error| match e.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(e),
            };
            std::fs::remove_file(&new).or_else(absent)?;
            let mut written = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o400)
                .open(&new)?;
            written.write_all(chain.as_bytes())?;
            written.sync_all()?;
            std::fs::rename(&new, &file)?;
        }
        match std::fs::remove_file(&key) {
            Ok(()) => tracing::info!(
                "{} is gone: the key lies sealed in the store",
                key.display()
            ),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        File::open(&secrets)?.sync_all()
    }

    /// Makes a folder below this one that is there for sure afterwards.
    ///
    /// # Errors
    /// When it can't be made.
    pub(crate) fn make(&self, below: &Path, mode: u32) -> Result<(), Failure> {
        let made = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(below);
        made.map_err(|e| Failure::new(format!("{} can't be made: {e}", below.display())))
    }

    /// Takes the lock: as long as it is held, nobody else acts on this folder.
    ///
    /// # Errors
    /// When another process holds it, or it can't be made.
    pub(crate) fn lock(&self) -> Result<Result<Lock, Held>, Failure> {
        let path = self.path.join("lock");
        let at = |e: io::Error| Failure::new(format!("{} can't be locked: {e}", path.display()));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(at)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                drop((&mut file).take(20).read_to_string(&mut pid));
                return Ok(Err(Held {
                    pid: pid.trim().parse().ok(),
                }));
            }
            Err(e) => return Err(at(e.into())),
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(at)?;
        Ok(Ok(Lock { _file: file }))
    }

    /// The number of the next generation, greater than all that ever wrote here.
    ///
    /// # Errors
    /// When the folders can't be read.
    pub(crate) fn next_generation(&self) -> io::Result<u64> {
        let written = names(&self.audit())?;
        let chains = written.iter().filter_map(|name| {
            name.strip_suffix(".jsonl")?
                .rsplit_once('-')?
                .1
                .parse::<u64>()
                .ok()
        });
        let last = chains
            .chain(self.generations_with_slots()?)
            .max()
            .unwrap_or(0);
        Ok(last.saturating_add(1))
    }

    /// Generations that left a file of slots.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub(crate) fn generations_with_slots(&self) -> io::Result<BTreeSet<u64>> {
        Ok(names(&self.inflight())?
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect())
    }

    /// The GGUF files in `models/`; of a split one its first part.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub(crate) fn gguf_files(&self) -> io::Result<Vec<String>> {
        let mut found: Vec<String> = names(&self.models())?
            .into_iter()
            .filter(|name| name.to_ascii_lowercase().ends_with(".gguf") && !is_later_part(name))
            .collect();
        found.sort();
        Ok(found)
    }
}

/// The lock of a data folder; dropped, it is free.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Somebody else holds the lock.
#[derive(Debug)]
pub(crate) struct Held {
    /// Who, as far as the file tells.
    pub(crate) pid: Option<u32>,
}

/// The names in a folder; none when it isn't there.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

/// Whether this is part 2 or later of a split model (`…-00002-of-00003.gguf`).
fn is_later_part(name: &str) -> bool {
    let stem = name
        .len()
        .checked_sub(5)
        .and_then(|end| name.get(..end))
        .unwrap_or(name);
    stem.rsplit_once("-of-")
        .and_then(|(before, _)| before.rsplit_once('-'))
        .and_then(|(_, part)| part.parse::<u32>().ok())
        .is_some_and(|part| part > 1)
}

/// No chain is longer, bytes.
const MOST_CHAIN: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_held_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(&dir.path().join("new/data")).unwrap();
        let lock = folder.lock().unwrap().unwrap();
        let held = folder.lock().unwrap().unwrap_err();
        assert_eq!(held.pid, Some(std::process::id()));
        drop(lock);
        drop(folder.lock().unwrap().unwrap());
    }

    #[test]
    fn a_generation_is_greater_than_all_that_wrote_here() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        assert_eq!(folder.next_generation().unwrap(), 1);
        std::fs::create_dir_all(folder.audit()).unwrap();
        std::fs::create_dir_all(folder.inflight()).unwrap();
        std::fs::write(folder.audit().join("n-0a-4.jsonl"), "").unwrap();
        std::fs::write(folder.audit().join("n-9.jsonl.part"), "").unwrap();
        assert_eq!(folder.next_generation().unwrap(), 5);
        std::fs::write(folder.inflight().join("7"), "").unwrap();
        std::fs::write(folder.inflight().join("x"), "").unwrap();
        assert_eq!(folder.next_generation().unwrap(), 8);
        assert_eq!(
            folder.generations_with_slots().unwrap(),
            BTreeSet::from([7])
        );
    }

    #[test]
    fn a_split_model_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        assert!(folder.gguf_files().unwrap().is_empty());
        std::fs::create_dir_all(folder.models()).unwrap();
        for name in [
            "b-00001-of-00002.gguf",
            "b-00002-of-00002.gguf",
            "a.GGUF",
            "c.gguf.part",
        ] {
            std::fs::write(folder.models().join(name), "").unwrap();
        }
        assert_eq!(
            folder.gguf_files().unwrap(),
            ["a.GGUF", "b-00001-of-00002.gguf"]
        );
    }
}
