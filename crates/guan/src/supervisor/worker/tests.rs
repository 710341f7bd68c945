//! Workers that are shell scripts: each tells its line on descriptor 4 and then lives or dies.

use std::os::unix::fs::PermissionsExt;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;

struct Bed {
    dir: tempfile::TempDir,
}

impl Bed {
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("engine");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        Self { dir }
    }

    fn start(&self) -> Worker {
        let spec = EngineSpec {
            name: "tiny".to_owned(),
            file: self.dir.path().join("tiny.gguf"),
            socket: self.dir.path().join("tiny.sock"),
            context_tokens: Some(64),
            threads: None,
            parallel: Some(2),
        };
        // A script that another thread's fork still holds open for writing is busy for a moment.
        loop {
            match Worker::start(spec.clone(), self.dir.path().join("engine"), Instant::now()) {
                Err(e) if e.to_string().contains("Text file busy") => std::thread::yield_now(),
                started => return started.unwrap(),
            }
        }
    }
}

fn wait(fd: BorrowedFd<'_>) {
    let limit = Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };
    let mut polled = [PollFd::new(&fd, PollFlags::IN)];
    assert_eq!(
        poll(&mut polled, Some(&limit)).unwrap(),
        1,
        "nothing happened"
    );
}

const READY: &str = r#"{"ready":{"name":"x","architecture":"qwen2","context_tokens":64,"parameters":5,"size_bytes":9,"licence":null}}"#;

#[test]
fn a_worker_becomes_ready_dies_and_is_started_again() {
    let bed = Bed::new(&format!("echo '{READY}' >&4; kill -STOP $$"));
    let mut worker = bed.start();
    assert_eq!(worker.state(Instant::now()), WorkerState::Starting);
    wait(worker.line_fd().unwrap());
    let Some(Turn::Ready(ready)) = worker.hear() else {
        panic!("not ready")
    };
    assert_eq!((ready.name.as_str(), ready.parameters), ("tiny", 5));
    assert_eq!(worker.state(Instant::now()), WorkerState::Ready(ready));
    worker.kill(Signal::KILL);
    wait(worker.end_fd().unwrap());
    let now = Instant::now();
    let died = worker.reap(now);
    let pause = Duration::from_secs(1);
    let reason = "it was killed (signal 9; out of memory?)".to_owned();
    assert_eq!(
        died,
        Some(Turn::Died {
            reason: reason.clone(),
            pause
        })
    );
    assert_eq!(
        worker.state(now),
        WorkerState::Dead {
            reason,
            retry_ms: Some(1000)
        }
    );
    assert!(!worker.wake(now));
    assert!(worker.wake(now + pause));
    assert_eq!(worker.state(now), WorkerState::Starting);
    worker.kill(Signal::KILL);
}

#[test]
fn a_model_that_never_loads_says_why() {
    let bed = Bed::new(
        r#"echo '{"failed":{"message":"this is no GGUF file; load it again"}}' >&4; exit 1"#,
    );
    let mut worker = bed.start();
    wait(worker.end_fd().unwrap());
    let Some(Turn::NeverLoaded(reason)) = worker.reap(Instant::now()) else {
        panic!("it loaded")
    };
    assert_eq!(reason, "this is no GGUF file; load it again");
    assert!(
        worker
            .explain(&reason)
            .contains("\"tiny\" can't be loaded from")
    );
}

#[test]
fn a_worker_that_ends_without_a_word_is_told_of_by_its_code() {
    let bed = Bed::new("exit 3");
    let mut worker = bed.start();
    wait(worker.end_fd().unwrap());
    let turn = worker.reap(Instant::now());
    assert_eq!(
        turn,
        Some(Turn::NeverLoaded("it ended with code 3".to_owned()))
    );
}

#[test]
fn a_line_that_is_none_ends_the_worker() {
    let bed = Bed::new("echo hello >&4; exec sleep 60");
    let mut worker = bed.start();
    wait(worker.line_fd().unwrap());
    assert_eq!(worker.hear(), None);
    wait(worker.end_fd().unwrap());
    let Some(Turn::NeverLoaded(reason)) = worker.reap(Instant::now()) else {
        panic!("it loaded")
    };
    assert!(
        reason.starts_with("its ready line can't be read"),
        "{reason}"
    );
}

#[test]
fn a_worker_gets_its_numbers() {
    let bed = Bed::new(r#"printf '{"failed":{"message":"%s"}}\n' "$*" >&4"#);
    let mut worker = bed.start();
    wait(worker.end_fd().unwrap());
    let Some(Turn::NeverLoaded(said)) = worker.reap(Instant::now()) else {
        panic!("it loaded")
    };
    assert!(said.starts_with("serve --model "), "{said}");
    assert!(
        said.ends_with("--listen-fd 3 --ready-fd 4 --context 64 --parallel 2"),
        "{said}"
    );
}
