//! Audit records and the chain that holds them together.
//!
//! One JSON line a record, Elastic Common Schema names; each line carries its number and the SHA-256 of the line
//! before, so a changed, removed, inserted or reordered line shows ([`verify`]). The first line of a chain names the
//! head of the chain before it; checkpoints in it are signed. Written by `control::audit_log`, filled by `gateway::record` and `control::api`.

mod checkpoint;
pub mod verify;

use std::fmt;

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

use crate::ident::RequestId;
use crate::measure::{Ending, Source, Tokens};

pub use checkpoint::{Checkpoint, PublicKey, Signer};

/// The hash of a line without its newline.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Head([u8; 32]);

impl Head {
    /// What the first line of the first chain names.
    pub const NONE: Self = Self([0; 32]);

    /// Of a line.
    #[must_use]
    pub fn of(line: &[u8]) -> Self {
        let mut out = [0; 32];
        for (to, from) in out
            .iter_mut()
            .zip(digest::digest(&digest::SHA256, line).as_ref())
        {
            *to = *from;
        }
        Self(out)
    }

    /// Reads the 64 hex digits.
    #[must_use]
    pub fn parse(hex: &str) -> Option<Self> {
        let mut out = [0; 32];
        if hex.len() != 64 || !hex.is_ascii() {
            return None;
        }
        for (to, pair) in out.iter_mut().zip(hex.as_bytes().chunks(2)) {
            *to = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(out))
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a chain stands: the next line's number and the hash of the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The number of the next line, from 0.
    pub seq: u64,
    /// The hash of the line before.
    pub head: Head,
}

impl Link {
    /// Appends `record` as one line (newline included) to `out` and moves on.
    ///
    /// # Errors
    /// When the record can't be written as JSON.
    pub fn append(&mut self, record: &Record, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        let start = out.len();
        let chained = Chained {
            chain: Chain {
                seq: self.seq,
                prev: self.head.to_string(),
            },
            record,
        };
        serde_json::to_writer(&mut *out, &chained)?;
        self.head = Head::of(out.get(start..).unwrap_or_default());
        self.seq = self.seq.saturating_add(1);
        out.push(b'\n');
        Ok(())
    }
}

#[derive(Serialize)]
struct Chained<'a> {
    #[serde(rename = "guan.chain")]
    chain: Chain,
    #[serde(flatten)]
    record: &'a Record,
}

/// A line's place in its chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Its number.
    pub seq: u64,
    /// The hash of the line before, hex.
    pub prev: String,
}

/// One audit record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When it ended, RFC 3339 with nanoseconds, UTC.
    #[serde(rename = "@timestamp")]
    pub timestamp: String,
    /// What happened: `model-request`, `key-create`, `key-revoke`, `chain-start`, `unauthenticated`.
    #[serde(rename = "event.action")]
    pub action: String,
    /// `success` or `failure`.
    #[serde(rename = "event.outcome")]
    pub outcome: String,
    /// A refusal's word, or more about a failure.
    #[serde(
        rename = "event.reason",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub reason: Option<String>,
    /// From arrival to the end, nanoseconds.
    #[serde(
        rename = "event.duration",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub duration_ns: Option<u64>,
    /// The peer's address.
    #[serde(rename = "source.ip", skip_serializing_if = "Option::is_none", default)]
    pub source_ip: Option<String>,
    /// Key id, or `local:UID` for an act on the admin socket.
    #[serde(rename = "user.id", skip_serializing_if = "Option::is_none", default)]
    pub user_id: Option<String>,
    /// Role.
    #[serde(
        rename = "user.roles",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub role: Option<String>,
    /// Who the caller is to whoever vouches for him; absent where the key is all there is.
    #[serde(
        rename = "guan.identity",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub identity: Option<Identity>,
    /// HTTP status that was answered.
    #[serde(
        rename = "http.response.status_code",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub status: Option<u16>,
    /// Path of the endpoint: one of the closed list.
    #[serde(rename = "url.path", skip_serializing_if = "Option::is_none", default)]
    pub path: Option<String>,
    /// Request id.
    #[serde(
        rename = "http.request.id",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub request_id: Option<String>,
    /// What only Guan knows of a call.
    #[serde(rename = "guan.call", skip_serializing_if = "Option::is_none", default)]
    pub call: Option<Call>,
    /// What was done to what, for admin acts; names only.
    #[serde(rename = "guan.act", skip_serializing_if = "Option::is_none", default)]
    pub act: Option<serde_json::Value>,
}

