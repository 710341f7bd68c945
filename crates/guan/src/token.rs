//! The way to `guan-pkcs11`: how it is started, and how questions get there and answers back.
//!
//! It decides which process reaches it how: a gateway over the socket that its supervisor holds, a command that acts
//! alone by a program of its own. It knows no module and never logs a PIN or a key. Called by the config's
//! conversion, by the supervisor, and through `control`'s [`Courier`].

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use control::seal::pkcs11::{Asked, Courier, Named, Question, Settings, Undone};
use sandbox::{Child, Program, Spec, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;
use wire::token::{self, Answer, Ask, FaultKind, Start};
use zeroize::Zeroizing;

use crate::supervisor::passed_env;

/// How this process reaches a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Over the socket that the supervisor holds.
    Server,
    /// By a program that it starts itself, at the first question.
    Own,
}

impl Reach {
    /// Who carries questions from here; `data` is the data folder.
    pub(crate) fn courier(self, data: &Path) -> Arc<dyn Courier> {
        match self {
            Self::Server => Arc::new(ByServer {
                socket: data.join(SOCKET),
            }),
            Self::Own => Arc::new(ByOwn::default()),
        }
    }
}

/// The socket in the data folder that the supervisor holds.
pub(crate) const SOCKET: &str = "state/run/pkcs11.sock";

/// Starts the program: with `listener` it serves there too, else only whoever holds what is given back. That
/// stream's end is the program's end.
///
/// # Errors
/// What is in the way, in words.
pub(crate) fn start(
    settings: &Settings,
    listener: Option<&UnixListener>,
) -> Result<(Child, UnixStream), String> {
    let program = program()?;
    let at = |e: io::Error| format!("{} can't be started: {e}", program.display());
    let (mut ours, theirs) = UnixStream::pair().map_err(at)?;
    let mut fds = vec![(OwnedFd::from(theirs), PARENT_FD)];
    let mut args: Vec<OsString> = Vec::new();
    match listener {
        Some(listener) => {
            let listener = listener.as_fd().try_clone_to_owned().map_err(at)?;
            fds.push((listener, LISTENER_FD));
            args.push("serve".into());
        }
        None => args.push("own".into()),
    }
    if settings.network {
        args.push("network".into());
    }
    let first = first_message(settings)?;
    let child = sandbox::spawn(&Spec {
        program: Program::Path(program.clone()),
        name: "guan: pkcs11".to_owned(),
        args,
        env: passed_env(settings.environment.iter().cloned()),
        fds,
        stdout: Stream::Null,
        stderr: Stream::Inherit,
        die_with_parent: true,
        new_session: true,
    })
    .map_err(at)?;
    // Far less than a socket's buffer holds: this never waits.
    ours.write_all(&first).map_err(at)?;
    Ok((child, ours))
}

/// The program: beside this one, or where packages put it.
fn program() -> Result<PathBuf, String> {
    let own = std::env::current_exe()
        .map_err(|e| format!("this program's own path can't be read: {e}"))?;
    let folder = own.parent().unwrap_or(Path::new("/"));
    let places = [
        folder.join("guan-pkcs11"),
        folder.join("../libexec/guan/guan-pkcs11"),
    ];
    places.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
        format!(
            "guan-pkcs11, which loads PKCS#11 modules, is missing: looked for {}. It is dynamically linked, so a static image doesn't have it; install the whole package, or build it (`build_pkcs11` in scripts/steps.sh)",
            places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" and ")
        )
    })
}

fn first_message(settings: &Settings) -> Result<Zeroizing<Vec<u8>>, String> {
    let module = settings.module.to_str();
    let module = module.ok_or("a module's path must be UTF-8")?.to_owned();
    let start = Start {
        module,
        token: match &settings.token {
            Named::Label(label) => token::Token::Label(label.clone()),
            Named::Number(serial) => token::Token::Serial(serial.clone()),
        },
        key: match &settings.key {
            Named::Label(label) => token::Key::Label(label.clone()),
            Named::Number(hex) => token::Key::Id(bytes_of(hex)),
        },
        pin: Zeroizing::new(settings.pin.text().to_owned()),
    };
    start
        .encode()
        .map_err(|_long| "module, token, key and PIN are too long together".to_owned())
}

