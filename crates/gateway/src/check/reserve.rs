//! One decision over all limits of a call, then the slot: both taken, or neither.

use std::io::ErrorKind;
use std::sync::Arc;

use rules::limit::Standing;
use rules::refusal::Refusal;

use crate::check::authenticate::Caller;
use crate::check::authorise::Judged;
use crate::record::settle::Account;
use crate::state::Gateway;

/// A call whose limits and slot are taken; they are held by its account.
#[derive(Debug)]
pub(crate) struct Reserved {
    /// What was judged.
    pub(crate) judged: Judged,
    /// How the request limit stands now.
    pub(crate) standing: Standing,
}

/// Takes them.
///
/// # Errors
/// 429 when a limit is used up, 503 when no slot is free or the disk refuses.
pub(crate) fn reserve(
    gateway: &Arc<Gateway>,
    caller: &Caller,
    judged: Judged,
    account: &mut Account,
) -> Result<Reserved, Refusal> {
    let now = gateway.clock.unix_ns();
    let (standing, hold) = gateway.limits.reserve(caller.key.id, &caller.policy, now)?;
    account.hold(hold, now, judged.bound);
    account.take_slot().map_err(|fault| {
        if fault.kind() == ErrorKind::WouldBlock {
            return Refusal::Busy;
        }
        tracing::error!(%fault, "an in-flight slot can't be written");
        Refusal::RecordsUnavailable
    })?;
    Ok(Reserved { judged, standing })
}
