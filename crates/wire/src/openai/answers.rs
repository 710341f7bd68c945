//! Reading what upstreams answer: usage, ends, errors and the spans that change on the way back. It is lenient
//! (an upstream isn't our caller) and fast: one forward scan that skips what it doesn't need and allocates only
//! for errors. It never judges content. Called by the gateway for every event of a stream.

mod skim;
#[cfg(test)]
mod tests;

use crate::json::write_string;
use serde_json::Value;
use skim::Skim;
use std::borrow::Cow;
use std::ops::Range;

/// Longest error message taken over from an upstream, in bytes.
const MESSAGE_MAX: usize = 2048;
/// Longest `type`, `param` or `code` taken over, in bytes.
const WORD_MAX: usize = 128;

/// What an upstream says a call used so far, in tokens. A running total: the last one counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: u64,
    /// Tokens of all choices.
    pub completion: u64,
}

/// An error that an upstream reported, in whatever shape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamError {
    /// At most 2 KiB.
    pub message: String,
    /// `type`
    pub kind: Option<String>,
    /// `param`
    pub param: Option<String>,
    /// `code`, a number as text.
    pub code: Option<String>,
    /// The HTTP status that a numeric code or status names, 400 to 599.
    pub status: Option<u16>,
}

/// What matters of one chunk of a stream, or of a whole answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// Usage, if it was reported with numbers.
    pub usage: Option<Usage>,
    /// No choices (absent, null or empty), but usage.
    pub usage_only: bool,
    /// Some choice carries content, reasoning or a tool call.
    pub text: bool,
    /// Choices with a finish reason.
    pub finished: u32,
    /// The error, if this is one.
    pub error: Option<UpstreamError>,
    /// Where the value of `model` lies, quotes inside.
    pub model_span: Option<Range<usize>>,
    /// The member `usage` and one comma beside it: what to cut out.
    pub usage_span: Option<Range<usize>>,
}

/// One `data:` payload, sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A chunk with choices, or none of the others.
    Chunk(Chunk),
    /// A chunk that only reports usage.
    UsageOnly(Chunk),
    /// An error.
    Error(UpstreamError),
    /// `[DONE]`
    Done,
    /// Not a JSON object.
    Other,
}

/// Sorts one `data:` payload.
#[must_use]
pub fn read_event(data: &[u8]) -> Event {
    if is_done(data) {
        return Event::Done;
    }
    match read_chunk(data) {
        Some(Chunk {
            error: Some(error), ..
        }) => Event::Error(error),
        Some(chunk) if chunk.usage_only => Event::UsageOnly(chunk),
        Some(chunk) => Event::Chunk(chunk),
        None => Event::Other,
    }
}

/// Whether a payload is the end mark of a stream.
#[must_use]
pub fn is_done(data: &[u8]) -> bool {
    data.trim_ascii() == b"[DONE]"
}

/// Reads one `data:` payload of a stream, chat or completions; `None` when it isn't a JSON object.
#[must_use]
pub fn read_chunk(data: &[u8]) -> Option<Chunk> {
    let mut chunk = Chunk::default();
    let mut members = Members::default();
    let mut skim = Skim::new(data);
    let mut comma = None;
    skim.open(b'{')?;
    while let Some(key) = skim.key()? {
        let start = skim.at();
        let first = skim.peek()?;
        match key.name {
            b"choices" => {
                members.choices = read_choices(&mut skim, &mut chunk)?;
            }
            b"usage" => {
                chunk.usage = read_usage(&mut skim, first)?.or(chunk.usage);
            }
            _ => skim.skip()?,
        }
        let span = start..skim.at();
        match key.name {
            b"usage" => {
                let after = skim.comma_after();
                chunk.usage_span = Some(match (comma, after) {
                    (Some(before), _) => before..span.end,
                    (None, Some(after)) => key.start..after,
                    (None, None) => key.start..span.end,
                });
            }
            b"model" if first == b'"' => chunk.model_span = Some(span),
            b"error" if !matches!(first, b'n' | b'f') => members.error = Some(span),
            b"object" => members.is_error = data.get(span) == Some(b"\"error\""),
            b"detail" if first != b'n' => members.detail = Some(span),
            _ => {}
        }
        comma = skim.comma();
    }
    skim.end()?;
    chunk.usage_only = !members.choices && chunk.usage.is_some();
    chunk.error = members.error(data);
    Some(chunk)
}

