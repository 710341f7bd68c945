//! What came out: a sample a round, the median of each figure, and the ratio of the medians; as JSON and as Markdown.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::load::Measured;
use crate::workload::{Figure, Workload};

/// Figures of one round, by name: seconds, bytes or a count.
#[derive(Clone, Debug)]
pub(crate) struct Sample(BTreeMap<&'static str, f64>);

/// All rounds of one workload.
#[derive(Debug)]
pub(crate) struct Line {
    workload: &'static Workload,
    /// Requests a second, where they come at a rate.
    pub(crate) rate: Option<f64>,
    samples: BTreeMap<&'static str, Vec<Sample>>,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Report {
    machine: String,
    versions: String,
    rounds: u32,
    note: String,
    /// In the order in which they ran.
    pub(crate) lines: Vec<Line>,
}

impl Sample {
    /// From what was measured.
    pub(crate) fn of(measured: &Measured, cpu: Duration, idle: u64, peak: u64) -> Self {
        let requests = f64::from(measured.requests.max(1));
        let mut figures = BTreeMap::from([
            ("cpu_per_request_s", cpu.as_secs_f64() / requests),
            ("requests_per_s", requests / measured.wall.as_secs_f64()),
            ("memory_peak_bytes", float(peak)),
            (
                "memory_grown_per_stream_bytes",
                float(peak.saturating_sub(idle)) / requests,
            ),
        ]);
        let mut times = |histogram: &Histogram<u64>, p50, p99| {
            if !histogram.is_empty() {
                figures.insert(p50, float(histogram.value_at_quantile(0.50)) / 1e9);
                figures.insert(p99, float(histogram.value_at_quantile(0.99)) / 1e9);
            }
        };
        times(&measured.latency, "latency_p50_s", "latency_p99_s");
        times(&measured.first, "first_byte_p50_s", "first_byte_p99_s");
        times(&measured.delay, "event_delay_p50_s", "event_delay_p99_s");
        Self(figures)
    }

    fn get(&self, figure: &str) -> Option<f64> {
        self.0.get(figure).copied()
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |name| self.get(name).unwrap_or_default();
        write!(
            f,
            "{:9.1} us CPU a request, {:8.0} requests/s, p99 {:8.2} ms, {:6.1} MiB",
            show("cpu_per_request_s") * 1e6,
            show("requests_per_s"),
            show("latency_p99_s") * 1e3,
            show("memory_peak_bytes") / MIB,
        )
    }
}

impl Line {
    /// Without rounds yet.
    pub(crate) const fn new(workload: &'static Workload) -> Self {
        Self {
            workload,
            rate: None,
            samples: BTreeMap::new(),
        }
    }

    /// One round of one of them.
    pub(crate) fn add(&mut self, target: &'static str, sample: Sample) {
        self.samples.entry(target).or_default().push(sample);
    }

    fn median(&self, target: &str, figure: &str) -> Option<f64> {
        let samples = self.samples.get(target)?;
        median(
            samples
                .iter()
                .filter_map(|sample| sample.get(figure))
                .collect(),
        )
    }

    fn ratio(&self, figure: &str) -> Option<f64> {
        Some(self.median("guan", figure)? / self.median("nginx", figure)?)
    }

    fn row(&self) -> String {
        let mut row = format!("| {} | {} |", self.workload.name, self.workload.what);
        let goal = |figure| {
            self.workload
                .goals
                .iter()
                .find(|(which, _, _)| *which == figure)
        };
        for (figure, name, unit, digits) in [
            (Figure::Cpu, "cpu_per_request_s", 1e6, 1),
            (Figure::Memory, "memory_peak_bytes", 1.0 / MIB, 1),
        ] {
            for target in ["guan", "nginx"] {
                row += &cell(self.median(target, name).map(|it| it * unit), digits);
            }
            let ratio = self
                .ratio(name)
                .map(|ratio| format!("**{ratio:.2}**"))
                .unwrap_or_default();
            let goal =
                goal(figure).map(|(_, must, aim)| format!(" (must {must:.2}, aim {aim:.2})"));
            row += &format!(" {ratio}{} |", goal.unwrap_or_default());
        }
        for target in ["guan", "nginx"] {
            row += &cell(self.median(target, "latency_p99_s").map(|it| it * 1e3), 2);
        }
        row
    }

    /// What each adds to the way without it, where that was measured.
    fn added(&self) -> Vec<String> {
        let mut rows = Vec::new();
        for (name, what, quantile) in [
            ("first_byte_p50_s", "time to the first byte", "p50"),
            ("first_byte_p99_s", "time to the first byte", "p99"),
            ("event_delay_p50_s", "delay of an event", "p50"),
            ("event_delay_p99_s", "delay of an event", "p99"),
        ] {
            let Some(direct) = self.median("direct", name) else {
                continue;
            };
            let mut row = format!(
                "| {} | {what}, {quantile} |{}",
                self.workload.name,
                cell(Some(direct * 1e6), 0)
            );
            for target in ["guan", "nginx"] {
                row += &cell(self.median(target, name).map(|it| (it - direct) * 1e6), 0);
            }
            rows.push(row);
        }
        rows
    }

    fn json(&self) -> Value {
        let targets = self.samples.iter().map(|(target, samples)| {
            let names: Vec<_> = samples
                .first()
                .map(|it| it.0.keys().copied().collect())
                .unwrap_or_default();
            let medians: serde_json::Map<_, _> = names
                .into_iter()
                .filter_map(|name| Some((name.to_owned(), json!(self.median(target, name)?))))
                .collect();
            let rounds: Vec<_> = samples.iter().map(|sample| json!(sample.0)).collect();
            (
                (*target).to_owned(),
                json!({ "median": medians, "rounds": rounds }),
            )
        });
        json!({
            "workload": self.workload.name,
            "what": self.workload.what,
            "requests_a_round": self.workload.requests,
            "rate_per_s": self.rate,
            "targets": targets.collect::<serde_json::Map<_, _>>(),
            "ratio": {
                "cpu": self.ratio("cpu_per_request_s"),
                "memory": self.ratio("memory_peak_bytes"),
                "latency_p99": self.ratio("latency_p99_s"),
            },
        })
    }
}

impl Report {
    /// Notes what is compared and where.
    pub(crate) fn begin(guan: &Path, nginx: &Path, rounds: u32, note: &str) -> Self {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        Self {
            machine: format!(
                "{cores} cores of {}, Linux {}",
                model.unwrap_or("an unknown processor"),
                kernel.split(['-', '\n']).next().unwrap_or_default()
            ),
            versions: [said(guan, "--version"), said(nginx, "-v")].join(", "),
            rounds,
            note: note.to_owned(),
            lines: Vec::new(),
        }
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        json!({
            "machine": self.machine,
            "versions": self.versions,
            "rounds": self.rounds,
            "note": self.note,
            "workloads": self.lines.iter().map(Line::json).collect::<Vec<_>>(),
        })
    }

    /// For people.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        let note = if self.note.is_empty() {
            String::new()
        } else {
            format!(" {}.", self.note)
        };
        // A String takes all that is written to it.
        writeln!(
            text,
            "{}; {}. Medians of {} rounds in turn.{note}\n\n\
             | | workload | Guan, µs CPU a request | nginx | ratio | Guan, MiB | nginx | ratio | Guan, p99 ms | nginx |\n\
             |---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
            self.machine, self.versions, self.rounds
        )
        .ok();
        for line in &self.lines {
            writeln!(text, "{}", line.row()).ok();
        }
        let added: Vec<_> = self.lines.iter().flat_map(Line::added).collect();
        if !added.is_empty() {
            text += "\n| | what | direct, µs | Guan adds | nginx adds |\n|---|---|--:|--:|--:|\n";
            text += &added.join("\n");
            text.push('\n');
        }
        text
    }
}

const MIB: f64 = 1_048_576.0;

fn cell(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| " |".to_owned(), |value| format!(" {value:.digits$} |"))
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(*values.get(middle.checked_sub(1)?)?, upper))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "figures are read to three digits"
)]
const fn float(number: u64) -> f64 {
    number as f64
}

fn said(program: &Path, flag: &str) -> String {
    #[expect(
        clippy::disallowed_methods,
        reason = "a bench asks what it measures for its version"
    )]
    let mut command = std::process::Command::new(program);
    let Ok(output) = command.arg(flag).output() else {
        return String::new();
    };
    let said = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&said).into_owned();
    text.trim().trim_start_matches("nginx version: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
