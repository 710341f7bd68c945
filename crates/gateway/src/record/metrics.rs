//! What is counted: one look at each call when it ends, and a picture of the rest when somebody asks.
//!
//! Labels are closed sets: endpoints, endings and reasons of the code, models and roles of the config file. Nothing of
//! a caller becomes a label. Names follow Prometheus, and OpenTelemetry's semantic conventions for generative AI where
//! those have one. Filled by `record::settle` and `way`; what lies outside the gateway (keys, key service,
//! certificate) is told by `guan::wiring`, and isn't shown before. Read by `record::scrape`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use rules::measure::{Charge, Ending, Source};

use crate::state::Gateway;

/// Seconds: from a small model's first token to an hour's answer.
const SECONDS: [f64; 16] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0,
];

/// What is counted.
pub struct Metrics {
    registry: Registry,
    calls: Family<Call, Counter>,
    refusals: Family<Reason, Counter>,
    tokens: Family<Tokens, Counter>,
    above: Family<Model, Counter>,
    retries: Family<Model, Counter>,
    duration: Family<Model, Histogram, fn() -> Histogram>,
    first_byte: Family<Model, Histogram, fn() -> Histogram>,
    gauges: Gauges,
    outside: Mutex<Outside>,
}

/// What is read when somebody asks.
#[derive(Debug, Default)]
struct Gauges {
    in_flight: Gauge,
    running: Family<Model, Gauge>,
    waiting: Family<Model, Gauge>,
    body_bytes: Gauge,
    draining: Gauge,
    stale: Gauge,
    audit: Gauge,
    audit_waiting: Gauge,
    config: Family<Config, Gauge>,
    heard: Gauge<f64, std::sync::atomic::AtomicU64>,
    secrets: Gauge,
    workers: Gauge,
    due: Family<Role, Gauge>,
    sealing: Family<NoLabels, Gauge>,
    certificate: Family<NoLabels, Gauge>,
}

/// Of a gauge that isn't there before its value is known.
type NoLabels = Vec<(&'static str, &'static str)>;

/// What the gateway doesn't know by itself.
#[derive(Debug, Default)]
struct Outside {
    rotation_due: BTreeMap<String, u64>,
    sealing_reachable: Option<bool>,
    certificate_ends: Option<i64>,
    /// The config file in force, by a short name of its bytes.
    config: Option<String>,
}

