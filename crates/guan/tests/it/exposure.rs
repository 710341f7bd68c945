//! What outsiders get to see and can make grow: series of metrics, routes without a credential, secrets in records.
#![cfg(test)]

use std::collections::BTreeSet;

use testkit::client::{Client, Response};
use testkit::server::{Guan, in_front_of, write_file};
use testkit::upstream::Upstream;

use crate::guan;
use crate::secrets::{good, is_below};

const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
const TOKEN: &str = "a-collector-of-figures-1";
const UPSTREAM_KEY: &str = "sk-upstream-hunter2-and-more";

/// A server with a metrics door; its own secrets lie outside its data folder.
fn start(upstream: &Upstream, outside: &std::path::Path, server: &str) -> Guan {
    write_file(&outside.join("metrics"), TOKEN);
    write_file(&outside.join("upstream"), UPSTREAM_KEY);
    let (metrics, key) = (outside.join("metrics"), outside.join("upstream"));
    let config = in_front_of(&upstream.url()).replace("[server]\n", &format!("[server]\n{server}"));
    let config = format!(
        "{config}key = \"file:{}\"\n[metrics]\nlisten = \"127.0.0.1:0\"\ntoken = \"file:{}\"\n[roles.admin]\nrequests_per_minute = 100000\n",
        key.display(),
        metrics.display()
    );
    Guan::start_logging(guan(), &config, "trace")
}

fn figures(guan: &Guan) -> String {
    let shown = guan.metrics_door().with_key(TOKEN).get("/metrics");
    assert_eq!(shown.status, 200);
    shown.text()
}

/// The names and labels of all series.
fn series(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
        .collect()
}

/// Sends requests on one connection after another, as many as the server lets be on one.
fn flood(client: &Client, requests: impl Iterator<Item = String>) {
    let mut connection = client.connect().unwrap();
    for request in requests {
        if !connection.try_write(&request) {
            connection = client.connect().unwrap();
            connection.write(&request);
        }
        let response = connection.response();
        assert!(
            (400..500).contains(&response.status),
            "{request}: {}",
            response.status
        );
        if response
            .headers
            .get("connection")
            .is_some_and(|it| it == "close")
        {
            connection = client.connect().unwrap();
        }
    }
}

#[test]
fn a24_no_outsider_makes_series_grow() {
    let (upstream, outside) = (Upstream::start(good), tempfile::tempdir().unwrap());
    let guan = start(&upstream, outside.path(), "");
    let key = guan.key("admin");
    let call = |model: &str, user: usize| {
        let body = format!(
            r#"{{"model":"{model}","user":"u{user}","messages":[{{"role":"user","content":"hi"}}]}}"#
        );
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let get = |method: &str, path: &str, host: &str| {
        format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")
    };
    // One of each, so that each word is there once.
    let client = guan.client();
    flood(
        &client,
        [get("GET", "/x", "h"), call("none", 0), get("M1", "/x", "h")].into_iter(),
    );
    let before = series(&figures(&guan));
    flood(
        &client,
        (0..1500).map(|n| get("GET", &format!("/x{n}"), "h")),
    );
    flood(
        &client,
        (0..200).map(|n| get(&format!("M{n}"), "/v1/models", &format!("h{n}"))),
    );
    flood(&client, (0..800).map(|n| call(&format!("none-{n}"), n)));
    flood(
        &client,
        ["a\\\"b", "a\\\\b", "a\\nb"]
            .into_iter()
            .map(|model| call(model, 1)),
    );
    let text = figures(&guan);
    let after = series(&text);
    let grown: Vec<_> = after.difference(&before).collect();
    // A rate of refusals may have its first word.
    assert!(grown.len() <= 2, "{grown:?}");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert!(!name.contains("none-") && !name.contains("u1"), "{line}");
    }
}

#[test]
fn a29_everything_but_the_open_list_needs_a_key_and_nothing_is_tunnelled() {
    let (upstream, outside) = (Upstream::start(good), tempfile::tempdir().unwrap());
    let guan = start(&upstream, outside.path(), "");
    let client = guan.client();
    for path in [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/v1/models/m",
        "/v1/none",
        "/metrics",
        "/admin/v1/keys",
    ] {
        for method in [
            "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "FOO",
        ] {
            let mut connection = client.connect().unwrap();
            connection.write(client.request(method, path, "", None));
            assert_eq!(connection.head().status, 401, "{method} {path}");
        }
    }
    // Nothing is tunnelled, with a key or without.
    let caller = guan.caller("user");
    for upgrade in ["websocket", "h2c"] {
        let headers = format!("Upgrade: {upgrade}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n");
        assert_eq!(client.send("GET", "/v1/models", &headers, None).status, 401);
        let said = caller.send("GET", "/v1/models", &headers, None);
        assert_ne!(said.status, 101);
        assert!(!said.headers.contains_key("upgrade"));
    }
}

