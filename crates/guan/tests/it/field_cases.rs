//! Mistakes of other gateways, each tried on the running binary with a model server that lies.
//!
//! The number before a name is the case's; what is decided without a process is tested where it is decided.
#![cfg(test)]

use serde_json::{Value, json};
use testkit::client::Response;
use testkit::server::{Guan, in_front_of};
use testkit::upstream::{Answer, Received, Upstream};

use crate::guan;

pub(crate) const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;

fn chat_with(more: &str) -> String {
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}],{more}}}"#)
}

fn content(text: &str) -> String {
    json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "upstream-name",
           "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]})
    .to_string()
}

const STOP: &str = r#"{"id":"c","model":"upstream-name","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
const USAGE: &str =
    r#"{"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8}}"#;
const WHOLE: &str = r#"{"id":"c","object":"chat.completion","created":1,"model":"upstream-name","choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8}}"#;

/// A server that streams these events and `[DONE]` to who wants a stream, and a whole answer to others.
pub(crate) fn good(request: &Received, answer: &mut Answer<'_>) {
    if request.json()["stream"] != true {
        return answer.json(200, WHOLE);
    }
    answer.sse();
    for event in [&content("a"), &content("b"), STOP, USAGE, "[DONE]"] {
        answer.event(event);
    }
    answer.end();
}

