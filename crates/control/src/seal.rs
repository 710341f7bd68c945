//! Sealing: what lies in the store or beside it and must not be readable by whoever copies it.
//!
//! One provider so far, a key-encryption key in a file (`file`). A sealed blob names its format in its first byte
//! and its key by id, so that other providers and a change of keys find their place. It never says what was sealed.
//! Called by `bootstrap`.

pub mod file;

use std::path::PathBuf;

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
    /// The blob is of a format that this version doesn't know.
    #[error("sealed by a newer guan (format {0}). Start that version")]
    Format(u8),
    /// The blob was changed, cut, or belongs somewhere else.
    #[error(
        "a sealed value was changed, cut, or moved from another place. Restore state/ from your backup"
    )]
    Tampered,
    /// No randomness, or the cipher refused.
    #[error("the system gives no randomness, so nothing can be sealed. Check the kernel's log")]
    NoRandom,
}