#[test]
fn a29_preflights_of_listed_origins_do_no_work_and_others_see_nothing_of_it() {
    let (upstream, outside) = (Upstream::start(good), tempfile::tempdir().unwrap());
    let guan = start(
        &upstream,
        outside.path(),
        "cors_origins = [\"https://app.example\"]\n",
    );
    let (client, caller) = (guan.client(), guan.caller("user"));
    let preflight = |origin: &str, path: &str| {
        let headers = format!(
            "Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n"
        );
        client.send("OPTIONS", path, &headers, None)
    };
    let allowed =
        |response: &Response| response.headers.get("access-control-allow-origin").cloned();
    let said = preflight("https://app.example", "/v1/chat/completions");
    assert_eq!(
        (said.status, allowed(&said).as_deref()),
        (204, Some("https://app.example"))
    );
    assert_eq!(
        said.headers["access-control-allow-headers"],
        "authorization"
    );
    assert!(said.body.is_empty());
    for (origin, path) in [
        ("https://evil.example", "/v1/chat/completions"),
        ("null", "/v1/models"),
    ] {
        let said = preflight(origin, path);
        assert_eq!(
            (said.status, allowed(&said)),
            (401, None),
            "{origin} {path}"
        );
    }
    // What isn't there is said to nobody without a key, whatever page asks.
    assert_eq!(preflight("https://app.example", "/v1/none").status, 401);
    // Answers, errors and streams can be read by the page, and by no other.
    let page = "Origin: https://app.example\r\n";
    let call = |client: &Client, origin: &str, body: &str| {
        client.send("POST", "/v1/chat/completions", origin, Some(body))
    };
    for (client, body, status) in [
        (&caller, CHAT, 200),
        (&client, CHAT, 401),
        (&caller, "{}", 400),
    ] {
        let said = call(client, page, body);
        assert_eq!(
            (said.status, allowed(&said).as_deref()),
            (status, Some("https://app.example"))
        );
        assert_eq!(said.headers["vary"], "Origin");
        assert_eq!(
            allowed(&call(client, "Origin: https://evil.example\r\n", body)),
            None
        );
    }
    assert!(
        upstream
            .received()
            .iter()
            .all(|request| request.header("origin").is_empty())
    );
}

/// What a command made: its id, and its text.
fn made(guan: &Guan, words: &[&str]) -> (String, String) {
    let done = guan.run(&[words, &["--json"]].concat());
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{words:?}: {errors}");
    let made: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    let text = made["key"].as_str().or(made["token"].as_str()).unwrap();
    (made["id"].as_str().unwrap().to_owned(), text.to_owned())
}

/// All that is answered to a credential wherever it can be put.
fn shown_everywhere(guan: &Guan, text: &str) -> String {
    let client = guan.client().with_key(text);
    let other = format!("x-api-key: {text}\r\n");
    let answers = [
        client.chat(CHAT),
        guan.client().get(&format!("/v1/models?api_key={text}")),
        guan.client().get(&format!("/v1/{text}")),
        guan.client().send("GET", "/v1/models", &other, None),
        guan.metrics_door().with_key(text).get("/metrics"),
        guan.admin_door()
            .with_key(text)
            .get(&format!("/admin/v1/keys/{text}")),
    ];
    let answers = answers
        .iter()
        .map(|it| format!("{:?}{}", it.headers, it.text()));
    answers.collect()
}

