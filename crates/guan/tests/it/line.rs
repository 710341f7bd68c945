//! The line before a busy model: who waits, who is told what, and who never starts.
#![cfg(test)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use testkit::client::{Client, Connection};
use testkit::server::{Guan, in_front_of, write_file};
use testkit::upstream::{Answer, Mark, Received, Upstream};

use crate::guan;

const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
const STREAM: &str = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
const WHOLE: &str = r#"{"id":"c","object":"chat.completion","created":1,"model":"u","choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8}}"#;
const CHUNK: &str = r#"{"id":"c","object":"chat.completion.chunk","created":1,"model":"u","choices":[{"index":0,"delta":{"content":"ok"},"finish_reason":"stop"}]}"#;

/// A model server that answers only once it may, and knows how many calls it ever had at the same time.
struct Held {
    upstream: Upstream,
    may_answer: Arc<Mark>,
    most: Arc<AtomicUsize>,
}

fn held() -> Held {
    let (may_answer, most, now) = (
        Arc::new(Mark::default()),
        Arc::default(),
        AtomicUsize::new(0),
    );
    let (wait, highest) = (Arc::clone(&may_answer), Arc::<AtomicUsize>::clone(&most));
    let upstream = Upstream::start(move |request: &Received, answer: &mut Answer<'_>| {
        highest.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        wait.wait(1);
        now.fetch_sub(1, Ordering::SeqCst);
        if request.json()["stream"] == true {
            answer.sse();
            answer.event(CHUNK);
            answer.event("[DONE]");
            answer.end();
        } else {
            answer.json(200, WHOLE);
        }
    });
    Held {
        upstream,
        may_answer,
        most,
    }
}

fn counted(url: &str, places: u32, more: &str) -> String {
    let config = in_front_of(url) + &format!("concurrency = {places}\n");
    let config = config.replacen("name = \"m\"\n", &format!("name = \"m\"\n{more}"), 1);
    config + "\n[roles.fast]\nrequests_per_minute = 100000\nmax_output_tokens = 100\n"
}

/// A call that is sent and not waited for.
fn send(client: &Client, body: &str, headers: &str) -> Connection {
    let mut connection = client.connect().unwrap();
    connection.write(client.request("POST", "/v1/chat/completions", headers, Some(body)));
    connection
}

#[test]
fn more_calls_than_places_wait_and_all_are_answered() {
    let held = held();
    let mut guan = Guan::start(guan(), &counted(&held.upstream.url(), 2, ""));
    let client = guan.caller("fast");
    let calls: Vec<_> = (0..10)
        .map(|n| send(&client, if n % 2 == 0 { CHAT } else { STREAM }, ""))
        .collect();
    held.upstream.wait_received(2);
    held.may_answer.set();
    for mut call in calls {
        assert_eq!(call.response().status, 200);
    }
    assert_eq!(held.most.load(Ordering::SeqCst), 2);
    assert_eq!(held.upstream.received().len(), 10);
    for call in guan.wait_calls(10) {
        assert_eq!(call["event.outcome"], "success", "{call}");
    }
}

#[test]
fn who_leaves_the_line_never_starts_and_pays_nothing() {
    let held = held();
    let mut guan = Guan::start(guan(), &counted(&held.upstream.url(), 1, ""));
    let client = guan.caller("fast");
    let mut first = send(&client, CHAT, "");
    held.upstream.wait_received(1);
    // In the line, one of each kind; then they leave.
    for body in [CHAT, STREAM] {
        let mut call = send(&client, body, "");
        // It reads what TLS says, so that it leaves in good order: a reset could overtake its request.
        assert!(!call.readable_within(Duration::from_millis(200)));
    }
    let gone = guan.wait_calls(2);
    held.may_answer.set();
    assert_eq!(first.response().status, 200);
    assert_eq!(client.chat(CHAT).status, 200);
    for call in gone {
        let charged = &call["guan.call"]["charged"];
        assert_eq!(
            (charged["input"].as_u64(), charged["output"].as_u64()),
            (Some(0), Some(0))
        );
        assert_eq!(call["guan.call"]["ending"], "client-gone");
    }
    assert_eq!(held.upstream.received().len(), 2);
}

