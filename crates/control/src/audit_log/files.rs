//! The files of chains: which file is which part of which chain, and its lines from the first to the last.
//!
//! It decides how files are named (`NODE-GENERATION.jsonl`, further parts `NODE-GENERATION.PART.jsonl`, packed ones
//! with `.gz` behind it) and in which order they are read; a line that is longer than any that guan writes ends a
//! file. Called by whoever reads the log.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::EXTENSION;

/// One file of a chain. They sort as they were written: by node, generation, part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChainFile {
    /// The node that wrote it.
    pub node: String,
    /// Its generation.
    pub generation: u64,
    /// Which part of the chain, from 0.
    pub part: u32,
    /// It is packed.
    pub packed: bool,
    /// Where it lies.
    pub path: PathBuf,
}

impl ChainFile {
    /// What a file's name says; `None`: it isn't one of a chain.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let (name, packed) = match name.strip_suffix(PACKED) {
            Some(name) => (name, true),
            None => (name, false),
        };
        let stem = name.strip_suffix(EXTENSION)?.strip_suffix('.')?;
        let (node, numbers) = stem.rsplit_once('-')?;
        let (generation, part) = numbers.split_once('.').unwrap_or((numbers, "0"));
        Some(Self {
            node: node.to_owned(),
            generation: generation.parse().ok()?,
            part: part.parse().ok()?,
            packed,
            path: path.to_path_buf(),
        })
    }

    /// The chain's name.
    #[must_use]
    pub fn chain(&self) -> String {
        format!("{}-{}", self.node, self.generation)
    }

    /// The file's name.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        Some(self.path.file_name()?.to_string_lossy().into_owned())
    }

    /// The name that it has, or had before it was packed.
    #[must_use]
    pub fn plain_name(&self) -> Option<String> {
        let name = self.name()?;
        Some(name.strip_suffix(PACKED).unwrap_or(&name).to_owned())
    }

    /// Its lines.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn lines(&self) -> io::Result<Lines> {
        let file = File::open(&self.path)?;
        let from: Box<dyn BufRead + Send> = if self.packed {
            Box::new(BufReader::with_capacity(BLOCK, MultiGzDecoder::new(file)))
        } else {
            Box::new(BufReader::with_capacity(BLOCK, file))
        };
        Ok(Lines {
            from,
            line: Vec::new(),
        })
    }
}

/// The name of a chain's part.
pub(super) fn name_of(chain: &str, part: u32) -> String {
    if part == 0 {
        format!("{chain}.{EXTENSION}")
    } else {
        format!("{chain}.{part}.{EXTENSION}")
    }
}

/// All chain files in a folder as they were written. Where a crash left a file beside its packed self, the packed one
/// doesn't count.
///
/// # Errors
/// When the folder can't be read.
pub fn list(dir: &Path) -> io::Result<Vec<ChainFile>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        files.extend(ChainFile::of(&entry?.path()));
    }
    files.sort();
    files.dedup_by(|later, first| {
        (&later.node, later.generation, later.part) == (&first.node, first.generation, first.part)
    });
    Ok(files)
}

/// The lines of a file, one after another, in one buffer.
pub struct Lines {
    from: Box<dyn BufRead + Send>,
    line: Vec<u8>,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lines")
    }
}

impl Lines {
    /// The next line without its newline, and whether it had one; `None`: that was all.
    ///
    /// # Errors
    /// When it can't be read, or no newline comes.
    pub fn next_line(&mut self) -> io::Result<Option<(&[u8], bool)>> {
        self.line.clear();
        let read = (&mut self.from)
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut self.line)?;
        if read == 0 {
            return Ok(None);
        }
        let whole = self.line.pop_if(|last| *last == b'\n').is_some();
        if !whole && u64::try_from(read).is_ok_and(|read| read == LONGEST_LINE) {
            let fault = "a line is longer than any that guan writes";
            return Err(io::Error::new(io::ErrorKind::InvalidData, fault));
        }
        Ok(Some((&self.line, whole)))
    }
}

/// What a packed file's name ends with.
pub(super) const PACKED: &str = ".gz";
const BLOCK: usize = 256 << 10;
const LONGEST_LINE: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_sort_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "n-2.jsonl",
            "n-10.jsonl",
            "n-2.10.jsonl",
            "n-2.9.jsonl.gz",
            "n-2.9.jsonl",
            "n-2.1.jsonl.gz",
            "n-2.jsonl.torn",
            "audit.pub",
            "n-x.jsonl",
            "n-2.1.jsonl.gz.new",
        ] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let names: Vec<_> = list(dir.path())
            .unwrap()
            .into_iter()
            .map(|file| {
                file.path
                    .file_name()
                    .unwrap()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        let wanted = [
            "n-2.jsonl",
            "n-2.1.jsonl.gz",
            "n-2.9.jsonl",
            "n-2.10.jsonl",
            "n-10.jsonl",
        ];
        assert_eq!(names, wanted);
        for (part, name) in [(0, "n-2.jsonl"), (9, "n-2.9.jsonl")] {
            assert_eq!(name_of("n-2", part), name);
        }
    }
}
