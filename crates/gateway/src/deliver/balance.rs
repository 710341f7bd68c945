//! Which replicas to try, in which order: those that are ready, below their own count of calls before others, and of
//! these the one with least to do; the next in turn where they are alike.

use std::sync::atomic::Ordering;

use rules::refusal::Refusal;

use crate::settings::{Concurrency, Model, Replica};
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
    order.sort_by_cached_key(|replica| {
        let running = gateway.replicas.state(&model.name, replica).running();
        standing(running, replica.concurrency)
    });
    Ok(order)
}

/// Whether all of a replica's own places are taken, and how full it is: parts of a million, or calls.
fn standing(running: u32, concurrency: Option<Concurrency>) -> (bool, u64) {
    match concurrency {
        Some(Concurrency::Fixed(count)) => {
            let parts = u64::from(running).saturating_mul(1_000_000);
            (
                running >= count,
                parts.checked_div(count.into()).unwrap_or(parts),
            )
        }
        Some(Concurrency::Learned) | None => (false, running.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_with_free_places_goes_before_a_full_one_and_the_emptier_first() {
        let of = |running, count| standing(running, Some(Concurrency::Fixed(count)));
        assert!(of(7, 8) < of(1, 1));
        assert!(of(2, 8) < of(1, 2));
        assert_eq!(of(1, 2), of(4, 8));
        assert!(standing(3, None) < standing(4, Some(Concurrency::Learned)));
    }
}
