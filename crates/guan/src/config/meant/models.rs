//! The `[[models]]` part of the conversion: names, kinds, replicas, workers.
//!
//! Called by `meant::convert`; it decides nothing that a role or a limit is about.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gateway::settings::{Concurrency, Model, Places, Replica, Target, Timeouts};
use rules::limit::Price;
use rules::policy::Pool;
use wire::openai::{Dialect, UnknownFields};

use super::super::{Place, Seat, upstream, written};
use super::limits::{Lists, Prices};
use super::{EngineSpec, Judge, TOKENS, is_model_name};

type Known = BTreeMap<String, Arc<Model>>;

/// All models and the workers that some of them need.
pub(super) fn convert(
    judge: &mut Judge,
    written: Vec<written::Model>,
    prices: &Prices,
    place: &Place<'_>,
) -> (Known, Vec<EngineSpec>) {
    let mut models = Known::new();
    let mut engines: Vec<EngineSpec> = Vec::new();
    let mut taken = BTreeSet::new();
    for (n, model) in written.into_iter().enumerate() {
        let seat = Seat::default().key("models").index(n);
        let Some(name) = model.name.clone() else {
            judge.fault(&seat, "name", "is missing; write the name that callers use");
            continue;
        };
        claim(judge, &seat.key("name"), &name, &mut taken);
        for (n, alias) in model.aliases.iter().enumerate() {
            claim(judge, &seat.key("aliases").index(n), alias, &mut taken);
        }
        let (mut model, engine) = one(judge, &seat, name, model, place);
        model.price = prices.models.get(&model.name).copied().unwrap_or_default();
        judge.money_needs_prices(&seat, &model.pool.limits, prices);
        engines.extend(engine);
        models.insert(model.name.clone(), Arc::new(model));
    }
    (models, engines)
}

/// A name or alias that nobody has yet.
fn claim(judge: &mut Judge, seat: &Seat, name: &str, taken: &mut BTreeSet<String>) {
    if !is_model_name(name) {
        judge.problem(
            seat,
            format!("a model can't be called {name:?}: letters, digits and \"._-:/@+\" only, at most 128"),
        );
    } else if !taken.insert(name.to_owned()) {
        judge.problem(
            seat,
            format!("two models are called \"{name}\"; names and aliases must differ"),
        );
    }
}

fn one(
    judge: &mut Judge,
    seat: &Seat,
    name: String,
    model: written::Model,
    place: &Place<'_>,
) -> (Model, Option<EngineSpec>) {
    let on_engine = model.replicas.iter().any(|r| r.engine.is_some());
    let dialect = kind(judge, seat, model.kind.as_deref(), on_engine);
    let unknown_fields = unknown_fields(judge, seat, model.unknown_fields.as_deref());
    let context_tokens = judge.number(seat, "context_tokens", model.context_tokens, &CONTEXT);
    let max_output_tokens =
        judge.number(seat, "max_output_tokens", model.max_output_tokens, &TOKENS);
    let upstream_name = named(judge, seat, "upstream_name", model.upstream_name, &name);
    let default_owner = if on_engine { "guan" } else { "upstream" };
    let owned_by = named(judge, seat, "owned_by", model.owned_by, default_owner);
    let queue = judge.number(seat, "queue", model.queue, &(0..=100_000));
    let queue_timeout = judge.span(
        seat,
        "queue_timeout",
        model.queue_timeout,
        Duration::from_mins(1),
        Duration::from_millis(10)..=Duration::from_hours(1),
    );
    let lists = Lists {
        limits: &model.limits,
        budget: &model.budget,
    };
    let pool = Pool {
        concurrent_requests: judge.concurrent(seat, model.concurrent_requests),
        limits: judge.limits(seat, &lists),
    };
    let caps = judge.caps(&seat.key("caps"), &model.caps);
    let timeouts = timeouts(judge, &seat.key("timeouts"), &model.timeouts);
    if model.replicas.is_empty() {
        judge.problem(seat, format!(
            "model \"{name}\" has no [[models.replicas]]; add one with url = \"http://…\" or engine = \"FILE.gguf\""
        ));
    }
    if on_engine && model.replicas.len() > 1 {
        judge.problem(&seat.key("replicas"), format!(
            "model \"{name}\" has an engine and other replicas; an engine is a model's only replica"
        ));
    }
    let places = places(judge, seat, &name, &model.replicas);
    let mut replicas = Vec::new();
    let mut engine = None;
    for (n, replica) in model.replicas.into_iter().enumerate() {
        let seat = seat.key("replicas").index(n);
        match (replica.url.clone(), replica.engine.clone()) {
            (Some(url), None) => replicas.extend(remote(judge, &seat, &url, &replica, place)),
            (None, Some(file)) => engine = local(judge, &seat, &name, &file, &replica, place),
            _ => judge.problem(&seat, "a replica has either url or engine".to_owned()),
        }
    }
    if let Some(engine) = &mut engine {
        engine.context_tokens = engine.context_tokens.or(context_tokens);
        replicas.push(Replica {
            name: format!("engine:{name}"),
            target: Target::Unix(engine.socket.clone()),
            base_path: String::new(),
            key: None,
            concurrency: None,
            worker: Some(name.clone()),
        });
    }
    let model = Model {
        name,
        aliases: model.aliases,
        dialect,
        unknown_fields,
        upstream_name,
        // An answer can't be longer than the context that it shares with its prompt.
        max_output_tokens: max_output_tokens.into_iter().chain(context_tokens).min(),
        pool,
        caps,
        price: Price::default(),
        owned_by,
        created: place.now,
        places,
        queue: queue.map_or(QUEUE, |n| usize::try_from(n).unwrap_or(QUEUE)),
        queue_timeout,
        replicas,
        timeouts,
    };
    (model, engine)
}