/// How a call ended, as it is counted.
#[derive(Debug)]
pub(crate) struct Ended<'a> {
    pub(crate) endpoint: &'static str,
    pub(crate) model: Option<&'a Arc<str>>,
    pub(crate) ending: Ending,
    pub(crate) reason: Option<&'static str>,
    pub(crate) charge: Charge,
    pub(crate) attempts: u32,
    pub(crate) duration: Duration,
    pub(crate) first_byte: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    endpoint: &'static str,
    model: Arc<str>,
    ending: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Tokens {
    model: Arc<str>,
    direction: &'static str,
    source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Model {
    gen_ai_request_model: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Config {
    digest: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Role {
    role: String,
}

fn histogram() -> Histogram {
    Histogram::new(SECONDS)
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            calls: Family::default(),
            refusals: Family::default(),
            tokens: Family::default(),
            above: Family::default(),
            retries: Family::default(),
            duration: Family::new_with_constructor(histogram),
            first_byte: Family::new_with_constructor(histogram),
            gauges: Gauges::default(),
            outside: Mutex::default(),
        };
        metrics.register_sums();
        metrics.register_gauges();
        metrics.register_told();
        metrics
    }
}

impl Metrics {
    fn register_sums(&mut self) {
        let build: Family<Vec<(&'static str, &'static str)>, Gauge> = Family::default();
        build
            .get_or_create(&vec![("version", env!("CARGO_PKG_VERSION"))])
            .set(1);
        let all = &mut self.registry;
        all.register("guan_build_info", "The version that runs", build);
        all.register(
            "guan_calls",
            "Calls of known callers to models, by how they ended",
            self.calls.clone(),
        );
        all.register(
            "guan_refusals",
            "Refused requests by reason, callers without a valid credential included",
            self.refusals.clone(),
        );
        all.register(
            "guan_tokens",
            "Charged tokens, and whether the model server reported them or Guan counted them",
            self.tokens.clone(),
        );
        all.register(
            "guan_usage_above_reservation",
            "Calls whose reported usage was above what was reserved for them",
            self.above.clone(),
        );
        all.register(
            "guan_retries",
            "Attempts at further replicas",
            self.retries.clone(),
        );
        all.register_with_unit(
            "gen_ai_server_request_duration",
            "From a call's arrival to its record",
            Unit::Seconds,
            self.duration.clone(),
        );
        all.register_with_unit(
            "gen_ai_server_time_to_first_token",
            "From a call's arrival to the first byte of its answer",
            Unit::Seconds,
            self.first_byte.clone(),
        );
    }

    fn register_gauges(&mut self) {
        let (all, gauges) = (&mut self.registry, &self.gauges);
        let (running, waiting) = (gauges.running.clone(), gauges.waiting.clone());
        all.register(
            "guan_places_taken",
            "Calls that have a place of a model",
            running,
        );
        all.register(
            "guan_queue_length",
            "Calls that wait for a place of a model",
            waiting,
        );
        let due = gauges.due.clone();
        all.register(
            "guan_keys_rotation_due",
            "Keys that are older than their role's rotate_after",
            due,
        );
        for (name, help, gauge) in [
            (
                "guan_in_flight",
                "Calls that hold an in-flight slot",
                &gauges.in_flight,
            ),
            (
                "guan_body_bytes",
                "Memory that request bodies take, bytes",
                &gauges.body_bytes,
            ),
            (
                "guan_draining",
                "1 while the server is stopping",
                &gauges.draining,
            ),
            (
                "guan_config_stale",
                "1 while the config file was refused and an older one is in force",
                &gauges.stale,
            ),
            (
                "guan_audit_healthy",
                "1 while the audit log can be written",
                &gauges.audit,
            ),
            (
                "guan_audit_queue_length",
                "Records that wait to be written, and places that calls hold for theirs",
                &gauges.audit_waiting,
            ),
            (
                "guan_key_secrets",
                "Secrets of keys in memory, revoked ones included",
                &gauges.secrets,
            ),
            (
                "guan_workers_ready",
                "Supervised engine workers that are ready",
                &gauges.workers,
            ),
        ] {
            all.register(name, help, gauge.clone());
        }
        let heard = gauges.heard.clone();
        all.register_with_unit(
            "guan_store_silence",
            "Since the store was last heard",
            Unit::Seconds,
            heard,
        );
    }

    /// What isn't there before it is known.
    fn register_told(&mut self) {
        let (all, gauges) = (&mut self.registry, &self.gauges);
        all.register(
            "guan_config_info",
            "The config file in force: nodes that differ in it judge differently",
            gauges.config.clone(),
        );
        all.register(
            "guan_sealing_reachable",
            "1 if the key service of [kms] opened the data key when it was asked last",
            gauges.sealing.clone(),
        );
        all.register(
            "guan_certificate_not_after_timestamp_seconds",
            "When the certificate in use ends, seconds since 1970",
            gauges.certificate.clone(),
        );
    }

    /// Counts a call that has ended.
    pub(crate) fn ended(&self, call: &Ended<'_>) {
        let none = || Arc::from("");
        let name = call.model.map_or_else(none, Arc::clone);
        let labels = Call {
            endpoint: call.endpoint,
            model: name.clone(),
            ending: word(call.ending),
        };
        self.calls.get_or_create(&labels).inc();
        // What failed or ran out of time later isn't refused: its ending says so.
        if let Some(reason) = call.reason
            && matches!(call.ending, Ending::Refused | Ending::Drained)
        {
            self.refused(reason);
        }
        if call.model.is_none() {
            // Refused before its model was known.
            return;
        }
        let model = Model {
            gen_ai_request_model: name.clone(),
        };
        let seconds = call.duration.as_secs_f64();
        self.duration.get_or_create(&model).observe(seconds);
        if let Some(first) = call.first_byte {
            let seconds = first.as_secs_f64();
            self.first_byte.get_or_create(&model).observe(seconds);
        }
        let source = match call.charge.source {
            Source::Reported => "reported",
            Source::Counted => "counted",
            Source::Nothing => return,
        };
        let charged = call.charge.tokens;
        for (direction, count) in [("input", charged.input), ("output", charged.output)] {
            let labels = Tokens {
                model: name.clone(),
                direction,
                source,
            };
            self.tokens.get_or_create(&labels).inc_by(count);
        }
        if call.charge.above {
            self.above.get_or_create(&model).inc();
        }
        if call.attempts > 1 {
            let more = u64::from(call.attempts.saturating_sub(1));
            self.retries.get_or_create(&model).inc_by(more);
        }
    }

    /// Counts a request that was refused.
    pub(crate) fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&Reason { reason }).inc();
    }

    /// Takes how many keys are older than their role's `rotate_after`, by role.
    pub fn tell_rotation_due(&self, due: BTreeMap<String, u64>) {
        self.outside().rotation_due = due;
    }

    /// Takes whether the key service opened the data key when it was asked last.
    pub fn tell_sealing(&self, reachable: bool) {
        self.outside().sealing_reachable = Some(reachable);
    }

    /// Takes when the certificate in use ends, seconds since 1970.
    pub fn tell_certificate(&self, ends: Option<i64>) {
        self.outside().certificate_ends = ends;
    }

    /// Takes the short name of the config file in force.
    pub fn tell_config(&self, digest: String) {
        self.outside().config = Some(digest);
    }

    fn outside(&self) -> MutexGuard<'_, Outside> {
        // Each value is whole: a panic elsewhere leaves nothing half-written.
        self.outside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything as `OpenMetrics` text.
    #[must_use]
    pub fn text(&self, gateway: &Gateway) -> String {
        self.look(gateway);
        let mut text = String::with_capacity(16 << 10);
        // A String takes all that is written to it.
        prometheus_client::encoding::text::encode(&mut text, &self.registry).ok();
        text
    }

    fn look(&self, gateway: &Gateway) {
        let gauges = &self.gauges;
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let flag = |set: bool| i64::from(set);
        gauges
            .in_flight
            .set(number(gateway.in_flight.load(Ordering::Relaxed)));
        let bytes = gateway.bodies.load(Ordering::Relaxed);
        gauges
            .body_bytes
            .set(i64::try_from(bytes).unwrap_or(i64::MAX));
        gauges
            .draining
            .set(flag(gateway.draining.load(Ordering::Relaxed)));
        gauges
            .stale
            .set(flag(gateway.config_stale.load(Ordering::Relaxed)));
        gauges.audit.set(flag(gateway.trail.is_healthy()));
        gauges.audit_waiting.set(number(gateway.trail.waiting()));
        gauges.heard.set(gateway.freshness.age().as_secs_f64());
        gauges.secrets.set(number(gateway.keys.load().len()));
        gauges.workers.set(number(gateway.workers.load().len()));
        // Lines of models that are gone go with them.
        gauges.running.clear();
        gauges.waiting.clear();
        gateway.lines.each(|model, running, waiting| {
            let labels = Model {
                gen_ai_request_model: model.into(),
            };
            gauges
                .running
                .get_or_create(&labels)
                .set(i64::from(running));
            gauges.waiting.get_or_create(&labels).set(number(waiting));
        });
        let outside = self.outside();
        gauges.due.clear();
        for (role, count) in &outside.rotation_due {
            let labels = Role { role: role.clone() };
            let count = i64::try_from(*count).unwrap_or(i64::MAX);
            gauges.due.get_or_create(&labels).set(count);
        }
        let known = |family: &Family<NoLabels, Gauge>, value: Option<i64>| {
            family.clear();
            if let Some(value) = value {
                family.get_or_create(&NoLabels::new()).set(value);
            }
        };
        gauges.config.clear();
        if let Some(digest) = &outside.config {
            let labels = Config {
                digest: digest.clone(),
            };
            gauges.config.get_or_create(&labels).set(1);
        }
        known(&gauges.sealing, outside.sealing_reachable.map(flag));
        known(&gauges.certificate, outside.certificate_ends);
    }
}

