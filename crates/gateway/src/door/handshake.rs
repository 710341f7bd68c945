//! TLS towards clients: 1.2 and 1.3, Mozilla's intermediate set, hybrid key exchange first, tickets that rotate.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long a handshake may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// The server's side of TLS from a chain and its key.
///
/// # Errors
/// When the key doesn't fit the certificate, or can't be used.
pub fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    config.ignore_client_order = true;
    Ok(config)
}

/// The same for a door of people and programs who look after the server: HTTP/1.1 alone, which has fewer ways to be
/// misused.
pub(crate) fn http1_alone(config: &ServerConfig) -> ServerConfig {
    let mut config = config.clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// A connection whose other side can't be overheard.
#[derive(Debug)]
pub(crate) struct Secured {
    /// The stream.
    pub(crate) stream: TlsStream<TcpStream>,
    /// HTTP/2 was agreed on.
    pub(crate) h2: bool,
}

/// Shakes hands, or gives up at the deadline. What went wrong is the client's to know from its TLS alert.
pub(crate) async fn shake(stream: TcpStream, config: Arc<ServerConfig>) -> Option<Secured> {
    let shaken = tokio::time::timeout(DEADLINE, TlsAcceptor::from(config).accept(stream)).await;
    let stream = shaken.ok()?.ok()?;
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Some(Secured { stream, h2 })
}
