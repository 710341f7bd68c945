//! Whether the store's usage is what the log says: each line that was counted is added up again and compared.
//!
//! It decides what can be compared: where files that were counted aren't here any more (removed by age, or another
//! node's), the store may know of more than the log, never of less. It changes nothing. Called by
//! `guan audit reconcile`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use rules::chain::Record;
use serde::Serialize;

use crate::audit_log::files::ChainFile;
use crate::clock;
use crate::store::{Store, StoreFault, Sums, UsageKey};
use crate::usage::add;

/// What the comparison gave.
#[derive(Debug, Default, Serialize)]
pub struct Reconciled {
    /// Files that were read.
    pub files: usize,
    /// Lines that the store has counted.
    pub counted: u64,
    /// Whole lines behind those: they are counted within a second while a server runs.
    pub uncounted: u64,
    /// Rows of usage that agree.
    pub agree: usize,
    /// Rows that don't.
    pub differ: Vec<Difference>,
    /// Files that were counted and aren't here.
    pub absent: Vec<String>,
}

/// A day of a key, project and model on which log and store differ.
#[derive(Debug, Serialize)]
pub struct Difference {
    /// The day, UTC.
    pub day: String,
    /// The key's id.
    pub key: String,
    /// Who paid; empty: nobody named.
    pub project: String,
    /// The model; empty: refused before it was known.
    pub model: String,
    /// What the log adds up to.
    pub log: Sums,
    /// What the store has.
    pub store: Sums,
}

/// Why nothing could be compared.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileFault {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreFault),
    /// A file.
    #[error("the log can't be read: {0}")]
    File(#[from] io::Error),
}

/// Compares the store's usage with these files.
///
/// # Errors
/// [`ReconcileFault`].
pub async fn reconcile(store: &Store, files: &[ChainFile]) -> Result<Reconciled, ReconcileFault> {
    let (mut cursors, kept) = store.whole_usage().await?;
    let mut done = Reconciled {
        files: files.len(),
        ..Reconciled::default()
    };
    let mut sums: BTreeMap<UsageKey, Sums> = BTreeMap::new();
    for file in files {
        let name = file.plain_name().unwrap_or_default();
        let counted = cursors.remove(&name).map_or(0, |cursor| cursor.seq);
        let counted = u64::try_from(counted).unwrap_or(0);
        let (mut lines, mut number) = (file.lines()?, 0_u64);
        while let Some((line, whole)) = lines.next_line()? {
            if !whole {
                break;
            }
            number = number.saturating_add(1);
            if number > counted {
                done.uncounted = done.uncounted.saturating_add(1);
            } else if let Ok(record) = serde_json::from_slice::<Record>(line) {
                add(&mut sums, record);
            }
        }
        done.counted = done.counted.saturating_add(counted.min(number));
    }
    done.absent = cursors.into_keys().collect();
    let all: BTreeSet<_> = sums.keys().chain(kept.keys()).cloned().collect();
    for of in all {
        let log = sums.get(&of).copied().unwrap_or_default();
        let store = kept.get(&of).copied().unwrap_or_default();
        // What was counted from a file that isn't here is missing from the log's side alone.
        let explained = !done.absent.is_empty()
            && log.calls <= store.calls
            && log.failed <= store.failed
            && log.input_tokens <= store.input_tokens
            && log.output_tokens <= store.output_tokens;
        if log == store || explained {
            done.agree = done.agree.saturating_add(1);
            continue;
        }
        let day = clock::rfc3339_seconds(of.day.saturating_mul(86_400));
        done.differ.push(Difference {
            day: day.split('T').next().unwrap_or_default().to_owned(),
            key: of.key,
            project: of.project,
            model: of.model,
            log,
            store,
        });
    }
    Ok(done)
}