/// Calls that a model's replicas take together; `None` when one of them counts none.
fn places(
    judge: &mut Judge,
    seat: &Seat,
    name: &str,
    replicas: &[written::Replica],
) -> Option<Places> {
    let mut kinds = BTreeSet::new();
    let mut places = Some(Places {
        count: 0,
        learned: false,
    });
    for (n, replica) in replicas.iter().enumerate() {
        let seat = seat.key("replicas").index(n);
        let own = if replica.engine.is_some() {
            let parallel = judge.number(&seat, "parallel", replica.parallel, &PARALLEL);
            let parallel = parallel.unwrap_or(ENGINE_PARALLEL);
            u32::try_from(parallel).ok().map(Concurrency::Fixed)
        } else {
            concurrency(judge, &seat, replica.concurrency.as_ref())
        };
        kinds.extend(own.map(|own| own == Concurrency::Learned));
        places = places.zip(own).map(|(sum, own)| {
            let (more, learned) = match own {
                Concurrency::Fixed(more) => (more, false),
                Concurrency::Learned => (LEARN_FROM, true),
            };
            Places {
                count: sum.count.saturating_add(more),
                learned: sum.learned || learned,
            }
        });
    }
    if kinds.len() > 1 {
        judge.problem(&seat.key("replicas"), format!(
            "model \"{name}\" has replicas with a number and with \"auto\" as concurrency; what is learned is learned for all of them together, so write one or the other"
        ));
    }
    places.filter(|sum| sum.count > 0)
}

fn concurrency(
    judge: &mut Judge,
    seat: &Seat,
    written: Option<&written::Concurrency>,
) -> Option<Concurrency> {
    match written? {
        written::Concurrency::Number(n) => {
            let n = judge.number(seat, "concurrency", Some(*n), &(1..=100_000));
            n.and_then(|n| u32::try_from(n).ok())
                .map(Concurrency::Fixed)
        }
        written::Concurrency::Word(word) => {
            judge.word(seat, "concurrency", word, &["auto"]);
            Some(Concurrency::Learned)
        }
    }
}

fn kind(judge: &mut Judge, seat: &Seat, written: Option<&str>, on_engine: bool) -> Dialect {
    let default = if on_engine {
        Dialect::Guan
    } else {
        Dialect::OpenAi
    };
    let Some(text) = written else { return default };
    if on_engine && text != "guan" {
        judge.fault(
            seat,
            "kind",
            "can only be \"guan\" for an engine; leave it out",
        );
        return default;
    }
    match text {
        "guan" => Dialect::Guan,
        "vllm" => Dialect::Vllm,
        "sglang" => Dialect::Sglang,
        "llama-server" => Dialect::LlamaServer,
        "openai" => Dialect::OpenAi,
        other => {
            judge.word(
                seat,
                "kind",
                other,
                &["guan", "vllm", "sglang", "llama-server", "openai"],
            );
            default
        }
    }
}

fn unknown_fields(judge: &mut Judge, seat: &Seat, written: Option<&str>) -> UnknownFields {
    match written {
        None | Some("drop") => UnknownFields::Drop,
        Some("refuse") => UnknownFields::Refuse,
        Some("forward") => UnknownFields::Forward,
        Some(other) => {
            judge.word(
                seat,
                "unknown_fields",
                other,
                &["drop", "refuse", "forward"],
            );
            UnknownFields::Drop
        }
    }
}

/// A short text without control characters.
fn named(
    judge: &mut Judge,
    seat: &Seat,
    key: &str,
    written: Option<String>,
    default: &str,
) -> String {
    let Some(text) = written else {
        return default.to_owned();
    };
    if text.is_empty() || text.len() > 256 || text.chars().any(char::is_control) {
        judge.fault(
            seat,
            key,
            "must have 1 to 256 bytes and no control character",
        );
    }
    text
}

