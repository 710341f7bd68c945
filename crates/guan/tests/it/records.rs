//! What remains of a call: records, slots and limits over kills, stops and restarts of the running binary.
#![cfg(test)]

use serde_json::Value;
use testkit::server::{Guan, in_front_of, over_socket, read_file, write_file};
use testkit::upstream::Upstream;

use crate::guan;

const STREAM: &str = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
const TEXT: &str = r#"{"choices":[{"index":0,"delta":{"content":"x"}}]}"#;
const WHOLE: &str = r#"{"choices":[{"index":0,"message":{"content":"ok"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":5}}"#;

fn slow_or_whole() -> Upstream {
    Upstream::start(|request, answer| {
        if request.json()["stream"] != true {
            return answer.json(200, WHOLE);
        }
        answer.sse();
        for _ in 0..70 {
            answer.event(TEXT);
        }
        answer.wait_gone();
    })
}

#[test]
fn a_killed_gateway_leaves_its_record_frees_its_place_and_forgets_no_limit() {
    let upstream = slow_or_whole();
    let mut guan = Guan::start(guan(), &in_front_of(&upstream.url()));
    let caller = guan.caller("user");
    for _ in 0..6 {
        assert_eq!(caller.chat(CHAT).status, 200);
    }
    let mut streams: Vec<_> = (0..4)
        .map(|_| {
            let mut connection = caller.connect().unwrap();
            connection.write(caller.request("POST", "/v1/chat/completions", "", Some(STREAM)));
            assert_eq!(connection.head().status, 200);
            connection
        })
        .collect();
    assert_eq!(caller.chat(CHAT).status, 429, "ten a minute are used up");
    // Once 70 events have come, the slot of each was written again at the 64th.
    for stream in &mut streams {
        let mut seen = 0;
        while seen < 70 {
            let chunk = stream.chunk().expect("the stream goes on");
            seen += String::from_utf8(chunk).unwrap().matches("data:").count();
        }
    }
    let killed = guan.gateway_pid();
    Guan::signal(killed, "KILL");
    guan.until("another gateway answers", |guan| {
        guan.client()
            .connect()
            .is_ok_and(|_| guan.client().get("/readyz").status == 200)
            && guan.gateway_pid() != killed
    });
    let died: Vec<Value> = guan
        .wait_calls(11)
        .into_iter()
        .filter(|call| call["guan.call"]["ending"] == "node-died")
        .collect();
    assert_eq!(died.len(), 4, "one record for each stream, none twice");
    for call in &died {
        let output = call["guan.call"]["charged"]["output"].as_u64().unwrap();
        assert!((64 + 64..=70 + 64).contains(&output), "{output}");
        assert_eq!(call["user.roles"], "user");
    }
    let refused = caller.chat(CHAT);
    assert_eq!(refused.status, 429);
    assert!(
        refused.text().contains("requests per min"),
        "not the concurrency: {}",
        refused.text()
    );
    assert_eq!(guan.stop(), Some(0));
}

