//! The provider `aliyun`: Alibaba Cloud KMS (API 2016-01-20), by `Encrypt` and `Decrypt` with an encryption context.
//!
//! Requests are signed with `ACS3-HMAC-SHA256` (`sign`); parameters stand where the official SDKs put them. Tested
//! against its published example, a request of the official SDK and a server that checks signatures; never against
//! the cloud itself. Called through [`Provider`].

mod sign;

use std::time::SystemTime;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::cipher::hex;
use super::client::Endpoint;
use super::{Answer, PURPOSE, Provider, SealFault, Secret, Wrapped, decoded};

/// What it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where it is.
    pub endpoint: Endpoint,
    /// The key's id or alias.
    pub key_id: String,
    /// The access key's id.
    pub access_key_id: Secret,
    /// The access key.
    pub access_key_secret: Secret,
}

/// The address of a region's endpoint.
#[must_use]
pub fn address(region: &str) -> String {
    format!("https://kms.{region}.aliyuncs.com")
}

/// The service.
#[derive(Debug)]
pub(super) struct Kms {
    settings: Settings,
}

impl Kms {
    pub(super) const fn new(settings: Settings) -> Self {
        Self { settings }
    }

    async fn call(&self, act: &str, parameters: &[(&str, &str)]) -> Result<Value, SealFault> {
        let mut nonce = [0_u8; 16];
        rand::fill(&mut nonce).map_err(|_unspecified| SealFault::NoRandom)?;
        let (nonce, host) = (hex(&nonce), self.settings.endpoint.authority());
        let stamp = sign::stamp(SystemTime::now());
        let query = Zeroizing::new(sign::query(parameters));
        let mut headers = vec![
            ("host", host.as_str()),
            ("x-acs-action", act),
            ("x-acs-content-sha256", sign::NOTHING),
            ("x-acs-date", stamp.as_str()),
            ("x-acs-signature-nonce", nonce.as_str()),
            ("x-acs-version", "2016-01-20"),
        ];
        let authorization = sign::authorization(
            &query,
            &headers,
            self.settings.access_key_id.text(),
            self.settings.access_key_secret.text(),
        );
        headers.retain(|(name, _)| *name != "host");
        headers.extend([
            ("accept", "application/json"),
            ("authorization", authorization.as_str()),
        ]);
        let target = Zeroizing::new(format!("/?{}", *query));
        let (status, answer) = self
            .settings
            .endpoint
            .post(&target, &headers, b"")
            .await
            .map_err(|cause| self.away(cause.to_string()))?;
        match status {
            200 => serde_json::from_slice(&answer).map_err(|_not| self.strange("no JSON")),
            400..=428 | 430..=499 => {
                let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
                // By its code alone: its texts repeat what was sent.
                let code = answer
                    .get("Code")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                let code = plain_code(code);
                if code.starts_with("Throttling") {
                    return Err(self.away(code));
                }
                Err(SealFault::Refused {
                    provider: self.describe(),
                    cause: format!("status {status} {code}").trim_end().to_owned(),
                })
            }
            _ => Err(self.away(format!("status {status}"))),
        }
    }

    fn away(&self, cause: String) -> SealFault {
        SealFault::Away {
            provider: self.describe(),
            cause,
        }
    }

    fn strange(&self, cause: &str) -> SealFault {
        SealFault::Answer {
            provider: self.describe(),
            cause: cause.to_owned(),
        }
    }
}

impl Provider for Kms {
    fn name(&self) -> &'static str {
        NAME
    }

    fn key_id(&self) -> String {
        self.settings.key_id.clone()
    }

    fn describe(&self) -> String {
        format!(
            "Alibaba Cloud KMS at {} (key {})",
            self.settings.endpoint.url(),
            self.settings.key_id
        )
    }

    fn wrap<'a>(&'a self, key: &'a [u8; 32]) -> Answer<'a, Wrapped> {
        Box::pin(async move {
            let plain = Zeroizing::new(STANDARD.encode(key));
            let context = context();
            let parameters = [
                ("EncryptionContext", context.as_str()),
                ("KeyId", &self.settings.key_id),
                ("Plaintext", &plain),
            ];
            let answer = self.call("Encrypt", &parameters).await?;
            let blob = answer.get("CiphertextBlob").and_then(Value::as_str);
            let blob = blob.ok_or_else(|| self.strange("no ciphertext"))?;
            let version = answer.get("KeyVersionId").and_then(Value::as_str);
            Ok(Wrapped {
                provider: NAME.to_owned(),
                key_id: self.key_id(),
                version: version.map(plain_code),
                blob: blob.as_bytes().to_vec(),
            })
        })
    }

    fn open<'a>(&'a self, wrapped: &'a Wrapped) -> Answer<'a, Zeroizing<Vec<u8>>> {
        Box::pin(async move {
            let blob = std::str::from_utf8(&wrapped.blob).map_err(|_not| SealFault::Tampered)?;
            let context = context();
            let parameters = [
                ("CiphertextBlob", blob),
                ("EncryptionContext", context.as_str()),
            ];
            let answer = self.call("Decrypt", &parameters).await?;
            // The call names no key: what another key of this account encrypted isn't ours.
            let named = &self.settings.key_id;
            let by = answer
                .get("KeyId")
                .and_then(Value::as_str)
                .unwrap_or_default();
            if !named.contains("alias/") && (by.is_empty() || !named.ends_with(by)) {
                return Err(SealFault::NotOurs(self.describe()));
            }
            decoded(answer.get("Plaintext")).ok_or_else(|| self.strange("no plaintext"))
        })
    }
}

fn context() -> String {
    json!({ "purpose": PURPOSE }).to_string()
}

/// A service's word for a fault or a version: letters, digits and a few marks of it, so that nothing else gets into
/// our logs.
pub(super) fn plain_code(text: &str) -> String {
    let good = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    text.chars().filter(good).take(64).collect()
}

/// Its word in `[kms]`.
pub(super) const NAME: &str = "aliyun";

#[cfg(test)]
mod tests;
