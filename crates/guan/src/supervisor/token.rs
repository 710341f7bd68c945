//! `guan-pkcs11` as the supervisor sees it: a socket that it holds, a process that it starts again.
//!
//! It decides when the program runs: while `[kms]` in force says `pkcs11`, with what that says. Called by the loop.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use control::seal::Kms;
use control::seal::pkcs11::Settings;
use sandbox::{Child, Signal};

use super::listen;
use super::pause::BackOff;
use crate::commands::Failure;
use crate::folder::Folder;
use crate::token::{self, SOCKET};

/// The program, running or waiting to run again.
#[derive(Debug)]
pub(super) struct Token {
    settings: Settings,
    listener: UnixListener,
    life: Life,
    back_off: BackOff,
}

#[derive(Debug)]
enum Life {
    Runs {
        child: Child,
        since: Instant,
        /// Its end ends the program.
        _parent: UnixStream,
    },
    Waits(Instant),
}

impl Token {
    /// Binds its socket and starts it, if `kms` needs it.
    ///
    /// # Errors
    /// When the socket can't be made or the program can't be started.
    pub(super) fn start(kms: &Kms, folder: &Folder, now: Instant) -> Result<Option<Self>, Failure> {
        let Kms::Pkcs11(settings) = kms else {
            return Ok(None);
        };
        let listener = listen::bind_unix(&folder.path().join(SOCKET))?;
        let life = run(settings, &listener, now).map_err(Failure::new)?;
        Ok(Some(Self {
            settings: settings.clone(),
            listener,
            life,
            back_off: BackOff::new(),
        }))
    }

    /// Whether it is what `kms` needs.
    pub(super) fn is_for(&self, kms: &Kms) -> bool {
        matches!(kms, Kms::Pkcs11(settings) if *settings == self.settings)
    }

    /// A descriptor that becomes readable when it ends.
    pub(super) fn end_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.life {
            Life::Runs { child, .. } => Some(child.as_fd()),
            Life::Waits(_) => None,
        }
    }

    /// When it is to be started again.
    pub(super) const fn wakes_at(&self) -> Option<Instant> {
        match &self.life {
            Life::Runs { .. } => None,
            Life::Waits(until) => Some(*until),
        }
    }

    /// Looks whether it has ended.
    pub(super) fn reap(&mut self, now: Instant) {
        let Life::Runs { child, since, .. } = &mut self.life else {
            return;
        };
        let exit = match child.try_wait() {
            Ok(None) => return,
            Ok(Some(exit)) => exit.to_string(),
            Err(e) => format!("it can't be waited for: {e}"),
        };
        let pause = self.back_off.after(now.duration_since(*since));
        tracing::error!(
            "guan-pkcs11 died: {exit}; started again in {} s",
            pause.as_secs()
        );
        self.life = Life::Waits(now + pause);
    }

    /// Starts it again when its pause is over.
    pub(super) fn wake(&mut self, now: Instant) {
        if self.wakes_at().is_none_or(|at| now < at) {
            return;
        }
        match run(&self.settings, &self.listener, now) {
            Ok(life) => {
                tracing::info!("guan-pkcs11 is started again");
                self.life = life;
            }
            Err(why) => {
                let pause = self.back_off.after(Duration::ZERO);
                tracing::error!("{why}; tried again in {} s", pause.as_secs());
                self.life = Life::Waits(now + pause);
            }
        }
    }
}

impl Drop for Token {
    /// Ends it; it keeps nothing that would be lost.
    fn drop(&mut self) {
        if let Life::Runs { child, .. } = &mut self.life {
            if let Err(e) = child.kill(Signal::KILL) {
                tracing::warn!("guan-pkcs11 can't be ended: {e}");
                return;
            }
            child.wait().ok();
        }
    }
}

fn run(settings: &Settings, listener: &UnixListener, now: Instant) -> Result<Life, String> {
    let (child, parent) = token::start(settings, Some(listener))?;
    Ok(Life::Runs {
        child,
        since: now,
        _parent: parent,
    })
}
