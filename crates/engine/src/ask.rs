//! What a client asks for: turns a JSON body into an [`Ask`], every value of the right type and in
//! its range, or a refusal that names the member. Members it doesn't know are ignored: the gateway
//! before this engine judges those. Pure. Called by `serve`.

use serde_json::{Map, Value};

use crate::generate::sample::Sampling;
use crate::refuse::Refusal;

mod messages;

/// Choices of one request, all prompts together.
const MOST_CHOICES: usize = 16;

/// Which of the two answers is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Completion,
}

/// One request for generated text.
#[derive(Debug, PartialEq)]
pub(crate) struct Ask {
    pub(crate) kind: Kind,
    pub(crate) model: Option<String>,
    pub(crate) input: Input,
    pub(crate) max_tokens: Option<u32>,
    /// Without a seed of the client's; see `seed`.
    pub(crate) sampling: Sampling,
    pub(crate) seed: Option<u64>,
    pub(crate) stops: Vec<String>,
    /// Choices per prompt.
    pub(crate) n: usize,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
}

/// What the answer follows.
#[derive(Debug, PartialEq)]
pub(crate) enum Input {
    Chat(Conversation),
    Prompts(Vec<Prompt>),
}

/// What a chat template gets.
#[derive(Debug, PartialEq)]
pub(crate) struct Conversation {
    pub(crate) messages: Vec<Value>,
    pub(crate) tools: Option<Value>,
    /// `chat_template_kwargs`, for templates with switches such as `enable_thinking`.
    pub(crate) settings: Option<Value>,
}

/// One prompt of `/v1/completions`.
#[derive(Debug, PartialEq)]
pub(crate) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// Parses the body of a generation.
///
/// # Errors
/// A [`Refusal`] with status 400 that names the member.
pub(crate) fn parse(kind: Kind, body: &[u8]) -> Result<Ask, Refusal> {
    let body = object(body)?;
    let members = Members(&body);
    refuse_unsupported(kind, members)?;
    let input = match kind {
        Kind::Chat => Input::Chat(conversation(members)?),
        Kind::Completion => Input::Prompts(prompts(members)?),
    };
    let n = members
        .whole("n", 1, MOST_CHOICES as u64)?
        .map_or(1, to_usize);
    if let Input::Prompts(prompts) = &input
        && prompts.len().saturating_mul(n) > MOST_CHOICES
    {
        let message = format!("prompts times n may be at most {MOST_CHOICES}; send fewer");
        return Err(Refusal::invalid("prompt".to_owned(), message));
    }
    let limits = [
        members.whole("max_tokens", 1, u64::from(u32::MAX))?,
        members.whole("max_completion_tokens", 1, u64::from(u32::MAX))?,
    ];
    let stream = members.boolean("stream")?.unwrap_or(false);
    Ok(Ask {
        kind,
        model: members
            .text("model")?
            .map(|name| name.chars().take(256).collect()),
        input,
        max_tokens: limits
            .into_iter()
            .flatten()
            .min()
            .and_then(|n| u32::try_from(n).ok()),
        sampling: sampling(kind, members)?,
        seed: members.signed("seed")?.map(i64::cast_unsigned),
        stops: stops(members)?,
        n,
        stream,
        include_usage: include_usage(members, stream)?,
    })
}

/// Parses the body of `/tokenize`: `{"content": text}` or a conversation.
///
/// # Errors
/// A [`Refusal`] with status 400 that names the member.
pub(crate) fn parse_tokenise(body: &[u8]) -> Result<Input, Refusal> {
    let body = object(body)?;
    let members = Members(&body);
    if members.get("messages").is_some() {
        return Ok(Input::Chat(conversation(members)?));
    }
    match members.text("content")? {
        Some(text) => Ok(Input::Prompts(vec![Prompt::Text(text.to_owned())])),
        None => Err(Refusal::invalid(
            "content".to_owned(),
            "send content (a text) or messages",
        )),
    }
}

fn object(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err(Refusal::invalid(None, "the body must be a JSON object")),
        Err(error) => Err(Refusal::invalid(
            None,
            format!("the body is not JSON: {error}"),
        )),
    }
}

