//! The admin socket, spoken to as `guan key` does: bytes over a Unix socket.

use std::sync::atomic::Ordering;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::*;
use crate::clock;
use crate::keys::KeyRow;
use crate::testbench::{Bench, NOW, roles};

mod remote;
mod twice;
mod described;

struct Socket {
    bench: Bench,
    serving: JoinHandle<()>,
}

impl Socket {
    async fn start(allowed: Vec<u32>) -> Self {
        let bench = Box::pin(Bench::new()).await;
        let listener = UnixListener::bind(bench.dir.path().join("admin.sock")).unwrap();
        let state = state_of(&bench).await;
        let serving = tokio::spawn(serve(listener, state, allowed));
        Self { bench, serving }
    }

    async fn ours() -> Self {
        Self::start(vec![uid()]).await
    }

    async fn raw(&self, bytes: &[u8]) -> String {
        let path = self.bench.dir.path().join("admin.sock");
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = String::new();
        let _size = stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: guan\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        let answer = self.raw(request.as_bytes()).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        assert!(
            head.contains("application/json") && head.contains("no-store"),
            "{head}"
        );
        assert_eq!(status == 503, head.contains("retry-after: 1"), "{head}");
        (status, serde_json::from_str(body).unwrap())
    }

    async fn create(&self, body: &Value) -> (u16, Value) {
        self.ask("POST", "/admin/v1/keys", &body.to_string()).await
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn state_of(bench: &Bench) -> ApiState {
    ApiState::new(
        bench.keys.clone(),
        Arc::new(roles),
        Arc::clone(&bench.clock),
        bench.store.clone(),
        Box::pin(bench.secrets(bench.kms())).await,
    )
    .with_limits(Arc::new(|_row: &KeyRow, forget| {
        let used = if forget { 0 } else { 3 };
        let limit = LimitRow {
            holder: "key".to_owned(),
            limit: "10 requests/minute".to_owned(),
            size: 10,
            used,
            remaining: 10 - used,
            resets_in_ms: 6000 * used,
        };
        Box::pin(async move { Some(vec![limit]) })
    }))
}

fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[tokio::test]
async fn a_key_is_made_listed_and_taken_back() {
    let socket = Socket::ours().await;
    let (status, _project) = socket
        .ask("POST", "/admin/v1/projects", r#"{"name":"p"}"#)
        .await;
    assert_eq!(status, 201);
    let body = json!({ "name": "a", "role": "user", "project": "p", "expires_in_seconds": 60 });
    let (status, made) = socket.create(&body).await;
    assert_eq!(status, 201);
    let text = made["key"].as_str().unwrap();
    assert_eq!(socket.bench.accepts(text), Some(true));
    assert_eq!(made["expires_at"], clock::rfc3339_seconds(NOW + 60));
    assert_eq!(made["created_by"], format!("local:{}", uid()));

    let (status, list) = socket.ask("GET", "/admin/v1/keys?limit=1", "").await;
    assert_eq!((status, &list["has_more"]), (200, &Value::Bool(false)));
    assert_eq!(list["data"][0]["id"], made["id"]);
    assert!(!list.to_string().contains(text));
    let row: KeyRow = serde_json::from_value(list["data"][0].clone()).unwrap();
    assert_eq!((row.created_at, row.expires_at), (NOW, Some(NOW + 60)));

    let path = format!("/admin/v1/keys/{}", row.id);
    for already in [false, true] {
        let (status, gone) = socket.ask("DELETE", &path, "").await;
        assert_eq!(
            (status, &gone["already_revoked"]),
            (200, &Value::Bool(already))
        );
    }
    assert_eq!(socket.bench.accepts(text), Some(false));
    assert_eq!(
        socket.bench.actions(),
        ["project-create", "key-create", "key-revoke", "key-revoke"]
    );
}

#[tokio::test]
async fn what_exists_is_changed_by_whoever_has_seen_it_as_it_is() {
    let socket = Socket::ours().await;
    let (_, made) = socket.create(&json!({ "name": "a", "role": "user" })).await;
    let path = format!("/admin/v1/keys/{}", made["id"].as_str().unwrap());
    let patch = |tag: &str, body: &str| {
        let length = body.len();
        let head = format!("PATCH {path} HTTP/1.1\r\nhost: guan\r\ncontent-length: {length}\r\n");
        format!("{head}{tag}\r\n{body}")
    };
    let body = r#"{"own":{"requests_per_minute":3}}"#;
    for (tag, status, code) in [
        ("", "428", "precondition_required"),
        ("if-match: \"7\"\r\n", "412", "precondition_failed"),
        ("if-match: W/\"1\"\r\n", "412", "precondition_failed"),
        ("if-match: 1\r\n", "400", "null"),
        ("if-match: \"1\"\r\n", "200", "requests_per_minute"),
        ("if-match: \"1\"\r\n", "412", "precondition_failed"),
    ] {
        let answer = socket.raw(patch(tag, body).as_bytes()).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{tag}: {answer}"
        );
        assert!(answer.contains(code), "{tag}: {answer}");
        assert_eq!(status == "200", answer.contains("etag: \"2\""), "{answer}");
    }
    let answer = socket
        .raw(format!("GET {path} HTTP/1.1\r\nhost: guan\r\n\r\n").as_bytes())
        .await;
    assert!(answer.contains("etag: \"2\""), "{answer}");
    let answer = socket
        .raw(patch("if-match: *\r\n", r#"{"own":null}"#).as_bytes())
        .await;
    assert!(answer.contains("\"own\":{}"), "{answer}");
    for wrong in [
        r#"{"id":"x"}"#,
        r#"{"name":null}"#,
        r#"{"role":null}"#,
        r#"{"own":{"models":["m"],"models":null}}"#,
    ] {
        let answer = socket.raw(patch("if-match: *\r\n", wrong).as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{wrong}: {answer}");
    }
    assert_eq!(
        socket.bench.actions(),
        ["key-create", "key-change", "key-change"]
    );
}

#[tokio::test]
async fn a_user_who_may_not_gets_403_and_nothing_else() {
    let socket = Socket::start(vec![uid().wrapping_add(1)]).await;
    for (method, path) in [
        ("GET", "/admin/v1/keys"),
        ("POST", "/admin/v1/keys"),
        ("GET", "/x"),
    ] {
        let (status, body) = socket.ask(method, path, "").await;
        assert_eq!(status, 403);
        assert!(body["error"]["message"].as_str().unwrap().contains("root"));
    }
    // Three refusals of one user in one minute: one record now, the rest when the minute is over.
    assert_eq!(socket.bench.actions(), ["admin-denied"]);
}

/// Method, path, body; status and a word of the answer.
const WRONG: &[(&str, &str, &str, u16, &str)] = &[
    (
        "POST",
        "/admin/v1/keys",
        r#"{"name":"a","role":"user","admin":true}"#,
        400,
        "admin",
    ),
    (
        "POST",
        "/admin/v1/keys",
        r#"{"name":"a","name":"b","role":"user"}"#,
        400,
        "duplicate",
    ),
    ("POST", "/admin/v1/keys", r#"{"name":"a"}"#, 400, "role"),
    (
        "POST",
        "/admin/v1/keys",
        r#"{"name":"a","role":"boss"}"#,
        400,
        "admin, user",
    ),
    (
        "POST",
        "/admin/v1/keys",
        r#"{"name":"","role":"user"}"#,
        400,
        "printable",
    ),
    ("POST", "/admin/v1/keys", "nothing", 400, "expected"),
    (
        "POST",
        "/admin/v1/keys",
        r#"{"name":"a","role":"user","expires_at":"soon"}"#,
        400,
        "2030",
    ),
    (
        "POST",
        "/admin/v1/keys",
        r#"{"name":"a","role":"user","expires_at":"2001-01-01T00:00:00Z"}"#,
        400,
        "passed",
    ),
    (
        "POST",
        "/admin/v1/keys",
        r#"{"name":"a","role":"user","expires_in_seconds":0}"#,
        400,
        "passed",
    ),
    (
        "POST",
        "/admin/v1/keys",
        r#"{"name":"a","role":"user","expires_in_seconds":-5}"#,
        400,
        "-5",
    ),
    (
        "POST",
        "/admin/v1/keys",
        r#"{"name":"a","role":"user","expires_in_seconds":5,"expires_at":"2030-12-31T23:59:59Z"}"#,
        400,
        "both",
    ),
    ("GET", "/admin/v1/keys?limit=0", "", 400, "limit"),
    ("GET", "/admin/v1/keys?limit=1001", "", 400, "limit"),
    ("GET", "/admin/v1/keys?sort=name", "", 400, "sort"),
    ("GET", "/admin/v1/keys?after=x", "", 400, "after"),
    (
        "GET",
        "/admin/v1/keys?after=000000000000",
        "",
        404,
        "000000000000",
    ),
    (
        "DELETE",
        "/admin/v1/keys/000000000000",
        "",
        404,
        "000000000000",
    ),
    ("DELETE", "/admin/v1/keys/0", "", 400, "12 letters"),
    ("PUT", "/admin/v1/keys/000000000000", "", 405, "method"),
    ("PUT", "/admin/v1/keys", "", 405, "method"),
    ("GET", "/admin/v1/users", "", 404, "openapi.json"),
    ("GET", "/v1/models", "", 404, "openapi.json"),
];

#[tokio::test]
async fn what_is_wrong_is_said_in_one_form() {
    let socket = Socket::ours().await;
    for (method, path, body, wanted, word) in WRONG {
        let (status, answer) = socket.ask(method, path, body).await;
        let message = answer["error"]["message"].as_str().unwrap();
        assert_eq!(status, *wanted, "{method} {path} {body}: {message}");
        assert!(message.contains(word), "{method} {path} {body}: {message}");
        assert_eq!(answer["error"]["type"], "invalid_request_error");
        assert_eq!(answer["error"].as_object().unwrap().len(), 4);
    }
    let (status, _) = socket
        .create(&json!({ "name": "x".repeat(70_000), "role": "user" }))
        .await;
    assert_eq!(status, 413);
    assert!(socket.bench.actions().is_empty());
}

#[tokio::test]
async fn a_held_database_or_a_full_log_is_503_with_a_word_on_what_to_do() {
    let socket = Socket::ours().await;
    let body = json!({ "name": "a", "role": "user" });
    let other = socket.bench.hold().await;
    let (status, answer) = socket.create(&body).await;
    assert_eq!(
        (status, answer["error"]["type"].as_str()),
        (503, Some("service_unavailable_error"))
    );
    assert_eq!(socket.ask("GET", "/admin/v1/keys", "").await.0, 200);
    sqlx::Connection::close(other).await.unwrap();
    socket.bench.log_works.store(false, Ordering::SeqCst);
    let (status, answer) = socket.create(&body).await;
    assert_eq!(status, 503);
    assert!(
        answer["error"]["message"]
            .as_str()
            .unwrap()
            .contains("Make room")
    );
    socket.bench.log_works.store(true, Ordering::SeqCst);
    assert_eq!(socket.create(&body).await.0, 201);
    socket.bench.store.close().await;
    let (status, answer) = socket.create(&body).await;
    assert_eq!(status, 503);
    assert!(!answer.to_string().contains("pool"), "{answer}");
}

#[tokio::test]
async fn more_connections_than_places_are_all_answered_in_turn() {
    let socket = Socket::ours().await;
    let path = socket.bench.dir.path().join("admin.sock");
    let mut idle = Vec::new();
    for _ in 0..15 {
        idle.push(UnixStream::connect(&path).await.unwrap());
    }
    let mut asks = tokio::task::JoinSet::new();
    let socket = Arc::new(socket);
    for _ in 0..40 {
        let socket = Arc::clone(&socket);
        let _task = asks.spawn(async move { socket.ask("GET", "/admin/v1/keys", "").await.0 });
    }
    assert!(
        asks.join_all()
            .await
            .into_iter()
            .all(|status| status == 200)
    );
    drop(idle);
}

#[tokio::test]
async fn garbage_is_no_request() {
    let socket = Socket::ours().await;
    let answer = socket.raw(b"\x16\x03\x01 this is no HTTP\r\n\r\n").await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_secret_goes_in_and_a_sealed_value_comes_out() {
    let socket = Socket::ours().await;
    let (status, sealed) = socket
        .ask(
            "POST",
            "/admin/v1/secrets/seal",
            r#"{"secret":"sk-hunter2"}"#,
        )
        .await;
    assert_eq!(status, 200, "{sealed}");
    let text = sealed["sealed"].as_str().unwrap();
    assert!(text.starts_with("sealed:") && !text.contains("hunter2"));
    let (status, said) = socket
        .ask(
            "POST",
            "/admin/v1/secrets/seal",
            r#"{"secret":"sk hunter2"}"#,
        )
        .await;
    assert_eq!(status, 400);
    assert!(!said.to_string().contains("hunter2"), "{said}");
    let (status, done) = socket.ask("POST", "/admin/v1/secrets/rewrap", "").await;
    assert_eq!((status, &done["provider"]), (200, &"file".into()), "{done}");
    assert_eq!(socket.bench.actions(), ["secret-seal", "secret-rewrap"]);
    let (status, kept) = socket.ask("GET", "/admin/v1/secrets", "").await;
    assert_eq!((status, &kept["provider"]), (200, &"file".into()), "{kept}");
    assert_eq!(
        (&kept["reachable"], &kept["keys_due"]),
        (&true.into(), &0.into()),
        "{kept}"
    );
    let records = format!("{:?}", socket.bench.records.lock().unwrap());
    assert!(!records.contains("hunter2"), "{records}");
}