/// From hex that was judged when it was read.
fn bytes_of(hex: &str) -> Vec<u8> {
    let digit = |b: u8| {
        char::from(b)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    hex.as_bytes()
        .chunks(2)
        .filter_map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect()
}

/// Over the socket that the supervisor holds.
#[derive(Debug)]
struct ByServer {
    socket: PathBuf,
}

impl Courier for ByServer {
    fn ask<'a>(&'a self, _settings: &'a Settings, question: Question<'a>) -> Asked<'a> {
        Box::pin(within(async move {
            let connected = tokio::net::UnixStream::connect(&self.socket).await;
            let mut stream = connected.map_err(|e| {
                Undone::Away(format!(
                    "guan-pkcs11 doesn't run ({e}); the server's log says why"
                ))
            })?;
            exchange(&mut stream, question).await
        }))
    }
}

/// By a program of this process's own, which ends with it.
#[derive(Default)]
struct ByOwn(Mutex<Option<(Child, tokio::net::UnixStream)>>);

impl Courier for ByOwn {
    fn ask<'a>(&'a self, settings: &'a Settings, question: Question<'a>) -> Asked<'a> {
        Box::pin(async move {
            let mut running = self.0.lock().await;
            let asked = within(async {
                let (_child, stream) = match &mut *running {
                    Some(running) => running,
                    None => running.insert(started(settings).map_err(Undone::Away)?),
                };
                exchange(stream, question).await
            })
            .await;
            if matches!(asked, Err(Undone::Away(_)))
                && let Some((child, _stream)) = running.take()
            {
                // It may hang; the next question starts another.
                child.kill(sandbox::Signal::KILL).ok();
            }
            asked
        })
    }
}

impl fmt::Debug for ByOwn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByOwn")
    }
}

fn started(settings: &Settings) -> Result<(Child, tokio::net::UnixStream), String> {
    let (child, stream) = start(settings, None)?;
    let stream = stream
        .set_nonblocking(true)
        .and_then(|()| tokio::net::UnixStream::from_std(stream));
    Ok((child, stream.map_err(|e| e.to_string())?))
}

async fn within<T>(asked: impl Future<Output = Result<T, Undone>>) -> Result<T, Undone> {
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(asked) => asked,
        Err(_elapsed) => Err(Undone::Away(format!(
            "guan-pkcs11 or its module gave no answer in {} s",
            PATIENCE.as_secs()
        ))),
    }
}

async fn exchange(
    stream: &mut tokio::net::UnixStream,
    question: Question<'_>,
) -> Result<Zeroizing<Vec<u8>>, Undone> {
    let lost = |e: io::Error| {
        Undone::Away(format!(
            "guan-pkcs11 ended before it answered ({e}); the lines above or the server's log say why"
        ))
    };
    let strange = || Undone::Away("guan-pkcs11 answered something else".to_owned());
    let (ask, wraps) = match question {
        Question::Wrap(key) => (Ask::Wrap(Zeroizing::new(key.to_vec())), true),
        Question::Open(blob) => (Ask::Open(blob.to_vec()), false),
    };
    let frame = ask
        .encode()
        .map_err(|_long| Undone::Refused("no token wrapped that: it is too long".to_owned()))?;
    stream.write_all(&frame).await.map_err(lost)?;
    let mut head = [0; 2];
    stream.read_exact(&mut head).await.map_err(lost)?;
    let length = token::length(head).map_err(|_malformed| strange())?;
    let mut body = Zeroizing::new(vec![0; length]);
    stream.read_exact(&mut body).await.map_err(lost)?;
    match Answer::decode(&body) {
        Ok(Answer::Wrapped(blob)) if wraps => Ok(Zeroizing::new(blob)),
        Ok(Answer::Opened(key)) if !wraps => Ok(key),
        Ok(Answer::Fault(fault)) => Err(match fault.kind {
            FaultKind::Away => Undone::Away(fault.text),
            FaultKind::Refused => Undone::Refused(fault.text),
        }),
        Ok(Answer::Wrapped(_) | Answer::Opened(_)) | Err(_) => Err(strange()),
    }
}

/// The numbers it finds its descriptors by.
const PARENT_FD: i32 = 3;
const LISTENER_FD: i32 = 4;
/// For one question and its answer.
const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keys_id_is_read_as_bytes() {
        assert_eq!(bytes_of("01a2ff"), [1, 0xa2, 0xff]);
        assert!(bytes_of("").is_empty());
    }
}
