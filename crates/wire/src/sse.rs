//! Server-sent events: cutting an upstream's byte stream into events by the WHATWG grammar, and writing our own.
//! It decides where lines and events end, whatever the chunk boundaries, and never looks into the data. Called
//! by the gateway's relay and by the engine worker.

#[cfg(test)]
mod tests;

use bytes::BufMut;
use memchr::memchr2;
use std::fmt;

const BOM: [u8; 3] = [0xEF, 0xBB, 0xBF];

/// What the splitter hands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// One event that has data; several data lines are joined by LF.
    Data {
        /// The last `event:` line of the event, if it named one.
        event: Option<&'a [u8]>,
        /// The data, without the line end after it.
        data: &'a [u8],
    },
    /// A comment line. Its text doesn't matter; that the upstream lives does.
    Comment,
}

/// An event or a line passed the size given to [`Splitter::new`]; the stream can't be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge {
    /// The limit, in bytes.
    pub limit: usize,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the upstream sent an event of more than {} bytes",
            self.limit
        )
    }
}

impl std::error::Error for TooLarge {}

/// Cuts a byte stream into events, however it is chunked.
pub struct Splitter {
    /// The start of a line whose end has not come yet.
    line: Vec<u8>,
    data: Vec<u8>,
    event: Vec<u8>,
    has_data: bool,
    /// The last byte was CR: an LF right after it belongs to the same line end.
    after_cr: bool,
    /// Bytes of a byte order mark seen at the very start; 3 when that question is over.
    mark: usize,
    max_event: usize,
    failed: bool,
}

// What an event carries stays out of Debug.
impl fmt::Debug for Splitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Splitter({} bytes held)",
            self.line.len().saturating_add(self.data.len())
        )
    }
}

impl Splitter {
    /// A splitter that holds at most `max_event` bytes of one event.
    #[must_use]
    pub fn new(max_event: usize) -> Self {
        Self {
            line: Vec::new(),
            data: Vec::new(),
            event: Vec::new(),
            has_data: false,
            after_cr: false,
            mark: 0,
            max_event,
            failed: false,
        }
    }

