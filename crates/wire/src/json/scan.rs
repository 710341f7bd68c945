//! The strict pass: bytes in, tape out. It decides every question of grammar and of limits and keeps its own
//! stack, so depth costs heap and never the thread's stack. Called by `json::parse` only.

use super::{Fault, FaultKind, Kind, Limits, string_text, text};
use std::collections::HashSet;

/// The string has at least one escape.
pub(super) const ESCAPED: u8 = 1;
/// The string has bytes above 127 as written.
pub(super) const NON_ASCII: u8 = 2;
/// The number has neither fraction nor exponent.
pub(super) const INTEGER: u8 = 4;

/// Up to this many members are compared pairwise; more go through a set.
const PAIRWISE: usize = 16;

/// One value or member name. Names and values of an object alternate on the tape.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) start: u32,
    pub(super) end: u32,
    /// Index of the first node behind this value and all that it holds.
    pub(super) next: u32,
    pub(super) count: u32,
    pub(super) kind: Kind,
    pub(super) flags: u8,
}

impl Node {
    pub(super) const NULL: Self = Self {
        start: 0,
        end: 0,
        next: u32::MAX,
        count: 0,
        kind: Kind::Null,
        flags: 0,
    };
}

/// Scans `text` whole; the root is node 0.
pub(super) fn tape(text: &str, limits: Limits) -> Result<Vec<Node>, Fault> {
    if u32::try_from(text.len()).is_err() {
        return Err(Fault {
            kind: FaultKind::TooManyValues,
            at: 0,
        });
    }
    let mut scanner = Scanner {
        text,
        src: text.as_bytes(),
        at: 0,
        tape: Vec::with_capacity((text.len() / 16).clamp(8, 4096)),
        open: Vec::new(),
        values: 0,
        limits,
    };
    scanner.document()?;
    Ok(scanner.tape)
}

struct Scanner<'a> {
    text: &'a str,
    src: &'a [u8],
    at: usize,
    tape: Vec<Node>,
    /// Tape indexes of the containers that are open.
    open: Vec<usize>,
    values: u32,
    limits: Limits,
}

#[derive(Clone, Copy)]
enum Expect {
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    CommaOrEnd,
}

