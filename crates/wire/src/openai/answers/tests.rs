//! What upstreams send, in the shapes that field reports show.

use super::*;

const USAGE: &str = r#""usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8}"#;

fn chunk(data: &str) -> Chunk {
    read_chunk(data.as_bytes()).unwrap_or_else(|| panic!("not read: {data}"))
}

#[test]
fn a_content_chunk() {
    let data = r#"{"id":"c","object":"chat.completion.chunk","model":"m\"x","choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"},"logprobs":null,"finish_reason":null}],"usage":null}"#;
    let read = chunk(data);
    assert!(read.text && !read.usage_only && read.finished == 0);
    assert_eq!((read.usage, read.error), (None, None));
    assert_eq!(data.get(read.model_span.unwrap()).unwrap(), r#""m\"x""#);
    assert_eq!(
        data.get(read.usage_span.unwrap()).unwrap(),
        r#","usage":null"#
    );
}

#[test]
fn text_is_whatever_a_choice_carries() {
    for (delta, text) in [
        (r#"{"content":"x"}"#, true),
        (r#"{"content":""}"#, false),
        (r#"{"content":null}"#, false),
        (r#"{"role":"assistant"}"#, false),
        ("{}", false),
        (r#"{"reasoning_content":"x"}"#, true),
        (r#"{"reasoning":"x"}"#, true),
        (r#"{"refusal":"no"}"#, true),
        (r#"{"tool_calls":[{"index":0}]}"#, true),
        (r#"{"tool_calls":[ ]}"#, false),
        (r#"{"content":[{"type":"text","text":"x"}]}"#, true),
        (r#"{"content":"","tool_calls":[],"x":"y"}"#, false),
    ] {
        for place in ["delta", "message"] {
            let data = format!(r#"{{"choices":[{{"{place}":{delta}}}]}}"#);
            assert_eq!(chunk(&data).text, text, "{data}");
        }
    }
    assert!(chunk(r#"{"choices":[{"text":"x"}]}"#).text);
    assert!(!chunk(r#"{"choices":[{"text":""}]}"#).text);
    assert!(!chunk(r#"{"choices":[null,1,"x",[]],"text":"top"}"#).text);
    assert!(chunk(r#"{"choices":[{"delta":{}},{"delta":{"content":"b"}}]}"#).text);
}

#[test]
fn finish_reasons_are_counted() {
    assert_eq!(chunk(r#"{"choices":[{"finish_reason":"stop"},{"finish_reason":null},{"finish_reason":"length"}]}"#).finished, 2);
    assert_eq!(
        chunk(r#"{"choices":[{}],"finish_reason":"stop"}"#).finished,
        0
    );
}

#[test]
fn a08_usage_only_in_every_shape() {
    for data in [
        format!(r#"{{"choices":[],{USAGE}}}"#),
        format!(r#"{{{USAGE},"choices":[]}}"#),
        format!("{{{USAGE}}}"),
        format!(r#"{{"choices":null,{USAGE}}}"#),
        format!(r#" {{ "choices" : [ ] , {USAGE} }} "#),
    ] {
        let read = chunk(&data);
        assert!(read.usage_only, "{data}");
        assert_eq!(
            read.usage,
            Some(Usage {
                prompt: 3,
                completion: 5
            })
        );
        assert!(matches!(read_event(data.as_bytes()), Event::UsageOnly(_)));
    }
    let with_choice = format!(r#"{{"choices":[{{"delta":{{}}}}],{USAGE}}}"#);
    assert!(!chunk(&with_choice).usage_only && chunk(&with_choice).usage.is_some());
    assert!(!chunk(r#"{"choices":[],"usage":null}"#).usage_only);
    assert!(!chunk(r#"{"choices":[]}"#).usage_only);
}

#[test]
fn a09_usage_is_read_as_it_stands() {
    let counts = |usage: &str| {
        chunk(&format!(r#"{{"usage":{usage}}}"#))
            .usage
            .map(|u| (u.prompt, u.completion))
    };
    assert_eq!(
        counts(
            r#"{"prompt_tokens":7,"completion_tokens":10,"prompt_tokens_details":{"cached_tokens":2}}"#
        ),
        Some((7, 10))
    );
    assert_eq!(
        counts(r#"{"prompt_tokens":7,"total_tokens":7}"#),
        Some((7, 0))
    );
    assert_eq!(
        counts(r#"{"prompt_tokens":-7,"completion_tokens":1.5}"#),
        None
    );
    assert_eq!(counts(r#"{"prompt_tokens":"7"}"#), None);
    assert_eq!(counts("{}"), None);
    assert_eq!(counts("[]"), None);
    assert_eq!(counts("7"), None);
}

#[test]
fn a04_errors_in_every_shape() {
    let error = |data: &str| {
        chunk(data)
            .error
            .unwrap_or_else(|| panic!("no error: {data}"))
    };
    let vllm = error(
        r#"{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}"#,
    );
    assert_eq!(
        (vllm.message.as_str(), vllm.status, vllm.code.as_deref()),
        ("too long", Some(400), Some("400"))
    );
    assert_eq!(
        (vllm.kind.as_deref(), vllm.param),
        (Some("BadRequestError"), None)
    );
    assert_eq!(
        error(r#"{"error":{"message":"m"},"choices":[]}"#).message,
        "m"
    );
    assert_eq!(error(r#"{"error":"plain"}"#).message, "plain");
    let old = error(r#"{"object":"error","message":"old","type":"NotFoundError","code":404}"#);
    assert_eq!((old.message.as_str(), old.status), ("old", Some(404)));
    assert_eq!(error(r#"{"detail":"Not Found"}"#).message, "Not Found");
    assert_eq!(
        error(r#"{"detail":[{"loc":["body","n"],"msg":"bad","type":"x"}]}"#).message,
        "body.n: bad"
    );
    let word = error(r#"{"error":{"message":"m","code":"model_not_found","param":"model"}}"#);
    assert_eq!(
        (word.code.as_deref(), word.param.as_deref(), word.status),
        (Some("model_not_found"), Some("model"), None)
    );
    assert_eq!(
        error(r#"{"error":{"message":"m","code":"503"}}"#).status,
        Some(503)
    );
    assert_eq!(
        error(r#"{"error":{"message":"m","code":200}}"#).status,
        None
    );
    assert_eq!(
        error(r#"{"error":{"message":"m","status":429}}"#).status,
        Some(429)
    );
    assert_eq!(error(r#"{"error":{}}"#).message, "");
    assert!(matches!(
        read_event(br#"{"error":{"message":"m"}}"#),
        Event::Error(_)
    ));
    for data in [
        r#"{"error":null,"choices":[]}"#,
        r#"{"error":false}"#,
        r#"{"object":"chat.completion"}"#,
        r#"{"choices":[{"error":{"message":"inner"}}],"detail":"x"}"#,
        r#"{"detail":null}"#,
    ] {
        assert_eq!(chunk(data).error, None, "{data}");
    }
}

#[test]
fn error_messages_are_bounded() {
    let long = "雪".repeat(5000);
    let read = chunk(&format!(
        r#"{{"error":{{"message":"{long}","type":"{long}"}}}}"#
    ))
    .error
    .unwrap();
    assert!(read.message.len() <= MESSAGE_MAX && read.message.len() > MESSAGE_MAX - 4);
    assert!(read.kind.unwrap().len() <= WORD_MAX);
}

#[test]
fn what_is_no_object_is_other() {
    for data in [
        "",
        " ",
        "[DONE",
        "[]",
        "1",
        "null",
        "\"x\"",
        "{",
        "{\"a\"",
        "{\"a\":",
        "{\"a\":1",
        "{\"choices\":[",
        "{\"a\":\"",
        "{\"a\":1}x",
        "{a:1}",
        "{\"a\":}",
        "{\"usage\":{\"prompt_tokens\":",
        "{\"choices\":[{\"delta\":{",
        "not json",
        "{]",
        "{\"a\":[}",
    ] {
        assert_eq!(read_event(data.as_bytes()), Event::Other, "{data}");
    }
    assert_eq!(read_event(b"[DONE]"), Event::Done);
    assert_eq!(read_event(b" [DONE] "), Event::Done);
    assert!(matches!(read_event(b"{}"), Event::Chunk(_)));
}

#[test]
fn every_cut_is_survived() {
    let data = format!(
        r#"{{"model":"m","choices":[{{"delta":{{"content":"a\"\\"}},"finish_reason":"stop"}}],{USAGE},"error":{{"message":"e"}}}}"#
    );
    for end in 0..data.len() {
        assert_eq!(read_chunk(&data.as_bytes()[..end]), None, "{end}");
    }
    assert!(read_chunk(data.as_bytes()).is_some());
    let deep = format!("{{\"x\":{}", "[".repeat(1_000_000));
    assert_eq!(read_chunk(deep.as_bytes()), None);
}

#[test]
fn rewriting_changes_two_spans_only() {
    let rewritten = |data: &str, drop| {
        String::from_utf8(rewrite(data.as_bytes(), "public", drop).into_owned()).unwrap()
    };
    let data = format!(
        r#"{{"id":1,"model":"/srv/x","choices":[{{"delta":{{"content":"\u00e9"}}}}],{USAGE}}}"#
    );
    assert_eq!(rewritten(&data, false), data.replace("/srv/x", "public"));
    assert_eq!(
        rewritten(&data, true),
        r#"{"id":1,"model":"public","choices":[{"delta":{"content":"\u00e9"}}]}"#
    );
    assert_eq!(
        rewritten(r#"{"usage":null,"model":"m"}"#, true),
        r#"{"model":"public"}"#
    );
    assert_eq!(rewritten(r#"{"usage":null}"#, true), "{}");
    assert_eq!(
        rewritten(r#"{"a":1 , "usage" : {} , "b":2}"#, true),
        r#"{"a":1  , "b":2}"#
    );
    assert_eq!(rewritten(r#"{"model":null}"#, true), r#"{"model":null}"#);
    assert_eq!(rewritten("nonsense", true), "nonsense");
    assert!(matches!(
        rewrite(br#"{"model":"public","choices":[]}"#, "public", true),
        Cow::Borrowed(_)
    ));
    assert!(matches!(
        rewrite(br#"{"model":"public","usage":{}}"#, "public", false),
        Cow::Borrowed(_)
    ));
    let quoted = rewrite(br#"{"model":"m"}"#, "a\"b\u{1}", false).into_owned();
    assert_eq!(quoted, br#"{"model":"a\"b\u0001"}"#);
    // A choice that says `model` or `usage` is content, not ours to change.
    let inner = r#"{"choices":[{"delta":{"content":"x"},"model":"m","usage":1}],"model":"public"}"#;
    assert!(matches!(
        rewrite(inner.as_bytes(), "public", true),
        Cow::Borrowed(_)
    ));
}

#[test]
fn a_cut_leaves_json_wherever_usage_stands() {
    for (before, after) in [
        ("", ""),
        (r#""a":1,"#, ""),
        ("", r#","b":2"#),
        (r#""a":1,"#, r#","b":2"#),
    ] {
        for space in ["", " ", "\n"] {
            let data = format!("{{{space}{before}{space}{USAGE}{space}{after}{space}}}");
            let left = rewrite(data.as_bytes(), "m", true).into_owned();
            let value: Value =
                serde_json::from_slice(&left).unwrap_or_else(|e| panic!("{data}: {e}"));
            assert!(value.get("usage").is_none());
        }
    }
}

#[test]
fn a_whole_answer_reads_the_same() {
    let body = format!(
        "{{\n  \"id\": \"x\", \"object\": \"chat.completion\", \"model\": \"m\",\n  \"choices\": [{{\"message\": {{\"role\": \"assistant\", \"content\": \"hello\"}}, \"finish_reason\": \"stop\"}}],\n  {USAGE}\n}}\n"
    );
    let read = read_answer(body.as_bytes()).unwrap();
    assert_eq!(
        (read.text, read.finished, read.usage_only),
        (true, 1, false)
    );
    assert_eq!(
        read.usage,
        Some(Usage {
            prompt: 3,
            completion: 5
        })
    );
}

#[test]
fn error_bodies_have_the_one_shape() {
    let parsed = |body: Vec<u8>| serde_json::from_slice::<Value>(&body).unwrap();
    assert_eq!(
        error_body("m", "invalid_request_error", None, None),
        br#"{"error":{"message":"m","type":"invalid_request_error","param":null,"code":null}}"#
    );
    let odd = parsed(error_body(
        "a\"b\n\u{0}雪\\",
        "t",
        Some("messages[0]"),
        Some("c"),
    ));
    assert_eq!(odd["error"]["message"], "a\"b\n\u{0}雪\\");
    assert_eq!(
        (&odd["error"]["param"], &odd["error"]["code"]),
        (&Value::from("messages[0]"), &Value::from("c"))
    );
    assert!(
        chunk(std::str::from_utf8(&error_body("m", "t", None, None)).unwrap())
            .error
            .is_some()
    );
}
