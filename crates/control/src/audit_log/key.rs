//! The key that signs checkpoints: made once a store, sealed in it, its public half beside the log.
//!
//! It decides that all nodes of a store sign with one key. The private half lies nowhere in the clear and is known
//! to whoever has the store's data key. Called by `bootstrap`.

use std::path::Path;

use aws_lc_rs::rand;
use rules::chain::Signer;
use zeroize::Zeroizing;

use crate::folder;
use crate::seal::{Envelope, Name, SealFault};
use crate::store::{Store, StoreFault};

/// The store's signer; one is made where there is none.
///
/// # Errors
/// [`SealFault`].
pub(crate) async fn signer(
    store: &Store,
    envelope: &Envelope,
    now: i64,
) -> Result<Signer, SealFault> {
    if let Some(kept) = envelope.kept(store, &Name::AuditKey).await? {
        return read(&kept.plain);
    }
    let mut seed = Zeroizing::new([0_u8; 32]);
    rand::fill(&mut *seed).map_err(|_unspecified| SealFault::NoRandom)?;
    let kept = envelope
        .keep(store, &Name::AuditKey, None, &*seed, now)
        .await;
    let kept = match kept {
        Ok(pending) => pending.commit().await,
        Err(SealFault::Store(fault)) => Err(fault),
        Err(fault) => return Err(fault),
    };
    match kept {
        Ok(()) => read(&*seed),
        // Another node was first.
        Err(StoreFault::Taken) => {
            let kept = envelope.kept(store, &Name::AuditKey).await?;
            read(&kept.ok_or(SealFault::Tampered)?.plain)
        }
        Err(fault) => Err(fault.into()),
    }
}

fn read(seed: &[u8]) -> Result<Signer, SealFault> {
    let seed = <&[u8; 32]>::try_from(seed).map_err(|_length| SealFault::Tampered)?;
    Signer::from_seed(seed).ok_or(SealFault::Tampered)
}

/// Writes the public half where `guan audit verify` looks for it when nobody names another. That it lies there is
/// for convenience: whoever can change the log can change it too.
pub(super) fn publish(dir: &Path, signer: &Signer) {
    let path = dir.join(PUBLIC);
    let text = format!("{}\n", signer.public());
    if std::fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return;
    }
    let aside = dir.join(format!("{PUBLIC}.new"));
    let gone = std::fs::remove_file(&aside);
    let written = folder::write_new(&aside, 0o644, text.as_bytes())
        .and_then(|()| std::fs::rename(&aside, &path));
    if let Err(cause) = written {
        tracing::warn!(file = %path.display(), %cause, left = gone.is_ok(), "the audit log's public key can't be written beside it");
    }
}

/// The public half's file in `state/audit`.
pub const PUBLIC: &str = "audit.pub";
