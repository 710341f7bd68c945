//! Decides how we speak to a hub: HTTPS with the system's trust roots, proxies from the environment, bounded waits,
//! at most five redirects that never leave HTTPS. Never sends credentials anywhere but to the package index that
//! they were configured for. Called by `fetch`, `hub` and `wheel`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ureq::http::{HeaderMap, Request, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body, RequestExt as _};

use super::address::Address;
use super::fault::Fault;

/// How long we wait. The command line has hidden options for tests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For a connection, and for a name.
    pub(super) connect: Duration,
    /// For the next byte.
    pub(super) stall: Duration,
    /// Before the first repetition; doubled each time.
    pub(super) pause: Duration,
}

/// One client for a whole command.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    patience: Patience,
    trusts_somebody: bool,
    login: Option<(Address, String)>,
}

/// The head of an answer, its body unread.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
    /// Who answered in the end.
    pub(super) address: Address,
    /// What the first server said of the file before it sent us on.
    pub(super) linked: Linked,
}

/// Hugging Face's words on a file that lies elsewhere: its SHA-256 and size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Linked {
    pub(super) sha256: Option<String>,
    pub(super) size: Option<u64>,
}

impl Client {
    /// `more_roots` is a PEM file of certificates trusted beside the system's.
    pub(super) fn new(patience: Patience, more_roots: Option<&Path>) -> Self {
        let roots = trust_roots(more_roots);
        let trusts_somebody = !roots.is_empty();
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::from(roots))
            // the one provider of the whole program
            .unversioned_rustls_crypto_provider(Arc::new(
                rustls::crypto::aws_lc_rs::default_provider(),
            ))
            .build();
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .tls_config(tls)
            .user_agent(concat!("guan/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(patience.connect))
            .timeout_connect(Some(patience.connect))
            .timeout_send_request(Some(patience.stall))
            .timeout_recv_response(Some(patience.stall))
            .timeout_per_read(Some(patience.stall))
            .max_response_header_size(64 * 1024)
            .build()
            .new_agent();
        Self {
            agent,
            patience,
            trusts_somebody,
            login: None,
        }
    }

    /// Sends `basic` (ready for the header) to the server of `address`, and to no other.
    pub(super) fn with_login(mut self, address: Address, basic: String) -> Self {
        self.login = Some((address, basic));
        self
    }

    pub(super) fn patience(&self) -> Patience {
        self.patience
    }

    /// GET with redirects followed by our rules.
    pub(super) fn get(
        &self,
        address: &Address,
        headers: &[(header::HeaderName, String)],
    ) -> Result<Answer, Fault> {
        let mut here = address.clone();
        let mut linked = Linked::default();
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.once(&here, headers)?;
            if here.same_origin(address) {
                linked = linked.or(Linked::read(answer.headers()));
            }
            let status = answer.status().as_u16();
            let next = answer
                .headers()
                .get(header::LOCATION)
                .and_then(|v| v.to_str().ok());
            match next {
                Some(next) if matches!(status, 301 | 302 | 303 | 307 | 308) => {
                    here = follow(&here, next)?;
                }
                _ => {
                    let (parts, body) = answer.into_parts();
                    let headers = parts.headers;
                    return Ok(Answer {
                        status,
                        headers,
                        body,
                        address: here,
                        linked,
                    });
                }
            }
        }
        Err(Fault::Redirects {
            host: here.host().to_owned(),
            limit: MAX_REDIRECTS,
        })
    }

    /// GET of a small text: body, who sent it, and whether it calls itself HTML.
    pub(super) fn text(
        &self,
        address: &Address,
        accept: &str,
    ) -> Result<(String, Address, bool), Fault> {
        let mut answer = self.get(address, &[(header::ACCEPT, accept.to_owned())])?;
        if answer.status != 200 {
            return Err(bad_status(&answer.address, answer.status));
        }
        let is_html = answer
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .is_some_and(|v| v.contains("html"));
        let text = answer
            .body
            .with_config()
            .limit(MAX_TEXT)
            .read_to_string()
            .map_err(|e| fault_of(&answer.address, e))?;
        Ok((text, answer.address, is_html))
    }

    fn once(
        &self,
        address: &Address,
        headers: &[(header::HeaderName, String)],
    ) -> Result<ureq::http::Response<Body>, Fault> {
        if address.is_https() && !self.trusts_somebody {
            return Err(Fault::Roots);
        }
        let mut request = Request::get(address.uri());
        // a coded body would make ranges and sizes mean something else
        request = request.header(header::ACCEPT_ENCODING, "identity");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some((owner, basic)) = &self.login
            && owner.same_origin(address)
        {
            request = request.header(header::AUTHORIZATION, basic);
        }
        let request = request.body(()).map_err(|_e| Fault::BadAddress {
            address: address.shown(),
            why: "it can't be sent",
        })?;
        let request = request.with_agent(&self.agent).configure();
        // a server on this machine is never behind a proxy
        let request = if address.is_loopback() {
            request.proxy(None)
        } else {
            request
        };
        request.build().run().map_err(|e| fault_of(address, e))
    }
}

impl Linked {
    fn read(headers: &HeaderMap) -> Self {
        let word = |name: &str| {
            headers
                .get(name)
                .and_then(|v| v.to_str().ok())
                .map(str::trim)
        };
        Self {
            sha256: word("x-linked-etag")
                .map(|v| v.trim_matches('"').to_ascii_lowercase())
                .filter(|v| super::manifest::is_sha256(v)),
            size: word("x-linked-size").and_then(|v| v.parse().ok()),
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            sha256: self.sha256.or(other.sha256),
            size: self.size.or(other.size),
        }
    }
}

