//! The config file as meant: one conversion from what was written, all faults of values gathered.
//!
//! It fills in every default and judges every range; it starts nothing and opens only the files that secret
//! references name. Called by `config::check` alone; its result goes to the supervisor and to the gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use control::identity::oidc::Source;
use control::seal::Kms;
use control::store::Target;
use gateway::limits::shared::Shared;
use gateway::settings::{self, Model, Secret, Settings};
use rules::policy::{Models, Role};
use rules::snapshot::Roles;

use super::units::{Size, Span, write_duration, write_size};
use super::{Place, Seat, nearest, reference, written};
use crate::token::Reach;

mod admin;
mod audit;
mod clients;
mod issuers;
pub(crate) mod kms;
mod limits;
mod metrics;
mod models;
mod server;
pub(crate) mod shared;
pub(crate) mod store;

pub(crate) use audit::Audit;
pub(crate) use clients::ClientAuth;
use limits::{Lists, Prices};

/// Everything that `guan.toml` says.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Where callers connect.
    pub(crate) listen: SocketAddr,
    /// Where the admin API listens; `None`: on its Unix socket alone.
    pub(crate) admin: Option<SocketAddr>,
    /// Where figures are collected; `None`: nowhere.
    pub(crate) metrics: Option<SocketAddr>,
    /// Names and addresses for the certificate, besides this machine's own.
    pub(crate) names: Vec<String>,
    /// What the gateway runs by.
    pub(crate) settings: Settings,
    /// Where the keys of its issuers are.
    pub(crate) sources: Vec<Source>,
    /// Whose clients may show a certificate.
    pub(crate) client_auth: Option<ClientAuth>,
    /// Where limits are kept that nodes share; `None`: in memory.
    pub(crate) shared: Option<Shared>,
    /// What tokens cost.
    pub(crate) prices: Prices,
    /// The workers that the supervisor runs.
    pub(crate) engines: Vec<EngineSpec>,
    /// Where keys, projects and usage are kept.
    pub(crate) store: Target,
    /// Who wraps the store's data key.
    pub(crate) kms: Kms,
    /// How often that one is asked whether it is there.
    pub(crate) kms_check_every: Duration,
    /// The sealed values in it.
    pub(crate) sealed: BTreeSet<String>,
    /// How the audit log is written and kept.
    pub(crate) audit: Audit,
    /// Where `guan model pull` fetches from, if not from the hubs.
    pub(crate) mirror: Option<String>,
    /// Variables of the environment that references name: the gateway must be given them.
    pub(crate) environment: BTreeSet<String>,
}

impl Config {
    /// Files that are named and aren't there, in sentences.
    pub(crate) fn absent_files(&self) -> Vec<String> {
        let engines = self.engines.iter().filter(|e| !e.file.is_file()).map(|e| {
            format!(
                "the model \"{}\" has no file: {} isn't there; load it with `guan model pull`, or correct engine in its [[models.replicas]]",
                e.name,
                e.file.display()
            )
        });
        let replicas = self
            .settings
            .models
            .values()
            .flat_map(|m| m.replicas.iter().map(move |r| (m, r)));
        let authorities = replicas.filter_map(|(model, replica)| match &replica.target {
            settings::Target::Https { ca: Some(ca), .. } if !ca.is_file() => Some(format!(
                "the model \"{}\" has a replica whose ca isn't there: {}",
                model.name,
                ca.display()
            )),
            settings::Target::Https { .. }
            | settings::Target::Http { .. }
            | settings::Target::Unix(_) => None,
        });
        engines.chain(authorities).collect()
    }
}

/// A worker to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EngineSpec {
    /// The model's public name, and the worker's.
    pub(crate) name: String,
    /// The GGUF file.
    pub(crate) file: PathBuf,
    /// The socket that the supervisor listens on for it.
    pub(crate) socket: PathBuf,
    /// Tokens one sequence may hold; `None`: what the model and the memory allow.
    pub(crate) context_tokens: Option<u64>,
    /// Threads; `None`: all cores.
    pub(crate) threads: Option<u64>,
    /// Calls that run at the same time; `None`: the worker's default.
    pub(crate) parallel: Option<u64>,
}

/// When audit records reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fsync {
    /// Every 100 ms.
    Interval,
    /// Before the last byte of each answer.
    Each,
}

/// One fault of a value, and where the value stands.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) seat: Seat,
    pub(super) text: String,
}

