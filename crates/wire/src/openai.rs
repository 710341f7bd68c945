//! The `OpenAI` dialect of chat and text completions: reading a caller's body, what it may cost at most, what goes
//! out to an upstream of which kind, and reading the upstream's answer. One table (`openai/members.rs`) drives
//! reading and writing. It decides form only: who may call, how much and where to is the gateway's business.

mod answers;
mod bound;
mod members;
mod walk;
#[cfg(test)]
mod tests;

pub use answers::{
    Chunk, Event, UpstreamError, Usage, error_body, is_done, read_answer, read_chunk, read_event,
    rewrite, rewrite_chunk,
};

use crate::json::{self, Document, Kind, Limits, Value};
use bound::as_u64;
use serde::{Deserialize, Serialize};
use std::fmt;
use walk::{Aim, Tally, Walk};

/// Tokens that a template adds to a prompt, at most.
const CALL: u64 = 16;
/// Tokens that a template adds to a message, at most.
const MESSAGE: u64 = 8;
/// Tokens that a template adds to a tool, at most.
const TOOL: u64 = 64;
/// Tokens taken for an image by [`Request::input_bound`]; use [`Request::images`] to count otherwise.
pub const IMAGE: u64 = 4096;

/// The endpoints whose bodies are read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `POST /v1/chat/completions`
    ChatCompletions,
    /// `POST /v1/completions`
    Completions,
}

/// The kind of server an upstream is: which members it knows beyond the common ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// Our own engine.
    Guan,
    /// vLLM.
    Vllm,
    /// `SGLang`.
    Sglang,
    /// `llama-server`.
    LlamaServer,
    /// The `OpenAI` API and everything that isn't named here.
    #[default]
    #[serde(rename = "openai")]
    OpenAi,
}

/// What happens to members that the upstream's dialect doesn't have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownFields {
    /// They are left out and named in a header.
    #[default]
    Drop,
    /// The call is refused.
    Refuse,
    /// They go out as written, but for those that break accounting or walls.
    Forward,
}

/// Most of each thing that a body may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Caps {
    /// Answers to one prompt (`n`, `best_of`).
    pub choices: u64,
    /// Messages of a chat.
    pub messages: u64,
    /// Tools and functions together.
    pub tools: u64,
    /// Stop strings.
    pub stop: u64,
    /// Prompts of a completion.
    pub prompts: u64,
    /// Alternatives reported for each token.
    pub logprobs: u64,
    /// Images.
    pub images: u64,
}

impl Default for Caps {
    fn default() -> Self {
        Self {
            choices: 8,
            messages: 2048,
            tools: 128,
            stop: 16,
            prompts: 64,
            logprobs: 20,
            images: 32,
        }
    }
}

/// Why a body is refused: always a 400 of type `invalid_request_error`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyFault {
    /// A sentence for the caller.
    pub message: String,
    /// The member at fault, such as `messages[0].content`.
    pub param: Option<String>,
    /// The API's word for it.
    pub code: Option<&'static str>,
}

impl fmt::Display for BodyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for BodyFault {}

impl From<json::Fault> for BodyFault {
    fn from(fault: json::Fault) -> Self {
        Self {
            message: fault.to_string(),
            param: None,
            code: None,
        }
    }
}

/// Where a body goes and what changes on the way.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'f> {
    /// The upstream's kind.
    pub dialect: Dialect,
    /// What to do with members that it doesn't have.
    pub unknown: UnknownFields,
    /// The name that the upstream knows the model by.
    pub model: &'f str,
    /// Most output tokens of one choice.
    pub max_output: u64,
}

/// A body for the upstream.
#[derive(Clone, PartialEq, Eq)]
pub struct Forwarded {
    /// JSON.
    pub body: Vec<u8>,
    /// Members left out, such as `messages[].foo`: visible ASCII without commas, each once, at most 32.
    pub dropped: Vec<String>,
}

