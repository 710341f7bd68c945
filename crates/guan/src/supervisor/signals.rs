//! Signals as bytes in pipes, so that the one loop meets them like everything else. Called by the supervisor.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// The two things that a signal can ask for.
#[derive(Debug)]
pub(super) struct Signals {
    stop: UnixStream,
    reload: UnixStream,
}

impl Signals {
    /// Catches SIGTERM and SIGINT (stop) and SIGHUP (reload) from now on.
    ///
    /// # Errors
    /// When no socket pair or handler can be had.
    pub(super) fn catch() -> io::Result<Self> {
        let (stop, on_stop) = UnixStream::pair()?;
        let (reload, on_reload) = UnixStream::pair()?;
        stop.set_nonblocking(true)?;
        reload.set_nonblocking(true)?;
        pipe::register(SIGTERM, on_stop.try_clone()?)?;
        pipe::register(SIGINT, on_stop)?;
        pipe::register(SIGHUP, on_reload)?;
        Ok(Self { stop, reload })
    }

    pub(super) fn stop_fd(&self) -> BorrowedFd<'_> {
        self.stop.as_fd()
    }

    pub(super) fn reload_fd(&self) -> BorrowedFd<'_> {
        self.reload.as_fd()
    }

    /// How many times a stop was asked for since the last look.
    pub(super) fn stops(&mut self) -> usize {
        drain(&mut self.stop)
    }

    /// How many times a reload was asked for since the last look.
    pub(super) fn reloads(&mut self) -> usize {
        drain(&mut self.reload)
    }
}

fn drain(from: &mut UnixStream) -> usize {
    let mut seen = 0_usize;
    let mut buffer = [0; 64];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        seen = seen.saturating_add(n);
    }
    seen
}
