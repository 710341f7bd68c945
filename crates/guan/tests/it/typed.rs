//! Commands that end by themselves: init, key, config, completions.
#![cfg(test)]

use std::process::Output;

use serde_json::Value;
use tempfile::TempDir;
use testkit::server::{command, read_file, write_file};
use testkit::upstream::Upstream;

use crate::guan;
use crate::start::{GOOD_ENGINE, with_engine};

fn run(data: &TempDir, arguments: &[&str]) -> Output {
    command(guan(), data.path(), arguments).output().unwrap()
}

fn out(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn failed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn config_check_says_good_or_every_fault() {
    let data = tempfile::tempdir().unwrap();
    assert!(out(&run(&data, &["config", "check"])).contains("good; 0 models and 2 roles"));
    let file = data.path().join("guan.toml");
    write_file(
        &file,
        "[roles.user]\nrequests_per_minute = 0\nmax_choices = -1\n",
    );
    let said = failed(&run(&data, &["config", "check"]));
    assert!(said.contains("guan.toml:2: requests_per_minute"), "{said}");
    assert!(said.contains("guan.toml:3: max_choices"), "{said}");
    let other = data.path().join("other.toml");
    write_file(
        &other,
        "[[models]]\nname = \"m\"\n[[models.replicas]]\nurl = \"http://h:1\"\n",
    );
    let said = out(&run(&data, &["config", "check", other.to_str().unwrap()]));
    assert!(said.contains("good; 1 model and 2 roles"), "{said}");
    assert!(failed(&run(&data, &["config", "check", "/nowhere.toml"])).contains("isn't there"));
}

#[test]
fn config_show_fills_in_the_defaults() {
    let data = tempfile::tempdir().unwrap();
    let shown = out(&run(&data, &["config", "show"]));
    assert!(shown.contains("listen = \"0.0.0.0:8443\""), "{shown}");
    assert!(
        shown.contains("[roles.user]\nmodels = [\"*\"]\nrequests_per_minute = 10\n"),
        "{shown}"
    );
}

#[test]
fn keys_are_made_listed_and_taken_back_while_nobody_serves() {
    let data = tempfile::tempdir().unwrap();
    let said = failed(&run(&data, &["key", "list"]));
    assert!(said.contains("guan init"), "{said}");
    out(&run(&data, &["init"]));
    let made = run(
        &data,
        &[
            "key",
            "create",
            "--name",
            "ann",
            "--role",
            "user",
            "--expires",
            "30d",
        ],
    );
    let key = out(&made);
    assert_eq!(
        key.lines().count(),
        1,
        "the key alone is on standard output: {key}"
    );
    assert!(!String::from_utf8_lossy(&made.stderr).contains(key.trim()));
    let rows: Value = serde_json::from_str(&out(&run(&data, &["key", "list", "--json"]))).unwrap();
    assert_eq!(rows.as_array().map(Vec::len), Some(2), "{rows}");
    let ann = rows
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["name"] == "ann")
        .unwrap();
    assert_eq!(
        (&ann["role"], &ann["revoked_at"]),
        (&Value::from("user"), &Value::Null)
    );
    assert!(ann["expires_at"].is_string());
    assert!(!rows.to_string().contains(key.trim()));
    let id = ann["id"].as_str().unwrap();
    assert!(out(&run(&data, &["key", "revoke", id])).contains("is revoked"));
    assert!(out(&run(&data, &["key", "revoke", id])).contains("was revoked already"));
    let table = out(&run(&data, &["key", "list"]));
    assert!(
        table
            .lines()
            .any(|l| l.contains("ann") && l.contains("revoked 20")),
        "{table}"
    );
    let said = failed(&run(
        &data,
        &["key", "create", "--name", "x", "--role", "usre"],
    ));
    assert!(said.contains("usre") && said.contains("user"), "{said}");
    let bad = run(
        &data,
        &[
            "key",
            "create",
            "--name",
            "x",
            "--role",
            "user",
            "--expires",
            "soon",
        ],
    );
    assert_eq!(bad.status.code(), Some(2));
}

