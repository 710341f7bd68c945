//! What lies sealed in the store, by name: written so that nothing that was written meanwhile is lost.
//!
//! It decides what names there are and that each value opens under its own name only. Called by `certificates` and
//! `bootstrap`.

use std::fmt;

use zeroize::Zeroizing;

use super::{Envelope, SealFault};
use crate::store::{Pending, Store};

/// A name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// The certificate that a node made for itself, and its private key.
    TlsPair {
        /// The node's id.
        node: String,
    },
    /// What signs the checkpoints of audit chains: 32 bytes.
    AuditKey,
}

/// A value that was read, and how it stood there: whoever replaces it says so.
pub(crate) struct Kept {
    pub(crate) plain: Zeroizing<Vec<u8>>,
    sealed: Vec<u8>,
}

impl Envelope {
    /// What is kept under a name.
    ///
    /// # Errors
    /// [`SealFault`].
    pub(crate) async fn kept(&self, store: &Store, name: &Name) -> Result<Option<Kept>, SealFault> {
        let Some(sealed) = store.sealed(&name.to_string()).await? else {
            return Ok(None);
        };
        let plain = self.open_sealed(&name.meaning(), &sealed)?;
        Ok(Some(Kept { plain, sealed }))
    }

    /// Keeps a value where `old` stands now; others see it only after the commit.
    ///
    /// # Errors
    /// [`SealFault`]; `Taken` of the store when something else stands there.
    pub(crate) async fn keep(
        &self,
        store: &Store,
        name: &Name,
        old: Option<&Kept>,
        plain: &[u8],
        at: i64,
    ) -> Result<Pending, SealFault> {
        let sealed = self.seal(&name.meaning(), plain)?;
        let old = old.map(|kept| kept.sealed.as_slice());
        let pending = store
            .keep_sealed(&name.to_string(), old, &sealed, at)
            .await?;
        Ok(pending)
    }
}

impl Name {
    /// What a value of this name is authenticated as.
    fn meaning(&self) -> String {
        format!("kept {self}")
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TlsPair { node } => write!(f, "tls-pair/{node}"),
            Self::AuditKey => f.write_str("audit-key"),
        }
    }
}
