//! What the gateway runs by: the config file as meant, without a word of TOML.
//!
//! `guan::config` makes it, whole and checked; requests read it through one `ArcSwap`. Nothing here is optional in
//! meaning: defaults were filled in before.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use rules::certificate;
use rules::limit::Price;
use rules::policy::{Caps, Pool};
use rules::snapshot::Roles;
use rules::token::Issuer;
use wire::openai::{Dialect, UnknownFields};

/// Everything that requests are judged and relayed by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The largest request body, bytes.
    pub max_body: u64,
    /// Memory that all request bodies together may take, bytes; one caller a quarter of it.
    pub body_budget: u64,
    /// After how long a stream commits its 200 without an upstream event.
    pub commit_after: Duration,
    /// Between two comments on a committed stream.
    pub comment_every: Duration,
    /// Origins whose pages may call, exactly.
    pub cors_origins: Vec<String>,
    /// What becomes of running streams whose key is taken back.
    pub on_revoke: OnRevoke,
    /// How often an address may show a credential that isn't valid, times a minute.
    pub failed_credentials_per_minute: u32,
    /// After how long without a word of the store even known keys get 503.
    pub max_stale: Duration,
    /// Roles by name.
    pub roles: Roles,
    /// Whose tokens are taken, by name.
    pub issuers: BTreeMap<String, Arc<Issuer>>,
    /// What the names of client certificates give.
    pub client_certificates: Vec<certificate::Rule>,
    /// What opens the metrics door; `None`: nothing does.
    pub metrics_token: Option<Secret>,
    /// Models by public name.
    pub models: BTreeMap<String, Arc<Model>>,
    /// What all calls of this node share.
    pub node: Pool,
}

/// What becomes of running streams whose key is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnRevoke {
    /// They end with an error event.
    Cut,
    /// They run to their end; the next call is refused.
    Finish,
}

/// One model.
#[derive(Clone, Debug)]
pub struct Model {
    /// Its public name: what `/v1/models` lists and answers carry.
    pub name: String,
    /// Other names that callers may write.
    pub aliases: Vec<String>,
    /// What its server understands beyond the OpenAI API.
    pub dialect: Dialect,
    /// What becomes of members that nobody listed.
    pub unknown_fields: UnknownFields,
    /// The name that the server knows it by.
    pub upstream_name: String,
    /// Output tokens of one answer, at most; `None`: the role's limit alone.
    pub max_output_tokens: Option<u64>,
    /// What all its calls share.
    pub pool: Pool,
    /// Most of what a body may ask of it.
    pub caps: Caps,
    /// What its tokens cost.
    pub price: Price,
    /// Who owns it, for `/v1/models`.
    pub owned_by: String,
    /// When it was made known, seconds since 1970, for `/v1/models`.
    pub created: i64,
    /// Calls that may run at the same time, all replicas together; `None`: not counted, so nobody waits here.
    pub places: Option<Places>,
    /// Calls that may wait for a place.
    pub queue: usize,
    /// How long a call may wait for a place.
    pub queue_timeout: Duration,
    /// Where it runs, at least one.
    pub replicas: Vec<Replica>,
    /// Time limits.
    pub timeouts: Timeouts,
}

/// How many calls a model's replicas take together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// So many; where they are learned, to begin with.
    pub count: u32,
    /// Learned from how long first tokens take.
    pub learned: bool,
}

/// What a replica is given at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concurrency {
    /// So many calls.
    Fixed(u32),
    /// As many as it turns out to take.
    Learned,
}

/// One place where a model runs.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Its name in records: the URL without path, or `engine:NAME`.
    pub name: String,
    /// How it is reached.
    pub target: Target,
    /// Path in front of `/v1/…`, without a slash at its end; empty for most.
    pub base_path: String,
    /// The upstream's own credential, sent as `Authorization: Bearer`.
    pub key: Option<Secret>,
    /// Calls that it is given at the same time; `None`: not counted.
    pub concurrency: Option<Concurrency>,
    /// Set when the supervisor runs it: calls wait for its `Ready`.
    pub worker: Option<String>,
}

impl Replica {
    /// An upstream's words without what is ours alone: its credential, its place, the name it knows a model by.
    pub(crate) fn scrub(&self, text: &str) -> String {
        let place = match &self.target {
            Target::Http { host, .. } | Target::Https { host, .. } => host.clone(),
            Target::Unix(path) => path.display().to_string(),
        };
        let key = self.key.as_ref().map_or("", |key| key.expose());
        let mut text = text.to_owned();
        for ours in [key, &place] {
            // A one-letter host would only garble the text.
            if ours.len() > 3 {
                text = text.replace(ours, "…");
            }
        }
        text
    }
}

/// How a replica is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Plain HTTP to a host and a port.
    Http {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// HTTPS, verified against the system's or the given authorities.
    Https {
        /// Host name or address: also what the certificate must name.
        host: String,
        /// Port.
        port: u16,
        /// PEM file with the authorities to trust instead of the system's.
        ca: Option<PathBuf>,
    },
    /// HTTP on a Unix socket.
    Unix(PathBuf),
}

/// Time limits of a model's calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// To connect.
    pub connect: Duration,
    /// From the request's end to the answer's first byte.
    pub first_byte: Duration,
    /// Between two pieces of an answer.
    pub idle: Duration,
    /// For the whole call: comments can't hold a slot for longer.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(300),
            idle: Duration::from_secs(60),
            total: Duration::from_secs(3600),
        }
    }
}

/// A credential that never shows itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(zeroize::Zeroizing<String>);

impl Secret {
    /// Takes it over.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(zeroize::Zeroizing::new(text))
    }

    /// How many bytes it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none: of a sealed one that isn't opened yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether somebody shows it. Takes the same time wherever the two differ; an empty one nobody can show.
    pub(crate) fn is(&self, shown: &[u8]) -> bool {
        !self.is_empty() && verify_slices_are_equal(self.0.as_bytes(), shown).is_ok()
    }

    /// The text, for the one place that sends it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}