/// Members with a meaning that this engine would break by ignoring them.
fn refuse_unsupported(kind: Kind, members: Members<'_>) -> Result<(), Refusal> {
    let unsupported = |name: &str, what: &str| {
        Err(Refusal::invalid(
            name.to_owned(),
            format!("this engine can't do {what}; leave it out"),
        ))
    };
    if let Some(format) = members.get("response_format")
        && format.get("type").and_then(Value::as_str) != Some("text")
    {
        return unsupported("response_format", "a response_format other than text");
    }
    match members.get("tool_choice") {
        None => {}
        Some(Value::String(choice)) if choice == "auto" || choice == "none" => {}
        Some(_) => return unsupported("tool_choice", "a tool_choice other than auto or none"),
    }
    if kind == Kind::Completion {
        if members.boolean("echo")? == Some(true) {
            return unsupported("echo", "echo");
        }
        if members
            .text("suffix")?
            .is_some_and(|suffix| !suffix.is_empty())
        {
            return unsupported("suffix", "a suffix");
        }
        let (n, best_of) = (
            members.whole("n", 1, 128)?,
            members.whole("best_of", 1, 128)?,
        );
        if best_of.is_some_and(|best_of| best_of > n.unwrap_or(1)) {
            return unsupported("best_of", "a best_of larger than n");
        }
        if members.get("logprobs").is_some() {
            return unsupported("logprobs", "logprobs on completions");
        }
    }
    Ok(())
}

fn conversation(members: Members<'_>) -> Result<Conversation, Refusal> {
    let messages = members
        .get("messages")
        .ok_or_else(|| wrong("messages", "a list of messages is required"))?;
    let withheld = members.get("tool_choice").and_then(Value::as_str) == Some("none");
    let tools = match members.get("tools") {
        None => None,
        Some(Value::Array(tools)) if tools.iter().all(Value::is_object) => {
            (!tools.is_empty() && !withheld).then(|| Value::Array(tools.clone()))
        }
        Some(_) => return Err(wrong("tools", "must be a list of objects")),
    };
    let settings = match members.get("chat_template_kwargs") {
        None => None,
        Some(settings @ Value::Object(_)) => Some(settings.clone()),
        Some(_) => return Err(wrong("chat_template_kwargs", "must be an object")),
    };
    Ok(Conversation {
        messages: messages::normalise(messages)?,
        tools,
        settings,
    })
}

fn prompts(members: Members<'_>) -> Result<Vec<Prompt>, Refusal> {
    let prompt = members
        .get("prompt")
        .ok_or_else(|| wrong("prompt", "a prompt is required"))?;
    let unfit = || {
        wrong(
            "prompt",
            "must be a text, a list of texts, a list of token ids, or a list of those",
        )
    };
    let tokens = |list: &[Value]| {
        let ids = list
            .iter()
            .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()));
        ids.collect::<Option<Vec<u32>>>()
            .map(Prompt::Tokens)
            .ok_or_else(unfit)
    };
    let prompts = match prompt {
        Value::String(text) => vec![Prompt::Text(text.clone())],
        Value::Array(list) => match list.first() {
            Some(Value::Number(_)) => vec![tokens(list)?],
            _ => list
                .iter()
                .map(|one| match one {
                    Value::String(text) => Ok(Prompt::Text(text.clone())),
                    Value::Array(ids) => tokens(ids),
                    _ => Err(unfit()),
                })
                .collect::<Result<_, _>>()?,
        },
        _ => return Err(unfit()),
    };
    if prompts.is_empty() {
        return Err(wrong("prompt", "must not be an empty list"));
    }
    Ok(prompts)
}

fn sampling(kind: Kind, members: Members<'_>) -> Result<Sampling, Refusal> {
    let usual = Sampling::default();
    let number = |name, low, high, usual| Ok(members.number(name, low, high)?.unwrap_or(usual));
    Ok(Sampling {
        temperature: number("temperature", 0.0, 2.0, usual.temperature)?,
        top_p: number("top_p", 0.0, 1.0, usual.top_p)?,
        // -1 means all, as vLLM has it
        top_k: match members.signed("top_k")? {
            None | Some(-1) => 0,
            Some(k) => usize::try_from(k)
                .map_err(|_negative| wrong("top_k", "must be -1, 0 or a positive number"))?,
        },
        min_p: number("min_p", 0.0, 1.0, usual.min_p)?,
        frequency_penalty: number("frequency_penalty", -2.0, 2.0, usual.frequency_penalty)?,
        presence_penalty: number("presence_penalty", -2.0, 2.0, usual.presence_penalty)?,
        repetition_penalty: number("repetition_penalty", 0.01, 10.0, usual.repetition_penalty)?,
        seed: 0,
        bias: bias(members)?,
        top_logprobs: if kind == Kind::Chat {
            logprobs(members)?
        } else {
            None
        },
    })
}

