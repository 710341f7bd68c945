//! The provider `file`: a key-encryption key in `secrets/kek`, 32 bytes, mode 0400.
//!
//! What it seals begins with format byte 1 and its own id. The key never leaves this type and is wiped with it.

use std::fmt;
use std::path::Path;

use aws_lc_rs::rand;
use zeroize::Zeroizing;

use super::cipher::{Cipher, KEY_LENGTH};
use super::{Answer, PURPOSE, Provider, SealFault, Wrapped};
use crate::folder::{self, Secret};

/// A key-encryption key.
pub struct Kek {
    cipher: Cipher,
}

impl Kek {
    /// Makes a new key and writes it to `dir/kek`, mode 0400.
    ///
    /// # Errors
    /// [`SealFault::File`] also when there is one already: a key is never overwritten.
    pub fn create(dir: &Path) -> Result<Self, SealFault> {
        let mut bytes = Zeroizing::new([0_u8; KEY_LENGTH]);
        rand::fill(bytes.as_mut()).map_err(|_unspecified| SealFault::NoRandom)?;
        let path = dir.join(FILE_NAME);
        folder::write_new(&path, 0o400, bytes.as_ref()).map_err(|cause| SealFault::File {
            path,
            cause: cause.to_string(),
        })?;
        Self::new(&bytes)
    }

    /// Reads the key from `dir/kek`.
    ///
    /// # Errors
    /// [`SealFault`] when it isn't there, isn't 32 bytes, or others may read it.
    pub fn read(dir: &Path) -> Result<Self, SealFault> {
        let path = dir.join(FILE_NAME);
        let read = match folder::read_secret(&path, 64) {
            Ok(Secret::Bytes(bytes)) => bytes,
            Ok(Secret::Exposed(mode)) => return Err(SealFault::Exposed { path, mode }),
            Err(cause) => {
                return Err(SealFault::File {
                    path,
                    cause: cause.to_string(),
                });
            }
        };
        let Ok(bytes) = <&[u8; KEY_LENGTH]>::try_from(read.as_slice()) else {
            let size = read.len();
            return Err(SealFault::Size { path, size });
        };
        Self::new(bytes)
    }

    fn new(bytes: &[u8; KEY_LENGTH]) -> Result<Self, SealFault> {
        Ok(Self {
            cipher: Cipher::new(FORMAT, b"guan kek id", bytes)?,
        })
    }

    /// The key's id, hex: public, safe in logs.
    #[must_use]
    pub fn id(&self) -> String {
        self.cipher.id()
    }

    /// Seals `plain`. It opens only with the same `aad`: a word that says what it is, so that one sealed value
    /// can't stand in for another.
    ///
    /// # Errors
    /// [`SealFault::NoRandom`].
    pub fn seal(&self, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, SealFault> {
        self.cipher.seal(aad, plain)
    }

    /// Opens what [`Self::seal`] made with the same `aad`.
    ///
    /// # Errors
    /// [`SealFault`]: another key, another format, or changed.
    pub fn open_sealed(&self, aad: &[u8], blob: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealFault> {
        self.cipher
            .open(aad, blob, |sealed_by| SealFault::OtherKey {
                sealed_by,
                this: self.id(),
            })
    }
}

impl Provider for Kek {
    fn name(&self) -> &'static str {
        super::FILE
    }

    fn key_id(&self) -> String {
        self.id()
    }

    fn describe(&self) -> String {
        format!("the key in secrets/{FILE_NAME}")
    }

    fn wrap<'a>(&'a self, key: &'a [u8; 32]) -> Answer<'a, Wrapped> {
        Box::pin(async move {
            Ok(Wrapped {
                provider: self.name().to_owned(),
                key_id: self.key_id(),
                version: None,
                blob: self.seal(PURPOSE.as_bytes(), key)?,
            })
        })
    }

    fn open<'a>(&'a self, wrapped: &'a Wrapped) -> Answer<'a, Zeroizing<Vec<u8>>> {
        Box::pin(async move { self.open_sealed(PURPOSE.as_bytes(), &wrapped.blob) })
    }
}

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kek({}, …)", self.id())
    }
}

/// The file's name in `secrets/`.
pub(crate) const FILE_NAME: &str = "kek";
/// What a key in a file sealed begins with this byte: a wrapped data key, or the pepper of a store from before there
/// were data keys.
pub(super) const FORMAT: u8 = 1;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::super::cipher::hex;
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_the_same_key_and_word_only() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let kek = Kek::create(one.path()).unwrap();
        let blob = kek.seal(b"pepper", b"secret").unwrap();
        let again = Kek::read(one.path()).unwrap();
        assert_eq!(
            again.open_sealed(b"pepper", &blob).unwrap().as_slice(),
            b"secret"
        );
        assert_eq!(again.open_sealed(b"other", &blob), Err(SealFault::Tampered));
        assert_ne!(blob, kek.seal(b"pepper", b"secret").unwrap());
        let other = Kek::create(two.path()).unwrap();
        assert_eq!(
            other.open_sealed(b"pepper", &blob),
            Err(SealFault::OtherKey {
                sealed_by: kek.id(),
                this: other.id()
            })
        );
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let kek = Kek::create(dir.path()).unwrap();
        let blob = kek.seal(b"a", b"some text").unwrap();
        for place in 0..blob.len() {
            let mut changed = blob.clone();
            changed[place] ^= 1;
            assert!(kek.open_sealed(b"a", &changed).is_err(), "byte {place}");
            assert!(
                kek.open_sealed(b"a", &blob[..place]).is_err(),
                "cut {place}"
            );
        }
        assert_eq!(kek.open_sealed(b"a", b""), Err(SealFault::Tampered));
        assert_eq!(
            kek.open_sealed(b"a", b"\x02rest"),
            Err(SealFault::Format(2))
        );
    }

    #[test]
    fn a_key_file_that_others_may_read_or_of_a_wrong_size_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _kek = Kek::create(dir.path()).unwrap();
        let path = dir.path().join(FILE_NAME);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o400
        );
        assert!(matches!(
            Kek::create(dir.path()),
            Err(SealFault::File { .. })
        ));
        for mode in [0o440, 0o404, 0o640] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let fault = Kek::read(dir.path()).unwrap_err();
            assert!(fault.to_string().contains("chmod 400"), "{fault}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for size in [0, 31, 33, 4096] {
            fs::write(&path, vec![7; size]).unwrap();
            assert!(matches!(Kek::read(dir.path()), Err(SealFault::Size { .. })));
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(Kek::read(dir.path()), Err(SealFault::File { .. })));
    }

    #[test]
    fn nothing_of_the_key_is_in_debug_output() {
        let dir = tempfile::tempdir().unwrap();
        let kek = Kek::create(dir.path()).unwrap();
        let bytes = fs::read(dir.path().join(FILE_NAME)).unwrap();
        let shown = format!("{kek:?}");
        assert_eq!(shown, format!("Kek({}, …)", kek.id()));
        assert!(!shown.contains(&hex(&bytes[..4])));
    }
}
