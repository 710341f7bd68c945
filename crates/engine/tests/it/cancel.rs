//! What happens when clients leave, read slowly, or are too many.

use serde_json::{Value, json};

use crate::worker::{Worker, send_only};

/// A story without an end: the model's end marks are forbidden.
fn endless(stream: bool) -> Value {
    json!({
        "prompt": "Once upon a time", "temperature": 0, "stream": stream,
        "logit_bias": {"1": -100, "106": -100},
    })
}

#[test]
fn after_a_cancel_at_most_one_more_step_runs() {
    let worker = Worker::start(&[]);
    for _ in 0..3 {
        let mut answer = worker.open("POST", "/v1/completions", &endless(true).to_string());
        for _ in 0..5 {
            answer.chunk().unwrap();
        }
        answer.hang_up();
        // asked after the hang-up, so answered after the worker saw it: the step that runs at this
        // moment may end, none may follow
        let seen = worker.counter("steps");
        worker.wait_for("active", 0);
        let steps = worker.counter("steps");
        assert!(steps <= seen + 1, "{} steps after the cancel", steps - seen);
        worker.text("1, 2, 3,", json!({"max_tokens": 1}));
        assert_eq!(worker.counter("steps"), steps + 1);
    }
}

#[test]
fn a_client_that_leaves_before_its_whole_answer_cancels_it() {
    let worker = Worker::start(&[]);
    let client = send_only(&worker, "/v1/completions", &endless(false));
    worker.wait_for("active", 1);
    drop(client);
    worker.wait_for("active", 0);
    assert!(
        worker.counter("steps") < 8000,
        "it ran to the end of the context"
    );
}

#[test]
fn a_client_that_leaves_the_queue_is_forgotten() {
    let worker = Worker::start(&["--parallel", "1"]);
    let running = send_only(&worker, "/v1/completions", &endless(false));
    worker.wait_for("active", 1);
    let queued = send_only(&worker, "/v1/completions", &endless(false));
    worker.wait_for("waiting", 1);
    drop(queued);
    worker.wait_for("waiting", 0);
    drop(running);
    worker.wait_for("active", 0);
}

#[test]
fn a_slow_reader_pauses_only_itself() {
    let worker = Worker::start(&["--parallel", "2", "--context", "16384"]);
    let mut body = endless(true);
    // long chunks fill the socket soon
    body["model"] = "m".repeat(256).into();
    body["max_tokens"] = 12000.into();
    let mut slow = worker.open("POST", "/v1/completions", &body.to_string());
    slow.chunk().unwrap();
    // Nobody reads on. Once the socket and the sequence's own queue are full it takes part in no
    // step, so steps come from the other client only.
    let mut before = worker.counter("steps");
    loop {
        worker.text("1, 2, 3,", json!({"max_tokens": 8}));
        let after = worker.counter("steps");
        if after - before <= 8 && worker.counter("active") == 1 {
            break;
        }
        assert!(after < 11000, "the unread sequence ran on");
        before = after;
    }
    // it goes on where it stopped as soon as it is read
    let steps = worker.counter("steps");
    while worker.counter("steps") < steps + 20 {
        slow.chunk().unwrap();
    }
    slow.hang_up();
    worker.wait_for("active", 0);
}

#[test]
fn a_full_queue_answers_503_and_recovers() {
    let worker = Worker::start(&["--parallel", "1"]);
    let running = send_only(&worker, "/v1/completions", &endless(false));
    worker.wait_for("active", 1);
    let mut body = endless(false);
    body["n"] = 16.into();
    let queued: Vec<_> = (0..4)
        .map(|_| send_only(&worker, "/v1/completions", &body))
        .collect();
    worker.wait_for("waiting", 64);
    let mut refused = worker.open("POST", "/v1/completions", &endless(false).to_string());
    assert_eq!(refused.status, 503);
    assert!(refused.head.contains("retry-after: 2"));
    let error: Value = serde_json::from_str(&refused.rest()).unwrap();
    assert_eq!(error["error"]["code"], "server_is_overloaded");
    assert_eq!(error["error"]["type"], "service_unavailable_error");
    drop((running, queued));
    worker.wait_for("waiting", 0);
    worker.wait_for("active", 0);
    worker.text("1, 2, 3,", json!({"max_tokens": 1}));
}