/// Reads a whole answer that was not streamed; `None` when it isn't a JSON object.
#[must_use]
pub fn read_answer(body: &[u8]) -> Option<Chunk> {
    read_chunk(body)
}

/// What was seen at the top and is judged at the end.
#[derive(Default)]
struct Members {
    /// There is a choice.
    choices: bool,
    error: Option<Range<usize>>,
    detail: Option<Range<usize>>,
    is_error: bool,
}

impl Members {
    fn error(self, data: &[u8]) -> Option<UpstreamError> {
        let value = match (self.error, self.detail) {
            (Some(span), _) => data.get(span),
            (None, _) if self.is_error => Some(data),
            (None, Some(span)) if !self.choices => data.get(span),
            (None, _) => None,
        }?;
        Some(read_error(value))
    }
}

/// Whether there is at least one choice.
fn read_choices(skim: &mut Skim<'_>, chunk: &mut Chunk) -> Option<bool> {
    if skim.peek()? != b'[' {
        skim.skip()?;
        return Some(false);
    }
    skim.open(b'[')?;
    let mut any = false;
    while skim.element()? {
        any = true;
        if skim.peek()? == b'{' {
            read_choice(skim, chunk)?;
        } else {
            skim.skip()?;
        }
        skim.comma();
    }
    Some(any)
}

fn read_choice(skim: &mut Skim<'_>, chunk: &mut Chunk) -> Option<()> {
    skim.open(b'{')?;
    while let Some(key) = skim.key()? {
        let first = skim.peek()?;
        match key.name {
            b"delta" | b"message" if first == b'{' => read_delta(skim, chunk)?,
            b"finish_reason" => {
                if first != b'n' {
                    chunk.finished = chunk.finished.saturating_add(1);
                }
                skim.skip()?;
            }
            b"text" => chunk.text |= skim.skip_filled()?,
            _ => skim.skip()?,
        }
        skim.comma();
    }
    Some(())
}

fn read_delta(skim: &mut Skim<'_>, chunk: &mut Chunk) -> Option<()> {
    skim.open(b'{')?;
    while let Some(key) = skim.key()? {
        match key.name {
            b"content" | b"reasoning" | b"reasoning_content" | b"refusal" | b"tool_calls"
            | b"function_call" | b"audio" => chunk.text |= skim.skip_filled()?,
            _ => skim.skip()?,
        }
        skim.comma();
    }
    Some(())
}

fn read_usage(skim: &mut Skim<'_>, first: u8) -> Option<Option<Usage>> {
    if first != b'{' {
        skim.skip()?;
        return Some(None);
    }
    skim.open(b'{')?;
    let (mut prompt, mut completion) = (None, None);
    while let Some(key) = skim.key()? {
        match key.name {
            b"prompt_tokens" => prompt = skim.unsigned()?,
            b"completion_tokens" => completion = skim.unsigned()?,
            _ => skim.skip()?,
        }
        skim.comma();
    }
    if prompt.is_none() && completion.is_none() {
        return Some(None);
    }
    Some(Some(Usage {
        prompt: prompt.unwrap_or(0),
        completion: completion.unwrap_or(0),
    }))
}