    /// Takes the next chunk and calls `sink` for each frame that it completes.
    ///
    /// # Errors
    /// [`TooLarge`], and again on every later call.
    pub fn push(&mut self, bytes: &[u8], sink: &mut impl FnMut(Frame<'_>)) -> Result<(), TooLarge> {
        let mut rest = self.skip_mark(bytes);
        while !rest.is_empty() {
            if std::mem::take(&mut self.after_cr)
                && let Some(tail) = rest.strip_prefix(b"\n")
            {
                rest = tail;
                continue;
            }
            let Some(end) = memchr2(b'\n', b'\r', rest) else {
                self.fits(rest.len())?;
                self.line.extend_from_slice(rest);
                break;
            };
            let (line, tail) = rest.split_at_checked(end).unwrap_or((rest, &[]));
            self.fits(line.len())?;
            if let Some(after) = self.whole_event(line, tail, sink) {
                rest = after;
                continue;
            }
            self.after_cr = tail.first() == Some(&b'\r');
            rest = tail.split_first().map_or(&[][..], |(_, after)| after);
            if self.line.is_empty() {
                self.take_line(line, sink);
            } else {
                let mut held = std::mem::take(&mut self.line);
                held.extend_from_slice(line);
                self.take_line(&held, sink);
                held.clear();
                self.line = held;
            }
        }
        Ok(())
    }

    /// Ends the stream. An event without its blank line is discarded, as the grammar says, but for a last
    /// `[DONE]`, which some servers leave open. Returns how many bytes were discarded: more than 0 means that
    /// the upstream was cut inside an event.
    pub fn finish(&mut self, sink: &mut impl FnMut(Frame<'_>)) -> usize {
        let line = std::mem::take(&mut self.line);
        if !line.is_empty() && matches!(field(&line), (b"data", b"[DONE]")) {
            self.take_line(&line, sink);
        } else if !line.is_empty() {
            return self.reset().saturating_add(line.len());
        }
        if self.has_data && self.data == b"[DONE]" {
            self.dispatch(sink);
        }
        self.reset()
    }

    /// The common case without a copy: `data: x\n\n` whole in this chunk and nothing pending.
    fn whole_event<'b>(
        &self,
        line: &[u8],
        tail: &'b [u8],
        sink: &mut impl FnMut(Frame<'_>),
    ) -> Option<&'b [u8]> {
        if self.has_data || !self.line.is_empty() || !self.event.is_empty() {
            return None;
        }
        let after = tail.strip_prefix(b"\n\n")?;
        let value = line.strip_prefix(b"data:")?;
        sink(Frame::Data {
            event: None,
            data: value.strip_prefix(b" ").unwrap_or(value),
        });
        Some(after)
    }

    fn take_line(&mut self, line: &[u8], sink: &mut impl FnMut(Frame<'_>)) {
        match field(line) {
            (b"", _) if line.is_empty() => self.dispatch(sink),
            (b"", _) => sink(Frame::Comment),
            (b"data", value) => {
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.has_data = true;
                self.data.extend_from_slice(value);
            }
            (b"event", value) => {
                self.event.clear();
                self.event.extend_from_slice(value);
            }
            // `id` and `retry` speak to browsers that reconnect; unknown fields are ignored.
            _ => {}
        }
    }

    fn dispatch(&mut self, sink: &mut impl FnMut(Frame<'_>)) {
        if self.has_data {
            let event = (!self.event.is_empty()).then_some(&*self.event);
            sink(Frame::Data {
                event,
                data: &self.data,
            });
        }
        self.reset();
    }

    /// Forgets the event in hand; how many bytes of it there were.
    fn reset(&mut self) -> usize {
        let held = self.data.len().saturating_add(self.event.len());
        self.data.clear();
        self.event.clear();
        self.has_data = false;
        held
    }

    fn skip_mark<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let mut rest = bytes;
        while let (Some(expected), Some((byte, tail))) = (BOM.get(self.mark), rest.split_first()) {
            if byte == expected {
                self.mark = self.mark.saturating_add(1);
                rest = tail;
            } else {
                self.line.extend(BOM.iter().take(self.mark));
                self.mark = BOM.len();
            }
        }
        rest
    }

    fn fits(&mut self, more: usize) -> Result<(), TooLarge> {
        let held = self
            .line
            .len()
            .saturating_add(self.data.len())
            .saturating_add(self.event.len());
        self.failed |= held.saturating_add(more) > self.max_event;
        if self.failed {
            Err(TooLarge {
                limit: self.max_event,
            })
        } else {
            Ok(())
        }
    }
}

/// Name and value of a line, the one optional space gone. A comment has an empty name.
fn field(line: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b':', line).and_then(|colon| line.split_at_checked(colon)) {
        Some((name, value)) => {
            let value = value.strip_prefix(b":").unwrap_or(value);
            (name, value.strip_prefix(b" ").unwrap_or(value))
        }
        None => (line, b""),
    }
}

/// Appends one event: `data: …` and a blank line. The data is JSON or a word such as `[DONE]`: a line end in it
/// can only be white space between tokens, so it becomes a space and the event stays on one line.
pub fn write_data(out: &mut impl BufMut, data: &[u8]) {
    out.put_slice(b"data: ");
    put_line(out, data);
    out.put_slice(b"\n\n");
}

/// Appends one comment and a blank line; line ends in it become spaces.
pub fn write_comment(out: &mut impl BufMut, text: &str) {
    out.put_slice(b": ");
    put_line(out, text.as_bytes());
    out.put_slice(b"\n\n");
}

fn put_line(out: &mut impl BufMut, bytes: &[u8]) {
    let mut rest = bytes;
    while let Some((line, tail)) =
        memchr2(b'\n', b'\r', rest).and_then(|end| rest.split_at_checked(end))
    {
        out.put_slice(line);
        out.put_slice(b" ");
        rest = tail.split_first().map_or(&[][..], |(_, after)| after);
    }
    out.put_slice(rest);
}
