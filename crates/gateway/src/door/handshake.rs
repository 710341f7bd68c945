//! TLS towards clients: 1.2 and 1.3, Mozilla's intermediate set, hybrid key exchange first, tickets that rotate; and
//! client certificates, verified against the authorities of `[tls] client_ca`.

use std::sync::Arc;
use std::time::Duration;

use rules::chain::Head;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use wire::x509;

/// How long a handshake may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Who may show a client certificate.
#[derive(Debug)]
pub struct Clients {
    /// Who must have issued it.
    pub authorities: Vec<CertificateDer<'static>>,
    /// Whether a connection without one is refused.
    pub required: bool,
}

/// The server's side of TLS, for each kind of door: tickets of one resume nothing at the other.
#[derive(Clone, Debug)]
pub struct Tls {
    /// For callers.
    pub(crate) callers: Arc<ServerConfig>,
    /// For people and programs who look after the server.
    pub(crate) lent: Arc<ServerConfig>,
}

/// The server's side of TLS from a chain and its key.
///
/// # Errors
/// When the key doesn't fit the certificate, or can't be used; when an authority can't.
pub fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    clients: Option<&Clients>,
) -> Result<Tls, rustls::Error> {
    // HTTP/1.1 alone has fewer ways to be misused; a client certificate opens nothing there, so none is asked for.
    let mut lent = side(chain.clone(), key.clone_key(), None)?;
    lent.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Tls {
        callers: Arc::new(side(chain, key, clients)?),
        lent: Arc::new(lent),
    })
}

fn side(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    clients: Option<&Clients>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = match clients {
        None => WebPkiClientVerifier::no_client_auth(),
        Some(clients) => verifier(clients, &provider)?,
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    config.ignore_client_order = true;
    Ok(config)
}

fn verifier(
    clients: &Clients,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    for authority in &clients.authorities {
        roots.add(authority.clone())?;
    }
    let builder =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let builder = if clients.required {
        builder
    } else {
        builder.allow_unauthenticated()
    };
    builder
        .build()
        .map_err(|fault| rustls::Error::General(fault.to_string()))
}

/// A connection whose other side can't be overheard.
#[derive(Debug)]
pub(crate) struct Secured {
    /// The stream.
    pub(crate) stream: TlsStream<TcpStream>,
    /// HTTP/2 was agreed on.
    pub(crate) h2: bool,
    /// The client's certificate, if it showed one.
    pub(crate) client: Option<Arc<ClientCertificate>>,
}

/// A client's certificate that was verified when the connection began: perhaps long ago, if TLS was resumed.
#[derive(Debug)]
pub(crate) struct ClientCertificate {
    /// Whose it is, and when.
    pub(crate) read: x509::Certificate,
    /// Its SHA-256, hex.
    pub(crate) fingerprint: String,
}

/// Shakes hands, or gives up at the deadline. What went wrong is the client's to know from its TLS alert.
pub(crate) async fn shake(stream: TcpStream, config: Arc<ServerConfig>) -> Option<Secured> {
    let shaken = tokio::time::timeout(DEADLINE, TlsAcceptor::from(config).accept(stream)).await;
    let stream = shaken.ok()?.ok()?;
    let session = stream.get_ref().1;
    let h2 = session.alpn_protocol() == Some(b"h2");
    let client = match session.peer_certificates().and_then(<[_]>::first) {
        None => None,
        // Whoever shows what can't be read isn't taken for somebody without one.
        Some(shown) => Some(Arc::new(ClientCertificate {
            read: x509::read(shown)?,
            fingerprint: fingerprint(shown),
        })),
    };
    Some(Secured { stream, h2, client })
}

fn fingerprint(certificate: &[u8]) -> String {
    Head::of(certificate).to_string()
}