/// Reads the error object, text or `FastAPI` detail in `raw`.
fn read_error(raw: &[u8]) -> UpstreamError {
    let value: Value = serde_json::from_slice(raw).unwrap_or_default();
    let Value::Object(members) = &value else {
        let message = match &value {
            Value::String(text) => cut(text, MESSAGE_MAX),
            Value::Array(details) => details.iter().find_map(detail).unwrap_or_default(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
                cut(&String::from_utf8_lossy(raw), MESSAGE_MAX)
            }
        };
        return UpstreamError {
            message,
            ..UpstreamError::default()
        };
    };
    let word = |name: &str| match members.get(name) {
        Some(Value::String(text)) => Some(cut(text, WORD_MAX)),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    let code = word("code");
    let status = [code.clone(), word("status"), word("status_code")]
        .into_iter()
        .flatten()
        .find_map(|text| {
            text.parse()
                .ok()
                .filter(|status| (400..600).contains(status))
        });
    let message = ["message", "detail", "error"]
        .iter()
        .find_map(|name| match members.get(*name) {
            Some(Value::String(text)) => Some(cut(text, MESSAGE_MAX)),
            _ => None,
        });
    UpstreamError {
        message: message.unwrap_or_default(),
        kind: word("type"),
        param: word("param"),
        code,
        status,
    }
}

/// One entry of a `FastAPI` validation error: where, and what is wrong there.
fn detail(entry: &Value) -> Option<String> {
    let message = entry.get("msg")?.as_str()?;
    let place = entry.get("loc").and_then(Value::as_array).map(|steps| {
        let step = |step: &Value| {
            step.as_str()
                .map_or_else(|| step.to_string(), str::to_owned)
        };
        steps.iter().map(step).collect::<Vec<_>>().join(".")
    });
    Some(cut(
        &place.map_or_else(|| message.to_owned(), |place| format!("{place}: {message}")),
        MESSAGE_MAX,
    ))
}

fn cut(text: &str, limit: usize) -> String {
    text.get(..text.floor_char_boundary(limit))
        .unwrap_or_default()
        .to_owned()
}

/// Puts the public model name in place of the upstream's, and cuts the usage member out when asked.
#[must_use]
pub fn rewrite<'d>(data: &'d [u8], model: &str, drop_usage: bool) -> Cow<'d, [u8]> {
    match read_chunk(data) {
        Some(chunk) => rewrite_chunk(data, &chunk, model, drop_usage),
        None => Cow::Borrowed(data),
    }
}

/// [`rewrite`] for a chunk that was read already; `chunk` must be what [`read_chunk`] said of this `data`.
#[must_use]
pub fn rewrite_chunk<'d>(
    data: &'d [u8],
    chunk: &Chunk,
    model: &str,
    drop_usage: bool,
) -> Cow<'d, [u8]> {
    let mut name = Vec::with_capacity(model.len().saturating_add(2));
    write_string(&mut name, model);
    let renamed = chunk
        .model_span
        .clone()
        .filter(|span| data.get(span.clone()) != Some(&*name))
        .map(|span| (span, &*name));
    let cut = chunk
        .usage_span
        .clone()
        .filter(|_| drop_usage)
        .map(|span| (span, &[][..]));
    let mut edits: Vec<_> = renamed.into_iter().chain(cut).collect();
    if edits.is_empty() {
        return Cow::Borrowed(data);
    }
    edits.sort_by_key(|(span, _)| span.start);
    let mut out = Vec::with_capacity(data.len().saturating_add(name.len()));
    let mut at = 0;
    for (span, replacement) in edits {
        out.extend_from_slice(data.get(at..span.start).unwrap_or_default());
        out.extend_from_slice(replacement);
        at = span.end;
    }
    out.extend_from_slice(data.get(at..).unwrap_or_default());
    Cow::Owned(out)
}

/// An error body as the API writes it.
#[must_use]
pub fn error_body(message: &str, kind: &str, param: Option<&str>, code: Option<&str>) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len().saturating_add(96));
    out.extend_from_slice(b"{\"error\":{\"message\":");
    write_string(&mut out, message);
    out.extend_from_slice(b",\"type\":");
    write_string(&mut out, kind);
    for (name, value) in [(",\"param\":", param), (",\"code\":", code)] {
        out.extend_from_slice(name.as_bytes());
        match value {
            Some(value) => write_string(&mut out, value),
            None => out.extend_from_slice(b"null"),
        }
    }
    out.extend_from_slice(b"}}");
    out
}
