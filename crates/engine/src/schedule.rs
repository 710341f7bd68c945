//! Continuous batching: one thread owns llama.cpp's context and runs step after step, each holding
//! a token of every generating sequence and a bounded share of the prompts. Decides who gets a
//! slot (in order of arrival, and only if its whole context fits into the cache), and ends what
//! nobody waits for any more before the next step. It knows nothing of HTTP.
//! Fed by `serve` through a bounded queue; started by `main`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread;

use llama_cpp_2::DecodeError;
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::token::LlamaToken;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::generate::sample::{Sampling, Scratch};
use crate::generate::{Event, Sequence};
use crate::journal::note;
use crate::tokenise::{Words, to_place, to_token};
use crate::weights::{PROMPT_STEP, Weights};

mod plan;

use plan::{Share, View};

/// Sequences that may wait for a slot.
pub(crate) const QUEUE: usize = 64;
/// Events a reader may be behind before its sequence pauses.
pub(crate) const READER_LAG: usize = 32;
/// Events one step may bring to one sequence: the last text, and the end.
const EVENTS_PER_STEP: usize = 2;

/// One sequence to generate.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) prompt: Arc<[LlamaToken]>,
    /// Jobs of one family have the same prompt, which is read once and copied.
    pub(crate) family: u64,
    pub(crate) sampling: Sampling,
    pub(crate) stops: Vec<String>,
    pub(crate) max_tokens: u32,
    /// Where its events go; once this is closed the sequence ends.
    pub(crate) sink: mpsc::Sender<Event>,
    /// Its place in the queue; given back when it gets a slot.
    pub(crate) place: OwnedSemaphorePermit,
}

/// What `/health` shows. Written here, read anywhere.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Batch steps since the start.
    pub(crate) steps: AtomicU64,
    /// Sequences in slots.
    pub(crate) active: AtomicU64,
    /// Sequences in the queue.
    pub(crate) waiting: AtomicU64,
}

/// A sequence in a slot. The slot's place is its sequence id for llama.cpp.
#[derive(Debug)]
struct Slot {
    prompt: Arc<[LlamaToken]>,
    family: u64,
    born: u64,
    sequence: Sequence,
    sink: mpsc::Sender<Event>,
    /// Cells it may use, prompt and answer together.
    reserved: u64,
    /// Tokens in the cache.
    cached: usize,
    /// The newest token, which isn't in the cache yet.
    next: Option<LlamaToken>,
    /// Where this step's batch has its logits.
    output: Option<i32>,
    /// Tokens this step adds to the cache.
    fresh: usize,
}

/// The loop's state.
#[derive(Debug)]
pub(crate) struct Scheduler {
    context: LlamaContext<'static>,
    batch: LlamaBatch<'static>,
    words: Words,
    jobs: Receiver<Job>,
    waiting: VecDeque<Job>,
    slots: Vec<Option<Slot>>,
    free_cells: u64,
    copies: bool,
    born: u64,
    scratch: Scratch,
    shares: Vec<Share>,
    counters: Arc<Counters>,
}

impl Scheduler {
    /// A scheduler for `weights`, whose `context` it takes, fed by `jobs`.
    pub(crate) fn new(
        weights: &Weights,
        context: LlamaContext<'static>,
        jobs: Receiver<Job>,
        counters: Arc<Counters>,
    ) -> Self {
        let size = usize::try_from(weights.batch_tokens()).unwrap_or(1);
        let slots = usize::try_from(weights.parallel()).unwrap_or(1);
        Self {
            context,
            batch: LlamaBatch::new(size, 1),
            words: Words(weights.model),
            jobs,
            waiting: VecDeque::new(),
            slots: (0..slots).map(|_| None).collect(),
            free_cells: u64::from(weights.cells),
            copies: weights.copies,
            born: 0,
            scratch: Scratch::default(),
            shares: Vec::new(),
            counters,
        }
    }

    /// Runs until nobody can send jobs any more. Whoever changes something it may wait for (a job
    /// sent, an event read, a reader gone) unparks its thread.
    pub(crate) fn run(mut self) {
        loop {
            let open = self.take_jobs();
            self.end_abandoned();
            self.fill_slots();
            self.count();
            self.plan();
            if !self.shares.is_empty() {
                self.step();
            } else if open {
                thread::park();
            } else {
                return;
            }
        }
    }

