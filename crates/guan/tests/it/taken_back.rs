//! Keys that are taken back while they stream, and addresses that guess keys.
#![cfg(test)]

use std::time::Duration;

use testkit::client::Connection;
use testkit::server::{Guan, in_front_of};
use testkit::upstream::{Answer, Received, Upstream};

use crate::guan;

const STREAM: &str = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
const ONE: &str = r#"{"id":"c","object":"chat.completion.chunk","created":1,"model":"u","choices":[{"index":0,"delta":{"content":"one"},"finish_reason":null}]}"#;
const LAST: &str = r#"{"id":"c","object":"chat.completion.chunk","created":1,"model":"u","choices":[{"index":0,"delta":{"content":"last"},"finish_reason":"stop"}]}"#;

/// One event, then silence until the client leaves or half a second is over, then the end.
fn slow(_request: &Received, answer: &mut Answer<'_>) {
    answer.sse();
    answer.event(ONE);
    if !answer.wait(Duration::from_millis(500)) {
        answer.event(LAST);
        answer.event("[DONE]");
        answer.end();
    }
}

/// One event, then silence until the client leaves.
fn endless(_request: &Received, answer: &mut Answer<'_>) {
    answer.sse();
    answer.event(ONE);
    answer.wait_gone();
}

fn do_this(guan: &Guan, words: &[&str]) {
    let done = guan.run(words);
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{words:?}: {errors}");
}

fn make(guan: &Guan, more: &[&str]) -> (String, String) {
    let words = [
        &["key", "create", "--json", "--name", "n", "--role", "user"],
        more,
    ]
    .concat();
    let made: serde_json::Value = serde_json::from_slice(&guan.run(&words).stdout).unwrap();
    let text = |name: &str| made[name].as_str().unwrap().to_owned();
    (text("id"), text("key"))
}

/// A stream whose first event has arrived.
fn streaming(guan: &Guan, key: &str) -> Connection {
    let client = guan.client().with_key(key);
    let mut connection = client.connect().unwrap();
    connection.write(client.request("POST", "/v1/chat/completions", "", Some(STREAM)));
    assert_eq!(connection.head().status, 200);
    let first = connection.chunk().unwrap();
    assert!(String::from_utf8_lossy(&first).contains("one"));
    connection
}

fn rest_of(mut connection: Connection) -> String {
    let mut rest = Vec::new();
    while let Some(chunk) = connection.chunk() {
        rest.extend(chunk);
    }
    String::from_utf8(rest).unwrap()
}

#[test]
fn a_stream_ends_when_its_key_is_taken_back_and_its_upstream_is_let_go() {
    let upstream = Upstream::start(endless);
    let mut guan = Guan::start(guan(), &in_front_of(&upstream.url()));
    do_this(&guan, &["project", "create", "p"]);
    let (revoked, rotated, disabled, other) = (
        make(&guan, &[]),
        make(&guan, &[]),
        make(&guan, &["--project", "p"]),
        make(&guan, &[]),
    );
    let bystander = streaming(&guan, &other.1);
    let acts: [(&str, &[&str], &str); 3] = [
        (&revoked.1, &["key", "revoke", &revoked.0], "revoked-key"),
        (
            &rotated.1,
            &["key", "rotate", &rotated.0, "--at-once", "--json"],
            "rotated-key",
        ),
        (
            &disabled.1,
            &["project", "disable", "p"],
            "project-disabled",
        ),
    ];
    for (number, (key, act, reason)) in acts.into_iter().enumerate() {
        let stream = streaming(&guan, key);
        do_this(&guan, act);
        let rest = rest_of(stream);
        assert!(rest.contains(r#""code":"invalid_api_key""#), "{rest}");
        assert!(rest.trim_end().ends_with("data: [DONE]"), "{rest}");
        assert!(upstream.gone().wait(u32::try_from(number + 1).unwrap()));
        let calls = guan.wait_calls(number + 1);
        let call = calls.last().unwrap();
        assert_eq!(call["event.reason"], reason, "{call}");
        assert!(
            call["guan.call"]["charged"]["output"].as_u64() >= Some(1),
            "{call}"
        );
        assert_eq!(guan.client().with_key(key).chat(CHAT).status, 401);
    }
    // Whose key is good goes on.
    assert_eq!(guan.calls().len(), 3);
    drop(bystander);
    guan.wait_calls(4);
}

#[test]
fn a_stream_may_finish_if_the_config_says_so_and_an_overlap_cuts_nothing() {
    let upstream = Upstream::start(slow);
    let config = in_front_of(&upstream.url());
    let finish = config.replacen("[server]\n", "[server]\non_revoke = \"finish\"\n", 1);
    assert_ne!(config, finish);
    let guan_ = Guan::start(guan(), &finish);
    let (id, key) = make(&guan_, &[]);
    let stream = streaming(&guan_, &key);
    do_this(&guan_, &["key", "revoke", &id]);
    assert!(rest_of(stream).contains("last"));
    assert_eq!(guan_.client().with_key(&key).chat(CHAT).status, 401);
    drop(guan_);
    let cut = Guan::start(guan(), &config);
    let (id, key) = make(&cut, &[]);
    let stream = streaming(&cut, &key);
    do_this(&cut, &["key", "rotate", &id, "--overlap", "1h", "--json"]);
    assert!(rest_of(stream).contains("last"));
}

#[test]
fn an_address_that_guesses_keys_is_slowed_and_valid_keys_from_it_are_served() {
    let upstream = Upstream::start(slow);
    let config = in_front_of(&upstream.url()).replacen(
        "[server]\n",
        "[server]\nfailed_credentials_per_minute = 5\n",
        1,
    );
    let guan = Guan::start(guan(), &config);
    let (_id, key) = make(&guan, &[]);
    let statuses: Vec<u16> = (0..8)
        .map(|n| {
            let guess = guan.client().with_key(&format!("sk-guess-{n}"));
            guess.get("/v1/models").status
        })
        .collect();
    assert_eq!(statuses, [401, 401, 401, 401, 401, 429, 429, 429]);
    let refused = guan.client().with_key("sk-guess").get("/v1/models");
    assert_eq!(refused.error().0, "rate_limit_exceeded");
    assert!(refused.headers.contains_key("retry-after-ms"));
    let known = guan.client().with_key(&key);
    assert_eq!(known.get("/v1/models").status, 200);
    // No credential at all is no guess.
    assert_eq!(guan.client().get("/v1/models").status, 401);
}
