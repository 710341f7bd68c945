//! Starts children: what they run, what they hold, and that they die with their parent.
//!
//! It decides nothing about why a child runs; the supervisor does. A child gets the environment and descriptors of
//! its `Spec` and no others. Called by `guan::supervisor`.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};

pub use rustix::process::Signal;

/// What a child runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// This very executable, even when its file was replaced meanwhile.
    SelfExe,
    /// Another one, by path.
    Path(PathBuf),
}

/// Where an output of a child goes.
#[derive(Debug)]
pub enum Stream {
    /// Where the parent's goes.
    Inherit,
    /// Nowhere.
    Null,
    /// Into this descriptor: a pipe's end that the parent reads, or a file.
    To(OwnedFd),
}

/// A child to start.
#[derive(Debug)]
pub struct Spec {
    /// What it runs.
    pub program: Program,
    /// Its `argv[0]`: what `ps` shows.
    pub name: String,
    /// Its arguments; never a secret, since everybody on the machine can read them.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Descriptors it gets, each under the number it finds it by (3 or more). All others are closed.
    pub fds: Vec<(OwnedFd, i32)>,
    /// Its standard output.
    pub stdout: Stream,
    /// Its standard error.
    pub stderr: Stream,
    /// Killed when the thread that started it ends.
    pub die_with_parent: bool,
    /// A session of its own: signals of the terminal don't reach it.
    pub new_session: bool,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "it ended with code {code}"),
            Self::Signal(9) => f.write_str("it was killed (signal 9; out of memory?)"),
            Self::Signal(signal) => write!(f, "it was ended by signal {signal}"),
        }
    }
}

/// A running child. Dropping it neither ends nor reaps it.
#[derive(Debug)]
pub struct Child {
    inner: std::process::Child,
    pidfd: OwnedFd,
}

impl Child {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.inner.id()
    }

    /// How it ended, or `None` while it runs.
    ///
    /// # Errors
    /// When the kernel can't tell.
    pub fn try_wait(&mut self) -> io::Result<Option<Exit>> {
        Ok(self.inner.try_wait()?.map(exit))
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// When the kernel can't tell.
    pub fn wait(&mut self) -> io::Result<Exit> {
        Ok(exit(self.inner.wait()?))
    }

    /// Sends it a signal; that it has ended already is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

impl AsFd for Child {
    /// A descriptor that becomes readable when the child ends.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Starts `spec`.
///
/// # Errors
/// When the program can't be found or started, or a descriptor can't be passed.
pub fn spawn(spec: &Spec) -> io::Result<Child> {
    let program = match &spec.program {
        Program::SelfExe => PathBuf::from("/proc/self/exe"),
        Program::Path(path) => path.clone(),
    };
    let highest = spec.fds.iter().map(|(_, n)| *n).max().unwrap_or(2);
    if spec.fds.iter().any(|(_, n)| *n < 3) || highest >= HIGH {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a child's descriptors are numbered from 3 to {}", HIGH - 1),
        ));
    }
    // Copies above every target number, so that no copy is overwritten before it was placed.
    let mut moved = Vec::with_capacity(spec.fds.len());
    for (fd, target) in &spec.fds {
        moved.push((rustix::io::fcntl_dupfd_cloexec(fd, HIGH)?, *target));
    }
    // The standard library reports a failed exec through a pipe of its own; keep it off the target numbers.
    let _held = hold_below(highest)?;
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that starts children"
    )]
    let mut command = Command::new(program);
    command
        .arg0(&spec.name)
        .args(&spec.args)
        .env_clear()
        .envs(spec.env.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::null())
        .stdout(stdio(&spec.stdout)?)
        .stderr(stdio(&spec.stderr)?);
    let (die, session, parent) = (
        spec.die_with_parent,
        spec.new_session,
        rustix::process::getpid(),
    );
    let before_exec = move || prepare(&moved, die, session, parent);
    // SAFETY: `prepare` runs between fork and exec: it makes system calls only, allocates nothing and takes no lock.
    unsafe { command.pre_exec(before_exec) };
    let inner = command.spawn()?;
    let pid = i32::try_from(inner.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("the kernel gave a process id out of range"))?;
    // Not reaped yet, so the number can't belong to another process.
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    Ok(Child { inner, pidfd })
}

/// What a child does between fork and exec.
fn prepare(fds: &[(OwnedFd, i32)], die: bool, session: bool, parent: Pid) -> io::Result<()> {
    if session {
        rustix::process::setsid()?;
    }
    // SAFETY: sets the close-on-exec flag of every descriptor from 3; closes none. Kernels before 5.11 answer
    // EINVAL: there the flag each descriptor was opened with must do.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            CLOSE_RANGE_CLOEXEC,
        )
    };
    for (fd, target) in fds {
        // SAFETY: both numbers are plain integers; the target is either free or close-on-exec in this child.
        if unsafe { libc::dup2(fd.as_raw_fd(), *target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    if die {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the line above; then nobody would end this child.
        if rustix::process::getppid() != Some(parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
    }
    Ok(())
}

/// Occupies every free number up to `highest` until it is dropped.
fn hold_below(highest: i32) -> io::Result<Vec<OwnedFd>> {
    let mut held = Vec::new();
    let null = std::fs::File::open("/dev/null")?;
    loop {
        let fd = rustix::io::fcntl_dupfd_cloexec(&null, 3)?;
        if fd.as_raw_fd() > highest {
            return Ok(held);
        }
        held.push(fd);
    }
}

fn stdio(stream: &Stream) -> io::Result<Stdio> {
    Ok(match stream {
        Stream::Inherit => Stdio::inherit(),
        Stream::Null => Stdio::null(),
        Stream::To(fd) => Stdio::from(fd.try_clone()?),
    })
}

fn exit(status: std::process::ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, signal) => Exit::Signal(signal.unwrap_or(0)),
    }
}

/// Copies of passed descriptors lie from here on; target numbers lie below.
const HIGH: i32 = 256;

const CLOSE_RANGE_CLOEXEC: libc::c_uint = 1 << 2;

#[cfg(test)]
mod tests;
