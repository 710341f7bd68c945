//! Usage: the chains of this node, read once and summed a key, project, model and day.
//!
//! The chain is the only source: each batch of lines is added in the transaction that moves the chain's cursor, so a
//! line is counted once whatever dies in between, and a store that was away is caught up with when it is back. Also
//! says that the node lives. Called by the wiring.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rules::chain::Record;
use rules::key::KeyId;

use crate::audit_log::files::list;
use crate::clock;
use crate::store::{Cursor, NodeRow, Store, StoreFault, Sums, UsageKey};

/// Counts what was recorded, each second, until it is dropped; and says each ten seconds that the node lives.
pub async fn count(
    store: Store,
    dir: PathBuf,
    mut node: NodeRow,
    now: impl Fn() -> i64 + Send,
) -> ! {
    let mut counter = Counter::new(store.clone(), dir, node.id.clone());
    let mut said = 0;
    let mut healthy = true;
    loop {
        let mut result = counter.catch_up().await;
        let at = now();
        if result.is_ok() && at >= said {
            node.seen_at = at;
            result = store.node_lives(&node).await;
            said = at.saturating_add(ALIVE_EVERY);
        }
        match &result {
            Err(fault) if healthy => {
                tracing::warn!(%fault, "usage isn't counted now; the records are kept and counted later");
            }
            Ok(()) if !healthy => tracing::info!("usage is counted again"),
            Ok(()) | Err(_) => {}
        }
        healthy = result.is_ok();
        tokio::time::sleep(EVERY).await;
    }
}

/// Counts now what was recorded and isn't counted yet: before a server decides by it.
///
/// # Errors
/// When the store doesn't answer, or the chains can't be read.
pub async fn catch_up(store: &Store, dir: PathBuf, node: &str) -> Result<(), StoreFault> {
    Counter::new(store.clone(), dir, node.to_owned())
        .catch_up()
        .await
}

/// Where each chain of this node stands.
pub(crate) struct Counter {
    store: Store,
    dir: PathBuf,
    node: String,
    /// Of chains that were looked at in this process.
    cursors: HashMap<String, Cursor>,
}

/// What a part of a chain sums up to.
#[derive(Debug, Default)]
struct Batch {
    sums: BTreeMap<UsageKey, Sums>,
    uses: HashMap<KeyId, i64>,
    to: Cursor,
    lines: usize,
}

impl Counter {
    pub(crate) fn new(store: Store, dir: PathBuf, node: String) -> Self {
        Self {
            store,
            dir,
            node,
            cursors: HashMap::new(),
        }
    }

    /// Counts all whole lines that aren't counted yet.
    pub(crate) async fn catch_up(&mut self) -> Result<(), StoreFault> {
        let unreadable = |cause: io::Error| StoreFault::Failed(format!("state/audit: {cause}"));
        for (name, length) in chains(&self.dir, &self.node).map_err(unreadable)? {
            loop {
                let at = match self.cursors.get(&name) {
                    Some(cursor) => *cursor,
                    None => self.store.cursor(&name).await?,
                };
                let _before = self.cursors.insert(name.clone(), at);
                if i64::try_from(length).is_ok_and(|length| at.offset >= length) {
                    break;
                }
                let batch = read(&self.dir.join(&name), at).map_err(unreadable)?;
                if batch.lines == 0 {
                    break;
                }
                let uses: Vec<(KeyId, i64)> = batch.uses.into_iter().collect();
                self.store
                    .add_usage(&name, batch.to, &batch.sums, &uses)
                    .await?;
                let _before = self.cursors.insert(name.clone(), batch.to);
            }
        }
        Ok(())
    }
}

/// Names and lengths of the files of a node's chains. A packed one was counted before it was packed.
fn chains(dir: &Path, node: &str) -> io::Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    for file in list(dir)? {
        if file.node == node && !file.packed {
            let length = file.path.metadata()?.len();
            found.extend(file.name().map(|name| (name, length)));
        }
    }
    Ok(found)
}

fn read(path: &Path, from: Cursor) -> io::Result<Batch> {
    let mut file = BufReader::new(File::open(path)?);
    let _at = file.seek(SeekFrom::Start(u64::try_from(from.offset).unwrap_or(0)))?;
    let mut batch = Batch {
        to: from,
        ..Batch::default()
    };
    let mut line = Vec::new();
    while batch.lines < MOST_LINES {
        line.clear();
        let size = file.read_until(b'\n', &mut line)?;
        if size == 0 || !line.ends_with(b"\n") {
            // The rest of this line isn't written yet.
            break;
        }
        batch.lines = batch.lines.saturating_add(1);
        batch.to.seq = batch.to.seq.saturating_add(1);
        batch.to.offset = batch
            .to
            .offset
            .saturating_add(i64::try_from(size).unwrap_or(0));
        if let Ok(record) = serde_json::from_slice::<Record>(&line) {
            batch.note(&record);
            add(&mut batch.sums, record);
        }
    }
    Ok(batch)
}

