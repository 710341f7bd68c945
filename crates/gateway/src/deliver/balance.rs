//! Which replicas to try, in which order: those that are ready, starting with the next in turn.

use std::sync::atomic::Ordering;

use rules::refusal::Refusal;

use crate::settings::{Model, Replica};
use crate::state::Gateway;

/// The order.
///
/// # Errors
/// [`Refusal::NoReplica`] when none is ready.
pub(crate) fn balance(gateway: &Gateway, model: &Model) -> Result<Vec<Replica>, Refusal> {
    let workers = gateway.workers.load();
    let ready = |replica: &&Replica| {
        replica
            .worker
            .as_ref()
            .is_none_or(|worker| workers.contains_key(worker))
    };
    let mut order: Vec<_> = model.replicas.iter().filter(ready).cloned().collect();
    if order.is_empty() {
        return Err(Refusal::NoReplica);
    }
    let turn = gateway.turn.fetch_add(1, Ordering::Relaxed);
    let first = turn.checked_rem(order.len()).unwrap_or(0);
    order.rotate_left(first);
    Ok(order)
}
