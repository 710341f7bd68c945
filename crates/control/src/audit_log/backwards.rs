//! Reads a file's lines from the last to the first, in blocks, without holding the file.
//!
//! Called by `previous` (a chain's head) and `past` (the calls of the last minute).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// One line, without its newline.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Where it begins in the file.
    pub offset: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// A newline follows it: it was written to its end.
    pub whole: bool,
}

impl Line {
    /// Where the next line begins.
    pub(super) fn end(&self) -> u64 {
        let length = u64::try_from(self.bytes.len()).unwrap_or(u64::MAX);
        self.offset
            .saturating_add(length)
            .saturating_add(u64::from(self.whole))
    }
}

/// The lines of a file, last first, as far as it reached at the start.
#[derive(Debug)]
pub(super) struct Backwards<'a> {
    file: &'a File,
    /// Bytes before this place aren't read yet.
    unread: u64,
    /// From `unread` to the end of the next line to give.
    held: Vec<u8>,
    whole: bool,
    over: bool,
}

impl<'a> Backwards<'a> {
    pub(super) fn new(file: &'a File) -> io::Result<Self> {
        Ok(Self {
            file,
            unread: file.metadata()?.len(),
            held: Vec::new(),
            whole: false,
            over: false,
        })
    }

    fn read_more(&mut self) -> io::Result<()> {
        let length = self.unread.min(BLOCK);
        let from = self.unread.saturating_sub(length);
        let mut block = vec![0; usize::try_from(length).unwrap_or(0)];
        self.file.read_exact_at(&mut block, from)?;
        block.append(&mut self.held);
        self.held = block;
        self.unread = from;
        Ok(())
    }
}

impl Iterator for Backwards<'_> {
    type Item = io::Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.over {
            let newline = self.held.iter().rposition(|&byte| byte == b'\n');
            let (bytes, offset) = match newline {
                Some(place) => {
                    let begins = place.saturating_add(1);
                    let bytes = self.held.split_off(begins);
                    self.held.truncate(place);
                    let offset = u64::try_from(begins).unwrap_or(u64::MAX);
                    (bytes, self.unread.saturating_add(offset))
                }
                None if self.unread == 0 => {
                    self.over = true;
                    (std::mem::take(&mut self.held), 0)
                }
                None if self.held.len() > LONGEST_LINE => {
                    self.over = true;
                    let fault = "a line is longer than any that guan writes";
                    return Some(Err(io::Error::new(io::ErrorKind::InvalidData, fault)));
                }
                None => {
                    if let Err(fault) = self.read_more() {
                        self.over = true;
                        return Some(Err(fault));
                    }
                    continue;
                }
            };
            let whole = std::mem::replace(&mut self.whole, true);
            // Nothing behind the last newline is no line.
            if whole || !bytes.is_empty() {
                return Some(Ok(Line {
                    offset,
                    bytes,
                    whole,
                }));
            }
        }
        None
    }
}

const BLOCK: u64 = 64 * 1024;
const LONGEST_LINE: usize = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn lines(content: &[u8]) -> Vec<(String, u64, bool)> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        Backwards::new(&file)
            .unwrap()
            .map(|line| line.unwrap())
            .map(|line| {
                (
                    String::from_utf8(line.bytes).unwrap(),
                    line.offset,
                    line.whole,
                )
            })
            .collect()
    }

    #[test]
    fn lines_come_last_first_with_their_places() {
        assert_eq!(lines(b""), []);
        assert_eq!(lines(b"torn"), [("torn".into(), 0, false)]);
        assert_eq!(lines(b"\n"), [(String::new(), 0, true)]);
        assert_eq!(
            lines(b"a\n\nbc\nd"),
            [
                ("d".into(), 6, false),
                ("bc".into(), 3, true),
                (String::new(), 2, true),
                ("a".into(), 0, true)
            ]
        );
    }

    #[test]
    fn lines_longer_than_a_block_are_put_together() {
        let long = "x".repeat(150_000);
        let content = format!("first\n{long}\nlast\n");
        let found = lines(content.as_bytes());
        assert_eq!(found.len(), 3);
        assert_eq!(found[1], (long, 6, true));
        assert_eq!(found[2], ("first".into(), 0, true));
    }

    #[test]
    fn a_line_without_end_is_given_up() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![b'x'; LONGEST_LINE + 200_000]).unwrap();
        let mut lines = Backwards::new(&file).unwrap();
        assert!(lines.next().unwrap().is_err());
        assert!(lines.next().is_none());
    }
}