#[test]
fn keys_go_through_the_server_while_it_runs() {
    let upstream = Upstream::start(|_, answer| answer.json(200, "{}"));
    let config = testkit::server::in_front_of(&upstream.url());
    let running = testkit::server::Guan::start(guan(), &config);
    let made = running.run(&["key", "create", "--name", "bob", "--role", "user", "--json"]);
    let made: Value = serde_json::from_str(&out(&made)).unwrap();
    let client = running.client().with_key(made["key"].as_str().unwrap());
    assert_eq!(client.get("/v1/models").status, 200);
    let id = made["id"].as_str().unwrap();
    assert!(out(&running.run(&["key", "list"])).contains("bob"));
    assert!(out(&running.run(&["key", "revoke", id])).contains("is revoked"));
    assert_eq!(client.get("/v1/models").status, 401, "refused at once");
    let said = failed(&running.run(&["key", "revoke", "../x"]));
    assert!(!said.is_empty());
    let said = failed(&running.run(&["key", "create", "--name", "x", "--role", "usre"]));
    assert!(said.contains("usre"), "{said}");
}

#[test]
fn init_with_a_file_writes_a_config_and_overwrites_none() {
    let (_dir, program) = with_engine(GOOD_ENGINE);
    let data = tempfile::tempdir().unwrap();
    let model = data.path().join("some where.gguf");
    write_file(&model, "");
    let model = model.to_str().unwrap();
    let made = command(&program, data.path(), &["init", "--model", model])
        .output()
        .unwrap();
    out(&made);
    let written = read_file(&data.path().join("guan.toml"));
    assert!(written.contains("name = \"tiny-chat-0.5b\""), "{written}");
    out(&command(&program, data.path(), &["config", "check"])
        .output()
        .unwrap());
    let again = command(&program, data.path(), &["init", "--model", model])
        .output()
        .unwrap();
    assert!(failed(&again).contains("is there already and stays as it is"));
    assert!(out(&run(&data, &["init"])).contains("is ready already"));
}

#[test]
fn init_with_an_upstream_reads_its_models_once() {
    let upstream = Upstream::start(|_, answer| {
        answer.json(
            200,
            r#"{"object":"list","data":[{"id":"Qwen/Q","owned_by":"vllm","max_model_len":4096}]}"#,
        );
    });
    let data = tempfile::tempdir().unwrap();
    let url = format!("{}/v1", upstream.url());
    out(&run(&data, &["init", "--upstream", &url]));
    let written = read_file(&data.path().join("guan.toml"));
    for line in [
        "name = \"Qwen/Q\"",
        "kind = \"vllm\"",
        "context_tokens = 4096",
    ] {
        assert!(written.contains(line), "{written}");
    }
    assert!(!written.contains("/v1\""), "{written}");
    out(&run(&data, &["config", "check"]));
}

#[test]
fn init_refuses_a_password_in_a_url_and_an_upstream_that_is_away() {
    let data = tempfile::tempdir().unwrap();
    let said = failed(&run(
        &data,
        &["init", "--upstream", "http://root:hunter2@127.0.0.1:1"],
    ));
    assert!(
        said.contains("user or a password") && !said.contains("hunter2"),
        "{said}"
    );
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let said = failed(&run(&data, &["init", "--upstream", &url]));
    assert!(said.contains("start the model server first"), "{said}");
    assert!(!data.path().join("guan.toml").exists());
    assert!(!data.path().join("secrets").exists(), "nothing is made");
}

#[test]
fn completions_and_version_are_printed() {
    let data = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            out(&run(&data, &["completions", shell])).contains("guan"),
            "{shell}"
        );
    }
    assert!(out(&run(&data, &["--version"])).starts_with("guan 0."));
    let help = out(&run(&data, &["--help"]));
    assert!(
        help.contains("Exit codes") && !help.contains("gateway"),
        "{help}"
    );
    assert_eq!(run(&data, &["nonsense"]).status.code(), Some(2));
}
