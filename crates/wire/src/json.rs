//! JSON as a judge reads it: one strict pass over the bytes into a flat tape of spans. It decides whether a
//! body is a single, unambiguous document (no duplicate member at any depth, no broken text, bounded depth and
//! size) and never builds a tree, changes a byte or recurses. Called by `openai` for callers' bodies.

mod scan;
mod text;
#[cfg(test)]
mod tests;

pub(crate) use text::shorten;
pub use text::write_string;

use scan::{ESCAPED, INTEGER, NON_ASCII, Node};
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

/// How much a document may hold before it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Containers open at once; a scalar alone has depth 0.
    pub depth: u16,
    /// Values in the whole document, containers included, member names not.
    pub nodes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            depth: 64,
            nodes: 200_000,
        }
    }
}

/// Reads one document and nothing around it but white space.
///
/// # Errors
/// The first [`Fault`] met; duplicate members are found when their object closes.
pub fn parse(src: &[u8], limits: Limits) -> Result<Document<'_>, Fault> {
    let text = match std::str::from_utf8(src) {
        Ok(text) => text,
        Err(error) => {
            return Err(Fault {
                kind: FaultKind::NotUtf8,
                at: error.valid_up_to(),
            });
        }
    };
    Ok(Document {
        src: text,
        tape: scan::tape(text, limits)?,
    })
}

/// What is wrong with a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The bytes are no UTF-8.
    NotUtf8,
    /// Not the JSON grammar: also a byte order mark, a control character in a string, an early end.
    Syntax,
    /// One object names a member twice (compared after unescaping); the name, shortened.
    DuplicateMember(String),
    /// More containers open at once than [`Limits::depth`].
    TooDeep,
    /// More values than [`Limits::nodes`], or more than 4 GiB.
    TooManyValues,
    /// A `\u` escape of half a surrogate pair.
    LoneSurrogate,
    /// Something follows the document.
    TrailingBytes,
    /// A number outside the grammar (leading zero, `NaN`, `.5`) or outside what a double holds.
    Number,
}

/// Why a document was refused, and at which byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong.
    pub kind: FaultKind,
    /// Offset in bytes from the start.
    pub at: usize,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at;
        match &self.kind {
            FaultKind::NotUtf8 => {
                write!(
                    f,
                    "The body is not valid UTF-8 at byte {at}. Send JSON encoded as UTF-8."
                )
            }
            FaultKind::Syntax => {
                write!(
                    f,
                    "The body is not valid JSON at byte {at}. Send one JSON object."
                )
            }
            FaultKind::DuplicateMember(name) => {
                write!(
                    f,
                    "The member '{name}' appears twice in one object, at byte {at}. Send it once."
                )
            }
            FaultKind::TooDeep => {
                write!(f, "The body is nested too deeply at byte {at}. Flatten it.")
            }
            FaultKind::TooManyValues => {
                write!(
                    f,
                    "The body holds too many values, passed at byte {at}. Send a smaller body."
                )
            }
            FaultKind::LoneSurrogate => {
                write!(
                    f,
                    "The string has half a surrogate pair at byte {at}. Escape whole characters."
                )
            }
            FaultKind::TrailingBytes => {
                write!(
                    f,
                    "Something follows the JSON document at byte {at}. Send one JSON object only."
                )
            }
            FaultKind::Number => {
                write!(
                    f,
                    "The body has an invalid number at byte {at}. Write numbers as JSON does."
                )
            }
        }
    }
}

impl std::error::Error for Fault {}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `null`
    Null,
    /// `true` or `false`
    Bool,
    /// A number.
    Number,
    /// A string.
    String,
    /// `[…]`
    Array,
    /// `{…}`
    Object,
}

/// A document that passed: the source and where its values lie in it.
pub struct Document<'a> {
    src: &'a str,
    tape: Vec<Node>,
}

// Content stays out of Debug: bodies hold what people wrote.
impl fmt::Debug for Document<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Document({} bytes, {} nodes)",
            self.src.len(),
            self.tape.len()
        )
    }
}

impl Document<'_> {
    /// The outermost value.
    #[must_use]
    pub fn root(&self) -> Value<'_> {
        self.value(0)
    }

    fn value(&self, index: usize) -> Value<'_> {
        Value {
            doc: self,
            index,
            node: self.tape.get(index).copied().unwrap_or(Node::NULL),
        }
    }

    fn slice(&self, node: &Node) -> &str {
        self.src
            .get(node.start as usize..node.end as usize)
            .unwrap_or_default()
    }
}

/// One value of a [`Document`], borrowed.
#[derive(Clone, Copy)]
pub struct Value<'d> {
    doc: &'d Document<'d>,
    index: usize,
    node: Node,
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({:?} at {:?})", self.kind(), self.span())
    }
}

