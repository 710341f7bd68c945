//! The keys that an issuer publishes (a JWK set, RFC 7517), and whether one of them signed something.
//!
//! What can't be used is passed over, so that an issuer may publish more than is understood here: keys for
//! encryption, symmetric keys, curves of tomorrow. A private key in the set is passed over as well: whoever publishes
//! it signs for everybody. The set is bounded, and empty is refused: the set before it stays in use.

use std::fmt;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519,
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
    VerificationAlgorithm,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::{Algorithm, strict};
use crate::refusal::Untrusted;

/// The largest document, bytes.
pub const MOST_BYTES: usize = 256 << 10;

/// The most keys in it.
const MOST_KEYS: usize = 64;

/// Keys that may be tried on one token: those that share a name, or all where the token names none.
const MOST_TRIED: usize = 4;

/// Longer names are nobody's.
const LONGEST_KID: usize = 256;

/// The usable keys of one document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySet {
    keys: Vec<PublicKey>,
}

/// Why a document isn't taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetFault {
    /// Not an object with a list `keys`, or a member stands twice.
    #[error("isn't a JSON Web Key Set")]
    Form,
    /// Too large, or too many keys.
    #[error("is larger than {MOST_BYTES} bytes, or has more than {MOST_KEYS} keys")]
    Size,
    /// Nothing in it can be used.
    #[error(
        "has no key that can verify a signature: RSA from 2048 bits, P-256, P-384, P-521 or Ed25519, with use \"sig\""
    )]
    Empty,
}

#[derive(Clone, PartialEq, Eq)]
struct PublicKey {
    kid: Option<String>,
    /// What the issuer uses it for, if it says so.
    algorithm: Option<Algorithm>,
    material: Material,
}

#[derive(Clone, PartialEq, Eq)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    P521(Vec<u8>),
    Ed25519(Vec<u8>),
}

impl KeySet {
    /// Reads a document.
    ///
    /// # Errors
    /// [`KeySetFault`].
    pub fn read(document: &[u8]) -> Result<Self, KeySetFault> {
        if document.len() > MOST_BYTES {
            return Err(KeySetFault::Size);
        }
        let document = strict::object(document).ok_or(KeySetFault::Form)?;
        let keys = document.get("keys").and_then(Value::as_array);
        let keys = keys.ok_or(KeySetFault::Form)?;
        if keys.len() > MOST_KEYS {
            return Err(KeySetFault::Size);
        }
        let usable = keys
            .iter()
            .filter_map(|key| PublicKey::read(key.as_object()?));
        let keys: Vec<PublicKey> = usable.collect();
        if keys.is_empty() {
            return Err(KeySetFault::Empty);
        }
        Ok(Self { keys })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Never: such a document isn't taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether the key that is named signed `message`; where none is named, whether any of the fitting ones did.
    pub(super) fn verify(
        &self,
        algorithm: Algorithm,
        kid: Option<&str>,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), Untrusted> {
        let named = |key: &&PublicKey| kid.is_none_or(|kid| key.kid.as_deref() == Some(kid));
        if !self.keys.iter().any(|key| named(&key)) {
            return Err(Untrusted::UnknownKey);
        }
        let fits = |key: &&PublicKey| {
            key.material.fits(algorithm) && key.algorithm.is_none_or(|only| only == algorithm)
        };
        let mut tried = false;
        for key in self.keys.iter().filter(named).filter(fits).take(MOST_TRIED) {
            if key.material.verify(algorithm, message, signature) {
                return Ok(());
            }
            tried = true;
        }
        Err(match (kid, tried) {
            // Without a name nobody can tell a forged token from one of a new key.
            (None, _) => Untrusted::UnknownKey,
            (Some(_), true) => Untrusted::Signature,
            (Some(_), false) => Untrusted::Algorithm,
        })
    }
}

impl PublicKey {
    /// `None`: nothing that could verify a token.
    fn read(key: &Map<String, Value>) -> Option<Self> {
        let text = |name: &str| key.get(name).and_then(Value::as_str);
        if key.contains_key("d") || key.get("use").is_some_and(|value| value != "sig") {
            return None;
        }
        if let Some(acts) = key.get("key_ops")
            && !acts.as_array()?.iter().any(|act| act == "verify")
        {
            return None;
        }
        let number = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
        let point = |size: usize| {
            let (x, y) = (number("x")?, number("y")?);
            (x.len() == size && y.len() == size).then(|| [&[4], x.as_slice(), &y].concat())
        };
        let material = match (text("kty")?, text("crv")) {
            ("RSA", _) => Material::Rsa {
                n: without_zeros(number("n")?),
                e: without_zeros(number("e")?),
            },
            ("EC", Some("P-256")) => Material::P256(point(32)?),
            ("EC", Some("P-384")) => Material::P384(point(48)?),
            ("EC", Some("P-521")) => Material::P521(point(66)?),
            ("OKP", Some("Ed25519")) => Material::Ed25519(number("x")?),
            _ => return None,
        };
        let algorithm = match key.get("alg") {
            None => None,
            Some(name) => {
                let algorithm = Algorithm::parse(name.as_str()?)?;
                if !material.fits(algorithm) {
                    return None;
                }
                Some(algorithm)
            }
        };
        let kid = match key.get("kid") {
            None => None,
            Some(kid) => Some(
                kid.as_str()
                    .filter(|kid| kid.len() <= LONGEST_KID)?
                    .to_owned(),
            ),
        };
        material.is_sound().then_some(Self {
            kid,
            algorithm,
            material,
        })
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({:?})", self.kid)
    }
}

impl Material {
    const fn fits(&self, algorithm: Algorithm) -> bool {
        match algorithm {
            Algorithm::Rs256
            | Algorithm::Rs384
            | Algorithm::Rs512
            | Algorithm::Ps256
            | Algorithm::Ps384
            | Algorithm::Ps512 => matches!(self, Self::Rsa { .. }),
            Algorithm::Es256 => matches!(self, Self::P256(_)),
            Algorithm::Es384 => matches!(self, Self::P384(_)),
            Algorithm::Es512 => matches!(self, Self::P521(_)),
            Algorithm::EdDsa => matches!(self, Self::Ed25519(_)),
        }
    }

