//! The body of a streamed answer: each event as one server-sent event, usage if it was asked for,
//! `[DONE]`, end. Decides the framing only. It buffers nothing: what the client doesn't read stays
//! with the sequence, which then pauses. Used by `serve`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};
use serde_json::Value;

use super::answer::Shape;
use super::choices::Choices;
use crate::generate::Event;
use crate::refuse::Refusal;

/// A stream of server-sent events.
#[derive(Debug)]
pub(super) struct Events {
    shape: Shape,
    choices: Choices,
    ready: VecDeque<Bytes>,
    /// Whether a choice has had its first chunk, which carries the role.
    begun: Vec<bool>,
    prompt_tokens: usize,
    generated: u64,
    ended: bool,
}

impl Events {
    /// A stream that begins with `first`.
    pub(super) fn new(
        shape: Shape,
        choices: Choices,
        first: Option<(usize, Event)>,
        prompt_tokens: usize,
    ) -> Self {
        let begun = vec![false; choices.count()];
        let ready = VecDeque::new();
        let mut events = Self {
            shape,
            choices,
            ready,
            begun,
            prompt_tokens,
            generated: 0,
            ended: false,
        };
        if let Some((at, event)) = first {
            events.tell(at, event);
        }
        events
    }

    fn tell(&mut self, at: usize, event: Event) {
        if let Some(begun) = self.begun.get_mut(at)
            && !std::mem::replace(begun, true)
            && let Some(role) = self.shape.role(at)
        {
            self.send(&role);
        }
        match event {
            Event::Text { text, logprobs } => {
                let chunk = self.shape.text(at, &text, &logprobs);
                self.send(&chunk);
            }
            Event::Done { finish, tokens } => {
                self.generated = self.generated.saturating_add(u64::from(tokens));
                let chunk = self.shape.finish(at, finish);
                self.send(&chunk);
            }
            Event::Failed { message } => {
                self.send(&Refusal::failed(message).body());
                self.end();
            }
        }
    }

    fn finish(&mut self) {
        if self.shape.include_usage {
            let usage = self.shape.usage_chunk(self.prompt_tokens, self.generated);
            self.send(&usage);
        }
        self.end();
    }

    fn end(&mut self) {
        self.ready
            .push_back(Bytes::from_static(b"data: [DONE]\n\n"));
        self.ended = true;
    }

    fn send(&mut self, chunk: &Value) {
        self.ready
            .push_back(Bytes::from(format!("data: {chunk}\n\n")));
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match self.choices.poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some((at, event))) => self.tell(at, event),
                Poll::Ready(None) => self.finish(),
            }
        }
    }
}
