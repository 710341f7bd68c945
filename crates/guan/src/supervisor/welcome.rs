//! What `guan serve` prints for people, on standard output. It decides words, nothing else. Called by the loop.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use wire::control::{Door, WorkerReady};

use super::listen::Bound;
use crate::config::Config;
use crate::folder::Folder;

/// The welcome, once the gateway serves.
pub(super) fn print(folder: &Folder, doors: &[Bound], config: &Config) {
    let of = |door| {
        let found = doors.iter().find(|bound| bound.door == door);
        found.and_then(|bound| bound.address)
    };
    let address = of(Door::Data).unwrap_or(config.listen);
    let base = base_url(address);
    let mut lines = vec![
        String::new(),
        "Guan serves.".to_owned(),
        format!("  API          {base}/v1"),
        format!("  chat page    {base}/"),
    ];
    if address.ip().is_unspecified() {
        let names = if config.names.is_empty() {
            "this machine's name or address".to_owned()
        } else {
            config.names.join(", ")
        };
        lines.push(format!("  from outside {names}, port {}", address.port()));
    }
    if let Some(admin) = of(Door::Admin) {
        lines.push(format!("  admin API    {}/admin/v1", base_url(admin)));
    }
    if let Some(metrics) = of(Door::Metrics) {
        lines.push(format!("  metrics      {}/metrics", base_url(metrics)));
    }
    let certificate = folder.path().join("secrets/tls.crt");
    if let Some(print) = fingerprint(&certificate) {
        lines.push(format!(
            "  certificate  {} (self-signed)",
            certificate.display()
        ));
        lines.push(format!("               SHA-256 {print}"));
    }
    let key = folder.first_key();
    if key.exists() {
        lines.push(format!(
            "  first key    {} (read it, then remove the file)",
            key.display()
        ));
    }
    lines.push("  more keys    guan key create --name NAME --role user".to_owned());
    for model in config.settings.models.values() {
        let is_loading = model.replicas.iter().any(|r| r.worker.is_some());
        let where_from = if is_loading {
            "loading".to_owned()
        } else {
            model
                .replicas
                .iter()
                .map(|r| r.name.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        };
        lines.push(format!("  model        {} ({where_from})", model.name));
    }
    say(&lines.join("\n"));
}

/// A model that has loaded.
pub(super) fn model_ready(ready: &WorkerReady) {
    say(&format!(
        "  ready        {}: {}, {} parameters, {} of weights, licence {}",
        ready.name,
        ready.architecture,
        parameters(ready.parameters),
        megabytes(ready.size_bytes),
        ready.licence.as_deref().unwrap_or("not named in the file"),
    ));
}

/// The URL by which this machine reaches the server.
fn base_url(address: SocketAddr) -> String {
    let host = match address.ip() {
        ip if ip.is_unspecified() => "localhost".to_owned(),
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    format!("https://{host}:{}", address.port())
}

/// SHA-256 of the server's certificate, as browsers show it.
pub(crate) fn fingerprint(chain: &Path) -> Option<String> {
    let first = CertificateDer::pem_file_iter(chain).ok()?.next()?.ok()?;
    Some(control::certificates::fingerprint_sha256(&first))
}

fn parameters(n: u64) -> String {
    match n {
        1_000_000_000.. => format!(
            "{}.{} B",
            n / 1_000_000_000,
            n % 1_000_000_000 / 100_000_000
        ),
        1_000_000.. => format!("{} M", n / 1_000_000),
        _ => n.to_string(),
    }
}

fn megabytes(n: u64) -> String {
    match n {
        1_000_000_000.. => format!(
            "{}.{} GB",
            n / 1_000_000_000,
            n % 1_000_000_000 / 100_000_000
        ),
        _ => format!("{} MB", n.div_ceil(1_000_000)),
    }
}

/// A closed standard output is no reason to stop serving.
fn say(text: &str) {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_urls_that_work_here() {
        let url = |text: &str| base_url(text.parse().unwrap());
        assert_eq!(url("0.0.0.0:8443"), "https://localhost:8443");
        assert_eq!(url("[::]:1"), "https://localhost:1");
        assert_eq!(url("127.0.0.1:2"), "https://127.0.0.1:2");
        assert_eq!(url("[::1]:3"), "https://[::1]:3");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(parameters(494_032_768), "494 M");
        assert_eq!(parameters(7_615_616_512), "7.6 B");
        assert_eq!(megabytes(397_807_936), "398 MB");
        assert_eq!(megabytes(4_683_073_184), "4.6 GB");
    }
}