impl<'d> Value<'d> {
    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.node.kind
    }

    /// Whether it is `null`.
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.node.kind == Kind::Null
    }

    /// Where it lies in the source, in bytes; a string's quotes are inside.
    #[must_use]
    pub fn span(&self) -> Range<usize> {
        self.node.start as usize..self.node.end as usize
    }

    /// Its bytes as they were written; a string's quotes are inside.
    #[must_use]
    pub fn raw(&self) -> &'d [u8] {
        self.doc.slice(&self.node).as_bytes()
    }

    /// Its truth, if it is one.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        (self.kind() == Kind::Bool).then(|| self.raw() == b"true")
    }

    /// Its text with escapes undone, if it is a string.
    #[must_use]
    pub fn as_str(&self) -> Option<Cow<'d, str>> {
        (self.kind() == Kind::String).then(|| string_text(self.doc.src, &self.node))
    }

    /// Whether it is a string that holds only ASCII as written and no escape, so that its length is exact.
    #[must_use]
    pub fn is_plain_ascii(&self) -> bool {
        self.kind() == Kind::String && self.node.flags & (ESCAPED | NON_ASCII) == 0
    }

    /// Its exact value, if it was written as an integer (no fraction, no exponent) that fits.
    #[must_use]
    pub fn as_integer(&self) -> Option<i128> {
        let written = self.kind() == Kind::Number && self.node.flags & INTEGER != 0;
        written
            .then(|| self.doc.slice(&self.node).parse().ok())
            .flatten()
    }

    /// The nearest double, if it is a number.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        (self.kind() == Kind::Number)
            .then(|| self.doc.slice(&self.node).parse().ok())
            .flatten()
    }

    /// The member of that name, if this is an object that has it. Linear in the number of members.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Self> {
        self.members()
            .find(|member| member.key == name)
            .map(|member| member.value)
    }

    /// The members in the order written; none unless this is an object.
    #[must_use]
    pub fn members(&self) -> Members<'d> {
        Members {
            doc: self.doc,
            at: self.index.saturating_add(1),
            left: self.count_of(Kind::Object),
        }
    }

    /// The elements in the order written; none unless this is an array.
    #[must_use]
    pub fn elements(&self) -> Elements<'d> {
        Elements {
            doc: self.doc,
            at: self.index.saturating_add(1),
            left: self.count_of(Kind::Array),
        }
    }

    /// Members of an object or elements of an array; 0 for any other value.
    #[must_use]
    pub fn len(&self) -> usize {
        self.node.count as usize
    }

    /// Whether [`len`](Self::len) is 0.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.node.count == 0
    }

    /// Values below this one and member names among them: what a printer would have to write.
    #[must_use]
    pub fn inner_nodes(&self) -> usize {
        (self.node.next as usize)
            .saturating_sub(self.index)
            .saturating_sub(1)
    }

    fn count_of(&self, kind: Kind) -> u32 {
        if self.node.kind == kind {
            self.node.count
        } else {
            0
        }
    }
}

/// One member of an object.
#[derive(Clone, Debug)]
pub struct Member<'d> {
    /// Its name with escapes undone.
    pub key: Cow<'d, str>,
    /// Where the name lies, quotes inside.
    pub key_span: Range<usize>,
    /// Its value.
    pub value: Value<'d>,
}

/// Iterates an object; see [`Value::members`].
#[derive(Clone, Debug)]
pub struct Members<'d> {
    doc: &'d Document<'d>,
    at: usize,
    left: u32,
}

impl<'d> Iterator for Members<'d> {
    type Item = Member<'d>;

    fn next(&mut self) -> Option<Member<'d>> {
        self.left = self.left.checked_sub(1)?;
        let key = self.doc.tape.get(self.at)?;
        let value = self.doc.value(self.at.saturating_add(1));
        self.at = value.node.next as usize;
        Some(Member {
            key: string_text(self.doc.src, key),
            key_span: key.start as usize..key.end as usize,
            value,
        })
    }
}

/// Iterates an array; see [`Value::elements`].
#[derive(Clone, Debug)]
pub struct Elements<'d> {
    doc: &'d Document<'d>,
    at: usize,
    left: u32,
}

impl<'d> Iterator for Elements<'d> {
    type Item = Value<'d>;

    fn next(&mut self) -> Option<Value<'d>> {
        self.left = self.left.checked_sub(1)?;
        let value = self.doc.value(self.at);
        self.at = value.node.next as usize;
        Some(value)
    }
}

fn string_text<'s>(src: &'s str, node: &Node) -> Cow<'s, str> {
    let inner = (node.start as usize).saturating_add(1)..(node.end as usize).saturating_sub(1);
    let raw = src.get(inner).unwrap_or_default();
    if node.flags & ESCAPED == 0 {
        Cow::Borrowed(raw)
    } else {
        Cow::Owned(text::decode(raw))
    }
}
