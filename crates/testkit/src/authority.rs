//! A certificate authority for tests: it issues certificates to clients and to servers on `localhost`.

use std::sync::Arc;

use base64::Engine as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

use crate::issuer::now;

/// An authority.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its private key.
#[derive(Debug)]
pub struct Identity {
    /// The certificate.
    pub chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

impl Identity {
    /// The certificate and its private key, PEM.
    #[must_use]
    pub fn pem(&self) -> (String, String) {
        let armour = |label: &str, der: &[u8]| {
            let text = base64::engine::general_purpose::STANDARD.encode(der);
            let lines: Vec<_> = text
                .as_bytes()
                .chunks(64)
                .map(String::from_utf8_lossy)
                .collect();
            format!(
                "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
                lines.join("\n")
            )
        };
        let chain = self.chain.iter().map(|der| armour("CERTIFICATE", der));
        (chain.collect(), armour("PRIVATE KEY", &self.key))
    }

    /// The private key.
    #[must_use]
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }
}

impl Authority {
    /// A new one.
    ///
    /// # Panics
    /// When it can't be made.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    /// Its certificate, PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A client's certificate with these names (`dns:…`, `uri:…`, `email:…`), good for an hour.
    #[must_use]
    pub fn client(&self, names: &[&str]) -> Identity {
        self.client_for(names, now() - 60, now() + 3600)
    }

    /// The same for another time.
    #[must_use]
    pub fn client_for(&self, names: &[&str], from: i64, to: i64) -> Identity {
        let names = names.iter().map(|name| san(name)).collect();
        self.issue(names, ExtendedKeyUsagePurpose::ClientAuth, from, to)
    }

    /// A certificate of a server, which no client may use.
    #[must_use]
    pub fn server(&self, names: &[&str]) -> Identity {
        let names = names.iter().map(|name| san(name)).collect();
        self.issue(
            names,
            ExtendedKeyUsagePurpose::ServerAuth,
            now() - 60,
            now() + 3600,
        )
    }

    /// TLS of a server on `localhost`.
    ///
    /// # Panics
    /// When it can't be set up.
    #[must_use]
    pub fn server_config(&self) -> ServerConfig {
        let identity = self.server(&["dns:localhost"]);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("TLS versions")
            .with_no_client_auth()
            .with_single_cert(identity.chain.clone(), identity.key())
            .expect("a usable pair")
    }

    fn issue(
        &self,
        names: Vec<SanType>,
        purpose: ExtendedKeyUsagePurpose,
        from: i64,
        to: i64,
    ) -> Identity {
        let at = |seconds| OffsetDateTime::from_unix_timestamp(seconds).expect("a time");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = at(from);
        params.not_after = at(to);
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        Identity {
            chain: vec![certificate.der().clone()],
            key: key.serialize_der(),
        }
    }
}

fn san(name: &str) -> SanType {
    let (kind, text) = name.split_once(':').expect("a kind in front");
    let text = text.try_into().expect("ASCII");
    match kind {
        "dns" => SanType::DnsName(text),
        "uri" => SanType::URI(text),
        "email" => SanType::Rfc822Name(text),
        other => panic!("no kind {other}"),
    }
}
