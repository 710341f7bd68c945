//! The way of a request, on one screen: arrive, check, deliver, record.
//!
//! Each stage's result is what the next one demands. What a call holds lives in its account, which ends with the
//! last byte of the answer, or when the client leaves. Called by `door::accept` for each request.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rules::ident::RequestId;
use rules::limit::Told;
use rules::measure::{Ending, Tokens};
use rules::refusal::Refusal;
use wire::openai;

use crate::body::Body;
use crate::check::admit::patience;
use crate::check::authenticate::{Caller, authenticate};
use crate::check::authorise::{authorise, find_model};
use crate::check::reserve::{Reserved, reserve};
use crate::deliver::balance::balance;
use crate::deliver::forward::{Delivered, Outgoing, forward, refusal, said, trace_of};
use crate::deliver::relay::{Relay, Step, ending_of};
use crate::door::accept::{Core, Peer};
use crate::door::framing;
use crate::endpoints::{self, Endpoint, What};
use crate::pages::{PAGES, POLICY};
use crate::record::settle::Account;
use crate::refuse::{self, refuse, respond};
use crate::settings::{Model, OnRevoke, Replica, Settings};

const JSON: &str = "application/json";

/// The largest answer that isn't a stream, bytes.
const ANSWER: usize = 64 << 20;

/// Of a request that was refused early, this much is read on, bytes.
const DISCARD: usize = 64 << 20;

/// And for this long.
const DISCARD_TIME: Duration = Duration::from_secs(30);

/// From the request to its answer.
pub(crate) async fn walk(
    core: &Rc<Core>,
    peer: &Peer,
    request: Request<Incoming>,
) -> Response<Body> {
    let (head, mut incoming) = request.into_parts();
    let mut response = arrive(core, peer, &head, &mut incoming).await;
    if head.method == Method::HEAD && head.version == http::Version::HTTP_2 {
        // hyper takes the body off an answer to HEAD in HTTP/1.1 only.
        if let Some(length) = response.body().size_hint().exact() {
            refuse::insert_number(response.headers_mut(), http::header::CONTENT_LENGTH, length);
        }
        *response.body_mut() = Body::Whole(None);
    }
    if head.version == http::Version::HTTP_2 && !incoming.is_end_stream() {
        // Bounded by itself; it ends with its core at the latest.
        drop(tokio::task::spawn_local(discard(incoming)));
    }
    response
}

/// Reads on what nobody wants: HTTP/2 resets a stream whose request is let go, and some clients then lose the answer.
/// HTTP/1.1 closes the connection instead, so a client that waits for `100 Continue` never gets one.
async fn discard(mut incoming: Incoming) {
    let reading = async {
        let mut left = DISCARD;
        while let Some(Ok(frame)) = incoming.frame().await {
            let size = frame.data_ref().map_or(0, Bytes::len);
            if size > left {
                return;
            }
            left = left.saturating_sub(size);
        }
    };
    // Too slow is as good as too much.
    tokio::time::timeout(DISCARD_TIME, reading).await.ok();
}

async fn arrive(
    core: &Rc<Core>,
    peer: &Peer,
    head: &Parts,
    incoming: &mut Incoming,
) -> Response<Body> {
    let gateway = &core.gateway;
    let (id, started) = (gateway.next_id(), gateway.clock.unix_ns());
    let settings = gateway.settings.load_full();
    let answered = async {
        framing::judge(head)?;
        let path = head.uri.path().to_owned();
        let found = endpoints::find(&path);
        if let Some((endpoint, _)) = found.filter(|(endpoint, _)| endpoint.what.is_open()) {
            must_have_method(endpoint, &head.method)?;
            return Ok(open(core, id, endpoint));
        }
        let caller = authenticate(gateway, &settings, &head.headers, peer).await?;
        let now = started / 1000;
        let standing = gateway
            .meters
            .look(caller.id(), &caller.policy, now)
            .and_then(|()| {
                let plan = caller.plan(gateway, &settings, None);
                gateway.limits.look(plan, now)
            });
        let known = Known {
            core,
            settings: &settings,
            caller,
            id,
            started,
            peer: peer.address,
            patience: patience(&head.headers),
        };
        Ok(known.walk(head, incoming, found, standing).await)
    };
    let answered: Result<_, Refusal> = answered.await;
    match answered {
        Ok(response) => response,
        Err(refusal) => {
            gateway.strangers.count(peer.address.ip(), refusal.word());
            gateway.metrics.refused(refusal.word());
            refuse(id, &refusal)
        }
    }
}

