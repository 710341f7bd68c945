//! One HTTPS exchange with a key service or an issuer: connect, ask, read the answer, close, all within five seconds.
//!
//! TLS is always verified, by the system's authorities or those of a file; plain HTTP goes to this machine only. It
//! keeps no connection: key services are asked at a start, a reload and a rewrap, issuers now and then. It follows no
//! redirect. Names are resolved by hickory, since a static binary can't load libc's resolver plug-ins. Called by the
//! providers and by `identity`.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hickory_resolver::TokioResolver;
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

/// Where a key service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    is_tls: bool,
    host: String,
    port: u16,
    ca: Option<PathBuf>,
}

impl Endpoint {
    /// Reads `https://HOST`, `https://HOST:PORT`, or `http://` to this machine. `ca`: whom to trust instead of the
    /// system's authorities.
    ///
    /// # Errors
    /// Why not, as the rest of a sentence that begins with the key's name.
    pub fn parse(url: &str, ca: Option<PathBuf>) -> Result<Self, String> {
        let wrong = || {
            "must be a URL such as \"https://kms.example:8200\", without user, path or query"
                .to_owned()
        };
        let (is_tls, rest) = match url.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            _ => return Err(wrong()),
        };
        let authority: http::uri::Authority = rest
            .strip_suffix('/')
            .unwrap_or(rest)
            .parse()
            .map_err(|_not| wrong())?;
        if authority.as_str().contains('@') {
            return Err(wrong());
        }
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let is_here =
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if !is_tls && !is_here {
            return Err(
                "must begin with https://: plain HTTP goes to this machine only".to_owned(),
            );
        }
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            None if is_tls => 443,
            None => 80,
        };
        if host.is_empty() || port == 0 {
            return Err(wrong());
        }
        Ok(Self {
            is_tls,
            host,
            port,
            ca,
        })
    }

    /// As the `host` header and signatures have it: without a port that goes without saying.
    pub(super) fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        match (self.is_tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }

    /// As a URL.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://{}", self.authority())
    }

    /// The authorities' file.
    #[must_use]
    pub fn ca(&self) -> Option<&Path> {
        self.ca.as_deref()
    }

    /// Whether it speaks TLS; else it is on this machine.
    pub(crate) const fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// Sends a GET and reads the whole answer: its head, and its body of at most `most` bytes.
    ///
    /// # Errors
    /// What went wrong.
    pub(crate) async fn get(
        &self,
        path: &str,
        most: usize,
    ) -> io::Result<(http::response::Parts, Bytes)> {
        let request = Request::get(path)
            .header(header::HOST, self.authority())
            .header(header::ACCEPT, "application/json")
            .body(Full::default())
            .map_err(io::Error::other)?;
        self.exchange(request, most).await
    }

    /// Sends a POST and reads the whole answer: its status and body.
    ///
    /// # Errors
    /// What went wrong, never with a part of what was sent.
    pub(super) async fn post(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<(u16, Zeroizing<Vec<u8>>)> {
        let mut request = Request::post(path).header(header::HOST, self.authority());
        for (name, value) in headers {
            let mut value = http::HeaderValue::from_str(value).map_err(|_not| {
                io::Error::other("a credential in [kms] holds characters that no header may carry")
            })?;
            value.set_sensitive(true);
            request = request.header(*name, value);
        }
        let request = request
            .body(Full::new(Bytes::copy_from_slice(body)))
            .map_err(io::Error::other)?;
        let (head, body) = self.exchange(request, MOST_BYTES).await?;
        Ok((head.status.as_u16(), Zeroizing::new(body.to_vec())))
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        most: usize,
    ) -> io::Result<(http::response::Parts, Bytes)> {
        let exchanged = async {
            let stream = self.connect().await?;
            if !self.is_tls {
                return ask(stream, request, most).await;
            }
            let config = client_config(self.ca.as_deref())?;
            let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
            let stream = TlsConnector::from(config).connect(name, stream).await?;
            ask(stream, request, most).await
        };
        match timeout(LONGEST, exchanged).await {
            Ok(done) => done,
            Err(_elapsed) => Err(io::Error::other("no answer within 5 seconds")),
        }
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for address in resolve(&self.host).await? {
            match TcpStream::connect((address, self.port)).await {
                Ok(stream) => return Ok(stream),
                Err(fault) => last = fault,
            }
        }
        Err(last)
    }
}

