//! Whether the key service still opens this store's data key, as it was when somebody last looked.
//!
//! It decides what counts as reachable and when a change is logged; it asks nobody. `secrets` notes each look here,
//! whoever shows the state reads it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use schemars::JsonSchema;
use serde::Serialize;

use super::SealFault;
use crate::clock;

/// What the last look gave. Clones share it.
#[derive(Clone, Debug)]
pub struct Health(Arc<Mutex<KmsState>>);

/// A key service as it was last seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct KmsState {
    /// It opened the store's data key.
    pub reachable: bool,
    /// Since when it does, or doesn't, seconds since 1970.
    #[serde(with = "clock::text")]
    #[schemars(with = "clock::Stamp")]
    pub since: i64,
    /// When it was last asked, seconds since 1970.
    #[serde(with = "clock::text")]
    #[schemars(with = "clock::Stamp")]
    pub checked_at: i64,
    /// Why it doesn't.
    pub fault: Option<String>,
}

impl Health {
    /// Of a provider that has just opened a data key.
    pub(crate) fn opened(now: i64) -> Self {
        Self(Arc::new(Mutex::new(KmsState {
            reachable: true,
            since: now,
            checked_at: now,
            fault: None,
        })))
    }

    /// What is known.
    #[must_use]
    pub fn state(&self) -> KmsState {
        self.locked().clone()
    }

    /// Takes in what a look at `now` gave. A store that fails says nothing about the key service.
    pub(crate) fn note(&self, seen: &Result<(), SealFault>, now: i64) {
        let fault = match seen {
            Ok(()) => None,
            Err(SealFault::Store(_)) => return,
            Err(fault) => Some(fault.to_string()),
        };
        let mut state = self.locked();
        let reachable = fault.is_none();
        if state.reachable != reachable {
            state.since = now;
            match &fault {
                None => tracing::info!("the key service opens the data key again"),
                Some(fault) => tracing::warn!(
                    "the data key can't be opened any more, should this server start now: {fault}"
                ),
            }
        }
        state.reachable = reachable;
        state.checked_at = now;
        state.fault = fault;
    }

    fn locked(&self) -> MutexGuard<'_, KmsState> {
        // Each change is whole: a panic elsewhere leaves nothing half-written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreFault;

    fn away() -> Result<(), SealFault> {
        Err(SealFault::Away {
            provider: "Vault".to_owned(),
            cause: "no answer".to_owned(),
        })
    }

    #[test]
    fn since_is_the_time_of_the_first_look_that_saw_it_so() {
        let health = Health::opened(10);
        health.note(&Ok(()), 20);
        assert_eq!((health.state().since, health.state().checked_at), (10, 20));
        health.note(&away(), 30);
        health.note(&away(), 40);
        let state = health.state();
        assert!(!state.reachable && state.fault.is_some_and(|fault| fault.contains("no answer")));
        assert_eq!((state.since, state.checked_at), (30, 40));
        // The store's trouble is not the key service's.
        health.note(&Err(SealFault::Store(StoreFault::Busy)), 50);
        assert_eq!(health.state().checked_at, 40);
        health.note(&Ok(()), 60);
        let state = health.state();
        assert!(state.reachable && state.fault.is_none());
        assert_eq!(state.since, 60);
        let shown = serde_json::to_value(&state).unwrap();
        assert_eq!(shown["since"], "1970-01-01T00:01:00Z");
    }
}