/// The fault for a final answer that isn't the file.
pub(super) fn bad_status(address: &Address, status: u16) -> Fault {
    let next = match status {
        401 | 403 | 407 => {
            "It wants a login or refuses this network: take another source, for example with --mirror"
        }
        404 | 410 => "Check the name and the address, or take another source with --mirror",
        429 => "Too many downloads from here: wait a while and run the command again",
        500.. => "The server has trouble: run the command again later, it goes on where it stopped",
        _ => "Take another source, for example with --mirror",
    };
    Fault::Status {
        host: address.host().to_owned(),
        status,
        path: address.path().to_owned(),
        next,
    }
}

fn follow(here: &Address, location: &str) -> Result<Address, Fault> {
    let insecure = |to: String| Fault::Insecure {
        from: here.host().to_owned(),
        to,
    };
    let next = here.join(location).map_err(|fault| match fault {
        Fault::BadAddress { address, .. } => insecure(address),
        other => other,
    })?;
    if here.may_lead_to(&next) {
        Ok(next)
    } else {
        Err(insecure(next.shown()))
    }
}

/// Whose fault, in words that never contain an address's query or a proxy's password.
fn fault_of(address: &Address, error: ureq::Error) -> Fault {
    let host = address.host().to_owned();
    let unreachable = |why: &str| Fault::Unreachable {
        host: host.clone(),
        why: why.to_owned(),
    };
    match error {
        ureq::Error::HostNotFound => unreachable("its name is not known here (DNS)"),
        ureq::Error::ConnectionFailed => unreachable("no connection"),
        ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
            unreachable("no connection in time")
        }
        ureq::Error::Timeout(_) => Fault::Cut {
            host,
            why: "nothing came for too long".to_owned(),
        },
        ureq::Error::ConnectProxyFailed(_) => unreachable("the proxy gives no connection to it"),
        ureq::Error::InvalidProxyUrl => unreachable("the proxy's address is not valid"),
        ureq::Error::Tls(why) => unreachable(why),
        ureq::Error::Rustls(error) => unreachable(&tls_words(&error)),
        ureq::Error::Io(error) => io_fault(host, &error),
        ureq::Error::Protocol(why) => Fault::Answer {
            host,
            why: why.to_string(),
        },
        ureq::Error::LargeResponseHeader(_, _) => Fault::Answer {
            host,
            why: "its header is too large".to_owned(),
        },
        ureq::Error::BodyExceedsLimit(limit) => Fault::Answer {
            host,
            why: format!("it is longer than {limit} bytes"),
        },
        _ => Fault::Answer {
            host,
            why: "it is not HTTP as we know it".to_owned(),
        },
    }
}

fn io_fault(host: String, error: &io::Error) -> Fault {
    use io::ErrorKind as Kind;
    // a handshake that fails comes through the stream
    let handshake = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let text = handshake.map_or_else(|| error.to_string(), tls_words);
    match error.kind() {
        _ if text.contains("lookup address") => Fault::Unreachable {
            host,
            why: "its name is not known here (DNS)".to_owned(),
        },
        Kind::ConnectionRefused
        | Kind::HostUnreachable
        | Kind::NetworkUnreachable
        | Kind::NetworkDown
        | Kind::AddrNotAvailable
        | Kind::InvalidData => Fault::Unreachable { host, why: text },
        _ => Fault::Cut { host, why: text },
    }
}

fn tls_words(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(_) => {
            "its certificate is not trusted on this machine; behind a company's proxy, \
             SSL_CERT_FILE has to name the certificates to trust"
                .to_owned()
        }
        other => format!("no secure connection ({other})"),
    }
}

/// The system's roots (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured), and those of `more`.
fn trust_roots(more: Option<&Path>) -> Vec<Certificate<'static>> {
    // errors are about single files of a folder; what could be read is what we trust
    let system = rustls_native_certs::load_native_certs().certs;
    let mut roots: Vec<_> = system
        .iter()
        .map(|der| Certificate::from_der(der).to_owned())
        .collect();
    let pem = more
        .and_then(|path| std::fs::read(path).ok())
        .unwrap_or_default();
    roots.extend(ureq::tls::parse_pem(&pem).filter_map(|item| match item {
        Ok(ureq::tls::PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    }));
    roots
}

/// The certificates that pip was told to trust, for its index.
pub(super) fn pip_roots() -> Option<PathBuf> {
    std::env::var_os("PIP_CERT")
        .filter(|v| !v.is_empty())
        .map(PathBuf::from)
}

const MAX_REDIRECTS: usize = 5;
const MAX_TEXT: u64 = 8 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_out_of_https_is_refused_by_name() {
        let here = Address::parse("https://hub.example/a").unwrap();
        for to in [
            "http://cdn.example/x?sig=s3cret",
            "http://127.0.0.1/x",
            "ftp://cdn.example/x",
        ] {
            let fault = follow(&here, to).unwrap_err();
            assert!(matches!(fault, Fault::Insecure { .. }), "{to}: {fault}");
            assert!(!fault.to_string().contains("s3cret"));
        }
        assert_eq!(
            follow(&here, "../b").unwrap(),
            Address::parse("https://hub.example/b").unwrap()
        );
    }

    #[test]
    fn the_hubs_word_on_a_file_is_taken_only_when_it_is_a_sha256() {
        let mut headers = HeaderMap::new();
        headers.insert(
            "x-linked-etag",
            format!("\"{}\"", "AB".repeat(32)).parse().unwrap(),
        );
        headers.insert("x-linked-size", "17".parse().unwrap());
        let linked = Linked::read(&headers);
        assert_eq!(
            linked,
            Linked {
                sha256: Some("ab".repeat(32)),
                size: Some(17)
            }
        );
        headers.insert("x-linked-etag", "\"abc-2\"".parse().unwrap());
        assert_eq!(Linked::read(&headers).sha256, None);
    }
}
