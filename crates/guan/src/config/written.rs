//! The config file as written: every key that exists, none of them judged.
//!
//! Unknown keys are refused here, at every depth (never `flatten`, which would let them through). What the values
//! mean is `meant`'s business. Called by `config::check` alone.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::units::{Size, Span};

/// `guan.toml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) server: Server,
    pub(super) tls: Tls,
    pub(super) admin: Admin,
    pub(super) metrics: Metrics,
    pub(super) store: Store,
    pub(super) kms: Kms,
    pub(super) audit: Audit,
    pub(super) hub: Hub,
    pub(super) limits: Limits,
    pub(super) prices: Prices,
    pub(super) roles: BTreeMap<String, Role>,
    pub(super) issuers: Vec<Issuer>,
    pub(super) client_certificates: Vec<ClientCertificate>,
    pub(super) models: Vec<Model>,
}

/// `[server]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Server {
    pub(super) listen: Option<String>,
    pub(super) names: Vec<String>,
    pub(super) max_body: Option<Size>,
    pub(super) body_budget: Option<Size>,
    pub(super) commit_after: Option<Span>,
    pub(super) comment_every: Option<Span>,
    pub(super) cors_origins: Vec<String>,
    pub(super) on_revoke: Option<String>,
    pub(super) failed_credentials_per_minute: Option<i64>,
}

/// `[tls]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Tls {
    pub(super) mode: Option<String>,
    pub(super) client_ca: Option<String>,
    pub(super) client_auth: Option<String>,
}

/// `[admin]`: where the admin API listens.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Admin {
    pub(super) listen: Option<String>,
}

/// `[metrics]`: where figures are collected, and by whom.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Metrics {
    pub(super) listen: Option<String>,
    pub(super) token: Option<String>,
}

/// `[store]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Store {
    pub(super) url: Option<String>,
    pub(super) password: Option<String>,
    pub(super) max_stale: Option<Span>,
}

/// `[kms]`: who wraps the store's data key.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Kms {
    pub(super) provider: Option<String>,
    pub(super) address: Option<String>,
    pub(super) mount: Option<String>,
    pub(super) key: Option<String>,
    pub(super) token: Option<String>,
    pub(super) ca: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) key_id: Option<String>,
    pub(super) region: Option<String>,
    pub(super) endpoint: Option<String>,
    pub(super) access_key_id: Option<String>,
    pub(super) access_key_secret: Option<String>,
    pub(super) session_token: Option<String>,
    pub(super) module: Option<String>,
    pub(super) token_label: Option<String>,
    pub(super) token_serial: Option<String>,
    pub(super) pin: Option<String>,
    pub(super) network: Option<bool>,
    pub(super) module_environment: Vec<String>,
    pub(super) check_every: Option<Span>,
}

/// `[audit]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Audit {
    pub(super) fsync: Option<String>,
    pub(super) checkpoint_every: Option<Span>,
    pub(super) rotate_size: Option<Size>,
    pub(super) rotate_after: Option<Span>,
    pub(super) compress: Option<bool>,
    pub(super) retention: Option<Span>,
}

/// `[hub]`: where `guan model pull` fetches from.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Hub {
    pub(super) mirror: Option<String>,
}

/// `[limits]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    pub(super) backend: Option<String>,
    pub(super) username: Option<String>,
    pub(super) password: Option<String>,
    pub(super) sentinel_username: Option<String>,
    pub(super) sentinel_password: Option<String>,
    pub(super) ca: Option<PathBuf>,
    pub(super) client_certificate: Option<PathBuf>,
    pub(super) client_key: Option<PathBuf>,
    pub(super) prefix: Option<String>,
    pub(super) timeout: Option<Span>,
    pub(super) when_unreachable: Option<String>,
    pub(super) node: Pool,
}

/// `[limits.node]`, `[roles.NAME.shared]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Pool {
    pub(super) concurrent_requests: Option<i64>,
    pub(super) limits: Vec<String>,
    pub(super) budget: Vec<String>,
}

/// `[prices]`: what a million tokens cost.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Prices {
    pub(super) currency: Option<String>,
    pub(super) models: BTreeMap<String, Price>,
}

/// `[prices.models.NAME]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Price {
    pub(super) input: Option<String>,
    pub(super) output: Option<String>,
}

/// `[roles.NAME]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Role {
    pub(super) models: Option<Vec<String>>,
    pub(super) requests_per_minute: Option<i64>,
    pub(super) max_output_tokens: Option<i64>,
    pub(super) concurrent_requests: Option<i64>,
    pub(super) max_choices: Option<i64>,
    pub(super) rotate_after: Option<Span>,
    pub(super) weight: Option<i64>,
    pub(super) window: Option<String>,
    pub(super) burst: Option<i64>,
    pub(super) limits: Vec<String>,
    pub(super) budget: Vec<String>,
    pub(super) shared: Pool,
    pub(super) on_cap: Option<String>,
    pub(super) caps: Caps,
}

/// `[roles.NAME.caps]`, `[models.caps]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Caps {
    pub(super) prompts: Option<i64>,
    pub(super) messages: Option<i64>,
    pub(super) tools: Option<i64>,
    pub(super) images: Option<i64>,
    pub(super) logprobs: Option<i64>,
}

/// `[[issuers]]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Issuer {
    pub(super) issuer: Option<String>,
    pub(super) audience: Vec<String>,
    pub(super) algorithms: Option<Vec<String>>,
    pub(super) jwks_url: Option<String>,
    pub(super) ca: Option<String>,
    pub(super) subject_claim: Option<String>,
    pub(super) project_claim: Option<String>,
    pub(super) leeway: Option<Span>,
    pub(super) max_age: Option<Span>,
    pub(super) jwks_max_stale: Option<Span>,
    pub(super) map: Vec<IssuerMap>,
}

/// `[[issuers.map]]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct IssuerMap {
    pub(super) claim: Option<String>,
    pub(super) has: Option<String>,
    pub(super) role: Option<String>,
    pub(super) project: Option<String>,
}

/// `[[client_certificates]]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ClientCertificate {
    pub(super) san: Option<String>,
    pub(super) role: Option<String>,
    pub(super) project: Option<String>,
}

/// `[[models]]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Model {
    pub(super) name: Option<String>,
    pub(super) aliases: Vec<String>,
    pub(super) kind: Option<String>,
    pub(super) unknown_fields: Option<String>,
    pub(super) upstream_name: Option<String>,
    pub(super) context_tokens: Option<i64>,
    pub(super) max_output_tokens: Option<i64>,
    pub(super) concurrent_requests: Option<i64>,
    pub(super) limits: Vec<String>,
    pub(super) budget: Vec<String>,
    pub(super) caps: Caps,
    pub(super) owned_by: Option<String>,
    pub(super) queue: Option<i64>,
    pub(super) queue_timeout: Option<Span>,
    pub(super) timeouts: Timeouts,
    pub(super) replicas: Vec<Replica>,
}

/// `[models.timeouts]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Timeouts {
    pub(super) connect: Option<Span>,
    pub(super) first_byte: Option<Span>,
    pub(super) idle: Option<Span>,
    pub(super) total: Option<Span>,
}

/// `[[models.replicas]]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Replica {
    pub(super) url: Option<String>,
    pub(super) key: Option<String>,
    pub(super) ca: Option<String>,
    pub(super) engine: Option<String>,
    pub(super) context_tokens: Option<i64>,
    pub(super) threads: Option<i64>,
    pub(super) parallel: Option<i64>,
    pub(super) concurrency: Option<Concurrency>,
}

/// `concurrency`: a number, or a word.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Concurrency {
    Number(i64),
    Word(String),
}
