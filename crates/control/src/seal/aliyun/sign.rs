//! Alibaba Cloud's signature, third version (`ACS3-HMAC-SHA256`), for calls whose parameters stand in the query. Pure.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::{digest, hmac};

use super::super::cipher::hex;
use crate::clock;

/// SHA-256 of an empty body.
pub(super) const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// A time as signatures have it: `2023-10-26T10:22:32Z`.
pub(super) fn stamp(at: SystemTime) -> String {
    let seconds = at
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    clock::rfc3339_seconds(i64::try_from(seconds).unwrap_or(0))
}

/// Parameters, in the order of the alphabet, as a query.
pub(super) fn query(parameters: &[(&str, &str)]) -> String {
    let parts: Vec<String> = parameters
        .iter()
        .map(|(name, value)| format!("{name}={}", escaped(value)))
        .collect();
    parts.join("&")
}

/// The `authorization` header of a POST to `/` without a body. Names of headers in small letters, in the order of the
/// alphabet.
pub(super) fn authorization(
    query: &str,
    headers: &[(&str, &str)],
    access_key_id: &str,
    secret: &str,
) -> String {
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let lines: String = headers
        .iter()
        .map(|(name, value)| format!("{name}:{}\n", value.trim()))
        .collect();
    let canonical =
        zeroize::Zeroizing::new(format!("POST\n/\n{query}\n{lines}\n{names}\n{NOTHING}"));
    let digest = digest::digest(&digest::SHA256, canonical.as_bytes());
    let to_sign = format!("ACS3-HMAC-SHA256\n{}", hex(digest.as_ref()));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signature = hex(hmac::sign(&key, to_sign.as_bytes()).as_ref());
    format!(
        "ACS3-HMAC-SHA256 Credential={access_key_id},SignedHeaders={names},Signature={signature}"
    )
}

/// As RFC 3986 has it: all but letters, digits and `-_.~`.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signature(said: &str) -> &str {
        said.rsplit_once("Signature=").unwrap().1
    }

    /// The example of the documentation of this signature (ECS `RunInstances`).
    #[test]
    fn the_published_example_has_its_signature() {
        let query = query(&[
            (
                "ImageId",
                "win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd",
            ),
            ("RegionId", "cn-shanghai"),
        ]);
        let headers = [
            ("host", "ecs.cn-shanghai.aliyuncs.com"),
            ("x-acs-action", "RunInstances"),
            ("x-acs-content-sha256", NOTHING),
            ("x-acs-date", "2023-10-26T10:22:32Z"),
            ("x-acs-signature-nonce", "3156853299f313e23d1673dc12e1703d"),
            ("x-acs-version", "2014-05-26"),
        ];
        let said = authorization(&query, &headers, "YourAccessKeyId", "YourAccessKeySecret");
        assert_eq!(
            said,
            "ACS3-HMAC-SHA256 Credential=YourAccessKeyId,SignedHeaders=host;x-acs-action;x-acs-content-sha256;x-acs-date;\
             x-acs-signature-nonce;x-acs-version,Signature=06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0"
        );
    }

    /// What the official SDK for Python (alibabacloud-kms20160120 3.3.1) signs for the same call, its clock and nonce
    /// fixed; `tests/kms/aliyun_sdk.py` makes it.
    #[test]
    fn an_encrypt_call_has_the_signature_of_the_official_sdk() {
        let query = query(&[
            ("EncryptionContext", "{\"purpose\":\"guan data key\"}"),
            ("KeyId", "key-hzz62f1cb66fa42qo/+x"),
            ("Plaintext", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
        ]);
        let headers = [
            ("accept", "application/json"),
            ("host", "kms.cn-hangzhou.aliyuncs.com"),
            (
                "user-agent",
                "AlibabaCloud (Linux; x86_64) Python/3.11.7 Core/0.4.3 TeaDSL/2",
            ),
            ("x-acs-action", "Encrypt"),
            ("x-acs-content-sha256", NOTHING),
            ("x-acs-credentials-provider", "static_ak"),
            ("x-acs-date", "2026-11-25T06:20:00Z"),
            ("x-acs-signature-nonce", "f0e1d2c3b4a5968778695a4b3c2d1e0f"),
            ("x-acs-version", "2016-01-20"),
        ];
        let said = authorization(
            &query,
            &headers,
            "LTAI5tExampleKeyId",
            "ExampleSecretKey0123456789",
        );
        assert_eq!(
            signature(&said),
            "6a7fa67c909334c704af331cc822fce1aefd26f20952b726fbf1b51e4e5c482b"
        );
    }

    #[test]
    fn a_time_is_written_as_signatures_have_it() {
        let at = UNIX_EPOCH + std::time::Duration::from_secs(1_698_315_752);
        assert_eq!(stamp(at), "2023-10-26T10:22:32Z");
    }
}
