//! Who calls: one extractor for every header that may carry a credential, one kind of `Caller`.
//!
//! A key of ours, a foreign one that was imported, a token of an identity provider, and without any of them the
//! connection's client certificate. What a header says decides alone: a bad key isn't mended by a good certificate.

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use rules::certificate;
use rules::chain;
use rules::key::{self, Digest, KeyFault};
use rules::limit::{CallerId, Plan};
use rules::policy::{Policy, effective};
use rules::refusal::{Refusal, Unadmitted, Unfit, Untrusted};
use rules::snapshot::{Invalid, Key};
use rules::token::{self, has_form};

use crate::check::fresh::Looked;
use crate::check::token::admit;
use crate::door::accept::Peer;
use crate::door::handshake::ClientCertificate;
use crate::settings::{Model, Settings};
use crate::state::Gateway;

/// Headers that may carry a key, beside `Authorization`.
const BARE: [&str; 2] = ["x-api-key", "api-key"];

/// The longest key that is looked at, bytes; tokens are longer.
const LONGEST: usize = 512;

/// A caller whose credential is valid now.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The key; of a caller without one, what stands for it.
    pub(crate) key: Arc<Key>,
    /// How it showed that; `None` where somebody else vouches for him.
    pub(crate) proof: Option<Proof>,
    /// What it may do: the narrowest of role, project and key.
    pub(crate) policy: Policy,
    /// Who he is to whoever vouches for him; `None`: the key is all there is.
    pub(crate) identity: Option<Arc<chain::Identity>>,
}

/// What a call began with: looked at again when keys change while it runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Proof {
    /// What the key was found by.
    pub(crate) digest: Digest,
    /// Until when that secret was to be valid, seconds since 1970.
    pub(crate) until: i64,
}

impl Caller {
    /// Its name among limits.
    pub(crate) fn id(&self) -> CallerId {
        self.key.id.into()
    }

    /// All limits that hold for its calls.
    pub(crate) fn plan(
        &self,
        gateway: &Gateway,
        settings: &Settings,
        model: Option<&Model>,
    ) -> Plan {
        let project = self.key.project.as_deref();
        gateway
            .limits
            .plan(self.id(), &self.policy, project, model, &settings.node)
    }
}

/// Finds out who calls.
///
/// # Errors
/// 401 in all its reasons, 429 when there were too many of them from this address; 503 when the store can't be asked
/// about a key that nobody knows.
pub(crate) async fn authenticate(
    gateway: &Gateway,
    settings: &Settings,
    headers: &HeaderMap,
    peer: &Peer,
) -> Result<Caller, Refusal> {
    let address = peer.address.ip();
    let certificate = peer.certificate.as_deref();
    if let Some(certificate) = certificate
        && !is_current(certificate, gateway.clock.unix_seconds())
    {
        // Whatever else he shows: the connection should no longer be there.
        return Err(Refusal::ExpiredCertificate);
    }
    let credential = match (extract(headers), certificate) {
        (Err(Refusal::NoCredential), Some(certificate)) => {
            return by_certificate(gateway, settings, certificate, address);
        }
        (extracted, _) => extracted?,
    };
    // Foreign keys have forms of their own; only a damaged one of ours is told from its form.
    let form = key::check(credential);
    let digest = gateway.pepper.digest(credential);
    let first = if form == Err(KeyFault::Checksum) {
        Err(Refusal::MistypedKey)
    } else if key::is_admin(credential) {
        // It opens the admin API, and nothing here.
        Err(Refusal::UnknownKey(Unfit::Unknown))
    } else {
        judge(gateway, settings, &digest, address)
    };
    let is_known = !matches!(
        first,
        Err(Refusal::MistypedKey | Refusal::UnknownKey(Unfit::Unknown))
    );
    if is_known && gateway.freshness.is_stale(settings.max_stale) {
        // What is known is judged by what was read last, as long as that isn't too old to be true.
        return Err(Refusal::KeysUnavailable);
    }
    if first.is_ok() {
        return first;
    }
    let is_unknown = matches!(first, Err(Refusal::UnknownKey(Unfit::Unknown)));
    // A good token is served wherever it comes from: to see that it is good takes no look at the store.
    let rate = settings.failed_credentials_per_minute;
    let may_guess = || {
        let now = gateway.clock.unix_ns();
        let looked = gateway.failures.look(address, rate, now);
        looked.map_err(|retry| Refusal::FailedCredentials { retry })
    };
    let token = if is_unknown && !settings.issuers.is_empty() {
        by_token(
            gateway,
            settings,
            (credential, &digest),
            (address, &may_guess),
        )
        .await
    } else {
        None
    };
    if let Some(judged) = &token
        && !is_guess(judged)
    {
        return judged.clone();
    }
    // From here on it costs: a look at the store, or a guess more. An address may do that so often.
    may_guess()?;
    let last = match token {
        Some(judged) => judged,
        None if is_unknown => again(gateway, settings, form.is_ok(), &digest, address).await,
        None => first,
    };
    if is_guess(&last) {
        let now = gateway.clock.unix_ns();
        gateway.failures.count(address, rate, now);
    }
    last
}

