//! `guan serve`: the process that holds listeners, lock and the power to spawn, and reads no byte from outside.
//!
//! One thread, one poll loop. It starts the gateway and the engine workers, restarts what dies, carries the config
//! file's bytes to the gateway, and ends everything in order. It judges no request and opens no store.

use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sandbox::{Exit, Profile, Signal};
use wire::control::{Door, Start, ToGateway};

use crate::commands::{Failure, Places};
use crate::config::Config;
use crate::folder::Folder;

mod start;
mod listen;
mod child;
mod worker;
mod pause;
mod signals;
mod watch;
mod welcome;
mod talk;
mod token;
mod finish;

pub(crate) use start::engine_program;
pub(crate) use welcome::fingerprint;

use child::Gateway;
use worker::{Turn, Worker};

/// Serves until it is told to stop.
///
/// # Errors
/// [`Failure`]: what is in the way and what to do, before or while serving.
pub(crate) fn run(places: &Places) -> Result<(), Failure> {
    let fence = sandbox::enter(Profile::Supervisor).map_err(|e| Failure::new(e.to_string()))?;
    let signals = signals::Signals::catch().map_err(|e| {
        Failure::new(format!(
            "signals can't be caught: {e}; raise the limit on open files"
        ))
    })?;
    let folder = Folder::open(&places.data)?;
    let _lock = start::lock(&folder)?;
    folder.make(&folder.models(), 0o755)?;
    if !places.config.exists() {
        start::init(&folder, places, Some(&start::only_model(&folder)?))?;
    }
    let (text, config) = start::read(&folder, &places.config)?;
    let cores = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(MOST_LISTENERS);
    let mut doors = vec![listen::bind(Door::Data, config.listen, cores)?];
    if let Some(address) = config.admin {
        doors.push(listen::bind(Door::Admin, address, 1)?);
    }
    if let Some(address) = config.metrics {
        doors.push(listen::bind(Door::Metrics, address, 1)?);
    }
    // Only now, so that a config or a port that is refused leaves nothing behind.
    if !control::bootstrap::is_ready(folder.path()) {
        start::init(&folder, places, None)?;
    }
    folder.make(&folder.run(), 0o700)?;
    doors.push(listen::bind_admin_socket(&folder.admin_socket())?);
    tracing::debug!("fence of the supervisor: {fence}");
    let mut supervisor = Supervisor {
        watch: watch_config(&places.config),
        config_path: places.config.clone(),
        text,
        config,
        doors,
        workers: Vec::new(),
        token: None,
        gateway: Life::Waits(Instant::now()),
        deaths: pause::Deaths::default(),
        signals,
        asked: None,
        reload_at: None,
        is_forced: false,
        is_welcomed: false,
        stops: 0,
        kill_at: None,
        folder,
    };
    let ended = supervisor.start_all().and_then(|()| supervisor.serve());
    supervisor.end_workers();
    supervisor.remove_sockets();
    ended
}

/// The variables that a child gets: those about logs and those in `also`.
pub(crate) fn passed_env(also: impl IntoIterator<Item = String>) -> Vec<(OsString, OsString)> {
    let always = [
        "GUAN_LOG",
        "RUST_LOG",
        "RUST_BACKTRACE",
        "NO_COLOR",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    ];
    always
        .into_iter()
        .map(str::to_owned)
        .chain(also)
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .filter_map(|name| Some((OsString::from(&name), std::env::var_os(&name)?)))
        .collect()
}

struct Supervisor {
    folder: Folder,
    config_path: PathBuf,
    /// The bytes in force.
    text: String,
    config: Config,
    doors: Vec<listen::Bound>,
    workers: Vec<Worker>,
    /// `guan-pkcs11`, while `[kms]` needs it.
    token: Option<token::Token>,
    gateway: Life,
    deaths: pause::Deaths,
    signals: signals::Signals,
    watch: Option<watch::Watch>,
    /// Bytes sent to the gateway that it hasn't answered yet.
    asked: Option<String>,
    /// When the file is read again: a while after its last change.
    reload_at: Option<Instant>,
    /// SIGHUP: tell even of a file that hasn't changed.
    is_forced: bool,
    is_welcomed: bool,
    /// How often a stop was asked for.
    stops: usize,
    /// When a draining gateway is killed.
    kill_at: Option<Instant>,
}

enum Life {
    Runs(Gateway),
    Waits(Instant),
}

/// What the loop waits for.
#[derive(Clone, Copy)]
enum Source {
    Stop,
    Reload,
    Watch,
    Channel,
    GatewayEnd,
    Line(usize),
    WorkerEnd(usize),
    TokenEnd,
}

impl Supervisor {
    /// The first gateway and all workers.
    fn start_all(&mut self) -> Result<(), Failure> {
        // First, since a gateway can't start before its data key is open.
        self.token = token::Token::start(&self.config.kms, &self.folder, Instant::now())?;
        self.start_gateway()?;
        if self.config.engines.is_empty() {
            return Ok(());
        }
        let program = engine_program()?;
        for spec in self.config.engines.clone() {
            let worker = Worker::start(spec, program.clone(), Instant::now())?;
            self.tell(&worker);
            self.workers.push(worker);
        }
        Ok(())
    }

