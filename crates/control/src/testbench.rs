//! For tests: a data folder's parts in a temporary folder, and a log that can be told to fail.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rules::chain::{Entry, Record};
use rules::key::Pepper;
use rules::policy::Role;
use rules::snapshot::{self, Roles};
use sqlx::{ConnectOptions, SqliteConnection};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::clock::{self, Clock};
use crate::keys::{Keys, NewKey};
use crate::publish::{Publisher, Swap};
use crate::seal::file::Kek;
use crate::seal::{Envelope, FACT, Kms, PEPPER};
use crate::secrets::Secrets;
use crate::store::{Server, Store, Target};

pub(crate) const NOW: i64 = 1_800_000_000;
pub(crate) const BUSY: Duration = Duration::from_millis(200);

pub(crate) struct Bench {
    pub(crate) dir: TempDir,
    pub(crate) store: Store,
    pub(crate) keys: Keys,
    pub(crate) publisher: Publisher,
    pub(crate) pepper: Pepper,
    pub(crate) clock: Clock,
    pub(crate) audit: mpsc::Sender<Entry>,
    /// What requests would read.
    pub(crate) seen: Arc<Mutex<snapshot::Keys>>,
    /// What the log got and answered `true`.
    pub(crate) records: Arc<Mutex<Vec<Record>>>,
    /// What the log answers.
    pub(crate) log_works: Arc<AtomicBool>,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let target = Target::Sqlite(dir.path().join("guan.db"));
        Self::on(dir, &target).await
    }

    /// On a database of the caller's choice.
    pub(crate) async fn on(dir: TempDir, target: &Target) -> Self {
        let store = {
            let patience = match target {
                Target::Sqlite(_) => BUSY,
                Target::Postgres(_) => BUSY * 50,
            };
            Store::open_within(target, patience).await.unwrap()
        };
        let seen = Arc::default();
        let publisher = Publisher::new(store.clone(), swap(&seen));
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
            to.clone(),
            Arc::clone(&clock),
        );
        Self {
            dir,
            store,
            keys,
            publisher,
            pepper,
            clock,
            audit: to,
            seen,
            records,
            log_works,
        }
    }

    /// Gives the store a data key under a key file in `secrets/`, and what acts on it; `kms` is what the config says.
    pub(crate) async fn secrets(&self, kms: Kms) -> Secrets {
        let folder = self.dir.path().join("secrets");
        let (envelope, _pepper) = match Envelope::open(&self.store, &kms, &folder).await.unwrap() {
            Some(opened) => opened,
            None => {
                std::fs::create_dir(&folder).unwrap();
                let kek = Kek::create(&folder).unwrap();
                let made = Envelope::make(&kek).await.unwrap();
                let pepper = made.envelope.seal(PEPPER, &[7; 32]).unwrap();
                let facts: [(&str, &[u8]); 2] = [(FACT, &made.fact), (PEPPER, &pepper)];
                self.store.add_facts(&facts).await.unwrap();
                Envelope::open(&self.store, &kms, &folder)
                    .await
                    .unwrap()
                    .unwrap()
            }
        };
        Secrets::new(
            envelope,
            self.store.clone(),
            self.audit.clone(),
            Arc::clone(&self.clock),
            Arc::new(move || kms.clone()),
            folder,
        )
    }

    pub(crate) fn kms(&self) -> Kms {
        Kms::in_folder(self.dir.path())
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.dir.path().join("guan.db")
    }

    /// Whether requests with this key would find it, and find it good.
    pub(crate) fn accepts(&self, text: &str) -> Option<bool> {
        self.accepts_at(text, NOW)
    }

    /// The same at another time.
    pub(crate) fn accepts_at(&self, text: &str, now: i64) -> Option<bool> {
        let digest = self.pepper.digest(text);
        let seen = self.seen.lock().unwrap();
        let _there = seen.find(&digest)?;
        Some(seen.judge(&digest, now, [127, 0, 0, 1].into()).is_ok())
    }

    /// What requests with this key would be narrowed to.
    pub(crate) fn own_of(&self, text: &str) -> Option<rules::policy::Own> {
        let digest = self.pepper.digest(text);
        let seen = self.seen.lock().unwrap();
        let own = seen.find(&digest)?.key.own.clone();
        Some(own.map_or_else(Default::default, |own| own.as_ref().clone()))
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

fn swap(seen: &Arc<Mutex<snapshot::Keys>>) -> Swap {
    let seen = Arc::clone(seen);
    Arc::new(move |keys| *seen.lock().unwrap() = keys)
}

/// A new database on a PostgreSQL server of this test process, where its packages are installed.
pub(crate) fn postgres() -> Option<Target> {
    let url = testkit::postgres::database()?;
    Some(Target::Postgres(Server {
        url,
        password: None,
    }))
}

/// Acts of another node on the same store: this node's requests learn of them by the store only.
pub(crate) fn elsewhere(bench: &Bench) -> Keys {
    let (to, mut from) = mpsc::channel::<Entry>(4);
    let _task = tokio::spawn(async move {
        while let Some(entry) = from.recv().await {
            (entry.done)(true);
        }
    });
    Keys::new(
        bench.store.clone(),
        bench.pepper.clone(),
        Publisher::nobody(bench.store.clone()),
        to,
        Arc::clone(&bench.clock),
    )
}

pub(crate) fn roles() -> Roles {
    Role::defaults()
}

pub(crate) fn new_key(name: &str) -> NewKey {
    NewKey {
        name: name.to_owned(),
        role: "user".to_owned(),
        ..NewKey::default()
    }
}

/// All at once, on this task.
pub(crate) async fn futures_of<F: Future>(all: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut open: Vec<_> = all.map(|one| (Box::pin(one), None)).collect();
    std::future::poll_fn(move |context| {
        let mut is_whole = true;
        for (one, done) in &mut open {
            if done.is_none() {
                match one.as_mut().poll(context) {
                    std::task::Poll::Ready(output) => *done = Some(output),
                    std::task::Poll::Pending => is_whole = false,
                }
            }
        }
        if is_whole {
            let outputs = std::mem::take(&mut open).into_iter();
            return std::task::Poll::Ready(outputs.filter_map(|(_, done)| done).collect());
        }
        std::task::Poll::Pending
    })
    .await
}
