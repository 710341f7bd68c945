//! Asks an upstream once which models it serves and which kind of server it is.
//!
//! It decides the kind from the answer; it sends nothing but one GET. Called by `init --upstream`.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use gateway::settings::Target;
use serde::Deserialize;

use super::Failure;
use super::http::{Answer, exchange};
use crate::config::Upstream;

/// What an upstream said of itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Its kind, as `kind` is written.
    pub(super) kind: &'static str,
    /// Its models.
    pub(super) models: Vec<Model>,
}

/// One of its models.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Model {
    /// What it calls it.
    pub(super) id: String,
    /// Tokens one sequence may hold, where it says so.
    pub(super) context_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct List {
    data: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    id: String,
    #[serde(default)]
    owned_by: Option<String>,
    #[serde(default)]
    max_model_len: Option<u64>,
}

/// Reads the upstream's `/v1/models`.
///
/// # Errors
/// When it can't be reached or its answer isn't a list of models, with what to do.
pub(super) fn ask(upstream: &Upstream, key: Option<&str>) -> Result<Found, Failure> {
    let path = format!("{}/v1/models", upstream.base_path);
    let shown = format!("{}{path}", upstream.name);
    let answer = match &upstream.target {
        Target::Unix(socket) => UnixStream::connect(socket).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            exchange(stream, "GET", "localhost", &path, key, &[], None)
        }),
        Target::Http { host, port } => connect(host, *port).and_then(|stream| {
            let host = if host.contains(':') {
                format!("[{host}]:{port}")
            } else {
                format!("{host}:{port}")
            };
            exchange(stream, "GET", &host, &path, key, &[], None)
        }),
        Target::Https { .. } => {
            return Err(Failure::new(
                "an https upstream isn't asked for its models: give the name it knows the model by with --name NAME",
            ));
        }
    };
    let answer = answer.map_err(|e| {
        Failure::new(format!(
            "{shown} can't be read: {e}; start the model server first, or correct the URL"
        ))
    })?;
    match answer.status {
        200 => {}
        401 | 403 => {
            return Err(Failure::new(format!(
                "{shown} answered {}: it wants a key. Write the key into a file that only this user can read and add --upstream-key file:PATH",
                answer.status
            )));
        }
        status => {
            return Err(Failure::new(format!(
                "{shown} answered {status}, not a list of models; is this the URL of an OpenAI-compatible server?"
            )));
        }
    }
    read(&answer).ok_or_else(|| {
        Failure::new(format!(
            "{shown} answered something that isn't a list of models"
        ))
    })
}

fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn read(answer: &Answer) -> Option<Found> {
    let list: List = serde_json::from_slice(&answer.body).ok()?;
    let owner = list
        .data
        .first()
        .and_then(|entry| entry.owned_by.clone())
        .unwrap_or_default();
    let server = answer
        .server
        .as_deref()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let kind = match owner.as_str() {
        "vllm" => "vllm",
        "sglang" => "sglang",
        "llamacpp" => "llama-server",
        _ if server.contains("llama.cpp") => "llama-server",
        _ => "openai",
    };
    let models = list
        .data
        .into_iter()
        .map(|entry| Model {
            id: entry.id,
            context_tokens: entry.max_model_len,
        })
        .collect();
    Some(Found { kind, models })
}

/// For each step of the exchange.
const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(server: Option<&str>, body: &str) -> Option<&'static str> {
        let answer = Answer {
            status: 200,
            server: server.map(str::to_owned),
            body: body.into(),
        };
        read(&answer).map(|found| found.kind)
    }

    #[test]
    fn the_kind_is_read_from_the_answer() {
        let owned =
            |by: &str| format!(r#"{{"object":"list","data":[{{"id":"m","owned_by":"{by}"}}]}}"#);
        assert_eq!(kind(Some("uvicorn"), &owned("vllm")), Some("vllm"));
        assert_eq!(kind(None, &owned("sglang")), Some("sglang"));
        assert_eq!(kind(None, &owned("llamacpp")), Some("llama-server"));
        assert_eq!(kind(Some("llama.cpp"), &owned("me")), Some("llama-server"));
        assert_eq!(kind(None, &owned("openai")), Some("openai"));
        assert_eq!(kind(None, r#"{"data":[]}"#), Some("openai"));
        assert_eq!(kind(None, "<html>"), None);
    }

    #[test]
    fn a_context_is_taken_over() {
        let body = r#"{"data":[{"id":"Qwen/Qwen2.5-7B-Instruct","owned_by":"vllm","max_model_len":32768,"root":"x"}]}"#;
        let found = read(&Answer {
            status: 200,
            server: None,
            body: body.into(),
        })
        .unwrap();
        let model = Model {
            id: "Qwen/Qwen2.5-7B-Instruct".to_owned(),
            context_tokens: Some(32768),
        };
        assert_eq!(
            found,
            Found {
                kind: "vllm",
                models: vec![model]
            }
        );
    }
}
