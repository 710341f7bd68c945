//! The audit log of the running binary, judged by `guan audit verify` as an auditor would: copied elsewhere, with a
//! public key and heads that were kept.
#![cfg(test)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use tempfile::TempDir;
use testkit::client::Client;
use testkit::server::{Guan, in_front_of, read_file, write_file};
use testkit::upstream::Upstream;

use crate::guan;
use crate::secrets::good;

const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;

/// A server that has answered calls, signed its chain, was stopped, and started and stopped again.
struct Kept {
    guan: Guan,
    key: String,
    heads: String,
    chain: String,
}

fn kept() -> Kept {
    let upstream = Upstream::start(good);
    let config = format!(
        "{}[audit]\ncheckpoint_every = \"1s\"\n",
        in_front_of(&upstream.url())
    );
    let mut guan = Guan::start(guan(), &config);
    let caller = guan.caller("admin");
    for _ in 0..8 {
        assert_eq!(caller.chat(CHAT).status, 200);
    }
    guan.until("the chain is signed", |guan| signed(guan) > 0);
    let first = signed(&guan);
    for _ in 0..4 {
        assert_eq!(caller.chat(CHAT).status, 200);
    }
    guan.until("it is signed again", |guan| signed(guan) > first);
    let key = out(&guan, &["audit", "key"]);
    // A second chain, which names the head of the first.
    assert_eq!(guan.stop(), Some(0));
    guan.serve();
    guan.until("its head is in the store", |guan| {
        let heads = out(guan, &["audit", "heads", "--json"]);
        serde_json::from_str::<Vec<Value>>(&heads).unwrap().len() >= 2
    });
    assert_eq!(guan.stop(), Some(0));
    let heads = out(&guan, &["audit", "heads", "--json"]);
    let chain = longest(&guan.data().join("state/audit"));
    Kept {
        guan,
        key: key.trim().to_owned(),
        heads,
        chain,
    }
}

fn signed(guan: &Guan) -> usize {
    let records = guan.records();
    records
        .iter()
        .filter(|it| it["event.action"] == "checkpoint")
        .count()
}

fn out(guan: &Guan, words: &[&str]) -> String {
    let done = guan.run(words);
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{words:?}: {errors}");
    String::from_utf8(done.stdout).unwrap()
}

/// The chain with the most records: that of the first server.
fn longest(dir: &Path) -> String {
    let files = std::fs::read_dir(dir).unwrap().map(|it| it.unwrap().path());
    let chains = files.filter(|path| path.extension().is_some_and(|it| it == "jsonl"));
    let longest = chains.max_by_key(|path| read_file(path).len()).unwrap();
    longest.file_stem().unwrap().to_string_lossy().into_owned()
}

impl Kept {
    /// A copy of the log.
    fn copy(&self) -> TempDir {
        let dir = TempDir::new().unwrap();
        for file in std::fs::read_dir(self.guan.data().join("state/audit")).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
        }
        dir
    }

    fn file(&self, dir: &TempDir) -> PathBuf {
        dir.path().join(format!("{}.jsonl", self.chain))
    }

    /// A copy whose first chain was changed, and what is said of it.
    fn tampered(&self, change: impl FnOnce(&mut Vec<String>), heads: bool) -> String {
        let dir = self.copy();
        let mut lines: Vec<String> = read_file(&self.file(&dir))
            .lines()
            .map(str::to_owned)
            .collect();
        change(&mut lines);
        write_file(&self.file(&dir), &(lines.join("\n") + "\n"));
        let (good, said) = self.verify(&dir, heads);
        assert!(!good, "{said}");
        said
    }

    /// Judges a copy in a place where there is no data folder.
    fn verify(&self, dir: &TempDir, heads: bool) -> (bool, String) {
        let elsewhere = TempDir::new().unwrap();
        let list = elsewhere.path().join("heads.json");
        write_file(&list, &self.heads);
        let (folder, list) = (dir.path().to_string_lossy(), list.to_string_lossy());
        let mut words = vec!["audit", "verify", &folder, "--key", &self.key];
        if heads {
            words.extend(["--head", &list]);
        }
        let none = elsewhere.path().join("none");
        let done = testkit::server::command(guan(), &none, &words)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        (
            done.status.success(),
            said + &String::from_utf8_lossy(&done.stderr),
        )
    }
}

/// The number of a record of a call.
fn a_call(lines: &[String]) -> usize {
    lines
        .iter()
        .position(|line| line.contains("model-request"))
        .unwrap()
        + 2
}

