//! What answers look like and what decides their text.

use std::collections::HashSet;
use std::thread;

use serde_json::{Value, json};

use crate::worker::Worker;

/// Prompts after which the small model is sure how to go on. Among near equals a batch of another
/// size may round the other way: llama.cpp multiplies one row and many rows by different kernels,
/// which moves log-probabilities of this model by up to 0.2.
const SURE: &[&str] = &[
    "1, 2, 3, 4, 5, 6, 7, 8,",
    "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, Monday, Tuesday,",
    "a b c d e f g h",
    "one two three four one two three four one two three four one two",
];

fn content(events: &[String]) -> String {
    let texts = events.iter().filter_map(|event| {
        let event: Value = serde_json::from_str(event).ok()?;
        let choice = event["choices"].get(0)?;
        let text = choice["delta"]["content"]
            .as_str()
            .or(choice["text"].as_str())?;
        Some(text.to_owned())
    });
    texts.collect()
}

#[test]
fn chat_answers_whole_and_streamed_are_the_same() {
    let worker = Worker::start(&[]);
    let mut body = json!({
        "model": "any", "temperature": 0, "max_tokens": 24,
        "messages": [{"role": "user", "content": "Name three colours."}],
    });
    let (status, whole) = worker.post("/v1/chat/completions", &body);
    assert_eq!(status, 200, "{whole}");
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["model"], "any");
    assert_eq!(whole["choices"][0]["message"]["role"], "assistant");
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let events = worker.stream("/v1/chat/completions", &body);
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(!text.trim().is_empty());
    assert_eq!(content(&events), text);
    let first: Value = serde_json::from_str(&events[0]).unwrap();
    assert_eq!(first["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(first["usage"], Value::Null);
    assert!(first.as_object().unwrap().contains_key("usage"));
    let usage: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"], whole["usage"]);
    let last: Value = serde_json::from_str(&events[events.len() - 3]).unwrap();
    assert_eq!(
        last["choices"][0]["finish_reason"],
        whole["choices"][0]["finish_reason"]
    );
    body["stream_options"] = Value::Null;
    let events = worker.stream("/v1/chat/completions", &body);
    assert!(
        events.iter().all(|event| !event.contains("\"usage\"")),
        "usage only if asked for"
    );
}

#[test]
fn sequences_in_a_batch_answer_as_alone() {
    let worker = Worker::start(&[]);
    let text = |worker: &Worker, prompt| worker.text(prompt, json!({"max_tokens": 12}));
    let alone: Vec<String> = SURE.iter().map(|prompt| text(&worker, prompt)).collect();
    thread::scope(|scope| {
        for (prompt, alone) in SURE.iter().zip(&alone).cycle().take(12) {
            let worker = &worker;
            scope.spawn(move || assert_eq!(&text(worker, prompt), alone));
        }
    });
    worker.wait_for("active", 0);
}

#[test]
fn n_choices_are_counted_and_differ_by_seed() {
    let worker = Worker::start(&["--parallel", "2"]);
    let more = json!({"n": 5, "temperature": 1, "seed": 7, "max_tokens": 12});
    let first = worker.complete("Once upon a time", more);
    let texts = |answer: &Value| -> Vec<String> {
        let choices = answer["choices"].as_array().unwrap().iter();
        choices
            .map(|choice| choice["text"].as_str().unwrap().to_owned())
            .collect()
    };
    let all = texts(&first);
    assert_eq!(all.len(), 5);
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), 5, "{all:?}");
    let alone = worker.complete("Once upon a time", json!({"max_tokens": 12}));
    assert_eq!(
        first["usage"]["prompt_tokens"],
        alone["usage"]["prompt_tokens"]
    );
    assert_eq!(first["usage"]["completion_tokens"], 60);
    let greedy = worker.complete(SURE[0], json!({"n": 3}));
    assert_eq!(texts(&greedy).iter().collect::<HashSet<_>>().len(), 1);
}

#[test]
fn a_seed_repeats_the_answer() {
    let worker = Worker::start(&[]);
    let with = |seed: u64| worker.text("Once upon a time", json!({"temperature": 1, "seed": seed}));
    assert_eq!(with(5), with(5));
    assert_ne!(with(5), with(6));
}

#[test]
fn a40_stop_strings_cut_the_text_and_leak_nothing() {
    let worker = Worker::start(&[]);
    let full = worker.text(SURE[0], json!({}));
    // begins in the middle of one token and ends in the middle of another
    let middle = full.chars().count() / 2;
    let stop: String = full.chars().skip(middle).take(4).collect();
    let expected = full.split(&stop).next().unwrap();
    let cut = worker.complete(SURE[0], json!({"stop": [stop]}));
    assert_eq!(cut["choices"][0]["text"], expected);
    assert_eq!(cut["choices"][0]["finish_reason"], "stop");
    let body = json!({
        "prompt": SURE[0], "temperature": 0, "max_tokens": 24, "stop": stop, "stream": true,
    });
    assert_eq!(content(&worker.stream("/v1/completions", &body)), expected);
    let limited = worker.complete(SURE[0], json!({"max_tokens": 3}));
    assert_eq!(limited["choices"][0]["finish_reason"], "length");
    assert_eq!(limited["usage"]["completion_tokens"], 3);
}

