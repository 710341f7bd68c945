//! The provider `vault`: the Transit engine of HashiCorp Vault or OpenBao.
//!
//! Two calls, `encrypt` and `decrypt`, with associated data; the key's version stands in what it gives
//! (`vault:v3:…`). The key must be of a type that takes associated data (`aes256-gcm96`, its default). Called through
//! [`Provider`].

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
    /// Where its Transit engine is mounted.
    pub mount: String,
    /// The key's name.
    pub key: String,
    /// A token with the right to `encrypt` and `decrypt` with that key.
    pub token: Secret,
    /// The namespace, where there are some.
    pub namespace: Option<String>,
}

/// The engine.
#[derive(Debug)]
pub(super) struct Transit {
    settings: Settings,
}

impl Transit {
    pub(super) const fn new(settings: Settings) -> Self {
        Self { settings }
    }

    async fn call(&self, act: &str, body: &Value) -> Result<Value, SealFault> {
        let Settings {
            endpoint,
            mount,
            key,
            token,
            namespace,
        } = &self.settings;
        let mut headers = vec![
            ("x-vault-token", token.text()),
            ("x-vault-request", "true"),
            ("content-type", "application/json"),
        ];
        if let Some(namespace) = namespace {
            headers.push(("x-vault-namespace", namespace));
        }
        let body = Zeroizing::new(body.to_string());
        let (status, answer) = endpoint
            .post(
                &format!("/v1/{mount}/{act}/{key}"),
                &headers,
                body.as_bytes(),
            )
            .await
            .map_err(|cause| self.away(cause.to_string()))?;
        match status {
            200 => serde_json::from_slice(&answer).map_err(|_not| self.strange("no JSON")),
            400..=428 | 430..=499 => Err(SealFault::Refused {
                provider: self.describe(),
                cause: self.said(status, &answer),
            }),
            _ => Err(self.away(self.said(status, &answer))),
        }
    }

    /// Its own words, unless they repeat the token.
    fn said(&self, status: u16, answer: &[u8]) -> String {
        let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
        let errors = answer.get("errors").and_then(Value::as_array);
        let words: Vec<&str> = errors
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let words: String = words
            .join("; ")
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(200)
            .collect();
        if words.is_empty() || words.contains(self.settings.token.text()) {
            return format!("status {status}");
        }
        format!("status {status}, {}", words.trim())
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

impl Provider for Transit {
    fn name(&self) -> &'static str {
        NAME
    }

    fn key_id(&self) -> String {
        format!("{}/{}", self.settings.mount, self.settings.key)
    }

    fn describe(&self) -> String {
        format!(
            "Vault at {} (key {})",
            self.settings.endpoint.url(),
            self.key_id()
        )
    }

    fn wrap<'a>(&'a self, key: &'a [u8; 32]) -> Answer<'a, Wrapped> {
        Box::pin(async move {
            let body = json!({
                "plaintext": STANDARD.encode(key),
                "associated_data": STANDARD.encode(PURPOSE),
            });
            let answer = self.call("encrypt", &body).await?;
            let text = answer.pointer("/data/ciphertext").and_then(Value::as_str);
            let text = text.ok_or_else(|| self.strange("no ciphertext"))?;
            let version = text
                .strip_prefix("vault:v")
                .and_then(|rest| rest.split_once(':'))
                .map(|(version, _)| version.to_owned())
                .filter(|version| version.bytes().all(|byte| byte.is_ascii_digit()));
            Ok(Wrapped {
                provider: NAME.to_owned(),
                key_id: self.key_id(),
                version: Some(
                    version.ok_or_else(|| self.strange("a ciphertext without a version"))?,
                ),
                blob: text.as_bytes().to_vec(),
            })
        })
    }

    fn open<'a>(&'a self, wrapped: &'a Wrapped) -> Answer<'a, Zeroizing<Vec<u8>>> {
        Box::pin(async move {
            let text = std::str::from_utf8(&wrapped.blob).map_err(|_not| SealFault::Tampered)?;
            let body = json!({
                "ciphertext": text,
                "associated_data": STANDARD.encode(PURPOSE),
            });
            let answer = self.call("decrypt", &body).await?;
            decoded(answer.pointer("/data/plaintext")).ok_or_else(|| self.strange("no plaintext"))
        })
    }
}

/// Its word in `[kms]`.
pub(super) const NAME: &str = "vault";