impl Batch {
    /// When the key was used.
    fn note(&mut self, record: &Record) {
        let (Some(_), Some(key)) = (&record.call, &record.user_id) else {
            return;
        };
        let at = clock::parse_rfc3339(&record.timestamp).unwrap_or(0);
        if let Ok(id) = KeyId::parse(key) {
            let used = self.uses.entry(id).or_insert(at);
            *used = (*used).max(at);
        }
    }
}

/// Adds what a record of a call says to the sums of its day, key, project and model.
pub(crate) fn add(sums: &mut BTreeMap<UsageKey, Sums>, record: Record) {
    let (Some(call), Some(key)) = (record.call, record.user_id) else {
        return;
    };
    let at = clock::parse_rfc3339(&record.timestamp).unwrap_or(0);
    let of = UsageKey {
        day: at.div_euclid(DAY),
        key,
        project: call.project.unwrap_or_default(),
        model: call.model.unwrap_or_default(),
    };
    let tokens = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let sum = sums.entry(of).or_default();
    sum.calls = sum.calls.saturating_add(1);
    if record.outcome != "success" {
        sum.failed = sum.failed.saturating_add(1);
    }
    sum.input_tokens = sum.input_tokens.saturating_add(tokens(call.charged.input));
    sum.output_tokens = sum
        .output_tokens
        .saturating_add(tokens(call.charged.output));
}

const EVERY: Duration = Duration::from_secs(1);
/// Seconds.
const ALIVE_EVERY: i64 = 10;
const DAY: i64 = 86_400;
/// Lines a transaction.
const MOST_LINES: usize = 4096;

#[cfg(test)]
mod tests {
    use rules::measure::{Ending, Source, Tokens};

    use super::*;
    use crate::actor::Actor;
    use crate::store::UsageBy;
    use crate::testbench::{Bench, new_key, roles};

    fn line(key: &str, model: &str, good: bool) -> String {
        let call = rules::chain::Call {
            project: None,
            model: Some(model.to_owned()),
            ending: Ending::Finished,
            stream: false,
            charged: Tokens {
                input: 3,
                output: 5,
            },
            source: Source::Reported,
            reserved: Tokens {
                input: 3,
                output: 5,
            },
            taken_ns: None,
            replica: None,
            attempts: 1,
            first_byte_ns: None,
            request_bytes: 1,
            dropped: Vec::new(),
        };
        let outcome = if good { "success" } else { "failure" };
        let record = serde_json::json!({
            "@timestamp": "2026-01-02T00:00:00.000000000Z", "event.action": "model-request",
            "event.outcome": outcome, "user.id": key, "guan.call": call,
        });
        format!("{record}\n")
    }

    #[tokio::test]
    async fn each_line_counts_once_whatever_ends_in_between() {
        let bench = Bench::new().await;
        let key = bench
            .keys
            .create(new_key("a"), &roles(), &Actor::local(0))
            .await
            .unwrap()
            .id;
        let dir = tempfile::tempdir().unwrap();
        let chain = dir.path().join("n-7.jsonl");
        let text = line(key.as_str(), "m", true) + &line(key.as_str(), "m", false);
        let torn = line(key.as_str(), "m", true);
        let (begun, rest) = torn.split_at(40);
        std::fs::write(&chain, format!("{text}{begun}")).unwrap();
        // Somebody else's chain isn't ours to count.
        std::fs::write(dir.path().join("other-7.jsonl"), &text).unwrap();
        let counter = || Counter::new(bench.store.clone(), dir.path().to_owned(), "n".to_owned());
        let calls = || async {
            let rows = bench.store.usage(UsageBy::Key, 0).await.unwrap();
            rows.first().map_or(Sums::default(), |row| row.sums)
        };
        counter().catch_up().await.unwrap();
        counter().catch_up().await.unwrap();
        let sums = Sums {
            calls: 2,
            failed: 1,
            input_tokens: 6,
            output_tokens: 10,
        };
        assert_eq!(calls().await, sums);
        std::fs::write(&chain, format!("{text}{begun}{rest}")).unwrap();
        counter().catch_up().await.unwrap();
        assert_eq!(calls().await.calls, 3);
        let row = &bench.keys.list().await.unwrap()[0];
        assert_eq!(row.last_used, clock::parse_rfc3339("2026-01-02T00:00:00Z"));
    }
}