#[test]
fn a40_wide_characters_arrive_whole() {
    let worker = Worker::start(&[]);
    let prompt = "🍋 🍊 🥝 🦩 🍋 🍊 🥝 🦩 🍋 🍊 🥝 🦩 🍋 🍊";
    let whole = worker.text(prompt, json!({"max_tokens": 16}));
    let body = json!({"prompt": prompt, "temperature": 0, "max_tokens": 16, "stream": true});
    assert_eq!(content(&worker.stream("/v1/completions", &body)), whole);
    assert!(whole.contains('🥝'), "{whole}");
}

#[test]
fn logprobs_name_the_tokens_of_the_text() {
    let worker = Worker::start(&[]);
    let body = json!({
        "temperature": 0, "max_tokens": 6, "logprobs": true, "top_logprobs": 3,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    });
    let (status, answer) = worker.post("/v1/chat/completions", &body);
    assert_eq!(status, 200, "{answer}");
    let choice = &answer["choices"][0];
    let tokens = choice["logprobs"]["content"].as_array().unwrap();
    let text: String = tokens
        .iter()
        .map(|token| token["token"].as_str().unwrap())
        .collect();
    assert_eq!(choice["message"]["content"], text);
    for token in tokens {
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 3);
        assert_eq!(token["top_logprobs"][0]["logprob"], token["logprob"]);
    }
}

#[test]
fn prompts_may_be_lists_and_token_ids() {
    let worker = Worker::start(&[]);
    let (status, tokenised) = worker.post("/tokenize", &json!({"content": SURE[1]}));
    assert_eq!(status, 200);
    let tokens = tokenised["tokens"].clone();
    assert_eq!(tokenised["count"], tokens.as_array().unwrap().len());
    let alone = worker.text(SURE[1], json!({}));
    for prompt in [json!(tokens), json!([tokens]), json!([SURE[1]])] {
        let body = json!({"prompt": prompt, "temperature": 0, "max_tokens": 24});
        let (status, answer) = worker.post("/v1/completions", &body);
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["choices"][0]["text"], alone);
    }
    let both = json!({"prompt": [SURE[0], SURE[1]], "temperature": 0, "max_tokens": 24});
    let (_, answer) = worker.post("/v1/completions", &both);
    assert_eq!(answer["choices"][1]["text"], alone);
    assert_eq!(answer["choices"][1]["index"], 1);
}

#[test]
fn refusals_have_openais_shape() {
    let worker = Worker::start(&["--context", "128"]);
    let long = json!({"messages": [{"role": "user", "content": "word ".repeat(200)}]});
    let (status, answer) = worker.post("/v1/chat/completions", &long);
    assert_eq!(status, 400);
    assert_eq!(answer["error"]["code"], "context_length_exceeded");
    assert_eq!(answer["error"]["param"], "messages");
    assert_eq!(answer["error"]["type"], "invalid_request_error");
    let unknown = json!({"prompt": [4_000_000_000_u32]});
    let (status, answer) = worker.post("/v1/completions", &unknown);
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("prompt")));
    for (method, path, body, expected) in [
        ("POST", "/v1/chat/completions", "{", 400),
        ("POST", "/v1/completions", "{\"prompt\": 5}", 400),
        ("GET", "/v1/embeddings", "", 404),
        ("GET", "/v1/completions", "", 405),
        ("POST", "/health", "", 405),
    ] {
        let (status, answer) = worker.send(method, path, body);
        assert_eq!(status, expected, "{method} {path}");
        assert!(answer["error"]["message"].is_string());
    }
    // the end of the context is a limit like any other
    let (_, answer) = worker.post(
        "/v1/completions",
        &json!({
            "prompt": SURE[0], "temperature": 0, "logit_bias": {"1": -100, "106": -100},
        }),
    );
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["total_tokens"], 128);
}

#[test]
fn models_and_stream_headers() {
    let worker = Worker::start(&[]);
    let (status, models) = worker.send("GET", "/v1/models", "");
    assert_eq!(status, 200);
    assert_eq!(models["data"][0]["id"], "tested");
    assert_eq!(models["data"][0]["object"], "model");
    let body = json!({"prompt": "a", "max_tokens": 1, "stream": true}).to_string();
    let mut answer = worker.open("POST", "/v1/completions", &body);
    for header in [
        "content-type: text/event-stream; charset=utf-8",
        "cache-control: no-cache",
    ] {
        assert!(answer.head.contains(header), "{}", answer.head);
    }
    answer.rest();
}
