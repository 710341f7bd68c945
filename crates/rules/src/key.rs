//! API keys: their text, their checksum, and the digest that is stored instead of them.
//!
//! Text: `sk-guan-<id, 12>_<32 random bytes in base 62>_<CRC-32 in base 62, 6>`. The checksum tells a typo from a
//! wrong key without a look-up. Stored: HMAC-SHA-256(pepper, SHA-256(key)), so a stolen table can't test guesses
//! and a foreign key can be taken over as its SHA-256. Never logs or displays a key.

use std::fmt;

use aws_lc_rs::{digest, hmac};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

const PREFIX: &str = "sk-guan-";
const ADMIN_PREFIX: &str = "sk-guan-admin-";
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const ID_LENGTH: usize = 12;
const SECRET_LENGTH: usize = 43;
const CRC_LENGTH: usize = 6;

/// The public name of a key: twelve base-62 letters, safe in logs, lists and audit records.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; ID_LENGTH]);

impl KeyId {
    /// Reads an id.
    ///
    /// # Errors
    /// [`KeyFault::Shape`] when it isn't twelve base-62 letters.
    pub fn parse(text: &str) -> Result<Self, KeyFault> {
        let bytes: [u8; ID_LENGTH] = text
            .as_bytes()
            .try_into()
            .map_err(|_length| KeyFault::Shape)?;
        if bytes.iter().all(u8::is_ascii_alphanumeric) {
            Ok(Self(bytes))
        } else {
            Err(KeyFault::Shape)
        }
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Its bytes, for a slot on disk.
    #[must_use]
    pub const fn bytes(self) -> [u8; ID_LENGTH] {
        self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for KeyId {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Why a text can't be one of our keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// Empty, too long, or not the form of a key.
    #[error("not the form of a key")]
    Shape,
    /// The form is right, the checksum isn't: mistyped or cut.
    #[error("the key's checksum doesn't fit: mistyped or cut")]
    Checksum,
}

/// A new key, whole: shown once, then gone.
pub struct Minted {
    /// Its public name.
    pub id: KeyId,
    /// The key itself; wiped when dropped.
    pub text: Zeroizing<String>,
}

impl fmt::Debug for Minted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Minted({}, …)", self.id)
    }
}

/// Makes a key from 44 random bytes (12 for the id, 32 for the secret).
#[must_use]
pub fn mint(random: &[u8; 44]) -> Minted {
    let (for_id, secret) = random.split_at(ID_LENGTH);
    mint_for(PREFIX, id_of(for_id), secret)
}

/// Makes an admin token from 44 random bytes: the same form under another prefix, so that neither is ever taken for
/// the other.
#[must_use]
pub fn mint_admin(random: &[u8; 44]) -> Minted {
    let (for_id, secret) = random.split_at(ID_LENGTH);
    mint_for(ADMIN_PREFIX, id_of(for_id), secret)
}

/// Makes another key of the same id from 32 random bytes: what a rotation hands out.
#[must_use]
pub fn mint_again(id: KeyId, random: &[u8; 32]) -> Minted {
    mint_for(PREFIX, id, random)
}

fn id_of(random: &[u8]) -> KeyId {
    let mut id = [0_u8; ID_LENGTH];
    for (letter, byte) in id.iter_mut().zip(random) {
        // 256 isn't a multiple of 62; the id is a name, not a secret, so the small bias does no harm.
        *letter = base62_letter(usize::from(*byte % 62));
    }
    KeyId(id)
}

fn mint_for(prefix: &str, id: KeyId, secret: &[u8]) -> Minted {
    let mut text = Zeroizing::new(String::with_capacity(80));
    text.push_str(prefix);
    text.push_str(id.as_str());
    text.push('_');
    push_base62(&mut text, secret, SECRET_LENGTH);
    let crc = crc32fast::hash(text.as_bytes());
    text.push('_');
    push_base62(&mut text, &crc.to_be_bytes(), CRC_LENGTH);
    Minted { id, text }
}

/// Looks at a key's form and checksum only.
///
/// # Errors
/// [`KeyFault`].
pub fn check(text: &str) -> Result<KeyId, KeyFault> {
    check_with(PREFIX, text)
}

/// The same for an admin token.
///
/// # Errors
/// [`KeyFault`].
pub fn check_admin(text: &str) -> Result<KeyId, KeyFault> {
    check_with(ADMIN_PREFIX, text)
}

/// Whether a text begins as an admin token does: such a text is never a key, whatever else it is.
#[must_use]
pub fn is_admin(text: &str) -> bool {
    text.starts_with(ADMIN_PREFIX)
}

fn check_with(prefix: &str, text: &str) -> Result<KeyId, KeyFault> {
    let rest = text.strip_prefix(prefix).ok_or(KeyFault::Shape)?;
    let mut parts = rest.split('_');
    let (Some(id), Some(secret), Some(crc), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(KeyFault::Shape);
    };
    let id = KeyId::parse(id)?;
    let letters = secret
        .bytes()
        .chain(crc.bytes())
        .all(|b| b.is_ascii_alphanumeric());
    if secret.len() != SECRET_LENGTH || crc.len() != CRC_LENGTH || !letters {
        return Err(KeyFault::Shape);
    }
    let signed = text.len().saturating_sub(CRC_LENGTH.saturating_add(1));
    let want = crc32fast::hash(text.as_bytes().get(..signed).unwrap_or_default());
    let mut have = String::with_capacity(CRC_LENGTH);
    push_base62(&mut have, &want.to_be_bytes(), CRC_LENGTH);
    if have == crc {
        Ok(id)
    } else {
        Err(KeyFault::Checksum)
    }
}

/// What is stored of a key, and what it is found by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// From the store.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// For the store.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(…)")
    }
}

