//! Sealing: what lies in the store or beside it and must not be readable by whoever copies it.
//!
//! One data key a store (`data_key`) seals everything; a provider that `[kms]` names wraps that key, and only what it
//! made of it is kept (`envelope`). So a change of provider or of its key touches one small blob. A sealed blob names
//! its format in its first byte and its key by id. It never says what was sealed. Called by `bootstrap` and
//! `secrets`; the wiring opens `sealed:` values of the config file with it.

pub mod aliyun;
pub mod aws;
mod cipher;
pub mod client;
mod data_key;
mod envelope;
mod fault;
pub mod file;
mod health;
mod kept;
pub mod pkcs11;
pub mod vault;

use std::fmt;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use envelope::{Envelope, SEALED};
pub(crate) use envelope::{FACT, Made, PEPPER, read, written};
pub use fault::SealFault;
pub use health::{Health, KmsState};
pub(crate) use kept::{Kept, Name};

/// What a provider answers, in its own time.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, SealFault>> + Send + 'a>>;

/// Who wraps data keys. Each answers or fails within a few seconds and keeps nothing.
pub trait Provider: fmt::Debug + Send + Sync {
    /// Its word in `[kms]`.
    fn name(&self) -> &'static str;

    /// Which of its keys wraps: public, safe in logs. A data key that another one wrapped isn't given to it.
    fn key_id(&self) -> String;

    /// For people: which key, and where.
    fn describe(&self) -> String;

    /// Wraps a data key with the newest version of its key.
    ///
    /// # Errors
    /// [`SealFault`].
    fn wrap<'a>(&'a self, key: &'a [u8; 32]) -> Answer<'a, Wrapped>;

    /// Gives back what it wrapped.
    ///
    /// # Errors
    /// [`SealFault`].
    fn open<'a>(&'a self, wrapped: &'a Wrapped) -> Answer<'a, Zeroizing<Vec<u8>>>;
}

/// A wrapped data key, as it is kept in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrapped {
    /// The provider's word.
    pub provider: String,
    /// Which of its keys.
    pub key_id: String,
    /// Which version of that key, where the provider says it.
    pub version: Option<String>,
    /// What the provider made of the data key.
    #[serde(with = "blob")]
    pub blob: Vec<u8>,
}

mod blob {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        STANDARD
            .decode(text)
            .map_err(|_not| D::Error::custom("not base64"))
    }
}

/// What `[kms]` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kms {
    /// A key in a file of this folder.
    File(PathBuf),
    /// The Transit engine of Vault or OpenBao.
    Vault(vault::Settings),
    /// AWS KMS.
    Aws(aws::Settings),
    /// Alibaba Cloud KMS.
    Aliyun(aliyun::Settings),
    /// A PKCS#11 token.
    Pkcs11(pkcs11::Settings),
}

impl Kms {
    /// What a config says that says nothing: the key in `secrets/kek`.
    #[must_use]
    pub fn in_folder(data: &Path) -> Self {
        Self::File(data.join("secrets"))
    }

    /// Its word in `[kms]`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::File(_) => FILE,
            Self::Vault(_) => vault::NAME,
            Self::Aws(_) => aws::NAME,
            Self::Aliyun(_) => aliyun::NAME,
            Self::Pkcs11(_) => pkcs11::NAME,
        }
    }

    /// Whoever wraps. Asks nobody yet, but reads the key of `file`.
    ///
    /// # Errors
    /// [`SealFault`] about that file.
    pub fn provider(&self) -> Result<Box<dyn Provider>, SealFault> {
        Ok(match self {
            Self::File(secrets) => Box::new(file::Kek::read(secrets)?),
            Self::Vault(settings) => Box::new(vault::Transit::new(settings.clone())),
            Self::Aws(settings) => Box::new(aws::Kms::new(settings.clone())),
            Self::Aliyun(settings) => Box::new(aliyun::Kms::new(settings.clone())),
            Self::Pkcs11(settings) => Box::new(pkcs11::Token::new(settings.clone())),
        })
    }
}

/// A token or key of ours: shown by nobody, wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Keeps it.
    #[must_use]
    pub const fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    /// For whoever hands it on to where it is needed.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The text in a member of an answer, decoded.
fn decoded(value: Option<&serde_json::Value>) -> Option<Zeroizing<Vec<u8>>> {
    let text = value?.as_str()?;
    STANDARD.decode(text).ok().map(Zeroizing::new)
}

/// What a wrapped key is authenticated with at its provider: nothing that was encrypted for another use opens as one.
const PURPOSE: &str = "guan data key";

/// The default provider's word.
const FILE: &str = "file";
