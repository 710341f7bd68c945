//! The end of serving: running calls first, then workers, then the sockets' names.
//!
//! It decides how long each may take. Called by the loop and once after it.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sandbox::Signal;
use wire::control::ToGateway;

use super::worker::Worker;
use super::{AFTER_GRACE, Supervisor, listen};

impl Supervisor {
    /// A stop: the first lets running calls end, the second doesn't.
    pub(super) fn stop(&mut self) {
        self.stops = self.stops.saturating_add(self.signals.stops());
        let is_first = self.kill_at.is_none() && self.stops == 1;
        let grace = if is_first { GRACE } else { Duration::ZERO };
        self.kill_at = Some(Instant::now() + grace + AFTER_GRACE);
        if is_first {
            tracing::info!(
                "stopping: running calls may take {} s more; a second signal ends them",
                grace.as_secs()
            );
        }
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.send(&ToGateway::Drain { grace_ms });
    }

    /// Ends the workers: asked first, killed when they don't.
    pub(super) fn end_workers(&mut self) {
        for worker in &self.workers {
            worker.kill(Signal::TERM);
        }
        let until = Instant::now() + WORKER_GRACE;
        loop {
            // One that has ended stays readable: waiting for it would spin.
            let left: Vec<&Worker> = self
                .workers
                .iter_mut()
                .filter_map(|w| (!w.has_ended()).then_some(&*w))
                .collect();
            if left.is_empty() || Instant::now() >= until {
                break;
            }
            let fds: Vec<BorrowedFd<'_>> = left.into_iter().filter_map(Worker::end_fd).collect();
            let mut polled: Vec<_> = fds
                .iter()
                .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
                .collect();
            let limit = Timespec {
                tv_sec: 0,
                tv_nsec: 100_000_000,
            };
            if poll(&mut polled, Some(&limit)).is_err() {
                break;
            }
        }
        for worker in &self.workers {
            worker.kill(Signal::KILL);
        }
    }

    /// What nobody listens on any more isn't left for others to find.
    pub(super) fn remove_sockets(&self) {
        let run = self.folder.run();
        let files = self.doors.iter().filter_map(listen::Bound::file);
        let own = files.map(|file| run.join(file)).chain([
            self.folder.admin_socket(),
            self.folder.path().join(crate::token::SOCKET),
        ]);
        let sockets = self.workers.iter().map(|w| w.socket().to_owned());
        for path in own.chain(sockets) {
            if let Err(e) = std::fs::remove_file(&path)
                && e.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!("{} can't be removed: {e}", path.display());
            }
        }
    }
}

/// How long running calls may take after a stop.
const GRACE: Duration = Duration::from_secs(30);

/// How long a worker may take to end.
const WORKER_GRACE: Duration = Duration::from_secs(2);
