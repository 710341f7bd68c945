//! A forward cursor over JSON that was written by a machine: it steps through the members it is asked about and
//! skips the rest by looking at brackets and quotes only. It decides nothing. Used by `answers`.

use memchr::memchr2;

pub(super) struct Skim<'d> {
    data: &'d [u8],
    at: usize,
}

/// A member's name as written, and where the member starts.
pub(super) struct Key<'d> {
    pub(super) name: &'d [u8],
    pub(super) start: usize,
}

impl<'d> Skim<'d> {
    pub(super) fn new(data: &'d [u8]) -> Self {
        Self { data, at: 0 }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The next byte that isn't white space; the cursor stands on it.
    pub(super) fn peek(&mut self) -> Option<u8> {
        loop {
            match *self.data.get(self.at)? {
                b' ' | b'\t' | b'\n' | b'\r' => self.at = self.at.saturating_add(1),
                byte => return Some(byte),
            }
        }
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.data.get(self.at).copied();
        self.at = self.at.saturating_add(1);
        byte
    }

    /// Steps over this bracket.
    pub(super) fn open(&mut self, bracket: u8) -> Option<()> {
        (self.peek()? == bracket).then(|| self.at = self.at.saturating_add(1))
    }

    /// The next member's name, the cursor before its value; `Some(None)` behind the object's end.
    pub(super) fn key(&mut self) -> Option<Option<Key<'d>>> {
        match self.peek()? {
            b'}' => {
                self.at = self.at.saturating_add(1);
                Some(None)
            }
            b'"' => {
                let start = self.at;
                self.string()?;
                let name = self
                    .data
                    .get(start.saturating_add(1)..self.at.saturating_sub(1))?;
                self.open(b':')?;
                self.peek()?;
                Some(Some(Key { name, start }))
            }
            _ => None,
        }
    }

    /// Whether another element follows; the cursor stands before it or behind the array.
    pub(super) fn element(&mut self) -> Option<bool> {
        if self.peek()? == b']' {
            self.at = self.at.saturating_add(1);
            return Some(false);
        }
        Some(true)
    }

    /// Steps over a comma, if one is next; where it stood.
    pub(super) fn comma(&mut self) -> Option<usize> {
        let at = (self.peek()? == b',').then_some(self.at)?;
        self.at = self.at.saturating_add(1);
        Some(at)
    }

    /// The place behind the next comma, if one is next; the cursor doesn't pass it.
    pub(super) fn comma_after(&mut self) -> Option<usize> {
        (self.peek()? == b',').then(|| self.at.saturating_add(1))
    }

    /// Nothing but white space is left.
    pub(super) fn end(&mut self) -> Option<()> {
        self.peek().is_none().then_some(())
    }

    /// Steps over one value.
    pub(super) fn skip(&mut self) -> Option<()> {
        match self.peek()? {
            b'"' => self.string(),
            b'{' | b'[' => self.container(),
            b',' | b':' | b'}' | b']' => None,
            _ => {
                self.scalar();
                Some(())
            }
        }
    }

    /// Steps over one value; whether it holds something: not null, false, an empty string or an empty container.
    pub(super) fn skip_filled(&mut self) -> Option<bool> {
        let first = self.peek()?;
        let start = self.at;
        self.skip()?;
        let raw = self.data.get(start..self.at)?;
        Some(match first {
            b'"' => raw.len() > 2,
            b'{' | b'[' => {
                let inner = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
                !inner.trim_ascii().is_empty()
            }
            _ => false,
        })
    }

    /// Steps over one value; its number, if it is an unsigned integer.
    pub(super) fn unsigned(&mut self) -> Option<Option<u64>> {
        self.peek()?;
        let start = self.at;
        self.skip()?;
        let raw = self.data.get(start..self.at)?;
        Some(
            std::str::from_utf8(raw)
                .ok()
                .and_then(|text| text.parse().ok()),
        )
    }

    fn string(&mut self) -> Option<()> {
        self.at = self.at.saturating_add(1);
        loop {
            let rest = self.data.get(self.at..)?;
            self.at = self.at.saturating_add(memchr2(b'"', b'\\', rest)?);
            if self.next()? == b'"' {
                return Some(());
            }
            self.next()?;
        }
    }

    fn container(&mut self) -> Option<()> {
        let mut depth: usize = 0;
        loop {
            match *self.data.get(self.at)? {
                b'"' => {
                    self.string()?;
                    continue;
                }
                b'{' | b'[' => depth = depth.saturating_add(1),
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ => {}
            }
            self.at = self.at.saturating_add(1);
            if depth == 0 {
                return Some(());
            }
        }
    }

    fn scalar(&mut self) {
        let rest = self.data.get(self.at..).unwrap_or_default();
        let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r');
        self.at = self
            .at
            .saturating_add(rest.iter().position(ends).unwrap_or(rest.len()));
    }
}
