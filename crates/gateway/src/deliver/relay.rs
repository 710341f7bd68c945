//! The answer, event by event: whole events, in order, at once; what came in one burst leaves in one piece.
//!
//! Nothing is written until the first event or `commit_after` (a real status is possible until then). After that a
//! failure is an `error` event. `[DONE]` goes out only after the call's record is written. The call's account lives
//! in here: when the client leaves, hyper drops this, the upstream's connection closes, and the account settles.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rules::measure::{Ending, Tokens};
use rules::refusal::Refusal;
use tokio::time::{Instant, Sleep};
use wire::openai::{self, Chunk};
use wire::sse::{self, Frame, Splitter};

use crate::check::admit::Queued;
use crate::deliver::forward::{Delivered, refusal, said};
use crate::door::accept::Core;
use crate::record::settle::{Account, CLIENT_STALLED, Written};
use crate::refuse::error_bytes;
use crate::settings::{Replica, Timeouts};
use crate::upstream::client::{Fault, Incoming};

/// The largest single event, bytes.
const EVENT: usize = 4 << 20;

/// How long a client may leave ready bytes unread, all such times of a stream together.
const CLIENT_IDLE: Duration = Duration::from_secs(60);

/// What is joined into one piece for the client, bytes.
const PIECE: usize = 64 << 10;

/// A stream to a client.
pub(crate) struct Relay {
    core: Rc<Core>,
    account: Account,
    source: Source,
    sink: Sink,
    /// The replica that has the call.
    replica: Option<Replica>,
    /// For how long its client left ready bytes unread.
    unread: Unread,
    /// Whom to wake when the stream ends by something else than its upstream.
    waiting: Option<Waker>,
    /// The line that it waits in, before its delivery begins.
    queued: Option<Queued>,
    /// What came before the 200 was committed.
    first: Option<Bytes>,
    /// The 200 is on its way: failures are events, comments flow.
    committed: bool,
    limits: Timeouts,
    comment_every: Duration,
    idle: Pin<Box<Sleep>>,
    total: Pin<Box<Sleep>>,
    comment: Pin<Box<Sleep>>,
}

type Delivery = Pin<Box<dyn Future<Output = Delivered>>>;

/// Where events come from now.
enum Source {
    /// The upstream hasn't answered.
    Waiting(Delivery),
    /// Its events.
    Flowing(Incoming),
    /// They have ended; the record is being written, then `last` goes out.
    Recording {
        written: Written,
        last: Bytes,
        upstream: Option<Incoming>,
    },
    /// All is said.
    Done,
}

/// What events become.
struct Sink {
    splitter: Splitter,
    public_name: String,
    include_usage: bool,
    /// The usage chunk, held until the end so that there is exactly one.
    usage_chunk: Option<Vec<u8>>,
    finished: u32,
    done: bool,
    error: Option<openai::UpstreamError>,
    malformed: bool,
}

/// What a step of the stream gives.
pub(crate) enum Step {
    /// Bytes for the client.
    Bytes(Bytes),
    /// The call failed before anything was committed; the account is still open.
    Refused(Refusal),
    /// Nothing more.
    End,
}

impl Relay {
    /// A stream that begins with the delivery.
    pub(crate) fn new(
        core: Rc<Core>,
        account: Account,
        delivery: Delivery,
        public_name: String,
        include_usage: bool,
        limits: Timeouts,
        comment_every: Duration,
    ) -> Self {
        let sleep = |duration| Box::pin(tokio::time::sleep(duration));
        Self {
            core,
            account,
            source: Source::Waiting(delivery),
            sink: Sink {
                splitter: Splitter::new(EVENT),
                public_name,
                include_usage,
                usage_chunk: None,
                finished: 0,
                done: false,
                error: None,
                malformed: false,
            },
            replica: None,
            unread: Unread::default(),
            waiting: None,
            queued: None,
            first: None,
            committed: false,
            limits,
            comment_every,
            idle: sleep(
                limits
                    .connect
                    .saturating_add(limits.first_byte)
                    .saturating_add(limits.idle),
            ),
            total: sleep(limits.total),
            comment: sleep(comment_every),
        }
    }

    /// Its delivery waits in a line first, for so long at most.
    pub(crate) fn in_line(&mut self, queued: Queued, at_most: Duration) {
        self.queued = Some(queued);
        let idle = self.idle.deadline() + at_most;
        self.idle.as_mut().reset(idle);
    }

    /// From now on the client has a 200, whose body begins with `first`.
    pub(crate) fn commit(&mut self, first: Option<Bytes>) {
        self.committed = true;
        self.first = first;
        self.unread.handed_out(Instant::now());
        self.comment
            .as_mut()
            .reset(Instant::now() + self.comment_every);
    }

