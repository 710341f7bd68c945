//! The way from the store to the requests: an immutable snapshot of all keys, swapped whole.
//!
//! Decides when it is loaded anew: at once after each act of this node, when another node tells of one, each second
//! in case it couldn't, and when a request shows a key that nobody knows. Only what changed is read. Called by `keys`
//! and by the wiring; the gateway asks through a channel that the wiring joins.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rules::policy::Own;
use rules::snapshot::{self, Project, Projects, Secret};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::store::{Listener, Seen, Store, StoreFault, read_own};

/// Puts a snapshot where requests read it.
pub type Swap = Arc<dyn Fn(snapshot::Keys) + Send + Sync>;

/// All keys as they are in the store now.
///
/// # Errors
/// [`StoreFault`].
pub async fn load(store: &Store) -> Result<snapshot::Keys, StoreFault> {
    let mut view = View::default();
    view.follow(store).await?;
    Ok(view.keys)
}

/// What was read so far.
#[derive(Default)]
struct View {
    keys: snapshot::Keys,
    revision: i64,
    /// One text for all keys of a role or project.
    words: HashMap<String, Arc<str>>,
    owns: HashMap<String, Option<Arc<Own>>>,
}

impl View {
    /// Reads what changed. `false`: nothing did.
    async fn follow(&mut self, store: &Store) -> Result<bool, StoreFault> {
        // Read first: what is committed while the rows are read is read again next time.
        let revision = store.revision().await?;
        if revision == self.revision {
            return Ok(false);
        }
        if revision < self.revision {
            // A database of an earlier time was put in its place: nothing that was read holds.
            *self = Self::default();
        }
        let rows = store.seen_since(self.revision).await?;
        let mut projects = Projects::new();
        for row in store.projects().await? {
            let project = Project {
                enabled: row.enabled,
                own: row.own,
            };
            let _none = projects.insert(self.word(row.name), project);
        }
        let mut secrets = Vec::with_capacity(rows.len());
        let mut ids: HashMap<rules::key::KeyId, Arc<snapshot::Key>> = HashMap::new();
        for row in rows {
            let (digest, until) = (row.digest, row.valid_until.unwrap_or(i64::MAX));
            let key = match ids.get(&row.id) {
                Some(key) => Arc::clone(key),
                None => self.key(row)?,
            };
            // Of a million keys few have two secrets; those are worth sharing, the rest isn't worth an entry.
            if until != i64::MAX {
                let _before = ids.insert(key.id, Arc::clone(&key));
            }
            secrets.push(Secret { digest, key, until });
        }
        self.keys = self.keys.with(secrets).with_projects(projects);
        self.revision = revision;
        Ok(true)
    }

    fn key(&mut self, row: Seen) -> Result<Arc<snapshot::Key>, StoreFault> {
        Ok(Arc::new(snapshot::Key {
            id: row.id,
            name: row.name.into(),
            role: self.word(row.role),
            project: row.project.map(|name| self.word(name)),
            not_before: row.not_before,
            expires_at: row.expires_at,
            revoked: row.revoked,
            own: self.own(&row.own)?,
        }))
    }

    fn word(&mut self, text: String) -> Arc<str> {
        if let Some(word) = self.words.get(&text) {
            return Arc::clone(word);
        }
        let word: Arc<str> = text.as_str().into();
        let _none = self.words.insert(text, Arc::clone(&word));
        word
    }

    /// Keys made alike share what they narrow; the table of texts doesn't grow without end.
    fn own(&mut self, text: &str) -> Result<Option<Arc<Own>>, StoreFault> {
        if let Some(own) = self.owns.get(text) {
            return Ok(own.clone());
        }
        let own = read_own(text)?;
        let own = (!own.is_empty()).then(|| Arc::new(own));
        if self.owns.len() < MOST_SHARED {
            let _none = self.owns.insert(text.to_owned(), own.clone());
        }
        Ok(own)
    }
}

/// Loads the keys and swaps them in. Clones share one order: an older view never replaces a newer one.
#[derive(Clone)]
pub struct Publisher {
    store: Store,
    /// `None`: nobody reads.
    swap: Option<Swap>,
    view: Arc<Mutex<View>>,
}

