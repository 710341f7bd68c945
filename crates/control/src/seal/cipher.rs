//! AES-256-GCM with a key that has a name: what is sealed says by which key, and opens as what it was sealed as.
//!
//! Blob: `format | key id, 8 | nonce, 12 | ciphertext | tag, 16`; format and key id are authenticated together with
//! the caller's word for what it is. Called by `file` (format 1) and `data_key` (format 2).

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{digest, rand};
use zeroize::Zeroizing;

use super::SealFault;

/// A key under its name.
pub(super) struct Cipher {
    key: LessSafeKey,
    id: [u8; ID_LENGTH],
    format: u8,
}

impl Cipher {
    /// `label` goes into the name, so that one key in two uses has two names.
    pub(super) fn new(
        format: u8,
        label: &[u8],
        bytes: &[u8; KEY_LENGTH],
    ) -> Result<Self, SealFault> {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(label);
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
            format,
        })
    }

    pub(super) fn id(&self) -> String {
        hex(&self.id)
    }

    pub(super) fn seal(&self, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, SealFault> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_unspecified| SealFault::NoRandom)?;
        let mut head = Vec::with_capacity(HEAD_LENGTH);
        head.push(self.format);
        head.extend_from_slice(&self.id);
        let bound = [head.as_slice(), aad].concat();
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

    /// `other` is the fault when another key sealed it, whose name it gets.
    pub(super) fn open(
        &self,
        aad: &[u8],
        blob: &[u8],
        other: impl FnOnce(String) -> SealFault,
    ) -> Result<Zeroizing<Vec<u8>>, SealFault> {
        match blob.first() {
            Some(&format) if format == self.format => {}
            Some(&format) => return Err(SealFault::Format(format)),
            None => return Err(SealFault::Tampered),
        }
        let (Some((head, rest)), Some(sealed_by)) =
            (blob.split_at_checked(HEAD_LENGTH), blob.get(1..HEAD_LENGTH))
        else {
            return Err(SealFault::Tampered);
        };
        if sealed_by != self.id {
            return Err(other(hex(sealed_by)));
        }
        let Some((nonce, text)) = rest.split_at_checked(NONCE_LEN) else {
            return Err(SealFault::Tampered);
        };
        let nonce =
            Nonce::try_assume_unique_for_key(nonce).map_err(|_unspecified| SealFault::Tampered)?;
        let mut plain = Zeroizing::new(text.to_vec());
        let length = self
            .key
            .open_in_place(nonce, Aad::from([head, aad].concat()), &mut plain)
            .map_err(|_unspecified| SealFault::Tampered)?
            .len();
        plain.truncate(length);
        Ok(plain)
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) const KEY_LENGTH: usize = 32;
const ID_LENGTH: usize = 8;
const HEAD_LENGTH: usize = 1 + ID_LENGTH;
