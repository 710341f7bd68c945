//! Tokens of identity providers: a JWT in compact form (RFC 7519), from its text to a role and a project.
//!
//! Decides whether a text has the form of one, whether a key of its issuer signed it, and what its claims give its
//! bearer. The algorithm is never the token's choice: it must be on the issuer's list and fit the key's type, and
//! there is no `none` and no HMAC. Nothing in a token leads to a key: `jku`, `jwk`, `x5u` and `x5c` are never read.
//! Pure; called by `gateway::check`, and by `control::identity` for the keys that an issuer publishes.

mod claims;
pub mod key_set;
mod strict;

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

pub use claims::Admitted;
pub use strict::object;

use crate::refusal::{Refusal, Untrusted};
use crate::token::key_set::KeySet;

/// The longest token that is looked at, bytes: two of them fit into the head of a request.
pub const LONGEST: usize = 8 << 10;

/// How a token may be signed (RFC 7518 section 3.1, RFC 8037).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// RSA PKCS#1 v1.5 with SHA-256.
    Rs256,
    /// RSA PKCS#1 v1.5 with SHA-384.
    Rs384,
    /// RSA PKCS#1 v1.5 with SHA-512.
    Rs512,
    /// RSA PSS with SHA-256.
    Ps256,
    /// RSA PSS with SHA-384.
    Ps384,
    /// RSA PSS with SHA-512.
    Ps512,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// ECDSA on P-521 with SHA-512.
    Es512,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// All there are.
    pub const ALL: [Self; 10] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::EdDsa,
    ];

    /// Those of an issuer that says nothing else.
    pub const DEFAULT: [Self; 4] = [Self::Rs256, Self::Ps256, Self::Es256, Self::EdDsa];

    /// Its name in a token's head.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::EdDsa => "EdDSA",
        }
    }

    /// By its name, exactly; `Ed25519` (RFC 9864) is `EdDSA` here, which has no other curve.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        if name == "Ed25519" {
            return Some(Self::EdDsa);
        }
        Self::ALL.into_iter().find(|known| known.name() == name)
    }
}

/// Whose tokens are taken, and what they give: one `[[issuers]]` of the config file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// What `iss` must be, letter by letter.
    pub url: Arc<str>,
    /// One of these must be in `aud`; at least one.
    pub audience: Vec<String>,
    /// How its tokens may be signed.
    pub algorithms: Vec<Algorithm>,
    /// The claim that names the caller.
    pub subject_claim: String,
    /// The claim that names the project, for rules that don't.
    pub project_claim: Option<String>,
    /// Seconds by which clocks may differ.
    pub leeway: i64,
    /// Seconds since `iat` after which a token is too old, whatever its `exp` says.
    pub max_age: Option<i64>,
    /// Nanoseconds for which its keys are good after they were last fetched.
    pub keys_max_stale: u64,
    /// What its claims give: the first that fits counts.
    pub map: Vec<Rule>,
}

/// What a claim gives: one `[[issuers.map]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The claim and the value it must have or hold; `None`: every token of the issuer.
    pub when: Option<(String, String)>,
    /// The role.
    pub role: Arc<str>,
    /// Who pays.
    pub project: Option<Arc<str>>,
}

/// What became of the question whether an issuer has new keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looked {
    /// What is published was fetched after the question.
    Fresh,
    /// It was fetched while the question came: a key that was made meanwhile may not be in it.
    Joined,
    /// The issuer can't be asked.
    Away,
}

/// Whether a text has the form of a token: three parts of base64url, none of them empty. Our own keys never have it;
/// foreign keys may.
#[must_use]
pub fn has_form(text: &str) -> bool {
    let mut parts = 0_u8;
    for part in text.split('.') {
        let letter = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if part.is_empty() || !part.bytes().all(letter) {
            return false;
        }
        parts = parts.saturating_add(1);
    }
    parts == 3
}

/// A token that was read and not yet believed.
pub struct Token {
    /// What is signed: head and claims as they came.
    signed: String,
    signature: Vec<u8>,
    algorithm: Option<Algorithm>,
    kid: Option<String>,
    claims: Map<String, Value>,
}

impl Token {
    /// Reads a text. `None`: it isn't a token, whatever its form; it may still be somebody's key.
    ///
    /// # Errors
    /// A token that nobody could believe.
    pub fn read(text: &str) -> Option<Result<Self, Untrusted>> {
        if text.len() > LONGEST || !has_form(text) {
            return None;
        }
        let (signed, signature) = text.rsplit_once('.')?;
        let (head, claims) = signed.split_once('.')?;
        let head = object(&URL_SAFE_NO_PAD.decode(head).ok()?)?;
        let algorithm = head.get("alg")?.as_str()?;
        Some(Self::of(signed, signature, &head, algorithm, claims))
    }

    fn of(
        signed: &str,
        signature: &str,
        head: &Map<String, Value>,
        algorithm: &str,
        claims: &str,
    ) -> Result<Self, Untrusted> {
        // Whoever marks a member as critical wants it understood, and none is understood here (RFC 7515 4.1.11).
        if head.contains_key("crit") {
            return Err(Untrusted::Malformed);
        }
        // A logout token or a proof of possession is signed by the same keys and means something else.
        let kind = match head.get("typ") {
            None => "jwt",
            Some(kind) => kind.as_str().ok_or(Untrusted::Malformed)?,
        };
        let bare = kind.strip_prefix("application/").unwrap_or(kind);
        if !["jwt", "at+jwt"]
            .iter()
            .any(|good| bare.eq_ignore_ascii_case(good))
        {
            return Err(Untrusted::Malformed);
        }
        let kid = match head.get("kid") {
            None => None,
            Some(kid) => Some(kid.as_str().ok_or(Untrusted::Malformed)?.to_owned()),
        };
        let decoded = |part: &str| {
            URL_SAFE_NO_PAD
                .decode(part)
                .map_err(|_form| Untrusted::Malformed)
        };
        let claims = object(&decoded(claims)?).ok_or(Untrusted::Malformed)?;
        Ok(Self {
            signed: signed.to_owned(),
            signature: decoded(signature)?,
            algorithm: Algorithm::parse(algorithm),
            kid,
            claims,
        })
    }

    /// Who says he made it.
    #[must_use]
    pub fn issuer(&self) -> Option<&str> {
        self.claims.get("iss")?.as_str()
    }

    /// Whether a key of this issuer signed it. Takes from 20 microseconds to about a millisecond.
    ///
    /// # Errors
    /// [`Untrusted::UnknownKey`] when the issuer's keys don't have the one that is named: it may have a new one.
    pub fn verify(&self, issuer: &Issuer, keys: &KeySet) -> Result<(), Untrusted> {
        let algorithm = self
            .algorithm
            .filter(|algorithm| issuer.algorithms.contains(algorithm))
            .ok_or(Untrusted::Algorithm)?;
        keys.verify(
            algorithm,
            self.kid.as_deref(),
            self.signed.as_bytes(),
            &self.signature,
        )
    }

    /// What a token whose signature is good gives its bearer at `now`, seconds since 1970.
    ///
    /// # Errors
    /// 401, told apart only where it is too late; 403 when nothing is given to this subject.
    pub fn admit(&self, issuer: &Issuer, now: i64) -> Result<Admitted, Refusal> {
        claims::admit(&self.claims, issuer, now)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests;
