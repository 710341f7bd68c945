//! Limits that two nodes share in one real Redis: exact while it answers, never open by mistake while it doesn't.
//!
//! The number before a name is a field case's. Without the packages the tests have nothing to run against.
#![cfg(test)]

use std::time::Duration;

use testkit::client::Client;
use testkit::redis::{Redis, Watched};
use testkit::server::{Guan, in_front_of};
use testkit::upstream::{Answer, Received, Upstream};

use crate::field_cases::{CHAT, good};
use crate::guan;
use crate::limits::{at_once, chat_of, passed, role, whole};

/// A decision may wait long, where a test's machine does other things besides.
const PATIENT: &str = "timeout = \"1s\"";

fn limits_in(redis: &Redis, more: &str) -> String {
    format!(
        "[limits]\nbackend = \"redis://127.0.0.1:{}\"\n{more}\n",
        redis.port
    )
}

fn upstream(script: impl Fn(&Received, &mut Answer<'_>) + Send + Sync + 'static) -> Upstream {
    Upstream::start(script)
}

fn node(upstream: &Upstream, more: &str) -> Guan {
    Guan::start(guan(), &format!("{}\n{more}", in_front_of(&upstream.url())))
}

/// Two nodes, each with a key of its own of one role: what they share is the role's.
fn two(upstream: &Upstream, config: &str) -> ([Guan; 2], [Client; 2]) {
    let nodes = [node(upstream, config), node(upstream, config)];
    let clients = [nodes[0].caller("r"), nodes[1].caller("r")];
    (nodes, clients)
}

fn number(response: &testkit::client::Response, header: &str) -> u64 {
    response.headers[header].parse().unwrap()
}

#[test]
fn a10_two_nodes_on_one_redis_let_through_exactly_the_limit() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let upstream = upstream(|request, answer| {
        answer.wait(Duration::from_millis(50));
        good(request, answer);
    });
    let config =
        role("limits = [\"10 requests/hour\"]\n[roles.r.shared]\nlimits = [\"15 requests/hour\"]")
            + &limits_in(&redis, &format!("{PATIENT}\nwhen_unreachable = \"refuse\""));
    let (nodes, clients) = two(&upstream, &config);
    // One node: its key's ten.
    assert_eq!(passed(&at_once(200, &clients[..1], CHAT)), 10);
    // Both: what the role has left.
    assert_eq!(passed(&at_once(200, &clients, CHAT)), 5);
    assert_eq!(upstream.received().len(), 15);
    let refused = clients[1].chat(CHAT);
    assert!(
        refused
            .text()
            .contains("your role on requests per hour: Limit 15, Used 15"),
        "{}",
        refused.text()
    );
    assert_eq!(refused.headers["x-ratelimit-remaining-requests"], "0");
    drop(nodes);
}