async fn ask<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    request: Request<Full<Bytes>>,
    most: usize,
) -> io::Result<(http::response::Parts, Bytes)> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let asked = async {
        let answer = sender
            .send_request(request)
            .await
            .map_err(io::Error::other)?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, most)
            .collect()
            .await
            .map_err(io::Error::other)?;
        Ok((head, body.to_bytes()))
    };
    let driven = async {
        // Its end is no answer: what was asked ends by itself then.
        drop(connection.await);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answer = asked => answer,
        () = driven => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

async fn resolve(host: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let resolver = TokioResolver::builder_tokio()
        .and_then(|builder| builder.build())
        .map_err(io::Error::other)?;
    let found = resolver.lookup_ip(host).await.map_err(io::Error::other)?;
    Ok(found.iter().collect())
}

fn client_config(ca: Option<&Path>) -> io::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    match ca {
        None => {
            let found = rustls_native_certs::load_native_certs().certs;
            roots.add_parsable_certificates(found);
        }
        Some(path) => {
            let wrong = |cause: &dyn std::fmt::Display| {
                io::Error::other(format!("{} can't be read: {cause}", path.display()))
            };
            let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
                .map_err(|cause| wrong(&cause))?
                .collect();
            roots.add_parsable_certificates(found.map_err(|cause| wrong(&cause))?);
        }
    }
    Ok(Arc::new(
        ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth(),
    ))
}

/// For a whole exchange.
const LONGEST: Duration = Duration::from_secs(5);
/// More than any answer of a key service, bytes.
const MOST_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::certificates::self_signed::{Pem, make};

    #[test]
    fn addresses_read_as_people_write_them() {
        for (url, authority) in [
            ("https://kms.example", "kms.example"),
            ("https://kms.example:8200/", "kms.example:8200"),
            ("http://127.0.0.1:8200", "127.0.0.1:8200"),
            ("http://[::1]:1", "[::1]:1"),
            ("http://localhost", "localhost"),
        ] {
            let read = Endpoint::parse(url, None).unwrap();
            assert_eq!(read.authority(), authority, "{url}");
        }
        for url in [
            "",
            "kms.example",
            "ftp://kms.example",
            "https://",
            "https://:80",
            "https://h:0",
            "https://h/path",
            "https://h?x=1",
            "https://root:hunter2@h",
            "http://kms.example",
            "http://10.0.0.1:8200",
            "http://127.0.0.1.example",
        ] {
            let why = Endpoint::parse(url, None).unwrap_err();
            assert!(!why.contains("hunter2"), "{why}");
        }
    }

    /// A TLS server that answers each call with what it was sent.
    async fn serve(certificate: &Pem) -> u16 {
        let chain = CertificateDer::from_pem_slice(certificate.chain.as_bytes()).unwrap();
        let key =
            rustls_pki_types::PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![chain], key)
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let _serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut bytes = Vec::new();
                while !bytes.ends_with(b"ping") {
                    assert!(stream.read_buf(&mut bytes).await.unwrap() > 0);
                }
                let answer = b"HTTP/1.1 201 X\r\ncontent-length: 4\r\n\r\npong";
                stream.write_all(answer).await.unwrap();
                let _ended = stream.shutdown().await;
            }
        });
        port
    }

    #[tokio::test]
    async fn tls_is_verified_by_the_named_authority_and_the_name() {
        let certificate = make(&[], crate::clock::seconds(crate::clock::system()())).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.pem");
        std::fs::write(&ca, certificate.chain.as_bytes()).unwrap();
        let port = serve(&certificate).await;
        let url = format!("https://127.0.0.1:{port}");
        let ask = async |endpoint: Endpoint| endpoint.post("/x", &[("x-a", "b")], b"ping").await;
        let trusted = Endpoint::parse(&url, Some(ca.clone())).unwrap();
        let (status, body) = ask(trusted.clone()).await.unwrap();
        assert_eq!((status, body.as_slice()), (201, b"pong".as_slice()));
        // The system's authorities don't know it.
        let fault = ask(Endpoint::parse(&url, None).unwrap()).await.unwrap_err();
        assert!(fault.to_string().contains("certificate"), "{fault}");
        // It is good for this machine's names alone.
        let config = client_config(Some(&ca)).unwrap();
        let stream = trusted.connect().await.unwrap();
        let name = ServerName::try_from("kms.example").unwrap();
        assert!(
            TlsConnector::from(config)
                .connect(name, stream)
                .await
                .is_err()
        );
        let gone = Endpoint::parse(&url, Some(dir.path().join("gone.pem"))).unwrap();
        let fault = ask(gone).await.unwrap_err();
        assert!(fault.to_string().contains("gone.pem"), "{fault}");
        let fault = trusted
            .post("/x", &[("x-a", "b\nc")], b"")
            .await
            .unwrap_err();
        assert!(fault.to_string().contains("no header may carry"), "{fault}");
    }
}
