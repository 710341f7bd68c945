//! The gateway process as the supervisor sees it: a child, a channel and a closed list of messages.
//!
//! It starts one generation and carries frames; what an answer means is the loop's business. Called by the loop.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use sandbox::{Child, Program, Spec, Stream};
use wire::control::{Decoder, Listener, ToGateway, ToSupervisor, encode};

use super::listen::Bound;

/// One running generation.
#[derive(Debug)]
pub(super) struct Gateway {
    /// The process.
    pub(super) child: Child,
    /// When it was started.
    pub(super) since: Instant,
    /// It has said `Ready`.
    pub(super) is_ready: bool,
    /// `None` once the other end is closed.
    channel: Option<UnixStream>,
    decoder: Decoder,
    out: VecDeque<u8>,
}

/// The numbers a gateway finds its descriptors by.
pub(super) const CONTROL_FD: i32 = 3;

/// Its first listener; the others follow.
const FIRST_LISTENER_FD: i32 = 4;

impl Gateway {
    /// Starts a generation that holds these doors, and says by which numbers it finds them.
    ///
    /// # Errors
    /// When the process can't be started.
    pub(super) fn start(
        doors: &[Bound],
        env: Vec<(OsString, OsString)>,
        now: Instant,
    ) -> io::Result<(Self, Vec<Listener>)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut fds = vec![(OwnedFd::from(theirs), CONTROL_FD)];
        let mut numbers = FIRST_LISTENER_FD..;
        let mut listeners = Vec::new();
        for bound in doors {
            let mut given = Vec::new();
            for (fd, number) in bound.fds.iter().zip(&mut numbers) {
                fds.push((fd.try_clone()?, number));
                given.push(number);
            }
            listeners.push(Listener {
                door: bound.door,
                fds: given,
            });
        }
        let child = sandbox::spawn(&Spec {
            program: Program::SelfExe,
            name: "guan: gateway".to_owned(),
            args: vec!["gateway".into()],
            env,
            fds,
            stdout: Stream::Inherit,
            stderr: Stream::Inherit,
            die_with_parent: true,
            // Ctrl-C reaches the supervisor alone, which lets running calls end.
            new_session: true,
        })?;
        let gateway = Self {
            child,
            since: now,
            is_ready: false,
            channel: Some(ours),
            decoder: Decoder::default(),
            out: VecDeque::new(),
        };
        Ok((gateway, listeners))
    }

    /// Where its messages come from, until the other end is closed.
    pub(super) fn channel_fd(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(AsFd::as_fd)
    }

    /// Whether frames wait to be written.
    pub(super) fn has_backlog(&self) -> bool {
        !self.out.is_empty()
    }

    /// Sends `message`, now or as soon as the channel takes it.
    pub(super) fn send(&mut self, message: &ToGateway) {
        match encode(message) {
            Ok(frame) => self.out.extend(frame),
            Err(fault) => tracing::error!("a message to the gateway was not sent: {fault}"),
        }
        self.flush();
    }

    /// Writes what the channel takes. A broken channel shows as the gateway's end.
    pub(super) fn flush(&mut self) {
        while let Some(channel) = &mut self.channel
            && !self.out.is_empty()
        {
            let (front, _) = self.out.as_slices();
            match channel.write(front) {
                Ok(n @ 1..) => drop(self.out.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Ok(0) | Err(_) => return self.out.clear(),
            }
        }
    }

    /// What it has said since the last look.
    ///
    /// # Errors
    /// A frame that isn't on the list: the process can't be trusted any more.
    pub(super) fn heard(&mut self) -> Result<Vec<ToSupervisor>, String> {
        let mut buffer = [0; 4096];
        while let Some(channel) = &mut self.channel {
            match channel.read(&mut buffer) {
                Ok(n @ 1..) => self.decoder.push(buffer.get(..n).unwrap_or_default()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Ok(0) | Err(_) => self.channel = None,
            }
        }
        let mut messages = Vec::new();
        while let Some(message) = self.decoder.take().map_err(|fault| fault.to_string())? {
            messages.push(message);
        }
        Ok(messages)
    }
}
