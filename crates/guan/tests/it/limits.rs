//! Limits on the running binary: what is let through, what is charged on which ending, what a caller is told.
//!
//! Calls run against a model server that lies; the number before a name is a field case's.
#![cfg(test)]

use std::time::Duration;

use serde_json::{Value, json};
use testkit::client::{Client, Response};
use testkit::server::{Guan, in_front_of};
use testkit::upstream::{Answer, Received, Upstream};

use crate::field_cases::{CHAT, good};
use crate::guan;

/// An answer that cost so many tokens.
pub(crate) fn whole(input: u64, output: u64) -> String {
    json!({"id": "c", "object": "chat.completion", "created": 1, "model": "u",
           "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
           "usage": {"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output}})
    .to_string()
}

fn start(
    more: &str,
    script: impl Fn(&Received, &mut Answer<'_>) + Send + Sync + 'static,
) -> (Upstream, Guan) {
    let upstream = Upstream::start(script);
    let config = format!("{}\n{more}", in_front_of(&upstream.url()));
    let guan = Guan::start(guan(), &config);
    (upstream, guan)
}

/// A role with a rate that no test reaches.
pub(crate) fn role(more: &str) -> String {
    format!("[roles.r]\nrequests_per_minute = 100000\nmax_output_tokens = 64\n{more}\n")
}

fn key_with(guan: &Guan, more: &[&str]) -> Client {
    let mut words = vec!["key", "create", "--name", "t", "--role", "r", "--json"];
    words.extend(more);
    let made = guan.run(&words);
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    guan.client().with_key(made["key"].as_str().unwrap())
}

pub(crate) fn chat_of(more: &str) -> String {
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}],{more}}}"#)
}

/// So many calls at the same time.
pub(crate) fn at_once(count: usize, clients: &[Client], body: &str) -> Vec<Response> {
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..count)
            .map(|n| {
                let client = &clients[n % clients.len()];
                scope.spawn(move || client.chat(body))
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    })
}

pub(crate) fn passed(responses: &[Response]) -> usize {
    for response in responses {
        assert!(
            [200, 429].contains(&response.status),
            "{}: {}",
            response.status,
            response.text()
        );
    }
    responses.iter().filter(|r| r.status == 200).count()
}

fn number(response: &Response, header: &str) -> u64 {
    response.headers[header].parse().unwrap()
}