fn timeouts(judge: &mut Judge, seat: &Seat, written: &written::Timeouts) -> Timeouts {
    let d = Timeouts::default();
    let low = Duration::from_millis(10);
    let hour = Duration::from_hours(1);
    let limits = Timeouts {
        connect: judge.span(
            seat,
            "connect",
            written.connect,
            d.connect,
            low..=Duration::from_mins(5),
        ),
        first_byte: judge.span(
            seat,
            "first_byte",
            written.first_byte,
            d.first_byte,
            low..=hour,
        ),
        idle: judge.span(seat, "idle", written.idle, d.idle, low..=hour),
        total: judge.span(
            seat,
            "total",
            written.total,
            d.total,
            low..=Duration::from_hours(24),
        ),
    };
    // Only what was written can contradict itself: a short total makes the other limits moot.
    if written.total.is_some() && written.idle.is_some() && limits.idle > limits.total {
        judge.fault(seat, "idle", "can't be longer than total");
    }
    limits
}

/// A replica that somebody else runs.
fn remote(
    judge: &mut Judge,
    seat: &Seat,
    url: &str,
    written: &written::Replica,
    place: &Place<'_>,
) -> Option<Replica> {
    let foreign = [
        ("context_tokens", written.context_tokens),
        ("threads", written.threads),
        ("parallel", written.parallel),
    ];
    for (key, value) in foreign {
        if value.is_some() {
            judge.fault(seat, key, "is for an engine; leave it out next to url");
        }
    }
    let mut read = match upstream::parse(url) {
        Ok(read) => read,
        Err(why) => {
            judge.fault(seat, "url", &why);
            return None;
        }
    };
    if let Some(file) = &written.ca {
        match &mut read.target {
            Target::Https { ca, .. } => *ca = Some(place.data.join(file)),
            Target::Http { .. } | Target::Unix(_) => {
                judge.fault(seat, "ca", "is for an https url; leave it out");
            }
        }
    }
    let key = written.key.as_deref();
    let key = key.and_then(|reference| judge.secret(seat, "key", reference, place));
    Some(Replica {
        name: read.name,
        target: read.target,
        base_path: read.base_path,
        key,
        concurrency: match written.concurrency {
            Some(written::Concurrency::Number(n)) => u32::try_from(n).ok().map(Concurrency::Fixed),
            Some(written::Concurrency::Word(_)) => Some(Concurrency::Learned),
            None => None,
        },
        worker: None,
    })
}

/// A replica that the supervisor runs.
fn local(
    judge: &mut Judge,
    seat: &Seat,
    model: &str,
    file: &str,
    written: &written::Replica,
    place: &Place<'_>,
) -> Option<EngineSpec> {
    for (key, is_set) in [
        ("key", written.key.is_some()),
        ("ca", written.ca.is_some()),
        ("concurrency", written.concurrency.is_some()),
    ] {
        if is_set {
            judge.fault(seat, key, "is for a url; leave it out next to engine");
        }
    }
    let path = Path::new(file);
    let plain = path
        .components()
        .all(|c| matches!(c, Component::Normal(_) | Component::RootDir));
    if file.is_empty() || !plain || path.file_name().is_none() {
        judge.fault(
            seat,
            "engine",
            "must name a file in models/ or be an absolute path, without \"..\"",
        );
        return None;
    }
    Some(EngineSpec {
        name: model.to_owned(),
        file: place.data.join("models").join(path),
        socket: socket(place.data, model),
        context_tokens: judge.number(seat, "context_tokens", written.context_tokens, &CONTEXT),
        threads: judge.number(seat, "threads", written.threads, &(1..=512)),
        // Judged with the places of its model.
        parallel: written.parallel.and_then(|n| u64::try_from(n).ok()),
    })
}

/// Where the supervisor listens for a model's worker: a short file name of its own for each model name.
fn socket(data: &Path, model: &str) -> PathBuf {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') {
            c
        } else {
            '-'
        }
    };
    let slug: String = model.chars().take(40).map(plain).collect();
    let file = if slug == model {
        format!("engine-{slug}.sock")
    } else {
        // FNV-1a keeps names apart that look the same once they are shortened.
        let hash = model.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        format!("engine-{slug}-{hash:08x}.sock")
    };
    data.join("state/run").join(file)
}

/// Calls that wait for a place of a model.
const QUEUE: usize = 512;

/// Calls that a worker runs at the same time if the file doesn't say: `guan-engine`'s own default.
const ENGINE_PARALLEL: u64 = 4;

/// Calls that a replica is given at first where `concurrency` is learned.
const LEARN_FROM: u32 = 8;

/// What the worker takes.
const PARALLEL: std::ops::RangeInclusive<u64> = 1..=64;

/// Tokens that one sequence may hold.
const CONTEXT: std::ops::RangeInclusive<u64> = 64..=16_777_216;
