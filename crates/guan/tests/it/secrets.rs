//! Sealed values and the data key on the running binary: a key file, and a real `OpenBao` that comes and goes.
#![cfg(test)]

use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use testkit::kms::Bao;
use testkit::server::{Guan, command, in_front_of, write_file};
use testkit::upstream::{Answer, Received, Upstream};

use crate::guan;

pub(crate) const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
const WHOLE: &str = r#"{"id":"c","object":"chat.completion","created":1,"model":"upstream-name","choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8}}"#;

pub(crate) fn good(_request: &Received, answer: &mut Answer<'_>) {
    answer.json(200, WHOLE);
}

/// `guan secret seal` with a secret on standard input.
pub(crate) fn seal(guan: &Guan, secret: &str) -> Output {
    let mut child = guan
        .command(&["secret", "seal"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(secret.as_bytes()).unwrap();
    drop(input);
    child.wait_with_output().unwrap()
}

pub(crate) fn sealed(guan: &Guan, secret: &str) -> String {
    let done = seal(guan, secret);
    assert!(done.status.success(), "{done:?}");
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(
        text.starts_with("sealed:") && text.lines().count() == 1,
        "{text}"
    );
    text.trim().to_owned()
}

pub(crate) fn errors(done: &Output) -> String {
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    String::from_utf8_lossy(&done.stderr).into_owned()
}

/// `guan secret status`.
pub(crate) fn status(guan: &Guan) -> serde_json::Value {
    let done = guan.run(&["secret", "status", "--json"]);
    assert!(done.status.success(), "{done:?}");
    serde_json::from_slice(&done.stdout).unwrap()
}

/// Whether a text stands anywhere below a folder.
pub(crate) fn is_below(dir: &Path, text: &str) -> bool {
    std::fs::read_dir(dir).unwrap().flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return is_below(&path, text);
        }
        let bytes = std::fs::read(&path).unwrap_or_default();
        bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    })
}

fn bearer(upstream: &Upstream) -> Vec<String> {
    let received = upstream.received();
    received.last().unwrap().header("authorization")
}

