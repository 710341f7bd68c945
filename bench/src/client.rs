//! One connection to whatever is under test: writes a request, reads its answer, and notes when what came.
//!
//! It cuts HTTP/1.1 answers as any client does, and refuses what isn't whole: a fast wrong answer is no result.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use memchr::memmem;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::upstream::{DIGITS, STAMP};

const READ: usize = 64 << 10;
/// No answer of a workload takes as long.
const PATIENCE: Duration = Duration::from_secs(30);

trait Duplex: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

/// Where to connect, and how.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    /// Where.
    pub(crate) address: SocketAddr,
    /// `None`: plain.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    /// Where the time stamps of events count from.
    pub(crate) epoch: Instant,
}

/// One connection.
pub(crate) struct Connection {
    stream: Box<dyn Duplex>,
    buffer: BytesMut,
    epoch: Instant,
}

/// What came.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// When the first byte of the body was there.
    pub(crate) first: Option<Instant>,
    /// Events with data.
    pub(crate) events: u32,
    /// From where an event was sent to here.
    pub(crate) delays: Vec<Duration>,
    /// What of an event is there.
    text: BytesMut,
}

impl Connection {
    /// Connects.
    pub(crate) async fn open(door: &Door) -> io::Result<Self> {
        let stream = TcpStream::connect(door.address).await?;
        stream.set_nodelay(true)?;
        let stream: Box<dyn Duplex> = match &door.tls {
            None => Box::new(stream),
            Some(config) => {
                let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
                Box::new(
                    TlsConnector::from(Arc::clone(config))
                        .connect(name, stream)
                        .await?,
                )
            }
        };
        Ok(Self {
            stream,
            buffer: BytesMut::new(),
            epoch: door.epoch,
        })
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn call(&mut self, request: &[u8]) -> io::Result<Heard> {
        tokio::time::timeout(PATIENCE, async {
            let (mut heard, mut body) = self.begin(request).await?;
            while !body.take(&mut self.buffer, &mut heard, self.epoch)? {
                self.fill().await?;
            }
            Ok(heard)
        })
        .await?
    }

    /// Sends a request and reads until the first event is there; the stream goes on.
    pub(crate) async fn first_event(&mut self, request: &[u8]) -> io::Result<()> {
        tokio::time::timeout(PATIENCE, async {
            let (mut heard, mut body) = self.begin(request).await?;
            while heard.events == 0 {
                if body.take(&mut self.buffer, &mut heard, self.epoch)? {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if heard.events == 0 {
                    self.fill().await?;
                }
            }
            Ok(())
        })
        .await?
    }

    async fn begin(&mut self, request: &[u8]) -> io::Result<(Heard, Body)> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        loop {
            if let Some(body) = head(&mut self.buffer)? {
                return Ok((Heard::default(), body));
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        self.buffer.reserve(READ);
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

/// How much of a body is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Length(usize),
    Size,
    Data(usize),
    DataEnd,
    Last,
}

fn head(buffer: &mut BytesMut) -> io::Result<Option<Body>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(size) = response.parse(buffer).map_err(io::Error::other)? else {
        return Ok(None);
    };
    if response.code != Some(200) {
        let code = response.code.unwrap_or_default();
        let text = String::from_utf8_lossy(buffer.get(size..).unwrap_or_default()).into_owned();
        return Err(io::Error::other(format!("status {code}: {text}")));
    }
    let value = |name: &str| {
        let found = response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let body = match (value("content-length"), value("transfer-encoding")) {
        (Some(length), None) => Body::Length(length.parse().map_err(io::Error::other)?),
        (None, Some("chunked")) => Body::Size,
        _ => return Err(io::Error::other("an answer without a length")),
    };
    buffer.advance(size);
    Ok(Some(body))
}

impl Body {
    /// Takes what is there; `true` when all is.
    fn take(
        &mut self,
        buffer: &mut BytesMut,
        heard: &mut Heard,
        epoch: Instant,
    ) -> io::Result<bool> {
        loop {
            match *self {
                Self::Length(left) | Self::Data(left) => {
                    let part = buffer.split_to(left.min(buffer.len()));
                    heard.hear(&part, matches!(self, Self::Data(_)), epoch);
                    let left = left.saturating_sub(part.len());
                    match (left, &self) {
                        (0, Self::Length(_)) => return Ok(true),
                        (0, _) => *self = Self::DataEnd,
                        (left, Self::Length(_)) => *self = Self::Length(left),
                        (left, _) => *self = Self::Data(left),
                    }
                    if left > 0 {
                        return Ok(false);
                    }
                }
                Self::Size | Self::DataEnd | Self::Last => {
                    let Some(end) = memmem::find(buffer, b"\r\n") else {
                        return Ok(false);
                    };
                    let line = buffer.split_to(end.saturating_add(2));
                    match *self {
                        Self::Last => return Ok(true),
                        Self::DataEnd => *self = Self::Size,
                        _ => {
                            let text = std::str::from_utf8(line.get(..end).unwrap_or_default());
                            let size = usize::from_str_radix(text.map_err(io::Error::other)?, 16);
                            *self = match size.map_err(io::Error::other)? {
                                0 => Self::Last,
                                size => Self::Data(size),
                            };
                        }
                    }
                }
            }
        }
    }
}

impl Heard {
    fn hear(&mut self, part: &[u8], events: bool, epoch: Instant) {
        if part.is_empty() {
            return;
        }
        let now = Instant::now();
        self.first.get_or_insert(now);
        if !events {
            return;
        }
        self.text.extend_from_slice(part);
        while let Some(end) = memmem::find(&self.text, b"\n\n") {
            let event = self.text.split_to(end.saturating_add(2));
            if !event.starts_with(b"data: {") {
                continue;
            }
            self.events = self.events.saturating_add(1);
            if let Some(sent) = sent(&event) {
                self.delays
                    .push(now.saturating_duration_since(epoch + sent));
            }
        }
    }
}

/// When an event says that it was sent.
fn sent(event: &[u8]) -> Option<Duration> {
    let at = memmem::find(event, STAMP)?.saturating_add(STAMP.len());
    let digits = event.get(at..at.saturating_add(DIGITS))?;
    let nanoseconds = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(Duration::from_nanos(nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_cut_the_same_whatever_the_pieces() {
        let event = "data: {\"delta\":{\"content\":\"@0000000000000001\"}}\n\n";
        let whole = format!(
            "{:x}\r\n{event}\r\n3\r\nab\n\r\n1\r\n\n\r\n0\r\n\r\n",
            event.len()
        );
        for step in 1..=whole.len() {
            let (mut body, mut heard, mut buffer) = (Body::Size, Heard::default(), BytesMut::new());
            let mut done = false;
            for piece in whole.as_bytes().chunks(step) {
                buffer.extend_from_slice(piece);
                done = body.take(&mut buffer, &mut heard, Instant::now()).unwrap();
            }
            assert!(done && buffer.is_empty(), "{step}");
            assert_eq!((heard.events, heard.delays.len()), (1, 1));
        }
    }
}
