//! A small HTTP/1.1 client half: no task, no channel. Dropping an answer closes its connection, so the model server
//! stops working for a client that left. A connection serves again only after an answer that ended cleanly.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};

use crate::settings::{Replica, Target};
use crate::upstream::connect::{Stream, connect};
use crate::upstream::framing::{Decoder, Head, Malformed, take_head};
use crate::upstream::replicas::Load;

/// How long an idle connection is trusted: below the 5 s after which uvicorn and llama-server close theirs.
const IDLE: Duration = Duration::from_secs(3);

/// Idle connections to one replica, a core.
const SPARE: usize = 32;

/// What is read at once, bytes: a burst of events becomes one piece.
const READ: usize = 16 << 10;

/// Why an upstream gave no answer, or broke one off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// Nothing was sent: another replica may be tried.
    #[error("can't connect: {0}")]
    Connect(io::Error),
    /// It broke off.
    #[error("broke off: {0}")]
    Broken(io::Error),
    /// It isn't HTTP.
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// In time.
    #[error("no answer in time")]
    Timeout,
}

/// Idle connections of one core, by replica.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    idle: RefCell<HashMap<Target, Vec<(Stream, Instant)>>>,
}

/// An answer whose body is still to come.
#[derive(Debug)]
pub(crate) struct Reply {
    /// Its head.
    pub(crate) head: Head,
    /// Its body.
    pub(crate) body: Incoming,
}

/// The body of an answer.
#[derive(Debug)]
pub(crate) struct Incoming {
    stream: Stream,
    buffer: BytesMut,
    decoder: Decoder,
    keep: bool,
    target: Target,
    /// Counts as its replica's work until it ends.
    load: Option<Load>,
}

/// Sends one POST and reads the answer's head.
///
/// # Errors
/// [`Fault`]; only after [`Fault::Connect`] is it certain that the upstream did nothing.
pub(crate) async fn post(
    pool: &Pool,
    replica: &Replica,
    head: &[u8],
    body: &Bytes,
    connect_limit: Duration,
) -> Result<Reply, Fault> {
    let mut stream = match pool.take(&replica.target) {
        Some(stream) => stream,
        None => tokio::time::timeout(connect_limit, connect(&replica.target))
            .await
            .map_err(|_elapsed| Fault::Connect(io::ErrorKind::TimedOut.into()))?
            .map_err(Fault::Connect)?,
    };
    let mut request = BytesMut::with_capacity(head.len().saturating_add(body.len()));
    request.extend_from_slice(head);
    request.extend_from_slice(body);
    stream.write_all(&request).await.map_err(Fault::Broken)?;
    stream.flush().await.map_err(Fault::Broken)?;
    let mut buffer = BytesMut::with_capacity(READ);
    let head = loop {
        if let Some(head) = take_head(&mut buffer)? {
            if (100..200).contains(&head.status) {
                continue;
            }
            break head;
        }
        let read = std::future::poll_fn(|cx| poll_fill(&mut stream, &mut buffer, cx)).await;
        if read.map_err(Fault::Broken)? == 0 {
            return Err(Fault::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
    };
    let decoder = Decoder::new(head.framing);
    let keep = head.keep;
    Ok(Reply {
        head,
        body: Incoming {
            stream,
            buffer,
            decoder,
            keep,
            target: replica.target.clone(),
            load: None,
        },
    })
}

impl Incoming {
    /// Holds what its call takes of the replica, for as long as the answer runs.
    pub(crate) fn carry(&mut self, load: Load) {
        self.load = Some(load);
    }

    /// The next piece; `None` once the body has ended as it announced.
    pub(crate) fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Fault>>> {
        loop {
            match self.decoder.take(&mut self.buffer) {
                Ok(piece) if !piece.is_empty() => return Poll::Ready(Some(Ok(piece))),
                Ok(_) if self.decoder.is_done() => return Poll::Ready(None),
                Ok(_) => {}
                Err(fault) => return Poll::Ready(Some(Err(fault.into()))),
            }
            match std::task::ready!(poll_fill(&mut self.stream, &mut self.buffer, cx)) {
                Ok(0) if self.decoder.ends_with_connection() => return Poll::Ready(None),
                Ok(0) => {
                    return Poll::Ready(Some(Err(Fault::Broken(
                        io::ErrorKind::UnexpectedEof.into(),
                    ))));
                }
                Ok(_) => {}
                Err(fault) => return Poll::Ready(Some(Err(Fault::Broken(fault)))),
            }
        }
    }

    /// All of it, if it is at most `most` bytes.
    ///
    /// # Errors
    /// [`Fault`].
    pub(crate) async fn collect(&mut self, most: usize) -> Result<Bytes, Fault> {
        let mut all = BytesMut::new();
        while let Some(piece) = std::future::poll_fn(|cx| self.poll_piece(cx)).await {
            let piece = piece?;
            if all.len().saturating_add(piece.len()) > most {
                return Err(Malformed("its body is too large").into());
            }
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }

    /// Gives the connection back if its answer ended cleanly; else closes it.
    pub(crate) fn release(self, pool: &Pool) {
        if self.keep && self.decoder.is_done() && self.buffer.is_empty() {
            pool.put(self.target, self.stream);
        }
    }
}

impl Pool {
    /// An idle connection that is still open, newest first.
    fn take(&self, target: &Target) -> Option<Stream> {
        let mut idle = self.idle.borrow_mut();
        let spare = idle.get_mut(target)?;
        while let Some((mut stream, since)) = spare.pop() {
            if since.elapsed() < IDLE && is_quiet(&mut stream) {
                return Some(stream);
            }
        }
        None
    }

    fn put(&self, target: Target, stream: Stream) {
        let mut idle = self.idle.borrow_mut();
        let spare = idle.entry(target).or_default();
        spare.retain(|(_, since)| since.elapsed() < IDLE);
        if spare.len() < SPARE {
            spare.push((stream, Instant::now()));
        }
    }
}

/// Open, and nothing to read: a byte that nobody asked for, or the end, makes it useless.
fn is_quiet(stream: &mut Stream) -> bool {
    let mut byte = [0_u8; 1];
    let mut buf = ReadBuf::new(&mut byte);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    Pin::new(stream).poll_read(&mut cx, &mut buf).is_pending()
}

/// Reads once, as much as there is.
fn poll_fill(
    stream: &mut Stream,
    buffer: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    buffer.reserve(READ);
    // `read_buf` keeps nothing between polls, so it may be made anew each time.
    std::pin::pin!(stream.read_buf(buffer)).poll(cx)
}
