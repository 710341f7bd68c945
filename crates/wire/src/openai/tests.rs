//! Callers' bodies: what is refused, what goes out, what a call may cost.

mod judging;

use super::*;
use crate::json::shorten;
use serde_json::{Value as Tree, json};

const CHAT: &str = r#""model":"m","messages":[{"role":"user","content":"hi"}]"#;
const DIALECTS: [Dialect; 5] = [
    Dialect::Guan,
    Dialect::Vllm,
    Dialect::Sglang,
    Dialect::LlamaServer,
    Dialect::OpenAi,
];

fn chat(body: &str) -> Request<'_> {
    Request::read(Endpoint::ChatCompletions, body.as_bytes())
        .unwrap_or_else(|f| panic!("{f}: {body}"))
}

fn text(body: &str) -> Request<'_> {
    Request::read(Endpoint::Completions, body.as_bytes()).unwrap_or_else(|f| panic!("{f}: {body}"))
}

fn refused(endpoint: Endpoint, body: &str) -> BodyFault {
    Request::read(endpoint, body.as_bytes())
        .map(|_| ())
        .expect_err(body)
}

/// The param that a chat body with these members beside the plain ones is refused for.
fn param(members: &str) -> String {
    let body = format!("{{{CHAT},{members}}}");
    refused(Endpoint::ChatCompletions, &body)
        .param
        .unwrap_or_else(|| panic!("no param: {body}"))
}

fn to(dialect: Dialect, unknown: UnknownFields) -> Forward<'static> {
    Forward {
        dialect,
        unknown,
        model: "inner",
        max_output: 64,
    }
}

fn sent(request: &Request<'_>, dialect: Dialect, unknown: UnknownFields) -> (String, Vec<String>) {
    let forwarded = request
        .forward(&to(dialect, unknown))
        .unwrap_or_else(|f| panic!("{f}"));
    let body = String::from_utf8(forwarded.body).unwrap();
    serde_json::from_str::<Tree>(&body).unwrap_or_else(|e| panic!("{e}: {body}"));
    (body, forwarded.dropped)
}

/// What vLLM gets of a chat body with these members beside the plain ones.
fn vllm(members: &str) -> Tree {
    let body = format!("{{{CHAT}{members}}}");
    serde_json::from_str(&sent(&chat(&body), Dialect::Vllm, UnknownFields::Drop).0).unwrap()
}

const ODD: &str = r#"{"foo":{"deep":[1]},"model":"m","messages":[{"role":"user","content":"a","bar":1},
    {"role":"user","content":[{"type":"text","text":"b","baz":"W"}],"bar":2},
    {"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}","qux":1},"index":0}]},
    {"role":"tool","tool_call_id":"1","content":"c"}],
    "tools":[{"type":"function","cache":1,"function":{"name":"f","parameters":{"any":{"thing":1}},"extra":null}}],
    "response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"x":1},"y":1},"z":1}}"#;

#[test]
fn a_plain_chat_goes_out_as_it_came() {
    let body = r#"{ "messages" : [ { "role" : "user" , "content" : "h\u0069 \"雪\"" } ] ,
        "temperature" : 0.70 , "mod\u0065l" : "small" , "max_tokens" : 5 , "logit_bias" : {"50256" : -100} }"#;
    let request = chat(body);
    assert_eq!(
        (request.model(), request.stream(), request.include_usage()),
        ("small", false, false)
    );
    assert_eq!(
        (request.output_cap(), request.choices(), request.prompts()),
        (Some(5), 1, 1)
    );
    let (out, dropped) = sent(&request, Dialect::OpenAi, UnknownFields::Drop);
    assert_eq!(
        out,
        r#"{"messages":[{"role":"user","content":"h\u0069 \"雪\""}],"temperature":0.70,"model":"inner","max_tokens":5,"logit_bias":{"50256" : -100}}"#
    );
    assert!(dropped.is_empty());
}