#[test]
fn a_log_verifies_elsewhere_and_each_kind_of_tampering_is_told() {
    let kept = kept();
    let whole = kept.copy();
    let (good, said) = kept.verify(&whole, true);
    assert!(good, "{said}");
    assert!(
        said.contains(&format!("{}: records 0 to", kept.chain)) && said.contains("closed"),
        "{said}"
    );
    // An edit, with the signed head kept elsewhere or not.
    let mut number = 0;
    let edited = |lines: &mut Vec<String>| {
        number = a_call(lines);
        lines[number] = lines[number].replace("\"success\"", "\"failure\"");
    };
    let said = kept.tampered(edited, false);
    assert!(
        said.contains(&format!(
            "{}: NOT AS WRITTEN: record {number} was changed",
            kept.chain
        )),
        "{said}"
    );
    let said = kept.tampered(|lines| drop(lines.remove(number)), false);
    assert!(
        said.contains(&format!("record {number} is missing")),
        "{said}"
    );
    let said = kept.tampered(
        |lines| lines.insert(number, lines[number - 1].clone()),
        false,
    );
    assert!(said.contains("was inserted"), "{said}");
    let said = kept.tampered(|lines| lines.swap(number, number + 1), false);
    assert!(
        said.contains(&format!("record {number} doesn't stand in its place")),
        "{said}"
    );
    // Cut off behind a record: the chain after it knows of more, and so do the heads.
    for heads in [false, true] {
        let said = kept.tampered(|lines| lines.truncate(number), heads);
        assert!(said.contains("records were cut off"), "{said}");
    }
    // All made anew from a record on, by somebody without the key: the next checkpoint doesn't fit.
    let anew = |lines: &mut Vec<String>| {
        lines[number] = lines[number].replace("\"success\"", "\"failure\"");
        chained_anew(lines, number + 1);
    };
    let said = kept.tampered(anew, false);
    assert!(
        said.contains("isn't genuine: it was signed over other records"),
        "{said}"
    );
    // A signature that is none.
    let said = kept.tampered(|lines| forge(lines), false);
    assert!(said.contains("isn't genuine"), "{said}");
}

/// Puts a signature of nobody under the first checkpoint.
fn forge(lines: &mut [String]) {
    let at = lines
        .iter()
        .position(|line| line.contains("\"checkpoint\""))
        .unwrap();
    let mut value: Value = serde_json::from_str(&lines[at]).unwrap();
    let signature = value["guan.act"]["checkpoint"]["signature"]
        .as_str()
        .unwrap()
        .to_owned();
    let other = if signature.starts_with('A') { "B" } else { "A" };
    value["guan.act"]["checkpoint"]["signature"] =
        format!("{other}{}", signature.get(1..).unwrap()).into();
    lines[at] = value.to_string();
    chained_anew(lines, at + 1);
}

/// The lines from `from` on, each with the hash of the one before as it now stands.
fn chained_anew(lines: &mut [String], from: usize) {
    for number in from..lines.len() {
        let head = rules_head(&lines[number - 1]);
        let mut value: Value = serde_json::from_str(&lines[number]).unwrap();
        value["guan.chain"]["prev"] = head.into();
        lines[number] = value.to_string();
    }
}

fn rules_head(line: &str) -> String {
    rules::chain::Head::of(line.as_bytes()).to_string()
}

#[test]
fn an_old_copy_another_chain_and_a_foreign_key_are_not_taken() {
    let kept = kept();
    // An older copy of the whole folder: each chain in it is good, and the heads know of more.
    let old = kept.copy();
    let file = kept.file(&old);
    let text = read_file(&file);
    let cut = text.find("\"event.action\":\"checkpoint\"").unwrap();
    let (before, after) = text.split_at(cut);
    let line = after.split_inclusive('\n').next().unwrap();
    write_file(&file, &format!("{before}{line}"));
    for other in std::fs::read_dir(old.path()).unwrap() {
        let other = other.unwrap().path();
        if other != file && other.extension().is_some_and(|it| it == "jsonl") {
            std::fs::remove_file(other).unwrap();
        }
    }
    let (good, said) = kept.verify(&old, false);
    assert!(good && said.contains("without --head"), "{said}");
    let (good, said) = kept.verify(&old, true);
    assert!(!good && said.contains("records were cut off"), "{said}");
    // One chain under another's name.
    let dir = kept.copy();
    let files = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|it| it.unwrap().path());
    let other = files
        .filter(|path| path.extension().is_some_and(|it| it == "jsonl"))
        .find(|path| *path != kept.file(&dir))
        .unwrap();
    std::fs::copy(&other, kept.file(&dir)).unwrap();
    let (good, said) = kept.verify(&dir, false);
    assert!(!good && said.contains("under another name"), "{said}");
    // Another store's key.
    let stranger = rules::chain::Signer::from_seed(&[1; 32])
        .unwrap()
        .public()
        .to_string();
    let folder = kept.copy();
    let words = [
        "audit",
        "verify",
        &folder.path().to_string_lossy(),
        "--key",
        &stranger,
    ];
    let done = testkit::server::command(guan(), folder.path(), &words)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(
        !done.status.success() && said.contains("another key signed it"),
        "{said}"
    );
}

