//! What `ask` takes and what it refuses, by name.

use serde_json::json;

use super::*;

fn chat(more: &Value) -> Result<Ask, Refusal> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    parse(Kind::Chat, body.to_string().as_bytes())
}

fn completion(body: &Value) -> Result<Ask, Refusal> {
    parse(Kind::Completion, body.to_string().as_bytes())
}

fn messages(list: &Value) -> Result<Vec<Value>, Refusal> {
    match chat(&json!({"messages": list}))?.input {
        Input::Chat(conversation) => Ok(conversation.messages),
        Input::Prompts(_) => panic!("a chat has messages"),
    }
}

#[test]
fn defaults_are_those_of_openai() {
    let ask = chat(&json!({"temperature": null})).unwrap();
    assert_eq!(ask.sampling, Sampling::default());
    assert_eq!((ask.n, ask.stream, ask.include_usage), (1, false, false));
    assert_eq!((ask.max_tokens, ask.seed), (None, None));
}

#[test]
fn the_smaller_token_limit_wins() {
    let ask = chat(&json!({"max_tokens": 9, "max_completion_tokens": 7})).unwrap();
    assert_eq!(ask.max_tokens, Some(7));
}

#[test]
fn wrong_values_are_refused_by_name() {
    let cases = [
        ("temperature", json!(2.1)),
        ("temperature", json!("1")),
        ("top_p", json!(-0.1)),
        ("top_k", json!(-2)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(1.5)),
        ("max_completion_tokens", json!(-1)),
        ("n", json!(0)),
        ("n", json!(17)),
        ("stop", json!(["a", "b", "c", "d", "e"])),
        ("stop", json!([1])),
        ("stop", json!("")),
        ("seed", json!("x")),
        ("stream", json!("yes")),
        ("stream_options", json!({"include_usage": true})),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias", json!({"5": 101})),
        ("top_logprobs", json!(3)),
        ("response_format", json!({"type": "json_object"})),
        ("tool_choice", json!("required")),
        ("tools", json!("none")),
        ("model", json!(5)),
    ];
    for (name, value) in cases {
        let refusal = chat(&json!({name: value})).unwrap_err();
        assert_eq!(refusal.param.as_deref(), Some(name), "{value}");
        assert_eq!(refusal.status, 400);
    }
}

#[test]
fn completions_refuse_what_they_cannot_do() {
    for (name, value) in [
        ("echo", json!(true)),
        ("suffix", json!("end")),
        ("best_of", json!(3)),
        ("logprobs", json!(1)),
    ] {
        let refusal = completion(&json!({"prompt": "x", name: value})).unwrap_err();
        assert_eq!(refusal.param.as_deref(), Some(name));
    }
    completion(&json!({"prompt": "x", "echo": false, "suffix": null, "best_of": 1})).unwrap();
}

#[test]
fn prompts_come_in_four_shapes() {
    let prompts = |prompt: Value| match completion(&json!({"prompt": prompt})).unwrap().input {
        Input::Prompts(prompts) => prompts,
        Input::Chat(_) => panic!("a completion has prompts"),
    };
    assert_eq!(prompts(json!("a")), [Prompt::Text("a".to_owned())]);
    assert_eq!(prompts(json!(["a", "b"])).len(), 2);
    assert_eq!(prompts(json!([1, 2])), [Prompt::Tokens(vec![1, 2])]);
    assert_eq!(prompts(json!([[1], [2, 3]])).len(), 2);
    for wrong in [
        json!([]),
        json!([1, "a"]),
        json!([-1]),
        json!({}),
        json!(7),
        json!([[1.5]]),
    ] {
        let refusal = completion(&json!({"prompt": wrong})).unwrap_err();
        assert_eq!(refusal.param.as_deref(), Some("prompt"));
    }
}

#[test]
fn too_many_choices_are_refused() {
    let many = json!({"prompt": ["a", "b", "c"], "n": 6});
    assert_eq!(
        completion(&many).unwrap_err().param.as_deref(),
        Some("prompt")
    );
}

#[test]
fn messages_are_normalised() {
    let list = json!([
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": "hi", "name": "x"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
        {"role": "tool", "content": "5", "tool_call_id": "1"},
    ]);
    let normal = messages(&list).unwrap();
    assert_eq!(normal[0], json!({"role": "system", "content": "a\nb"}));
    assert_eq!(normal[1]["name"], "x");
    assert_eq!(
        normal[2]["tool_calls"][0]["function"]["arguments"],
        json!({"x": 1})
    );
    assert_eq!(normal[3]["tool_call_id"], "1");
}

#[test]
fn wrong_messages_are_refused_by_place() {
    let image = json!([{"type": "image_url", "image_url": {"url": "data:"}}]);
    for (list, place) in [
        (json!([]), "messages"),
        (json!("hi"), "messages"),
        (json!(["hi"]), "messages[0]"),
        (
            json!([{"role": "king", "content": "x"}]),
            "messages[0].role",
        ),
        (json!([{"role": "user"}]), "messages[0].content"),
        (
            json!([{"role": "user", "content": 5}]),
            "messages[0].content",
        ),
        (
            json!([{"role": "user", "content": image}]),
            "messages[0].content[0]",
        ),
        (
            json!([{"role": "user", "content": [{"text": "x"}]}]),
            "messages[0].content[0].type",
        ),
    ] {
        assert_eq!(messages(&list).unwrap_err().param.as_deref(), Some(place));
    }
}

#[test]
fn tool_choice_none_withholds_the_tools() {
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let with = |more: Value| match chat(&more).unwrap().input {
        Input::Chat(conversation) => conversation.tools,
        Input::Prompts(_) => None,
    };
    assert_eq!(with(json!({"tools": tools})), Some(tools.clone()));
    assert_eq!(with(json!({"tools": tools, "tool_choice": "none"})), None);
}

#[test]
fn tokenise_takes_text_or_messages() {
    assert!(matches!(
        parse_tokenise(b"{\"content\":\"a\"}").unwrap(),
        Input::Prompts(_)
    ));
    let list = b"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}";
    assert!(matches!(parse_tokenise(list).unwrap(), Input::Chat(_)));
    assert_eq!(
        parse_tokenise(b"{}").unwrap_err().param.as_deref(),
        Some("content")
    );
    assert_eq!(parse_tokenise(b"[]").unwrap_err().param, None);
}
