//! What a caller is told, and what not, by the running binary.
#![cfg(test)]

use crate::field_cases::{CHAT, good, pair};

#[test]
fn what_a_server_says_of_itself_stays_here_and_some_json_is_no_answer() {
    let (upstream, mut guan) = pair(
        |request, answer| match request.json()["messages"][0]["content"].as_str() {
            Some("limit") => answer.json(
                429,
                r#"{"error":{"message":"key sk-upstream at 127.0.0.1 is spent","code":"x"}}"#,
            ),
            Some("bad") => answer.json(400, r#"{"error":{"message":"no, says 127.0.0.1"}}"#),
            _ => answer.json(200, r#"{"message":"boom"}"#),
        },
    );
    let admin = guan.admin();
    let limited = admin.chat(&CHAT.replace("hi", "limit"));
    assert_eq!(limited.status, 429);
    assert!(
        !limited.text().contains("sk-upstream"),
        "{}",
        limited.text()
    );
    let bad = admin.chat(&CHAT.replace("hi", "bad"));
    assert_eq!(bad.json()["error"]["message"], "no, says …");
    assert_eq!(admin.chat(CHAT).status, 502);
    assert_eq!(upstream.received().len(), 3);
    for call in guan.wait_calls(3) {
        assert_eq!(call["event.outcome"], "failure");
    }
}

#[test]
fn a_429_says_how_the_limit_stands() {
    let (_upstream, guan) = pair(good);
    let caller = guan.caller("user");
    let answers: Vec<_> = (0..11).map(|_| caller.chat(CHAT)).collect();
    let (refused, last) = (&answers[10], &answers[9]);
    assert_eq!((refused.status, last.status), (429, 200));
    for answer in [refused, last] {
        assert_eq!(answer.headers["x-ratelimit-limit-requests"], "10");
        assert_eq!(answer.headers["x-ratelimit-remaining-requests"], "0");
        assert!(answer.headers.contains_key("x-ratelimit-reset-requests"));
    }
    assert_eq!(refused.error().0, "rate_limit_exceeded");
    assert!(refused.headers["retry-after"].parse::<u64>().unwrap() <= 6);
}
