//! The server's certificate: made by itself on the first start and before its end, read at each start.
//!
//! Decides what a readable pair is and when to warn of its end. It doesn't serve TLS and never shows the private key.
//! Called by `bootstrap` (making) and the wiring (reading).

mod der;
pub mod keeper;
pub mod self_signed;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use crate::audit_log::AuditFault;
use crate::clock;
use crate::folder::{self, Secret};
use crate::seal::SealFault;

/// Why there is no certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateFault {
    /// A file can't be read.
    #[error(
        "{path}: {cause}. The server's certificate and its key lie there; restore them from your backup, or put a pair of your own there (PEM, mode 400)"
    )]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        cause: String,
    },
    /// Others may read the private key.
    #[error(
        "{path}: other users may read this private key (mode {mode:03o}). Type: chmod 400 {path} (and think about who has read it)"
    )]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its mode bits.
        mode: u32,
    },
    /// The file has no certificate or no key in it.
    #[error(
        "{path}: no {what} in PEM form in it. Restore it from your backup, or put a pair of your own there"
    )]
    Content {
        /// Which file.
        path: PathBuf,
        /// What should be in it.
        what: &'static str,
    },
    /// The authorities of client certificates can't be read.
    #[error(
        "{path}: {cause}. [tls] client_ca names it: put the authorities there whose clients may connect (PEM)"
    )]
    Authorities {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// A name that a certificate can't carry.
    #[error(
        "{0:?} is neither an IP address nor a host name. Give names like guan.example.com (in their xn-- form if they aren't ASCII) or 10.0.0.5"
    )]
    Name(String),
    /// It couldn't be made.
    #[error(
        "the certificate couldn't be made ({0}). Check the kernel's log for its source of randomness"
    )]
    Make(String),
    /// The store that keeps it, or what it is sealed with.
    #[error(transparent)]
    Seal(#[from] SealFault),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditFault),
}

/// Reads `tls.crt` (the chain, own certificate first) and `tls.key` in `secrets`.
///
/// # Errors
/// [`CertificateFault`].
pub fn load(
    secrets: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), CertificateFault> {
    let file = |path: &Path, cause: &std::io::Error| CertificateFault::File {
        path: path.to_path_buf(),
        cause: cause.to_string(),
    };
    let path = secrets.join(CHAIN);
    let text = std::fs::read(&path).map_err(|cause| file(&path, &cause))?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .unwrap_or_default();
    if chain.is_empty() {
        let what = "certificate";
        return Err(CertificateFault::Content { path, what });
    }
    let path = secrets.join(KEY);
    let text = key_text(&path)?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_form| CertificateFault::Content {
        path,
        what: "private key",
    })?;
    Ok((chain, key))
}

/// Chain and key as they lie in `secrets`, in one text.
fn bundle(secrets: &Path) -> Result<Zeroizing<Vec<u8>>, CertificateFault> {
    let path = secrets.join(CHAIN);
    let chain = std::fs::read(&path).map_err(|cause| CertificateFault::File {
        path,
        cause: cause.to_string(),
    })?;
    let key = key_text(&secrets.join(KEY))?;
    Ok(Zeroizing::new([&chain, &b"\n"[..], &key].concat()))
}

fn key_text(path: &Path) -> Result<Zeroizing<Vec<u8>>, CertificateFault> {
    let path = path.to_path_buf();
    match folder::read_secret(&path, MOST_KEY_BYTES) {
        Ok(Secret::Bytes(text)) => Ok(text),
        Ok(Secret::Exposed(mode)) => Err(CertificateFault::Exposed { path, mode }),
        Err(cause) => Err(CertificateFault::File {
            path,
            cause: cause.to_string(),
        }),
    }
}

/// Reads the authorities of a PEM file: whoever is to be trusted as a client's.
///
/// # Errors
/// [`CertificateFault`].
pub fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateFault> {
    let text = std::fs::read(path).map_err(|cause| CertificateFault::Authorities {
        path: path.to_path_buf(),
        cause: cause.to_string(),
    })?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(_) => Err(CertificateFault::Authorities {
            path: path.to_path_buf(),
            cause: "no certificates in PEM form in it".to_owned(),
        }),
    }
}

/// The certificate's SHA-256 as `AB:CD:…`, as browsers show it.
#[must_use]
pub fn fingerprint_sha256(certificate: &[u8]) -> String {
    let mut text = String::with_capacity(95);
    for (place, byte) in digest::digest(&digest::SHA256, certificate)
        .as_ref()
        .iter()
        .enumerate()
    {
        let colon = if place == 0 { "" } else { ":" };
        // Writing to a String doesn't fail.
        let _written = write!(text, "{colon}{byte:02X}");
    }
    text
}

/// From when the certificate is no longer valid, seconds since 1970. `None`: it can't be read.
#[must_use]
pub fn expires_at(certificate: &[u8]) -> Option<i64> {
    der::not_after(certificate)
}

/// What to tell people about the first certificate's end at `now` (seconds since 1970): when it has passed, and from
/// 30 days before.
#[must_use]
pub fn expiry_warning(chain: &[CertificateDer<'_>], now: i64) -> Option<String> {
    let end = expires_at(chain.first()?)?;
    let when = clock::rfc3339_seconds(end);
    let advice = "put a new pair in secrets/tls.crt and secrets/tls.key (mode 400) and start again";
    if end <= now {
        Some(format!(
            "the certificate expired on {when}: clients refuse it; {advice}"
        ))
    } else if end.saturating_sub(now) < WARN_SECONDS {
        Some(format!(
            "the certificate expires on {when}: before that, {advice}"
        ))
    } else {
        None
    }
}

/// The chain's file name in `secrets/`.
pub(crate) const CHAIN: &str = "tls.crt";
/// The private key's file name in `secrets/`.
pub(crate) const KEY: &str = "tls.key";
const MOST_KEY_BYTES: u64 = 64 * 1024;
const WARN_SECONDS: i64 = 30 * 86_400;

#[cfg(test)]
mod tests;
