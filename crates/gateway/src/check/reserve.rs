//! One decision over all limits of a call, then the slot: both taken, or neither.

use std::io::ErrorKind;
use std::sync::Arc;

use rules::limit::Told;
use rules::refusal::Refusal;

use crate::check::authorise::Judged;
use crate::record::settle::Account;
use crate::state::Gateway;

/// A call whose limits and slot are taken; they are held by its account.
#[derive(Debug)]
pub(crate) struct Reserved {
    /// What was judged.
    pub(crate) judged: Judged,
    /// How the tightest limits stand now.
    pub(crate) told: Told,
}

/// Takes them.
///
/// # Errors
/// 429 when a limit is used up, 503 when no slot is free or the disk refuses.
pub(crate) async fn reserve(
    gateway: &Arc<Gateway>,
    mut judged: Judged,
    account: &mut Account,
) -> Result<Reserved, Refusal> {
    let now = gateway.clock.unix_us();
    let plan = std::mem::take(&mut judged.plan);
    let limits = &gateway.limits;
    let decided = limits.take(account.id, plan, judged.model.price, now).await;
    let told = decided.told;
    account.told = Some(told);
    let taken = decided.taken?;
    account.hold(taken, now.saturating_mul(1000), judged.bound);
    account.take_slot().map_err(|fault| {
        if fault.kind() == ErrorKind::WouldBlock {
            return Refusal::Busy;
        }
        tracing::error!(%fault, "an in-flight slot can't be written");
        Refusal::RecordsUnavailable
    })?;
    Ok(Reserved { judged, told })
}
