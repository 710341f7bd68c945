//! One account a call: what it holds, what was seen of it, and the one record that it becomes.
//!
//! Opened when the key is known, closed once: by the stage that ends the call, or by `Drop` when the client left.
//! Whatever the ending, its limits are settled, the slot is cleared after its record is written, and
//! the charge follows `rules::measure`.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rules::chain;
use rules::ident::RequestId;
use rules::limit::Told;
use rules::measure::{self, Charge, Ending, Seen, Tokens};
use rules::policy::Policy;
use rules::refusal::Unfit;
use rules::snapshot::Key;
use tokio::sync::oneshot;

use crate::check::admit::{Begun, Seat};
use crate::check::authenticate::{Caller, Proof};
use crate::check::authorise::BodyMemory;
use crate::endpoints::Endpoint;
use crate::limits::backend::Taken;
use crate::record::metrics::Ended;
use crate::record::slot::{Call, Slot};
use crate::record::trail::{Permit, blank};
use crate::state::Gateway;

/// Text events between two writes of a slot.
const EVERY: u64 = measure::SLOT_STEP;

/// Why a call ended whose client left ready bytes unread.
pub(crate) const CLIENT_STALLED: &str = "client-stalled";

/// Whose call it is, as far as that can be taken back.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    key: Arc<Key>,
    proof: Option<Proof>,
}

impl Holder {
    /// Why the key that the call began with was taken back since, if it was.
    pub(crate) fn taken_back(&self, gateway: &Gateway) -> Option<Unfit> {
        let (keys, now) = (gateway.keys.load(), gateway.clock.unix_seconds());
        if let Some(proof) = &self.proof {
            return keys.taken_back(&proof.digest, proof.until, now);
        }
        // Whoever is vouched for has nothing of ours but his project.
        let project = keys.project(self.key.project.as_ref()?);
        project
            .is_none_or(|project| !project.enabled)
            .then_some(Unfit::ProjectDisabled)
    }
}

/// A call that has begun.
pub(crate) struct Account {
    gateway: Arc<Gateway>,
    permit: Option<Permit>,
    slot: Option<Slot>,
    taken: Option<Taken>,
    seat: Option<Seat>,
    /// Set when its delivery has gone to an upstream.
    pub(crate) begun: Begun,
    /// Memory that the body takes, given back with the account.
    pub(crate) body: Option<BodyMemory>,
    /// The request's id.
    pub(crate) id: RequestId,
    started_ns: u64,
    address: IpAddr,
    key: Arc<Key>,
    proof: Option<Proof>,
    endpoint: &'static Endpoint,
    /// Public name of the model, once known.
    pub(crate) model: Option<Arc<str>>,
    /// A stream.
    pub(crate) stream: bool,
    /// Answers that it asks for: choices times prompts.
    pub(crate) answers: u32,
    /// What was reserved.
    pub(crate) reserved: Tokens,
    /// How the limits stood when they were decided.
    pub(crate) told: Option<Told>,
    taken_ns: Option<u64>,
    /// The caller's policy: a call that ends before it counted counts as refused.
    pub(crate) policy: Option<Policy>,
    /// Who the caller is to whoever vouches for him.
    pub(crate) identity: Option<Arc<chain::Identity>>,
    /// What the upstream did.
    pub(crate) seen: Seen,
    /// The replica that had it last.
    pub(crate) replica: Option<String>,
    /// Attempts at upstreams.
    pub(crate) attempts: u32,
    first_byte_ns: Option<u64>,
    /// Bytes of the request's body.
    pub(crate) request_bytes: u64,
    /// Members left out of the body.
    pub(crate) dropped: Vec<String>,
}

/// Tells once the record is written: `true`, or that it couldn't be.
pub(crate) type Written = oneshot::Receiver<bool>;