    /// The loop, until a stop or a failure.
    fn serve(&mut self) -> Result<(), Failure> {
        loop {
            for source in self.wait()? {
                match source {
                    Source::Stop => self.stop(),
                    Source::Reload => {
                        self.signals.reloads();
                        self.is_forced = true;
                        self.reload_at = Some(Instant::now());
                    }
                    Source::Watch => {
                        if self.watch.as_ref().is_some_and(watch::Watch::changed) {
                            self.reload_at = Some(Instant::now() + QUIET);
                        }
                    }
                    Source::Channel => self.hear()?,
                    Source::GatewayEnd => {
                        if self.gateway_ended()? {
                            return Ok(());
                        }
                    }
                    Source::Line(n) => self.worker_turn(n, Worker::hear)?,
                    Source::WorkerEnd(n) => {
                        self.worker_turn(n, |worker| worker.reap(Instant::now()))?;
                    }
                    Source::TokenEnd => {
                        if let Some(token) = &mut self.token {
                            token.reap(Instant::now());
                        }
                    }
                }
            }
            if self.do_what_is_due()? {
                return Ok(());
            }
        }
    }

    /// Waits for the next things to happen, or for the next time that something is due.
    fn wait(&self) -> Result<Vec<Source>, Failure> {
        let mut waits: Vec<(Source, BorrowedFd<'_>, PollFlags)> = vec![
            (Source::Stop, self.signals.stop_fd(), PollFlags::IN),
            (Source::Reload, self.signals.reload_fd(), PollFlags::IN),
        ];
        if let Some(watch) = &self.watch {
            waits.push((Source::Watch, watch.fd(), PollFlags::IN));
        }
        if let Life::Runs(gateway) = &self.gateway {
            let backlog = if gateway.has_backlog() {
                PollFlags::OUT
            } else {
                PollFlags::empty()
            };
            let channel = gateway
                .channel_fd()
                .map(|fd| (Source::Channel, fd, PollFlags::IN | backlog));
            waits.extend(channel);
            waits.push((
                Source::GatewayEnd,
                std::os::fd::AsFd::as_fd(&gateway.child),
                PollFlags::IN,
            ));
        }
        for (n, worker) in self.workers.iter().enumerate() {
            waits.extend(
                worker
                    .line_fd()
                    .map(|fd| (Source::Line(n), fd, PollFlags::IN)),
            );
            waits.extend(
                worker
                    .end_fd()
                    .map(|fd| (Source::WorkerEnd(n), fd, PollFlags::IN)),
            );
        }
        let token = self.token.as_ref().and_then(token::Token::end_fd);
        waits.extend(token.map(|fd| (Source::TokenEnd, fd, PollFlags::IN)));
        let mut polled: Vec<PollFd<'_>> = waits
            .iter()
            .map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
            .collect();
        let pause = self
            .next_due()
            .map(|at| at.saturating_duration_since(Instant::now()));
        // A millisecond late rather than a round of the loop too early.
        let limit = pause.and_then(|p| Timespec::try_from(p + Duration::from_millis(1)).ok());
        match poll(&mut polled, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Failure::new(format!("waiting failed: {e}"))),
        }
        let happened = waits
            .iter()
            .zip(&polled)
            .filter(|(_, p)| !p.revents().is_empty());
        Ok(happened.map(|((source, ..), _)| *source).collect())
    }

    /// When something is due next.
    fn next_due(&self) -> Option<Instant> {
        let gateway = match &self.gateway {
            Life::Waits(until) => Some(*until),
            Life::Runs(_) => None,
        };
        let workers = self
            .workers
            .iter()
            .filter_map(Worker::wakes_at)
            .filter(|_| self.stops == 0);
        workers
            .chain(gateway)
            .chain(self.reload_at)
            .chain(self.kill_at)
            .chain(self.token.as_ref().and_then(token::Token::wakes_at))
            .min()
    }

    /// Restarts, the reload, the end of a drain; whether serving is over.
    fn do_what_is_due(&mut self) -> Result<bool, Failure> {
        let now = Instant::now();
        if let Life::Waits(until) = &self.gateway
            && now >= *until
        {
            if self.stops > 0 {
                return Ok(true);
            }
            self.start_gateway()?;
        }
        if self.kill_at.is_some_and(|at| now >= at)
            && let Life::Runs(gateway) = &self.gateway
        {
            tracing::warn!("the gateway doesn't end; it is killed");
            self.kill_at = None;
            gateway
                .child
                .kill(Signal::KILL)
                .map_err(|e| Failure::new(format!("the gateway can't be killed: {e}")))?;
        }
        if let Some(token) = &mut self.token {
            token.wake(now);
        }
        let count = if self.stops == 0 {
            self.workers.len()
        } else {
            0
        };
        for n in 0..count {
            let woken = self.workers.get_mut(n).is_some_and(|w| w.wake(now));
            if woken && let Some(worker) = self.workers.get(n) {
                tracing::info!(worker = worker.name(), "started again");
                let message = message_of(worker, now);
                self.send(&message);
            }
        }
        if self.reload_at.is_some_and(|at| now >= at) && self.asked.is_none() {
            self.reload_at = None;
            self.reload();
        }
        Ok(false)
    }

    /// A new generation, on the listeners that were bound once.
    fn start_gateway(&mut self) -> Result<(), Failure> {
        let at = |e: io::Error| Failure::new(format!("the data folder's state can't be read: {e}"));
        let generation = self.folder.next_generation().map_err(at)?;
        let dead = self.folder.generations_with_slots().map_err(at)?;
        let now = Instant::now();
        let env = passed_env(self.config.environment.iter().cloned());
        let (mut gateway, listeners) = Gateway::start(&self.doors, env, now)
            .map_err(|e| Failure::new(format!("the gateway can't be started: {e}")))?;
        gateway.send(&ToGateway::Start(Box::new(Start {
            generation,
            dead: dead.into_iter().collect(),
            data: self.folder.path().to_string_lossy().into_owned(),
            config_path: self.config_path.to_string_lossy().into_owned(),
            config: self.text.clone(),
            listeners,
        })));
        for worker in &self.workers {
            gateway.send(&message_of(worker, now));
        }
        tracing::debug!(generation, pid = gateway.child.pid(), "gateway started");
        self.gateway = Life::Runs(gateway);
        Ok(())
    }

    /// Looks at an ended gateway; whether serving is over.
    fn gateway_ended(&mut self) -> Result<bool, Failure> {
        // Its last words may say why.
        self.hear()?;
        let Life::Runs(gateway) = &mut self.gateway else {
            return Ok(false);
        };
        let exit = match gateway.child.try_wait() {
            Ok(None) => return Ok(false),
            Ok(Some(exit)) => exit,
            Err(e) => {
                return Err(Failure::new(format!(
                    "the gateway can't be waited for: {e}"
                )));
            }
        };
        let now = Instant::now();
        let lived = now.duration_since(gateway.since);
        self.gateway = Life::Waits(now);
        self.kill_at = None;
        if self.asked.take().is_some() {
            self.reload_at = Some(now);
        }
        if self.stops > 0 {
            if exit != Exit::Code(0) {
                tracing::warn!("the gateway didn't end in order: {exit}");
            }
            return Ok(true);
        }
        if !self.is_welcomed {
            return Err(Failure::new(format!(
                "the gateway couldn't start: {exit}; the lines above say more"
            )));
        }
        let Some(pause) = self.deaths.add(now, lived) else {
            return Err(Failure::new(format!(
                "the gateway died five times in 30 seconds, the last time so: {exit}; the lines above say more"
            )));
        };
        tracing::error!(
            "the gateway died: {exit}; a new one follows in {} ms",
            pause.as_millis()
        );
        self.gateway = Life::Waits(now + pause);
        Ok(false)
    }

    /// A worker's ready line or end.
    fn worker_turn(
        &mut self,
        n: usize,
        look: impl FnOnce(&mut Worker) -> Option<Turn>,
    ) -> Result<(), Failure> {
        let Some(worker) = self.workers.get_mut(n) else {
            return Ok(());
        };
        match look(worker) {
            None => return Ok(()),
            Some(Turn::Ready(ready)) => {
                tracing::info!(worker = worker.name(), "ready");
                welcome::model_ready(&ready);
            }
            Some(Turn::Died { reason, pause }) => tracing::error!(
                worker = worker.name(),
                "died: {reason}; started again in {} s",
                pause.as_secs()
            ),
            Some(Turn::NeverLoaded(reason)) => return Err(Failure::new(worker.explain(&reason))),
        }
        let message = message_of(worker, Instant::now());
        self.send(&message);
        Ok(())
    }

    fn tell(&mut self, worker: &Worker) {
        let message = message_of(worker, Instant::now());
        self.send(&message);
    }

    fn send(&mut self, message: &ToGateway) {
        if let Life::Runs(gateway) = &mut self.gateway {
            gateway.send(message);
        }
    }
}

fn message_of(worker: &Worker, now: Instant) -> ToGateway {
    ToGateway::Worker {
        name: worker.name().to_owned(),
        state: worker.state(now),
    }
}

fn watch_config(path: &std::path::Path) -> Option<watch::Watch> {
    watch::Watch::on(path)
        .inspect_err(|e| {
            tracing::warn!(
                "changes of {} aren't seen by themselves ({e}); send SIGHUP after a change",
                path.display()
            );
        })
        .ok()
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Descriptors a gateway can be given, less some.
const MOST_LISTENERS: usize = 64;

/// A file that was just written is often written again at once.
const QUIET: Duration = Duration::from_millis(100);

/// How long a drained gateway may take to end.
const AFTER_GRACE: Duration = Duration::from_secs(3);
