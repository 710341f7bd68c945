//! Signed checkpoints of a chain: what makes a line that was changed show even when all hashes were made anew.
//!
//! It decides what is signed (which chain, how far, the hash of its last line, when) and with what (Ed25519). A
//! checkpoint stands in the line after the one it signs. Made by `control::audit_log`, judged by [`super::verify`].

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Head;

/// What signs checkpoints. It never shows its private half.
pub struct Signer {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

/// What checkpoints are judged by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

/// How far a chain was whole, signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Checkpoint {
    /// The chain, `NODE-GENERATION`.
    pub chain: String,
    /// The number of the last line that it covers.
    pub seq: u64,
    /// That line's hash, hex.
    pub head: String,
    /// When it was signed, RFC 3339.
    pub at: String,
    /// Which key signed it: [`PublicKey::id`].
    pub key: String,
    /// The signature, base64.
    pub signature: String,
}

impl Signer {
    /// Of 32 random bytes.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).ok()?;
        let public = <[u8; 32]>::try_from(pair.public_key().as_ref()).ok()?;
        Some(Self {
            pair,
            public: PublicKey(public),
        })
    }

    /// Its public half.
    #[must_use]
    pub const fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs that `chain` was whole up to line `seq`.
    #[must_use]
    pub fn sign(&self, chain: &str, seq: u64, head: Head, at: String) -> Checkpoint {
        let mut signed = Checkpoint {
            chain: chain.to_owned(),
            seq,
            head: head.to_string(),
            at,
            key: self.public.id(),
            signature: String::new(),
        };
        signed.signature = STANDARD.encode(self.pair.sign(&signed.text()));
        signed
    }
}

impl Checkpoint {
    /// What is signed: each word on a line of its own, so that none can run into the next.
    fn text(&self) -> Vec<u8> {
        let Self {
            chain,
            seq,
            head,
            at,
            key,
            signature: _,
        } = self;
        format!("guan audit checkpoint 1\n{chain}\n{seq}\n{head}\n{at}\n{key}\n").into_bytes()
    }

    /// Whether `key` signed it as it stands.
    #[must_use]
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        self.key == key.id()
            && STANDARD.decode(&self.signature).is_ok_and(|signature| {
                UnparsedPublicKey::new(&ED25519, key.0)
                    .verify(&self.text(), &signature)
                    .is_ok()
            })
    }
}

impl PublicKey {
    /// Reads its base64.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = STANDARD.decode(text.trim()).ok()?;
        bytes.try_into().ok().map(Self)
    }

    /// A short name: the first 16 hex digits of its SHA-256.
    #[must_use]
    pub fn id(&self) -> String {
        let mut whole = Head::of(&self.0).to_string();
        whole.truncate(16);
        whole
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_good_as_it_was_signed_and_in_no_other_way() {
        let signer = Signer::from_seed(&[7; 32]).unwrap();
        let key = signer.public();
        assert_eq!(PublicKey::parse(&format!("{key}\n")), Some(key));
        assert_eq!(PublicKey::parse("AAAA"), None);
        let good = signer.sign("n-1", 4, Head::of(b"x"), "2026-01-01T00:00:00Z".to_owned());
        assert!(good.is_signed_by(&key));
        let other = Signer::from_seed(&[8; 32]).unwrap();
        assert!(!good.is_signed_by(&other.public()));
        let changes: [fn(&mut Checkpoint); 6] = [
            |it| it.chain = "n-2".to_owned(),
            |it| it.seq = 5,
            |it| it.head = Head::of(b"y").to_string(),
            |it| it.at.push('Z'),
            |it| it.key.push('0'),
            |it| it.signature = STANDARD.encode([0_u8; 64]),
        ];
        for change in changes {
            let mut changed = good.clone();
            change(&mut changed);
            assert!(!changed.is_signed_by(&key), "{changed:?}");
        }
        // Words can't run into each other: what moves over a line's end is another text.
        let (mut a, mut b) = (good.clone(), good);
        a.chain = "n-1\n4".to_owned();
        b.at = format!("{}\n", b.at);
        assert!(!a.is_signed_by(&key) && !b.is_signed_by(&key));
        assert!(!format!("{signer:?}").contains("pair"));
    }
}