const fn word(ending: Ending) -> &'static str {
    match ending {
        Ending::Finished => "finished",
        Ending::Refused => "refused",
        Ending::ClientGone => "client-gone",
        Ending::UpstreamFailed => "upstream-failed",
        Ending::TimedOut => "timed-out",
        Ending::Drained => "drained",
        Ending::NodeDied => "node-died",
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

#[cfg(test)]
mod tests {
    use rules::measure;

    use super::*;

    #[test]
    fn a_call_is_counted_once_in_each_of_its_sums() {
        let metrics = Metrics::default();
        let model: Arc<str> = "m\"\n".into();
        let charge = |source| Charge {
            tokens: measure::Tokens {
                input: 3,
                output: 5,
            },
            source,
            above: true,
        };
        let call = Ended {
            endpoint: "/v1/chat/completions",
            model: Some(&model),
            ending: Ending::Finished,
            reason: None,
            charge: charge(Source::Reported),
            attempts: 3,
            duration: Duration::from_millis(30),
            first_byte: Some(Duration::from_millis(20)),
        };
        metrics.ended(&call);
        metrics.ended(&call);
        metrics.ended(&Ended {
            model: None,
            ending: Ending::Refused,
            reason: Some("model-unknown"),
            charge: charge(Source::Nothing),
            ..call
        });
        for (ending, reason) in [
            (Ending::TimedOut, "client-stalled"),
            (Ending::UpstreamFailed, "upstream"),
        ] {
            metrics.ended(&Ended {
                model: None,
                ending,
                reason: Some(reason),
                charge: charge(Source::Nothing),
                ..call
            });
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &metrics.registry).unwrap();
        for line in [
            r#"guan_calls_total{endpoint="/v1/chat/completions",model="m\"\n",ending="finished"} 2"#,
            r#"guan_calls_total{endpoint="/v1/chat/completions",model="",ending="refused"} 1"#,
            r#"guan_refusals_total{reason="model-unknown"} 1"#,
            r#"guan_tokens_total{model="m\"\n",direction="output",source="reported"} 10"#,
            r#"guan_usage_above_reservation_total{gen_ai_request_model="m\"\n"} 2"#,
            r#"guan_retries_total{gen_ai_request_model="m\"\n"} 4"#,
            r#"gen_ai_server_request_duration_seconds_count{gen_ai_request_model="m\"\n"} 2"#,
            r#"gen_ai_server_time_to_first_token_seconds_bucket{le="0.025",gen_ai_request_model="m\"\n"} 2"#,
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
        assert!(
            !text.contains(r#"reason="client-stalled""#) && !text.contains(r#"reason="upstream""#)
        );
        assert!(text.ends_with("# EOF\n"));
    }
}
