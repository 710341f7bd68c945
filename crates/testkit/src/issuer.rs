//! An identity provider for tests: it signs real tokens, publishes its keys, rotates them, and misbehaves on demand.
//!
//! Plain HTTP on a free loopback port, or HTTPS under an authority of [`crate::authority`]; ended with the test.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING,
    ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
    RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

/// A private key that signs tokens.
#[derive(Debug)]
pub struct Signer {
    kid: String,
    algorithm: &'static str,
    pair: Pair,
}

#[derive(Debug)]
enum Pair {
    Rsa(Box<RsaKeyPair>),
    Elliptic(EcdsaKeyPair),
    Edwards(Ed25519KeyPair),
}

impl Signer {
    /// A new key for one algorithm, by its name in a token's head.
    ///
    /// # Panics
    /// When there is no such algorithm.
    #[must_use]
    pub fn new(algorithm: &'static str, kid: &str) -> Self {
        let elliptic = |with| Pair::Elliptic(EcdsaKeyPair::generate(with).expect("a key"));
        let pair = match algorithm {
            "ES256" => elliptic(&ECDSA_P256_SHA256_FIXED_SIGNING),
            "ES384" => elliptic(&ECDSA_P384_SHA384_FIXED_SIGNING),
            "ES512" => elliptic(&ECDSA_P521_SHA512_FIXED_SIGNING),
            "EdDSA" => Pair::Edwards(Ed25519KeyPair::generate().expect("a key")),
            "RS256" | "RS384" | "RS512" | "PS256" | "PS384" | "PS512" => Pair::Rsa(Box::new(
                RsaKeyPair::generate(KeySize::Rsa2048).expect("a key"),
            )),
            other => panic!("no algorithm {other}"),
        };
        Self {
            kid: kid.to_owned(),
            algorithm,
            pair,
        }
    }

    /// The public half as a JWK.
    #[must_use]
    pub fn jwk(&self) -> Value {
        let mut jwk = match &self.pair {
            Pair::Rsa(pair) => {
                // PKCS#1: a sequence of the modulus, here of 256 bytes behind a zero, and of 65537.
                let der = pair.public_key().as_ref();
                json!({ "kty": "RSA", "n": encode(&der[9..265]), "e": encode(&der[der.len() - 3..]) })
            }
            Pair::Elliptic(pair) => {
                let (x, y) = halves(&pair.public_key().as_ref()[1..]);
                let curve = match self.algorithm {
                    "ES256" => "P-256",
                    "ES384" => "P-384",
                    _ => "P-521",
                };
                json!({ "kty": "EC", "crv": curve, "x": encode(x), "y": encode(y) })
            }
            Pair::Edwards(pair) => {
                json!({ "kty": "OKP", "crv": "Ed25519", "x": encode(pair.public_key().as_ref()) })
            }
        };
        jwk["kid"] = self.kid.as_str().into();
        jwk["use"] = "sig".into();
        jwk["alg"] = self.algorithm.into();
        jwk
    }

    /// The public half as a verifier of another kind might read it: bytes for a HMAC.
    #[must_use]
    pub fn public_bytes(&self) -> Vec<u8> {
        match &self.pair {
            Pair::Rsa(pair) => pair.public_key().as_ref().to_vec(),
            Pair::Elliptic(pair) => pair.public_key().as_ref().to_vec(),
            Pair::Edwards(pair) => pair.public_key().as_ref().to_vec(),
        }
    }

