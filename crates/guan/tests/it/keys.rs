//! Keys, projects and usage on the running binary: one node on SQLite, two on PostgreSQL.
#![cfg(test)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::client::Client;
use testkit::server::{Guan, in_front_of, write_file};
use testkit::upstream::{Answer, Received, Upstream};

use crate::guan;

const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
const WHOLE: &str = r#"{"id":"c","object":"chat.completion","created":1,"model":"upstream-name","choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8}}"#;

fn good(_request: &Received, answer: &mut Answer<'_>) {
    answer.json(200, WHOLE);
}

const ROLES: &str = "\n[roles.fast]\nrequests_per_minute = 1000000\nmax_output_tokens = 100\n";

/// What a command printed, as JSON.
fn ask(guan: &Guan, words: &[&str]) -> Value {
    let done = guan.run(words);
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{words:?}: {errors}");
    serde_json::from_slice(&done.stdout).unwrap()
}

fn make(guan: &Guan, more: &[&str]) -> (String, String) {
    let words = [&["key", "create", "--json", "--name", "n"], more].concat();
    let made = ask(guan, &words);
    (
        made["id"].as_str().unwrap().to_owned(),
        made["key"].as_str().unwrap().to_owned(),
    )
}

/// How long until a caller gets another status, at most two seconds.
fn until(client: &Client, status: u16) -> Duration {
    let began = Instant::now();
    while client.chat(CHAT).status != status {
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "no {status} in five seconds"
        );
    }
    began.elapsed()
}

#[test]
fn a_key_is_narrowed_by_itself_and_its_project_and_says_who_says_what() {
    let upstream = Upstream::start(good);
    let config = in_front_of(&upstream.url()) + ROLES;
    let guan = Guan::start(guan(), &config);
    ask(
        &guan,
        &[
            "project",
            "create",
            "--json",
            "研发 部",
            "--requests-per-minute",
            "3",
        ],
    );
    let own = [
        "--role",
        "fast",
        "--project",
        "研发 部",
        "--address",
        "127.0.0.0/8",
        "--max-output",
        "7",
    ];
    let (id, key) = make(&guan, &own);
    let client = guan.client().with_key(&key);
    assert_eq!(client.chat(CHAT).status, 200);
    let sent = upstream.received()[0].json();
    let caps = ["max_tokens", "max_completion_tokens"].map(|name| sent[name].clone());
    assert!(caps.contains(&json!(7)), "{sent}");
    let shown = ask(&guan, &["key", "show", "--json", &id]);
    let said = |name: &str| {
        let all = shown["policy"].as_array().unwrap();
        let one = all.iter().find(|said| said["name"] == name).unwrap();
        (
            one["value"].as_str().unwrap().to_owned(),
            one["from"].as_str().unwrap().to_owned(),
        )
    };
    assert_eq!(said("requests_per_minute"), ("3".into(), "project".into()));
    assert_eq!(said("max_output_tokens"), ("7".into(), "key".into()));
    assert_eq!(said("addresses"), ("127.0.0.0/8".into(), "key".into()));
    assert_eq!(client.chat(CHAT).status, 200);
    assert_eq!(client.chat(CHAT).status, 200);
    assert_eq!(client.chat(CHAT).status, 429);
    let done = guan.run(&[
        "key",
        "create",
        "--name",
        "x",
        "--role",
        "fast",
        "--project",
        "none",
    ]);
    assert!(String::from_utf8_lossy(&done.stderr).contains("guan project create none"));
}

