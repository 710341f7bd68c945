//! Joins those who fetch the keys of issuers with those who verify tokens by them; reads whose client certificates are
//! good; finds in the past who called without a key of ours. Called by `wiring` once.

use std::collections::HashMap;
use std::sync::Arc;

use control::certificates::{self, CertificateFault};
use control::identity::{self, Question, oidc::Source};
use gateway::door::handshake::Clients;
use gateway::state::Gateway;
use rules::chain::PastCall;
use rules::key::KeyId;
use rules::snapshot::Key;
use tokio::sync::{mpsc, watch};

use crate::config::ClientAuth;

/// Starts fetching; a reload sends other issuers. It ends with this process's local set.
pub(super) fn follow(
    gateway: &Arc<Gateway>,
    sources: Vec<Source>,
    questions: mpsc::Receiver<Question>,
) -> watch::Sender<Vec<Source>> {
    let (meant, watched) = watch::channel(sources);
    let (issuers, clock) = (Arc::clone(&gateway.issuers), gateway.clock);
    let following = identity::follow(watched, questions, move |issuer, keys| {
        issuers.publish(issuer, keys, clock.unix_ns());
    });
    drop(tokio::task::spawn_local(following));
    meant
}

/// Whose clients may show a certificate.
///
/// # Errors
/// When the file with the authorities can't be read.
pub(super) fn clients(auth: Option<&ClientAuth>) -> Result<Option<Clients>, CertificateFault> {
    auth.map(|auth| {
        Ok(Clients {
            authorities: certificates::authorities(&auth.authorities)?,
            required: auth.required,
        })
    })
    .transpose()
}

/// Adds callers of the recent past whom the store doesn't know, by the role and project that were recorded: their
/// limits are rebuilt like those of keys.
pub(super) fn recall(past: &[PastCall], known: &mut HashMap<KeyId, Arc<Key>>) {
    for call in past {
        let (Ok(id), Some(role)) = (KeyId::parse(&call.key), &call.role) else {
            continue;
        };
        let _known = known.entry(id).or_insert_with(|| {
            Arc::new(Key {
                id,
                name: call.key.as_str().into(),
                role: role.as_str().into(),
                project: call.project.as_deref().map(Into::into),
                not_before: None,
                expires_at: None,
                revoked: false,
                own: None,
            })
        });
    }
}
