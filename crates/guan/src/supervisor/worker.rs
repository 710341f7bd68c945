//! One engine worker: its socket, its process, its ready line, its restarts.
//!
//! It decides when a worker is started again and what is told of it; a model that never loaded is the loop's
//! business. Called by the supervisor's loop.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sandbox::{Child, Program, Signal, Spec, Stream};
use wire::control::{WorkerLine, WorkerReady, WorkerState};

use super::listen;
use super::pause::BackOff;
use crate::commands::Failure;
use crate::config::EngineSpec;

/// A worker, running or waiting to run again.
#[derive(Debug)]
pub(super) struct Worker {
    spec: EngineSpec,
    program: PathBuf,
    listener: UnixListener,
    life: Life,
    back_off: BackOff,
    was_ready: bool,
    failure: Option<String>,
}

#[derive(Debug)]
enum Life {
    Runs(Running),
    Waits { until: Instant, reason: String },
}

#[derive(Debug)]
struct Running {
    child: Child,
    since: Instant,
    /// Where its one line comes from; `None` once it came or can't come any more.
    line_from: Option<UnixStream>,
    line: Vec<u8>,
    loaded: Option<WorkerReady>,
}

/// What became of a worker.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It accepts calls.
    Ready(WorkerReady),
    /// It died and is started again after a pause.
    Died {
        /// How, in a sentence.
        reason: String,
        /// Until it is started again.
        pause: Duration,
    },
    /// It died before it ever was ready: starting it again won't help.
    NeverLoaded(String),
}

impl Worker {
    /// Binds its socket and starts it.
    ///
    /// # Errors
    /// When the socket can't be made or the program can't be started.
    pub(super) fn start(spec: EngineSpec, program: PathBuf, now: Instant) -> Result<Self, Failure> {
        let listener = listen::bind_unix(&spec.socket)?;
        let life = run(&spec, &program, &listener, now)
            .map_err(|e| Failure::new(format!("{} can't be started: {e}", program.display())))?;
        Ok(Self {
            spec,
            program,
            listener,
            life: Life::Runs(life),
            back_off: BackOff::new(),
            was_ready: false,
            failure: None,
        })
    }

    /// Its name: the model's.
    pub(super) fn name(&self) -> &str {
        &self.spec.name
    }

    /// Why the server can't start without it.
    pub(super) fn explain(&self, reason: &str) -> String {
        format!(
            "the model \"{}\" can't be loaded from {}: {reason}",
            self.spec.name,
            self.spec.file.display()
        )
    }

    /// The socket it serves on.
    pub(super) fn socket(&self) -> &Path {
        &self.spec.socket
    }

