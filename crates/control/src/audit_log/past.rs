//! Calls of the recent past, found in the chains: what a limiter is rebuilt from after a restart.
//!
//! It reads whatever lines make sense and passes over the rest: a torn line costs a call in a limit, never a start.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rules::chain::PastCall;
use rules::measure::Tokens;
use serde::Deserialize;

use super::EXTENSION;
use super::backwards::Backwards;
use crate::clock;

/// Calls whose request limit was taken at `since_ns` (nanoseconds since 1970) or later, oldest first. Reads only
/// files that were written since, each from its end.
#[must_use]
pub fn past_calls(dir: &Path, since_ns: u64) -> Vec<PastCall> {
    let mut calls = Vec::new();
    for path in written_since(dir, since_ns) {
        if let Err(cause) = scan(&path, since_ns, &mut calls) {
            tracing::warn!(file = %path.display(), %cause, "audit file not read to its end: its calls may be missing from limits");
        }
    }
    calls.sort_by_key(|call| call.taken_ns);
    calls
}

fn written_since(dir: &Path, since_ns: u64) -> Vec<PathBuf> {
    let since = UNIX_EPOCH
        .checked_add(Duration::from_nanos(since_ns))
        .and_then(|at| at.checked_sub(COARSE))
        .unwrap_or(UNIX_EPOCH);
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(cause) => {
            tracing::warn!(folder = %dir.display(), %cause, "audit folder not read: limits start empty");
            return Vec::new();
        }
    };
    let mut files: Vec<(SystemTime, PathBuf)> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == EXTENSION))
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .filter(|(written, _)| *written >= since)
        .collect();
    files.sort_by(|a, b| b.cmp(a));
    files.into_iter().map(|(_, path)| path).collect()
}

fn scan(path: &Path, since_ns: u64, calls: &mut Vec<PastCall>) -> io::Result<()> {
    let file = File::open(path)?;
    // A record is written when its call ends, which is never before its limit was taken.
    let oldest = clock::rfc3339_nanos(i128::from(since_ns).saturating_sub(DISORDER_NS));
    let mut old = 0_u32;
    for line in Backwards::new(&file)? {
        let line = line?;
        let Ok(seen) = serde_json::from_slice::<Seen>(&line.bytes) else {
            continue;
        };
        if let (Some(key), Some(call)) = (seen.user_id, seen.call)
            && let Some(taken_ns) = call.taken_ns.filter(|taken| *taken >= since_ns)
        {
            calls.push(PastCall {
                key,
                role: seen.role,
                project: call.project,
                model: call.model,
                taken_ns,
                charged: call.charged,
                cut: None,
            });
        }
        // Texts of one form and width sort as times do. A clock that was set back makes a few lines look old.
        if seen.timestamp.len() == oldest.len() && seen.timestamp < oldest {
            old = old.saturating_add(1);
        } else {
            old = 0;
        }
        if old == ENOUGH_OLD {
            break;
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct Seen {
    #[serde(rename = "@timestamp")]
    timestamp: String,
    #[serde(rename = "user.id")]
    user_id: Option<String>,
    #[serde(rename = "user.roles")]
    role: Option<String>,
    #[serde(rename = "guan.call")]
    call: Option<SeenCall>,
}

#[derive(Deserialize)]
struct SeenCall {
    taken_ns: Option<u64>,
    project: Option<String>,
    model: Option<String>,
    #[serde(default)]
    charged: Tokens,
}

/// File times come from a clock of the kernel that lags behind by a tick.
const COARSE: Duration = Duration::from_secs(1);
/// Old lines in a row after which no newer one is expected.
const ENOUGH_OLD: u32 = 256;
/// Records of calls that ended at the same time may stand in another order than their timestamps.
const DISORDER_NS: i128 = 60 * 1_000_000_000;