/// A request whose caller is known: each one leaves a record.
struct Known<'a> {
    core: &'a Rc<Core>,
    settings: &'a Settings,
    caller: Caller,
    id: RequestId,
    started: u64,
    peer: SocketAddr,
    /// How long the client will wait for its answer to begin, from `started`.
    patience: Option<Duration>,
}

impl Known<'_> {
    async fn walk(
        self,
        head: &Parts,
        incoming: &mut Incoming,
        found: Option<(&'static Endpoint, &str)>,
        standing: Result<Told, Refusal>,
    ) -> Response<Body> {
        let gateway = &self.core.gateway;
        // Refused too often: a line a minute, no record each, so that no key can fill the disk.
        if let Err(refusal @ Refusal::TooManyRefusals { .. }) = &standing {
            gateway.strangers.count(self.peer.ip(), refusal.word());
            gateway.metrics.refused(refusal.word());
            return refuse(self.id, refusal);
        }
        let routed = found
            .ok_or(Refusal::NoSuchRoute)
            .and_then(|(endpoint, rest)| {
                must_have_method(endpoint, &head.method)?;
                Ok((endpoint, rest))
            });
        let (endpoint, rest) = match routed {
            Ok(routed) => routed,
            Err(refusal) => return self.refused(&refusal),
        };
        let called = match endpoint.what {
            What::Call(called) => called,
            What::Models => return self.models(),
            What::Model => return self.model(rest),
            What::Page(_) | What::Live | What::Ready => return open(self.core, self.id, endpoint),
        };
        let permit = match gateway.trail.permit() {
            Ok(permit) => permit,
            Err(refusal) => {
                gateway.metrics.refused(refusal.word());
                return refuse(self.id, &refusal);
            }
        };
        let mut account = Account::open(
            gateway,
            permit,
            self.id,
            self.started,
            self.peer.ip(),
            &self.caller,
            endpoint,
        );
        if !self.caller.policy.allows_endpoint(endpoint.path) {
            return self.end(account, &Refusal::EndpointNotAllowed).await;
        }
        match self
            .check((called, &head.headers), incoming, standing, &mut account)
            .await
        {
            Ok((reserved, outgoing)) => self.deliver(reserved, outgoing, account).await,
            Err(refusal) => self.end(account, &refusal).await,
        }
    }

    /// Check: what may be asked for, whether the limits hold.
    async fn check(
        &self,
        called: (openai::Endpoint, &HeaderMap),
        incoming: &mut Incoming,
        standing: Result<Told, Refusal>,
        account: &mut Account,
    ) -> Result<(Reserved, Outgoing), Refusal> {
        let gateway = &self.core.gateway;
        standing?;
        if gateway.draining.load(Ordering::Relaxed) {
            return Err(Refusal::Draining);
        }
        let arriving = gateway.meters.arrive(self.caller.id())?;
        let trace = trace_of(called.1);
        let judged = authorise(
            gateway,
            self.settings,
            &self.caller,
            called,
            incoming,
            account,
        )
        .await?;
        let reserved = reserve(gateway, judged, account).await?;
        drop(arriving);
        let outgoing = Outgoing {
            endpoint: reserved.judged.endpoint,
            body: reserved.judged.body.clone(),
            stream: reserved.judged.stream,
            id: self.id,
            trace,
        };
        Ok((reserved, outgoing))
    }

    /// Deliver, and record.
    async fn deliver(
        self,
        reserved: Reserved,
        outgoing: Outgoing,
        account: Account,
    ) -> Response<Body> {
        let model = Arc::clone(&reserved.judged.model);
        let admitted = self.core.gateway.lines.admit(
            &self.caller,
            &model,
            reserved.judged.bound.total(),
            self.patience(&account),
        );
        let admission = match admitted {
            Ok(admission) => admission,
            Err(refusal) => return self.end(account, &refusal).await,
        };
        let queued = admission.queued();
        let (begun, holder) = (account.begun.clone(), account.holder());
        let (waits, tokens) = (queued.is_some(), reserved.judged.bound.total());
        let (core, asked) = (Rc::clone(self.core), Arc::clone(&model));
        let delivery = async move {
            let mut seat = match admission.seat().await {
                Ok(seat) => seat,
                Err(refusal) => return Delivered::not(refusal),
            };
            // Its key may have been taken back while it waited.
            if let Some(why) = holder.taken_back(&core.gateway).filter(|_| waits) {
                return Delivered::not(Refusal::UnknownKey(why));
            }
            let order = match balance(&core.gateway, &asked) {
                Ok(order) => order,
                Err(refusal) => return Delivered::not(refusal),
            };
            // From here on a client that leaves may have cost the upstream its prompt.
            begun.set();
            if let Some(seat) = &mut seat {
                seat.begin();
            }
            let mut delivered = forward(core, asked, order, outgoing, tokens).await;
            delivered.seat = seat;
            delivered
        };
        let mut response = if reserved.judged.stream {
            let mut relay = Relay::new(
                Rc::clone(self.core),
                account,
                Box::pin(delivery),
                model.name.clone(),
                reserved.judged.include_usage,
                model.timeouts,
                self.settings.comment_every,
            );
            if let Some(queued) = queued {
                relay.in_line(queued, model.queue_timeout);
            }
            self.stream(relay).await
        } else {
            let deadline = tokio::time::Instant::now() + model.timeouts.total;
            let delivered = pin!(tokio::time::timeout_at(deadline, delivery)).await;
            self.whole(delivered.ok(), &model, deadline, account).await
        };
        refuse::tell_limits(response.headers_mut(), &reserved.told);
        response
    }

    /// How long the client will still wait, if it says so.
    fn patience(&self, account: &Account) -> Option<Duration> {
        let passed = Duration::from_millis(account.elapsed_ms());
        self.patience
            .map(|patience| patience.saturating_sub(passed))
    }

    /// A stream: its first event or `commit_after`, whichever comes first, makes it a 200.
    async fn stream(&self, mut relay: Relay) -> Response<Body> {
        let first = std::future::poll_fn(|cx| relay.poll_step(cx));
        let first = match tokio::time::timeout(self.settings.commit_after, first).await {
            Ok(Step::Refused(refusal)) => return self.end(relay.into_account(), &refusal).await,
            Ok(Step::Bytes(bytes)) => Some(bytes),
            Ok(Step::End) | Err(_) => None,
        };
        // Before it stands in the core's list, no news of keys reaches it.
        if let Some(why) = relay.account().taken_back()
            && self.settings.on_revoke == OnRevoke::Cut
        {
            let refusal = Refusal::UnknownKey(why);
            return self.end(relay.into_account(), &refusal).await;
        }
        relay.commit(first);
        let account = relay.account();
        let (dropped, ms) = (account.dropped.clone(), account.elapsed_ms());
        let relay = Rc::new(RefCell::new(relay));
        self.core.streams.borrow_mut().push(Rc::downgrade(&relay));
        let body = Body::Stream(relay);
        let mut response = respond(self.id, 200, "text/event-stream; charset=utf-8", body);
        let headers = response.headers_mut();
        headers.insert(
            http::header::CACHE_CONTROL,
            HeaderValue::from_static("no-cache"),
        );
        headers.insert(
            HeaderName::from_static("x-accel-buffering"),
            HeaderValue::from_static("no"),
        );
        self.tell(&mut response, &dropped, ms);
        response
    }

    /// An answer in one piece.
    async fn whole(
        &self,
        delivered: Option<Delivered>,
        model: &Model,
        deadline: tokio::time::Instant,
        mut account: Account,
    ) -> Response<Body> {
        let Some(delivered) = delivered else {
            account.attempts = u32::from(account.begun.is_set());
            return self.end(account, &Refusal::UpstreamTimeout).await;
        };
        account.attempts = delivered.attempts;
        let replica = delivered.replica;
        account.replica = replica.as_ref().map(|replica| replica.name.clone());
        account.delivered(delivered.seat, delivered.forwarded);
        let mut reply = match delivered.reply {
            Ok(reply) => reply,
            Err(refusal) => return self.end(account, &refusal).await,
        };
        let body = match tokio::time::timeout_at(deadline, reply.body.collect(ANSWER)).await {
            Ok(Ok(body)) => body,
            Ok(Err(fault)) => return self.end(account, &refusal(&fault)).await,
            Err(_elapsed) => return self.end(account, &Refusal::UpstreamTimeout).await,
        };
        reply.body.release(&self.core.pool);
        match read_whole(&body, model, replica.as_ref(), &mut account) {
            Ok(bytes) => {
                account.first_byte();
                let (dropped, ms) = (account.dropped.clone(), account.elapsed_ms());
                if !matches!(account.close(Ending::Finished, 200, None).await, Ok(true)) {
                    return refuse(self.id, &Refusal::RecordsUnavailable);
                }
                let mut response = respond(self.id, 200, JSON, Body::whole(bytes));
                self.tell(&mut response, &dropped, ms);
                response
            }
            Err(refusal) => self.end(account, &refusal).await,
        }
    }

    /// Ends a call with a refusal; the answer waits for the record.
    async fn end(&self, mut account: Account, refusal: &Refusal) -> Response<Body> {
        if account.attempts == 0 {
            self.count_refusal();
        }
        let status = refusal.answer().status;
        let dropped = account.dropped.clone();
        let written = account
            .close(ending_of(refusal), status, Some(refusal.word()))
            .await;
        let refusal = if written == Ok(true) {
            refusal
        } else {
            &Refusal::RecordsUnavailable
        };
        let mut response = refuse(self.id, refusal);
        self.tell(&mut response, &dropped, account.elapsed_ms());
        let gateway = &self.core.gateway;
        let told = account.told.unwrap_or_else(|| {
            let plan = self.caller.plan(gateway, self.settings, None);
            gateway.limits.told(&plan, gateway.clock.unix_us())
        });
        refuse::tell_limits(response.headers_mut(), &told);
        response
    }

    fn count_refusal(&self) {
        let gateway = &self.core.gateway;
        let now = gateway.clock.unix_us();
        gateway
            .meters
            .refused(self.caller.id(), &self.caller.policy, now);
    }

    /// A refusal of something that isn't a call to a model.
    fn refused(&self, refusal: &Refusal) -> Response<Body> {
        self.count_refusal();
        self.core.gateway.metrics.refused(refusal.word());
        refuse(self.id, refusal)
    }

    fn tell(&self, response: &mut Response<Body>, dropped: &[String], ms: u64) {
        let headers = response.headers_mut();
        refuse::insert_number(headers, HeaderName::from_static("openai-processing-ms"), ms);
        if let Ok(value) = HeaderValue::try_from(dropped.join(", "))
            && !dropped.is_empty()
        {
            headers.insert(HeaderName::from_static("x-guan-dropped"), value);
        }
    }

    fn models(&self) -> Response<Body> {
        let data: Vec<_> = self
            .settings
            .models
            .values()
            .filter(|model| self.caller.policy.models.allow(&model.name))
            .map(|model| shown(model))
            .collect();
        let list = serde_json::json!({ "object": "list", "data": data });
        respond(self.id, 200, JSON, Body::whole(list.to_string()))
    }

    fn model(&self, name: &str) -> Response<Body> {
        match find_model(self.settings, &self.caller.policy, &unescape(name)) {
            Ok(model) => respond(self.id, 200, JSON, Body::whole(shown(&model).to_string())),
            Err(refusal) => self.refused(&refusal),
        }
    }
}

