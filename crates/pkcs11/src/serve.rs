//! Conversations: frames in, the token's answers out, one act at a time.
//!
//! It decides who is listened to (the own user and root) and how many at once; what an act is, `token` knows. Called
//! by `main`.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use wire::token::{Answer, Ask, Start, length};
use zeroize::Zeroizing;

use crate::say;
use crate::token::Token;

/// The token, and whether it is busy.
pub(crate) struct Served {
    token: Mutex<Token>,
    /// Since when the module works on an act.
    since: Mutex<Option<Instant>>,
    open: AtomicUsize,
}

impl Served {
    pub(crate) fn new(start: Start) -> Self {
        Self {
            token: Mutex::new(Token::new(start)),
            since: Mutex::new(None),
            open: AtomicUsize::new(0),
        }
    }

    /// For how long the module has worked on the act in hand.
    pub(crate) fn busy_for(&self) -> Option<Duration> {
        locked(&self.since).map(|since| since.elapsed())
    }

    /// Takes connections, each in a thread of its own. Never returns while the listener is good.
    pub(crate) fn accept(self: Arc<Self>, doors: &UnixListener) {
        let own = rustix::process::geteuid();
        for stream in doors.incoming() {
            let stream = match stream {
                Ok(stream) => stream,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return say(&format!("nobody can be listened to any more: {e}")),
            };
            let may =
                socket_peercred(&stream).is_ok_and(|peer| peer.uid == own || peer.uid.is_root());
            let is_room = self.open.fetch_add(1, Ordering::AcqRel) < MOST_OPEN;
            if !may || !is_room {
                self.open.fetch_sub(1, Ordering::AcqRel);
                continue;
            }
            let served = Arc::clone(&self);
            let talk = move || {
                // Who connects and says nothing must not keep others out.
                if stream.set_read_timeout(Some(SILENCE)).is_ok() {
                    served.converse(stream);
                }
                served.open.fetch_sub(1, Ordering::AcqRel);
            };
            if let Err(e) = std::thread::Builder::new().spawn(talk) {
                self.open.fetch_sub(1, Ordering::AcqRel);
                say(&format!("a thread can't be started: {e}"));
            }
        }
    }

    /// Answers until the other side ends, or says what isn't on the list.
    pub(crate) fn converse(&self, mut stream: UnixStream) {
        while let Ok(frame) = read(&mut stream)
            && let Ok(ask) = Ask::decode(&frame)
            && let Ok(answer) = self.act(&ask).encode()
            && stream.write_all(&answer).is_ok()
        {}
    }

    fn act(&self, ask: &Ask) -> Answer {
        let mut token = locked(&self.token);
        *locked(&self.since) = Some(Instant::now());
        let answer = token.act(ask);
        *locked(&self.since) = None;
        answer
    }
}

/// One frame, without its length.
pub(crate) fn read(stream: &mut UnixStream) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut head = [0; 2];
    stream.read_exact(&mut head)?;
    let mut body = Zeroizing::new(vec![0; length(head).map_err(io::Error::other)?]);
    stream.read_exact(&mut body)?;
    Ok(body)
}

/// A panic elsewhere leaves nothing half-done: each act begins anew.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Conversations at the same time.
const MOST_OPEN: usize = 16;
/// How long one may be silent.
const SILENCE: Duration = Duration::from_secs(30);
