//! The last records of a log, and those that come: for people who look at it while it grows.
//!
//! It reads whole lines only and judges none. Called by `guan audit tail`.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::backwards::Backwards;
use super::files::list;

/// A place in a log, behind all that was there.
#[derive(Debug)]
pub struct Follow {
    dir: PathBuf,
    seen: BTreeMap<PathBuf, u64>,
}

/// The last `count` lines that are `wanted`, oldest first, and the place behind all of them.
///
/// # Errors
/// When the log can't be read.
pub fn last(
    dir: &Path,
    count: usize,
    mut wanted: impl FnMut(&[u8]) -> bool,
) -> io::Result<(Vec<Vec<u8>>, Follow)> {
    let mut seen = BTreeMap::new();
    let mut found: VecDeque<Vec<u8>> = VecDeque::new();
    for file in list(dir)?.into_iter().rev() {
        if file.packed {
            if found.len() < count {
                let mut older = VecDeque::new();
                let mut lines = file.lines()?;
                while let Some((line, _)) = lines.next_line()? {
                    if wanted(line) {
                        older.push_back(line.to_vec());
                        if older.len() > count.saturating_sub(found.len()) {
                            older.pop_front();
                        }
                    }
                }
                older
                    .into_iter()
                    .rev()
                    .for_each(|line| found.push_front(line));
            }
            continue;
        }
        let opened = File::open(&file.path)?;
        let mut end = None;
        for line in Backwards::new(&opened)? {
            let line = line?;
            if !line.whole {
                continue;
            }
            end.get_or_insert_with(|| line.end());
            if found.len() >= count {
                break;
            }
            if wanted(&line.bytes) {
                found.push_front(line.bytes);
            }
        }
        seen.insert(file.path, end.unwrap_or(0));
    }
    let dir = dir.to_path_buf();
    Ok((found.into(), Follow { dir, seen }))
}

impl Follow {
    /// Gives each whole line that was written since.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn more(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        for file in list(&self.dir)? {
            if file.packed {
                continue;
            }
            let from = self.seen.entry(file.path.clone()).or_insert(0);
            let opened = match File::open(&file.path) {
                Ok(opened) => opened,
                // Packed or removed in between.
                Err(gone) if gone.kind() == io::ErrorKind::NotFound => continue,
                Err(cause) => return Err(cause),
            };
            let mut reader = BufReader::new(opened);
            reader.seek(SeekFrom::Start(*from))?;
            let mut line = Vec::new();
            loop {
                line.clear();
                let read = reader.read_until(b'\n', &mut line)?;
                if line.pop_if(|last| *last == b'\n').is_none() {
                    break;
                }
                *from = from.saturating_add(u64::try_from(read).unwrap_or(0));
                each(&line);
            }
        }
        Ok(())
    }
}