/// The conversion.
pub(super) fn convert(file: written::File, place: &Place<'_>) -> Result<Config, Vec<Problem>> {
    let mut judge = Judge::default();
    let top = Seat::default();
    let server = judge.server(&top.key("server"), file.server);
    let one_of =
        |written: Option<String>, default: &str| written.unwrap_or_else(|| default.to_owned());
    judge.word(
        &top.key("tls"),
        "mode",
        &one_of(file.tls.mode.clone(), "self-signed"),
        &["self-signed"],
    );
    let admin = judge.admin(&top.key("admin"), &file.admin, server.listen);
    let mut others = vec![("server", server.listen)];
    others.extend(admin.map(|address| ("admin", address)));
    let metrics = judge.metrics(&top.key("metrics"), &file.metrics, &others, place);
    let (metrics, metrics_token) = metrics.unzip();
    let (store, max_stale) = judge.store(&top.key("store"), &file.store, place);
    let kms = judge.kms(&top.key("kms"), &file.kms, place);
    let kms_check_every = judge.span(
        &top.key("kms"),
        "check_every",
        file.kms.check_every,
        Duration::from_mins(1),
        Duration::from_secs(1)..=Duration::from_hours(1),
    );
    let audit = judge.audit(&top.key("audit"), file.audit);
    let mirror = judge.mirror(&top.key("hub"), file.hub.mirror);
    let called: Vec<String> = file.models.iter().filter_map(|m| m.name.clone()).collect();
    let called: Vec<&str> = called.iter().map(String::as_str).collect();
    let prices = judge.prices(&top.key("prices"), &file.prices, &called);
    let (models, engines) = models::convert(&mut judge, file.models, &prices, place);
    let roles = judge.roles(file.roles, &models);
    for role in roles.values() {
        let seat = top.key("roles").key(&role.name);
        judge.money_needs_prices(&seat, &role.limits, &prices);
        judge.money_needs_prices(&seat.key("shared"), &role.shared.limits, &prices);
    }
    let (node, shared) = judge.whole_limits(&top.key("limits"), &file.limits, place);
    let (issuers, sources) = issuers::convert(&mut judge, file.issuers, &roles, place.data);
    let clients = judge.clients(&file.tls, file.client_certificates, &roles, place.data);
    if !judge.problems.is_empty() {
        return Err(judge.problems);
    }
    Ok(Config {
        listen: server.listen,
        admin,
        metrics,
        names: server.names,
        settings: Settings {
            max_body: server.max_body,
            body_budget: server.body_budget,
            commit_after: server.commit_after,
            comment_every: server.comment_every,
            cors_origins: server.cors_origins,
            on_revoke: server.on_revoke,
            failed_credentials_per_minute: server.failed_credentials_per_minute,
            max_stale,
            roles,
            issuers,
            client_certificates: clients.rules,
            metrics_token,
            models,
            node,
        },
        sources,
        client_auth: clients.auth,
        prices,
        shared,
        engines,
        store,
        kms,
        kms_check_every,
        sealed: judge.sealed,
        audit,
        mirror,
        environment: judge.environment,
    })
}

/// The roles that a file means, as far as they can be read: for commands, which judge nothing.
pub(super) fn roles(written: BTreeMap<String, written::Role>) -> Roles {
    let mut judge = Judge::default();
    judge.roles(written, &BTreeMap::new())
}

/// Gathers what is wrong, so that one look at the file mends it all.
#[derive(Default)]
struct Judge {
    problems: Vec<Problem>,
    environment: BTreeSet<String>,
    sealed: BTreeSet<String>,
}

impl Judge {
    fn problem(&mut self, seat: &Seat, text: String) {
        self.problems.push(Problem {
            seat: seat.clone(),
            text,
        });
    }

    /// A fault of `key` in `table`: "key in `[table]` `text`".
    fn fault(&mut self, table: &Seat, key: &str, text: &str) {
        let header = table
            .header()
            .map(|h| format!(" in {h}"))
            .unwrap_or_default();
        self.problem(&table.key(key), format!("{key}{header} {text}"));
    }

    /// A whole number in a range, if there is one.
    fn number(
        &mut self,
        table: &Seat,
        key: &str,
        written: Option<i64>,
        range: &RangeInclusive<u64>,
    ) -> Option<u64> {
        let n = written?;
        match u64::try_from(n).ok().filter(|n| range.contains(n)) {
            Some(n) => Some(n),
            None => {
                let (low, high) = (range.start(), range.end());
                self.fault(
                    table,
                    key,
                    &format!("must be a whole number from {low} to {high}, not {n}"),
                );
                None
            }
        }
    }