/// Whether a credential was judged and found bad: not where nobody can tell, or only the role is missing.
const fn is_guess(judged: &Result<Caller, Refusal>) -> bool {
    !matches!(
        judged,
        Ok(_)
            | Err(Refusal::KeysUnavailable
                | Refusal::IssuerUnavailable
                | Refusal::NotAdmitted(_)
                | Refusal::Busy
                | Refusal::Internal)
    )
}

/// A key that nobody knows may have been made on another node a moment ago. Only what has our form is worth a look at
/// the store.
async fn again(
    gateway: &Gateway,
    settings: &Settings,
    is_ours: bool,
    digest: &Digest,
    address: IpAddr,
) -> Result<Caller, Refusal> {
    let looked = if is_ours {
        gateway.freshness.look().await
    } else {
        Looked::Full
    };
    match looked {
        Looked::Fresh => judge(gateway, settings, digest, address),
        Looked::Unavailable => Err(Refusal::KeysUnavailable),
        // Nobody asked the store: it counts as asked if it answered a moment ago.
        Looked::Full if gateway.freshness.is_lost() => Err(Refusal::KeysUnavailable),
        Looked::Full => Err(Refusal::UnknownKey(Unfit::Unknown)),
    }
}

/// Its time, which TLS looked at when the connection began.
const fn is_current(certificate: &ClientCertificate, now: i64) -> bool {
    certificate.read.not_before <= now && now <= certificate.read.not_after
}

/// Who calls with nothing but the connection's client certificate.
fn by_certificate(
    gateway: &Gateway,
    settings: &Settings,
    certificate: &ClientCertificate,
    address: IpAddr,
) -> Result<Caller, Refusal> {
    // The store says what projects narrow.
    if gateway.freshness.is_stale(settings.max_stale) {
        return Err(Refusal::KeysUnavailable);
    }
    let found = certificate::first(&settings.client_certificates, &certificate.read.names);
    let (rule, name) = found.ok_or(Refusal::NotAdmitted(Unadmitted::NoRole))?;
    let key = Arc::new(Key {
        id: gateway.pepper.caller_id(&["certificate", name]),
        name: name.into(),
        role: Arc::clone(&rule.role),
        project: rule.project.clone(),
        not_before: None,
        expires_at: None,
        revoked: false,
        own: None,
    });
    let identity = Arc::new(chain::Identity {
        certificate: Some(name.to_owned()),
        fingerprint: Some(certificate.fingerprint.clone()),
        ..chain::Identity::default()
    });
    Caller::vouched_for(gateway, settings, &key, identity, address).map_err(Refusal::NotAdmitted)
}

/// Who calls with a token. `None`: it isn't one.
async fn by_token(
    gateway: &Gateway,
    settings: &Settings,
    (credential, digest): (&str, &Digest),
    (address, may_guess): (IpAddr, &impl Fn() -> Result<(), Refusal>),
) -> Option<Result<Caller, Refusal>> {
    if !has_form(credential) {
        return None;
    }
    // The store says what projects narrow.
    if gateway.freshness.is_stale(settings.max_stale) {
        return Some(Err(Refusal::KeysUnavailable));
    }
    let admitted = admit(
        gateway,
        settings,
        (credential, digest),
        address,
        may_guess(),
    )
    .await?;
    let unknown = matches!(admitted, Err(Refusal::BadToken(Untrusted::UnknownIssuer)));
    if unknown && gateway.freshness.is_lost() {
        // It may be a key that was imported a moment ago on another node.
        return Some(Err(Refusal::KeysUnavailable));
    }
    Some(admitted)
}

