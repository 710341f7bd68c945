//! Against a server on this machine that checks each signature as the documentation says, from the bytes it got.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use aws_lc_rs::{digest, hmac};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::seal::client::Endpoint;

const ID: &str = "LTAI5tExampleKeyId";
const SECRET: &str = "ExampleSecretKey0123456789";

/// Answers calls like the service, with "encryption" that keeps plaintext and context beside each other.
struct Service {
    url: String,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Service {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = Arc::clone(&seen);
        let _serving = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut bytes = Vec::new();
                while !bytes.windows(4).any(|w| w == b"\r\n\r\n") {
                    assert!(stream.read_buf(&mut bytes).await.unwrap() > 0);
                }
                let head = String::from_utf8(bytes).unwrap();
                let (status, body) = answer(&head);
                kept.lock().unwrap().push(head);
                let text = body.to_string();
                let answer = format!(
                    "HTTP/1.1 {status} X\r\ncontent-length: {}\r\ncontent-type: application/json\r\n\r\n{text}",
                    text.len()
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Self { url, seen }
    }

    fn kms(&self, key_id: &str, secret: &str) -> Kms {
        Kms::new(Settings {
            endpoint: Endpoint::parse(&self.url, None).unwrap(),
            key_id: key_id.to_owned(),
            access_key_id: Secret::new(ID.to_owned().into()),
            access_key_secret: Secret::new(secret.to_owned().into()),
        })
    }
}

fn answer(head: &str) -> (u16, Value) {
    let mut lines = head.trim_end().split("\r\n");
    let first = lines.next().unwrap();
    let query = first
        .strip_prefix("POST /?")
        .unwrap()
        .strip_suffix(" HTTP/1.1")
        .unwrap();
    let headers: BTreeMap<String, &str> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .collect();
    let said = headers["authorization"];
    let names = said
        .split("SignedHeaders=")
        .nth(1)
        .unwrap()
        .split(',')
        .next()
        .unwrap();
    for needed in [
        "host",
        "x-acs-action",
        "x-acs-content-sha256",
        "x-acs-date",
        "x-acs-signature-nonce",
        "x-acs-version",
    ] {
        assert!(
            names.split(';').any(|name| name == needed),
            "{needed} isn't signed"
        );
    }
    let mut canonical = format!("POST\n/\n{query}\n");
    for name in names.split(';') {
        canonical.push_str(&format!("{name}:{}\n", headers[name]));
    }
    let sha256 = |bytes: &[u8]| hex(digest::digest(&digest::SHA256, bytes).as_ref());
    canonical.push_str(&format!("\n{names}\n{}", sha256(b"")));
    assert_eq!(headers["x-acs-content-sha256"], sha256(b""));
    let to_sign = format!("ACS3-HMAC-SHA256\n{}", sha256(canonical.as_bytes()));
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let signature = hex(hmac::sign(&key, to_sign.as_bytes()).as_ref());
    if said
        != format!("ACS3-HMAC-SHA256 Credential={ID},SignedHeaders={names},Signature={signature}")
    {
        // The real one repeats what it got in its message.
        return (
            400,
            json!({ "Code": "SignatureDoesNotMatch", "Message": said }),
        );
    }
    assert_eq!(headers["x-acs-version"], "2016-01-20");
    done(headers["x-acs-action"], query)
}

fn done(act: &str, query: &str) -> (u16, Value) {
    let parameters: BTreeMap<&str, String> = query
        .split('&')
        .map(|part| part.split_once('=').unwrap())
        .map(|(name, value)| (name, unescaped(value)))
        .collect();
    match act {
        "Encrypt" => {
            let kept = json!([
                parameters["KeyId"],
                parameters["Plaintext"],
                parameters["EncryptionContext"]
            ]);
            let blob = STANDARD.encode(kept.to_string());
            (
                200,
                json!({ "CiphertextBlob": blob, "KeyId": parameters["KeyId"], "KeyVersionId": "v-1", "RequestId": "r" }),
            )
        }
        "Decrypt" => {
            let kept = STANDARD
                .decode(&parameters["CiphertextBlob"])
                .unwrap_or_default();
            match serde_json::from_slice::<Value>(&kept) {
                Ok(kept) if kept[2] == parameters["EncryptionContext"].as_str() => {
                    (200, json!({ "Plaintext": kept[1], "KeyId": kept[0] }))
                }
                _ => (400, json!({ "Code": "InvalidParameter.CiphertextBlob" })),
            }
        }
        other => panic!("{other}"),
    }
}

fn unescaped(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let two = [bytes.next().unwrap(), bytes.next().unwrap()];
            out.push(u8::from_str_radix(std::str::from_utf8(&two).unwrap(), 16).unwrap());
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).unwrap()
}

#[tokio::test]
async fn what_it_wraps_it_opens_by_calls_with_good_signatures() {
    let service = Service::start().await;
    let kms = service.kms("key-hzz62f1cb66fa42qo", SECRET);
    let wrapped = kms.wrap(&[9; 32]).await.unwrap();
    assert_eq!(
        (
            wrapped.provider.as_str(),
            wrapped.key_id.as_str(),
            wrapped.version.as_deref()
        ),
        ("aliyun", "key-hzz62f1cb66fa42qo", Some("v-1"))
    );
    assert_eq!(kms.open(&wrapped).await.unwrap().as_slice(), [9; 32]);
    let nonces: Vec<String> = {
        let seen = service.seen.lock().unwrap();
        let nonce = |head: &String| {
            head.split("x-acs-signature-nonce: ")
                .nth(1)
                .unwrap()
                .split('\r')
                .next()
                .unwrap()
                .to_owned()
        };
        seen.iter().map(nonce).collect()
    };
    assert_ne!(nonces[0], nonces[1], "a nonce serves once");
    // Another key of the same account isn't ours.
    let other = service.kms("key-other", SECRET);
    assert!(matches!(
        other.open(&wrapped).await,
        Err(SealFault::NotOurs(_))
    ));
}

#[tokio::test]
async fn a_wrong_secret_is_refused_and_its_answer_not_repeated() {
    let service = Service::start().await;
    let kms = service.kms("key-1", "hunter2");
    let fault = kms.wrap(&[9; 32]).await.unwrap_err();
    let said = fault.to_string();
    assert!(
        said.contains("SignatureDoesNotMatch") && said.contains("[kms]"),
        "{said}"
    );
    assert!(!said.contains("Signature=") && !said.contains(ID), "{said}");
    let changed = Wrapped {
        provider: NAME.to_owned(),
        key_id: "key-1".to_owned(),
        version: None,
        blob: b"AAAA".to_vec(),
    };
    let fault = service
        .kms("key-1", SECRET)
        .open(&changed)
        .await
        .unwrap_err();
    assert!(
        fault
            .to_string()
            .contains("InvalidParameter.CiphertextBlob"),
        "{fault}"
    );
}