    fn size(
        &mut self,
        table: &Seat,
        key: &str,
        written: Option<Size>,
        default: u64,
        range: RangeInclusive<u64>,
    ) -> u64 {
        match written {
            Some(Size(n)) if !range.contains(&n) => {
                let (low, high) = (write_size(*range.start()), write_size(*range.end()));
                self.fault(
                    table,
                    key,
                    &format!("must be from {low} to {high}, not {}", write_size(n)),
                );
                default
            }
            Some(Size(n)) => n,
            None => default,
        }
    }

    fn span(
        &mut self,
        table: &Seat,
        key: &str,
        written: Option<Span>,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        match written {
            Some(Span(d)) if !range.contains(&d) => {
                let (low, high) = (write_duration(*range.start()), write_duration(*range.end()));
                self.fault(
                    table,
                    key,
                    &format!("must be from {low} to {high}, not {}", write_duration(d)),
                );
                default
            }
            Some(Span(d)) => d,
            None => default,
        }
    }

    /// One of a few words.
    fn word(&mut self, table: &Seat, key: &str, given: &str, known: &[&str]) {
        if known.contains(&given) {
            return;
        }
        let list: Vec<String> = known.iter().map(|k| format!("\"{k}\"")).collect();
        let hint = match nearest(given, known.iter().copied()) {
            Some(near) => format!("; did you mean \"{near}\"?"),
            None => String::new(),
        };
        let what = if known.len() == 1 {
            "can only be"
        } else {
            "must be one of"
        };
        self.fault(table, key, &format!("{what} {}{hint}", list.join(", ")));
    }

    /// What a reference names, if it can be had.
    fn secret(
        &mut self,
        table: &Seat,
        key: &str,
        written: &str,
        place: &Place<'_>,
    ) -> Option<Secret> {
        let resolved = reference::parse(written).and_then(|reference| {
            match &reference {
                reference::Reference::Env(name) => {
                    self.environment.insert((*name).to_owned());
                }
                reference::Reference::Sealed(value) => {
                    self.sealed.insert((*value).to_owned());
                }
                reference::Reference::File(_) => {}
            }
            reference::resolve(&reference, place.data, place.env, place.opener)
        });
        match resolved {
            Ok(secret) => Some(Secret::new(secret.to_string())),
            Err(why) => {
                self.fault(table, key, &why);
                None
            }
        }
    }

    fn store(
        &mut self,
        seat: &Seat,
        written: &written::Store,
        place: &Place<'_>,
    ) -> (Target, Duration) {
        let max_stale = self.span(
            seat,
            "max_stale",
            written.max_stale,
            Duration::from_hours(1),
            Duration::from_secs(10)..=Duration::from_hours(24 * 30),
        );
        let target = match store::target(written, place.data, place.env) {
            Ok((target, variable)) => {
                self.environment.extend(variable);
                target
            }
            Err((key, why)) => {
                self.fault(seat, key, &why);
                Target::in_folder(place.data)
            }
        };
        (target, max_stale)
    }

    fn kms(&mut self, seat: &Seat, written: &written::Kms, place: &Place<'_>) -> Kms {
        match kms::provider(written, place.data, place.env, Reach::Server) {
            Ok((kms, variables)) => {
                self.environment.extend(variables);
                kms
            }
            Err((key, why)) => {
                self.fault(seat, key, &why);
                Kms::in_folder(place.data)
            }
        }
    }

    fn mirror(&mut self, hub: &Seat, mirror: Option<String>) -> Option<String> {
        let url = mirror?;
        let good = url
            .strip_prefix("https://")
            .or_else(|| url.strip_prefix("http://"));
        if good.is_none_or(|rest| rest.is_empty() || rest.contains(['@', '?', '#', ' '])) {
            self.fault(
                hub,
                "mirror",
                "must be a URL such as \"https://mirror.example\", without user, query or fragment",
            );
        }
        Some(url.trim_end_matches('/').to_owned())
    }

    fn roles(
        &mut self,
        written: BTreeMap<String, written::Role>,
        models: &BTreeMap<String, Arc<Model>>,
    ) -> BTreeMap<String, Role> {
        let mut roles = Role::defaults();
        for (name, role) in written {
            let seat = Seat::default().key("roles").key(&name);
            if !is_role_name(&name) {
                self.problem(&seat, format!("a role can't be called {name:?}: letters, digits, \".\", \"_\" and \"-\" only, at most 64"));
            }
            let base = roles.get(&name).cloned();
            let meant = self.role(&seat, &name, role, base, models);
            roles.insert(name, meant);
        }
        roles
    }