fn bias(members: Members<'_>) -> Result<Vec<(usize, f32)>, Refusal> {
    let unfit = || {
        wrong(
            "logit_bias",
            "must be an object of token ids with numbers from -100 to 100",
        )
    };
    match members.get("logit_bias") {
        None => Ok(Vec::new()),
        Some(Value::Object(all)) => all
            .iter()
            .map(|(id, value)| {
                let id = id.parse::<usize>().ok().ok_or_else(unfit)?;
                let value = value.as_f64().filter(|x| (-100.0..=100.0).contains(x));
                Ok((id, narrow(value.ok_or_else(unfit)?)))
            })
            .collect(),
        Some(_) => Err(unfit()),
    }
}

fn logprobs(members: Members<'_>) -> Result<Option<usize>, Refusal> {
    let wanted = members.boolean("logprobs")?.unwrap_or(false);
    let top = members.whole("top_logprobs", 0, 20)?.map(to_usize);
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(wrong("top_logprobs", "needs logprobs to be true")),
    }
}

fn stops(members: Members<'_>) -> Result<Vec<String>, Refusal> {
    let unfit = || {
        wrong(
            "stop",
            "must be a text or up to 4 texts, none of them empty",
        )
    };
    let stops = match members.get("stop") {
        None => Vec::new(),
        Some(Value::String(stop)) => vec![stop.clone()],
        Some(Value::Array(list)) => list
            .iter()
            .map(|stop| stop.as_str().map(str::to_owned).ok_or_else(unfit))
            .collect::<Result<Vec<_>, _>>()?,
        Some(_) => return Err(unfit()),
    };
    let fits = |stop: &String| !stop.is_empty() && stop.len() <= 1024;
    if stops.len() > 4 || !stops.iter().all(fits) {
        Err(unfit())
    } else {
        Ok(stops)
    }
}

fn include_usage(members: Members<'_>, stream: bool) -> Result<bool, Refusal> {
    match members.get("stream_options") {
        None => Ok(false),
        Some(Value::Object(_)) if !stream => {
            Err(wrong("stream_options", "needs stream to be true"))
        }
        Some(Value::Object(options)) => {
            Ok(Members(options).boolean("include_usage")?.unwrap_or(false))
        }
        Some(_) => Err(wrong("stream_options", "must be an object")),
    }
}

/// The members of an object; `null` counts as absent, as clients send it.
#[derive(Debug, Clone, Copy)]
struct Members<'a>(&'a Map<String, Value>);

impl<'a> Members<'a> {
    fn get(self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn text(self, name: &str) -> Result<Option<&'a str>, Refusal> {
        self.get(name)
            .map(|value| value.as_str().ok_or_else(|| wrong(name, "must be a text")))
            .transpose()
    }

    fn boolean(self, name: &str) -> Result<Option<bool>, Refusal> {
        self.get(name)
            .map(|value| {
                value
                    .as_bool()
                    .ok_or_else(|| wrong(name, "must be true or false"))
            })
            .transpose()
    }

    fn whole(self, name: &str, low: u64, high: u64) -> Result<Option<u64>, Refusal> {
        self.get(name)
            .map(|value| {
                let whole = value.as_u64().filter(|n| (low..=high).contains(n));
                let must = || {
                    wrong(
                        name,
                        &format!("must be a whole number from {low} to {high}"),
                    )
                };
                whole.ok_or_else(must)
            })
            .transpose()
    }

    fn signed(self, name: &str) -> Result<Option<i64>, Refusal> {
        self.get(name)
            .map(|value| {
                value
                    .as_i64()
                    .ok_or_else(|| wrong(name, "must be a whole number"))
            })
            .transpose()
    }

    fn number(self, name: &str, low: f64, high: f64) -> Result<Option<f32>, Refusal> {
        self.get(name)
            .map(|value| {
                let number = value.as_f64().filter(|x| (low..=high).contains(x));
                let must = || wrong(name, &format!("must be a number from {low} to {high}"));
                number.map(narrow).ok_or_else(must)
            })
            .transpose()
    }
}

fn wrong(name: &str, what: &str) -> Refusal {
    Refusal::invalid(name.to_owned(), format!("{name}: {what}"))
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "sampling needs no more than an f32 holds"
)]
fn narrow(number: f64) -> f32 {
    number as f32
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