    /// Moves new jobs into the queue; false once there can be no more.
    fn take_jobs(&mut self) -> bool {
        loop {
            match self.jobs.try_recv() {
                Ok(job) => self.waiting.push_back(job),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Frees what belongs to readers that left.
    fn end_abandoned(&mut self) {
        self.waiting.retain(|job| !job.sink.is_closed());
        for at in 0..self.slots.len() {
            if self.slot(at).is_some_and(|slot| slot.sink.is_closed()) {
                self.vacate(at);
            }
        }
    }

    /// Gives free slots to the queue, in order. A job that doesn't fit yet holds the later ones
    /// up: letting small ones pass could starve it.
    fn fill_slots(&mut self) {
        while let Some(at) = self.slots.iter().position(Option::is_none) {
            let Some(job) = self.waiting.pop_front() else {
                return;
            };
            let reserved = u64::try_from(job.prompt.len())
                .unwrap_or(u64::MAX)
                .saturating_add(u64::from(job.max_tokens));
            if reserved > self.free_cells && self.slots.iter().any(Option::is_some) {
                self.waiting.push_front(job);
                return;
            }
            self.free_cells = self.free_cells.saturating_sub(reserved);
            let slot = self.settle(job, reserved);
            if let Some(empty) = self.slots.get_mut(at) {
                *empty = Some(slot);
            }
        }
    }

    fn settle(&mut self, job: Job, reserved: u64) -> Slot {
        let Job {
            prompt,
            family,
            sampling,
            stops,
            max_tokens,
            sink,
            place,
        } = job;
        drop(place);
        self.born = self.born.saturating_add(1);
        let places = prompt.iter().map(|token| to_place(*token));
        Slot {
            sequence: Sequence::new(sampling, stops, max_tokens, places),
            prompt,
            family,
            born: self.born,
            sink,
            reserved,
            cached: 0,
            next: None,
            output: None,
            fresh: 0,
        }
    }

    fn count(&self) {
        let active = self.slots.iter().flatten().count();
        self.counters.active.store(active as u64, Ordering::Relaxed);
        self.counters
            .waiting
            .store(self.waiting.len() as u64, Ordering::Relaxed);
    }

    fn plan(&mut self) {
        let mut views = Vec::with_capacity(self.slots.len());
        for at in 0..self.slots.len() {
            let waits = self.copies && self.copy_prompt(at);
            if let Some(slot) = self.slot(at) {
                views.push(View {
                    slot: at,
                    born: slot.born,
                    prompt_left: slot.prompt_left(),
                    room: slot.sink.capacity() >= EVENTS_PER_STEP,
                    waits,
                });
            }
        }
        let most = usize::try_from(PROMPT_STEP).unwrap_or(1);
        plan::plan(&views, most, &mut self.shares);
    }

    /// Copies the prompt of an older sequence of the same family into a new one. True if the older
    /// one is still reading it, so that waiting is cheaper than reading it twice.
    fn copy_prompt(&mut self, at: usize) -> bool {
        let Some(slot) = self.slot(at).filter(|slot| slot.cached == 0) else {
            return false;
        };
        // the last token stays: its logits are what the new sequence begins with
        let wanted = slot.prompt.len().saturating_sub(1);
        let (family, born) = (slot.family, slot.born);
        let source = self.slots.iter().enumerate().find_map(|(from, other)| {
            let other = other.as_ref()?;
            (other.family == family && other.born < born).then_some((from, other.cached))
        });
        let Some((from, cached)) = source else {
            return false;
        };
        if cached < wanted {
            return true;
        }
        let (Ok(from), Ok(to)) = (i32::try_from(from), i32::try_from(at)) else {
            return false;
        };
        let end = u32::try_from(wanted).ok();
        if wanted > 0
            && self
                .context
                .copy_kv_cache_seq(from, to, Some(0), end)
                .is_ok()
            && let Some(slot) = self.slots.get_mut(at).and_then(Option::as_mut)
        {
            slot.cached = wanted;
        }
        false
    }

    /// Runs one batch and hands its outcome on.
    fn step(&mut self) {
        self.fill_batch();
        match self.context.decode(&mut self.batch) {
            Ok(()) => {
                self.counters.steps.fetch_add(1, Ordering::Relaxed);
                self.advance();
            }
            Err(error) => self.give_up(&error),
        }
    }

    fn fill_batch(&mut self) {
        self.batch.clear();
        for slot in self.slots.iter_mut().flatten() {
            slot.output = None;
            slot.fresh = 0;
        }
        for share in &self.shares {
            let (at, count) = match *share {
                Share::Token { slot } => (slot, 1),
                Share::Prompt { slot, count } => (slot, count),
            };
            let Some(slot) = self.slots.get_mut(at).and_then(Option::as_mut) else {
                continue;
            };
            let Ok(id) = i32::try_from(at) else { continue };
            let from = slot.cached;
            let tokens = match slot.next.as_slice() {
                [] => slot
                    .prompt
                    .get(from..from.saturating_add(count))
                    .unwrap_or_default(),
                newest => newest,
            };
            let ends = from.saturating_add(tokens.len()) >= slot.prompt.len();
            for (position, token) in (from..).zip(tokens) {
                let position = i32::try_from(position).unwrap_or(i32::MAX);
                let last = slot.fresh.saturating_add(1) == tokens.len();
                // it can't be full: the planner counts as the batch was sized
                if self
                    .batch
                    .add(*token, position, &[id], last && ends)
                    .is_ok()
                {
                    slot.fresh = slot.fresh.saturating_add(1);
                }
            }
            slot.output = ends.then(|| self.batch.n_tokens().saturating_sub(1));
        }
    }

    /// Samples every sequence whose logits are there.
    fn advance(&mut self) {
        for at in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(at).and_then(Option::as_mut) else {
                continue;
            };
            slot.cached = slot.cached.saturating_add(slot.fresh);
            let Some(output) = slot.output.take() else {
                continue;
            };
            let logits = self.context.get_logits_ith(output);
            let step = slot.sequence.step(logits, &mut self.scratch, &self.words);
            slot.next = Some(to_token(step.token));
            let ended = step.done.is_some();
            // there was room before the step; if the reader left, the next round notices
            for event in [step.text, step.done].into_iter().flatten() {
                drop(slot.sink.try_send(event));
            }
            if ended {
                self.vacate(at);
            }
        }
    }

    /// After a failed step: without room in the cache the youngest sequence goes, so that the
    /// others can; after anything else, all that took part.
    fn give_up(&mut self, error: &DecodeError) {
        note(&format!("a batch step failed: {error}"));
        let part =
            |slot: &Option<Slot>| slot.as_ref().filter(|slot| slot.fresh > 0).map(|s| s.born);
        let youngest = self.slots.iter().filter_map(part).max();
        let only = matches!(error, DecodeError::NoKvCacheSlot);
        for at in 0..self.slots.len() {
            let Some(born) = self.slots.get(at).and_then(part) else {
                continue;
            };
            if only && Some(born) != youngest {
                continue;
            }
            if let Some(slot) = self.slot(at) {
                let message = "the engine could not compute this answer; try again".to_owned();
                drop(slot.sink.try_send(Event::Failed { message }));
            }
            self.vacate(at);
        }
    }

    fn slot(&self, at: usize) -> Option<&Slot> {
        self.slots.get(at).and_then(Option::as_ref)
    }

    fn vacate(&mut self, at: usize) {
        let Some(slot) = self.slots.get_mut(at).and_then(Option::take) else {
            return;
        };
        self.free_cells = self.free_cells.saturating_add(slot.reserved);
        let cleared = self
            .context
            .clear_kv_cache_seq(u32::try_from(at).ok(), None, None);
        if !matches!(cleared, Ok(true)) {
            note(&format!("the cache of sequence {at} was not cleared"));
        }
    }
}

impl Slot {
    fn prompt_left(&self) -> usize {
        self.prompt.len().saturating_sub(self.cached)
    }
}