#[test]
fn the_log_of_a_running_server_verifies_and_of_one_that_was_killed_too() {
    let upstream = Upstream::start(good);
    let mut guan = Guan::start(guan(), &in_front_of(&upstream.url()));
    let caller = guan.caller("admin");
    assert_eq!(caller.chat(CHAT).status, 200);
    let said = out(&guan, &["audit", "verify"]);
    assert!(said.contains("hang together"), "{said}");
    let key = out(&guan, &["audit", "key", "--json"]);
    let key: Value = serde_json::from_str(&key).unwrap();
    let beside = read_file(&guan.data().join("state/audit/audit.pub"));
    assert_eq!(beside.trim(), key["key"]);
    let door = guan.admin_door();
    assert_eq!(door.get("/admin/v1/audit/key").status, 401);
    let gateway = guan.gateway_pid();
    Guan::signal(gateway, "KILL");
    guan.until("another gateway serves", |guan| {
        guan.child_pid("gateway").is_some_and(|pid| pid != gateway)
            && guan.client().get("/readyz").status == 200
    });
    assert_eq!(caller.chat(CHAT).status, 200);
    let said = out(&guan, &["audit", "verify", "--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["good"], true);
    assert!(said["chains"].as_array().unwrap().len() >= 3, "{said}");
}

#[test]
fn records_are_shown_and_exported_over_all_files_of_a_chain() {
    let upstream = Upstream::start(good);
    let config = format!(
        "{}[audit]\nrotate_size = \"64KiB\"\n[roles.admin]\nrequests_per_minute = 10000\n",
        in_front_of(&upstream.url())
    );
    let mut guan = Guan::start(guan(), &config);
    let text = guan.key("admin");
    let id = text
        .trim_start_matches("sk-guan-")
        .split('_')
        .next()
        .unwrap()
        .to_owned();
    let caller = guan.client().with_key(&text);
    for _ in 0..120 {
        assert_eq!(caller.chat(CHAT).status, 200);
    }
    assert_eq!(
        caller
            .chat(r#"{"model":"\u001b[31m=cmd","messages":[{"role":"user","content":"hi"}]}"#)
            .status,
        404
    );
    let _calls = guan.wait_calls(121);
    let audit = guan.data().join("state/audit");
    let parts = std::fs::read_dir(&audit).unwrap().flatten();
    assert!(
        parts
            .filter(|it| it.file_name().to_string_lossy().contains(".1.jsonl"))
            .count()
            == 1
    );
    let said = out(&guan, &["audit", "tail", "-n", "3", "--key", &id]);
    let lines: Vec<_> = said.lines().collect();
    assert!(
        lines.len() == 3 && lines[2].contains("failure model-unknown"),
        "{said}"
    );
    let said = out(
        &guan,
        &[
            "audit", "tail", "-n", "500", "--key", &id, "--failed", "--json",
        ],
    );
    assert_eq!(said.lines().count(), 1);
    let said = out(
        &guan,
        &[
            "audit", "export", "--key", &id, "--since", "1h", "--format", "csv",
        ],
    );
    let rows: Vec<_> = said.trim_end().split("\r\n").collect();
    assert_eq!(rows.len(), 122, "{said}");
    assert!(rows[0].starts_with("time,action,outcome"));
    assert!(
        rows.iter().all(|row| row.split(',').count() == 21),
        "{said}"
    );
    let said = out(&guan, &["audit", "export", "--action", "model-request"]);
    assert_eq!(said.lines().count(), 121);
}

#[test]
fn usage_is_what_the_log_adds_up_to_and_a_changed_record_shows() {
    let upstream = Upstream::start(good);
    let mut guan = Guan::start(guan(), &in_front_of(&upstream.url()));
    let caller = guan.caller("admin");
    for _ in 0..20 {
        assert_eq!(caller.chat(CHAT).status, 200);
    }
    let _calls = guan.wait_calls(20);
    let audit = guan.data().join("state/audit");
    let agreed = |guan: &Guan| -> Value {
        let done = guan.run(&["audit", "reconcile", "--json"]);
        serde_json::from_slice(&done.stdout).unwrap()
    };
    guan.until("all is counted", |guan| agreed(guan)["uncounted"] == 0);
    let done = agreed(&guan);
    assert_eq!(
        (&done["differ"], &done["absent"]),
        (&Value::Array(vec![]), &Value::Array(vec![]))
    );
    assert!(done["agree"].as_u64().unwrap() >= 1);
    assert!(out(&guan, &["audit", "verify"]).contains("hang together"));
    // A line more, well chained or not, and they no longer agree.
    assert_eq!(guan.stop(), Some(0));
    let first = std::fs::read_dir(&audit)
        .unwrap()
        .flatten()
        .map(|it| it.path());
    let first = first
        .filter(|path| read_file(path).contains("model-request"))
        .min_by_key(|path| path.as_os_str().len())
        .unwrap();
    let text = read_file(&first);
    let call = text
        .lines()
        .find(|line| line.contains("model-request"))
        .unwrap();
    let more = call.replace("\"input\":3", "\"input\":4");
    assert_ne!(more, *call);
    write_file(&first, &text.replace(call, &more));
    let done = guan.run(&["audit", "reconcile"]);
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(
        !done.status.success() && said.contains("1 differ"),
        "{said}"
    );
}

/// Calls until the server is gone; the ids of those that were answered whole.
fn call_until_gone(client: &Client, answered: &AtomicUsize) -> Vec<String> {
    let mut ids = Vec::new();
    loop {
        let Ok(mut connection) = client.connect() else {
            return ids;
        };
        let request = client.request("POST", "/v1/chat/completions", "", Some(CHAT));
        if !connection.try_write(request) {
            return ids;
        }
        let text = String::from_utf8_lossy(&connection.rest()).into_owned();
        let whole = text.starts_with("HTTP/1.1 200") && text.ends_with('}');
        let id = text
            .lines()
            .find_map(|line| line.strip_prefix("x-request-id: "));
        match id {
            Some(id) if whole => {
                ids.push(id.to_owned());
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Some(_) | None => return ids,
        }
    }
}

#[test]
fn twenty_kills_under_load_lose_no_answered_call_and_the_chains_hold() {
    let upstream = Upstream::start(good);
    let config = format!(
        "{}[roles.admin]\nrequests_per_minute = 1000000\n",
        in_front_of(&upstream.url())
    );
    let mut guan = Guan::start(guan(), &config);
    let key = guan.key("admin");
    let mut answered = BTreeSet::new();
    for _ in 0..20 {
        let client = guan.client().with_key(&key);
        let count = AtomicUsize::new(0);
        let ids = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| call_until_gone(&client, &count)))
                .collect();
            guan.until("calls are answered", |_| {
                count.load(Ordering::Relaxed) >= 12
            });
            // Its gateway dies with it.
            guan.kill();
            callers
                .into_iter()
                .flat_map(|caller| caller.join().unwrap())
                .collect::<Vec<_>>()
        });
        answered.extend(ids);
        guan.serve();
    }
    assert!(answered.len() >= 240);
    guan.until("all is counted", |guan| {
        let done = guan.run(&["audit", "reconcile", "--json"]);
        let done: Value = serde_json::from_slice(&done.stdout).unwrap();
        done["uncounted"] == 0 && done["differ"].as_array().is_some_and(Vec::is_empty)
    });
    let calls = guan.calls();
    let mut seen = BTreeSet::new();
    for call in &calls {
        let id = call["http.request.id"].as_str().unwrap();
        assert!(seen.insert(id.to_owned()), "{id} has two records");
        // What was running is charged by its rule, never above its reservation.
        if call["guan.call"]["ending"] == "node-died" {
            let of = |what: &str| call["guan.call"][what]["output"].as_u64().unwrap();
            assert!(of("charged") <= of("reserved"), "{call}");
        }
    }
    let lost: Vec<_> = answered.difference(&seen).collect();
    assert!(lost.is_empty(), "{lost:?}");
    assert!(guan.run(&["audit", "verify"]).status.success());
    let usage = out(&guan, &["usage", "--by", "key", "--json"]);
    let usage: Value = serde_json::from_str(&usage).unwrap();
    assert_eq!(usage[0]["calls"].as_u64(), Some(calls.len() as u64));
}