/// The secret that keys are hashed under. Sealed at rest; a table without it proves nothing.
#[derive(Clone)]
pub struct Pepper(hmac::Key);

impl Pepper {
    /// From its 32 bytes.
    #[must_use]
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// The digest of a key's text. Looking it up in a hash map tells an attacker nothing by its time: he can't
    /// choose the digest without the pepper.
    #[must_use]
    pub fn digest(&self, key: &str) -> Digest {
        let inner = digest::digest(&digest::SHA256, key.as_bytes());
        self.digest_of_sha256(inner.as_ref())
    }

    /// The digest of an admin token: of another domain than a key's, so that no key can be made that has it.
    #[must_use]
    pub fn digest_of_admin(&self, token: &str) -> Digest {
        let inner = digest::digest(&digest::SHA256, token.as_bytes());
        let domain = [b"guan admin token ", inner.as_ref()].concat();
        self.digest_of_sha256(&domain)
    }

    /// The digest of a foreign key that is known by its SHA-256 only.
    #[must_use]
    pub fn digest_of_sha256(&self, sha256: &[u8]) -> Digest {
        let tag = hmac::sign(&self.0, sha256);
        let mut out = [0_u8; 32];
        for (to, from) in out.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
        Digest(out)
    }

    /// The id of a caller who has no key of ours: the same for the same `words` (an issuer and its subject, a
    /// certificate's name) on every node. Without the pepper nobody can look for words whose id is another caller's.
    #[must_use]
    pub fn caller_id(&self, words: &[&str]) -> KeyId {
        let mut context = hmac::Context::with_key(&self.0);
        // Longer than any SHA-256, so that no digest of a key is made of it.
        context.update(b"guan: the id of a caller without a key of ours");
        for word in words {
            context.update(&u64::try_from(word.len()).unwrap_or(u64::MAX).to_be_bytes());
            context.update(word.as_bytes());
        }
        let mut id = [0_u8; ID_LENGTH];
        for (letter, byte) in id.iter_mut().zip(context.sign().as_ref()) {
            *letter = base62_letter(usize::from(*byte % 62));
        }
        KeyId(id)
    }
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pepper(…)")
    }
}

fn base62_letter(digit: usize) -> u8 {
    BASE62.get(digit).copied().unwrap_or(b'0')
}

