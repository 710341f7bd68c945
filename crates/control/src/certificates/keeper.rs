//! The pair that a node made for itself: sealed in the store, and made anew before its end.
//!
//! It decides which pair is served (one of your own in `secrets/` goes first), when a pair of ours is replaced, and
//! that a private key of ours that still lies in `secrets/` in the clear moves into the store. It removes no file:
//! whoever may write in `secrets/` does that, after the store has the key. Called by the wiring.

use std::fmt;
use std::path::PathBuf;

use rules::chain::Entry;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::sync::mpsc::Sender;
use zeroize::Zeroizing;

use super::{
    CertificateFault, KEY, expires_at, expiry_warning, fingerprint_sha256, load, self_signed,
};
use crate::audit_log;
use crate::clock::{self, Clock};
use crate::seal::{Kept, Name, SealFault};
use crate::secrets::Secrets;

/// A certificate and its private key, ready to be served.
pub struct Pair {
    /// The chain, own certificate first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key.
    pub key: PrivateKeyDer<'static>,
    /// The chain as PEM, when the key lies sealed in the store: for whoever publishes the certificate.
    pub published: Option<String>,
}

/// Keeps the pair.
pub struct Keeper {
    secrets: Secrets,
    audit: Sender<Entry>,
    clock: Clock,
    name: Name,
    folder: PathBuf,
}

impl Keeper {
    /// Of one node; `folder` is `secrets/`.
    #[must_use]
    pub fn new(
        secrets: Secrets,
        audit: Sender<Entry>,
        clock: Clock,
        node: &str,
        folder: PathBuf,
    ) -> Self {
        Self {
            secrets,
            audit,
            clock,
            name: Name::TlsPair {
                node: node.to_owned(),
            },
            folder,
        }
    }

    /// The pair to serve from now on. One of ours that ends soon is made anew, if that can be done now; `names` go
    /// into it.
    ///
    /// # Errors
    /// [`CertificateFault`]: there is no pair, or it can't be read.
    pub async fn open(&self, names: &[String]) -> Result<Pair, CertificateFault> {
        let mut pair = self.found().await?;
        if pair.published.is_some() {
            match self.anew(names).await {
                Ok(Some(new)) => pair = new,
                Ok(None) => {}
                Err(fault) => tracing::warn!("the certificate isn't made anew yet: {fault}"),
            }
        }
        if let Some(warning) = expiry_warning(&pair.chain, self.now()) {
            tracing::warn!("{warning}");
        }
        Ok(pair)
    }

    /// A new pair, when the sealed one ends within 30 days and no pair of your own is served instead.
    ///
    /// # Errors
    /// [`CertificateFault`], also while the key service is away; then the old one stays.
    pub async fn renewed(&self, names: &[String]) -> Result<Option<Pair>, CertificateFault> {
        if self.has_file()? {
            return Ok(None);
        }
        self.anew(names).await
    }

    async fn anew(&self, names: &[String]) -> Result<Option<Pair>, CertificateFault> {
        let Some(kept) = self.kept().await? else {
            return Ok(None);
        };
        let (old, now) = (read(&kept.plain)?, self.now());
        let end = old.chain.first().and_then(|own| expires_at(own));
        if end.is_none_or(|end| end.saturating_sub(now) > BEFORE_END) {
            return Ok(None);
        }
        // A node that its key service would refuse at the next start makes nothing new that needs it then.
        self.secrets.look().await?;
        let made = self_signed::make(names, now)?;
        let pem = Zeroizing::new(format!("{}{}", made.chain, *made.key));
        let new = read(pem.as_bytes())?;
        self.keep(Some(&kept), &pem, "certificate-renewed").await?;
        tracing::info!(
            "the certificate was made anew, until {}: SHA-256 {}",
            expires_at(&made.der).map_or_else(String::new, clock::rfc3339_seconds),
            fingerprint_sha256(&made.der)
        );
        Ok(Some(new))
    }

    /// The pair as it lies there. A key of ours in a file goes into the store first.
    async fn found(&self) -> Result<Pair, CertificateFault> {
        match self.kept().await? {
            Some(kept) if !self.has_file()? => read(&kept.plain),
            kept => self.in_file(kept).await,
        }
    }

    async fn in_file(&self, kept: Option<Kept>) -> Result<Pair, CertificateFault> {
        let (chain, key) = load(&self.folder)?;
        if !chain.first().is_some_and(|own| self_signed::is_ours(own)) {
            let published = None;
            return Ok(Pair {
                chain,
                key,
                published,
            });
        }
        let end = |chain: &[CertificateDer<'_>]| chain.first().and_then(|own| expires_at(own));
        if let Some(kept) = &kept {
            let sealed = read(&kept.plain)?;
            if end(&sealed.chain) >= end(&chain) {
                // A start that was cut before the file went, or an old copy of it.
                return Ok(sealed);
            }
        }
        let pem = super::bundle(&self.folder)?;
        let pair = read(&pem)?;
        let text = std::str::from_utf8(&pem).map_err(|_not| unreadable())?;
        self.keep(kept.as_ref(), text, "certificate-sealed").await?;
        tracing::info!("the certificate's key lies sealed in the store now");
        Ok(pair)
    }

    async fn kept(&self) -> Result<Option<Kept>, CertificateFault> {
        let (envelope, store) = self.secrets.parts();
        Ok(envelope.kept(store, &self.name).await?)
    }

    /// Recorded first, then there.
    async fn keep(
        &self,
        old: Option<&Kept>,
        pem: &str,
        action: &str,
    ) -> Result<(), CertificateFault> {
        let (envelope, store) = self.secrets.parts();
        let now = self.now();
        let pending = envelope
            .keep(store, &self.name, old, pem.as_bytes(), now)
            .await?;
        let own = read(pem.as_bytes())?.chain;
        let own = own.first().ok_or_else(unreadable)?;
        let mut record = audit_log::blank(&self.clock, action);
        record.act = Some(json!({
            "sha256": fingerprint_sha256(own),
            "expires_at": expires_at(own).map(clock::rfc3339_seconds),
        }));
        audit_log::record(&self.audit, record).await?;
        pending.commit().await.map_err(SealFault::from)?;
        Ok(())
    }

    fn has_file(&self) -> Result<bool, CertificateFault> {
        let path = self.folder.join(KEY);
        path.try_exists().map_err(|cause| CertificateFault::File {
            path,
            cause: cause.to_string(),
        })
    }

    fn now(&self) -> i64 {
        clock::seconds((self.clock)())
    }
}

/// A pair from the text that is sealed: the chain's PEM, then the key's.
fn read(pem: &[u8]) -> Result<Pair, CertificateFault> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|_form| unreadable())?;
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_form| unreadable())?;
    if chain.is_empty() {
        return Err(unreadable());
    }
    let published = chain.iter().map(|one| self_signed::pem(one)).collect();
    Ok(Pair {
        chain,
        key,
        published: Some(published),
    })
}

fn unreadable() -> CertificateFault {
    CertificateFault::Seal(SealFault::Tampered)
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair")
            .field("published", &self.published)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// How long before its end a certificate is made anew, seconds.
const BEFORE_END: i64 = 30 * 86_400;

#[cfg(test)]
mod tests;