    /// The account, to answer a refusal with.
    pub(crate) fn into_account(self) -> Account {
        self.account
    }

    /// How the call stands, for headers.
    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    /// Nothing more comes.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.source, Source::Done) && self.first.is_none()
    }

    /// Ends a stream whose client stopped reading, at `now`: its place, its slot and its upstream are let go. Nobody
    /// polls such a stream, so its own timers can't; each core looks at its streams now and then.
    pub(crate) fn expire(&mut self, now: Instant) {
        let running = matches!(self.source, Source::Waiting(_) | Source::Flowing(_));
        if running && self.unread.time(now) >= CLIENT_IDLE {
            let last = failure(&Refusal::UpstreamTimeout);
            self.close(Ending::TimedOut, Some(CLIENT_STALLED), last, None);
            self.wake();
        }
    }

    /// Ends a stream whose key was taken back.
    pub(crate) fn cut_if_taken_back(&mut self) {
        if !matches!(self.source, Source::Waiting(_) | Source::Flowing(_)) {
            return;
        }
        let Some(why) = self.account.taken_back() else {
            return;
        };
        let refusal = Refusal::UnknownKey(why);
        let last = failure(&refusal);
        self.close(ending_of(&refusal), Some(refusal.word()), last, None);
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }

    /// The next bytes of a committed stream.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.unread.asked(Instant::now());
        let next = self.poll_bytes(cx);
        if next.is_pending() {
            match &mut self.waiting {
                Some(waiting) => waiting.clone_from(cx.waker()),
                None => self.waiting = Some(cx.waker().clone()),
            }
        }
        if next.is_ready() {
            self.unread.handed_out(Instant::now());
        }
        next
    }

    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        match ready!(self.poll_step(cx)) {
            Step::Bytes(bytes) => Poll::Ready(Some(bytes)),
            Step::End => Poll::Ready(None),
            Step::Refused(refusal) => {
                let last = failure(&refusal);
                self.close(ending_of(&refusal), Some(refusal.word()), last, None);
                self.poll_bytes(cx)
            }
        }
    }

    /// One step, committed or not.
    pub(crate) fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        // Asked here too: while bytes are always ready, the timers below are never reached.
        let late = Instant::now() >= self.total.deadline();
        if late && matches!(self.source, Source::Waiting(_) | Source::Flowing(_)) {
            return self.time_out(cx);
        }
        loop {
            match &mut self.source {
                Source::Done => return Poll::Ready(Step::End),
                Source::Recording { written, .. } => {
                    let ok = matches!(ready!(Pin::new(written).poll(cx)), Ok(true));
                    return Poll::Ready(Step::Bytes(self.finish(ok, cx)));
                }
                Source::Waiting(delivery) => match delivery.as_mut().poll(cx) {
                    Poll::Ready(delivered) => {
                        if let Err(refusal) = self.begin(delivered) {
                            return Poll::Ready(Step::Refused(refusal));
                        }
                    }
                    Poll::Pending => return self.poll_timers(cx),
                },
                Source::Flowing(_) => match self.poll_flow(cx) {
                    Poll::Ready(Some(step)) => return Poll::Ready(step),
                    Poll::Ready(None) => {}
                    Poll::Pending => return self.poll_timers(cx),
                },
            }
        }
    }

    fn begin(&mut self, delivered: Delivered) -> Result<(), Refusal> {
        self.account.attempts = delivered.attempts;
        self.account.replica = delivered
            .replica
            .as_ref()
            .map(|replica| replica.name.clone());
        self.replica = delivered.replica;
        self.account.delivered(delivered.seat, delivered.forwarded);
        self.queued = None;
        // Until a reply is there, nothing more can come from this source.
        self.source = Source::Done;
        let reply = delivered.reply?;
        if reply.head.media_type != "text/event-stream" {
            return Err(Refusal::UpstreamMalformed);
        }
        self.idle.as_mut().reset(Instant::now() + self.limits.idle);
        self.source = Source::Flowing(reply.body);
        Ok(())
    }

    /// Reads all that is there and joins it; `None` when the stream's state changed.
    fn poll_flow(&mut self, cx: &mut Context<'_>) -> Poll<Option<Step>> {
        let mut out = BytesMut::new();
        loop {
            let Source::Flowing(incoming) = &mut self.source else {
                return Poll::Ready(None);
            };
            let piece = match incoming.poll_piece(cx) {
                Poll::Ready(piece) => piece,
                Poll::Pending if out.is_empty() => return Poll::Pending,
                Poll::Pending => return Poll::Ready(Some(self.emit(out))),
            };
            self.idle.as_mut().reset(Instant::now() + self.limits.idle);
            let ended = match piece {
                Some(Ok(piece)) => {
                    self.sink.take(&piece, &mut out, &mut self.account);
                    self.sink.is_over()
                }
                Some(Err(fault)) => return Poll::Ready(self.break_off(Some(&fault), out)),
                None => {
                    self.sink.end(&mut out, &mut self.account);
                    true
                }
            };
            if ended {
                return Poll::Ready(self.conclude(out));
            }
            if out.len() >= PIECE {
                return Poll::Ready(Some(self.emit(out)));
            }
        }
    }

    fn emit(&mut self, out: BytesMut) -> Step {
        self.account.first_byte();
        self.comment
            .as_mut()
            .reset(Instant::now() + self.comment_every);
        Step::Bytes(out.freeze())
    }

    /// The upstream has said its last word.
    fn conclude(&mut self, out: BytesMut) -> Option<Step> {
        if let Some(error) = self.sink.error.take() {
            // An error inside a 200 is the upstream's refusal: its own status counts, else it is its fault.
            let status = error.status.unwrap_or(502);
            let refusal = said(error, status, None, self.replica.as_ref());
            return self.report(&refusal, out);
        }
        if self.sink.malformed {
            return self.report(&Refusal::UpstreamMalformed, out);
        }
        // A clean end alone proves nothing: an answer is whole when a choice finished or `[DONE]` came.
        if self.sink.finished < self.account.answers && !self.sink.done {
            return self.break_off(None, out);
        }
        self.account.first_byte();
        let mut last = out;
        if let Some(chunk) = self.sink.usage_chunk.take() {
            sse::write_data(&mut last, &chunk);
        }
        sse::write_data(&mut last, b"[DONE]");
        let upstream = match std::mem::replace(&mut self.source, Source::Done) {
            Source::Flowing(incoming) => Some(incoming),
            Source::Waiting(_) | Source::Recording { .. } | Source::Done => None,
        };
        self.close(Ending::Finished, None, last.freeze(), upstream);
        None
    }

    fn break_off(&mut self, fault: Option<&Fault>, out: BytesMut) -> Option<Step> {
        if let Some(fault) = fault {
            tracing::warn!(replica = self.account.replica, %fault, "an upstream broke off");
        }
        self.report(&fault.map_or(Refusal::UpstreamUnreachable, refusal), out)
    }

    /// A failure: a real answer while nothing was sent, an event after what was.
    fn report(&mut self, refusal: &Refusal, mut out: BytesMut) -> Option<Step> {
        if !self.committed && out.is_empty() {
            self.source = Source::Done;
            return Some(Step::Refused(refusal.clone()));
        }
        if !out.is_empty() {
            self.account.first_byte();
        }
        out.extend_from_slice(&failure(refusal));
        self.close(ending_of(refusal), Some(refusal.word()), out.freeze(), None);
        None
    }

    fn close(
        &mut self,
        ending: Ending,
        reason: Option<&'static str>,
        last: Bytes,
        upstream: Option<Incoming>,
    ) {
        let written = self.account.close(ending, 200, reason);
        self.source = Source::Recording {
            written,
            last,
            upstream,
        };
    }

    /// The record is written (or can't be): the last bytes.
    fn finish(&mut self, recorded: bool, cx: &mut Context<'_>) -> Bytes {
        let Source::Recording { last, upstream, .. } =
            std::mem::replace(&mut self.source, Source::Done)
        else {
            return Bytes::new();
        };
        if let Some(mut upstream) = upstream {
            // The end of its chunks came with the last event, or the connection isn't worth waiting for.
            if matches!(upstream.poll_piece(cx), Poll::Ready(None)) {
                upstream.release(&self.core.pool);
            }
        }
        if recorded {
            last
        } else {
            failure(&Refusal::RecordsUnavailable)
        }
    }

    fn time_out(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        let refusal = Refusal::UpstreamTimeout;
        self.source = Source::Done;
        if !self.committed {
            return Poll::Ready(Step::Refused(refusal));
        }
        self.close(
            Ending::TimedOut,
            Some(refusal.word()),
            failure(&refusal),
            None,
        );
        self.poll_step(cx)
    }

    /// What a comment says: where the call stands while it waits for a place.
    fn told(&self) -> String {
        match self.queued.as_ref().and_then(Queued::place) {
            Some(place) => {
                // Rounded up: nobody is told that he is next when he isn't.
                let seconds = place.wait.as_millis().div_ceil(1000);
                format!("queued: position {}, about {seconds} s", place.position)
            }
            None => "waiting".to_owned(),
        }
    }

    fn poll_timers(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        let over =
            self.total.as_mut().poll(cx).is_ready() || self.idle.as_mut().poll(cx).is_ready();
        if over {
            return self.time_out(cx);
        }
        if self.committed && self.comment.as_mut().poll(cx).is_ready() {
            self.comment
                .as_mut()
                .reset(Instant::now() + self.comment_every);
            let mut out = BytesMut::new();
            sse::write_comment(&mut out, &self.told());
            return Poll::Ready(Step::Bytes(out.freeze()));
        }
        Poll::Pending
    }
}

