//! A store's data key: made once, kept wrapped, opened at each start, wrapped anew on demand.
//!
//! It decides which provider may open it (the one that `[kms]` names; the key file beside the store also after
//! `[kms]` was changed, until `guan secret rewrap`), and brings stores from before there were data keys up to date.
//! Called by `bootstrap` and `secrets`; the wiring opens values of the config file with it.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use super::data_key::DataKey;
use super::file::{self, Kek};
use super::{Kms, Provider, SealFault, Wrapped};
use crate::store::{Store, StoreFault};

/// An open data key. Clones share it; it is wiped with the last.
#[derive(Clone, Debug)]
pub struct Envelope {
    key: Arc<DataKey>,
}

/// A data key that was just made, and what is to be kept of it.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) envelope: Envelope,
    /// For the fact [`FACT`].
    pub(crate) fact: Vec<u8>,
}

impl Envelope {
    /// A new data key, wrapped.
    pub(crate) async fn make(provider: &dyn Provider) -> Result<Made, SealFault> {
        let envelope = Self {
            key: Arc::new(DataKey::fresh()?),
        };
        let wrapped = envelope.wrapped_by(provider).await?;
        Ok(Made {
            envelope,
            fact: written(&wrapped),
        })
    }

    /// The data key of a store, and its pepper; `None` when it has none yet. Brings an older store up to date:
    /// whoever calls holds the data folder's lock.
    pub(crate) async fn open(
        store: &Store,
        kms: &Kms,
        secrets: &Path,
    ) -> Result<Option<(Self, Zeroizing<Vec<u8>>)>, SealFault> {
        // More than one look: another node may bring the same store up to date right now, between our two reads too.
        for _look in 0..3 {
            let wrapped = wrapped_of(store).await?;
            let Some(pepper) = store.fact(PEPPER).await? else {
                return Ok(None);
            };
            let is_old = pepper.first() == Some(&file::FORMAT);
            match wrapped {
                Some(wrapped) if !is_old => {
                    let provider = provider_of(&wrapped, kms, secrets)?;
                    let key = provider.open(&wrapped).await?;
                    let key = DataKey::new(&key)?;
                    let pepper = key.open(PEPPER, &pepper)?;
                    return Ok(Some((Self { key: Arc::new(key) }, pepper)));
                }
                None if is_old => match migrate(store, secrets, &pepper).await {
                    Err(SealFault::Store(StoreFault::Taken)) => {}
                    done => done?,
                },
                None | Some(_) => {}
            }
        }
        Err(SealFault::NoDataKey)
    }

    /// The data key's id: public, safe in logs.
    #[must_use]
    pub fn id(&self) -> String {
        self.key.id()
    }

    /// Seals what belongs into the store. `what` says what it is.
    pub(crate) fn seal(&self, what: &str, plain: &[u8]) -> Result<Vec<u8>, SealFault> {
        self.key.seal(what, plain)
    }

    /// Opens what [`Self::seal`] made with the same `what`.
    pub(crate) fn open_sealed(
        &self,
        what: &str,
        blob: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealFault> {
        self.key.open(what, blob)
    }

    /// A value for the config file: `sealed:…`.
    pub(crate) fn seal_value(&self, plain: &str) -> Result<String, SealFault> {
        let blob = self.key.seal(VALUE, plain.as_bytes())?;
        Ok(format!("{SEALED}{}", URL_SAFE_NO_PAD.encode(blob)))
    }

    /// Opens what follows `sealed:` in the config file.
    ///
    /// # Errors
    /// [`SealFault`]: of another store, changed, or no sealed value.
    pub fn open_value(&self, text: &str) -> Result<Zeroizing<String>, SealFault> {
        let blob = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_not| SealFault::NotSealed)?;
        let plain = self.key.open(VALUE, &blob)?;
        let text = std::str::from_utf8(&plain).map_err(|_not| SealFault::Tampered)?;
        Ok(Zeroizing::new(text.to_owned()))
    }

    /// Whether a text after `sealed:` has the form of a sealed value: for whoever can't open it.
    #[must_use]
    pub fn is_value(text: &str) -> bool {
        let blob = URL_SAFE_NO_PAD.decode(text).unwrap_or_default();
        blob.len() > LEAST && blob.first() == Some(&super::data_key::FORMAT)
    }