#[test]
fn two_nodes_charge_to_the_token_what_the_model_server_produced() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let upstream = upstream(|request, answer| {
        let tokens = 1 + request.json()["user"].as_str().unwrap().len() as u64;
        answer.json(200, &whole(7, tokens));
    });
    let config = role(
        "[roles.r.shared]\nlimits = [\"60000 tokens/minute\"]\nbudget = [\"100000 tokens/month\"]",
    ) + &limits_in(&redis, &format!("{PATIENT}\nwhen_unreachable = \"refuse\""));
    let (nodes, clients) = two(&upstream, &config);
    let produced: u64 = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..200_usize)
            .map(|n| {
                let client = &clients[n % 2];
                scope.spawn(move || {
                    let user = "x".repeat(n % 60);
                    let body = chat_of(&format!(r#""max_tokens":60,"user":"{user}""#));
                    assert_eq!(client.chat(&body).status, 200);
                    8 + (n % 60) as u64
                })
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).sum()
    });
    // The ends of calls reach the store a moment after them: then a call finds exactly its own reservation besides.
    let reservation = |client: &Client| {
        let after = client.chat(&chat_of(r#""max_tokens":60,"user":"""#));
        60_000 - number(&after, "x-ratelimit-remaining-tokens")
    };
    let mut own = 8;
    let mut last = 0;
    for client in clients.iter().cycle().take(40) {
        last = reservation(client) - produced - own;
        own += 8;
        if last < 61 {
            continue;
        }
        if last < 200 {
            drop(nodes);
            return;
        }
    }
    panic!("{last} tokens more than its own reservation");
}

#[test]
fn a17_whatever_becomes_of_redis_the_configured_rule_holds_and_recovery_needs_no_restart() {
    for rule in ["local", "refuse", "allow"] {
        let Some(mut redis) = Redis::start(&["--appendonly", "yes", "--appendfsync", "always"])
        else {
            return;
        };
        let upstream = upstream(good);
        let config = role("limits = [\"10 requests/hour\"]")
            + &limits_in(&redis, &format!("when_unreachable = \"{rule}\""));
        let mut node = node(&upstream, &config);
        let used_up = node.caller("r");
        until_answered(&used_up, 10);
        type Act = dyn Fn(&mut Redis);
        let faults: [(&str, &Act, &Act); 5] = [
            ("stopped", &Redis::kill, &Redis::restart),
            ("hung", &|r| r.pause(), &|r| r.resume()),
            ("OOM", &|r| say(r, "CONFIG SET maxmemory 1"), &|r| {
                say(r, "CONFIG SET maxmemory 0");
            }),
            ("READONLY", &|r| say(r, "REPLICAOF 127.0.0.1 1"), &|r| {
                say(r, "REPLICAOF NO ONE");
            }),
            ("NOAUTH", &|r| say(r, "CONFIG SET requirepass x"), &|r| {
                r.says(&[
                    "-a",
                    "x",
                    "--no-auth-warning",
                    "CONFIG",
                    "SET",
                    "requirepass",
                    "",
                ]);
            }),
        ];
        for (name, breaks, heals) in faults {
            breaks(&mut redis);
            if name == "NOAUTH" {
                // Connections that are let in stay so.
                redis.says(&[
                    "-a",
                    "x",
                    "--no-auth-warning",
                    "CLIENT",
                    "KILL",
                    "TYPE",
                    "normal",
                    "SKIPME",
                    "yes",
                ]);
            }
            let calls: Vec<u16> = (0..30).map(|_| used_up.chat(CHAT).status).collect();
            // What is asked in vain is refused from memory for a second; and no rule but one lets any of them through.
            let none = calls.iter().all(|status| *status != 200);
            assert!(none || rule == "allow", "{rule}, {name}: {calls:?}");
            let then = match rule {
                "local" => 429,
                "refuse" => 503,
                _ => 200,
            };
            node.until(&format!("{rule} holds after {name}"), |_| {
                used_up.chat(CHAT).status == then
            });
            if rule == "refuse" {
                let refused = used_up.chat(CHAT);
                assert!(refused.headers.contains_key("retry-after"), "{name}");
            }
            heals(&mut redis);
            let again = format!("{rule}: decided by the store again after {name}");
            node.until(&again, |_| used_up.chat(CHAT).status == 429);
        }
    }
}

/// So many calls that the store let through: what was decided before it was connected to isn't counted there.
fn until_answered(client: &Client, count: usize) {
    let passed = (0..count + 40)
        .filter(|_| client.chat(CHAT).status == 200)
        .count();
    assert_eq!(passed, count);
}

fn say(redis: &Redis, words: &str) {
    let words: Vec<&str> = words.split(' ').collect();
    assert_eq!(redis.says(&words), "OK");
}

#[test]
fn a06_a_killed_node_holds_its_places_for_a_lease_and_its_call_is_accounted_for() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let upstream = upstream(|request, answer| {
        if request.json()["stream"] != true {
            return good(request, answer);
        }
        answer.sse();
        for _ in 0..3 {
            answer.event(r#"{"id":"c","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}"#);
        }
        answer.wait_gone();
    });
    let config = role("[roles.r.shared]\nconcurrent_requests = 1")
        + &limits_in(&redis, &format!("{PATIENT}\nwhen_unreachable = \"refuse\""));
    let (mut nodes, clients) = two(&upstream, &config);
    let mut running = clients[0].connect().unwrap();
    running.write(clients[0].request(
        "POST",
        "/v1/chat/completions",
        "",
        Some(&chat_of(r#""stream":true"#)),
    ));
    assert_eq!(running.head().status, 200);
    assert_eq!(clients[1].chat(CHAT).status, 429);
    // While it runs, its lease begins again and again.
    let held = redis.says(&["KEYS", "*:chonce"]);
    let lease = |said: &str| said.lines().nth(1).and_then(|end| end.parse::<f64>().ok());
    let words = ["ZRANGE", &held, "0", "-1", "WITHSCORES"];
    let first = lease(&redis.says(&words)).unwrap();
    redis.wait_until(&words, |said| lease(said).is_some_and(|end| end > first));
    assert_eq!(clients[1].chat(CHAT).status, 429);
    Guan::signal(nodes[0].gateway_pid(), "KILL");
    assert_eq!(clients[1].chat(CHAT).status, 429, "its lease stands");
    nodes[1].until("the place is free again", |_| {
        clients[1].chat(CHAT).status == 200
    });
    let died = nodes[0].wait_calls(1).pop().unwrap();
    assert_eq!(died["guan.call"]["ending"], "node-died", "{died}");
    let charged = died["guan.call"]["charged"]["output"].as_u64().unwrap();
    assert!((1..=64).contains(&charged), "{died}");
}

#[test]
fn under_sentinel_a_new_master_goes_on_where_the_old_one_was() {
    let Some(mut watched) = Watched::start() else {
        return;
    };
    let upstream = upstream(good);
    let sentinels: Vec<String> = watched
        .sentinels
        .iter()
        .map(|s| format!("127.0.0.1:{}", s.port))
        .collect();
    let config = role("limits = [\"10 requests/hour\"]")
        + &format!(
            "[limits]\nbackend = \"redis+sentinel://{}/m\"\nwhen_unreachable = \"refuse\"\n{PATIENT}\n",
            sentinels.join(",")
        );
    let mut node = node(&upstream, &config);
    let client = node.caller("r");
    let passed = |count: usize| {
        (0..count)
            .filter(|_| client.chat(CHAT).status == 200)
            .count()
    };
    node.until("the store answers", |_| client.chat(CHAT).status == 200);
    assert_eq!(passed(4), 4);
    watched.servers[0].says(&["WAIT", "1", "5000"]);
    watched.servers[0].kill();
    assert_eq!(
        client.chat(CHAT).status,
        503,
        "nothing is let through meanwhile"
    );
    node.until("the new master answers", |_| {
        client.chat(CHAT).status != 503
    });
    // One of the ten may have gone into the last question.
    let after = passed(20);
    assert!((4..=5).contains(&after), "{after}");
    assert_eq!(client.chat(CHAT).status, 429);
}

/// What `docs/limits.md` says that a user of the store needs.
const RIGHTS: &str = "ACL SETUSER guan on >hunter2 ~{guan}:* -@all +evalsha +script|load +get +set +del +exists \
    +pexpire +zadd +zrem +zcount +zcard +zremrangebyscore +time";

#[test]
fn a_user_with_the_least_rights_over_mutual_tls_is_enough() {
    let authority = testkit::authority::Authority::new("limits");
    let (server, server_key) = authority.server(&["dns:localhost"]).pem();
    let (client, client_key) = authority.client(&["dns:guan"]).pem();
    let files = |dir: &std::path::Path| {
        for (name, text) in [
            ("ca.pem", &authority.pem()),
            ("server.pem", &server),
            ("server.key", &server_key),
            ("client.pem", &client),
            ("client.key", &client_key),
            ("password", &"hunter2".to_owned()),
        ] {
            testkit::server::write_file(&dir.join(name), text);
        }
    };
    let words = [
        "--port",
        "0",
        "--tls-port",
        "{port}",
        "--tls-ca-cert-file",
        "{dir}/ca.pem",
        "--tls-cert-file",
        "{dir}/server.pem",
        "--tls-key-file",
        "{dir}/server.key",
        "--tls-auth-clients",
        "yes",
    ];
    let login = [
        "--tls",
        "--cacert",
        "{dir}/ca.pem",
        "--cert",
        "{dir}/client.pem",
        "--key",
        "{dir}/client.key",
    ];
    let Some(redis) = Redis::with(&words, &login, files) else {
        return;
    };
    say(&redis, RIGHTS);
    let upstream = upstream(good);
    let dir = redis.folder().display();
    let config = role("limits = [\"3 requests/hour\"]")
        + &format!(
            "[limits]\nbackend = \"rediss://localhost:{}\"\nusername = \"guan\"\n\
             password = \"file:{dir}/password\"\nca = \"{dir}/ca.pem\"\n\
             client_certificate = \"{dir}/client.pem\"\nclient_key = \"{dir}/client.key\"\n\
             when_unreachable = \"refuse\"\n{PATIENT}\n",
            redis.port
        );
    let config = format!("{}\n{config}", in_front_of(&upstream.url()));
    let mut node = Guan::start(guan(), &config);
    let caller = node.caller("r");
    node.until("the store answers", |_| caller.chat(CHAT).status == 200);
    let passed = (0..9).filter(|_| caller.chat(CHAT).status == 200).count();
    assert_eq!(passed, 2);
    let shown = node.run(&["config", "show"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("rediss://localhost:"), "{shown}");
    assert!(!shown.contains("hunter2") && !node.log_text().contains("hunter2"));
}