#[test]
fn who_comes_from_elsewhere_or_too_early_gets_the_text_of_an_unknown_key() {
    let upstream = Upstream::start(good);
    let guan = Guan::start(guan(), &(in_front_of(&upstream.url()) + ROLES));
    let unknown = guan.client().with_key("sk-unknown-key").chat(CHAT);
    for more in [
        ["--address", "10.0.0.0/8"],
        ["--not-before", "2199-01-01T00:00:00Z"],
    ] {
        let (_id, key) = make(&guan, &[&["--role", "fast"], &more[..]].concat());
        let answer = guan.client().with_key(&key).chat(CHAT);
        assert_eq!((answer.status, answer.error()), (401, unknown.error()));
    }
    let (_id, key) = make(&guan, &["--role", "fast", "--endpoint", "/v1/completions"]);
    let answer = guan.client().with_key(&key).chat(CHAT);
    assert_eq!(answer.status, 403);
    assert!(upstream.received().is_empty());
}

#[test]
fn a_rotated_key_works_with_both_secrets_until_it_is_rotated_at_once() {
    let upstream = Upstream::start(good);
    let guan = Guan::start(guan(), &(in_front_of(&upstream.url()) + ROLES));
    let (id, first) = make(&guan, &["--role", "fast"]);
    let rotate = |how: &[&str]| {
        let words = [&["key", "rotate", "--json", &id], how].concat();
        ask(&guan, &words)["key"].as_str().unwrap().to_owned()
    };
    let status = |key: &str| guan.client().with_key(key).chat(CHAT).status;
    let second = rotate(&["--overlap", "24h"]);
    assert_eq!((status(&first), status(&second)), (200, 200));
    let third = rotate(&["--at-once"]);
    assert_eq!(
        (status(&first), status(&second), status(&third)),
        (401, 401, 200)
    );
    assert_eq!(
        ask(&guan, &["key", "list", "--json"])
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn keys_of_another_gateway_go_on_working_and_their_usage_is_counted() {
    let upstream = Upstream::start(good);
    let mut guan = Guan::start(guan(), &(in_front_of(&upstream.url()) + ROLES));
    let list = guan.data().join("list");
    write_file(&list, "sk-litellm-0001 Ana\nsk-litellm-0002\n");
    let words = [
        "key",
        "import",
        "--json",
        "--plain",
        list.to_str().unwrap(),
        "--role",
        "fast",
    ];
    let rows = ask(&guan, &words);
    assert_eq!(rows[0]["name"], "Ana");
    let client = guan.client().with_key("sk-litellm-0001");
    for _ in 0..3 {
        assert_eq!(client.chat(CHAT).status, 200);
    }
    let id = rows[0]["id"].as_str().unwrap().to_owned();
    let of = |guan: &Guan| ask(guan, &["usage", "--by", "key", "--json"]);
    guan.until("usage is counted", |guan| {
        of(guan)
            .as_array()
            .is_some_and(|rows| rows.iter().any(|row| row["of"] == *id && row["calls"] == 3))
    });
    let rows = ask(&guan, &["usage", "--by", "model", "--json"]);
    let expected =
        json!([{"of": "m", "calls": 3, "failed": 0, "input_tokens": 9, "output_tokens": 15}]);
    assert_eq!(rows, expected);
    let csv = guan.run(&["usage", "--by", "model", "--csv"]);
    assert_eq!(
        String::from_utf8_lossy(&csv.stdout),
        "MODEL,CALLS,FAILED,INPUT TOKENS,OUTPUT TOKENS\r\nm,3,0,9,15\n"
    );
    assert!(ask(&guan, &["key", "show", "--json", &id])["last_used"].is_string());
}

/// Two nodes on one database, the second with the first one's key-encryption key.
fn two_nodes(upstream: &Upstream, url: &str) -> (Guan, Guan) {
    // Tests ask again and again with keys that aren't valid.
    let config = in_front_of(&upstream.url()).replacen(
        "[server]",
        "[server]\nfailed_credentials_per_minute = 100000",
        1,
    ) + ROLES
        + &format!("\n[store]\nurl = \"{url}\"\n");
    let one = Guan::start(guan(), &config);
    let kek = one.data().join("secrets/kek");
    let two = Guan::start_with(guan(), &config, |data| {
        let secrets = data.join("secrets");
        std::fs::create_dir(&secrets).unwrap();
        std::fs::copy(&kek, secrets.join("kek")).unwrap();
    });
    (one, two)
}

#[test]
fn a27_what_is_taken_back_on_one_node_is_refused_on_the_other_within_a_second() {
    let upstream = Upstream::start(good);
    let Some(url) = testkit::postgres::database() else {
        return;
    };
    let (one, two) = two_nodes(&upstream, &url);
    ask(&one, &["project", "create", "--json", "p"]);
    let (id, key) = make(&one, &["--role", "fast"]);
    let (_id, paid_key) = make(&one, &["--role", "fast", "--project", "p"]);
    let paid_key = paid_key.as_str();
    // Made a moment ago on the other node: a well-formed key waits for one look at the store.
    let (at_two, paid) = (two.client().with_key(&key), two.client().with_key(paid_key));
    assert_eq!(
        (at_two.chat(CHAT).status, paid.chat(CHAT).status),
        (200, 200)
    );
    ask(&one, &["project", "disable", "--json", "p"]);
    let disabled = until(&paid, 401);
    ask(&one, &["project", "enable", "--json", "p"]);
    until(&paid, 200);
    ask(&one, &["key", "revoke", "--json", &id]);
    let revoked = until(&at_two, 401);
    writeln!(
        std::io::stderr(),
        "on the other node: project disabled after {disabled:?}, key revoked after {revoked:?}"
    )
    .unwrap();
    assert!(disabled < Duration::from_secs(1) && revoked < Duration::from_secs(1));
    assert_eq!(
        ask(&one, &["key", "list", "--json"]),
        ask(&two, &["key", "list", "--json"])
    );
    // By config and reload on both: a lower cap holds, a role that is gone takes its keys with it.
    let config = in_front_of(&upstream.url()) + &format!("\n[store]\nurl = \"{url}\"\n");
    for node in [&one, &two] {
        write_file(&node.data().join("guan.toml"), &config);
        until(&node.client().with_key(paid_key), 401);
    }
}

#[test]
fn a27_what_is_narrowed_on_one_node_holds_on_the_other() {
    let upstream = Upstream::start(good);
    let Some(url) = testkit::postgres::database() else {
        return;
    };
    let (one, two) = two_nodes(&upstream, &url);
    ask(&one, &["project", "create", "--json", "p"]);
    let (id, key) = make(&one, &["--role", "fast", "--project", "p"]);
    let at_two = two.client().with_key(&key);
    assert_eq!(at_two.chat(CHAT).status, 200);
    let change = |words: &[&str]| ask(&one, &[words, &["--json"]].concat());
    let key_is = |words: &[&str]| change(&[&["key", "change", &id], words].concat());
    let project_is = |words: &[&str]| change(&[&["project", "change", "p"], words].concat());
    // Models, then the rate: each by the key, then by its project; cleared, the key works as before.
    key_is(&["--model", "another"]);
    until(&at_two, 403);
    key_is(&["--clear", "models"]);
    until(&at_two, 200);
    project_is(&["--model", "another"]);
    until(&at_two, 403);
    project_is(&["--clear", "models"]);
    until(&at_two, 200);
    key_is(&["--requests-per-minute", "1"]);
    until(&at_two, 429);
    key_is(&["--clear", "requests_per_minute"]);
    until(&at_two, 200);
    project_is(&["--requests-per-minute", "1"]);
    until(&at_two, 429);
    project_is(&["--clear", "requests_per_minute"]);
    until(&at_two, 200);
    // Changed on the other node, the first one sees it: what each has is one store.
    let shown = ask(
        &two,
        &[
            "key",
            "change",
            "--json",
            &id,
            "--expires",
            "30d",
            "--notes",
            "n",
        ],
    );
    assert_eq!(
        ask(&one, &["key", "show", "--json", &id])["version"],
        shown["version"]
    );
    key_is(&[
        "--clear",
        "project",
        "--clear",
        "expires_at",
        "--name",
        "moved",
    ]);
    let mut changes = one
        .records()
        .into_iter()
        .filter(|record| record["event.action"] == "key-change");
    let last = changes.next_back().unwrap()["guan.act"].clone();
    assert_eq!(
        (&last["before"]["project"], &last["after"]["project"]),
        (&json!("p"), &Value::Null)
    );
    assert_eq!(last["after"]["name"], "moved");
}

#[test]
fn a_key_and_a_project_are_changed_without_a_server_too() {
    let upstream = Upstream::start(good);
    let mut guan = Guan::start(guan(), &(in_front_of(&upstream.url()) + ROLES));
    let (id, _key) = make(&guan, &["--role", "fast"]);
    assert_eq!(guan.stop(), Some(0));
    let row = ask(
        &guan,
        &["key", "change", "--json", &id, "--max-output", "9"],
    );
    assert_eq!(
        (&row["version"], &row["own"]["max_output_tokens"]),
        (&json!(2), &json!(9))
    );
    ask(&guan, &["project", "create", "--json", "p"]);
    let rows = ask(&guan, &["project", "change", "--json", "p", "--notes", "n"]);
    assert_eq!(rows[0]["notes"], "n");
    let wrong = guan.run(&["key", "change", &id, "--clear", "modles"]);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("modles"));
}

#[test]
fn a_database_that_is_away_leaves_known_keys_alone_and_makes_unknown_ones_503() {
    let upstream = Upstream::start(good);
    let Some(url) = testkit::postgres::database() else {
        return;
    };
    let (one, two) = two_nodes(&upstream, &url);
    let (_id, key) = make(&one, &["--role", "fast"]);
    let (known, foreign) = (
        two.client().with_key(&key),
        two.client().with_key("sk-foreign-key"),
    );
    assert_eq!(
        (known.chat(CHAT).status, foreign.chat(CHAT).status),
        (200, 401)
    );
    let (_id, later) = make(&one, &["--role", "fast"]);
    testkit::postgres::allow(&url, false);
    // Ours in form, known to nobody: the store is asked, and doesn't answer.
    let fresh = rules_key();
    let answer = two.client().with_key(&fresh).chat(CHAT);
    assert_eq!(answer.status, 503);
    assert!(answer.headers.contains_key("retry-after"));
    until(&foreign, 503);
    assert_eq!(known.chat(CHAT).status, 200);
    assert_eq!(two.client().with_key(&later).chat(CHAT).status, 200);
    testkit::postgres::allow(&url, true);
    until(&foreign, 401);
    assert_eq!(two.client().with_key(&fresh).chat(CHAT).status, 401);
}

#[test]
fn a_node_with_another_key_encryption_key_does_not_start() {
    let upstream = Upstream::start(good);
    let Some(url) = testkit::postgres::database() else {
        return;
    };
    let config = in_front_of(&upstream.url()) + &format!("\n[store]\nurl = \"{url}\"\n");
    let one = Guan::start(guan(), &config);
    let other = Guan::start(guan(), &in_front_of(&upstream.url()));
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("secrets")).unwrap();
    let kek = folder.path().join("secrets/kek");
    write_file(&folder.path().join("guan.toml"), &config);
    let words = || {
        let done = testkit::server::command(guan(), folder.path(), &["init"])
            .output()
            .unwrap();
        String::from_utf8_lossy(&done.stderr).into_owned()
    };
    assert!(words().contains("secrets/kek from a node"), "{}", words());
    std::fs::copy(other.data().join("secrets/kek"), &kek).unwrap();
    assert!(words().contains("is not the key"), "{}", words());
    std::fs::remove_file(&kek).unwrap();
    std::fs::copy(one.data().join("secrets/kek"), &kek).unwrap();
    assert!(words().contains("joins the nodes"));
    // Nor does a node that has joined, when its key is exchanged.
    std::fs::remove_file(&kek).unwrap();
    std::fs::copy(other.data().join("secrets/kek"), &kek).unwrap();
    let done = testkit::server::command(guan(), folder.path(), &["serve"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(
        said.contains("secrets/kek is not the key that this was sealed with"),
        "{said}"
    );
}

#[test]
fn a_copied_store_has_every_key_valid() {
    let upstream = Upstream::start(good);
    let Some(url) = testkit::postgres::database() else {
        return;
    };
    let config = in_front_of(&upstream.url()) + ROLES;
    let mut guan = Guan::start(guan(), &config);
    let (_id, key) = make(&guan, &["--role", "fast"]);
    let value = crate::secrets::sealed(&guan, "sk-upstream-hunter2");
    let config = format!("{}key = \"{value}\"\n{ROLES}", in_front_of(&upstream.url()));
    let certificate = guan.data().join("secrets/tls.crt");
    let served = std::fs::read(&certificate).unwrap();
    let running = guan.run(&["store", "copy", "--to", &url]);
    assert!(String::from_utf8_lossy(&running.stderr).contains("stop it first"));
    assert_eq!(guan.stop(), Some(0));
    let done = guan.run(&["store", "copy", "--to", &url]);
    assert!(
        String::from_utf8_lossy(&done.stdout).contains("2 keys"),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let config = config + &format!("\n[store]\nurl = \"{url}\"\n");
    write_file(&guan.data().join("guan.toml"), &config);
    guan.serve();
    assert_eq!(guan.client().with_key(&key).chat(CHAT).status, 200);
    assert_eq!(guan.admin().chat(CHAT).status, 200);
    // What was sealed opens from there: the model server's key, and the certificate's.
    let received = upstream.received();
    let sent = received.last().unwrap().header("authorization");
    assert_eq!(sent, ["Bearer sk-upstream-hunter2"]);
    assert_eq!(std::fs::read(&certificate).unwrap(), served);
}

/// A key that has our form and that nobody made.
fn rules_key() -> String {
    rules::key::mint(&[9; 44]).text.to_string()
}

#[test]
fn a38_sqlite_under_a_held_lock_serves_known_keys_and_loses_no_record() {
    let upstream = Upstream::start(good);
    let mut guan = Guan::start(guan(), &(in_front_of(&upstream.url()) + ROLES));
    let (id, key) = make(&guan, &["--role", "fast"]);
    let client = guan.client().with_key(&key);
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..20)
            .map(|_| scope.spawn(|| (0..20).map(|_| client.chat(CHAT).status).max()))
            .collect();
        for _ in 0..10 {
            let (id, _key) = make(&guan, &["--role", "user"]);
            ask(&guan, &["key", "revoke", "--json", &id]);
        }
        for call in calls {
            assert_eq!(call.join().unwrap(), Some(200));
        }
    });
    let mut holder = hold(&guan.data().join("state/guan.db"));
    for _ in 0..10 {
        assert_eq!(client.chat(CHAT).status, 200);
    }
    // Readers aren't held up by a writer (WAL): an unknown key is judged, and so refused.
    assert_eq!(
        guan.client().with_key("sk-unknown-key").chat(CHAT).status,
        401
    );
    let refused = guan.run(&["key", "create", "--name", "n", "--role", "user"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("held by another program"));
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
    let calls = guan.wait_calls(410);
    assert_eq!(calls.len(), 410);
    guan.until("every call is counted", |guan| {
        let rows = ask(guan, &["usage", "--by", "key", "--json"]);
        rows.as_array().is_some_and(|rows| {
            rows.iter().any(|row| {
                row["of"] == *id && row["calls"] == 410 && row["output_tokens"] == 5 * 410
            })
        })
    });
}

/// Another process that has the database for itself until its standard input ends.
#[expect(clippy::disallowed_methods, reason = "somebody else's program")]
fn hold(database: &std::path::Path) -> std::process::Child {
    let script = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], isolation_level=None)\nc.execute('BEGIN EXCLUSIVE')\nprint('held', flush=True)\nsys.stdin.read()\nc.execute('ROLLBACK')\n";
    let mut child = Command::new("python3")
        .args(["-c", script])
        .arg(database)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    child
}
