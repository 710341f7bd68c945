//! Messages between the supervisor and its gateway, and the lines a worker writes to the supervisor.
//!
//! A closed list: what isn't here can't be asked. Frames are a big-endian `u32` length and that many bytes of
//! JSON, on a Unix stream socket pair. Called by `guan::supervisor` and by `guan::wiring`.

use serde::{Deserialize, Serialize};

/// The largest frame that either side accepts, bytes: a config file of 1 MiB, escaped, and its envelope.
pub const MAX_FRAME: usize = 4 << 20;

/// What the supervisor tells a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToGateway {
    /// The first message: everything that a generation starts from. The gateway answers `Ready` or `Refused`.
    Start(Box<Start>),
    /// The file was read again: answer `Applied`, `Refused` or `NeedsGeneration`.
    Reload {
        /// The bytes of `guan.toml`.
        config: String,
    },
    /// A worker's life changed.
    Worker {
        /// The worker's name: the model's public name.
        name: String,
        /// What it is now.
        state: WorkerState,
    },
    /// Finish what runs, accept nothing new, then answer `Drained` and end.
    Drain {
        /// How long running calls may still take, milliseconds.
        grace_ms: u64,
    },
}

/// What a gateway generation starts from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// This generation's number: greater than all that ever wrote to this data folder.
    pub generation: u64,
    /// Generations that have ended: their slots may be replayed.
    pub dead: Vec<u64>,
    /// The data folder, absolute.
    pub data: String,
    /// The path of the config file, for messages.
    pub config_path: String,
    /// The bytes of `guan.toml`; empty when there is none.
    pub config: String,
    /// Inherited listeners.
    pub listeners: Vec<Listener>,
}

/// What a gateway listens for. A closed list: whoever adds a door adds it here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Door {
    /// `[server] listen`: calls to models, one descriptor a core.
    Data,
    /// `[admin] listen`: the admin API over TLS.
    Admin,
    /// `[metrics] listen`: figures for whoever collects them, over TLS.
    Metrics,
    /// The Unix socket `state/run/admin.sock`.
    AdminSocket,
}

/// One door and the descriptors that it has in the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Which.
    pub door: Door,
    /// Its inherited descriptors.
    pub fds: Vec<i32>,
}

impl Start {
    /// The descriptors of a door; none where it isn't open.
    pub fn fds(&self, door: Door) -> impl Iterator<Item = i32> + '_ {
        let of = self.listeners.iter().filter(move |it| it.door == door);
        of.flat_map(|it| it.fds.iter().copied())
    }
}

/// A worker's state, as the supervisor knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// Started, still loading.
    Starting,
    /// Loaded and accepting.
    Ready(WorkerReady),
    /// Ended; started again after a pause.
    Dead {
        /// Why, in a sentence for the log.
        reason: String,
        /// Until the next start, milliseconds; `None`: not started again.
        retry_ms: Option<u64>,
    },
}

/// What a loaded worker tells of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerReady {
    /// The public name it was given.
    pub name: String,
    /// The model's architecture, such as `qwen2`.
    pub architecture: String,
    /// Tokens that one sequence may hold.
    pub context_tokens: u64,
    /// Number of parameters.
    pub parameters: u64,
    /// Size of the weights, bytes.
    pub size_bytes: u64,
    /// The licence that the file names.
    pub licence: Option<String>,
}

/// The one line that a worker writes when it has loaded, or failed to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerLine {
    /// It accepts calls.
    Ready(WorkerReady),
    /// It can't; it ends with a non-zero code after this.
    Failed {
        /// What went wrong and what to do.
        message: String,
    },
}

/// What a gateway tells the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToSupervisor {
    /// The start is done: it serves.
    Ready,
    /// The reload is in force.
    Applied,
    /// The start or the reload is refused; the old config stays.
    Refused {
        /// Why, with file, line and key.
        text: String,
    },
    /// The reload is good but wants something only a new generation can have.
    NeedsGeneration {
        /// What.
        why: String,
    },
    /// This certificate is served, and its private key lies sealed in the store: publish it where clients look for
    /// it, and remove the key that may still lie beside it in the clear.
    Certificate {
        /// The chain, PEM.
        chain: String,
    },
    /// All calls have ended; the process ends next.
    Drained,
}

/// Why a frame can't be read.
#[derive(Debug, PartialEq, Eq)]
pub enum FrameFault {
    /// Longer than [`MAX_FRAME`].
    TooLong,
    /// Not the message that was expected.
    Malformed(String),
}

impl std::fmt::Display for FrameFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLong => write!(f, "a control frame is longer than {MAX_FRAME} bytes"),
            Self::Malformed(why) => write!(f, "a control frame can't be read: {why}"),
        }
    }
}

impl std::error::Error for FrameFault {}

/// One message as a frame.
///
/// # Errors
/// [`FrameFault::TooLong`] above [`MAX_FRAME`].
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, FrameFault> {
    let json = serde_json::to_vec(message).map_err(|e| FrameFault::Malformed(e.to_string()))?;
    let length = u32::try_from(json.len())
        .ok()
        .filter(|_| json.len() <= MAX_FRAME);
    let length = length.ok_or(FrameFault::TooLong)?;
    let mut out = Vec::with_capacity(json.len().saturating_add(4));
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&json);
    Ok(out)
}

/// Collects bytes until they are frames.
#[derive(Debug, Default)]
pub struct Decoder {
    held: Vec<u8>,
}

impl Decoder {
    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// The next whole message, if there is one.
    ///
    /// # Errors
    /// A frame that is too long or isn't an `M`: the other side can't be trusted any more.
    pub fn take<M: for<'de> Deserialize<'de>>(&mut self) -> Result<Option<M>, FrameFault> {
        let Some((head, rest)) = self.held.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length =
            usize::try_from(u32::from_be_bytes(*head)).map_err(|_large| FrameFault::TooLong)?;
        if length > MAX_FRAME {
            return Err(FrameFault::TooLong);
        }
        let Some(json) = rest.get(..length) else {
            return Ok(None);
        };
        let message =
            serde_json::from_slice(json).map_err(|e| FrameFault::Malformed(e.to_string()))?;
        self.held.drain(..length.saturating_add(4));
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut() {
        let sent = [
            ToSupervisor::Ready,
            ToSupervisor::Refused {
                text: "guan.toml:3: unknown key".to_owned(),
            },
            ToSupervisor::Drained,
        ];
        let bytes: Vec<u8> = sent.iter().flat_map(|m| encode(m).unwrap()).collect();
        for step in 1..bytes.len() {
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for part in bytes.chunks(step) {
                decoder.push(part);
                while let Some(message) = decoder.take::<ToSupervisor>().unwrap() {
                    seen.push(message);
                }
            }
            assert_eq!(seen, sent);
        }
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused_before_it_is_held() {
        let mut decoder = Decoder::default();
        decoder.push(&u32::MAX.to_be_bytes());
        assert_eq!(decoder.take::<ToSupervisor>(), Err(FrameFault::TooLong));
    }

    #[test]
    fn a_message_that_is_not_on_the_list_is_refused() {
        let mut decoder = Decoder::default();
        decoder.push(&encode(&"run").unwrap());
        assert!(matches!(
            decoder.take::<ToSupervisor>(),
            Err(FrameFault::Malformed(_))
        ));
    }
}
