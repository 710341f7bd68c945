//! `guan-pkcs11`: the one program that loads a PKCS#11 module, and all it does is wrap and open a store's data key.
//!
//! It gets module, token, key and PIN in its first message, gives up power, and then answers the closed list of
//! `wire::token` on the descriptors that it was given. It reads no config, keeps nothing, and never asks a token for
//! its key. A module that hangs ends the program; whoever started it starts it again. Started by the supervisor, and
//! by commands that open a store while no server runs.

#![forbid(unsafe_code)]

mod serve;
mod token;

use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use sandbox::Profile;
use wire::token::Start;

use serve::Served;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            say(&why);
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (listens, network) = match words[..] {
        ["own"] => (false, false),
        ["own", "network"] => (false, true),
        ["serve"] => (true, false),
        ["serve", "network"] => (true, true),
        _ => {
            return Err(format!(
                "version {}; it is started by guan, not by hand (see [kms] in guan's docs/configuration.md)",
                env!("CARGO_PKG_VERSION")
            ));
        }
    };
    let taken = |fd| sandbox::inherited_fd(fd).map_err(|e| e.to_string());
    let mut parent = UnixStream::from(taken(PARENT)?);
    let doors = if listens {
        Some(UnixListener::from(taken(LISTENER)?))
    } else {
        None
    };
    // From the parent, before the fence: it is trusted, and says what to load.
    let start = serve::read(&mut parent)
        .and_then(|frame| Start::decode(&frame).map_err(io::Error::other))
        .map_err(|e| format!("its parent's first message can't be read: {e}"))?;
    let fence = sandbox::enter(Profile::Token { network }).map_err(|e| e.to_string())?;
    if listens {
        say(&format!(
            "for the token {:?} by {}: {fence}",
            start.token, start.module
        ));
    }
    watch(parent, doors, Arc::new(Served::new(start)))
}

/// Serves until the parent is gone, or until the module hangs.
fn watch(
    parent: UnixStream,
    doors: Option<UnixListener>,
    served: Arc<Served>,
) -> Result<(), String> {
    let thread = |e: io::Error| format!("a thread can't be started: {e}");
    let (ends, ended) = sync_channel::<()>(1);
    let with_parent = Arc::clone(&served);
    let _parent = std::thread::Builder::new()
        .spawn(move || {
            with_parent.converse(parent);
            drop(ends);
        })
        .map_err(thread)?;
    if let Some(doors) = doors {
        let at_door = Arc::clone(&served);
        let _doors = std::thread::Builder::new()
            .spawn(move || at_door.accept(&doors))
            .map_err(thread)?;
    }
    loop {
        match ended.recv_timeout(LOOK) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if served.busy_for().is_some_and(|busy| busy >= LONGEST_ACT) {
            say(&format!(
                "the module hasn't answered for {} s: it hangs, and this program ends with it",
                LONGEST_ACT.as_secs()
            ));
            // Not by `exit`: that would run the hanging module's own clean-up, and wait for it.
            let own = rustix::process::getpid();
            let killed = rustix::process::kill_process(own, rustix::process::Signal::KILL);
            return Err(format!("it can't end itself: {killed:?}"));
        }
    }
}

/// A line for the log of whoever started it.
fn say(text: &str) {
    // A closed log is no reason to stop.
    writeln!(io::stderr(), "guan-pkcs11: {text}").ok();
}

/// Where the first message comes from. Its end is this program's end.
const PARENT: i32 = 3;
/// Where others may connect.
const LISTENER: i32 = 4;
/// How often it looks whether the module hangs.
const LOOK: Duration = Duration::from_millis(500);
/// No act takes longer.
const LONGEST_ACT: Duration = Duration::from_secs(8);