#[test]
fn a35_no_key_stands_in_a_log_a_record_an_error_a_figure_or_the_store() {
    let outside = tempfile::tempdir().unwrap();
    let upstream = Upstream::start(|request, answer| {
        // It echoes all that it was sent.
        let sent = request.header("authorization").join(",");
        answer.json(
            500,
            &serde_json::json!({ "error": { "message": format!("sent {sent}"), "type": "x" } })
                .to_string(),
        );
    });
    let mut guan = start(&upstream, outside.path(), "");
    let (id, key) = made(&guan, &["key", "create", "--name", "a", "--role", "user"]);
    let brief = [
        "key",
        "create",
        "--name",
        "b",
        "--role",
        "user",
        "--expires",
        "1s",
    ];
    let (_, short) = made(&guan, &brief);
    let (_, rotated) = made(&guan, &["key", "rotate", &id, "--overlap", "1h"]);
    let (_, admin) = made(
        &guan,
        &["admin", "create", "--name", "n", "--right", "owner"],
    );
    // A wrong one that begins as the right one does.
    let (begins, _) = key.split_once('_').unwrap();
    let wrong = format!("{begins}_{}", "0".repeat(49));
    let mut seen = String::new();
    guan.until("the short one has expired", |guan| {
        guan.client().with_key(&short).get("/v1/models").status == 401
    });
    for text in [&key, &rotated, &wrong, &short, &admin] {
        seen.push_str(&shown_everywhere(&guan, text));
    }
    let token = guan.admin_door().with_key(&admin);
    let paths = [
        "keys",
        "admins",
        "secrets",
        "me",
        "nodes",
        "audit/heads",
        "audit/key",
    ];
    for path in paths {
        seen.push_str(&token.get(&format!("/admin/v1/{path}")).text());
    }
    seen.push_str(&token.get(&format!("/admin/v1/keys/{id}")).text());
    assert!(guan.run(&["key", "revoke", &id]).status.success());
    seen.push_str(&guan.client().with_key(&key).chat(CHAT).text());
    seen.push_str(&figures(&guan));
    for words in [
        &["key", "list", "--json"][..],
        &["key", "show", &id],
        &["usage", "--csv"],
        &["config", "show"],
    ] {
        seen.push_str(&String::from_utf8_lossy(&guan.run(words).stdout));
    }
    // A process that is killed says nothing either.
    Guan::signal(guan.gateway_pid(), "KILL");
    guan.until("another gateway serves", |guan| {
        guan.client().get("/readyz").status == 200
    });
    assert_eq!(guan.stop(), Some(0));
    let log = guan.log_text();
    for secret in [key.as_str(), &rotated, &short, &admin, UPSTREAM_KEY, TOKEN] {
        // The part that proves it, too.
        let proof = secret.rsplit_once('_').map_or(secret, |(_, proof)| proof);
        for text in [secret, proof] {
            assert!(!seen.contains(text), "{text} in {seen}");
            assert!(!log.contains(text), "{text} in {log}");
            assert!(!is_below(guan.data(), text), "{text}");
        }
    }
}

#[test]
fn log_injection_leaves_one_line_a_record_and_no_order_for_a_terminal() {
    let (upstream, outside) = (Upstream::start(good), tempfile::tempdir().unwrap());
    let mut guan = start(&upstream, outside.path(), "max_body = \"32MiB\"\n");
    let caller = guan.caller("admin");
    let large = "A".repeat(5 << 20);
    let hostile = [
        r#"m\n{\"event.action\":\"key-create\"}"#,
        r"m\u001b[2J\u001b[31m",
        r"m\u0000\r\u009b1m",
        r"m\u202e\u2066x",
        &large,
    ];
    let mut calls = 0;
    for text in hostile {
        for body in [
            format!(r#"{{"model":"{text}","messages":[{{"role":"user","content":"hi"}}]}}"#),
            format!(
                r#"{{"model":"m","user":"{text}","{text}":1,"messages":[{{"role":"user","content":"{text}"}}]}}"#
            ),
        ] {
            let said = caller.chat(&body);
            assert!(
                [200, 400, 404, 413].contains(&said.status),
                "{}",
                said.status
            );
            calls += 1;
        }
    }
    // Not UTF-8, and what no header may carry.
    let key = guan.key("admin");
    let mut raw = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\n"
    )
    .into_bytes();
    raw.extend_from_slice(b"\"\xff\xfe\"");
    assert_eq!(guan.client().raw(raw).status, 400);
    calls += 1;
    for path in ["/x%0a%1b[31m", "/v1/models/%0d%0aSet-Cookie:x"] {
        assert_eq!(caller.get(path).status, 404);
        assert_eq!(guan.client().get(path).status, 401);
    }
    let _calls = guan.wait_calls(calls);
    for file in std::fs::read_dir(guan.data().join("state/audit")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|it| it != "jsonl") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        for line in bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            assert!(
                line.iter().all(|b| *b >= 0x20),
                "{}",
                String::from_utf8_lossy(line)
            );
            assert!(line.len() < 64 << 10, "{} bytes", line.len());
            let record: serde_json::Value = serde_json::from_slice(line).unwrap();
            assert!(record["event.action"].is_string());
        }
    }
    assert!(guan.run(&["audit", "verify"]).status.success());
    let shown = guan.run(&["audit", "tail", "-n", "100"]);
    assert!(shown.stdout.iter().all(|b| *b >= 0x20 || *b == b'\n'));
    assert!(!String::from_utf8_lossy(&shown.stdout).contains('\u{202e}'));
    assert_eq!(guan.stop(), Some(0));
    let log = guan.log_text();
    assert!(
        !log.contains('\u{1b}') && !log.contains('\0') && !log.contains('\u{9b}'),
        "{log}"
    );
}
