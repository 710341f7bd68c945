//! The order of things: each workload on fresh processes, nginx and Guan in turn, round after round.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

use crate::Fault;
use crate::load::{Calls, Measured};
use crate::report::{Line, Report, Sample};
use crate::target::{Target, raise_files};
use crate::upstream::{TOKENS, Upstream};
use crate::usage::{self, Peak};
use crate::workload::{Pattern, Script, WORKLOADS, Workload};

/// Of a round's requests, one in so many warms up.
const WARM_UP: u32 = 10;
/// How long live streams are held before a look.
const HOLD: Duration = Duration::from_secs(2);

/// Guan against nginx, in one run on this machine.
#[derive(Debug, Parser)]
#[command(name = "guan-bench", version)]
pub struct Options {
    /// The guan to measure
    #[arg(long, value_name = "FILE")]
    guan: PathBuf,
    /// The nginx to measure it against
    #[arg(long, value_name = "FILE", default_value = "/usr/sbin/nginx")]
    nginx: PathBuf,
    /// Which workloads, such as A,C or E (all that begin with E); without it, all
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    workload: Vec<String>,
    /// How often each is measured, nginx and Guan in turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Where bench.json and bench.md go
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// What the report says of the build
    #[arg(long, default_value = "")]
    note: String,
}

/// Runs it.
///
/// # Errors
/// When something can't be started, or an answer isn't whole.
pub fn run(options: &Options) -> Result<(), Fault> {
    raise_files()?;
    let epoch = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut report = Report::begin(&options.guan, &options.nginx, options.rounds, &options.note);
    for workload in &WORKLOADS {
        let asked = |name: &String| workload.name.starts_with(name.as_str());
        if !options.workload.is_empty() && !options.workload.iter().any(asked) {
            continue;
        }
        say(&format!("{}: {}", workload.name, workload.what));
        let upstream = Upstream::start(epoch)?;
        let mut targets = vec![
            Target::nginx(&options.nginx, upstream.address)?,
            Target::guan(&options.guan, upstream.address)?,
        ];
        if workload.has_direct() {
            targets.insert(0, Target::direct(upstream.address));
        }
        let bench = Bench {
            runtime: &runtime,
            workload,
            epoch,
        };
        report.lines.push(bench.rounds(&targets, options.rounds)?);
    }
    if report.lines.is_empty() {
        return Err("no such workload".into());
    }
    write(&options.out, &report)
}

struct Bench<'a> {
    runtime: &'a Runtime,
    workload: &'static Workload,
    epoch: Instant,
}

impl Bench<'_> {
    fn rounds(&self, targets: &[Target], rounds: u32) -> Result<Line, Fault> {
        let mut line = Line::new(self.workload);
        let mut capacity = f64::INFINITY;
        for target in targets {
            let warm = self.measure(target, self.workload.requests / WARM_UP, None)?;
            if !target.processes.is_empty() {
                capacity = capacity.min(f64::from(warm.requests) / warm.wall.as_secs_f64());
            }
        }
        let rate =
            matches!(self.workload.pattern, Pattern::HalfLoad { .. }).then_some(capacity / 2.0);
        line.rate = rate;
        for round in 1..=rounds {
            for target in targets {
                let idle = usage::memory(&target.processes);
                let peak = Peak::watch(target.processes.clone());
                let before = usage::cpu(&target.processes);
                let measured = self.measure(target, self.workload.requests, rate)?;
                let cpu = usage::cpu(&target.processes).saturating_sub(before);
                let sample = Sample::of(&measured, cpu, idle, peak.end());
                say(&format!("  {round}/{rounds} {:6} {sample}", target.name));
                line.add(target.name, sample);
            }
        }
        Ok(line)
    }

    fn measure(
        &self,
        target: &Target,
        requests: u32,
        rate: Option<f64>,
    ) -> Result<Measured, Fault> {
        let calls = Calls {
            door: target.door(self.workload, self.epoch)?,
            request: target.request(self.workload).into(),
            events: match self.workload.script {
                Script::Whole => 0,
                // The last one says why it ended.
                Script::Burst | Script::Paced => TOKENS + 1,
                Script::Forever => 1,
            },
        };
        let load = async {
            match (self.workload.pattern, rate) {
                (Pattern::HalfLoad { connections }, Some(rate)) => {
                    calls.at_rate(connections, requests, rate).await
                }
                (Pattern::HalfLoad { connections }, None) => {
                    calls.closed(connections, requests, Duration::ZERO).await
                }
                (
                    Pattern::Closed {
                        connections,
                        spread,
                    },
                    _,
                ) => {
                    calls
                        .closed(connections, requests.max(connections), spread)
                        .await
                }
                (Pattern::Fresh { connections }, _) => calls.fresh(connections, requests).await,
                (Pattern::Live { connections }, _) => {
                    let mut measured = Measured::new()?;
                    let begun = Instant::now();
                    let streams = calls.live(requests.min(connections)).await?;
                    tokio::time::sleep(HOLD).await;
                    measured.requests = requests.min(connections);
                    measured.wall = begun.elapsed();
                    drop(streams);
                    Ok(measured)
                }
            }
        };
        LocalSet::new().block_on(self.runtime, load)
    }
}

fn write(folder: &Path, report: &Report) -> Result<(), Fault> {
    std::fs::create_dir_all(folder)?;
    let text = report.markdown();
    std::fs::write(
        folder.join("bench.json"),
        serde_json::to_string_pretty(&report.json())? + "\n",
    )?;
    std::fs::write(folder.join("bench.md"), &text)?;
    say(&format!(
        "\n{text}\n{} and bench.md beside it",
        folder.join("bench.json").display()
    ));
    Ok(())
}

#[expect(
    clippy::print_stdout,
    reason = "a command tells its user how far it is"
)]
fn say(text: &str) {
    println!("{text}");
}