/// A whole answer: charged, and with the model's public name.
fn read_whole(
    body: &Bytes,
    model: &Model,
    replica: Option<&Replica>,
    account: &mut Account,
) -> Result<Bytes, Refusal> {
    let answer = openai::read_answer(body).ok_or(Refusal::UpstreamMalformed)?;
    if let Some(error) = answer.error {
        let status = error.status.unwrap_or(502);
        return Err(said(error, status, None, replica));
    }
    // Some JSON is no answer: one has a choice that says something or ended.
    if !answer.text && answer.finished == 0 {
        return Err(Refusal::UpstreamMalformed);
    }
    if let Some(usage) = answer.usage {
        account.usage(Tokens {
            input: usage.prompt,
            output: usage.completion,
        });
    }
    if answer.text {
        account.text_event();
    }
    Ok(match openai::rewrite(body, &model.name, false) {
        std::borrow::Cow::Borrowed(_) => body.clone(),
        std::borrow::Cow::Owned(bytes) => bytes.into(),
    })
}

/// Pages and probes: without a key.
fn open(core: &Rc<Core>, id: RequestId, endpoint: &Endpoint) -> Response<Body> {
    let gateway = &core.gateway;
    match endpoint.what {
        What::Page(number) => match PAGES.get(number) {
            Some(page) => {
                let mut response = respond(id, 200, page.media_type, Body::whole(page.bytes));
                let headers = response.headers_mut();
                headers.insert(
                    http::header::CACHE_CONTROL,
                    HeaderValue::from_static("no-cache"),
                );
                headers.insert(
                    http::header::CONTENT_SECURITY_POLICY,
                    HeaderValue::from_static(POLICY),
                );
                headers.insert(
                    http::header::REFERRER_POLICY,
                    HeaderValue::from_static("no-referrer"),
                );
                response
            }
            None => refuse(id, &Refusal::Internal),
        },
        What::Ready => {
            let stale = gateway.config_stale.load(Ordering::Relaxed);
            let (status, word) = if gateway.draining.load(Ordering::Relaxed) {
                (503, "draining\n")
            } else if !gateway.any_model() {
                (503, "starting\n")
            } else if stale {
                (
                    200,
                    "ready, but the config file was refused: the old one is in force\n",
                )
            } else {
                (200, "ready\n")
            };
            respond(id, status, "text/plain; charset=utf-8", Body::whole(word))
        }
        What::Live | What::Models | What::Model | What::Call(_) => {
            respond(id, 200, "text/plain; charset=utf-8", Body::whole("alive\n"))
        }
    }
}

fn must_have_method(endpoint: &Endpoint, method: &Method) -> Result<(), Refusal> {
    let head = endpoint.method == Method::GET && method == Method::HEAD;
    if head || endpoint.method == method {
        return Ok(());
    }
    Err(Refusal::MethodNotAllowed(
        if endpoint.method == Method::GET {
            "GET"
        } else {
            "POST"
        },
    ))
}

fn shown(model: &Model) -> serde_json::Value {
    serde_json::json!({
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
    })
}

/// Percent escapes of a model's name; `framing` has seen that they are whole.
fn unescape(name: &str) -> String {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [first, tail @ ..] = rest {
        let escape = tail.get(..2).filter(|_| *first == b'%');
        let digits = escape.and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
