//! Bodies that are refused, and the member that each refusal names.

use super::*;

#[test]
fn a14_twins_are_refused_before_anything_else() {
    for body in [
        format!(r#"{{{CHAT},"model":"big"}}"#),
        format!(r#"{{{CHAT},"max_tokens":5,"max_tokens":9000}}"#),
        format!(r#"{{{CHAT},"stream":false,"stream":true}}"#),
        format!(r#"{{{CHAT},"mod\u0065l":"big"}}"#),
        r#"{"model":"m","messages":[{"role":"user","content":"a","content":"b"}]}"#.to_owned(),
        format!(
            r#"{{{CHAT},"tools":[{{"type":"function","function":{{"name":"f","parameters":{{"a":1,"a":2}}}}}}]}}"#
        ),
        format!(r#"{{{CHAT},"unknown":{{"x":1,"\u0078":2}}}}"#),
    ] {
        let fault = refused(Endpoint::ChatCompletions, &body);
        assert!(fault.message.contains("appears twice"), "{body}: {fault}");
    }
}

#[test]
fn a16_odd_values_of_counts() {
    for name in ["max_tokens", "max_completion_tokens", "n"] {
        for value in [
            "0",
            "-1",
            "1.5",
            "64.0",
            "1e2",
            "\"64\"",
            "true",
            "false",
            "18446744073709551616",
            "4294967296",
            "[]",
            "{}",
            "-0",
        ] {
            assert_eq!(param(&format!("\"{name}\":{value}")), name, "{value}");
        }
        let body = format!("{{{CHAT},\"{name}\":null}}");
        let request = chat(&body);
        assert_eq!((request.output_cap(), request.choices()), (None, 1));
        let (out, dropped) = sent(&request, Dialect::OpenAi, UnknownFields::Refuse);
        assert!(
            !out.contains("null") && out.contains("\"max_completion_tokens\":64"),
            "{out}"
        );
        assert!(dropped.is_empty());
    }
    let body = format!("{{{CHAT},\"max_tokens\":null,\"max_completion_tokens\":null}}");
    assert!(
        sent(&chat(&body), Dialect::Vllm, UnknownFields::Drop)
            .0
            .ends_with(r#","max_tokens":64}"#)
    );
    for value in ["0", "-1", "1.0", "\"2\""] {
        let fault = refused(
            Endpoint::Completions,
            &format!(r#"{{"model":"m","prompt":"x","best_of":{value}}}"#),
        );
        assert_eq!(fault.param.as_deref(), Some("best_of"));
    }
    assert_eq!(vllm(r#","max_tokens":4294967295"#)["max_tokens"], json!(64));
    assert_eq!(vllm(r#","max_tokens":1"#)["max_tokens"], json!(1));
}

#[test]
fn wrong_types_name_their_member() {
    for (members, at) in [
        (r#""stream":"yes""#, "stream"),
        (r#""temperature":2.1"#, "temperature"),
        (r#""temperature":"1""#, "temperature"),
        (r#""top_p":-0.1"#, "top_p"),
        (r#""presence_penalty":3"#, "presence_penalty"),
        (r#""seed":1.5"#, "seed"),
        (r#""seed":9223372036854775808"#, "seed"),
        (r#""stop":5"#, "stop"),
        (r#""stop":["a",5]"#, "stop[1]"),
        (r#""user":{}"#, "user"),
        (r#""logprobs":1"#, "logprobs"),
        (r#""top_logprobs":-1"#, "top_logprobs"),
        (r#""logit_bias":[]"#, "logit_bias"),
        (r#""logit_bias":{"1":"x"}"#, "logit_bias"),
        (r#""metadata":{"a":1}"#, "metadata"),
        (r#""tools":{}"#, "tools"),
        (r#""tools":[1]"#, "tools[0]"),
        (r#""tools":[{}]"#, "tools[0].type"),
        (r#""tools":[{"type":"web"}]"#, "tools[0].type"),
        (r#""tools":[{"type":"function"}]"#, "tools[0].function"),
        (
            r#""tools":[{"type":"function","function":{"name":1}}]"#,
            "tools[0].function.name",
        ),
        (
            r#""tools":[{"type":"function","function":{"name":"f","parameters":"x"}}]"#,
            "tools[0].function.parameters",
        ),
        (r#""tool_choice":"any""#, "tool_choice"),
        (r#""tool_choice":1"#, "tool_choice"),
        (
            r#""tool_choice":{"type":"function"}"#,
            "tool_choice.function",
        ),
        (
            r#""response_format":{"type":"xml"}"#,
            "response_format.type",
        ),
        (
            r#""response_format":{"type":"json_schema"}"#,
            "response_format.json_schema",
        ),
        (r#""store":1"#, "store"),
    ] {
        let body = format!("{{{CHAT},{members}}}");
        let fault = refused(Endpoint::ChatCompletions, &body);
        assert_eq!(
            fault.param.unwrap_or_default(),
            at,
            "{members}: {}",
            fault.message
        );
    }
    let message = refused(Endpoint::ChatCompletions, &format!("{{{CHAT},\"stop\":5}}")).message;
    assert_eq!(
        message,
        "'stop' must be a string or an array, not a number."
    );
}

#[test]
fn messages_are_judged() {
    let at = |messages: &str| {
        refused(
            Endpoint::ChatCompletions,
            &format!(r#"{{"model":"m","messages":{messages}}}"#),
        )
        .param
        .unwrap()
    };
    for (messages, param) in [
        ("null", "messages"),
        ("[]", "messages"),
        ("{}", "messages"),
        ("\"x\"", "messages"),
        ("[1]", "messages[0]"),
        ("[{}]", "messages[0].role"),
        (r#"[{"role":null,"content":"x"}]"#, "messages[0].role"),
        (r#"[{"role":"root","content":"x"}]"#, "messages[0].role"),
        (r#"[{"role":"user"}]"#, "messages[0].content"),
        (r#"[{"role":"user","content":null}]"#, "messages[0].content"),
        (r#"[{"role":"user","content":1}]"#, "messages[0].content"),
        (r#"[{"role":"user","content":[]}]"#, "messages[0].content"),
        (
            r#"[{"role":"user","content":["x"]}]"#,
            "messages[0].content[0]",
        ),
        (
            r#"[{"role":"user","content":[{"type":"text"}]}]"#,
            "messages[0].content[0].text",
        ),
        (
            r#"[{"role":"user","content":[{"type":"video_url","video_url":{"url":"http://x"}}]}]"#,
            "messages[0].content[0].type",
        ),
        (
            r#"[{"role":"user","content":[{"type":"image_url","image_url":"http://x"}]}]"#,
            "messages[0].content[0].image_url",
        ),
        (
            r#"[{"role":"system","content":[{"type":"image_url","image_url":{"url":"http://x"}}]}]"#,
            "messages[0].content[0].type",
        ),
        (r#"[{"role":"assistant"}]"#, "messages[0].content"),
        (
            r#"[{"role":"assistant","content":null}]"#,
            "messages[0].content",
        ),
        (
            r#"[{"role":"tool","content":"x"}]"#,
            "messages[0].tool_call_id",
        ),
        (
            r#"[{"role":"user","content":"a"},{"role":"assistant","tool_calls":[{"id":"1","function":{"name":"f","arguments":{}}}]}]"#,
            "messages[1].tool_calls[0].function.arguments",
        ),
    ] {
        assert_eq!(at(messages), param, "{messages}");
    }
    assert_eq!(
        refused(Endpoint::ChatCompletions, r#"{"model":"m"}"#)
            .param
            .as_deref(),
        Some("messages")
    );
    let fine = r#"{"model":"m","messages":[{"role":"developer","content":[{"type":"text","text":"d"}]},
        {"role":"user","name":"n","content":[{"type":"text","text":"t"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AA","detail":"low"}},
        {"type":"input_audio","input_audio":{"data":"AAAA","format":"wav"}},{"type":"file","file":{"file_id":"f"}}]},
        {"role":"assistant","content":null,"refusal":null,"tool_calls":[{"id":"1","type":"custom","custom":{"name":"c","input":"i"}}]},
        {"role":"tool","tool_call_id":"1","content":[{"type":"text","text":"r"}]},
        {"role":"assistant","content":"","function_call":{"name":"f","arguments":""}},{"role":"function","name":"f","content":null}]}"#;
    let (out, dropped) = sent(&chat(fine), Dialect::Vllm, UnknownFields::Refuse);
    assert!(dropped.is_empty() && !out.contains("null"), "{out}");
}

#[test]
fn no_server_of_ours_is_sent_to_an_address_that_a_caller_names() {
    let image = r#"{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://169.254.169.254/x"}}]}]}"#;
    for dialect in [
        Dialect::Guan,
        Dialect::Vllm,
        Dialect::Sglang,
        Dialect::LlamaServer,
    ] {
        let fault = chat(image)
            .forward(&to(dialect, UnknownFields::Forward))
            .unwrap_err();
        assert_eq!(
            fault.param.as_deref(),
            Some("messages[0].content[0].image_url.url")
        );
    }
    assert!(
        chat(image)
            .forward(&to(Dialect::OpenAi, UnknownFields::Drop))
            .is_ok()
    );
}

#[test]
fn a_template_never_comes_from_a_caller() {
    let body = r#"{"model":"m","messages":[{"role":"user","content":"a"}],"chat_template_kwargs":{"enable_thinking":false,"chat_template":"{{x}}"}}"#;
    let (out, dropped) = sent(&chat(body), Dialect::Vllm, UnknownFields::Drop);
    assert!(
        out.contains("enable_thinking") && !out.contains("chat_template\""),
        "{out}"
    );
    assert_eq!(dropped, ["chat_template_kwargs.chat_template"]);
    let (out, _) = sent(&chat(body), Dialect::OpenAi, UnknownFields::Forward);
    assert!(!out.contains("chat_template"), "{out}");
}

#[test]
fn model_and_prompt_are_required() {
    let at = |endpoint, body: &str| refused(endpoint, body).param.unwrap();
    let long = "m".repeat(257);
    for model in [
        "",
        "\"model\":null,",
        "\"model\":\"\",",
        "\"model\":1,",
        &format!("\"model\":\"{long}\","),
    ] {
        let body = format!(r#"{{{model}"prompt":"x"}}"#);
        assert_eq!(at(Endpoint::Completions, &body), "model", "{body}");
    }
    for (prompt, param) in [
        ("null", "prompt"),
        ("1", "prompt"),
        ("{}", "prompt"),
        ("[]", "prompt"),
        ("[[]]", "prompt[0]"),
        ("[\"a\",1]", "prompt[1]"),
        ("[1,\"a\"]", "prompt[1]"),
        ("[[1],2]", "prompt[1]"),
        ("[1.5]", "prompt[0]"),
        ("[-1]", "prompt[0]"),
        ("[[1,\"a\"]]", "prompt[0][1]"),
        ("[null]", "prompt[0]"),
        ("[{}]", "prompt[0]"),
        ("[[[1]]]", "prompt[0][0]"),
    ] {
        assert_eq!(
            at(
                Endpoint::Completions,
                &format!(r#"{{"model":"m","prompt":{prompt}}}"#)
            ),
            param,
            "{prompt}"
        );
    }
    for body in ["[]", "\"x\"", "null", "1"] {
        assert!(
            refused(Endpoint::ChatCompletions, body)
                .message
                .contains("object")
        );
    }
    let (out, _) = sent(
        &text(r#"{"model":"m","prompt":[[1, 2],[3]],"max_tokens":1,"echo":true}"#),
        Dialect::Vllm,
        UnknownFields::Refuse,
    );
    assert_eq!(
        out,
        r#"{"model":"inner","prompt":[[1, 2],[3]],"max_tokens":1,"echo":true}"#
    );
}

#[test]
fn a34_strange_sizes_are_refused() {
    let deep = format!(
        "{{{CHAT},\"tools\":{}{}}}",
        "[".repeat(3000),
        "]".repeat(3000)
    );
    assert!(
        refused(Endpoint::ChatCompletions, &deep)
            .message
            .contains("deep")
    );
    let deep = format!(
        "{{{CHAT},\"other\":{}{}}}",
        "[".repeat(3000),
        "]".repeat(3000)
    );
    assert!(
        refused(Endpoint::ChatCompletions, &deep)
            .message
            .contains("deep")
    );
    let wide = format!("{{{CHAT},\"stop\":[{}1]}}", "1,".repeat(500_000));
    assert!(
        refused(Endpoint::ChatCompletions, &wide)
            .message
            .contains("too many")
    );
    let wide = format!("{{{CHAT},\"stop\":[{}\"1\"]}}", "\"1\",".repeat(5000));
    assert_eq!(
        refused(Endpoint::ChatCompletions, &wide).param.as_deref(),
        Some("stop")
    );
    let members: String = (0..100_000).map(|i| format!(",\"m{i}\":0")).collect();
    let many = format!("{{{CHAT}{members}}}");
    assert_eq!(
        sent(&chat(&many), Dialect::OpenAi, UnknownFields::Drop)
            .1
            .len(),
        32
    );
}