    /// A modulus of 2048 to 8192 bits, a point on its curve.
    fn is_sound(&self) -> bool {
        let parses = |with: &'static dyn VerificationAlgorithm, key: &[u8]| {
            ParsedPublicKey::new(with, key).is_ok()
        };
        match self {
            Self::Rsa { n, e } => {
                let unused = n.first().map_or(0, |byte| byte.leading_zeros());
                let unused = usize::try_from(unused).unwrap_or_default();
                let bits = n.len().saturating_mul(8).saturating_sub(unused);
                (2048..=8192).contains(&bits)
                    && RsaPublicKeyComponents { n, e }
                        .to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256)
                        .is_ok()
            }
            Self::P256(point) => parses(&ECDSA_P256_SHA256_FIXED, point),
            Self::P384(point) => parses(&ECDSA_P384_SHA384_FIXED, point),
            Self::P521(point) => parses(&ECDSA_P521_SHA512_FIXED, point),
            Self::Ed25519(key) => key.len() == 32 && parses(&ED25519, key),
        }
    }

    fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let by = |with: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(with, key)
                .verify(message, signature)
                .is_ok()
        };
        match self {
            Self::Rsa { n, e } => rsa(algorithm).is_some_and(|with| {
                RsaPublicKeyComponents { n, e }
                    .verify(with, message, signature)
                    .is_ok()
            }),
            Self::P256(point) => by(&ECDSA_P256_SHA256_FIXED, point),
            Self::P384(point) => by(&ECDSA_P384_SHA384_FIXED, point),
            Self::P521(point) => by(&ECDSA_P521_SHA512_FIXED, point),
            Self::Ed25519(key) => by(&ED25519, key),
        }
    }
}

const fn rsa(algorithm: Algorithm) -> Option<&'static RsaParameters> {
    match algorithm {
        Algorithm::Rs256 => Some(&RSA_PKCS1_2048_8192_SHA256),
        Algorithm::Rs384 => Some(&RSA_PKCS1_2048_8192_SHA384),
        Algorithm::Rs512 => Some(&RSA_PKCS1_2048_8192_SHA512),
        Algorithm::Ps256 => Some(&RSA_PSS_2048_8192_SHA256),
        Algorithm::Ps384 => Some(&RSA_PSS_2048_8192_SHA384),
        Algorithm::Ps512 => Some(&RSA_PSS_2048_8192_SHA512),
        Algorithm::Es256 | Algorithm::Es384 | Algorithm::Es512 | Algorithm::EdDsa => None,
    }
}

/// Some issuers write a modulus with a zero byte in front.
fn without_zeros(number: Vec<u8>) -> Vec<u8> {
    number.into_iter().skip_while(|byte| *byte == 0).collect()
}