#[test]
fn every_answered_call_has_its_record_before_its_last_byte() {
    let upstream = slow_or_whole();
    let guan = Guan::start(guan(), &in_front_of(&upstream.url()));
    let admin = guan.admin();
    for n in 1..=20 {
        let response = admin.chat(CHAT);
        assert_eq!(response.status, 200);
        let calls = guan.calls();
        assert_eq!(calls.len(), n, "the record is there when the answer is");
        assert_eq!(
            calls[n - 1]["http.request.id"],
            response.headers["x-request-id"].as_str()
        );
    }
    assert_eq!(admin.chat(r#"{"model":"m"}"#).status, 400);
    assert_eq!(guan.calls()[20]["event.reason"], "body");
    let text = read_file(&guan.data().join("secrets/first-key"));
    let all: String = guan.records().iter().map(Value::to_string).collect();
    assert!(!all.contains(text.trim()), "no key in the log");
}

#[test]
fn a_graceful_stop_lets_the_answer_in_hand_end() {
    let upstream = Upstream::start(|_, answer| {
        answer.sse();
        answer.event(TEXT);
        for _ in 0..10 {
            answer.pause();
        }
        answer.event(r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#);
        answer.event("[DONE]");
        answer.end();
    });
    let mut guan = Guan::start(guan(), &in_front_of(&upstream.url()));
    let admin = guan.admin();
    let mut connection = admin.connect().unwrap();
    connection.write(admin.request("POST", "/v1/chat/completions", "", Some(STREAM)));
    assert_eq!(connection.head().status, 200);
    assert!(connection.chunk().is_some());
    let reading =
        std::thread::spawn(move || String::from_utf8_lossy(&connection.rest()).into_owned());
    assert_eq!(guan.stop(), Some(0));
    assert!(reading.join().unwrap().contains("[DONE]"));
    assert_eq!(guan.calls()[0]["guan.call"]["ending"], "finished");
    assert_eq!(guan.records().last().unwrap()["event.action"], "chain-end");
    guan.serve();
    assert_eq!(guan.client().get("/livez").status, 200);
}

#[test]
fn a_bad_reload_keeps_the_old_config_and_says_so() {
    let upstream = slow_or_whole();
    let mut guan = Guan::start(guan(), &in_front_of(&upstream.url()));
    let file = guan.data().join("guan.toml");
    let good = read_file(&file);
    write_file(
        &file,
        &format!("{good}\n[roles.basic]\nrequest_per_minute = 10\n"),
    );
    guan.until("the refusal shows in /readyz", |g| {
        g.client().get("/readyz").text().contains("refused")
    });
    let line = guan.wait_log("request_per_minute");
    assert!(
        line.contains("requests_per_minute") && line.contains("guan.toml:"),
        "{line}"
    );
    assert_eq!(guan.admin().chat(CHAT).status, 200);
    let better = good.replace("name = \"m\"", "name = \"m2\"\naliases = [\"m\"]");
    write_file(&file, &better);
    guan.until("the new model is there", |g| {
        g.admin().get("/v1/models").text().contains("m2")
    });
    assert_eq!(guan.client().get("/readyz").text(), "ready\n");
    let answer = guan.admin().chat(CHAT);
    assert_eq!(
        (answer.status, answer.json()["model"].as_str()),
        (200, None)
    );
    Guan::signal(guan.pid(), "HUP");
    guan.wait_log("in force");
}

#[test]
fn keys_are_made_and_revoked_while_the_server_runs_and_count_at_once() {
    let upstream = slow_or_whole();
    let guan = Guan::start(guan(), &in_front_of(&upstream.url()));
    let key = guan.key("user");
    let caller = guan.client().with_key(&key);
    assert_eq!(caller.get("/v1/models").status, 200);
    let id = key.get(8..20).unwrap().to_owned();
    let listed = guan.run(&["key", "list", "--json"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains(&id) && !listed.contains(&key), "{listed}");
    assert!(guan.run(&["key", "revoke", &id]).status.success());
    let refused = caller.get("/v1/models");
    assert_eq!(
        (refused.status, refused.error().0.as_str()),
        (401, "invalid_api_key")
    );
    let bad = guan.run(&["key", "create", "--name", "x", "--role", "nobody"]);
    assert!(!bad.status.success());
    let said = String::from_utf8(bad.stderr).unwrap();
    assert!(said.contains("admin") && said.contains("user"), "{said}");
    let socket = guan.data().join("state/run/admin.sock");
    let request = "GET /admin/v1/other HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_eq!(over_socket(&socket, request).status, 404);
    let acts: Vec<_> = guan
        .records()
        .iter()
        .filter_map(|r| r["event.action"].as_str().map(str::to_owned))
        .filter(|action| action.starts_with("key-"))
        .collect();
    assert!(
        acts.ends_with(&["key-create".to_owned(), "key-revoke".to_owned()]),
        "{acts:?}"
    );
}

#[test]
fn serving_makes_no_connection_but_to_the_upstream() {
    let upstream = slow_or_whole();
    let mut guan = Guan::start(guan(), &in_front_of(&upstream.url()));
    assert_eq!(guan.admin().chat(CHAT).status, 200);
    let port = upstream
        .url()
        .rsplit(':')
        .next()
        .unwrap()
        .parse::<u16>()
        .unwrap();
    let gateway = guan.gateway_pid();
    let inodes: Vec<String> = [guan.pid(), gateway]
        .iter()
        .flat_map(|pid| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap())
        .filter_map(|fd| {
            Some(
                std::fs::read_link(fd.ok()?.path())
                    .ok()?
                    .to_string_lossy()
                    .into_owned(),
            )
        })
        .filter_map(|link| Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let listen = guan.client();
    drop(listen);
    let own: [u16; 2] = ["address", "admin-address"].map(|file| {
        let own = read_file(&guan.data().join("state/run").join(file));
        own.trim().rsplit(':').next().unwrap().parse().unwrap()
    });
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        for line in read_file(std::path::Path::new(&format!(
            "/proc/{gateway}/net/{table}"
        )))
        .lines()
        .skip(1)
        {
            let parts: Vec<_> = line.split_whitespace().collect();
            if !inodes.iter().any(|inode| inode == parts[9]) {
                continue;
            }
            let port_of =
                |text: &str| u16::from_str_radix(text.rsplit(':').next().unwrap(), 16).unwrap();
            let (here, there) = (port_of(parts[1]), port_of(parts[2]));
            assert!(own.contains(&here) || there == port, "{table}: {line}");
        }
    }
    assert_eq!(guan.stop(), Some(0));
}
