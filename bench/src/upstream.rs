//! A model server that only pretends: its answers are made before they are asked for, so that it costs next to nothing.
//!
//! One thread, plain HTTP/1.1 with keep-alive. The first part of a path names the workload, and so what it answers.

use std::io;
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::workload::{Script, WORKLOADS};

/// Tokens of an answer.
pub(crate) const TOKENS: u32 = 50;
/// Between two events of a paced stream.
const PACE: Duration = Duration::from_millis(20);
/// Between two events of an endless one.
const SLOW: Duration = Duration::from_secs(1);
const READ: usize = 64 << 10;

/// What is said before an event's time, and read again by the client.
pub(crate) const STAMP: &[u8] = b"\"content\":\"@";
/// Digits of such a time.
pub(crate) const DIGITS: usize = 16;

/// The running server.
#[derive(Debug)]
pub(crate) struct Upstream {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    /// Starts it on a free port. `epoch` is where its time stamps count from.
    pub(crate) fn start(epoch: Instant) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = watch::channel(false);
        let thread = std::thread::Builder::new()
            .name("model-server".to_owned())
            .spawn(move || LocalSet::new().block_on(&runtime, accept(listener, epoch, stopped)))?;
        Ok(Self {
            address,
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

async fn accept(
    listener: std::net::TcpListener,
    epoch: Instant,
    mut stopped: watch::Receiver<bool>,
) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    // It ends with its connection, or with this runtime.
                    drop(tokio::task::spawn_local(serve(stream, epoch)));
                }
            }
            _ = stopped.changed() => return,
        }
    }
}

/// A connection: its faults are its client's.
async fn serve(mut stream: TcpStream, epoch: Instant) {
    stream.set_nodelay(true).ok();
    let said = Said::default();
    let mut buffer = BytesMut::with_capacity(READ);
    while let Ok(Some(asked)) = read(&mut stream, &mut buffer).await {
        if answer(&mut stream, &said, asked, epoch).await.is_err() {
            return;
        }
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    script: Script,
    usage: bool,
}

async fn read(stream: &mut TcpStream, buffer: &mut BytesMut) -> io::Result<Option<Asked>> {
    let (script, length) = loop {
        if let Some(head) = head(buffer)? {
            break head;
        }
        buffer.reserve(READ);
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let (mut left, mut usage) = (length, false);
    loop {
        let part = buffer.len().min(left);
        usage |= memmem::find(buffer.get(..part).unwrap_or_default(), b"include_usage").is_some();
        buffer.advance(part);
        left = left.saturating_sub(part);
        if left == 0 {
            return Ok(Some(Asked { script, usage }));
        }
        buffer.reserve(READ);
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// The script and the length of the body, once the head is there.
fn head(buffer: &mut BytesMut) -> io::Result<Option<(Script, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(size) = request.parse(buffer).map_err(io::Error::other)? else {
        return Ok(None);
    };
    let asked = request
        .path
        .unwrap_or_default()
        .split('/')
        .nth(1)
        .unwrap_or_default();
    let workload = WORKLOADS.iter().find(|workload| workload.name == asked);
    let script = workload
        .ok_or_else(|| io::Error::other("no such workload"))?
        .script;
    let length = request
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok())
        .unwrap_or(0);
    buffer.advance(size);
    Ok(Some((script, length)))
}

async fn answer(
    stream: &mut TcpStream,
    said: &Said,
    asked: Asked,
    epoch: Instant,
) -> io::Result<()> {
    let usage = asked.usage.then_some(&said.usage);
    match asked.script {
        Script::Whole => return stream.write_all(&said.whole).await,
        Script::Burst => {
            stream.write_all(&said.head).await?;
            for _ in 0..TOKENS {
                stream.write_all(&said.event).await?;
            }
        }
        Script::Paced => {
            stream.write_all(&said.head).await?;
            let mut pace = tokio::time::interval(PACE);
            for _ in 0..TOKENS {
                pace.tick().await;
                stream.write_all(&chunk(&event(&stamp(epoch)))).await?;
            }
        }
        Script::Forever => {
            stream.write_all(&said.head).await?;
            loop {
                stream.write_all(&said.event).await?;
                tokio::time::sleep(SLOW).await;
            }
        }
    }
    if let Some(usage) = usage {
        stream.write_all(usage).await?;
    }
    stream.write_all(&said.end).await
}

fn stamp(epoch: Instant) -> String {
    format!("@{:0width$}", epoch.elapsed().as_nanos(), width = DIGITS)
}

/// What it says, ready to be sent.
#[derive(Debug)]
struct Said {
    whole: Bytes,
    head: Bytes,
    event: Bytes,
    usage: Bytes,
    end: Bytes,
}

const USAGE: &str = r#""usage":{"prompt_tokens":80,"completion_tokens":50,"total_tokens":130}"#;

impl Default for Said {
    fn default() -> Self {
        let text = " token".repeat(50);
        let whole = format!(
            r#"{{"id":"chatcmpl-7f3a9c2e5b1d4860","object":"chat.completion","created":1760000000,"model":"upstream-model","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"logprobs":null,"finish_reason":"length"}}],{USAGE}}}"#
        );
        let usage = format!(
            r#"{{"id":"chatcmpl-7f3a9c2e5b1d4860","object":"chat.completion.chunk","created":1760000000,"model":"upstream-model","choices":[],{USAGE}}}"#
        );
        let head = "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: model\r\ncontent-type: ";
        Self {
            whole: format!(
                "{head}application/json\r\ncontent-length: {}\r\n\r\n{whole}",
                whole.len()
            )
            .into(),
            head: format!(
                "{head}text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            .into(),
            event: chunk(&event(" token")),
            usage: chunk(&format!("data: {usage}\n\n")),
            // The last event says why it ended, then the transport says so too.
            end: [
                chunk(&finish()),
                chunk("data: [DONE]\n\n"),
                Bytes::from_static(b"0\r\n\r\n"),
            ]
            .concat()
            .into(),
        }
    }
}

fn event(content: &str) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-7f3a9c2e5b1d4860\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"upstream-model\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{content}\"}},\"logprobs\":null,\"finish_reason\":null}}]}}\n\n"
    )
}

fn finish() -> String {
    event("").replace("\"finish_reason\":null", "\"finish_reason\":\"length\"")
}

fn chunk(text: &str) -> Bytes {
    format!("{:x}\r\n{text}\r\n", text.len()).into()
}