    /// A role given for a default's name changes the keys it writes; any other one says its limits itself.
    fn role(
        &mut self,
        seat: &Seat,
        name: &str,
        role: written::Role,
        base: Option<Role>,
        models: &BTreeMap<String, Arc<Model>>,
    ) -> Role {
        let (is_new, mut meant) = match base {
            Some(base) => (false, base),
            None => (true, Role::new(name, 1, 1)),
        };
        if is_new && role.requests_per_minute.is_none() {
            self.fault(
                seat,
                "requests_per_minute",
                "is missing; write how many calls a minute each key may make",
            );
        }
        if is_new && role.max_output_tokens.is_none() {
            self.fault(
                seat,
                "max_output_tokens",
                "is missing; write how long an answer may be",
            );
        }
        if role.requests_per_minute == Some(0) {
            self.fault(
                seat,
                "requests_per_minute",
                "can't be 0; a role that may call nothing has models = []",
            );
        } else if let Some(n) = self.number(
            seat,
            "requests_per_minute",
            role.requests_per_minute,
            &PER_MINUTE,
        ) {
            meant.requests_per_minute = u32::try_from(n).unwrap_or(u32::MAX);
        }
        if let Some(n) = self.number(seat, "max_output_tokens", role.max_output_tokens, &TOKENS) {
            meant.max_output_tokens = n;
        }
        let concurrent = self.concurrent(seat, role.concurrent_requests);
        meant.concurrent_requests = concurrent.or(meant.concurrent_requests);
        self.role_limits(seat, &role, &mut meant);
        if let Some(n) = self.number(seat, "max_choices", role.max_choices, &(1..=128)) {
            meant.max_choices = n;
        }
        if let Some(n) = self.number(seat, "weight", role.weight, &(1..=1000)) {
            meant.weight = u32::try_from(n).unwrap_or(1);
        }
        if let Some(Span(after)) = role.rotate_after {
            if after < Duration::from_secs(60) {
                self.fault(seat, "rotate_after", "must be at least 1m, such as \"90d\"");
            }
            meant.rotate_after = Some(after.as_secs());
        }
        if let Some(named) = role.models {
            meant.models = self.role_models(seat, named, models);
        }
        meant
    }

    fn role_limits(&mut self, seat: &Seat, role: &written::Role, meant: &mut Role) {
        if let Some(window) = role.window.as_deref() {
            self.word(seat, "window", window, &["gcra", "sliding"]);
            meant.sliding = window == "sliding";
        }
        let most = u64::from(meant.requests_per_minute);
        if let Some(burst) = self.number(seat, "burst", role.burst, &(1..=most)) {
            if meant.sliding {
                self.fault(
                    seat,
                    "burst",
                    "is for window = \"gcra\"; a sliding window has none",
                );
            }
            meant.burst = u32::try_from(burst).ok();
        }
        if let Some(on_cap) = role.on_cap.as_deref() {
            self.word(seat, "on_cap", on_cap, &["lower", "refuse"]);
            meant.refuse_long = on_cap == "refuse";
        }
        let lists = Lists {
            limits: &role.limits,
            budget: &role.budget,
        };
        meant.limits = self.limits(seat, &lists);
        meant.shared = self.pool(&seat.key("shared"), &role.shared);
        meant.caps = self.caps(&seat.key("caps"), &role.caps);
    }

    fn role_models(
        &mut self,
        seat: &Seat,
        named: Vec<String>,
        models: &BTreeMap<String, Arc<Model>>,
    ) -> Models {
        if named.iter().any(|name| name == "*") {
            if named.len() > 1 {
                self.fault(seat, "models", "has \"*\" and names; \"*\" alone means all");
            }
            return Models::All;
        }
        for (n, name) in named.iter().enumerate() {
            if !models.contains_key(name) {
                let hint = match nearest(name, models.keys().map(String::as_str)) {
                    Some(near) => format!("; did you mean \"{near}\"?"),
                    None => String::new(),
                };
                let header = seat.header().unwrap_or_default();
                self.problem(
                    &seat.key("models").index(n),
                    format!("models in {header} names {name:?}, which no [[models]] has as its name{hint}"),
                );
            }
        }
        Models::Named(named.into())
    }
}

/// Whether a role may be called so.
fn is_role_name(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    !name.is_empty() && name.len() <= 64 && name.bytes().all(good)
}

/// Whether a model may be called so.
pub(crate) fn is_model_name(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"._-:/@+".contains(&b);
    !name.is_empty() && name.len() <= 128 && name.bytes().all(good)
}

const PER_MINUTE: RangeInclusive<u64> = 1..=1_000_000;

const TOKENS: RangeInclusive<u64> = 1..=16_777_216;