#[test]
fn what_can_not_start_in_time_is_refused_with_a_truthful_wait() {
    let held = held();
    let more = "queue = 2\nqueue_timeout = \"300ms\"\n";
    let guan = Guan::start(guan(), &counted(&held.upstream.url(), 1, more));
    let (client, other) = (guan.caller("fast"), guan.caller("fast"));
    let mut first = send(&client, CHAT, "");
    held.upstream.wait_received(1);
    // A service is taken to last a second before one was seen: nobody would start within 300 ms.
    let refused = other.chat(CHAT);
    assert_eq!(
        (refused.status, refused.error().0),
        (503, "server_is_overloaded".into())
    );
    assert_eq!(refused.headers["retry-after-ms"], "1000");
    let config = counted(
        &held.upstream.url(),
        1,
        "queue = 2\nqueue_timeout = \"1m\"\n",
    );
    write_file(&guan.data().join("guan.toml"), &config);
    let mut waiting = loop {
        // Until the new file is in force.
        let mut call = send(&client, CHAT, "X-Stainless-Timeout: 30\r\n");
        if !call.readable_within(Duration::from_millis(100)) {
            break call;
        }
        assert_eq!(call.response().status, 503);
    };
    // The client's own time limit counts.
    let impatient = send(&other, CHAT, "X-Stainless-Timeout: 1\r\n").response();
    assert_eq!(impatient.status, 503);
    let mut second = send(&client, CHAT, "");
    // The line is full: of three calls of one key the newest makes room for another key's first.
    let mut others = send(&other, STREAM, "");
    let full = second.response();
    assert_eq!((full.status, full.error().0), (429, "queue_full".into()));
    assert!(full.headers.contains_key("retry-after-ms"));
    held.may_answer.set();
    for call in [&mut first, &mut waiting, &mut others] {
        assert_eq!(call.response().status, 200);
    }
    assert_eq!(held.most.load(Ordering::SeqCst), 1);
}

#[test]
fn a_waiting_stream_is_told_its_position() {
    let held = held();
    let config = counted(&held.upstream.url(), 1, "").replacen(
        "[server]\n",
        "[server]\ncommit_after = \"100ms\"\ncomment_every = \"200ms\"\n",
        1,
    );
    let guan = Guan::start(guan(), &config);
    let client = guan.caller("fast");
    let mut first = send(&client, CHAT, "");
    held.upstream.wait_received(1);
    let mut stream = send(&client, STREAM, "");
    assert_eq!(stream.head().status, 200);
    let comment = stream.chunk().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&comment).trim_end(),
        ": queued: position 1, about 1 s"
    );
    held.may_answer.set();
    assert_eq!(first.response().status, 200);
    let mut rest = Vec::new();
    while let Some(chunk) = stream.chunk() {
        rest.extend(chunk);
    }
    assert!(
        String::from_utf8(rest)
            .unwrap()
            .ends_with("data: [DONE]\n\n")
    );
}

#[test]
fn a_key_that_is_taken_back_while_its_call_waits_never_starts() {
    let held = held();
    let mut guan = Guan::start(guan(), &counted(&held.upstream.url(), 1, ""));
    let client = guan.caller("fast");
    let made = guan.run(&["key", "create", "--json", "--name", "n", "--role", "fast"]);
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    let revoked = guan.client().with_key(made["key"].as_str().unwrap());
    let mut first = send(&client, CHAT, "");
    held.upstream.wait_received(1);
    let mut waiting: Vec<_> = [CHAT, STREAM].map(|body| send(&revoked, body, "")).into();
    for call in &mut waiting {
        assert!(!call.readable_within(Duration::from_millis(200)));
    }
    let done = guan.run(&["key", "revoke", made["id"].as_str().unwrap()]);
    assert!(done.status.success());
    held.may_answer.set();
    assert_eq!(first.response().status, 200);
    for mut call in waiting {
        assert_eq!(call.response().status, 401);
    }
    assert_eq!(client.chat(CHAT).status, 200);
    assert_eq!(held.upstream.received().len(), 2);
    for call in guan.wait_calls(4) {
        let output = &call["guan.call"]["charged"]["output"];
        let free = call["http.response.status_code"] == 401;
        assert_eq!(output == 0, free, "{call}");
    }
}

