//! A raw HTTPS client: writes the bytes that it is given and reads what comes, so that tests see what is on the wire.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::authority::Identity;
use crate::upstream::PATIENCE;

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// Where to connect and whom to trust.
#[derive(Clone, Debug)]
pub struct Client {
    address: SocketAddr,
    config: Arc<ClientConfig>,
    key: Option<String>,
}

/// An answer in full.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// Headers, names in lower case; several of one name joined by LF.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it isn't.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("not JSON ({e}): {}", self.text()))
    }

    /// `error.code` and `error.param`.
    #[must_use]
    pub fn error(&self) -> (String, String) {
        let error = &self.json()["error"];
        assert!(
            error["message"].as_str().is_some_and(|m| !m.is_empty()),
            "{error}"
        );
        assert!(error["type"].is_string(), "{error}");
        let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        (text("code"), text("param"))
    }

    /// The `data:` payloads of an event stream.
    #[must_use]
    pub fn events(&self) -> Vec<String> {
        self.text()
            .split("\n\n")
            .filter_map(|event| event.strip_prefix("data: ").map(str::to_owned))
            .collect()
    }

    /// All `delta.content` of a chat stream, joined.
    #[must_use]
    pub fn content(&self) -> String {
        self.events()
            .iter()
            .filter_map(|event| serde_json::from_str::<serde_json::Value>(event).ok())
            .filter_map(|event| {
                event["choices"][0]["delta"]["content"]
                    .as_str()
                    .map(str::to_owned)
            })
            .collect()
    }
}

impl Client {
    /// A client that trusts the certificates of a PEM file.
    ///
    /// # Panics
    /// When the file can't be read.
    #[must_use]
    pub fn new(address: SocketAddr, ca: &std::path::Path) -> Self {
        Self::with(address, ca, None)
    }

    /// The same with a client certificate.
    ///
    /// # Panics
    /// When the file can't be read or the certificate can't be used.
    #[must_use]
    pub fn certified(address: SocketAddr, ca: &std::path::Path, identity: &Identity) -> Self {
        Self::with(address, ca, Some(identity))
    }

    fn with(address: SocketAddr, ca: &std::path::Path, identity: Option<&Identity>) -> Self {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca).expect("the CA file opens") {
            roots
                .add(certificate.expect("a certificate"))
                .expect("a usable certificate");
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("TLS versions")
            .with_root_certificates(roots);
        let config = match identity {
            None => config.with_no_client_auth(),
            Some(identity) => config
                .with_client_auth_cert(identity.chain.clone(), identity.key())
                .expect("a usable certificate"),
        };
        Self {
            address,
            config: Arc::new(config),
            key: None,
        }
    }

    /// Where it connects.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same with a key.
    #[must_use]
    pub fn with_key(&self, key: &str) -> Self {
        Self {
            key: Some(key.to_owned()),
            ..self.clone()
        }
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// A connection.
    ///
    /// # Errors
    /// What TCP or TLS says.
    pub fn connect(&self) -> io::Result<Connection> {
        let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
        let tls =
            ClientConnection::new(Arc::clone(&self.config), name).map_err(io::Error::other)?;
        let tcp = TcpStream::connect(self.address)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        tcp.set_nodelay(true)?;
        Ok(Connection {
            stream: BufReader::new(StreamOwned::new(tls, tcp)),
        })
    }

    /// Writes raw bytes and reads one answer.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn raw(&self, bytes: impl AsRef<[u8]>) -> Response {
        let mut connection = self.connect().expect("a connection");
        connection.write(bytes);
        connection.response()
    }

    /// Sends a request with this client's key, and more header lines.
    #[must_use]
    pub fn send(&self, method: &str, path: &str, headers: &str, body: Option<&str>) -> Response {
        self.raw(self.request(method, path, headers, body))
    }

    /// The bytes of such a request.
    #[must_use]
    pub fn request(&self, method: &str, path: &str, headers: &str, body: Option<&str>) -> String {
        let key = self
            .key
            .as_ref()
            .map(|key| format!("Authorization: Bearer {key}\r\n"));
        let length = body.map(|body| {
            format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n",
                body.len()
            )
        });
        format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{}{headers}{}\r\n{}",
            key.unwrap_or_default(),
            length.unwrap_or_default(),
            body.unwrap_or_default()
        )
    }

    /// `POST /v1/chat/completions`.
    #[must_use]
    pub fn chat(&self, body: &str) -> Response {
        self.send("POST", "/v1/chat/completions", "", Some(body))
    }

    /// `GET`.
    #[must_use]
    pub fn get(&self, path: &str) -> Response {
        self.send("GET", path, "", None)
    }
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<Tls>,
}

impl Connection {
    /// Writes bytes.
    ///
    /// # Panics
    /// When the server has left.
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let tls = self.stream.get_mut();
        tls.write_all(bytes.as_ref()).expect("the server reads");
        tls.flush().expect("the server reads");
    }

    /// Whether the server has said something, or says it within `time`.
    ///
    /// # Panics
    /// When the socket can't be used.
    pub fn readable_within(&mut self, time: std::time::Duration) -> bool {
        let socket = &self.stream.get_ref().sock;
        socket.set_read_timeout(Some(time)).expect("a timeout");
        let said = self.stream.fill_buf().is_ok();
        let socket = &self.stream.get_ref().sock;
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        said
    }

    /// Writes bytes, if the server still reads.
    pub fn try_write(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let tls = self.stream.get_mut();
        tls.write_all(bytes.as_ref())
            .and_then(|()| tls.flush())
            .is_ok()
    }

    /// Reads the head of an answer.
    ///
    /// # Panics
    /// When there is none.
    pub fn head(&mut self) -> Response {
        let line = self.line();
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status line: {line:?}"));
        let mut headers: BTreeMap<String, String> = BTreeMap::new();
        loop {
            let line = self.line();
            if line.is_empty() {
                return Response {
                    status,
                    headers,
                    body: Vec::new(),
                };
            }
            let (name, value) = line.split_once(':').expect("a header");
            let entry = headers.entry(name.to_ascii_lowercase()).or_default();
            if !entry.is_empty() {
                entry.push('\n');
            }
            entry.push_str(value.trim());
        }
    }

    /// Reads a whole answer.
    ///
    /// # Panics
    /// When it is cut or malformed.
    pub fn response(&mut self) -> Response {
        let mut response = self.head();
        if response
            .headers
            .get("transfer-encoding")
            .is_some_and(|v| v == "chunked")
        {
            while let Some(chunk) = self.chunk() {
                response.body.extend_from_slice(&chunk);
            }
        } else if let Some(length) = response.headers.get("content-length") {
            let length = length.parse().expect("a length");
            response.body = self.exactly(length);
        }
        response
    }

    /// One chunk of a chunked body; `None` at its end.
    ///
    /// # Panics
    /// When it is cut or malformed.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = usize::from_str_radix(&self.line(), 16).expect("a chunk size");
        let chunk = self.exactly(size);
        assert_eq!(self.line(), "", "a chunk ends with a line end");
        (size > 0).then_some(chunk)
    }

    /// Reads to the end of the connection.
    #[must_use]
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // An end without close_notify is an end for these tests.
        self.stream.read_to_end(&mut rest).ok();
        rest
    }

    fn exactly(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).expect("the whole body");
        bytes
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).expect("a line");
        String::from_utf8_lossy(&line)
            .trim_end_matches(['\r', '\n'])
            .to_owned()
    }
}