    /// The descriptor its ready line comes from.
    pub(super) fn line_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.life {
            Life::Runs(running) => running.line_from.as_ref().map(AsFd::as_fd),
            Life::Waits { .. } => None,
        }
    }

    /// A descriptor that becomes readable when it ends.
    pub(super) fn end_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.life {
            Life::Runs(running) => Some(running.child.as_fd()),
            Life::Waits { .. } => None,
        }
    }

    /// When it is to be started again.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        match &self.life {
            Life::Runs(_) => None,
            Life::Waits { until, .. } => Some(*until),
        }
    }

    /// What a gateway is told of it.
    pub(super) fn state(&self, now: Instant) -> WorkerState {
        match &self.life {
            Life::Runs(Running {
                loaded: Some(ready),
                ..
            }) => WorkerState::Ready(ready.clone()),
            Life::Runs(Running { loaded: None, .. }) => WorkerState::Starting,
            Life::Waits { until, reason } => WorkerState::Dead {
                reason: reason.clone(),
                retry_ms: u64::try_from(until.saturating_duration_since(now).as_millis()).ok(),
            },
        }
    }

    /// Reads its ready line.
    pub(super) fn hear(&mut self) -> Option<Turn> {
        let Life::Runs(running) = &mut self.life else {
            return None;
        };
        let line = running.read_line()?;
        running.line_from = None;
        match serde_json::from_slice::<WorkerLine>(&line) {
            // Its name is the config's business, whatever it says.
            Ok(WorkerLine::Ready(ready)) => {
                let ready = WorkerReady {
                    name: self.spec.name.clone(),
                    ..ready
                };
                running.loaded = Some(ready.clone());
                self.was_ready = true;
                Some(Turn::Ready(ready))
            }
            Ok(WorkerLine::Failed { message }) => {
                self.failure = Some(message);
                None
            }
            Err(e) => {
                self.failure = Some(format!("its ready line can't be read: {e}"));
                self.kill(Signal::KILL);
                None
            }
        }
    }

    /// Looks whether it has ended.
    pub(super) fn reap(&mut self, now: Instant) -> Option<Turn> {
        // A line that came just before the end says more than the exit code.
        if let Some(turn @ Turn::Ready(_)) = self.hear() {
            return Some(turn);
        }
        let Life::Runs(running) = &mut self.life else {
            return None;
        };
        let exit = match running.child.try_wait() {
            Ok(None) => return None,
            Ok(Some(exit)) => exit.to_string(),
            Err(e) => format!("it can't be waited for: {e}"),
        };
        let reason = self.failure.take().unwrap_or(exit);
        if !self.was_ready {
            return Some(Turn::NeverLoaded(reason));
        }
        let pause = self.back_off.after(now.duration_since(running.since));
        self.life = Life::Waits {
            until: now + pause,
            reason: reason.clone(),
        };
        Some(Turn::Died { reason, pause })
    }

    /// Starts it again when its pause is over; whether it was.
    pub(super) fn wake(&mut self, now: Instant) -> bool {
        if self.wakes_at().is_none_or(|at| now < at) {
            return false;
        }
        match run(&self.spec, &self.program, &self.listener, now) {
            Ok(running) => {
                self.life = Life::Runs(running);
                true
            }
            Err(e) => {
                let pause = self.back_off.after(Duration::ZERO);
                let reason = format!("it can't be started: {e}");
                tracing::error!(
                    worker = self.name(),
                    "{reason}; tried again in {} s",
                    pause.as_secs()
                );
                self.life = Life::Waits {
                    until: now + pause,
                    reason,
                };
                false
            }
        }
    }

    /// Sends it a signal, if it runs.
    pub(super) fn kill(&self, signal: Signal) {
        if let Life::Runs(running) = &self.life
            && let Err(e) = running.child.kill(signal)
        {
            tracing::warn!(worker = self.name(), "it can't be signalled: {e}");
        }
    }

    /// Whether it has ended for good, while the server stops.
    pub(super) fn has_ended(&mut self) -> bool {
        match &mut self.life {
            Life::Runs(running) => !matches!(running.child.try_wait(), Ok(None)),
            Life::Waits { .. } => true,
        }
    }
}

impl Running {
    /// The one line, once it is whole or its writer is gone.
    fn read_line(&mut self) -> Option<Vec<u8>> {
        let from = self.line_from.as_mut()?;
        let mut buffer = [0; 4096];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => {
                    self.line_from = None;
                    return (!self.line.is_empty()).then(|| std::mem::take(&mut self.line));
                }
                Ok(n) => self
                    .line
                    .extend_from_slice(buffer.get(..n).unwrap_or_default()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.line_from = None;
                    return None;
                }
            }
            if self.line.contains(&b'\n') || self.line.len() > LONGEST_LINE {
                return Some(std::mem::take(&mut self.line));
            }
        }
    }
}

/// Starts the process.
fn run(
    spec: &EngineSpec,
    program: &Path,
    listener: &UnixListener,
    now: Instant,
) -> io::Result<Running> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut args: Vec<OsString> = vec![
        "serve".into(),
        "--model".into(),
        spec.file.clone().into(),
        "--name".into(),
        spec.name.clone().into(),
        "--listen-fd".into(),
        LISTEN_FD.to_string().into(),
        "--ready-fd".into(),
        READY_FD.to_string().into(),
    ];
    let numbers = [
        ("--context", spec.context_tokens),
        ("--threads", spec.threads),
        ("--parallel", spec.parallel),
    ];
    for (option, number) in numbers {
        if let Some(number) = number {
            args.extend([option.into(), number.to_string().into()]);
        }
    }
    let child = sandbox::spawn(&Spec {
        program: Program::Path(program.to_owned()),
        name: format!("guan: engine {}", spec.name),
        args,
        env: super::passed_env([]),
        fds: vec![
            (listener.as_fd().try_clone_to_owned()?, LISTEN_FD),
            (OwnedFd::from(theirs), READY_FD),
        ],
        stdout: Stream::Null,
        stderr: Stream::Inherit,
        die_with_parent: true,
        new_session: true,
    })?;
    Ok(Running {
        child,
        since: now,
        line_from: Some(ours),
        line: Vec::new(),
        loaded: None,
    })
}

const LISTEN_FD: i32 = 3;

const READY_FD: i32 = 4;

/// A ready line is shorter, bytes.
const LONGEST_LINE: usize = 64 << 10;

#[cfg(test)]
mod tests;