// What people wrote stays out of Debug.
impl fmt::Debug for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Forwarded({} bytes, dropped {:?})",
            self.body.len(),
            self.dropped
        )
    }
}

/// A body that passed: strict JSON, every common member of its right type.
pub struct Request<'a> {
    doc: Document<'a>,
    endpoint: Endpoint,
    model: String,
    tally: Tally,
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Request({:?}, {:?})", self.endpoint, self.doc)
    }
}

impl<'a> Request<'a> {
    /// Reads a body strictly.
    ///
    /// # Errors
    /// A [`BodyFault`] for anything that isn't one unambiguous JSON object whose known members have the right
    /// types. Members that only some dialects know are judged by [`check_members`](Self::check_members) and
    /// [`forward`](Self::forward).
    pub fn read(endpoint: Endpoint, body: &'a [u8]) -> Result<Self, BodyFault> {
        let doc = json::parse(body, Limits::default())?;
        let tally = Walk::judge(endpoint, doc.root())?;
        let model = doc
            .root()
            .get("model")
            .and_then(|model| model.as_str())
            .unwrap_or_default()
            .into_owned();
        Ok(Self {
            doc,
            endpoint,
            model,
            tally,
        })
    }

    /// The endpoint it was read for.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// The whole document, for whoever screens it.
    #[must_use]
    pub fn document(&self) -> &Document<'a> {
        &self.doc
    }

    /// The public model name.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Whether the caller wants a stream.
    #[must_use]
    pub fn stream(&self) -> bool {
        is_set(self.member("stream"))
    }

    /// Whether the caller asked for the usage chunk of a stream.
    #[must_use]
    pub fn include_usage(&self) -> bool {
        self.stream()
            && is_set(
                self.member("stream_options")
                    .and_then(|o| o.get("include_usage")),
            )
    }

    /// The smaller of the output caps that the caller wrote; in tokens of one choice.
    #[must_use]
    pub fn output_cap(&self) -> Option<u64> {
        let modern = match self.endpoint {
            Endpoint::ChatCompletions => self.number("max_completion_tokens"),
            Endpoint::Completions => None,
        };
        self.number("max_tokens").into_iter().chain(modern).min()
    }

    /// The member that holds the smaller one.
    #[must_use]
    pub fn output_member(&self) -> &'static str {
        let modern = self.number("max_completion_tokens");
        match self.number("max_tokens") {
            Some(old) if modern.is_none_or(|modern| old <= modern) => "max_tokens",
            _ if self.endpoint == Endpoint::ChatCompletions => "max_completion_tokens",
            _ => "max_tokens",
        }
    }

    /// Answers generated to each prompt.
    #[must_use]
    pub fn choices(&self) -> u64 {
        let best_of = match self.endpoint {
            Endpoint::ChatCompletions => None,
            Endpoint::Completions => self.number("best_of"),
        };
        self.number("n")
            .into_iter()
            .chain(best_of)
            .max()
            .unwrap_or(1)
    }

    /// Prompts in this body: 1 for a chat.
    #[must_use]
    pub fn prompts(&self) -> u64 {
        let prompt = match self.endpoint {
            Endpoint::ChatCompletions => None,
            Endpoint::Completions => self.member("prompt"),
        };
        match prompt.and_then(|prompt| {
            prompt
                .elements()
                .next()
                .map(|first| (first.kind(), prompt.len()))
        }) {
            Some((Kind::String | Kind::Array, count)) => as_u64(count),
            _ => 1,
        }
    }

    /// Images in this body.
    #[must_use]
    pub fn images(&self) -> u64 {
        self.tally.images
    }

    /// Refuses a body that asks for more of something than `caps`.
    ///
    /// # Errors
    /// A [`BodyFault`] that names the member.
    pub fn check_caps(&self, caps: &Caps) -> Result<(), BodyFault> {
        let chat = self.endpoint == Endpoint::ChatCompletions;
        let count = |name| self.member(name).map_or(0, |list| as_u64(list.len()));
        let asked = |name| self.number(name).unwrap_or(0);
        let tools = count("tools").saturating_add(count("functions"));
        let tools_name = if count("tools") > 0 {
            "tools"
        } else {
            "functions"
        };
        for (applies, name, value, most) in [
            (true, "n", asked("n"), caps.choices),
            (!chat, "best_of", asked("best_of"), caps.choices),
            (chat, "messages", count("messages"), caps.messages),
            (chat, tools_name, tools, caps.tools),
            (true, "stop", count("stop"), caps.stop),
            (!chat, "prompt", self.prompts(), caps.prompts),
            (!chat, "logprobs", asked("logprobs"), caps.logprobs),
            (chat, "top_logprobs", asked("top_logprobs"), caps.logprobs),
            (chat, "messages", self.images(), caps.images),
        ] {
            if applies && value > most {
                return Err(BodyFault {
                    message: format!("'{name}' asks for {value}; at most {most} are allowed."),
                    param: Some(name.to_owned()),
                    code: Some("invalid_value"),
                });
            }
        }
        match (asked("best_of"), asked("n")) {
            (best_of @ 1.., n) if !chat && best_of < n => Err(BodyFault {
                message: "'best_of' must be at least 'n'.".to_owned(),
                param: Some("best_of".to_owned()),
                code: Some("invalid_value"),
            }),
            _ => Ok(()),
        }
    }

    /// Upper bound of the tokens in all prompts: bytes of the text, thrice where it isn't NFC, each token id as
    /// one, [`IMAGE`] an image, and constants for what the template adds. Members that may turn out to be
    /// dropped count too.
    #[must_use]
    pub fn input_bound(&self) -> u64 {
        let chat = self.endpoint == Endpoint::ChatCompletions;
        let count = |name| {
            self.member(name)
                .filter(|_| chat)
                .map_or(0, |list| as_u64(list.len()))
        };
        let tools = count("tools").saturating_add(count("functions"));
        [
            self.prompts().saturating_mul(CALL),
            count("messages").saturating_mul(MESSAGE),
            tools.saturating_mul(TOOL),
            self.images().saturating_mul(IMAGE),
        ]
        .into_iter()
        .fold(self.tally.text, u64::saturating_add)
    }

    /// Judges the members of one dialect without writing anything, so that a call can be refused before it is
    /// counted.
    ///
    /// # Errors
    /// What [`forward`](Self::forward) would say.
    pub fn check_members(&self, dialect: Dialect, unknown: UnknownFields) -> Result<(), BodyFault> {
        let aim = Aim {
            dialect,
            unknown,
            model: "",
            max_output: 1,
            stream: self.stream(),
        };
        Walk::forward(self.endpoint, self.doc.root(), aim, false).map(drop)
    }

    /// Writes the body for an upstream: the accepted members as they were, with the changes of `to`.
    ///
    /// # Errors
    /// A member that only this dialect has is of the wrong type, or an unknown one is refused.
    pub fn forward(&self, to: &Forward<'_>) -> Result<Forwarded, BodyFault> {
        let aim = Aim {
            dialect: to.dialect,
            unknown: to.unknown,
            model: to.model,
            max_output: to.max_output,
            stream: self.stream(),
        };
        let walk = Walk::forward(self.endpoint, self.doc.root(), aim, true)?;
        Ok(Forwarded {
            body: walk.out,
            dropped: walk.dropped,
        })
    }

    fn member(&self, name: &str) -> Option<Value<'_>> {
        self.doc.root().get(name)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.member(name)
            .and_then(|value| value.as_integer())
            .and_then(|number| u64::try_from(number).ok())
    }
}

fn is_set(value: Option<Value<'_>>) -> bool {
    value.and_then(|value| value.as_bool()).unwrap_or(false)
}
