//! `guan serve`: what it refuses to start with and what it says then; workers, reload and stop.
#![cfg(test)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use tempfile::TempDir;
use testkit::server::{Guan, command, in_front_of, read_file, write_file};
use testkit::upstream::Upstream;

use crate::guan;

/// Runs `guan serve` that is expected to end by itself.
fn serve(data: &Path) -> Output {
    command(guan(), data, &["serve"]).output().unwrap()
}

/// Its standard error, once it has failed.
fn failed(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

fn folder(config: Option<&str>) -> TempDir {
    let data = tempfile::tempdir().unwrap();
    if let Some(config) = config {
        write_file(&data.path().join("guan.toml"), config);
    }
    data
}

/// `guan` beside a `guan-engine` that is this shell script.
pub(crate) fn with_engine(script: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir_in(guan().parent().unwrap()).unwrap();
    let program = dir.path().join("guan");
    // The same file, so that nothing is copied and nothing is open for writing.
    std::fs::hard_link(guan(), &program).unwrap();
    let engine = dir.path().join("guan-engine");
    write_file(&engine, &format!("#!/bin/sh\n{script}\n"));
    std::fs::set_permissions(&engine, std::fs::Permissions::from_mode(0o755)).unwrap();
    (dir, program)
}

/// A worker that loads, and describes any file.
pub(crate) const GOOD_ENGINE: &str = r#"
if [ "$1" = describe ]; then
  echo '{"name":"Tiny Chat","architecture":"qwen2","size_label":"0.5B","context_tokens":64,"parameters":5,"licence":"apache-2.0","file_type":null}'
  exit 0
fi
echo '{"ready":{"name":"x","architecture":"qwen2","context_tokens":64,"parameters":494000000,"size_bytes":398000000,"licence":"apache-2.0"}}' >&4
exec sleep 600
"#;

const ENGINE_CONFIG: &str = "[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[[models]]\nname = \"tiny\"\n[[models.replicas]]\nengine = \"tiny.gguf\"\n";

#[test]
fn a15_an_unknown_key_stops_the_start_with_file_and_line() {
    let data = folder(Some(
        "[roles.basic]\nmax_output_tokens = 9\nrequest_per_minute = 10\n",
    ));
    let said = failed(&serve(data.path()));
    let file = data.path().join("guan.toml");
    let wanted = format!(
        "{}:3: unknown key \"request_per_minute\" in [roles.basic]; did you mean \"requests_per_minute\"?",
        file.display()
    );
    assert!(said.contains(&wanted), "{said}");
    assert!(
        !data.path().join("secrets").exists(),
        "nothing is made for a config that is refused"
    );
}

#[test]
fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let config = in_front_of("http://127.0.0.1:9").replacen(":0\"", &format!(":{port}\""), 1);
    let data = folder(Some(&config));
    let said = failed(&serve(data.path()));
    assert!(
        said.contains(&format!(
            "port {port} on 127.0.0.1 is taken by another program"
        )),
        "{said}"
    );
    assert!(said.contains("ss -ltnp"), "{said}");
}

#[test]
fn a_second_serve_is_refused_and_names_the_first() {
    let upstream = Upstream::start(|_, answer| answer.json(200, "{}"));
    let running = Guan::start(guan(), &in_front_of(&upstream.url()));
    let said = failed(&running.run(&["serve"]));
    assert!(said.contains("another guan uses the data folder"), "{said}");
    assert!(said.contains(&format!("kill {}", running.pid())), "{said}");
}

#[test]
fn without_a_model_it_says_what_to_type() {
    let data = folder(None);
    let said = failed(&serve(data.path()));
    for word in [
        "guan model pull",
        "guan init",
        "--upstream http://HOST:PORT",
    ] {
        assert!(said.contains(word), "{said}");
    }
    std::fs::write(data.path().join("models/a.gguf"), "").unwrap();
    std::fs::write(data.path().join("models/b.gguf"), "").unwrap();
    let said = failed(&serve(data.path()));
    assert!(said.contains("a.gguf\n  b.gguf"), "{said}");
    assert!(!data.path().join("secrets").exists());
}

#[test]
fn a_config_without_models_is_refused() {
    let data = folder(Some(
        "[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n",
    ));
    let said = failed(&serve(data.path()));
    assert!(said.contains("there is no model to serve"), "{said}");
}

#[test]
fn a_missing_model_file_is_named() {
    let (_dir, program) = with_engine(GOOD_ENGINE);
    let data = folder(Some(ENGINE_CONFIG));
    let said = failed(&command(&program, data.path(), &["serve"]).output().unwrap());
    assert!(said.contains("models/tiny.gguf isn't there"), "{said}");
    assert!(said.contains("guan model pull"), "{said}");
}

#[test]
fn a_broken_model_ends_the_start_with_the_workers_words() {
    let (_dir, program) = with_engine(
        r#"echo '{"failed":{"message":"this is no GGUF file; load it again"}}' >&4; exit 1"#,
    );
    let data = folder(Some(ENGINE_CONFIG));
    std::fs::create_dir(data.path().join("models")).unwrap();
    std::fs::write(data.path().join("models/tiny.gguf"), "junk").unwrap();
    let said = failed(&command(&program, data.path(), &["serve"]).output().unwrap());
    assert!(
        said.contains("the model \"tiny\" can't be loaded from "),
        "{said}"
    );
    assert!(
        said.contains("this is no GGUF file; load it again"),
        "{said}"
    );
    assert!(
        !data.path().join("state/run/admin.sock").exists(),
        "sockets are removed"
    );
}