/// What the keys in memory say.
fn judge(
    gateway: &Gateway,
    settings: &Settings,
    digest: &Digest,
    address: IpAddr,
) -> Result<Caller, Refusal> {
    let keys = gateway.keys.load();
    let (secret, project) = keys
        .judge(digest, gateway.clock.unix_seconds(), address)
        .map_err(|invalid| match invalid {
            Invalid::Unfit(why) => Refusal::UnknownKey(why),
            Invalid::Expired => Refusal::ExpiredKey,
        })?;
    let key = &secret.key;
    // A key whose role was taken out of the config may do nothing.
    let role = settings
        .roles
        .get(&*key.role)
        .ok_or(Refusal::UnknownKey(Unfit::NoRole))?;
    Ok(Caller {
        policy: effective(role, project, key.own.as_deref()),
        key: Arc::clone(key),
        proof: Some(Proof {
            digest: secret.digest,
            until: secret.until,
        }),
        identity: None,
    })
}

/// The one credential of a request. Two different ones are refused: nobody says which counts.
fn extract(headers: &HeaderMap) -> Result<&str, Refusal> {
    let mut found: Option<&str> = None;
    let bearer = headers
        .get_all(AUTHORIZATION)
        .iter()
        .map(|value| bearer(value.as_bytes()));
    let bare = BARE
        .iter()
        .flat_map(|name| headers.get_all(*name))
        .map(|value| token(value.as_bytes()));
    for credential in bearer.chain(bare) {
        let credential = credential.ok_or(Refusal::MalformedCredential)?;
        if found.is_some_and(|before| before != credential) {
            return Err(Refusal::MalformedCredential);
        }
        found = Some(credential);
    }
    if headers.get_all(AUTHORIZATION).iter().count() > 1 {
        return Err(Refusal::MalformedCredential);
    }
    found.ok_or(Refusal::NoCredential)
}

/// `Bearer`, one or more spaces, one token (RFC 9110 section 11.4): the scheme in any case.
fn bearer(value: &[u8]) -> Option<&str> {
    let (scheme, rest) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"bearer") || rest.first() != Some(&b' ') {
        return None;
    }
    token(rest)
}

/// A `token68` (RFC 9110 section 11.2), blanks around it aside.
fn token(value: &[u8]) -> Option<&str> {
    let text = value.trim_ascii();
    let legal = |b: &u8| b.is_ascii_alphanumeric() || b"-._~+/=:".contains(b);
    if text.is_empty() || text.len() > token::LONGEST || !text.iter().all(legal) {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?;
    (text.len() <= LONGEST || has_form(text)).then_some(text)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        of.iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .collect()
    }

    fn extracted(of: &[(&'static str, &'static str)]) -> Result<String, Refusal> {
        extract(&headers(of)).map(str::to_owned)
    }

    #[test]
    fn a25_legal_spellings_give_the_key() {
        let key = Ok("K1".to_owned());
        for value in ["Bearer K1", "bearer K1", "BEARER   K1", "Bearer K1 "] {
            assert_eq!(extracted(&[("authorization", value)]), key, "{value}");
        }
        assert_eq!(extracted(&[("x-api-key", "K1")]), key);
        assert_eq!(extracted(&[("api-key", "K1")]), key);
        let both = [("api-key", "K1"), ("authorization", "Bearer K1")];
        assert_eq!(extracted(&both), key);
    }

    #[test]
    fn a25_everything_else_is_refused_and_never_first_wins() {
        for value in [
            "Bearer K1,K2",
            "Bearer",
            "Bearer ",
            "BearerK1",
            "Basic K1",
            "K1",
            "",
            "Bearer K1 K2",
        ] {
            let refused = extracted(&[("authorization", value)]);
            assert_eq!(refused, Err(Refusal::MalformedCredential), "{value:?}");
        }
        for two in [
            [
                ("authorization", "Bearer K1"),
                ("authorization", "Bearer K2"),
            ],
            [
                ("authorization", "Bearer K1"),
                ("authorization", "Bearer K1"),
            ],
            [("authorization", "Bearer K1"), ("x-api-key", "K2")],
            [("x-api-key", "K1"), ("api-key", "K2")],
        ] {
            assert_eq!(
                extracted(&two),
                Err(Refusal::MalformedCredential),
                "{two:?}"
            );
        }
        assert_eq!(extracted(&[]), Err(Refusal::NoCredential));
    }

    #[test]
    fn tokens_may_be_longer_than_keys_and_have_a_limit_of_their_own() {
        let value = |length: usize, dots: bool| {
            let text = if dots {
                format!("a.b.{}", "c".repeat(length - 4))
            } else {
                "c".repeat(length)
            };
            token(text.as_bytes()).map(str::len)
        };
        assert_eq!((value(512, false), value(513, false)), (Some(512), None));
        assert_eq!(value(token::LONGEST, true), Some(token::LONGEST));
        assert_eq!(value(token::LONGEST + 1, true), None);
    }
}