impl Account {
    /// Opens it.
    pub(crate) fn open(
        gateway: &Arc<Gateway>,
        permit: Permit,
        id: RequestId,
        started_ns: u64,
        address: IpAddr,
        caller: &Caller,
        endpoint: &'static Endpoint,
    ) -> Self {
        Self {
            gateway: Arc::clone(gateway),
            permit: Some(permit),
            slot: None,
            taken: None,
            seat: None,
            begun: Begun::default(),
            body: None,
            id,
            started_ns,
            address,
            key: Arc::clone(&caller.key),
            proof: caller.proof,
            endpoint,
            model: None,
            stream: false,
            answers: 1,
            reserved: Tokens::default(),
            told: None,
            taken_ns: None,
            policy: Some(caller.policy.clone()),
            identity: caller.identity.clone(),
            seen: Seen::default(),
            replica: None,
            attempts: 0,
            first_byte_ns: None,
            request_bytes: 0,
            dropped: Vec::new(),
        }
    }

    /// Keeps what `check::reserve` took.
    pub(crate) fn hold(&mut self, taken: Taken, taken_ns: u64, reserved: Tokens) {
        self.taken = Some(taken);
        self.taken_ns = Some(taken_ns);
        self.reserved = reserved;
    }

    /// The delivery has ended with or without an answer: whether an upstream had the call, and the place it holds.
    pub(crate) fn delivered(&mut self, seat: Option<Seat>, forwarded: bool) {
        self.begun = Begun::default();
        self.seat = seat;
        self.seen.forwarded = forwarded;
    }

