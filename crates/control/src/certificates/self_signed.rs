//! A certificate that vouches for itself: encryption from the first minute, trust by its fingerprint or by installing
//! it.
//!
//! EC P-256, 397 days, the names in its SAN only: a client that still reads the common name finds none to match.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::CertificateFault;

/// A certificate and its private key, PEM.
pub struct Pem {
    /// The certificate.
    pub chain: String,
    /// The private key; wiped when dropped.
    pub key: Zeroizing<String>,
    /// The certificate, DER: what a fingerprint is taken of.
    pub der: Vec<u8>,
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pem")
            .field("chain", &self.chain)
            .finish_non_exhaustive()
    }
}

/// Makes a certificate for `localhost`, the loopback addresses, this machine's host name and `names` (host names or
/// IP addresses), valid from an hour before `now` (seconds since 1970).
///
/// # Errors
/// [`CertificateFault::Name`], [`CertificateFault::Make`].
pub fn make(names: &[String], now: i64) -> Result<Pem, CertificateFault> {
    let failed = |cause: &dyn fmt::Display| CertificateFault::Make(cause.to_string());
    let mut serial = [0; 16];
    rand::fill(&mut serial).map_err(|_unspecified| failed(&"no randomness"))?;
    if let Some(first) = serial.first_mut() {
        // Positive and never shorter, whatever is drawn.
        *first = *first & 0x3f | 0x40;
    }
    let begin = OffsetDateTime::from_unix_timestamp(now)
        .ok()
        .and_then(|now| now.checked_sub(Duration::HOUR))
        .ok_or_else(|| failed(&"the system's clock is far off"))?;
    let end = begin
        .checked_add(Duration::days(VALID_DAYS))
        .ok_or_else(|| failed(&"the system's clock is far off"))?;

    let mut params = CertificateParams::default();
    params.not_before = begin;
    params.not_after = end;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.subject_alt_names = alternative_names(names)?;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, ORGANIZATION);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];

    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|cause| failed(&cause))?;
    let certificate = params.self_signed(&key).map_err(|cause| failed(&cause))?;
    Ok(Pem {
        chain: pem(certificate.der()),
        key: Zeroizing::new(key.serialize_pem()),
        der: certificate.der().to_vec(),
    })
}

/// Whether a certificate is one that [`make`] made: issuer and subject carry our word.
pub(super) fn is_ours(der: &[u8]) -> bool {
    der.windows(ORGANIZATION.len())
        .filter(|part| *part == ORGANIZATION.as_bytes())
        .count()
        >= 2
}

/// A certificate as PEM.
pub(super) fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.extend(line.iter().map(|&letter| char::from(letter)));
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

fn alternative_names(given: &[String]) -> Result<Vec<SanType>, CertificateFault> {
    let mut names = vec![
        dns("localhost")?,
        SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)),
    ];
    // A host name that no certificate can carry is left out: nobody asked for it.
    if let Ok(own) = dns(&rustix::system::uname().nodename().to_string_lossy()) {
        names.push(own);
    }
    for name in given {
        names.push(match name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => dns(name)?,
        });
    }
    let mut unique: Vec<SanType> = Vec::with_capacity(names.len());
    for name in names {
        if !unique.contains(&name) {
            unique.push(name);
        }
    }
    Ok(unique)
}

fn dns(text: &str) -> Result<SanType, CertificateFault> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let fault = || CertificateFault::Name(text.chars().take(255).collect());
    let labels: Vec<&str> = name
        .strip_prefix("*.")
        .unwrap_or(&name)
        .split('.')
        .collect();
    let digits = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    // The last label of a name isn't a number: that would be a mistyped address.
    let last_is_number = labels.last().is_some_and(|label| digits(label));
    if name.len() > 253 || last_is_number || !labels.iter().all(|label| is_label(label)) {
        return Err(fault());
    }
    name.try_into()
        .map(SanType::DnsName)
        .map_err(|_not_ascii: rcgen::Error| fault())
}

fn is_label(label: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=63).contains(&label.len())
        && label.bytes().all(letter)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// Whose it is, for people.
const ORGANIZATION: &str = "Guan, self-signed";
/// The most that browsers accept.
const VALID_DAYS: i64 = 397;