pub(crate) fn pair(
    script: impl Fn(&Received, &mut Answer<'_>) + Send + Sync + 'static,
) -> (Upstream, Guan) {
    let upstream = Upstream::start(script);
    let guan = Guan::start(guan(), &in_front_of(&upstream.url()));
    (upstream, guan)
}

fn tokens(call: &Value) -> (u64, u64) {
    let charged = &call["guan.call"]["charged"];
    (
        charged["input"].as_u64().unwrap(),
        charged["output"].as_u64().unwrap(),
    )
}

fn error_event(response: &Response) -> Value {
    let events = response.events();
    assert_eq!(
        events.last().map(String::as_str),
        Some("[DONE]"),
        "{events:?}"
    );
    let error: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert!(error["error"]["message"].is_string(), "{events:?}");
    assert!(!response.text().contains(r#""finish_reason":"stop""#));
    error["error"].clone()
}

#[test]
fn a01_utf8_cut_by_a_chunk_boundary() {
    let event = format!(
        "data: {}\n\ndata: {STOP}\n\ndata: [DONE]\n\n",
        content("雪ñ🍋")
    );
    let at = event.find('雪').unwrap();
    let cuts = [at + 2, at + 4, at + 6];
    for by_byte in [false, true] {
        let event = event.clone().into_bytes();
        let (_upstream, guan) = pair(move |_, answer| {
            answer.sse();
            if by_byte {
                event.iter().for_each(|byte| {
                    answer.chunk([*byte]);
                });
            } else {
                let mut from = 0;
                for cut in cuts.into_iter().chain([event.len()]) {
                    answer.chunk(&event[from..cut]);
                    answer.pause();
                    from = cut;
                }
            }
            answer.end();
        });
        let response = guan.admin().chat(&chat_with(r#""stream":true"#));
        assert_eq!(response.status, 200);
        assert!(std::str::from_utf8(&response.body).is_ok());
        assert_eq!(response.content(), "雪ñ🍋");
    }
}

#[test]
fn a02_legal_sse_that_is_not_the_plain_form() {
    let plain = [
        content("a"),
        content("b"),
        STOP.to_owned(),
        USAGE.to_owned(),
    ];
    let crlf: String = plain.iter().map(|e| format!("data: {e}\r\n\r\n")).collect();
    let comments: String = plain
        .iter()
        .map(|e| format!(": waiting\n\ndata: {e}\n\n"))
        .collect();
    let no_space: String = plain.iter().map(|e| format!("data:{e}\n\n")).collect();
    let lines: String = plain
        .iter()
        .map(|e| {
            let (a, b) = e.split_once(',').unwrap();
            format!("event: x\nid: 7\nretry: 5\ndata: {a},\ndata: {b}\n\n")
        })
        .collect();
    let mut seen = Vec::new();
    for (form, cut) in [
        (crlf.clone(), 0),
        (crlf, 1),
        (comments, 0),
        (no_space, 0),
        (lines, 0),
    ] {
        let (_upstream, guan) = pair(move |_, answer| {
            answer.sse();
            if cut == 1 {
                // Between CR and LF.
                for piece in form.split_inclusive('\r') {
                    answer.chunk(piece);
                    answer.pause();
                }
            } else {
                answer.chunk(&form);
            }
            answer.chunk("data: [DONE]\n\n");
            answer.end();
        });
        let response = guan.admin().chat(&chat_with(r#""stream":true"#));
        let events: Vec<Value> = response.events()[..3]
            .iter()
            .map(|event| serde_json::from_str(event).unwrap())
            .collect();
        assert_eq!(response.events()[3], "[DONE]");
        assert_eq!(response.content(), "ab");
        seen.push(events);
        let mut guan = guan;
        assert_eq!(tokens(&guan.wait_calls(1)[0]), (3, 5));
    }
    assert!(seen.windows(2).all(|two| two[0] == two[1]));
}

#[test]
fn a03_a_clean_end_without_a_marker_is_no_success() {
    for reset in [false, true] {
        let (_upstream, mut guan) = pair(move |_, answer| {
            answer.sse();
            answer.event(&content("a"));
            answer.event(&content("b"));
            answer.pause();
            if reset { answer.cut() } else { answer.end() }
        });
        let response = guan.admin().chat(&chat_with(r#""stream":true"#));
        error_event(&response);
        assert_eq!(response.content(), "ab");
        let call = &guan.wait_calls(1)[0];
        assert_eq!(call["guan.call"]["ending"], "upstream-failed");
        assert_eq!(call["event.outcome"], "failure");
        assert_eq!(tokens(call).1, 2);
    }
    let (_upstream, mut guan) = pair(|_, answer| {
        answer.sse();
        answer.event(&content("a"));
        answer.event(STOP);
        answer.event(USAGE);
        answer.end();
    });
    let response = guan.admin().chat(&chat_with(r#""stream":true"#));
    assert_eq!(response.events().last().map(String::as_str), Some("[DONE]"));
    let call = &guan.wait_calls(1)[0];
    assert_eq!(
        (call["guan.call"]["ending"].as_str(), tokens(call)),
        (Some("finished"), (3, 5))
    );
}

#[test]
fn a04_an_error_inside_a_200_stream() {
    const ERROR: &str =
        r#"{"error":{"message":"too long","type":"BadRequestError","code":400},"choices":[]}"#;
    let (_upstream, mut guan) = pair(|request, answer| {
        answer.sse();
        if request.json()["messages"][0]["content"] == "late" {
            for _ in 0..3 {
                answer.event(&content("x"));
                answer.pause();
            }
        }
        answer.event(ERROR);
        answer.event("[DONE]");
        answer.end();
    });
    let response = guan.admin().chat(&chat_with(r#""stream":true"#));
    assert_eq!(response.status, 400);
    assert_eq!(response.json()["error"]["message"], "too long");
    assert_eq!(response.error().1, "");
    let late = chat_with(r#""stream":true"#).replace("hi", "late");
    let response = guan.admin().chat(&late);
    assert_eq!(response.status, 200);
    assert_eq!(error_event(&response)["message"], "too long");
    assert_eq!(response.content(), "xxx");
    for call in guan.wait_calls(2) {
        assert_eq!(call["event.outcome"], "failure");
    }
}

#[test]
fn a05_a_client_that_leaves_frees_its_place_and_the_upstream() {
    let (upstream, mut guan) = pair(
        |request, answer| match request.json()["messages"][0]["content"].as_str() {
            Some("stream") => {
                answer.sse();
                answer.event(&content("a"));
                answer.wait_gone();
            }
            Some("whole") => {
                answer.wait_gone();
            }
            _ => good(request, answer),
        },
    );
    let mut config = testkit::server::read_file(&guan.data().join("guan.toml"));
    config.push_str("\n[roles.one]\nmodels = [\"*\"]\nrequests_per_minute = 1000\nmax_output_tokens = 64\nconcurrent_requests = 1\n");
    testkit::server::write_file(&guan.data().join("guan.toml"), &config);
    guan.wait_log("in force");
    let caller = guan.caller("one");
    for (round, (text, stream)) in [("stream", true), ("whole", false), ("stream", true)]
        .into_iter()
        .enumerate()
    {
        let body = chat_with(&format!(r#""stream":{stream}"#)).replace("hi", text);
        let mut connection = caller.connect().unwrap();
        connection.write(caller.request("POST", "/v1/chat/completions", "", Some(&body)));
        upstream.wait_received(round * 2 + 1);
        if stream {
            assert_eq!(connection.head().status, 200);
            assert!(connection.chunk().is_some());
        }
        assert_eq!(caller.chat(CHAT).status, 429, "the one place is taken");
        drop(connection);
        assert!(
            upstream.gone().wait(u32::try_from(round).unwrap() + 1),
            "the upstream was let go"
        );
        let mut status = 0;
        guan.until("the place is free", |_| {
            status = caller.chat(CHAT).status;
            status != 429
        });
        assert_eq!(status, 200);
    }
    let gone = |call: &&Value| call["guan.call"]["ending"] == "client-gone";
    assert_eq!(guan.calls().iter().filter(gone).count(), 3);
}

#[test]
fn a07_usage_is_always_asked_for_on_streams_and_never_elsewhere() {
    let (upstream, mut guan) = pair(|request, answer| {
        if request.json()["messages"][0]["content"] == "silent" {
            answer.sse();
            answer.event(&content("a"));
            answer.event(&content("b"));
            answer.event(STOP);
            answer.event("[DONE]");
            return answer.end();
        }
        good(request, answer);
    });
    let admin = guan.admin();
    for more in [
        r#""stream":true"#,
        r#""stream":true,"stream_options":null"#,
        r#""stream":true,"stream_options":{"include_usage":false}"#,
        r#""stream":true,"stream_options":{"include_usage":false,"continuous_usage_stats":true}"#,
    ] {
        assert_eq!(admin.chat(&chat_with(more)).status, 200);
        let sent = upstream.received().pop().unwrap().json();
        assert_eq!(
            sent["stream_options"],
            json!({"include_usage": true}),
            "{more}"
        );
    }
    for more in [r#""stream":false"#, r#""temperature":1"#] {
        assert_eq!(admin.chat(&chat_with(more)).status, 200);
        assert!(
            upstream
                .received()
                .pop()
                .unwrap()
                .json()
                .get("stream_options")
                .is_none()
        );
    }
    assert_eq!(
        admin
            .chat(&chat_with(r#""stream":true"#).replace("hi", "silent"))
            .status,
        200
    );
    let calls = guan.wait_calls(7);
    assert!(calls[..6].iter().all(|call| tokens(call) == (3, 5)));
    assert_eq!(
        (
            calls[6]["guan.call"]["source"].as_str(),
            tokens(&calls[6]).1
        ),
        (Some("counted"), 2)
    );
}

#[test]
fn a08_the_usage_only_chunk_in_every_shape() {
    let shapes = [
        (USAGE.to_owned(), false),
        (USAGE.replace(r#""choices":[],"#, ""), false),
        (USAGE.replace("[]", "null"), false),
        (USAGE.to_owned(), true),
    ];
    for (usage, first) in shapes {
        let (_upstream, mut guan) = pair(move |_, answer| {
            answer.sse();
            if first {
                answer.event(&usage);
            }
            answer.event(&content("a").replace(r#""finish"#, r#""usage":null,"finish"#));
            answer.event(&content("b").replacen('{', r#"{"usage":null,"#, 1));
            answer.event(STOP);
            if !first {
                answer.event(&usage);
            }
            answer.event("[DONE]");
            answer.end();
        });
        let admin = guan.admin();
        let silent = admin.chat(&chat_with(r#""stream":true"#));
        assert_eq!((silent.status, silent.content().as_str()), (200, "ab"));
        assert!(
            !silent.text().contains("prompt_tokens"),
            "{}",
            silent.text()
        );
        assert_eq!(silent.events().len(), 4);
        let asking = admin.chat(&chat_with(
            r#""stream":true,"stream_options":{"include_usage":true}"#,
        ));
        assert_eq!(asking.text().matches("prompt_tokens").count(), 1);
        let events = asking.events();
        assert!(
            events[events.len() - 2].contains("prompt_tokens"),
            "{events:?}"
        );
        for call in guan.wait_calls(2) {
            assert_eq!(tokens(&call), (3, 5));
        }
    }
}

#[test]
fn a09_usage_on_every_chunk_is_a_running_total() {
    for cut in [false, true] {
        let (_upstream, mut guan) = pair(move |_, answer| {
            answer.sse();
            for n in 1..=10 {
                let usage = format!(r#"{{"usage":{{"prompt_tokens":7,"completion_tokens":{n}}},"#);
                answer.event(&content("x").replacen('{', &usage, 1));
                if cut && n == 6 {
                    answer.pause();
                    return answer.cut();
                }
            }
            answer.event(STOP);
            answer.event(r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":10}}"#);
            answer.event("[DONE]");
            answer.end();
        });
        let response = guan.admin().chat(&chat_with(r#""stream":true"#));
        assert!(
            !response.text().contains("prompt_tokens"),
            "usage wasn't asked for"
        );
        assert_eq!(
            tokens(&guan.wait_calls(1)[0]),
            (7, if cut { 6 } else { 10 })
        );
    }
}

#[test]
fn a14_duplicate_members_never_reach_the_upstream() {
    let (upstream, guan) = pair(good);
    let admin = guan.admin();
    let messages = r#""messages":[{"role":"user","content":"hi"}]"#;
    for body in [
        format!(r#"{{"model":"m","model":"big",{messages}}}"#),
        format!(r#"{{"model":"big","model":"m",{messages}}}"#),
        format!(r#"{{"model":"m","max_tokens":5,"max_tokens":9000,{messages}}}"#),
        format!(r#"{{"model":"m","stream":false,"stream":true,{messages}}}"#),
        format!(r#"{{"model":"m","mod\u0065l":"big",{messages}}}"#),
        r#"{"model":"m","messages":[{"role":"user","content":"a","content":"b"}]}"#.to_owned(),
        format!(r#"{{"model":"m",{messages},"metadata":{{"x":{{"a":1,"\u0061":2}}}}}}"#),
    ] {
        let response = admin.chat(&body);
        assert_eq!(response.status, 400, "{body}");
        assert_eq!(response.json()["error"]["type"], "invalid_request_error");
    }
    assert!(upstream.received().is_empty());
}

#[test]
fn a16_odd_values_for_the_output_cap() {
    let (upstream, guan) = pair(good);
    let caller = guan.caller("admin");
    for name in ["max_tokens", "max_completion_tokens", "n"] {
        for value in [
            "0",
            "-1",
            "1.5",
            "64.0",
            "1e2",
            "\"64\"",
            "true",
            "18446744073709551616",
            "[]",
            "{}",
        ] {
            let response = caller.chat(&chat_with(&format!(r#""{name}":{value}"#)));
            assert_eq!(response.status, 400, "{name}={value}");
            assert_eq!(response.error().1, name, "{value}");
        }
    }
    assert!(upstream.received().is_empty());
    for (more, sent) in [
        (r#""max_tokens":null"#, 8192),
        (r#""max_completion_tokens":null"#, 8192),
        (r#""temperature":1"#, 8192),
        (r#""max_tokens":999999"#, 8192),
        (r#""max_completion_tokens":64"#, 64),
    ] {
        assert_eq!(caller.chat(&chat_with(more)).status, 200, "{more}");
        let body = upstream.received().pop().unwrap().json();
        let caps: Vec<_> = ["max_tokens", "max_completion_tokens"]
            .iter()
            .filter_map(|name| body.get(name).map(|v| v.as_u64().unwrap()))
            .collect();
        assert_eq!(caps, [sent], "{more}");
    }
    // Whichever field a server obeys, it never sees more than the role allows.
    let both = r#""max_tokens":10,"max_completion_tokens":500000"#;
    assert_eq!(caller.chat(&chat_with(both)).status, 200);
    let body = upstream.received().pop().unwrap().json();
    assert!(body["max_completion_tokens"].as_u64().unwrap() <= 8192);
    assert_eq!(caller.chat(&chat_with(r#""n":50"#)).error().1, "n");
}

#[test]
fn a25_the_spelling_of_the_credential() {
    let (_upstream, guan) = pair(good);
    let (client, key) = (guan.client(), guan.key("admin"));
    let other = guan.key("admin");
    let lower = key.to_ascii_lowercase();
    for (headers, path, status) in [
        (
            format!("Authorization: Bearer {key}\r\n"),
            "/v1/models",
            200,
        ),
        (
            format!("Authorization: bearer {key}\r\n"),
            "/v1/models",
            200,
        ),
        (
            format!("Authorization: BEARER   {key}\r\n"),
            "/v1/models",
            200,
        ),
        (
            format!("Authorization: Bearer {key} \r\n"),
            "/v1/models",
            200,
        ),
        (format!("x-api-key: {key}\r\n"), "/v1/models", 200),
        (format!("api-key: {key}\r\n"), "/v1/models", 200),
        (
            format!("Authorization: Bearer {key},{other}\r\n"),
            "/v1/models",
            401,
        ),
        ("Authorization: Bearer\r\n".to_owned(), "/v1/models", 401),
        (format!("Authorization: Bearer{key}\r\n"), "/v1/models", 401),
        (format!("Authorization: Basic {key}\r\n"), "/v1/models", 401),
        (
            format!("Authorization: Bearer {lower}\r\n"),
            "/v1/models",
            401,
        ),
        (
            format!("Authorization: Bearer {key}\r\nAuthorization: Bearer {other}\r\n"),
            "/v1/models",
            401,
        ),
        (
            format!("Authorization: Bearer {key}\r\nx-api-key: {other}\r\n"),
            "/v1/models",
            401,
        ),
        (String::new(), "/v1/models", 401),
    ] {
        let response = client.send("GET", path, &headers, None);
        assert_eq!(response.status, status, "{}", headers.replace(&key, "K1"));
        if status == 401 {
            assert_eq!(response.headers["www-authenticate"], "Bearer");
            assert_eq!(response.error().0, "invalid_api_key");
        }
    }
    let in_url = client.get(&format!("/v1/models?api_key={key}"));
    assert_eq!(in_url.status, 401);
    let mut guan = guan;
    assert!(!guan.log_text().contains(&key));
}

#[test]
fn a26_secrets_of_the_caller_stay_here() {
    let (upstream, guan) = pair(|request, answer| {
        if request.json()["messages"][0]["content"] == "redirect" {
            let redirect =
                "HTTP/1.1 307 X\r\nLocation: http://127.0.0.1:9/steal\r\nContent-Length: 0\r\n\r\n";
            answer.write(redirect);
            return;
        }
        answer.write(format!(
            "HTTP/1.1 200 OK\r\nServer: u\r\nSet-Cookie: a=b\r\nX-Powered-By: p\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{WHOLE}",
            WHOLE.len()
        ));
    });
    let key = guan.key("admin");
    let admin = guan.client().with_key(&key);
    let canaries = "Cookie: canary=1\r\nProxy-Authorization: canary\r\nx-goog-api-key: canary\r\nX-Internal-Token: canary\r\nX-Forwarded-For: canary\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
    let response = admin.send(
        "POST",
        "/v1/chat/completions?canary=1",
        canaries,
        Some(CHAT),
    );
    assert_eq!(response.status, 200);
    for refused in ["server", "set-cookie", "x-powered-by"] {
        assert!(!response.headers.contains_key(refused), "{refused}");
    }
    let head = upstream.received().pop().unwrap().head;
    assert!(!head.contains("canary") && !head.contains(&key), "{head}");
    assert!(head.contains("traceparent"));
    assert_eq!(admin.chat(&CHAT.replace("hi", "redirect")).status, 502);
}

#[test]
fn a28_path_tricks_around_authorisation() {
    let (upstream, guan) = pair(good);
    let (client, user) = (guan.client(), guan.caller("admin"));
    for path in [
        "//v1/models",
        "/v1//models",
        "/v1/models/",
        "/V1/Models",
        "/v1/%6dodels",
        "/livez/../v1/models",
        "/livez/%2e%2e/v1/models",
        "/livez/..%2fadmin/keys",
        "/admin;x=1/keys",
        "/v1/models%00",
        "/%zz",
        "/admin/v1/keys",
        "/metrics",
        "/docs",
        "http://x/admin/keys",
        "/v1/models?/livez",
    ] {
        let status = client.get(path).status;
        assert!(
            matches!(status, 400 | 401),
            "{path} without a key: {status}"
        );
        if path != "/v1/models?/livez" {
            let status = user.get(path).status;
            assert!(matches!(status, 400 | 404), "{path} with a key: {status}");
        }
    }
    assert_eq!(user.send("DELETE", "/v1/models", "", None).status, 405);
    assert_eq!(client.send("FOO", "/v1/models", "", None).status, 401);
    assert_eq!(client.send("POST", "/livez", "", Some("{}")).status, 405);
    assert!(upstream.received().is_empty());
}

#[test]
fn a31_an_answer_that_is_encoded_though_nobody_asked_is_refused() {
    let (upstream, guan) = pair(|_, answer| {
        answer.write("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\n\x1f\x08ab");
    });
    let response = guan.admin().send(
        "POST",
        "/v1/chat/completions",
        "Accept-Encoding: gzip\r\n",
        Some(CHAT),
    );
    assert_eq!(response.status, 502);
    assert_eq!(
        upstream.received()[0].header("accept-encoding"),
        ["identity"]
    );
}

#[test]
fn a32_hop_by_hop_fields_pass_in_neither_direction() {
    let (upstream, guan) = pair(|_, answer| {
        answer.write(format!(
            "HTTP/1.1 200 OK\r\nConnection: close, x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nTrailer: x\r\nUpgrade: h2c\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{WHOLE}",
            WHOLE.len()
        ));
    });
    let hops = "Connection: X-Secret-Hop, x-request-id\r\nX-Secret-Hop: 1\r\nTE: trailers\r\nKeep-Alive: 1\r\nProxy-Connection: keep-alive\r\n";
    let response = guan
        .admin()
        .send("POST", "/v1/chat/completions", hops, Some(CHAT));
    assert_eq!(response.status, 200);
    for name in ["x-hop", "keep-alive", "trailer", "upgrade"] {
        assert!(!response.headers.contains_key(name), "{name}");
    }
    let sent = &upstream.received()[0];
    for name in [
        "x-secret-hop",
        "te",
        "keep-alive",
        "proxy-connection",
        "connection",
    ] {
        assert!(sent.header(name).is_empty(), "{name}");
    }
    assert_eq!(sent.header("x-request-id").len(), 1);
}

#[test]
fn a34_small_on_the_wire_large_inside() {
    let (upstream, guan) = pair(good);
    let admin = guan.admin();
    let post = |headers: &str| {
        let key = admin.request("POST", "/v1/chat/completions", headers, None);
        key.replace("\r\n\r\n", "\r\nContent-Type: application/json\r\n\r\n")
    };
    let expecting = "Expect: 100-continue\r\nContent-Length: 50000000\r\n";
    let response = admin.raw(post(expecting));
    assert_eq!(response.status, 413, "no 100 came first");
    let bad = admin.with_key("sk-nobody");
    let response = bad.raw(bad.request("POST", "/v1/chat/completions", expecting, None));
    assert_eq!(response.status, 401);
    for encoding in ["gzip", "gzip, gzip", "br"] {
        let headers = format!("Content-Encoding: {encoding}\r\n");
        assert_eq!(
            admin
                .send("POST", "/v1/chat/completions", &headers, Some(CHAT))
                .status,
            415
        );
    }
    let deep = format!(r#""tools":{}{}"#, "[".repeat(3000), "]".repeat(3000));
    assert_eq!(admin.chat(&chat_with(&deep)).status, 400);
    assert_eq!(
        admin.chat(&chat_with(&deep.replace("tools", "foo"))).status,
        400
    );
    let wide = format!(r#""stop":[{}1]"#, "1,".repeat(500_000));
    assert_eq!(admin.chat(&chat_with(&wide)).status, 400);
    let text = admin.request(
        "POST",
        "/v1/chat/completions",
        "Content-Length: 2\r\nContent-Type: text/plain\r\n",
        None,
    );
    assert_eq!(admin.raw(text + "{}").status, 415);
    assert!(upstream.received().is_empty());
}