#[test]
fn a_sealed_upstream_key_is_used_and_stands_nowhere_in_the_clear() {
    let upstream = Upstream::start(good);
    let plain = in_front_of(&upstream.url());
    let mut running = Guan::start(guan(), &plain);
    let value = sealed(&running, "sk-upstream-hunter2\n");
    let file = running.data().join("guan.toml");
    let config = format!("{plain}key = \"{value}\"\n");
    write_file(&file, &config);
    running.wait_log("is in force");
    let caller = running.caller("user");
    assert_eq!(caller.chat(CHAT).status, 200);
    assert_eq!(bearer(&upstream), ["Bearer sk-upstream-hunter2"]);

    // Changed in one letter, or no sealed value at all: the file before stays in force.
    let mut changed = value.clone();
    changed.truncate(value.len() - 6);
    let changed = config.replace(&value, &format!("{changed}AAAAAA"));
    write_file(&file, &changed);
    let line = running.wait_log("can't be opened");
    assert!(
        line.contains("guan.toml:") && !line.contains("hunter2"),
        "{line}"
    );
    write_file(&file, &config.replace(&value, "sealed:sk-upstream-hunter2"));
    let line = running.wait_log("holds no sealed value");
    assert!(!line.contains("hunter2"), "{line}");
    write_file(&file, &config);
    assert_eq!(caller.chat(CHAT).status, 200);

    let shown = running.run(&["config", "show"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        shown.contains("# key: set, not shown") && shown.contains("[kms]\nprovider = \"file\""),
        "{shown}"
    );
    assert_eq!(running.stop(), Some(0));
    assert!(!running.log_text().contains("hunter2"));
    assert!(!is_below(running.data(), "hunter2"));
    // It opens at a start as well, and seals while nobody serves.
    running.serve();
    assert_eq!(running.caller("user").chat(CHAT).status, 200);
    assert_eq!(bearer(&upstream), ["Bearer sk-upstream-hunter2"]);
    assert_eq!(running.stop(), Some(0));
    let other = sealed(&running, "sk-upstream-hunter2");
    assert_ne!(other, value, "no two are alike");
    assert!(errors(&seal(&running, "two words hunter2")).contains("printable"));
    assert!(errors(&seal(&running, "")).contains("standard input"));
    let here = running.run(&["secret", "status"]);
    let here = String::from_utf8_lossy(&here.stdout).into_owned();
    assert!(
        here.contains("\"file\"") && here.contains("opens        yes"),
        "{here}"
    );
    let due = running.run(&["key", "list", "--due", "--json"]);
    assert_eq!(String::from_utf8_lossy(&due.stdout).trim(), "[]");

    // Another store can't open it.
    let foreign = tempfile::tempdir().unwrap();
    write_file(&foreign.path().join("guan.toml"), &config);
    let done = command(guan(), foreign.path(), &["serve"])
        .output()
        .unwrap();
    let said = errors(&done);
    assert!(
        said.contains("another store") && !said.contains("hunter2"),
        "{said}"
    );
}

#[test]
fn losing_the_key_service_leaves_traffic_alone_and_stops_only_what_needs_it() {
    let (bao, upstream) = (Bao::start(), Upstream::start(good));
    let token = bao.token();
    let plain = in_front_of(&upstream.url());
    let kms = format!(
        "[kms]\nprovider = \"vault\"\naddress = \"{}\"\nkey = \"guan\"\ntoken = \"file:secrets/bao-token\"\ncheck_every = \"1s\"\n",
        bao.url()
    );
    // From the key file, while it serves.
    let mut running = Guan::start(guan(), &plain);
    write_file(&running.data().join("secrets/bao-token"), &token);
    let file = running.data().join("guan.toml");
    write_file(&file, &format!("{kms}{plain}"));
    running.wait_log("is in force");
    let done = running.run(&["secret", "rewrap"]);
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(
        said.contains("\"vault\" (key transit/guan, version 1)") && said.contains("\"file\""),
        "{done:?}"
    );
    std::fs::remove_file(running.data().join("secrets/kek")).unwrap();
    let value = sealed(&running, "sk-upstream-hunter2");
    let caller = running.caller("user");
    assert_eq!(caller.chat(CHAT).status, 200);

    assert_eq!(status(&running)["reachable"], true);

    bao.freeze(true);
    assert_eq!(caller.chat(CHAT).status, 200);
    running.wait_log("can't be opened any more");
    let away = status(&running);
    assert_eq!(away["reachable"], false, "{away}");
    assert!(away["fault"].as_str().unwrap().contains("doesn't answer"));
    assert!(errors(&seal(&running, "another")).contains("doesn't answer"));
    assert!(errors(&running.run(&["secret", "rewrap"])).contains("doesn't answer"));
    write_file(&file, &format!("{kms}{plain}key = \"{value}\"\n"));
    let line = running.wait_log("new sealed values");
    assert!(
        line.contains("doesn't answer") && !line.contains(&token),
        "{line}"
    );
    assert_eq!(caller.chat(CHAT).status, 200);
    assert!(bearer(&upstream).is_empty(), "the file before is in force");
    bao.freeze(false);
    Guan::signal(running.pid(), "HUP");
    running.until("the sealed key is used", |_guan| {
        caller.chat(CHAT).status == 200 && !bearer(&upstream).is_empty()
    });
    assert_eq!(bearer(&upstream), ["Bearer sk-upstream-hunter2"]);
    running.wait_log("opens the data key again");
    assert_eq!(status(&running)["reachable"], true);
    bao.rotate("guan");
    let done = running.run(&["secret", "rewrap", "--json"]);
    let done: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(
        (&done["old_version"], &done["version"]),
        (&"1".into(), &"2".into())
    );
    assert_eq!(running.stop(), Some(0));
    assert!(!running.log_text().contains("hunter2") && !running.log_text().contains(&token));

    // Without it no start, and the reason is said.
    bao.freeze(true);
    let done = running.run(&["serve"]);
    let said = errors(&done);
    assert!(
        said.contains("Vault at") && said.contains("doesn't answer"),
        "{said}"
    );
    bao.freeze(false);
    running.serve();
    assert_eq!(running.caller("user").chat(CHAT).status, 200);
    assert_eq!(bearer(&upstream), ["Bearer sk-upstream-hunter2"]);
    assert_eq!(running.stop(), Some(0));

    // While nobody serves, the old config file opens the store: back to a key file, which is made.
    let old = running.data().join("old.toml");
    write_file(&old, &kms);
    write_file(&file, &format!("{plain}key = \"{value}\"\n"));
    assert!(errors(&running.run(&["secret", "rewrap"])).contains("--from"));
    let old = old.to_str().unwrap();
    let done = running.run(&["secret", "rewrap", "--from", old]);
    assert!(done.status.success(), "{done:?}");
    drop(bao);
    running.serve();
    assert_eq!(running.caller("user").chat(CHAT).status, 200);
    assert_eq!(bearer(&upstream), ["Bearer sk-upstream-hunter2"]);
}