impl Publisher {
    /// Into a running server.
    #[must_use]
    pub fn new(store: Store, swap: Swap) -> Self {
        Self {
            store,
            swap: Some(swap),
            view: Arc::default(),
        }
    }

    /// For a command that acts while no server runs: nobody reads, so nothing is loaded.
    #[must_use]
    pub fn nobody(store: Store) -> Self {
        Self {
            store,
            swap: None,
            view: Arc::default(),
        }
    }

    /// Loads and swaps now. Takes at most a minute.
    ///
    /// # Errors
    /// [`StoreFault`]: requests go on reading the view before.
    pub async fn publish(&self) -> Result<(), StoreFault> {
        let Some(swap) = &self.swap else {
            return Ok(());
        };
        let mut view = self.view.lock().await;
        // The first reads all there is; later ones find the store slow only if it hangs.
        let limit = if view.revision == 0 { FIRST_LOAD } else { LOAD };
        let changed = timeout(limit, Box::pin(view.follow(&self.store)))
            .await
            .map_err(|_elapsed| StoreFault::Unreachable("no answer in time".to_owned()))??;
        if changed {
            swap(view.keys.clone());
        }
        Ok(())
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}

/// A request's question: is there such a key now? `true`: a view is in force that is younger than the question.
pub type Question = oneshot::Sender<bool>;

/// Keeps the view young: for other nodes' changes, and for requests whose key nobody knows.
///
/// Ends when the asking side is dropped. `heard` is called after each successful look at the store.
pub async fn follow(
    publisher: Publisher,
    mut questions: mpsc::Receiver<Question>,
    heard: impl Fn() + Send,
) {
    let mut ear = Ear {
        store: publisher.store.clone(),
        listener: None,
        again: Instant::now(),
    };
    let mut asked: Vec<Question> = Vec::new();
    let mut healthy = true;
    let mut last_for_question: Option<Instant> = None;
    loop {
        // A key that nobody knows brings one look a second for all who ask: made-up keys can't keep the store busy.
        let due = last_for_question
            .and_then(|last| last.checked_add(EVERY))
            .unwrap_or_else(Instant::now);
        tokio::select! {
            biased;
            got = questions.recv_many(&mut asked, MOST_ASKED), if asked.len() < MOST_ASKED => {
                if got == 0 {
                    return;
                }
                continue;
            }
            () = sleep_until(due), if !asked.is_empty() => last_for_question = Some(Instant::now()),
            () = ear.hears() => {}
            () = sleep(EVERY) => {}
        }
        let result = publisher.publish().await;
        if let Err(fault) = &result
            && healthy
        {
            tracing::error!(%fault, "the store can't be read: known keys go on working, unknown ones get 503");
        } else if result.is_ok() && !healthy {
            tracing::info!("the store can be read again");
        }
        healthy = result.is_ok();
        if healthy {
            heard();
        }
        for question in asked.drain(..) {
            // Who has left needs no answer.
            let _gone = question.send(healthy);
        }
    }
}

/// The listener, made again when it was lost.
struct Ear {
    store: Store,
    listener: Option<Listener>,
    again: Instant,
}

impl Ear {
    /// Returns when something may have changed; never, where nobody else can change anything.
    async fn hears(&mut self) {
        loop {
            match &mut self.listener {
                Some(listener) => match listener.changed().await {
                    Ok(()) => return,
                    Err(fault) => {
                        tracing::warn!(%fault, "changes of other nodes aren't heard; the store is looked at each second instead");
                        self.listener = None;
                    }
                },
                None if !self.store.is_shared() => return std::future::pending().await,
                None => {
                    sleep_until(self.again).await;
                    self.again = Instant::now()
                        .checked_add(EVERY)
                        .unwrap_or_else(Instant::now);
                    if let Ok(Some(listener)) = self.store.listen().await {
                        self.listener = Some(listener);
                        // Something may have changed while nobody listened.
                        return;
                    }
                }
            }
        }
    }
}

const EVERY: Duration = Duration::from_secs(1);
const FIRST_LOAD: Duration = Duration::from_secs(60);
const LOAD: Duration = Duration::from_secs(5);
const MOST_SHARED: usize = 10_000;
/// Requests that may wait for a look at the store at the same time.
pub const MOST_ASKED: usize = 256;

#[cfg(test)]
mod tests;