/// Big-endian bytes as exactly `length` base-62 letters, zeros in front.
fn push_base62(out: &mut String, bytes: &[u8], length: usize) {
    let mut number = Zeroizing::new(bytes.to_vec());
    let mut letters = Zeroizing::new(vec![b'0'; length]);
    for letter in letters.iter_mut().rev() {
        let mut rest = 0_u16;
        for byte in number.iter_mut() {
            // rest < 62, so the value stays below 62 * 256.
            let value = rest.wrapping_mul(256).wrapping_add(u16::from(*byte));
            *byte = u8::try_from(value / 62).unwrap_or(u8::MAX);
            rest = value % 62;
        }
        *letter = base62_letter(usize::from(rest));
    }
    out.extend(letters.iter().map(|&b| char::from(b)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: u8) -> [u8; 44] {
        std::array::from_fn(|i| {
            seed.wrapping_mul(31)
                .wrapping_add(u8::try_from(i).unwrap().wrapping_mul(7))
        })
    }

    #[test]
    fn a_minted_key_has_the_documented_form_and_passes_its_own_check() {
        for seed in 0..=255 {
            let minted = mint(&random(seed));
            assert_eq!(check(&minted.text), Ok(minted.id));
            assert_eq!(minted.text.len(), 8 + 12 + 1 + 43 + 1 + 6);
        }
        let first = mint(&random(1));
        let second = mint_again(first.id, &[9; 32]);
        assert_eq!(check(&second.text), Ok(first.id));
        assert_ne!(first.text, second.text);
        let largest = mint(&[0xff; 44]);
        assert_eq!(check(&largest.text), Ok(largest.id));
    }

    #[test]
    fn every_single_wrong_letter_is_found_without_a_lookup() {
        let minted = mint(&random(7));
        for place in 8..minted.text.len() {
            let mut bytes = minted.text.as_bytes().to_vec();
            bytes[place] = if bytes[place] == b'x' { b'y' } else { b'x' };
            assert!(
                check(std::str::from_utf8(&bytes).unwrap()).is_err(),
                "place {place}"
            );
        }
        assert_eq!(check(minted.text.get(..70).unwrap()), Err(KeyFault::Shape));
        assert_eq!(check("sk-abcdef"), Err(KeyFault::Shape));
        assert_eq!(check(""), Err(KeyFault::Shape));
    }

    #[test]
    fn an_admin_token_is_never_a_key_nor_a_key_an_admin_token() {
        let (key, token) = (mint(&random(5)), mint_admin(&random(5)));
        assert_eq!(check_admin(&token.text), Ok(token.id));
        assert_eq!(check(&token.text), Err(KeyFault::Shape));
        assert_eq!(check_admin(&key.text), Err(KeyFault::Shape));
        assert!(is_admin(&token.text) && !is_admin(&key.text));
        let pepper = Pepper::new(&[1; 32]);
        assert_ne!(
            pepper.digest(&token.text),
            pepper.digest_of_admin(&token.text)
        );
    }

    #[test]
    fn digests_depend_on_the_pepper_and_can_be_made_from_a_sha256() {
        let (a, b) = (Pepper::new(&[1; 32]), Pepper::new(&[2; 32]));
        assert_eq!(a.digest("k"), a.digest("k"));
        assert_ne!(a.digest("k"), b.digest("k"));
        let sha = digest::digest(&digest::SHA256, b"k");
        assert_eq!(a.digest_of_sha256(sha.as_ref()), a.digest("k"));
    }

    #[test]
    fn callers_without_a_key_have_an_id_that_depends_on_each_word_and_the_pepper() {
        let (a, b) = (Pepper::new(&[1; 32]), Pepper::new(&[2; 32]));
        let id = a.caller_id(&["https://issuer", "subject"]);
        assert_eq!(KeyId::parse(id.as_str()), Ok(id));
        assert_eq!(id, a.caller_id(&["https://issuer", "subject"]));
        for other in [
            a.caller_id(&["https://issuers", "ubject"]),
            a.caller_id(&["https://issuer", "subject2"]),
            a.caller_id(&["https://issuersubject"]),
            b.caller_id(&["https://issuer", "subject"]),
        ] {
            assert_ne!(id, other);
        }
    }

    #[test]
    fn nothing_of_a_secret_is_in_debug_output() {
        let minted = mint(&random(3));
        let shown = format!("{minted:?} {:?}", Pepper::new(&[9; 32]));
        assert!(!shown.contains(minted.text.get(21..60).unwrap()));
    }
}