#[test]
fn a06_a_place_is_free_again_on_every_exit() {
    let config = role("concurrent_requests = 2")
        + "[[models]]\nname = \"dead\"\n[[models.replicas]]\nurl = \"http://127.0.0.1:1\"\n";
    let upstream = Upstream::start(|request, answer| match request.json()["user"].as_str() {
        Some("never") => drop(answer.wait_gone()),
        Some("fails") => answer.json(502, r#"{"error":{"message":"no"}}"#),
        Some("midway") => {
            answer.sse();
            answer.event(r#"{"id":"c","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}"#);
            answer.cut();
        }
        _ => good(request, answer),
    });
    let front = in_front_of(&upstream.url()).replace(
        "\n[[models.replicas]]",
        "timeouts = { first_byte = \"100ms\" }\n[[models.replicas]]",
    );
    let guan = Guan::start(guan(), &format!("{front}\n{config}"));
    let caller = key_with(&guan, &[]);
    for (body, status) in [
        (chat_of(r#""user":"never""#), 504),
        (chat_of(r#""user":"never","stream":true"#), 504),
        (chat_of(r#""user":"fails""#), 502),
        (chat_of(r#""user":"midway","stream":true"#), 200),
        (CHAT.replace("\"m\"", "\"dead\""), 502),
        (CHAT.replace("\"m\"", "\"unknown\""), 404),
        (chat_of(r#""n":"two""#), 400),
        (chat_of(r#""stop":[1]"#), 400),
    ] {
        for _ in 0..5 {
            assert_eq!(caller.chat(&body).status, status, "{body}");
        }
    }
    assert_eq!(passed(&at_once(2, &[caller], CHAT)), 2);
}

#[test]
fn a10_two_hundred_calls_at_once_pass_exactly_as_often_as_the_limit_says() {
    let config = role("limits = [\"10 requests/hour\"]");
    let (upstream, guan) = start(&config, |request, answer| {
        answer.wait(Duration::from_millis(50));
        good(request, answer);
    });
    let one = [key_with(&guan, &[])];
    assert_eq!(passed(&at_once(200, &one, CHAT)), 10);
    let four: Vec<Client> = (0..4).map(|_| key_with(&guan, &[])).collect();
    assert_eq!(passed(&at_once(200, &four, CHAT)), 40);
    assert_eq!(upstream.received().len(), 50);
}

#[test]
fn a11_tokens_are_reserved_before_a_call_and_what_is_unused_comes_back() {
    let config = role("limits = [\"160 tokens/minute\"]");
    let (upstream, guan) = start(&config, |request, answer| {
        answer.wait(Duration::from_millis(50));
        let used = request.json()["user"]
            .as_str()
            .map_or(5, |n| n.parse().unwrap());
        answer.json(200, &whole(3, used));
    });
    let parallel = [key_with(&guan, &[])];
    let sixty = chat_of(r#""max_tokens":60"#);
    assert_eq!(passed(&at_once(5, &parallel, &sixty)), 1);
    // Without a cap the role's is reserved, and it is what the model server gets.
    let open = [key_with(&guan, &[])];
    assert_eq!(passed(&at_once(5, &open, CHAT)), 1);
    let sent = upstream.received().pop().unwrap().json();
    assert_eq!(sent["max_completion_tokens"], 64);
    // What isn't used comes back at once; what was used stays.
    let caller = key_with(&guan, &[]);
    for _ in 0..6 {
        assert_eq!(caller.chat(&sixty).status, 200);
    }
    let greedy = key_with(&guan, &[]);
    let response = greedy.chat(&chat_of(r#""max_tokens":60,"user":"100""#));
    assert_eq!(response.status, 200);
    assert_eq!(number(&response, "x-ratelimit-limit-tokens"), 160);
    let refused = greedy.chat(&sixty);
    assert_eq!(
        refused.status, 429,
        "more than was reserved is charged as reported"
    );
    let error = &refused.json()["error"];
    assert_eq!(
        (error["type"].as_str(), error["code"].as_str()),
        (Some("tokens"), Some("rate_limit_exceeded"))
    );
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("tokens per min (TPM): Limit 160, Used 103, Requested"),
        "{message}"
    );
    assert_eq!(refused.headers["x-ratelimit-remaining-tokens"], "57");
    assert!((1..=61).contains(&number(&refused, "retry-after")));
    assert!((1..=61_000).contains(&number(&refused, "retry-after-ms")));
}

#[test]
fn a_call_that_can_never_fit_is_400_and_a_small_limit_lets_small_calls_through() {
    let config = role("limits = [\"150 tokens/minute\"]\non_cap = \"refuse\"");
    let (upstream, guan) = start(&config, good);
    let caller = key_with(&guan, &[]);
    assert_eq!(caller.chat(CHAT).status, 200);
    let long = CHAT.replace("hi", &"x".repeat(200));
    let refused = caller.chat(&long);
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert_eq!(
        refused.error(),
        ("exceeds_limit".to_owned(), "max_tokens".to_owned())
    );
    assert!(
        refused.text().contains("your key, 150 tokens/minute"),
        "{}",
        refused.text()
    );
    assert_eq!(refused.headers["x-should-retry"], "false");
    assert_eq!(
        caller.chat(&chat_of(r#""max_tokens":65"#)).error().1,
        "max_tokens"
    );
    // An answer is as long as the limit has room for, with and without a cap of the caller's.
    let middling = CHAT.replace("hi", &"x".repeat(90));
    let other = key_with(&guan, &[]);
    assert_eq!(other.chat(&middling).status, 200);
    let cap = upstream.received().pop().unwrap().json()["max_completion_tokens"]
        .as_u64()
        .unwrap();
    assert!((1..64).contains(&cap), "{cap}");
}

#[test]
fn a12_a_reservation_holds_every_answer_of_every_prompt() {
    let (_upstream, mut guan) = start(&role("max_choices = 100"), good);
    let caller = key_with(&guan, &[]);
    let complete = |more: &str| {
        let body = format!(r#"{{"model":"m",{more}}}"#);
        caller
            .send("POST", "/v1/completions", "", Some(&body))
            .status
    };
    complete(r#""prompt":["a","b","c"],"n":2,"max_tokens":10"#);
    complete(r#""prompt":"a","best_of":5,"max_tokens":5000"#);
    complete(r#""prompt":[[1,2],[3,4]],"max_tokens":7"#);
    let calls = guan.wait_calls(3);
    let reserved = |n: usize| {
        calls[n]["guan.call"]["reserved"]["output"]
            .as_u64()
            .unwrap()
    };
    assert_eq!((reserved(0), reserved(1), reserved(2)), (60, 320, 14));
    assert_eq!(
        complete(&format!(r#""prompt":[{}]"#, vec!["\"a\""; 65].join(","))),
        400
    );
}

#[test]
fn what_many_share_is_shared_by_keys_of_a_project_a_role_a_model_and_the_node() {
    let config = role("[roles.r.shared]\nlimits = [\"9 requests/hour\"]")
        + "[limits.node]\nlimits = [\"12 requests/hour\"]\n"
        + "[roles.s]\nrequests_per_minute = 1000\nmax_output_tokens = 64\n";
    let upstream = Upstream::start(good);
    let front = in_front_of(&upstream.url()).replace(
        "name = \"m\"",
        "name = \"m\"\nlimits = [\"10 requests/hour\"]",
    );
    let other = "[[models]]\nname = \"o\"\n[[models.replicas]]\nurl = \"";
    let config = format!("{front}\n{other}{}\"\n{config}", upstream.url());
    let guan = Guan::start(guan(), &config);
    let made = guan.run(&["project", "create", "p", "--limit", "4 requests/hour"]);
    assert!(made.status.success());
    let calls = |client: &Client, body: &str, times: usize| -> usize {
        (0..times)
            .filter(|_| client.chat(body).status == 200)
            .count()
    };
    let (a, b) = (
        key_with(&guan, &["--project", "p"]),
        key_with(&guan, &["--project", "p"]),
    );
    assert_eq!((calls(&a, CHAT, 3), calls(&b, CHAT, 3)), (3, 1));
    let refused = b.chat(CHAT);
    assert!(
        refused
            .text()
            .contains("your project on requests per hour: Limit 4, Used 4"),
        "{}",
        refused.text()
    );
    assert_eq!(refused.headers["x-ratelimit-remaining-requests"], "0");
    let c = key_with(&guan, &[]);
    assert_eq!(calls(&c, CHAT, 9), 5, "nine of the role");
    assert!(c.chat(CHAT).text().contains("your role"));
    let s = guan.caller("s");
    assert_eq!(calls(&s, CHAT, 3), 1, "ten of the model");
    assert!(s.chat(CHAT).text().contains("the model"));
    assert_eq!(
        calls(&s, &CHAT.replace("\"m\"", "\"o\""), 5),
        2,
        "twelve of the node"
    );
    assert!(
        s.chat(&CHAT.replace("\"m\"", "\"o\""))
            .text()
            .contains("this server")
    );
}

#[test]
fn a20_each_limit_names_itself_and_says_when() {
    let config = role("concurrent_requests = 1\nlimits = [\"3 requests/hour\"]")
        + "[roles.b]\nrequests_per_minute = 1000\nmax_output_tokens = 64\nbudget = [\"150 tokens/month\"]\n";
    let (upstream, guan) = start(&config, |request, answer| {
        if request.json()["stream"] == true {
            answer.sse();
            answer.event(r#"{"id":"c","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}"#);
            answer.wait_gone();
            return;
        }
        answer.json(200, &whole(40, 60));
    });
    let caller = key_with(&guan, &[]);
    let mut running = caller.connect().unwrap();
    running.write(caller.request(
        "POST",
        "/v1/chat/completions",
        "",
        Some(&chat_of(r#""stream":true"#)),
    ));
    assert_eq!(running.head().status, 200);
    let refused = caller.chat(CHAT);
    assert_eq!((refused.status, number(&refused, "retry-after")), (429, 1));
    assert!(
        refused.text().contains("concurrent requests"),
        "{}",
        refused.text()
    );
    drop(running);
    assert!(upstream.gone().wait(1));
    let caller = key_with(&guan, &[]);
    assert!((0..3).all(|_| caller.chat(CHAT).status == 200));
    let refused = caller.chat(CHAT);
    let seconds = number(&refused, "retry-after");
    assert!((1000..=1200).contains(&seconds), "{seconds}");
    assert_eq!(
        refused.headers["x-should-retry"], "false",
        "nobody waits for twenty minutes"
    );
    assert!(
        refused
            .text()
            .contains("requests per hour: Limit 3, Used 3, Requested 1")
    );
    let spender = guan.caller("b");
    assert_eq!(spender.chat(CHAT).status, 200);
    let refused = spender.chat(CHAT);
    assert_eq!(refused.status, 429);
    let error = &refused.json()["error"];
    assert_eq!(
        (error["type"].as_str(), error["code"].as_str()),
        (Some("insufficient_quota"), Some("insufficient_quota"))
    );
    assert_eq!(refused.headers["x-should-retry"], "false");
    assert!(
        refused.text().contains("150 tokens/month"),
        "{}",
        refused.text()
    );
}

#[test]
fn a23_no_header_gives_an_address_a_fresh_allowance_and_a_valid_key_is_served() {
    let upstream = Upstream::start(good);
    let front = in_front_of(&upstream.url()).replace(
        "[server]\n",
        "[server]\nfailed_credentials_per_minute = 5\n",
    );
    let mut guan = Guan::start(guan(), &format!("{front}\n{}", role("")));
    let (caller, stranger) = (key_with(&guan, &[]), guan.client().with_key("sk-none"));
    let spoofs = |n: usize| {
        format!(
            "X-Forwarded-For: 1.2.3.{n}\r\nX-Forwarded-For: 203.0.113.9\r\nForwarded: for=\"[2001:db8::{n}]:443\"\r\nX-Real-IP: 9.9.9.{n}\r\n"
        )
    };
    let statuses: Vec<u16> = (0..50)
        .map(|n| {
            stranger
                .send("POST", "/v1/chat/completions", &spoofs(n), Some(CHAT))
                .status
        })
        .collect();
    assert_eq!(statuses.iter().filter(|s| **s == 401).count(), 5);
    assert_eq!(statuses.iter().filter(|s| **s == 429).count(), 45);
    let refused = stranger.chat(CHAT);
    assert!((1..=12).contains(&number(&refused, "retry-after")));
    assert_eq!(caller.chat(CHAT).status, 200, "a valid key is served");
    let call = guan.wait_calls(1).pop().unwrap();
    assert_eq!(call["source.ip"], "127.0.0.1");
}

#[test]
fn two_hundred_calls_are_charged_to_the_token_what_the_model_server_produced() {
    let config = role("limits = [\"60000 tokens/minute\", \"1000000 output_tokens/day\"]");
    let (_upstream, mut guan) = start(&config, |request, answer| {
        let tokens = 1 + request.json()["user"].as_str().unwrap().len() as u64;
        answer.json(200, &whole(7, tokens));
    });
    let caller = key_with(&guan, &[]);
    let produced: u64 = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..200_usize)
            .map(|n| {
                let caller = &caller;
                scope.spawn(move || {
                    let body = chat_of(&format!(
                        r#""max_tokens":60,"user":"{}""#,
                        "x".repeat(n % 60)
                    ));
                    assert_eq!(caller.chat(&body).status, 200);
                    7 + 1 + (n % 60) as u64
                })
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).sum()
    });
    let charged: u64 = guan
        .wait_calls(200)
        .iter()
        .map(|call| &call["guan.call"]["charged"])
        .map(|c| c["input"].as_u64().unwrap() + c["output"].as_u64().unwrap())
        .sum();
    assert_eq!(charged, produced);
    let after = caller.chat(&chat_of(r#""max_tokens":60,"user":"""#));
    let reserved = 60_000 - number(&after, "x-ratelimit-remaining-tokens") - produced;
    assert!(
        (61..200).contains(&reserved),
        "what is left: its own reservation ({reserved}) besides"
    );
}

#[test]
fn limits_outlive_a_restart() {
    let config = role("limits = [\"5 requests/hour\", \"500 tokens/hour\"]");
    let (_upstream, mut guan) = start(&config, |_, answer| answer.json(200, &whole(10, 50)));
    let (calls, tokens) = (
        key_with(&guan, &[]),
        key_with(&guan, &["--limit", "200 tokens/hour"]),
    );
    assert_eq!(
        (calls.chat(CHAT).status, calls.chat(CHAT).status),
        (200, 200)
    );
    assert_eq!(tokens.chat(CHAT).status, 200);
    assert_eq!(guan.stop(), Some(0));
    guan.serve();
    let again = |client: &Client| {
        // The port is a new one.
        guan.client().with_key(client.key().unwrap())
    };
    let response = again(&calls).chat(CHAT);
    assert_eq!(number(&response, "x-ratelimit-remaining-requests"), 2);
    let refused =
        again(&tokens).chat(&chat_of(r#""max_tokens":64"#).replace("hi", &"x".repeat(60)));
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert!(
        refused.text().contains("Limit 200, Used 60"),
        "{}",
        refused.text()
    );
}

#[test]
fn what_is_left_is_shown_and_a_fresh_start_frees_what_the_key_used_itself() {
    let config =
        role("limits = [\"3 requests/hour\"]\n[roles.r.shared]\nlimits = [\"9 requests/hour\"]");
    let (_upstream, mut guan) = start(&config, good);
    let caller = key_with(&guan, &[]);
    // `sk-guan-ID_…`
    let id = caller.key().unwrap().get(8..20).unwrap().to_owned();
    let shown = |guan: &Guan, act: &str| -> Vec<(String, String, u64)> {
        let said = guan.run(&["limits", act, &id, "--json"]);
        assert!(
            said.status.success(),
            "{}",
            String::from_utf8_lossy(&said.stderr)
        );
        let said: Value = serde_json::from_slice(&said.stdout).unwrap();
        let row = |row: &Value| {
            let text = |name: &str| row[name].as_str().unwrap().to_owned();
            (
                text("holder"),
                text("limit"),
                row["remaining"].as_u64().unwrap(),
            )
        };
        said["limits"].as_array().unwrap().iter().map(row).collect()
    };
    let passed = |n: usize| (0..n).filter(|_| caller.chat(CHAT).status == 200).count();
    assert_eq!(passed(5), 3);
    let own = ("key".to_owned(), "3 requests/hour".to_owned());
    let left = |rows: &[(String, String, u64)], of: &(String, String)| {
        let found = rows.iter().find(|row| (&row.0, &row.1) == (&of.0, &of.1));
        found.unwrap_or_else(|| panic!("{rows:?}")).2
    };
    let shared = ("role".to_owned(), "9 requests/hour".to_owned());
    let rows = shown(&guan, "show");
    assert_eq!((left(&rows, &own), left(&rows, &shared)), (0, 6));
    let rows = shown(&guan, "reset");
    assert_eq!((left(&rows, &own), left(&rows, &shared)), (3, 6));
    assert_eq!(passed(5), 3);
    guan.until("the reset is recorded", |guan| {
        let records = guan.records();
        let reset = records.iter().find(|r| r["event.action"] == "limits-reset");
        reset.is_some_and(|r| r.to_string().contains("3 requests/hour"))
    });
    assert_eq!(guan.stop(), Some(0));
    let said = guan.run(&["limits", "show", &id]);
    assert!(String::from_utf8_lossy(&said.stderr).contains("start `guan serve`"));
}

#[test]
fn budgets_outlive_a_restart() {
    let config =
        role("budget = [\"200 tokens/month\"]\n[roles.r.shared]\nbudget = [\"400 tokens/month\"]");
    let (_upstream, mut guan) = start(&config, |_, answer| answer.json(200, &whole(10, 80)));
    let made = guan.run(&["project", "create", "p", "--budget", "270 tokens/week"]);
    assert!(made.status.success());
    let (one, two) = (
        key_with(&guan, &["--project", "p"]),
        key_with(&guan, &["--project", "p"]),
    );
    assert_eq!((one.chat(CHAT).status, two.chat(CHAT).status), (200, 200));
    assert_eq!(guan.stop(), Some(0));
    guan.serve();
    let again = |client: &Client| guan.client().with_key(client.key().unwrap());
    // 90 of the key's 200, 180 of the project's 270 are spent: one more call of at most 80 fits in both, and no other.
    let small = chat_of(r#""max_tokens":10"#);
    assert_eq!(again(&one).chat(&small).status, 200);
    let refused = again(&one).chat(&small);
    assert_eq!(
        refused.error().0,
        "insufficient_quota",
        "{}",
        refused.text()
    );
    let refused = again(&two).chat(&small);
    assert!(
        refused
            .text()
            .contains("The budget of your project is spent: 270 tokens/week, used 270 tokens"),
        "{}",
        refused.text()
    );
}
