//! What may be asked for: the first reader of the body. Strict JSON, a model of the caller's policy, caps on every
//! member that multiplies work.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rules::limit::{Amounts, Plan};
use rules::measure::Tokens;
use rules::policy::Policy;
use rules::refusal::Refusal;
use wire::openai;

use crate::check::authenticate::Caller;
use crate::limits::meter::BodyShare;
use crate::record::settle::Account;
use crate::settings::{Model, Settings};
use crate::state::Gateway;

/// Memory for a body before it comes, bytes.
const FIRST_BODY: u64 = 64 << 10;

/// For the whole body.
const BODY_DEADLINE: Duration = Duration::from_secs(60);

/// A call that the caller's policy allows, and the body that the upstream will get.
#[derive(Debug)]
pub(crate) struct Judged {
    /// The endpoint.
    pub(crate) endpoint: openai::Endpoint,
    /// The model.
    pub(crate) model: Arc<Model>,
    /// The rebuilt body.
    pub(crate) body: Bytes,
    /// The client wants a stream.
    pub(crate) stream: bool,
    /// The client asked for the usage chunk.
    pub(crate) include_usage: bool,
    /// Most tokens that the call can take.
    pub(crate) bound: Tokens,
    /// What it takes of which limits.
    pub(crate) plan: Plan,
}

/// Reads and judges the body.
///
/// # Errors
/// 400, 403, 404, 408, 413, 415, 503.
pub(crate) async fn authorise(
    gateway: &Arc<Gateway>,
    settings: &Settings,
    caller: &Caller,
    called: (openai::Endpoint, &HeaderMap),
    incoming: &mut Incoming,
    account: &mut Account,
) -> Result<Judged, Refusal> {
    let (endpoint, headers) = called;
    must_be_json(headers)?;
    let mut memory = BodyMemory::new(gateway, settings, caller);
    let body = tokio::time::timeout(
        BODY_DEADLINE,
        read(settings, headers, incoming, &mut memory),
    )
    .await
    .map_err(|_elapsed| Refusal::BodyTimeout)??;
    account.request_bytes = body.len() as u64;
    let judged = judge((gateway, settings), caller, endpoint, &body, account)?;
    account.body = Some(memory);
    Ok(judged)
}

fn judge(
    (gateway, settings): (&Gateway, &Settings),
    caller: &Caller,
    endpoint: openai::Endpoint,
    body: &[u8],
    account: &mut Account,
) -> Result<Judged, Refusal> {
    let policy = &caller.policy;
    let request = openai::Request::read(endpoint, body).map_err(fault)?;
    let model = find_model(settings, policy, request.model())?;
    account.model = Some(Arc::from(model.name.as_str()));
    account.stream = request.stream();
    request.check_caps(&caps(policy, &model)).map_err(fault)?;
    let answers = request.choices().saturating_mul(request.prompts());
    if answers > policy.max_choices {
        return Err(Refusal::Body {
            message: format!(
                "The request asks for {answers} answers (choices times prompts); your key allows {}.",
                policy.max_choices
            ),
            param: Some(if request.prompts() > 1 { "prompt" } else { "n" }.to_owned()),
            code: Some("invalid_value"),
        });
    }
    let mut plan = caller.plan(gateway, settings, Some(&model));
    let input = request.input_bound();
    let cap = output_cap(&request, (policy, &model), &plan, (input, answers))?;
    let bound = Tokens {
        input,
        output: cap.saturating_mul(answers),
    };
    plan.ask(&Amounts::of(bound.input, bound.output, &model.price));
    if let Some(denied) = plan.never() {
        return Err(Refusal::Limit(denied));
    }
    let forward = openai::Forward {
        dialect: model.dialect,
        unknown: model.unknown_fields,
        model: &model.upstream_name,
        max_output: cap,
    };
    let forwarded = request.forward(&forward).map_err(fault)?;
    account.dropped = forwarded.dropped;
    account.answers = u32::try_from(answers).unwrap_or(u32::MAX);
    Ok(Judged {
        endpoint,
        body: Bytes::from(forwarded.body),
        stream: request.stream(),
        include_usage: request.include_usage(),
        bound,
        plan,
        model,
    })
}

/// Output tokens of each answer: the least of what the caller, the role and the model say, and of what the size of
/// every limit has room for. Never by what is left of a limit now: that would cut answers at random.
fn output_cap(
    request: &openai::Request<'_>,
    (policy, model): (&Policy, &Model),
    plan: &Plan,
    (input, answers): (u64, u64),
) -> Result<u64, Refusal> {
    let asked = request.output_cap();
    let room = plan.room(input, answers, &model.price);
    let most = policy
        .max_output_tokens
        .min(model.max_output_tokens.unwrap_or(u64::MAX))
        .min(room);
    match asked {
        Some(asked) if asked > most && policy.refuse_long && room > 0 => Err(Refusal::Body {
            message: format!(
                "The request asks for answers of {asked} tokens; at most {most} are allowed."
            ),
            param: Some(request.output_member().to_owned()),
            code: Some("invalid_value"),
        }),
        // Without room for one token a limit is exceeded, which the plan says better.
        asked => Ok(most.min(asked.unwrap_or(u64::MAX)).max(1)),
    }
}