#[test]
fn a_missing_engine_program_is_named() {
    let (dir, program) = with_engine("exit 1");
    std::fs::remove_file(dir.path().join("guan-engine")).unwrap();
    let data = folder(Some(ENGINE_CONFIG));
    std::fs::create_dir(data.path().join("models")).unwrap();
    std::fs::write(data.path().join("models/tiny.gguf"), "").unwrap();
    let said = failed(&command(&program, data.path(), &["serve"]).output().unwrap());
    assert!(
        said.contains("guan-engine, which runs the models, is missing"),
        "{said}"
    );
}

#[test]
fn a_model_file_is_served_by_the_config_that_init_writes() {
    let (_dir, program) = with_engine(GOOD_ENGINE);
    let data = folder(None);
    std::fs::create_dir(data.path().join("models")).unwrap();
    std::fs::write(data.path().join("models/tiny.gguf"), "").unwrap();
    let model = data.path().join("models/tiny.gguf");
    let made = command(
        &program,
        data.path(),
        &["init", "--model", model.to_str().unwrap()],
    )
    .output()
    .unwrap();
    assert!(made.status.success(), "{made:?}");
    let written = read_file(&data.path().join("guan.toml"));
    assert!(written.contains("name = \"tiny-chat-0.5b\""), "{written}");
    assert!(written.contains("engine = \"tiny.gguf\""), "{written}");
    // The address of a default config is fixed, and a test has no right to a fixed port.
    let config =
        format!("[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n{written}");
    let mut running = Guan::start(
        &program,
        &config.replace(
            "engine = \"",
            &format!("engine = \"{}/models/", data.path().display()),
        ),
    );
    running.wait_log("ready");
    let log = running.log_text();
    assert!(log.contains("tiny-chat-0.5b"), "{log}");
}

#[test]
fn a_worker_that_dies_is_started_again_and_a_stop_ends_all() {
    let (_dir, program) = with_engine(GOOD_ENGINE);
    let models = tempfile::tempdir().unwrap();
    std::fs::write(models.path().join("tiny.gguf"), "").unwrap();
    let config = ENGINE_CONFIG.replace(
        "tiny.gguf",
        &models.path().join("tiny.gguf").to_string_lossy(),
    );
    let mut running = Guan::start(&program, &config);
    running.wait_log("ready");
    let worker = children(running.pid())
        .into_iter()
        .find(|(_, line)| line.contains("sleep"));
    let (worker, _) = worker.expect("a worker");
    Guan::signal(worker, "KILL");
    running.wait_log("died: it was killed");
    running.wait_log("started again");
    let pid = running.pid();
    let left: Vec<u32> = children(pid).into_iter().map(|(child, _)| child).collect();
    assert_eq!(running.stop(), Some(0));
    for child in left {
        assert!(
            !Path::new(&format!("/proc/{child}/exe")).exists(),
            "a child outlived the server"
        );
    }
    for name in ["admin.sock", "address", "engine-tiny.sock"] {
        assert!(
            !running.data().join("state/run").join(name).exists(),
            "{name} is left"
        );
    }
}

#[test]
fn a15_a_bad_reload_keeps_the_old_config_and_a_good_one_is_taken_up() {
    let upstream = Upstream::start(|_, answer| answer.json(200, "{}"));
    let good = in_front_of(&upstream.url());
    let mut running = Guan::start(guan(), &good);
    let file = running.data().join("guan.toml");
    write_file(
        &file,
        &format!("{good}\n[roles.user]\nrequest_per_minute = 1\n"),
    );
    let line = running.wait_log("unknown key \"request_per_minute\"");
    assert!(line.contains("guan.toml:"), "{line}");
    running.wait_log("the one before stays in force");
    write_file(
        &file,
        &format!("{good}\n[roles.auditor]\nrequests_per_minute = 1\nmax_output_tokens = 1\n"),
    );
    running.wait_log("is in force");
    assert!(
        !running.key("auditor").is_empty(),
        "the new role can be given"
    );
    write_file(&file, &good.replace("127.0.0.1:0", "127.0.0.2:0"));
    running.wait_log("restart `guan serve`");
    Guan::signal(running.pid(), "HUP");
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn the_address_and_the_welcome_are_printed() {
    let upstream = Upstream::start(|_, answer| answer.json(200, "{}"));
    let running = Guan::start(guan(), &in_front_of(&upstream.url()));
    let address = read_file(&running.data().join("state/run/address"));
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    let mode = |below: &str| {
        std::fs::metadata(running.data().join(below))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode("state/run"), 0o700);
    assert_eq!(mode("state/run/admin.sock"), 0o600);
    assert_eq!(mode("secrets"), 0o700);
    assert_eq!(mode("secrets/first-key"), 0o400);
}

/// The children of a process and their command lines.
fn children(pid: u32) -> Vec<(u32, String)> {
    read_file(Path::new(&format!("/proc/{pid}/task/{pid}/children")))
        .split_whitespace()
        .filter_map(|child| child.parse().ok())
        .map(|child: u32| {
            (
                child,
                read_file(Path::new(&format!("/proc/{child}/cmdline"))),
            )
        })
        .collect()
}

#[test]
fn the_first_key_is_in_a_file_when_nobody_looks() {
    let data = folder(None);
    let made = command(guan(), data.path(), &["init"]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let key = read_file(&data.path().join("secrets/first-key"));
    assert!(!key.trim().is_empty());
    let said = [made.stdout, made.stderr].concat();
    assert!(!String::from_utf8_lossy(&said).contains(key.trim()));
}