#[test]
fn a_client_whose_own_time_is_over_while_it_waits_never_starts() {
    let held = held();
    let mut guan = Guan::start(guan(), &counted(&held.upstream.url(), 1, ""));
    let client = guan.caller("fast");
    let mut first = send(&client, CHAT, "");
    held.upstream.wait_received(1);
    // One service is taken to last a second, so these have a chance, and then they haven't.
    let late = [CHAT, STREAM].map(|body| send(&client, body, "X-Stainless-Timeout: 2.2\r\n"));
    for mut call in late {
        let refused = call.response();
        let said = (refused.status, refused.error().0);
        assert_eq!(said, (503, "server_is_overloaded".into()));
        assert!(refused.headers.contains_key("retry-after-ms"));
    }
    held.may_answer.set();
    assert_eq!(first.response().status, 200);
    assert_eq!(client.chat(CHAT).status, 200);
    assert_eq!(held.upstream.received().len(), 2);
    let calls = guan.wait_calls(4);
    let refused = calls.iter().filter(|c| c["event.reason"] == "overloaded");
    assert_eq!(refused.count(), 2, "{calls:?}");
}

#[test]
fn a_retry_when_it_was_told_to_is_served() {
    let held = held();
    let more = "queue = 0\n";
    let guan = Guan::start(guan(), &counted(&held.upstream.url(), 1, more));
    let client = guan.caller("fast");
    let mut first = send(&client, CHAT, "");
    held.upstream.wait_received(1);
    // Nothing of this key waits: it isn't its fault.
    let refused = client.chat(CHAT);
    assert_eq!(
        (refused.status, refused.error().0),
        (503, "server_is_overloaded".into())
    );
    let wait: u64 = refused.headers["retry-after-ms"].parse().unwrap();
    assert_eq!(wait, 1000, "what a service is taken to last");
    held.may_answer.set();
    assert_eq!(first.response().status, 200);
    assert_eq!(client.chat(CHAT).status, 200);
}

#[test]
fn each_replica_gets_as_many_calls_as_it_says() {
    let (one, three) = (held(), held());
    let config = counted(&one.upstream.url(), 1, "").replacen(
        "[[models.replicas]]",
        &format!(
            "[[models.replicas]]\nurl = \"{}\"\nconcurrency = 3\n\n[[models.replicas]]",
            three.upstream.url()
        ),
        1,
    );
    let mut guan = Guan::start(guan(), &config);
    let client = guan.caller("fast");
    let calls: Vec<_> = (0..12).map(|_| send(&client, CHAT, "")).collect();
    one.upstream.wait_received(1);
    three.upstream.wait_received(3);
    one.may_answer.set();
    three.may_answer.set();
    for mut call in calls {
        assert_eq!(call.response().status, 200);
    }
    guan.wait_calls(12);
    let most = |held: &Held| held.most.load(Ordering::SeqCst);
    assert_eq!((most(&one), most(&three)), (1, 3));
}

#[test]
fn a_stream_that_comes_in_one_burst_has_a_first_byte_in_its_record() {
    let upstream = Upstream::start(|_request: &Received, answer: &mut Answer<'_>| {
        let events = format!("data: {CHUNK}\n\ndata: [DONE]\n\n");
        answer.write(format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: {}\r\n\r\n{events}",
            events.len()
        ));
    });
    let mut guan = Guan::start(guan(), &counted(&upstream.url(), 1, ""));
    assert_eq!(guan.caller("fast").chat(STREAM).status, 200);
    let call = guan.wait_calls(1)[0]["guan.call"].clone();
    assert!(call["first_byte_ns"].as_u64().unwrap_or(0) > 0, "{call}");
}
