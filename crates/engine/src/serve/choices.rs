//! The events of one request's sequences, merged as they come. Decides nothing; what it guarantees
//! is that dropping it ends the sequences before the next batch step, and that reading wakes a
//! sequence that waited for room. Used by `serve` and by its streams.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::thread::Thread;

use serde_json::Value;
use tokio::sync::mpsc::Receiver;

use super::answer::{Shape, Told};
use crate::generate::{Event, Finish};
use crate::refuse::Refusal;

/// The receiving ends of one request.
#[derive(Debug)]
pub(super) struct Choices {
    receivers: Vec<Option<Receiver<Event>>>,
    wake: Thread,
    /// Whose turn it is to be looked at first.
    turn: usize,
}

impl Choices {
    pub(super) fn new(receivers: Vec<Receiver<Event>>, wake: Thread) -> Self {
        Self {
            receivers: receivers.into_iter().map(Some).collect(),
            wake,
            turn: 0,
        }
    }

    /// Number of choices.
    pub(super) fn count(&self) -> usize {
        self.receivers.len()
    }

    /// The next event and the choice it belongs to; `None` once all have ended.
    pub(super) async fn next(&mut self) -> Option<(usize, Event)> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// [`Self::next`] for a body.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<(usize, Event)>> {
        let count = self.receivers.len();
        for offset in 0..count {
            let at = self
                .turn
                .wrapping_add(offset)
                .checked_rem(count)
                .unwrap_or(0);
            let Some(place) = self.receivers.get_mut(at) else {
                continue;
            };
            let Some(receiver) = place else { continue };
            let Poll::Ready(event) = receiver.poll_recv(context) else {
                continue;
            };
            self.turn = at.wrapping_add(1);
            // a sequence without an end means that the scheduler is gone
            let event = event.unwrap_or_else(|| Event::Failed {
                message: "the engine stopped in the middle of this answer; try again".to_owned(),
            });
            match event {
                Event::Text { .. } => self.wake.unpark(),
                Event::Done { .. } | Event::Failed { .. } => *place = None,
            }
            return Poll::Ready(Some((at, event)));
        }
        if self.receivers.iter().all(Option::is_none) {
            Poll::Ready(None)
        } else {
            Poll::Pending
        }
    }

    /// Waits for all choices and puts the whole answer together.
    ///
    /// # Errors
    /// A [`Refusal`], if one of them failed.
    pub(super) async fn collect(
        mut self,
        shape: &Shape,
        prompt_tokens: usize,
    ) -> Result<Value, Refusal> {
        let mut told: Vec<Told> = (0..self.count()).map(|_| Told::default()).collect();
        let mut generated = 0_u64;
        while let Some((at, event)) = self.next().await {
            let Some(choice) = told.get_mut(at) else {
                continue;
            };
            match event {
                Event::Text { text, logprobs } => {
                    choice.text.push_str(&text);
                    choice.logprobs.extend(logprobs);
                }
                Event::Done { finish, tokens } => {
                    choice.finish = Some(finish);
                    generated = generated.saturating_add(u64::from(tokens));
                }
                Event::Failed { message } => return Err(Refusal::failed(message)),
            }
        }
        for choice in &mut told {
            choice.finish.get_or_insert(Finish::Length);
        }
        Ok(shape.whole(&told, prompt_tokens, generated))
    }
}

impl Drop for Choices {
    fn drop(&mut self) {
        for receiver in self.receivers.iter_mut().flatten() {
            receiver.close();
        }
        // closed first, then woken: the scheduler must find it so
        self.wake.unpark();
    }
}