impl Scanner<'_> {
    fn document(&mut self) -> Result<(), Fault> {
        let mut expect = Expect::Value;
        loop {
            self.skip_space();
            expect = match (expect, self.peek()) {
                (Expect::ValueOrEnd, Some(b']')) | (Expect::KeyOrEnd, Some(b'}')) => {
                    self.close()?
                }
                (Expect::Value | Expect::ValueOrEnd, _) => self.value()?,
                (Expect::Key | Expect::KeyOrEnd, _) => self.key()?,
                (Expect::CommaOrEnd, next) => match (self.innermost(), next) {
                    (None, None) => return Ok(()),
                    (None, Some(_)) => return Err(self.fault(FaultKind::TrailingBytes)),
                    (Some(Kind::Object), Some(b'}')) | (Some(Kind::Array), Some(b']')) => {
                        self.close()?
                    }
                    (Some(kind), Some(b',')) => {
                        self.bump(1);
                        if kind == Kind::Object {
                            Expect::Key
                        } else {
                            Expect::Value
                        }
                    }
                    (Some(_), _) => return Err(self.fault(FaultKind::Syntax)),
                },
            };
        }
    }

    fn value(&mut self) -> Result<Expect, Fault> {
        self.values = self.values.saturating_add(1);
        if self.values > self.limits.nodes {
            return Err(self.fault(FaultKind::TooManyValues));
        }
        if let Some(parent) = self
            .open
            .last()
            .copied()
            .and_then(|index| self.tape.get_mut(index))
        {
            parent.count = parent.count.saturating_add(1);
        }
        match self.peek() {
            Some(b'{') => return self.enter(Kind::Object),
            Some(b'[') => return self.enter(Kind::Array),
            Some(b'"') => self.string()?,
            Some(b't') => self.literal(b"true", Kind::Bool)?,
            Some(b'f') => self.literal(b"false", Kind::Bool)?,
            Some(b'n') => self.literal(b"null", Kind::Null)?,
            Some(b'-' | b'0'..=b'9') => self.number()?,
            // What people write for a number outside the grammar gets the clearer fault.
            Some(b'+' | b'.' | b'N' | b'I') => return Err(self.fault(FaultKind::Number)),
            _ => return Err(self.fault(FaultKind::Syntax)),
        }
        Ok(Expect::CommaOrEnd)
    }

    fn key(&mut self) -> Result<Expect, Fault> {
        if self.peek() != Some(b'"') {
            return Err(self.fault(FaultKind::Syntax));
        }
        self.string()?;
        self.skip_space();
        if self.peek() != Some(b':') {
            return Err(self.fault(FaultKind::Syntax));
        }
        self.bump(1);
        Ok(Expect::Value)
    }

    fn enter(&mut self, kind: Kind) -> Result<Expect, Fault> {
        if self.open.len() >= usize::from(self.limits.depth) {
            return Err(self.fault(FaultKind::TooDeep));
        }
        self.open.push(self.tape.len());
        let start = self.at;
        self.bump(1);
        self.push(kind, start, 0);
        Ok(if kind == Kind::Object {
            Expect::KeyOrEnd
        } else {
            Expect::ValueOrEnd
        })
    }

    fn close(&mut self) -> Result<Expect, Fault> {
        self.bump(1);
        let (end, next) = (narrow(self.at), narrow(self.tape.len()));
        if let Some(index) = self.open.pop()
            && let Some(node) = self.tape.get_mut(index)
        {
            node.end = end;
            node.next = next;
            if node.kind == Kind::Object {
                self.distinct(index)?;
            }
        }
        Ok(Expect::CommaOrEnd)
    }

    /// Refuses an object that names a member twice.
    fn distinct(&self, object: usize) -> Result<(), Fault> {
        let count = self.tape.get(object).map_or(0, |node| node.count as usize);
        if count < 2 {
            return Ok(());
        }
        let mut at = object.saturating_add(1);
        let keys = std::iter::from_fn(|| {
            let key = self.tape.get(at)?;
            at = self.tape.get(at.saturating_add(1))?.next as usize;
            Some(key)
        });
        let twin = if count <= PAIRWISE {
            let mut seen = [&Node::NULL; PAIRWISE];
            keys.enumerate().find_map(|(index, key)| {
                let twin = seen
                    .iter()
                    .take(index)
                    .any(|other| self.same_name(other, key));
                if let Some(place) = seen.get_mut(index) {
                    *place = key;
                }
                twin.then_some(key)
            })
        } else {
            let mut seen = HashSet::with_capacity(count);
            let mut keys = keys;
            keys.find(|key| !seen.insert(string_text(self.text, key)))
        };
        match twin {
            None => Ok(()),
            Some(key) => Err(Fault {
                kind: FaultKind::DuplicateMember(text::shorten(&string_text(self.text, key))),
                at: key.start as usize,
            }),
        }
    }

    fn same_name(&self, one: &Node, other: &Node) -> bool {
        string_text(self.text, one) == string_text(self.text, other)
    }

    fn literal(&mut self, word: &[u8], kind: Kind) -> Result<(), Fault> {
        if !self.rest().starts_with(word) {
            return Err(self.fault(FaultKind::Syntax));
        }
        let start = self.at;
        self.bump(word.len());
        self.push(kind, start, 0);
        Ok(())
    }

    fn number(&mut self) -> Result<(), Fault> {
        let start = self.at;
        let mut flags = INTEGER;
        if self.peek() == Some(b'-') {
            self.bump(1);
        }
        let zero = self.peek() == Some(b'0');
        let whole = self.digits()?;
        if zero && whole > 1 {
            return Err(Fault {
                kind: FaultKind::Number,
                at: start,
            });
        }
        if self.peek() == Some(b'.') {
            self.bump(1);
            self.digits()?;
            flags = 0;
        }
        let exponent = matches!(self.peek(), Some(b'e' | b'E'));
        if exponent {
            self.bump(1);
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.bump(1);
            }
            self.digits()?;
            flags = 0;
        }
        // Readers differ on numbers that no double holds (error, infinity), so nobody gets one.
        if exponent || whole > 300 {
            let number = self
                .text
                .get(start..self.at)
                .and_then(|text| text.parse::<f64>().ok());
            if !number.is_some_and(f64::is_finite) {
                return Err(Fault {
                    kind: FaultKind::Number,
                    at: start,
                });
            }
        }
        self.push(Kind::Number, start, flags);
        Ok(())
    }

    /// At least one digit; how many there were.
    fn digits(&mut self) -> Result<usize, Fault> {
        let rest = self.rest();
        let count = rest
            .iter()
            .position(|byte| !byte.is_ascii_digit())
            .unwrap_or(rest.len());
        if count == 0 {
            return Err(self.fault(FaultKind::Number));
        }
        self.bump(count);
        Ok(count)
    }

    fn string(&mut self) -> Result<(), Fault> {
        let start = self.at;
        let mut flags = 0;
        self.bump(1);
        loop {
            let rest = self.rest();
            let plain = text::plain_run(rest);
            if !rest.get(..plain).unwrap_or_default().is_ascii() {
                flags |= NON_ASCII;
            }
            self.bump(plain);
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => {
                    flags |= ESCAPED;
                    self.escape()?;
                }
                _ => return Err(self.fault(FaultKind::Syntax)),
            }
        }
        self.bump(1);
        self.push(Kind::String, start, flags);
        Ok(())
    }

    fn escape(&mut self) -> Result<(), Fault> {
        let start = self.at;
        self.bump(1);
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.bump(1);
                Ok(())
            }
            Some(b'u') => {
                self.bump(1);
                let lone = Fault {
                    kind: FaultKind::LoneSurrogate,
                    at: start,
                };
                match self.hex()? {
                    0xDC00..=0xDFFF => Err(lone),
                    0xD800..=0xDBFF if !self.rest().starts_with(b"\\u") => Err(lone),
                    0xD800..=0xDBFF => {
                        self.bump(2);
                        if matches!(self.hex()?, 0xDC00..=0xDFFF) {
                            Ok(())
                        } else {
                            Err(lone)
                        }
                    }
                    _ => Ok(()),
                }
            }
            _ => Err(self.fault(FaultKind::Syntax)),
        }
    }

    fn hex(&mut self) -> Result<u32, Fault> {
        let value = self.rest().get(..4).and_then(text::hex4);
        let value = value.ok_or_else(|| self.fault(FaultKind::Syntax))?;
        self.bump(4);
        Ok(value)
    }

    fn push(&mut self, kind: Kind, start: usize, flags: u8) {
        let next = narrow(self.tape.len().saturating_add(1));
        self.tape.push(Node {
            start: narrow(start),
            end: narrow(self.at),
            next,
            count: 0,
            kind,
            flags,
        });
    }

    fn innermost(&self) -> Option<Kind> {
        self.open
            .last()
            .and_then(|index| self.tape.get(*index))
            .map(|node| node.kind)
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.bump(1);
        }
    }

    fn peek(&self) -> Option<u8> {
        self.src.get(self.at).copied()
    }

    fn rest(&self) -> &[u8] {
        self.src.get(self.at..).unwrap_or_default()
    }

    fn bump(&mut self, bytes: usize) {
        self.at = self.at.saturating_add(bytes);
    }

    fn fault(&self, kind: FaultKind) -> Fault {
        Fault { kind, at: self.at }
    }
}

/// Offsets and tape indexes fit: `tape` refuses sources that need more.
fn narrow(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
