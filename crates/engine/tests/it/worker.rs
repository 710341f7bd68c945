//! Starts a worker on a socket of its own and speaks HTTP/1.1 to it, with nothing but std: a test
//! client that can hang up at any byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

/// A GGUF file; `scripts/test` fetches one and names it.
pub(crate) fn model() -> PathBuf {
    match std::env::var_os("GUAN_TEST_MODEL") {
        Some(path) => path.into(),
        None => panic!("set GUAN_TEST_MODEL to a GGUF file (scripts/test does)"),
    }
}

/// A command for the binary under test.
#[expect(
    clippy::disallowed_methods,
    reason = "the test is the worker's parent process"
)]
pub(crate) fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_guan-engine"))
}

/// A running worker; killed when dropped.
pub(crate) struct Worker {
    child: Child,
    folder: tempfile::TempDir,
}

impl Worker {
    /// Starts one with more `arguments` and waits until it is ready.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = command()
            // one thread: several would wait for each other by spinning, and the tests share cores
            .args(["serve", "--name", "tested", "--threads", "1", "--model"])
            .arg(model())
            .arg("--listen")
            .arg(folder.path().join("s"))
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(ready["ready"]["name"], "tested", "{line}");
        Self { child, folder }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    /// Sends a request and returns the connection, for answers that are read in part.
    pub(crate) fn open(&self, method: &str, path: &str, body: &str) -> Answer {
        Answer::open(&self.socket(), method, path, body)
    }

    /// Status and body.
    pub(crate) fn send(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut answer = self.open(method, path, body);
        let text = answer.rest();
        (
            answer.status,
            serde_json::from_str(&text).unwrap_or(Value::String(text)),
        )
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send("POST", path, &body.to_string())
    }

    /// A greedy completion's whole answer; it must succeed.
    pub(crate) fn complete(&self, prompt: &str, more: Value) -> Value {
        let mut body = json!({"prompt": prompt, "temperature": 0, "max_tokens": 24});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        let (status, answer) = self.post("/v1/completions", &body);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// The text of [`Self::complete`].
    pub(crate) fn text(&self, prompt: &str, more: Value) -> String {
        self.complete(prompt, more)["choices"][0]["text"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// The data of every event of a streamed answer.
    pub(crate) fn stream(&self, path: &str, body: &Value) -> Vec<String> {
        let mut answer = self.open("POST", path, &body.to_string());
        assert_eq!(answer.status, 200);
        let text = answer.rest();
        let events: Vec<String> = text
            .split_terminator("\n\n")
            .map(|event| event.strip_prefix("data: ").unwrap().to_owned())
            .collect();
        assert_eq!(events.last().unwrap(), "[DONE]");
        events
    }

    /// One counter of `/health`.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let (status, health) = self.send("GET", "/health", "");
        assert_eq!(status, 200);
        health[name].as_u64().unwrap()
    }

    /// Asks `/health` until a counter has this value. Each question is a round trip to the worker,
    /// not a nap; the bound only ends a hopeless wait.
    pub(crate) fn wait_for(&self, name: &str, value: u64) {
        for _ in 0..200_000 {
            if self.counter(name) == value {
                return;
            }
        }
        panic!("{name} never became {value}");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// An answer whose head was read.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    input: BufReader<UnixStream>,
    chunked: bool,
}

impl Answer {
    fn open(socket: &Path, method: &str, path: &str, body: &str) -> Self {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(300)))
            .unwrap();
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n");
        stream
            .write_all(format!("{head}connection: close\r\n\r\n{body}").as_bytes())
            .unwrap();
        let mut input = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(input.read_line(&mut head).unwrap() > 0, "no answer");
        }
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let chunked = head.contains("transfer-encoding: chunked");
        Self {
            status,
            head,
            input,
            chunked,
        }
    }

    /// The next chunk; `None` after the last.
    pub(crate) fn chunk(&mut self) -> Option<String> {
        let mut size = String::new();
        self.input.read_line(&mut size).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let mut chunk = vec![0; size + 2];
        self.input.read_exact(&mut chunk).unwrap();
        chunk.truncate(size);
        (size > 0).then(|| String::from_utf8(chunk).unwrap())
    }

    /// Everything up to the end.
    pub(crate) fn rest(&mut self) -> String {
        let mut text = String::new();
        if self.chunked {
            while let Some(chunk) = self.chunk() {
                text.push_str(&chunk);
            }
        } else {
            self.input.read_to_string(&mut text).unwrap();
        }
        text
    }

    /// Leaves without reading on.
    pub(crate) fn hang_up(self) {
        self.input.get_ref().shutdown(Shutdown::Both).unwrap();
    }
}

/// A request whose answer nobody waits for yet.
pub(crate) fn send_only(worker: &Worker, path: &str, body: &Value) -> UnixStream {
    let mut stream = UnixStream::connect(worker.socket()).unwrap();
    let body = body.to_string();
    let length = body.len();
    let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}");
    stream.write_all(head.as_bytes()).unwrap();
    stream
}
