//! The data key of a store: everything that is sealed in it or for it lies under this one key.
//!
//! It exists in the clear in memory only, in this type, and is wiped with it; what is kept is what a provider made
//! of it. Called by `envelope`.

use std::fmt;

use aws_lc_rs::{constant_time, rand};
use zeroize::Zeroizing;

use super::SealFault;
use super::cipher::{Cipher, KEY_LENGTH};

pub(super) struct DataKey {
    bytes: Zeroizing<[u8; KEY_LENGTH]>,
    cipher: Cipher,
}

impl DataKey {
    pub(super) fn fresh() -> Result<Self, SealFault> {
        let mut bytes = Zeroizing::new([0_u8; KEY_LENGTH]);
        rand::fill(bytes.as_mut()).map_err(|_unspecified| SealFault::NoRandom)?;
        Self::new(bytes.as_ref())
    }

    /// From what a provider gave back.
    pub(super) fn new(bytes: &[u8]) -> Result<Self, SealFault> {
        let Ok(bytes) = <&[u8; KEY_LENGTH]>::try_from(bytes) else {
            return Err(SealFault::Tampered);
        };
        Ok(Self {
            bytes: Zeroizing::new(*bytes),
            cipher: Cipher::new(FORMAT, b"guan data key id", bytes)?,
        })
    }

    /// For a provider to wrap.
    pub(super) fn bytes(&self) -> &[u8; KEY_LENGTH] {
        &self.bytes
    }

    pub(super) fn is(&self, bytes: &[u8]) -> bool {
        constant_time::verify_slices_are_equal(self.bytes.as_ref(), bytes).is_ok()
    }

    /// Public, safe in logs.
    pub(super) fn id(&self) -> String {
        self.cipher.id()
    }

    pub(super) fn seal(&self, what: &str, plain: &[u8]) -> Result<Vec<u8>, SealFault> {
        self.cipher.seal(what.as_bytes(), plain)
    }

    pub(super) fn open(&self, what: &str, blob: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealFault> {
        self.cipher
            .open(what.as_bytes(), blob, |_id| SealFault::OtherStore)
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataKey({}, …)", self.id())
    }
}

/// What is sealed under a data key begins with this byte.
pub(super) const FORMAT: u8 = 2;
