//! Why something can't be sealed or opened, each with what to do. Never with a part of a secret.

use std::path::PathBuf;

use crate::store::StoreFault;

/// Why something could not be sealed or opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealFault {
    /// The key file can't be read or written.
    #[error(
        "{path}: {cause}. Check that it exists and that this user owns it; without it nothing sealed can be read, so restore it from your backup if it is lost"
    )]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// Others may read the key file.
    #[error(
        "{path}: other users may read it (mode {mode:03o}). Type: chmod 400 {path} (and think about who has read it)"
    )]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its mode bits.
        mode: u32,
    },
    /// The key file has not the size of a key.
    #[error(
        "{path}: {size} bytes, but a key has exactly 32. It was cut or replaced: restore it from your backup"
    )]
    Size {
        /// Which file.
        path: PathBuf,
        /// What it has, bytes.
        size: usize,
    },
    /// The blob was sealed by another key.
    #[error(
        "secrets/kek is not the key that this was sealed with (it was {sealed_by}, this is {this}). Restore secrets/ and state/ from the same backup"
    )]
    OtherKey {
        /// The id in the blob, hex.
        sealed_by: String,
        /// The id of the key at hand, hex.
        this: String,
    },
    /// The data key was wrapped by another provider, or by another key of this one.
    #[error(
        "the store's data key is wrapped by {sealed_by}, but [kms] names {named}. Name the old one in [kms] and start; to move, change [kms] while the server runs and type `guan secret rewrap`, or type `guan secret rewrap --from OLD_CONFIG` while it doesn't"
    )]
    OtherProvider {
        /// Provider and key that wrapped it.
        sealed_by: String,
        /// Provider and key of the config file.
        named: String,
    },
    /// The key service can't be reached or is itself in trouble.
    #[error(
        "{provider} doesn't answer: {cause}. Check that it runs, that this machine reaches it, and what [kms] says; then try again"
    )]
    Away {
        /// Who.
        provider: String,
        /// What went wrong.
        cause: String,
    },
    /// The key service said no.
    #[error(
        "{provider} refused: {cause}. Check the credentials in [kms], their right to encrypt and decrypt with that key, and that it is the key that was used before"
    )]
    Refused {
        /// Who.
        provider: String,
        /// Its word for it.
        cause: String,
    },
    /// Something answered that is no key service.
    #[error("{provider} answered something else ({cause}). Check the address in [kms]")]
    Answer {
        /// Who.
        provider: String,
        /// What was wrong.
        cause: String,
    },
    /// The key service gave back another key than it was given.
    #[error(
        "{0} gave back another data key than this store's. Check which key [kms] names; nothing was changed"
    )]
    NotOurs(String),
    /// The store has sealed values and no data key.
    #[error(
        "the database has no data key for what is sealed in it. Restore state/ and secrets/ from the same backup"
    )]
    NoDataKey,
    /// A `sealed:` value of another store.
    #[error("it was sealed for another store. Seal it anew with `guan secret seal` on this one")]
    OtherStore,
    /// Not a `sealed:` value.
    #[error("it isn't a sealed value. Make one with `guan secret seal`")]
    NotSealed,
    /// The blob is of a format that this version doesn't know.
    #[error("sealed by a newer guan (format {0}). Start that version")]
    Format(u8),
    /// The blob was changed, cut, or belongs somewhere else.
    #[error(
        "a sealed value was changed, cut, or moved from another place. Restore state/ from your backup, or seal the value anew"
    )]
    Tampered,
    /// No randomness, or the cipher refused.
    #[error("the system gives no randomness, so nothing can be sealed. Check the kernel's log")]
    NoRandom,
    /// The store that keeps the wrapped key.
    #[error(transparent)]
    Store(#[from] StoreFault),
}
