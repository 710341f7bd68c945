//! The provider `aws`: AWS KMS, by `Encrypt` and `Decrypt` with an encryption context.
//!
//! Requests are signed with Signature Version 4 (`sign`). `Decrypt` names the key, so that nothing another key
//! encrypted is taken. Called through [`Provider`].

mod sign;

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::client::Endpoint;
use super::{Answer, PURPOSE, Provider, SealFault, Secret, Wrapped, decoded};

/// What it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where it is.
    pub endpoint: Endpoint,
    /// The region that signatures name.
    pub region: String,
    /// The key: its id, ARN or alias.
    pub key_id: String,
    /// The access key's id.
    pub access_key_id: Secret,
    /// The access key.
    pub access_key_secret: Secret,
    /// The token that comes with temporary credentials.
    pub session_token: Option<Secret>,
}

/// The address of a region's endpoint.
#[must_use]
pub fn address(region: &str) -> String {
    let top = if region.starts_with("cn-") {
        "amazonaws.com.cn"
    } else {
        "amazonaws.com"
    };
    format!("https://kms.{region}.{top}")
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

    async fn call(&self, act: &str, body: &Value) -> Result<Value, SealFault> {
        let body = Zeroizing::new(body.to_string());
        let (host, target) = (
            self.settings.endpoint.authority(),
            format!("TrentService.{act}"),
        );
        let stamp = sign::stamp(SystemTime::now());
        let mut headers = vec![
            ("content-type", "application/x-amz-json-1.1"),
            ("host", host.as_str()),
            ("x-amz-date", stamp.as_str()),
        ];
        if let Some(token) = &self.settings.session_token {
            headers.push(("x-amz-security-token", token.text()));
        }
        headers.push(("x-amz-target", target.as_str()));
        let authorization = sign::authorization(
            &sign::Request {
                method: "POST",
                path: "/",
                query: "",
                headers: &headers,
                body: body.as_bytes(),
            },
            &sign::Scope {
                stamp: &stamp,
                region: &self.settings.region,
                service: "kms",
            },
            self.settings.access_key_id.text(),
            self.settings.access_key_secret.text(),
        );
        headers.retain(|(name, _)| *name != "host");
        headers.push(("authorization", &authorization));
        let (status, answer) = self
            .settings
            .endpoint
            .post("/", &headers, body.as_bytes())
            .await
            .map_err(|cause| self.away(cause.to_string()))?;
        match status {
            200 => serde_json::from_slice(&answer).map_err(|_not| self.strange("no JSON")),
            400..=428 | 430..=499 => Err(self.refused(status, &answer)),
            _ => Err(self.away(format!("status {status}"))),
        }
    }

    /// By its code alone: its texts repeat what was sent.
    fn refused(&self, status: u16, answer: &[u8]) -> SealFault {
        let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
        let code = answer
            .get("__type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let code = super::aliyun::plain_code(code.rsplit('#').next().unwrap_or_default());
        match code.as_str() {
            "ThrottlingException" | "DependencyTimeoutException" | "KMSInternalException" => {
                self.away(code)
            }
            _ => SealFault::Refused {
                provider: self.describe(),
                cause: format!("status {status} {code}").trim_end().to_owned(),
            },
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
            "AWS KMS at {} (key {})",
            self.settings.endpoint.url(),
            self.settings.key_id
        )
    }

    fn wrap<'a>(&'a self, key: &'a [u8; 32]) -> Answer<'a, Wrapped> {
        Box::pin(async move {
            let body = json!({
                "KeyId": self.settings.key_id,
                "Plaintext": STANDARD.encode(key),
                "EncryptionContext": { "purpose": PURPOSE },
            });
            let answer = self.call("Encrypt", &body).await?;
            let blob = decoded(answer.get("CiphertextBlob"));
            Ok(Wrapped {
                provider: NAME.to_owned(),
                key_id: self.key_id(),
                // It rotates key material under the same id and doesn't say which.
                version: None,
                blob: blob.ok_or_else(|| self.strange("no ciphertext"))?.to_vec(),
            })
        })
    }

    fn open<'a>(&'a self, wrapped: &'a Wrapped) -> Answer<'a, Zeroizing<Vec<u8>>> {
        Box::pin(async move {
            let body = json!({
                "KeyId": self.settings.key_id,
                "CiphertextBlob": STANDARD.encode(&wrapped.blob),
                "EncryptionContext": { "purpose": PURPOSE },
            });
            let answer = self.call("Decrypt", &body).await?;
            decoded(answer.get("Plaintext")).ok_or_else(|| self.strange("no plaintext"))
        })
    }
}

/// Its word in `[kms]`.
pub(super) const NAME: &str = "aws";