    /// A token with these claims.
    #[must_use]
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_with(
            &json!({ "alg": self.algorithm, "kid": self.kid, "typ": "JWT" }),
            &claims.to_string(),
        )
    }

    /// A token with this head, whatever it says, and these claims, whatever they are.
    ///
    /// # Panics
    /// When it can't be signed.
    #[must_use]
    pub fn sign_with(&self, head: &Value, claims: &str) -> String {
        let signed = format!("{}.{}", encode(head.to_string()), encode(claims));
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                let with: &'static dyn aws_lc_rs::signature::RsaEncoding = match self.algorithm {
                    "RS256" => &RSA_PKCS1_SHA256,
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    "PS384" => &RSA_PSS_SHA384,
                    _ => &RSA_PSS_SHA512,
                };
                pair.sign(with, &random, signed.as_bytes(), &mut signature)
                    .expect("a signature");
                signature
            }
            Pair::Elliptic(pair) => {
                let signature = pair.sign(&random, signed.as_bytes());
                signature.expect("a signature").as_ref().to_vec()
            }
            Pair::Edwards(pair) => pair.sign(signed.as_bytes()).as_ref().to_vec(),
        };
        format!("{signed}.{}", encode(signature))
    }
}

/// A token that nobody signed: any head, claims and signature.
#[must_use]
pub fn unsigned(head: &Value, claims: &Value, signature: &[u8]) -> String {
    let (head, claims) = (encode(head.to_string()), encode(claims.to_string()));
    format!("{head}.{claims}.{}", encode(signature))
}

/// The head and claims of such a token, signed by HMAC-SHA-256 with any bytes as its key.
#[must_use]
pub fn hmac_signed(head: &Value, claims: &Value, key: &[u8]) -> String {
    use aws_lc_rs::hmac;
    let signed = format!(
        "{}.{}",
        encode(head.to_string()),
        encode(claims.to_string())
    );
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), signed.as_bytes());
    format!("{signed}.{}", encode(tag.as_ref()))
}

/// How an issuer answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manner {
    /// As it should.
    Good,
    /// Connections are closed without a word.
    Away,
    /// Nothing is answered until the manner changes.
    Silent,
    /// The documents are larger than any reader should take.
    Oversized,
    /// Its configuration names another issuer.
    Lying,
    /// Every document is elsewhere.
    Redirecting,
    /// A document of this text in place of the keys.
    Instead(String),
}

#[derive(Debug)]
struct State {
    manner: Manner,
    keys: Vec<Value>,
    fetched: BTreeMap<String, usize>,
    ended: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    url: String,
    tls: Option<Arc<ServerConfig>>,
}

/// A running issuer.
#[derive(Debug)]
pub struct Issuer {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Issuer {
    /// Starts one that publishes the keys of these signers.
    #[must_use]
    pub fn start(signers: &[&Signer]) -> Self {
        Self::start_with(signers, None, "")
    }

    /// The same over TLS, for `localhost`.
    #[must_use]
    pub fn start_tls(signers: &[&Signer], tls: ServerConfig) -> Self {
        Self::start_with(signers, Some(Arc::new(tls)), "/realms/company")
    }

