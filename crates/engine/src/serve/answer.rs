//! The JSON of answers, whole and in chunks, chat and completion, as OpenAI's clients read it.
//! Pure; decides nothing. Used by `choices` (whole) and `stream` (chunks).

use serde_json::{Value, json};

use crate::ask::Kind;
use crate::generate::{Finish, TokenLogprob};

/// What all chunks of one answer share.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) kind: Kind,
    pub(super) id: String,
    /// Unix seconds.
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) fingerprint: String,
    pub(super) include_usage: bool,
}

/// One choice of a whole answer.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) text: String,
    pub(super) logprobs: Vec<TokenLogprob>,
    pub(super) finish: Option<Finish>,
}

impl Shape {
    /// The whole answer.
    pub(super) fn whole(&self, told: &[Told], prompt_tokens: usize, generated: u64) -> Value {
        let choices: Vec<Value> = told
            .iter()
            .enumerate()
            .map(|(at, one)| self.choice(at, one))
            .collect();
        let object = match self.kind {
            Kind::Chat => "chat.completion",
            Kind::Completion => "text_completion",
        };
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
            "usage": usage(prompt_tokens, generated),
        })
    }

    fn choice(&self, at: usize, told: &Told) -> Value {
        let finish = told.finish.map(word);
        match self.kind {
            Kind::Chat => json!({
                "index": at,
                "message": {"role": "assistant", "content": told.text, "refusal": null},
                "logprobs": logprobs(&told.logprobs),
                "finish_reason": finish,
            }),
            Kind::Completion => json!({
                "index": at,
                "text": told.text,
                "logprobs": null,
                "finish_reason": finish,
            }),
        }
    }

    /// The first chunk of a chat's choice; completions have none.
    pub(super) fn role(&self, at: usize) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": "", "refusal": null});
        (self.kind == Kind::Chat).then(|| {
            self.chunk(&json!([
                {"index": at, "delta": delta, "logprobs": null, "finish_reason": null}
            ]))
        })
    }

    /// A chunk with text.
    pub(super) fn text(&self, at: usize, text: &str, tokens: &[TokenLogprob]) -> Value {
        let logprobs = logprobs(tokens);
        self.chunk(&match self.kind {
            Kind::Chat => json!([{
                "index": at, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": null
            }]),
            Kind::Completion => {
                json!([{"index": at, "text": text, "logprobs": null, "finish_reason": null}])
            }
        })
    }

    /// The last chunk of a choice.
    pub(super) fn finish(&self, at: usize, finish: Finish) -> Value {
        let finish = word(finish);
        self.chunk(&match self.kind {
            Kind::Chat => {
                json!([{"index": at, "delta": {}, "logprobs": null, "finish_reason": finish}])
            }
            Kind::Completion => {
                json!([{"index": at, "text": "", "logprobs": null, "finish_reason": finish}])
            }
        })
    }

    /// The extra chunk for clients that asked for usage.
    pub(super) fn usage_chunk(&self, prompt_tokens: usize, generated: u64) -> Value {
        let mut chunk = self.chunk(&json!([]));
        if let Some(members) = chunk.as_object_mut() {
            members.insert("usage".to_owned(), usage(prompt_tokens, generated));
        }
        chunk
    }

    fn chunk(&self, choices: &Value) -> Value {
        let object = match self.kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Completion => "text_completion",
        };
        let mut chunk = json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        });
        if self.include_usage
            && let Some(members) = chunk.as_object_mut()
        {
            members.insert("usage".to_owned(), Value::Null);
        }
        chunk
    }
}

fn usage(prompt_tokens: usize, generated: u64) -> Value {
    let prompt = prompt_tokens as u64;
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt.saturating_add(generated),
    })
}

fn word(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

fn logprobs(tokens: &[TokenLogprob]) -> Value {
    if tokens.is_empty() {
        return Value::Null;
    }
    let entry = |bytes: &[u8], logprob: f32| json!({"token": String::from_utf8_lossy(bytes), "logprob": finite(logprob), "bytes": bytes});
    let content: Vec<Value> = tokens
        .iter()
        .map(|token| {
            let top: Vec<Value> = token
                .top
                .iter()
                .map(|(bytes, p)| entry(bytes, *p))
                .collect();
            let mut all = entry(&token.bytes, token.logprob);
            if let Some(members) = all.as_object_mut() {
                members.insert("top_logprobs".to_owned(), top.into());
            }
            all
        })
        .collect();
    json!({"content": content, "refusal": null})
}

/// JSON knows no infinity; OpenAI writes -9999 for what can't happen.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() {
        logprob
    } else {
        -9999.0
    }
}
