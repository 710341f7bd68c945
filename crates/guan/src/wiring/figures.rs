//! What the gateway can't count by itself, told to its metrics; and the door that shows them.
//!
//! How many keys are due is asked of the store each minute; how the key service was last seen is read when somebody
//! looks. Called by the wiring.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use control::keys::due_by_role;
use control::store::Store;
use gateway::record::scrape;
use gateway::serve::Cores;
use gateway::state::Gateway;
use tokio::task::JoinHandle;

use super::{House, Reason};

impl House {
    /// Figures on the listeners that the supervisor holds; what is given back ends with the cores.
    pub(super) fn serve_metrics(
        &self,
        cores: &Cores,
        listeners: Vec<OwnedFd>,
    ) -> Result<Vec<JoinHandle<()>>, Reason> {
        let mut doors = Vec::new();
        for listener in listeners {
            let (gateway, health) = (Arc::clone(&self.gateway), self.secrets.health().clone());
            let door = cores.lend(&self.gateway, listener.into(), move |peer, request| {
                gateway.metrics.tell_sealing(health.state().reachable);
                std::future::ready(scrape::answer(&gateway, peer, &request))
            })?;
            doors.push(tokio::task::spawn_local(door));
        }
        Ok(doors)
    }
}

/// Tells what is known at the start, and counts at once and each minute how many keys are due for a new secret. That
/// ends with this process's local set.
pub(super) fn follow(
    gateway: &Arc<Gateway>,
    store: &Store,
    certificate_ends: Option<i64>,
    config: String,
) {
    gateway.metrics.tell_certificate(certificate_ends);
    gateway.metrics.tell_config(config);
    let (gateway, store) = (Arc::clone(gateway), store.clone());
    drop(tokio::task::spawn_local(async move {
        let mut minute = tokio::time::interval(EVERY);
        loop {
            minute.tick().await;
            let (roles, now) = (gateway.settings.load_full(), gateway.clock.unix_seconds());
            match due_by_role(&store, &roles.roles, now).await {
                Ok(due) => gateway.metrics.tell_rotation_due(due),
                // A store that is away is another figure.
                Err(fault) => tracing::debug!(%fault, "keys that are due can't be counted"),
            }
        }
    }));
}

const EVERY: Duration = Duration::from_secs(60);