    /// Takes the slot; from here on a killed process can't lose the call.
    ///
    /// # Errors
    /// As [`crate::record::slot::Slots::take`].
    pub(crate) fn take_slot(&mut self) -> std::io::Result<()> {
        self.slot = Some(self.gateway.slots.take(&self.slot_call())?);
        self.gateway.in_flight.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// One event with text was received; the slot is written again now and then.
    pub(crate) fn text_event(&mut self) {
        if self.seen.text_events == 0
            && self.stream
            && let Some(seat) = &self.seat
        {
            seat.first_token();
        }
        self.seen.text_events = self.seen.text_events.saturating_add(1);
        if self.seen.text_events.is_multiple_of(EVERY)
            && let Some(slot) = &self.slot
            && let Err(fault) = slot.write(&self.slot_call())
        {
            tracing::warn!(%fault, "an in-flight slot can't be written");
        }
    }

    /// A usage figure was received: a running total, so the larger one stands.
    pub(crate) fn usage(&mut self, usage: Tokens) {
        let before = self.seen.reported.unwrap_or_default();
        self.seen.reported = Some(Tokens {
            input: before.input.max(usage.input),
            output: before.output.max(usage.output),
        });
    }

    /// The first byte of the answer's body goes to the client.
    pub(crate) fn first_byte(&mut self) {
        let now = self.gateway.clock.unix_ns();
        self.first_byte_ns
            .get_or_insert(now.saturating_sub(self.started_ns));
    }

    /// Whose call it is.
    pub(crate) fn holder(&self) -> Holder {
        Holder {
            key: Arc::clone(&self.key),
            proof: self.proof,
        }
    }

    /// Why the key that the call began with was taken back since, if it was.
    pub(crate) fn taken_back(&self) -> Option<Unfit> {
        self.holder().taken_back(&self.gateway)
    }

    /// Milliseconds since the request arrived.
    pub(crate) fn elapsed_ms(&self) -> u64 {
        self.gateway.clock.unix_ns().saturating_sub(self.started_ns) / 1_000_000
    }

    /// Ends the call: one record, on its way now.
    pub(crate) fn close(
        &mut self,
        ending: Ending,
        status: u16,
        reason: Option<&'static str>,
    ) -> Written {
        let (done, written) = oneshot::channel();
        // While the delivery runs, only it knows whether an upstream has the call.
        self.seen.forwarded |= self.begun.is_set();
        let charge = measure::settle(ending, self.reserved, self.seen);
        if let Some(taken) = self.taken.take() {
            let (now, cost) = (self.gateway.clock.unix_us(), charge.tokens);
            let limits = &self.gateway.limits;
            limits.settle(taken, now, cost.input, cost.output);
        }
        let Some(permit) = self.permit.take() else {
            return written;
        };
        let slot = self.slot.take();
        if slot.is_some() {
            self.gateway.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
        let record = self.record(ending, charge, status, reason);
        if let Some(seat) = self.seat.take() {
            let said_so = ending == Ending::UpstreamFailed && matches!(status, 429 | 503);
            // A stream that flowed was only long.
            let late = ending == Ending::TimedOut
                && reason != Some(CLIENT_STALLED)
                && self.seen.text_events == 0;
            if said_so || late {
                seat.too_much();
            } else if ending == Ending::Finished && !self.stream && charge.tokens.output > 0 {
                seat.answered(charge.tokens.output);
            }
            let had = self.seen.forwarded || charge.source != measure::Source::Nothing;
            seat.give_back(had.then(|| charge.tokens.total()));
        }
        self.gateway.metrics.ended(&Ended {
            endpoint: self.endpoint.path,
            model: self.model.as_ref(),
            ending,
            reason,
            charge,
            attempts: self.attempts,
            duration: Duration::from_nanos(record.duration_ns.unwrap_or_default()),
            first_byte: self.first_byte_ns.map(Duration::from_nanos),
        });
        permit.send(record, move |ok| {
            // Without a record the slot stays: the next start writes one from it.
            if ok && let Some(slot) = slot {
                slot.clear();
            }
            // Nobody may be waiting any more: the client left.
            done.send(ok).ok();
        });
        written
    }

    fn record(
        &self,
        ending: Ending,
        charge: Charge,
        status: u16,
        reason: Option<&str>,
    ) -> chain::Record {
        let now = self.gateway.clock.unix_ns();
        let good = ending == Ending::Finished && status < 400;
        chain::Record {
            reason: reason.map(str::to_owned),
            duration_ns: Some(now.saturating_sub(self.started_ns)),
            source_ip: Some(self.address.to_canonical().to_string()),
            user_id: Some(self.key.id.to_string()),
            role: Some(self.key.role.to_string()),
            identity: self.identity.as_deref().cloned(),
            status: Some(status),
            path: Some(self.endpoint.path.to_owned()),
            request_id: Some(self.id.to_string()),
            call: Some(chain::Call {
                project: self.key.project.as_deref().map(str::to_owned),
                model: self.model.as_deref().map(str::to_owned),
                ending,
                stream: self.stream,
                charged: charge.tokens,
                source: charge.source,
                reserved: self.reserved,
                taken_ns: self.taken_ns,
                replica: self.replica.clone(),
                attempts: self.attempts,
                first_byte_ns: self.first_byte_ns,
                request_bytes: self.request_bytes,
                dropped: self.dropped.clone(),
            }),
            ..blank(
                self.gateway.trail.stamp(now),
                "model-request",
                if good { "success" } else { "failure" },
            )
        }
    }

    fn slot_call(&self) -> Call {
        Call {
            id: self.id,
            key: self.key.id,
            endpoint: self.endpoint.number,
            stream: self.stream,
            started_ns: self.taken_ns.unwrap_or(self.started_ns),
            reserved: self.reserved,
            prompt: self.seen.reported.map_or(0, |tokens| tokens.input),
            output: self
                .seen
                .reported
                .map_or(0, |t| t.output)
                .max(self.seen.text_events),
            model: self.model.as_deref().unwrap_or_default().to_owned(),
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if self.permit.is_some() {
            let ending = if self.gateway.draining.load(Ordering::Relaxed) {
                Ending::Drained
            } else {
                Ending::ClientGone
            };
            if self.taken_ns.is_none()
                && let Some(policy) = &self.policy
            {
                let now = self.gateway.clock.unix_us();
                self.gateway.meters.refused(self.key.id.into(), policy, now);
            }
            // 499: the client left before it was answered; nobody sees it but the log.
            drop(self.close(ending, 499, None));
        }
    }
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Account({})", self.id)
    }
}