impl Sink {
    /// Takes bytes of the upstream; what the client gets is appended to `out`.
    fn take(&mut self, piece: &[u8], out: &mut BytesMut, account: &mut Account) {
        let mut splitter = std::mem::replace(&mut self.splitter, Splitter::new(0));
        let pushed = splitter.push(piece, &mut |frame| self.event(frame, out, account));
        self.splitter = splitter;
        self.malformed |= pushed.is_err();
    }

    /// The upstream's bytes have ended.
    fn end(&mut self, out: &mut BytesMut, account: &mut Account) {
        let mut splitter = std::mem::replace(&mut self.splitter, Splitter::new(0));
        splitter.finish(&mut |frame| self.event(frame, out, account));
        self.splitter = splitter;
    }

    fn is_over(&self) -> bool {
        self.done || self.malformed || self.error.is_some()
    }

    fn event(&mut self, frame: Frame<'_>, out: &mut BytesMut, account: &mut Account) {
        let Frame::Data { data, .. } = frame else {
            return;
        };
        if self.is_over() {
            return;
        }
        if openai::is_done(data) {
            self.done = true;
            return;
        }
        if data.trim_ascii().is_empty() {
            return;
        }
        match openai::read_chunk(data) {
            Some(chunk) => self.chunk(data, &chunk, out, account),
            None => self.malformed = true,
        }
    }

