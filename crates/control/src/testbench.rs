//! For tests: a data folder's parts in a temporary folder, and a log that can be told to fail.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rules::chain::{Entry, Record};
use rules::key::Pepper;
use rules::snapshot;
use sqlx::{ConnectOptions, SqliteConnection};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::clock::{self, Clock};
use crate::keys::{Keys, NewKey};
use crate::publish::{Publisher, Swap};
use crate::store::Store;

pub(crate) const NOW: i64 = 1_800_000_000;
pub(crate) const BUSY: Duration = Duration::from_millis(200);

pub(crate) struct Bench {
    pub(crate) dir: TempDir,
    pub(crate) store: Store,
    pub(crate) keys: Keys,
    pub(crate) publisher: Publisher,
    pub(crate) pepper: Pepper,
    pub(crate) clock: Clock,
    /// What requests would read.
    pub(crate) seen: Arc<Mutex<snapshot::Keys>>,
    pub(crate) swaps: Arc<AtomicUsize>,
    /// What the log got and answered `true`.
    pub(crate) records: Arc<Mutex<Vec<Record>>>,
    /// What the log answers.
    pub(crate) log_works: Arc<AtomicBool>,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_within(&dir.path().join("guan.db"), BUSY)
            .await
            .unwrap();
        let (seen, swaps) = (Arc::default(), Arc::new(AtomicUsize::new(0)));
        let publisher = Publisher::new(store.clone(), swap(&seen, &swaps));
        let (to, mut from) = mpsc::channel::<Entry>(64);
        let records: Arc<Mutex<Vec<Record>>> = Arc::default();
        let log_works = Arc::new(AtomicBool::new(true));
        let (kept, works) = (Arc::clone(&records), Arc::clone(&log_works));
        let _log = tokio::spawn(async move {
            while let Some(entry) = from.recv().await {
                let works = works.load(Ordering::SeqCst);
                if works {
                    kept.lock().unwrap().push(entry.record);
                }
                (entry.done)(works);
            }
        });
        let pepper = Pepper::new(&[7; 32]);
        let clock = clock::fixed(i128::from(NOW) * 1_000_000_000);
        let keys = Keys::new(
            store.clone(),
            pepper.clone(),
            publisher.clone(),
            to,
            Arc::clone(&clock),
        );
        Self {
            dir,
            store,
            keys,
            publisher,
            pepper,
            clock,
            seen,
            swaps,
            records,
            log_works,
        }
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.dir.path().join("guan.db")
    }

    /// Whether requests with this key would find it, and find it good.
    pub(crate) fn accepts(&self, text: &str) -> Option<bool> {
        let digest = self.pepper.digest(text);
        let seen = self.seen.lock().unwrap();
        seen.find(&digest).map(|key| !key.revoked)
    }

    pub(crate) fn actions(&self) -> Vec<String> {
        let records = self.records.lock().unwrap();
        records.iter().map(|record| record.action.clone()).collect()
    }

    /// Another program that has the database and writes.
    pub(crate) async fn hold(&self) -> SqliteConnection {
        let mut other = sqlx::sqlite::SqliteConnectOptions::new()
            .filename(self.database())
            .connect()
            .await
            .unwrap();
        sqlx::raw_sql("BEGIN EXCLUSIVE")
            .execute(&mut other)
            .await
            .unwrap();
        other
    }
}

fn swap(seen: &Arc<Mutex<snapshot::Keys>>, swaps: &Arc<AtomicUsize>) -> Swap {
    let (seen, swaps) = (Arc::clone(seen), Arc::clone(swaps));
    Arc::new(move |keys| {
        *seen.lock().unwrap() = keys;
        let _before = swaps.fetch_add(1, Ordering::SeqCst);
    })
}

pub(crate) fn roles() -> Vec<String> {
    vec!["admin".to_owned(), "user".to_owned()]
}

pub(crate) fn new_key(name: &str) -> NewKey {
    NewKey {
        name: name.to_owned(),
        role: "user".to_owned(),
        project: None,
        expires_at: None,
    }
}
