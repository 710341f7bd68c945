//! Which keys are older than their role lets a secret grow: told to people and metrics, never enforced.
//!
//! Called by `api`, `guan`'s commands and the wiring.

use std::collections::BTreeMap;

use rules::snapshot::Roles;

use super::KeyRow;
use crate::store::{Store, StoreFault};

/// How many keys [`is_due`] would name: a figure for people.
///
/// # Errors
/// [`StoreFault`].
pub async fn count_due(store: &Store, roles: &Roles, now: i64) -> Result<u64, StoreFault> {
    let due = due_by_role(store, roles, now).await?;
    Ok(due.values().fold(0, |sum, n| sum.saturating_add(*n)))
}

/// The same by role, for those that have a `rotate_after`.
///
/// # Errors
/// [`StoreFault`].
pub async fn due_by_role(
    store: &Store,
    roles: &Roles,
    now: i64,
) -> Result<BTreeMap<String, u64>, StoreFault> {
    let mut due = BTreeMap::new();
    for (name, role) in roles {
        let after = role
            .rotate_after
            .and_then(|after| i64::try_from(after).ok());
        if let Some(after) = after {
            let older = store
                .count_older(name, now.saturating_sub(after), now)
                .await?;
            due.insert(name.clone(), u64::try_from(older).unwrap_or(0));
        }
    }
    Ok(due)
}

/// Whether a good key's newest secret is older than its role allows.
#[must_use]
pub fn is_due(row: &KeyRow, roles: &Roles, now: i64) -> bool {
    let after = roles.get(&row.role).and_then(|role| role.rotate_after);
    let after = after.and_then(|seconds| i64::try_from(seconds).ok());
    row.revoked_at.is_none()
        && row.expires_at.is_none_or(|at| at > now)
        && after.is_some_and(|seconds| row.rotated_at.saturating_add(seconds) <= now)
}
