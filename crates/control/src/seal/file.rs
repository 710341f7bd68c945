//! The key-encryption key in a file: `secrets/kek`, 32 bytes, mode 0400.
//!
//! Blob: `0x01 | key id, 8 | nonce, 12 | ciphertext | tag, 16`, AES-256-GCM; format and key id are authenticated
//! with the caller's own words. The key never leaves this type and is wiped with it.

use std::fmt;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{digest, rand};
use zeroize::Zeroizing;

use super::SealFault;
use crate::folder::{self, Secret};

/// A key-encryption key.
pub struct Kek {
    key: LessSafeKey,
    id: [u8; ID_LENGTH],
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
    pub fn open(dir: &Path) -> Result<Self, SealFault> {
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
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"guan kek id");
        context.update(bytes);
        let mut id = [0; ID_LENGTH];
        for (to, from) in id.iter_mut().zip(context.finish().as_ref()) {
            *to = *from;
        }
        let key =
            UnboundKey::new(&AES_256_GCM, bytes).map_err(|_unspecified| SealFault::NoRandom)?;
        Ok(Self {
            key: LessSafeKey::new(key),
            id,
        })
    }

    /// The key's id, hex: public, safe in logs.
    #[must_use]
    pub fn id(&self) -> String {
        hex(&self.id)
    }

    /// Seals `plain`. It opens only with the same `aad`: a word that says what it is, so that one sealed value
    /// can't stand in for another.
    ///
    /// # Errors
    /// [`SealFault::NoRandom`].
    pub fn seal(&self, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, SealFault> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_unspecified| SealFault::NoRandom)?;
        let mut head = Vec::with_capacity(HEAD_LENGTH);
        head.push(FORMAT);
        head.extend_from_slice(&self.id);
        let bound = bound(&head, aad);
        let mut text = Zeroizing::new(Vec::with_capacity(plain.len().saturating_add(16)));
        text.extend_from_slice(plain);
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(bound),
                &mut *text,
            )
            .map_err(|_unspecified| SealFault::NoRandom)?;
        head.extend_from_slice(&nonce);
        head.extend_from_slice(&text);
        Ok(head)
    }

    /// Opens what [`Self::seal`] made with the same `aad`.
    ///
    /// # Errors
    /// [`SealFault`]: another key, another format, or changed.
    pub fn open_sealed(&self, aad: &[u8], blob: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealFault> {
        match blob.first() {
            Some(&FORMAT) => {}
            Some(&other) => return Err(SealFault::Format(other)),
            None => return Err(SealFault::Tampered),
        }
        let (Some((head, rest)), Some(sealed_by)) =
            (blob.split_at_checked(HEAD_LENGTH), blob.get(1..HEAD_LENGTH))
        else {
            return Err(SealFault::Tampered);
        };
        if sealed_by != self.id {
            return Err(SealFault::OtherKey {
                sealed_by: hex(sealed_by),
                this: self.id(),
            });
        }
        let Some((nonce, text)) = rest.split_at_checked(NONCE_LEN) else {
            return Err(SealFault::Tampered);
        };
        let nonce =
            Nonce::try_assume_unique_for_key(nonce).map_err(|_unspecified| SealFault::Tampered)?;
        let mut plain = Zeroizing::new(text.to_vec());
        let length = self
            .key
            .open_in_place(nonce, Aad::from(bound(head, aad)), &mut plain)
            .map_err(|_unspecified| SealFault::Tampered)?
            .len();
        plain.truncate(length);
        Ok(plain)
    }
}

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kek({}, …)", self.id())
    }
}

fn bound(head: &[u8], aad: &[u8]) -> Vec<u8> {
    [head, aad].concat()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The file's name in `secrets/`.
pub(crate) const FILE_NAME: &str = "kek";
const FORMAT: u8 = 1;
const KEY_LENGTH: usize = 32;
const ID_LENGTH: usize = 8;
const HEAD_LENGTH: usize = 1 + ID_LENGTH;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_sealed_opens_with_the_same_key_and_word_only() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let kek = Kek::create(one.path()).unwrap();
        let blob = kek.seal(b"pepper", b"secret").unwrap();
        let again = Kek::open(one.path()).unwrap();
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
            let fault = Kek::open(dir.path()).unwrap_err();
            assert!(fault.to_string().contains("chmod 400"), "{fault}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for size in [0, 31, 33, 4096] {
            fs::write(&path, vec![7; size]).unwrap();
            assert!(matches!(Kek::open(dir.path()), Err(SealFault::Size { .. })));
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(Kek::open(dir.path()), Err(SealFault::File { .. })));
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