    fn chunk(&mut self, data: &[u8], chunk: &Chunk, out: &mut BytesMut, account: &mut Account) {
        if let Some(error) = &chunk.error {
            self.error = Some(error.clone());
            return;
        }
        if let Some(usage) = chunk.usage {
            account.usage(Tokens {
                input: usage.prompt,
                output: usage.completion,
            });
        }
        if chunk.text {
            account.text_event();
        }
        self.finished = self.finished.saturating_add(chunk.finished);
        if chunk.usage_only {
            if self.include_usage {
                let shown = openai::rewrite_chunk(data, chunk, &self.public_name, false);
                self.usage_chunk = Some(shown.into_owned());
            }
            return;
        }
        let drop_usage = chunk.usage_span.is_some() && !self.include_usage;
        sse::write_data(
            out,
            &openai::rewrite_chunk(data, chunk, &self.public_name, drop_usage),
        );
    }
}

/// The last bytes of a stream that failed: the error, then the transport's end, which claims no success.
fn failure(refusal: &Refusal) -> Bytes {
    let mut out = BytesMut::new();
    sse::write_data(&mut out, &error_bytes(&refusal.answer()));
    sse::write_data(&mut out, b"[DONE]");
    out.freeze()
}

pub(crate) fn ending_of(refusal: &Refusal) -> Ending {
    match refusal {
        Refusal::UpstreamTimeout => Ending::TimedOut,
        Refusal::Draining => Ending::Drained,
        Refusal::UpstreamUnreachable | Refusal::UpstreamMalformed | Refusal::Upstream { .. } => {
            Ending::UpstreamFailed
        }
        _ => Ending::Refused,
    }
}

/// How long ready bytes lay unread: hyper asks for more once its client has taken what it had.
#[derive(Clone, Copy, Debug, Default)]
struct Unread {
    /// Times that are over.
    before: Duration,
    /// Since when bytes lie there, until more are asked for.
    since: Option<Instant>,
}

impl Unread {
    fn handed_out(&mut self, now: Instant) {
        self.since = Some(now);
    }

    fn asked(&mut self, now: Instant) {
        self.before = self.time(now);
        self.since = None;
    }

    fn time(&self, now: Instant) -> Duration {
        let last = self.since.map(|since| now.saturating_duration_since(since));
        self.before.saturating_add(last.unwrap_or_default())
    }
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Relay({:?})", self.account)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_a_little_now_and_then_does_not_hold_a_stream_for_ever() {
        let (mut unread, mut now) = (Unread::default(), Instant::now());
        for _ in 0..3 {
            // 25 seconds unread, then a look, then nothing to read for a minute.
            unread.handed_out(now);
            now += Duration::from_secs(25);
            assert!(unread.time(now) >= Duration::from_secs(25));
            unread.asked(now);
            now += Duration::from_mins(1);
        }
        assert_eq!(unread.time(now), Duration::from_secs(75));
        assert!(unread.time(now) >= CLIENT_IDLE);
    }
}
