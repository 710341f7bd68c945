//! The certificate while the gateway runs: opened at its start, looked at each day, swapped without a restart.
//!
//! It decides when to look; whether a new one is due, `control` does. Called by the wiring.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use control::certificates::keeper::{Keeper, Pair};
use control::secrets::Secrets;
use gateway::door::handshake::{Clients, Tls, server_config};
use gateway::state::Gateway;
use rules::chain::Entry;
use tokio::sync::mpsc;

use super::{InForce, Reason};

/// Who keeps the certificate of this node.
pub(super) fn keeper(
    secrets: &Secrets,
    audit: &mpsc::Sender<Entry>,
    node: &str,
    data: &Path,
) -> Keeper {
    Keeper::new(
        secrets.clone(),
        audit.clone(),
        control::clock::system(),
        node,
        data.join("secrets"),
    )
}

/// What TLS runs by with a pair.
pub(super) struct Taken {
    pub(super) config: Tls,
    /// The certificate to publish, if it is one of ours.
    pub(super) published: Option<String>,
    /// When it ends, seconds since 1970.
    pub(super) ends: Option<i64>,
}

/// Takes a pair up.
pub(super) fn taken_up(pair: Pair, clients: Option<&Clients>) -> Result<Taken, Reason> {
    let own = pair.chain.first();
    let ends = own.and_then(|own| control::certificates::expires_at(own));
    Ok(Taken {
        config: server_config(pair.chain, pair.key, clients)?,
        published: pair.published,
        ends,
    })
}

/// Starts what looks after the key service and the certificate; both end with this process's local set. Gives the
/// certificates that are made from now on, for the supervisor to publish.
pub(super) fn look_after(
    secrets: &Secrets,
    certificates: (Keeper, Option<Clients>),
    gateway: &Arc<Gateway>,
    in_force: &Arc<ArcSwap<InForce>>,
) -> mpsc::Receiver<String> {
    let now = Arc::clone(in_force);
    let watching = secrets.clone().watch(move || now.load().kms_check_every);
    drop(tokio::task::spawn_local(async move {
        watching.await;
    }));
    let (publish, renewals) = mpsc::channel(1);
    let (gateway, in_force) = (Arc::clone(gateway), Arc::clone(in_force));
    drop(tokio::task::spawn_local(keep(
        certificates,
        gateway,
        in_force,
        publish,
    )));
    renewals
}

/// Looks each day whether the certificate ends soon; a new one is served at once, and told to whoever publishes it.
async fn keep(
    (keeper, clients): (Keeper, Option<Clients>),
    gateway: Arc<Gateway>,
    in_force: Arc<ArcSwap<InForce>>,
    publish: mpsc::Sender<String>,
) {
    let mut pause = DAY;
    loop {
        tokio::time::sleep(pause).await;
        let names = in_force.load().names.clone();
        let made = match keeper.renewed(&names).await {
            Ok(None) => {
                pause = DAY;
                continue;
            }
            Ok(Some(pair)) => taken_up(pair, clients.as_ref()),
            Err(fault) => Err(fault.into()),
        };
        match made {
            Ok(taken) => {
                pause = DAY;
                gateway.tls.store(Arc::new(taken.config));
                gateway.metrics.tell_certificate(taken.ends);
                if let Some(chain) = taken.published
                    && publish.send(chain).await.is_err()
                {
                    return;
                }
            }
            Err(fault) => {
                pause = HOUR;
                tracing::warn!("the certificate isn't made anew yet: {fault}");
            }
        }
    }
}

const DAY: Duration = Duration::from_hours(24);
/// After a look that failed.
const HOUR: Duration = Duration::from_hours(1);
