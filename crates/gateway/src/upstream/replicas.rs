//! What each replica has to do at the moment: calls that run on it, and the tokens that they may hold.
//!
//! Kept beside the config, so that a reload forgets nothing of a replica that stays. A call's part is a value that
//! lives as long as its answer: given back by `Drop`, whatever way it ends. Read by `deliver::balance`, taken by
//! `deliver::forward`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arc_swap::ArcSwap;

use crate::settings::{Replica, Settings, Target};

/// The replicas of all models.
#[derive(Debug, Default)]
pub(crate) struct Replicas(ArcSwap<HashMap<String, Vec<Arc<State>>>>);

/// One replica of one model.
#[derive(Debug)]
pub(crate) struct State {
    target: Target,
    base_path: String,
    running: AtomicU32,
    tokens: AtomicU64,
}

impl State {
    fn new(replica: &Replica) -> Self {
        Self {
            target: replica.target.clone(),
            base_path: replica.base_path.clone(),
            running: AtomicU32::new(0),
            tokens: AtomicU64::new(0),
        }
    }

    fn is_of(&self, replica: &Replica) -> bool {
        self.target == replica.target && self.base_path == replica.base_path
    }

    /// Calls that run on it.
    pub(crate) fn running(&self) -> u32 {
        self.running.load(Ordering::Relaxed)
    }
}

impl Replicas {
    /// Takes up the replicas of a config. What runs on one that is gone runs on.
    pub(crate) fn take_up(&self, settings: &Settings) {
        let before = self.0.load();
        let states = settings.models.values().map(|model| {
            let known = before.get(&model.name);
            let of = |replica| {
                let known = known.and_then(|all| all.iter().find(|state| state.is_of(replica)));
                known.map_or_else(|| Arc::new(State::new(replica)), Arc::clone)
            };
            (model.name.clone(), model.replicas.iter().map(of).collect())
        });
        self.0.store(Arc::new(states.collect()));
    }

    /// One of them; a new one where a reload has taken it away.
    pub(crate) fn state(&self, model: &str, replica: &Replica) -> Arc<State> {
        let all = self.0.load();
        let known = all
            .get(model)
            .and_then(|all| all.iter().find(|state| state.is_of(replica)));
        known.map_or_else(|| Arc::new(State::new(replica)), Arc::clone)
    }

    /// A call of `tokens` goes to one of them.
    pub(crate) fn take(&self, model: &str, replica: &Replica, tokens: u64) -> Load {
        let state = self.state(model, replica);
        state.running.fetch_add(1, Ordering::Relaxed);
        state.tokens.fetch_add(tokens, Ordering::Relaxed);
        Load { state, tokens }
    }
}

/// What a call takes of its replica. Dropped, it is given back.
#[derive(Debug)]
pub(crate) struct Load {
    state: Arc<State>,
    tokens: u64,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.state.running.fetch_sub(1, Ordering::Relaxed);
        self.state.tokens.fetch_sub(self.tokens, Ordering::Relaxed);
    }
}