    /// Asks the provider whether it still opens this store's data key.
    ///
    /// # Errors
    /// [`SealFault`].
    pub async fn check(&self, store: &Store, kms: &Kms, secrets: &Path) -> Result<(), SealFault> {
        let wrapped = wrapped_of(store).await?.ok_or(SealFault::NoDataKey)?;
        self.holds(&*provider_of(&wrapped, kms, secrets)?, &wrapped)
            .await
    }

    /// This data key as `provider` wraps it, tried out: a key that may encrypt but not decrypt would lock us out.
    pub(crate) async fn wrapped_by(&self, provider: &dyn Provider) -> Result<Wrapped, SealFault> {
        let wrapped = provider.wrap(self.key.bytes()).await?;
        self.holds(provider, &wrapped).await?;
        Ok(wrapped)
    }

    async fn holds(&self, provider: &dyn Provider, wrapped: &Wrapped) -> Result<(), SealFault> {
        if self.key.is(&provider.open(wrapped).await?) {
            Ok(())
        } else {
            Err(SealFault::NotOurs(provider.describe()))
        }
    }
}

/// The wrapped data key as the store has it.
async fn wrapped_of(store: &Store) -> Result<Option<Wrapped>, SealFault> {
    store
        .fact(FACT)
        .await?
        .map(|bytes| read(&bytes))
        .transpose()
}

/// What the store keeps of a data key.
pub(crate) fn read(bytes: &[u8]) -> Result<Wrapped, SealFault> {
    match bytes.split_first() {
        Some((&KEPT, rest)) => serde_json::from_slice(rest).map_err(|_broken| SealFault::Tampered),
        Some((&other, _)) => Err(SealFault::Format(other)),
        None => Err(SealFault::Tampered),
    }
}

/// The same, to be kept.
pub(crate) fn written(wrapped: &Wrapped) -> Vec<u8> {
    let mut bytes = vec![KEPT];
    bytes.extend(serde_json::to_vec(wrapped).unwrap_or_default());
    bytes
}

/// Whoever may open it. The provider and key must be those of `[kms]`, so that nobody who can write to the database
/// brings in a data key of his own; a key file on this machine is ours as well.
fn provider_of(
    wrapped: &Wrapped,
    kms: &Kms,
    secrets: &Path,
) -> Result<Box<dyn Provider>, SealFault> {
    if wrapped.provider == super::FILE {
        if kms.name() == super::FILE {
            return kms.provider();
        }
        if secrets.join(file::FILE_NAME).exists() {
            tracing::warn!(
                named = kms.name(),
                "the data key is still wrapped by secrets/kek: type `guan secret rewrap` to move it to what [kms] names"
            );
            return Ok(Box::new(Kek::read(secrets)?));
        }
    }
    let other = |named: String| SealFault::OtherProvider {
        sealed_by: format!("\"{}\" (key {})", wrapped.provider, wrapped.key_id),
        named,
    };
    if wrapped.provider != kms.name() {
        return Err(other(format!("\"{}\"", kms.name())));
    }
    let provider = kms.provider()?;
    if provider.key_id() != wrapped.key_id {
        return Err(other(format!(
            "\"{}\" (key {})",
            kms.name(),
            provider.key_id()
        )));
    }
    Ok(provider)
}

/// A store whose pepper the key file sealed itself gets a data key; all in one transaction.
async fn migrate(store: &Store, secrets: &Path, old: &[u8]) -> Result<(), SealFault> {
    let kek = Kek::read(secrets)?;
    let pepper = kek.open_sealed(PEPPER.as_bytes(), old)?;
    let made = Envelope::make(&kek).await?;
    let new = made.envelope.seal(PEPPER, &pepper)?;
    store
        .change_facts(&[(FACT, &made.fact)], &[(PEPPER, old, &new)])
        .await?
        .commit()
        .await?;
    tracing::info!(
        data_key = made.envelope.id(),
        "the store has a data key now"
    );
    Ok(())
}

/// What a sealed value of the config file begins with.
pub const SEALED: &str = "sealed:";
/// The fact that holds the wrapped data key.
pub(crate) const FACT: &str = "data-key";
/// The fact that holds the sealed pepper, and the word that it is sealed as.
pub(crate) const PEPPER: &str = "pepper";
/// The word that values of the config file are sealed as.
const VALUE: &str = "config value";
/// First byte of the fact [`FACT`]: JSON follows.
const KEPT: u8 = 1;
/// Format, key id, nonce and tag: an empty value's length.
const LEAST: usize = 1 + 8 + 12 + 16;

#[cfg(test)]
mod tests;
