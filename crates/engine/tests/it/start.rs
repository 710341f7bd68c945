//! Starting, describing and failing to start.

use std::fs;
use std::io::Write;
use std::process::Output;

use serde_json::Value;

use crate::worker::{Worker, command, model};

fn serve(file: &std::path::Path) -> Output {
    let folder = tempfile::tempdir().unwrap();
    command()
        .args(["serve", "--name", "x", "--model"])
        .arg(file)
        .arg("--listen")
        .arg(folder.path().join("s"))
        .output()
        .unwrap()
}

fn failure(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    line["failed"]["message"].as_str().unwrap().to_owned()
}

#[test]
fn describe_reads_the_header() {
    let output = command().arg("describe").arg(model()).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(found["architecture"].is_string());
    assert!(found["context_tokens"].as_u64().unwrap() > 0);
    assert!(found["parameters"].as_u64().unwrap() > 0);
    for member in ["name", "size_label", "licence", "file_type"] {
        assert!(found.as_object().unwrap().contains_key(member), "{member}");
    }
}

#[test]
fn broken_models_fail_with_words() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none.gguf");
    assert!(failure(&serve(&missing)).contains("none.gguf"));
    let other = folder.path().join("other.gguf");
    fs::write(&other, "not a model at all").unwrap();
    assert!(failure(&serve(&other)).contains("not a GGUF"));
    let whole = fs::read(model()).unwrap();
    let cut = folder.path().join("cut.gguf");
    for share in [1000, 2, 1] {
        let length = if share == 1 {
            whole.len() - 1
        } else {
            whole.len() / share
        };
        fs::write(&cut, &whole[..length]).unwrap();
        assert!(failure(&serve(&cut)).contains("cut short"));
        let output = command().arg("describe").arg(&cut).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        assert!(
            String::from_utf8(output.stderr)
                .unwrap()
                .contains("cut short")
        );
    }
    // a whole file of a family nobody knows: llama.cpp's own word is passed on
    let unknown = folder.path().join("unknown.gguf");
    let mut bytes = whole;
    let name = b"general.architecture";
    let at = bytes
        .windows(name.len())
        .position(|window| window == name)
        .unwrap();
    // after the key: type (4 bytes), length (8 bytes), text
    bytes[at + name.len() + 12] = b'z';
    fs::File::create(&unknown)
        .unwrap()
        .write_all(&bytes)
        .unwrap();
    let message = failure(&serve(&unknown));
    assert!(
        message.contains("can't be loaded") && message.contains("architecture"),
        "{message}"
    );
}

#[test]
fn wrong_arguments_end_with_two() {
    for arguments in [&[] as &[&str], &["serve"], &["describe"], &["fly"]] {
        let output = command().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn a_worker_that_runs_cannot_trace_or_be_traced() {
    let worker = Worker::start(&[]);
    let status = fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    assert!(
        status.lines().any(|line| line == "NoNewPrivs:\t1"),
        "{status}"
    );
    assert!(status.lines().any(|line| line == "Seccomp:\t2"), "{status}");
}
