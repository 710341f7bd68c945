//! The provider `pkcs11`: an AES key in a PKCS#11 token, reached through the program `guan-pkcs11`.
//!
//! Modules are loaded by that program alone; this room only says what is to be wrapped or opened and by which key.
//! How the words get there is the [`Courier`]'s business, whom `guan` brings. Called through [`Provider`].

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::{Answer, Provider, SealFault, Secret, Wrapped};

/// What it needs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The module that reaches the token.
    pub module: PathBuf,
    /// Which token.
    pub token: Named,
    /// Which key on it: its label, or its id in hex.
    pub key: Named,
    /// The user's PIN.
    pub pin: Secret,
    /// The module reaches its token over the network.
    pub network: bool,
    /// Variables of the environment that the module reads.
    pub environment: Vec<String>,
    /// Who carries questions to `guan-pkcs11`.
    pub courier: Arc<dyn Courier>,
}

/// A name, and of what kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// A label.
    Label(String),
    /// A token's serial number, or a key's id in hex.
    Number(String),
}

/// What is asked of `guan-pkcs11`.
#[derive(Clone, Copy)]
pub enum Question<'a> {
    /// Wrap a data key.
    Wrap(&'a [u8; 32]),
    /// Open what it wrapped.
    Open(&'a [u8]),
}

/// Why there is no answer, in words that hold no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undone {
    /// The program, the module or the token isn't there, or doesn't answer.
    Away(String),
    /// The token said no.
    Refused(String),
}

/// Carries a question to `guan-pkcs11` and its answer back, within a few seconds.
pub trait Courier: fmt::Debug + Send + Sync {
    /// Asks it.
    fn ask<'a>(&'a self, settings: &'a Settings, question: Question<'a>) -> Asked<'a>;
}

/// What became of a question.
pub type Asked<'a> =
    std::pin::Pin<Box<dyn Future<Output = Result<Zeroizing<Vec<u8>>, Undone>> + Send + 'a>>;

/// The token.
#[derive(Debug)]
pub(super) struct Token {
    settings: Settings,
}

impl Token {
    pub(super) const fn new(settings: Settings) -> Self {
        Self { settings }
    }

    async fn ask(&self, question: Question<'_>) -> Result<Zeroizing<Vec<u8>>, SealFault> {
        let settings = &self.settings;
        let asked = settings.courier.ask(settings, question).await;
        asked.map_err(|undone| match undone {
            Undone::Away(cause) => SealFault::Away {
                provider: self.describe(),
                cause,
            },
            Undone::Refused(cause) => SealFault::Refused {
                provider: self.describe(),
                cause,
            },
        })
    }
}

impl Provider for Token {
    fn name(&self) -> &'static str {
        NAME
    }

    fn key_id(&self) -> String {
        format!("{}/{}", self.settings.token, self.settings.key)
    }

    fn describe(&self) -> String {
        format!(
            "the PKCS#11 token {} (key {}, module {})",
            self.settings.token,
            self.settings.key,
            self.settings.module.display()
        )
    }

    fn wrap<'a>(&'a self, key: &'a [u8; 32]) -> Answer<'a, Wrapped> {
        Box::pin(async move {
            Ok(Wrapped {
                provider: NAME.to_owned(),
                key_id: self.key_id(),
                version: None,
                blob: self.ask(Question::Wrap(key)).await?.to_vec(),
            })
        })
    }

    fn open<'a>(&'a self, wrapped: &'a Wrapped) -> Answer<'a, Zeroizing<Vec<u8>>> {
        Box::pin(async move { self.ask(Question::Open(&wrapped.blob)).await })
    }
}

impl PartialEq for Settings {
    /// By what the config file says; who carries is the process's business.
    fn eq(&self, other: &Self) -> bool {
        let Self {
            module,
            token,
            key,
            pin,
            network,
            environment,
            courier: _,
        } = self;
        (module, token, key, pin, network, environment)
            == (
                &other.module,
                &other.token,
                &other.key,
                &other.pin,
                &other.network,
                &other.environment,
            )
    }
}

impl Eq for Settings {}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label(label) => f.write_str(label),
            Self::Number(number) => write!(f, "#{number}"),
        }
    }
}

impl fmt::Debug for Question<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wrap(_) => "Wrap(…)",
            Self::Open(_) => "Open(…)",
        })
    }
}

/// Its word in `[kms]`.
pub(super) const NAME: &str = "pkcs11";