fn caps(policy: &Policy, model: &Model) -> openai::Caps {
    let own = policy.caps.narrowest(model.caps);
    let built_in = openai::Caps::default();
    let least = |own: Option<u64>, built_in: u64| own.map_or(built_in, |own| own.min(built_in));
    openai::Caps {
        choices: built_in.choices.max(policy.max_choices),
        messages: least(own.messages, built_in.messages),
        tools: least(own.tools, built_in.tools),
        stop: built_in.stop,
        prompts: least(own.prompts, built_in.prompts),
        logprobs: least(own.logprobs, built_in.logprobs),
        images: least(own.images, built_in.images),
    }
}

/// The model of this name or alias, if the role may call it: aliases are judged by what they stand for.
pub(crate) fn find_model(
    settings: &Settings,
    policy: &Policy,
    name: &str,
) -> Result<Arc<Model>, Refusal> {
    let refused = |known| Refusal::Model {
        name: name.to_owned(),
        known,
    };
    let by_alias = || {
        settings
            .models
            .values()
            .find(|m| m.aliases.iter().any(|alias| alias == name))
    };
    let model = settings
        .models
        .get(name)
        .or_else(by_alias)
        .ok_or_else(|| refused(false))?;
    if policy.models.allow(&model.name) {
        Ok(Arc::clone(model))
    } else {
        Err(refused(true))
    }
}

fn must_be_json(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let essence = |value: &http::HeaderValue| {
        let text = value.as_bytes();
        let end = memchr::memchr(b';', text).unwrap_or(text.len());
        text.get(..end)
            .unwrap_or_default()
            .trim_ascii()
            .eq_ignore_ascii_case(b"application/json")
    };
    if !types.next().is_some_and(essence) || types.next().is_some() {
        return Err(Refusal::NotJson(
            "Send the body as `Content-Type: application/json`.",
        ));
    }
    let plain = |value: &http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .any(|value| !plain(value))
    {
        return Err(Refusal::NotJson("Send the body without Content-Encoding."));
    }
    Ok(())
}

/// Reads at most `max_body` bytes; what is announced as larger isn't asked for, so no `100 Continue` goes out.
async fn read(
    settings: &Settings,
    headers: &HeaderMap,
    incoming: &mut Incoming,
    memory: &mut BodyMemory,
) -> Result<Bytes, Refusal> {
    let limit = settings.max_body;
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(Refusal::BodyTooLarge { limit });
    }
    // What is announced isn't there yet: memory is taken, and counted, as it comes.
    let first = announced.unwrap_or(0).min(FIRST_BODY);
    let mut body = BytesMut::with_capacity(usize::try_from(first).unwrap_or(0));
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|_broken| Refusal::Framing("The request's body broke off."))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let after = (body.len() as u64).saturating_add(data.len() as u64);
        if after > limit {
            return Err(Refusal::BodyTooLarge { limit });
        }
        memory.grow(after.saturating_sub(memory.bytes))?;
        body.extend_from_slice(&data);
    }
    Ok(body.freeze())
}

/// A body's part of the memory that bodies may take: of the node's, and of the caller's quarter. Held as long as
/// the call runs, since the rebuilt body is about as large; given back on drop.
pub(crate) struct BodyMemory {
    gateway: Arc<Gateway>,
    own: BodyShare,
    bytes: u64,
    budget: u64,
}

impl BodyMemory {
    fn new(gateway: &Arc<Gateway>, settings: &Settings, caller: &Caller) -> Self {
        Self {
            gateway: Arc::clone(gateway),
            own: gateway.meters.body_share(caller.id()),
            bytes: 0,
            budget: settings.body_budget,
        }
    }

    fn grow(&mut self, more: u64) -> Result<(), Refusal> {
        if more == 0 {
            return Ok(());
        }
        let node = self
            .gateway
            .bodies
            .fetch_add(more, Ordering::Relaxed)
            .saturating_add(more);
        self.bytes = self.bytes.saturating_add(more);
        let own = self.own.grow(more, self.budget / 4);
        if node > self.budget || !own {
            Err(Refusal::BodyBudget)
        } else {
            Ok(())
        }
    }
}

impl Drop for BodyMemory {
    fn drop(&mut self) {
        self.gateway.bodies.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

fn fault(fault: openai::BodyFault) -> Refusal {
    Refusal::Body {
        message: fault.message,
        param: fault.param,
        code: fault.code,
    }
}