/// A caller who has no key of ours: whose id in `user.id` is made of these words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Who made his token.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub issuer: Option<String>,
    /// Who he is there.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub subject: Option<String>,
    /// The name in his client certificate that a rule fits.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub certificate: Option<String>,
    /// The certificate's SHA-256.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fingerprint: Option<String>,
}

/// A model call's own figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Who pays.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub project: Option<String>,
    /// Public name of the model; absent when the call was refused before it was known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub model: Option<String>,
    /// How it ended.
    pub ending: Ending,
    /// A stream.
    pub stream: bool,
    /// What was charged.
    pub charged: Tokens,
    /// Where that figure comes from.
    pub source: Source,
    /// What was reserved.
    pub reserved: Tokens,
    /// When a request limit was taken, nanoseconds since 1970: what a limiter is rebuilt from.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub taken_ns: Option<u64>,
    /// The replica that had it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub replica: Option<String>,
    /// Attempts made at upstreams.
    pub attempts: u32,
    /// From arrival to the first byte of the answer's body, nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub first_byte_ns: Option<u64>,
    /// Size of the request body, bytes.
    pub request_bytes: u64,
    /// Members that were dropped from the body.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub dropped: Vec<String>,
}

/// A record on its way to the log, with what waits for it.
pub struct Entry {
    /// What is written.
    pub record: Record,
    /// Called once by the audit thread: `true` once the kernel has the line, `false` when it couldn't be written.
    pub done: Box<dyn FnOnce(bool) + Send>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("record", &self.record)
            .finish_non_exhaustive()
    }
}

/// A call found in the chain, from which a limiter is rebuilt after a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastCall {
    /// The caller's id.
    pub key: String,
    /// His role, as it was recorded.
    pub role: Option<String>,
    /// Who paid, as it was recorded.
    pub project: Option<String>,
    /// The model's public name.
    pub model: Option<String>,
    /// When its limits were taken, nanoseconds since 1970.
    pub taken_ns: u64,
    /// What was charged.
    pub charged: Tokens,
    /// Its process died with it: its id, and what it had reserved.
    pub cut: Option<(RequestId, Tokens)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(reason: &str) -> Record {
        Record {
            timestamp: "2026-01-01T00:00:00.000000000Z".into(),
            action: "model-request".into(),
            outcome: "failure".into(),
            reason: Some(reason.into()),
            duration_ns: None,
            source_ip: None,
            user_id: None,
            role: None,
            identity: None,
            status: None,
            path: None,
            request_id: None,
            call: None,
            act: None,
        }
    }

    #[test]
    fn each_line_names_the_hash_of_the_one_before_and_reads_back() {
        let mut link = Link {
            seq: 0,
            head: Head::NONE,
        };
        let mut out = Vec::new();
        for reason in ["a", "line\nbreak \u{1b}[31m \0", "ü"] {
            link.append(&record(reason), &mut out).unwrap();
        }
        let lines: Vec<&[u8]> = out
            .split(|&b| b == b'\n')
            .filter(|l| !l.is_empty())
            .collect();
        assert_eq!(lines.len(), 3);
        let mut head = Head::NONE;
        for (number, line) in lines.iter().enumerate() {
            let value: serde_json::Value = serde_json::from_slice(line).unwrap();
            let chain: Chain = serde_json::from_value(value["guan.chain"].clone()).unwrap();
            assert_eq!(
                (chain.seq, Head::parse(&chain.prev).unwrap()),
                (number as u64, head)
            );
            head = Head::of(line);
            let _back: Record = serde_json::from_slice(line).unwrap();
        }
        assert_eq!(link, Link { seq: 3, head });
    }
}
