//! What a key or a project narrows, as it may be written: lists that name something, limits of at least 1.
//!
//! It decides nothing about roles: what holds after all is `rules::policy`'s. Called by `keys` before anything is stored.

use std::collections::HashSet;

use rules::limit::Limit;
use rules::policy::Own;

use super::{KeysFault, is_name};

/// What a key or a project narrows: lists that name something, limits of at least 1.
pub(super) fn check_own(own: &Own) -> Result<(), KeysFault> {
    let fault = |what, why: &str| {
        Err(KeysFault::Own {
            what,
            why: why.to_owned(),
        })
    };
    let names = |list: &[String]| list.len() <= MOST_LISTED && list.iter().all(|n| is_name(n));
    if own
        .models
        .as_deref()
        .is_some_and(|list| !names(list) || list.iter().any(|m| m == "*"))
    {
        return fault(
            "models",
            "must be public names of models; leave it out for all",
        );
    }
    let paths = |list: &[String]| names(list) && list.iter().all(|path| path.starts_with("/v1/"));
    if own.endpoints.as_deref().is_some_and(|list| !paths(list)) {
        return fault("endpoints", "must be paths such as /v1/chat/completions");
    }
    if own
        .addresses
        .as_deref()
        .is_some_and(|list| list.len() > MOST_LISTED)
    {
        return fault("addresses", "must be at most 64 ranges");
    }
    let zero = [
        ("requests_per_minute", own.requests_per_minute == Some(0)),
        ("concurrent_requests", own.concurrent_requests == Some(0)),
        ("max_output_tokens", own.max_output_tokens == Some(0)),
    ];
    if let Some((what, _)) = zero.into_iter().find(|(_, zero)| *zero) {
        return fault(what, "must be at least 1");
    }
    for (what, list) in [("limits", &own.limits), ("budget", &own.budget)] {
        let list = list.as_deref().unwrap_or_default();
        let kinds: HashSet<_> = list.iter().map(Limit::kind).collect();
        if list.len() > rules::limit::MOST_LISTED || kinds.len() < list.len() {
            return fault(what, "must be at most 8, no two of which count the same");
        }
    }
    Ok(())
}

/// Names in a list of a key or project.
const MOST_LISTED: usize = 64;