#[test]
fn a_missing_cap_is_written() {
    let body = format!("{{{CHAT}}}");
    for dialect in DIALECTS {
        let name = if dialect == Dialect::OpenAi {
            "max_completion_tokens"
        } else {
            "max_tokens"
        };
        let (out, _) = sent(&chat(&body), dialect, UnknownFields::Drop);
        assert!(out.ends_with(&format!(",\"{name}\":64}}")), "{out}");
    }
    let (out, _) = sent(
        &text(r#"{"prompt":"x","model":"m"}"#),
        Dialect::OpenAi,
        UnknownFields::Drop,
    );
    assert_eq!(out, r#"{"prompt":"x","model":"inner","max_tokens":64}"#);
    let (out, _) = sent(
        &chat(&format!("{{{CHAT},\"max_completion_tokens\":5}}")),
        Dialect::LlamaServer,
        UnknownFields::Drop,
    );
    assert!(
        out.ends_with(r#","max_completion_tokens":5,"max_tokens":64}"#),
        "{out}"
    );
}

#[test]
fn a12_no_cap_above_the_limit_under_any_name() {
    for (members, a, b) in [
        (r#","max_tokens":10,"max_completion_tokens":5000"#, 10, 64),
        (r#","max_tokens":5000,"max_completion_tokens":10"#, 64, 10),
        (r#","max_tokens":64,"max_completion_tokens":65"#, 64, 64),
    ] {
        let out = vllm(members);
        assert_eq!(
            (&out["max_tokens"], &out["max_completion_tokens"]),
            (&json!(a), &json!(b)),
            "{members}"
        );
    }
    let body = format!("{{{CHAT},\"max_tokens\":10,\"max_completion_tokens\":5000}}");
    assert_eq!(chat(&body).output_cap(), Some(10));
    let names = [
        "n_predict",
        "max_new_tokens",
        "max_output_tokens",
        "num_predict",
        "min_tokens",
        "max_length",
    ];
    for name in names {
        let body = format!("{{{CHAT},\"{name}\":100000}}");
        for dialect in DIALECTS {
            for unknown in [UnknownFields::Drop, UnknownFields::Forward] {
                let out: Tree =
                    serde_json::from_str(&sent(&chat(&body), dialect, unknown).0).unwrap();
                assert!(
                    out.get(name).is_none_or(|cap| *cap == json!(64)),
                    "{name} {dialect:?}: {out}"
                );
            }
        }
        let body = format!("{{{CHAT},\"{name}\":-1}}");
        let fault = chat(&body)
            .forward(&to(Dialect::OpenAi, UnknownFields::Forward))
            .expect_err(name);
        assert_eq!(fault.param.as_deref(), Some(name));
    }
    let other = text(r#"{"model":"m","prompt":"x","max_completion_tokens":9000}"#);
    let (out, dropped) = sent(&other, Dialect::Vllm, UnknownFields::Drop);
    assert_eq!(
        (out.as_str(), dropped),
        (
            r#"{"model":"inner","prompt":"x","max_tokens":64}"#,
            vec!["max_completion_tokens".to_owned()]
        )
    );
    let (out, _) = sent(&other, Dialect::Vllm, UnknownFields::Forward);
    assert_eq!(
        out,
        r#"{"model":"inner","prompt":"x","max_completion_tokens":64,"max_tokens":64}"#
    );
}

#[test]
fn a12_choices_and_prompts_are_counted() {
    let caps = Caps::default();
    let over = |request: &Request<'_>| request.check_caps(&caps).expect_err("over").param.unwrap();
    let many = chat(r#"{"model":"m","messages":[{"role":"user","content":"x"}],"n":50}"#);
    assert_eq!((many.choices(), over(&many).as_str()), (50, "n"));
    let best = text(r#"{"model":"m","prompt":"x","best_of":20}"#);
    assert_eq!((best.choices(), over(&best).as_str()), (20, "best_of"));
    let odd = text(r#"{"model":"m","prompt":"x","best_of":2,"n":3}"#);
    assert_eq!((odd.choices(), over(&odd).as_str()), (3, "best_of"));
    let prompts = format!(
        r#"{{"model":"m","n":2,"prompt":[{}"x"]}}"#,
        "\"x\",".repeat(39)
    );
    let forty = text(&prompts);
    assert_eq!(
        (forty.prompts(), forty.choices(), forty.check_caps(&caps)),
        (40, 2, Ok(()))
    );
    let prompts = format!(r#"{{"model":"m","prompt":[{}"x"]}}"#, "\"x\",".repeat(64));
    assert_eq!(over(&text(&prompts)), "prompt");
    let ids = text(r#"{"model":"m","prompt":[[1,2],[3,4]]}"#);
    assert_eq!((ids.prompts(), ids.input_bound()), (2, 2 * 16 + 4));
    let flat = text(r#"{"model":"m","prompt":[1,2,3]}"#);
    assert_eq!((flat.prompts(), flat.input_bound()), (1, 16 + 3));
    // A chat has no best_of: it is unknown there and never forwarded.
    let body = format!("{{{CHAT},\"best_of\":20}}");
    assert_eq!(chat(&body).choices(), 1);
    assert!(
        !sent(&chat(&body), Dialect::Vllm, UnknownFields::Forward)
            .0
            .contains("best_of")
    );
}

#[test]
fn every_cap_has_its_member() {
    let over = |members: &str, caps: Caps| {
        let body = format!("{{{CHAT},{members}}}");
        let request = chat(&body);
        assert_eq!(request.check_caps(&Caps::default()), Ok(()));
        request.check_caps(&caps).expect_err(members).param.unwrap()
    };
    let none = Caps {
        choices: 8,
        messages: 1,
        tools: 1,
        stop: 1,
        prompts: 1,
        logprobs: 1,
        images: 0,
    };
    let tool = r#"{"type":"function","function":{"name":"f"}}"#;
    assert_eq!(over(&format!(r#""tools":[{tool},{tool}]"#), none), "tools");
    assert_eq!(
        over(r#""functions":[{"name":"a"},{"name":"b"}]"#, none),
        "functions"
    );
    assert_eq!(over(r#""stop":["a","b"]"#, none), "stop");
    assert_eq!(
        over(r#""logprobs":true,"top_logprobs":2"#, none),
        "top_logprobs"
    );
    let body = r#"{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AA"}}]}]}"#;
    assert_eq!(chat(body).images(), 1);
    assert_eq!(
        chat(body)
            .check_caps(&none)
            .expect_err("image")
            .param
            .as_deref(),
        Some("messages")
    );
    let two =
        r#"{"model":"m","messages":[{"role":"user","content":"a"},{"role":"user","content":"b"}]}"#;
    assert_eq!(
        chat(two)
            .check_caps(&none)
            .expect_err("messages")
            .param
            .as_deref(),
        Some("messages")
    );
    let logprobs = text(r#"{"model":"m","prompt":"x","logprobs":21}"#);
    assert_eq!(
        logprobs
            .check_caps(&Caps::default())
            .expect_err("logprobs")
            .param
            .as_deref(),
        Some("logprobs")
    );
}

#[test]
fn a07_stream_options_are_ours() {
    for options in [
        "",
        r#","stream_options":null"#,
        r#","stream_options":{"include_usage":false}"#,
        r#","stream_options":{}"#,
        r#","stream_options":{"include_usage":true,"include_obfuscation":false}"#,
    ] {
        let streamed = vllm(&format!(r#","stream":true{options}"#));
        assert_eq!(
            streamed["stream_options"],
            json!({"include_usage": true}),
            "{options}"
        );
        for still in [",\"stream\":false", ",\"stream\":null", ""] {
            assert!(
                vllm(&format!("{still}{options}"))
                    .get("stream_options")
                    .is_none(),
                "{options}"
            );
        }
    }
    let asks = |options: &str| {
        let body = format!("{{{CHAT},{options}}}");
        chat(&body).include_usage()
    };
    assert!(asks(
        r#""stream":true,"stream_options":{"include_usage":true}"#
    ));
    assert!(!asks(
        r#""stream":true,"stream_options":{"include_usage":false}"#
    ));
    assert!(!asks(r#""stream":true,"stream_options":null"#));
    assert!(!asks(r#""stream":true"#));
    assert!(!asks(r#""stream_options":{"include_usage":true}"#));
    assert_eq!(param(r#""stream_options":true"#), "stream_options");
    assert_eq!(
        param(r#""stream_options":{"include_usage":1}"#),
        "stream_options.include_usage"
    );
}

#[test]
fn a09_the_caller_cannot_switch_accounting() {
    let body = format!(
        r#"{{{CHAT},"stream":true,"stream_options":{{"include_usage":true,"continuous_usage_stats":true}}}}"#
    );
    for unknown in [UnknownFields::Drop, UnknownFields::Forward] {
        let (out, dropped) = sent(&chat(&body), Dialect::Vllm, unknown);
        assert!(
            out.contains(r#""stream_options":{"include_usage":true},"max_tokens":64}"#),
            "{out}"
        );
        assert_eq!(dropped, ["stream_options.continuous_usage_stats"]);
    }
    let fault = chat(&body)
        .forward(&to(Dialect::Vllm, UnknownFields::Refuse))
        .expect_err("refused");
    assert_eq!(
        fault.param.as_deref(),
        Some("stream_options.continuous_usage_stats")
    );
}

#[test]
fn a37_unknown_members_are_dropped_and_named() {
    let (out, dropped) = sent(&chat(ODD), Dialect::Guan, UnknownFields::Drop);
    assert_eq!(
        dropped,
        [
            "foo",
            "messages[].bar",
            "messages[].content[].baz",
            "messages[].tool_calls[].function.qux",
            "messages[].tool_calls[].index",
            "tools[].cache",
            "tools[].function.extra",
            "response_format.json_schema.y",
            "response_format.z",
        ]
    );
    assert_eq!(
        out,
        r#"{"model":"inner","messages":[{"role":"user","content":"a"},{"role":"user","content":[{"type":"text","text":"b"}]},{"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"1","content":"c"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"any":{"thing":1}}}}],"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"x":1}}},"max_tokens":64}"#
    );
}

#[test]
fn unknown_members_are_refused_or_forwarded_where_said() {
    let fault = |body: &str| {
        chat(body)
            .forward(&to(Dialect::Guan, UnknownFields::Refuse))
            .expect_err(body)
    };
    assert_eq!(fault(ODD).param.as_deref(), Some("foo"));
    assert_eq!(fault(ODD).code, Some("unknown_parameter"));
    let inner = r#"{"model":"m","messages":[{"role":"user","content":"a"},{"role":"user","content":"a","b\u0061r":1}]}"#;
    assert_eq!(fault(inner).param.as_deref(), Some("messages[1].bar"));
    assert_eq!(
        chat(inner)
            .check_members(Dialect::Guan, UnknownFields::Refuse)
            .expect_err("")
            .param
            .as_deref(),
        Some("messages[1].bar")
    );
    assert_eq!(
        chat(inner).check_members(Dialect::Guan, UnknownFields::Drop),
        Ok(())
    );
    let (out, dropped) = sent(&chat(ODD), Dialect::Guan, UnknownFields::Forward);
    let mut expected: Tree = serde_json::from_str(ODD).unwrap();
    expected["model"] = json!("inner");
    expected["max_tokens"] = json!(64);
    assert_eq!(serde_json::from_str::<Tree>(&out).unwrap(), expected);
    assert!(dropped.is_empty());
    let never = format!(
        r#"{{{CHAT},"use_beam_search":true,"prompt":"other","priority":-1,"n_cmpl":9,"ok":1}}"#
    );
    let (out, dropped) = sent(&chat(&never), Dialect::Vllm, UnknownFields::Forward);
    assert!(out.ends_with(r#","ok":1,"max_tokens":64}"#), "{out}");
    assert_eq!(dropped, ["use_beam_search", "prompt", "priority", "n_cmpl"]);
}

#[test]
fn dropped_names_fit_a_header() {
    let long = "x".repeat(10_000);
    let members: String = (0..100).map(|i| format!(",\"k{i}\":1")).collect();
    let body = format!(r#"{{{CHAT},"a\r\nb: c":1,"雪,":1,"{long}":1{members}}}"#);
    let (_, dropped) = sent(&chat(&body), Dialect::Guan, UnknownFields::Drop);
    assert_eq!(dropped.len(), 32);
    assert_eq!(dropped[0], "a%0D%0Ab:%20c");
    assert_eq!(dropped[1], "%E9%9B%AA%2C");
    assert_eq!(dropped[2], format!("{}...", "x".repeat(64)));
    assert!(
        dropped
            .iter()
            .all(|name| name.bytes().all(|b| b.is_ascii_graphic() && b != b','))
    );
    let messages = format!(
        r#"{{"model":"m","messages":[{}{{"role":"user","content":"x"}}]}}"#,
        r#"{"role":"user","content":"x","y":1},"#.repeat(1000)
    );
    assert_eq!(
        sent(&chat(&messages), Dialect::Guan, UnknownFields::Drop).1,
        ["messages[].y"]
    );
    assert_eq!(shorten(""), "");
}

#[test]
fn each_dialect_adds_its_own() {
    let body = format!(
        r#"{{{CHAT},"top_k":40,"min_p":0.1,"repetition_penalty":1.1,"guided_json":{{"a":1}},"regex":"x","n_predict":7,"min_tokens":100}}"#
    );
    let known = |dialect| sent(&chat(&body), dialect, UnknownFields::Drop).1;
    assert_eq!(
        known(Dialect::Guan),
        ["guided_json", "regex", "n_predict", "min_tokens"]
    );
    assert_eq!(known(Dialect::Vllm), ["regex", "n_predict"]);
    assert_eq!(known(Dialect::Sglang), ["guided_json", "n_predict"]);
    assert_eq!(
        known(Dialect::LlamaServer),
        ["repetition_penalty", "guided_json", "regex", "min_tokens"]
    );
    assert_eq!(known(Dialect::OpenAi).len(), 7);
    assert_eq!(vllm(r#","min_tokens":100"#)["min_tokens"], json!(64));
    let llama: Tree =
        serde_json::from_str(&sent(&chat(&body), Dialect::LlamaServer, UnknownFields::Drop).0)
            .unwrap();
    assert_eq!(
        (&llama["n_predict"], &llama["max_tokens"]),
        (&json!(7), &json!(64))
    );
    for (dialect, member) in [
        (Dialect::Vllm, r#""top_k":"40""#),
        (Dialect::Guan, r#""min_p":2"#),
        (Dialect::LlamaServer, r#""n_predict":-1"#),
        (Dialect::Sglang, r#""regex":1"#),
        (Dialect::Vllm, r#""guided_choice":["a",1]"#),
        (Dialect::Vllm, r#""min_tokens":-1"#),
    ] {
        let body = format!("{{{CHAT},{member}}}");
        let fault = chat(&body)
            .check_members(dialect, UnknownFields::Drop)
            .expect_err(member);
        assert!(
            member.contains(fault.param.as_deref().unwrap().split('[').next().unwrap()),
            "{fault}"
        );
    }
    let names: Vec<_> = DIALECTS
        .iter()
        .map(|d| serde_json::to_string(d).unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "\"guan\"",
            "\"vllm\"",
            "\"sglang\"",
            "\"llama-server\"",
            "\"openai\""
        ]
    );
    assert_eq!(
        serde_json::to_string(&UnknownFields::Refuse).unwrap(),
        "\"refuse\""
    );
}

#[test]
fn the_bound_counts_all_text() {
    let bound = |messages: &str, rest: &str| {
        let body = format!(r#"{{"model":"m","messages":{messages}{rest}}}"#);
        chat(&body).input_bound()
    };
    let user = |content: &str| format!(r#"[{{"role":"user","content":{content}}}]"#);
    assert_eq!(bound(&user("\"hi\""), ""), 16 + 8 + 2);
    assert_eq!(bound(&user(r#""a\n\u0062""#), ""), 16 + 8 + 3);
    assert_eq!(bound(&user("\"雪ñ🍋\""), ""), 16 + 8 + 9);
    assert_eq!(bound(&user("\"n\u{303}\""), ""), 16 + 8 + 9);
    assert_eq!(bound(&user(r#""n\u0303""#), ""), 16 + 8 + 9);
    assert_eq!(
        bound(
            &user(r#"[{"type":"text","text":"ab"},{"type":"text","text":"c"}]"#),
            ""
        ),
        16 + 8 + 3
    );
    // What never reaches the prompt costs nothing.
    assert_eq!(
        bound(
            &user("\"hi\""),
            r#","user":"someone","stop":["END"],"temperature":1,"metadata":{"a":"b"}"#
        ),
        26
    );
    let tool = r#","tools":[{"type":"function","function":{"name":"fn","description":"does","parameters":{"a":"b"}}}]"#;
    assert_eq!(bound(&user("\"hi\""), tool), 26 + 64 + 2 + 4 + 9 + 8);
    assert_eq!(
        bound(&user("\"hi\""), r#","unknown":"0123456789""#),
        26 + 12
    );
    let image = user(
        r#"[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}}]"#,
    );
    assert_eq!(bound(&image, ""), 16 + 8 + IMAGE);
    assert_eq!(
        text(r#"{"model":"m","prompt":"abc","suffix":"de"}"#).input_bound(),
        16 + 5
    );
    assert_eq!(
        text(r#"{"model":"m","prompt":["abc","de"]}"#).input_bound(),
        2 * 16 + 5
    );
    let call = r#"[{"role":"assistant","tool_calls":[{"id":"x","function":{"name":"f","arguments":"{\"a\":1}"}}]}]"#;
    assert_eq!(bound(call, ""), 16 + 8 + 1 + 1 + 7);
}

#[test]
fn the_bound_never_falls_below_what_goes_out() {
    for body in [
        ODD,
        r#"{"model":"m","messages":[{"role":"user","content":"a","note":"0123456789"}],"documents":[{"text":"long long"}]}"#,
    ] {
        let request = chat(body);
        for dialect in DIALECTS {
            let out = request
                .forward(&to(dialect, UnknownFields::Forward))
                .unwrap()
                .body;
            let forwarded = chat(std::str::from_utf8(&out).unwrap()).input_bound();
            // The cap that was written in is the only thing added.
            assert!(
                request.input_bound() + 2 >= forwarded,
                "{dialect:?}: {body}"
            );
        }
    }
}

#[test]
fn the_table_is_sound() {
    assert!(members::NEVER.is_sorted());
    for field in members::REQUEST {
        let twins = members::REQUEST.iter().filter(|other| {
            other.name == field.name
                && other.endpoints & field.endpoints != 0
                && other.dialects & field.dialects != 0
        });
        assert!(twins.count() <= 1, "{}", field.name);
        if field.dialects != 0 && field.endpoints == 3 {
            assert!(!members::NEVER.contains(&field.name), "{}", field.name);
        }
    }
}

#[test]
fn nothing_of_the_content_is_in_debug() {
    let body = r#"{"model":"m","messages":[{"role":"user","content":"private words"}]}"#;
    let request = chat(body);
    let shown = format!(
        "{request:?} {:?}",
        request.forward(&to(Dialect::Guan, UnknownFields::Drop))
    );
    assert!(!shown.contains("private"), "{shown}");
}