    fn start_with(signers: &[&Signer], tls: Option<Arc<ServerConfig>>, path: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let url = if tls.is_some() {
            format!("https://localhost:{}{path}", address.port())
        } else {
            format!("http://{address}{path}")
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                manner: Manner::Good,
                keys: signers.iter().map(|signer| signer.jwk()).collect(),
                fetched: BTreeMap::new(),
                ended: false,
            }),
            changed: Condvar::new(),
            url,
            tls,
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if serving.state().ended {
                    return;
                }
                let serving = Arc::clone(&serving);
                std::thread::spawn(move || serving.serve(stream));
            }
        });
        Self { shared, address }
    }

    /// Its name: what tokens carry as `iss`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.shared.url
    }

    /// Publishes other keys.
    pub fn publish(&self, signers: &[&Signer]) {
        self.shared.state().keys = signers.iter().map(|signer| signer.jwk()).collect();
    }

    /// Publishes these documents as keys, whatever they are.
    pub fn publish_raw(&self, keys: Vec<Value>) {
        self.shared.state().keys = keys;
    }

    /// Answers in another manner from now on.
    pub fn behave(&self, manner: Manner) {
        self.shared.state().manner = manner;
        self.shared.changed.notify_all();
    }

    /// How often its keys were asked for.
    #[must_use]
    pub fn fetches(&self) -> usize {
        self.shared.state().fetched.get(KEYS).copied().unwrap_or(0)
    }

    /// How often anything was asked for at a path.
    #[must_use]
    pub fn asked(&self, path: &str) -> usize {
        self.shared.state().fetched.get(path).copied().unwrap_or(0)
    }

    /// Claims that are good for ten minutes: of this issuer, for `guan`, of `subject`.
    #[must_use]
    pub fn claims(&self, subject: &str) -> Value {
        let now = now();
        json!({ "iss": self.url(), "aud": "guan", "sub": subject, "iat": now, "nbf": now, "exp": now + 600,
                "groups": ["staff", "llm-users"] })
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.shared.state().ended = true;
        self.shared.changed.notify_all();
        // Wakes the listener.
        drop(TcpStream::connect(self.address));
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test thread died in here")
    }

    fn serve(&self, stream: TcpStream) {
        match &self.tls {
            None => self.answer(stream),
            Some(config) => {
                let tls = ServerConnection::new(Arc::clone(config)).expect("TLS");
                self.answer(StreamOwned::new(tls, stream));
            }
        }
    }

    fn answer<S: Read + Write>(&self, stream: S) {
        let mut reader = BufReader::new(stream);
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match reader.read_until(b'\n', &mut head) {
                Ok(read) if read > 0 => {}
                Ok(_) | Err(_) => return,
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut state = self.state();
        *state.fetched.entry(path.clone()).or_default() += 1;
        while state.manner == Manner::Silent && !state.ended {
            state = self
                .changed
                .wait(state)
                .expect("no test thread died in here");
        }
        let root = format!("/{}", self.url.splitn(4, '/').nth(3).unwrap_or_default());
        let root = root.trim_end_matches('/');
        let keys = json!({ "keys": state.keys }).to_string();
        let configuration = |issuer: &str| {
            json!({ "issuer": issuer, "jwks_uri": format!("{}{KEYS}", self.origin()),
                    "authorization_endpoint": format!("{}/authorize", self.url) })
            .to_string()
        };
        let is_keys = path == KEYS;
        let (status, body) = match &state.manner {
            Manner::Away | Manner::Silent => return,
            Manner::Redirecting => (302, String::new()),
            Manner::Oversized => (
                200,
                format!("{{\"keys\":[],\"x\":\"{}\"}}", "x".repeat(1 << 20)),
            ),
            Manner::Instead(text) if is_keys => (200, text.clone()),
            Manner::Good | Manner::Instead(_) | Manner::Lying if is_keys => (200, keys),
            Manner::Lying => (200, configuration("https://somebody.else.example")),
            Manner::Good | Manner::Instead(_) => {
                if path == format!("{root}/.well-known/openid-configuration") {
                    (200, configuration(&self.url))
                } else {
                    (404, "{}".to_owned())
                }
            }
        };
        drop(state);
        let answer = format!(
            "HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nLocation: {}/elsewhere\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.origin(),
            body.len()
        );
        let stream = reader.get_mut();
        // Who has left needs no answer.
        drop(
            stream
                .write_all(answer.as_bytes())
                .and_then(|()| stream.flush()),
        );
    }

    fn origin(&self) -> String {
        self.url
            .splitn(4, '/')
            .take(3)
            .collect::<Vec<_>>()
            .join("/")
    }
}

/// Seconds since 1970.
///
/// # Panics
/// Before 1970.
#[must_use]
pub fn now() -> i64 {
    let since = std::time::UNIX_EPOCH.elapsed().expect("a clock");
    i64::try_from(since.as_secs()).expect("a time of this age")
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn halves(point: &[u8]) -> (&[u8], &[u8]) {
    point.split_at(point.len() / 2)
}

/// Where the keys are.
const KEYS: &str = "/keys";
