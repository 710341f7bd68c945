//! The admin API over TLS on the running binary, and the commands beside it.
#![cfg(test)]

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};
use testkit::client::{Client, Response};
use testkit::server::{Guan, in_front_of};
use testkit::upstream::Upstream;

use crate::guan;

const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
const WHOLE: &str = r#"{"id":"c","object":"chat.completion","created":1,"model":"u","choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8}}"#;

fn start() -> (Upstream, Guan) {
    let upstream = Upstream::start(|_, answer| answer.json(200, WHOLE));
    let guan = Guan::start(guan(), &in_front_of(&upstream.url()));
    (upstream, guan)
}

/// What a command printed, as JSON.
fn ask(guan: &Guan, words: &[&str]) -> Value {
    let done = guan.run(words);
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{words:?}: {errors}");
    serde_json::from_slice(&done.stdout).unwrap()
}

/// A client of the admin listener with a new token.
fn admin(guan: &Guan, right: &str, more: &[&str]) -> (Client, Value) {
    let words = [
        &["admin", "create", "--json", "--name", "n", "--right", right],
        more,
    ]
    .concat();
    let made = ask(guan, &words);
    (
        guan.admin_door().with_key(made["token"].as_str().unwrap()),
        made,
    )
}

fn post(client: &Client, path: &str, headers: &str, body: &Value) -> Response {
    client.send("POST", path, headers, Some(&body.to_string()))
}

#[test]
fn a_key_is_made_changed_rotated_and_taken_back_over_tls_and_every_act_is_recorded() {
    let (_upstream, guan) = start();
    let (operator, token) = admin(&guan, "operator", &[]);
    let made = post(
        &operator,
        "/admin/v1/keys",
        "",
        &json!({ "name": "a", "role": "user" }),
    );
    assert_eq!(made.status, 201, "{}", made.text());
    let (id, tag) = (
        made.json()["id"].as_str().unwrap().to_owned(),
        made.headers["etag"].clone(),
    );
    let caller = guan.client().with_key(made.json()["key"].as_str().unwrap());
    assert_eq!(caller.chat(CHAT).status, 200);
    let path = format!("/admin/v1/keys/{id}");
    let shown = operator.get(&path);
    assert_eq!((shown.status, &shown.headers["etag"]), (200, &tag));
    let patch = |tag: &str| {
        let body = r#"{"own":{"models":["another"]}}"#;
        operator.send("PATCH", &path, &format!("If-Match: {tag}\r\n"), Some(body))
    };
    assert_eq!(patch(&tag).status, 200);
    assert_eq!(patch(&tag).status, 412);
    assert_eq!(operator.send("PATCH", &path, "", Some("{}")).status, 428);
    assert_eq!(caller.chat(CHAT).status, 403);
    let rotated = post(
        &operator,
        &format!("{path}/rotate"),
        "",
        &json!({ "overlap_seconds": 0 }),
    );
    assert_eq!(rotated.status, 200);
    assert_eq!(caller.chat(CHAT).status, 401);
    let gone = operator.send("DELETE", &path, "", None);
    assert_eq!(
        (gone.status, &gone.json()["already_revoked"]),
        (200, &json!(false))
    );
    let by = format!("admin:{}", token["id"].as_str().unwrap());
    let records = guan.records();
    let mut acts = records.iter().filter(|record| record["user.id"] == *by);
    for action in ["key-create", "key-change", "key-rotate", "key-revoke"] {
        let act = acts.next().unwrap();
        assert_eq!(
            (&act["event.action"], &act["source.ip"]),
            (&json!(action), &json!("127.0.0.1"))
        );
    }
    let change = records
        .iter()
        .find(|record| record["event.action"] == "key-change")
        .unwrap();
    assert_eq!(change["guan.act"]["before"]["own"], json!({}));
    assert_eq!(
        change["guan.act"]["after"]["own"]["models"],
        json!(["another"])
    );
    let texts = format!("{records:?}");
    assert!(!texts.contains(token["token"].as_str().unwrap()));
    assert!(!texts.contains(made.json()["key"].as_str().unwrap()));
}

#[test]
fn neither_credential_opens_the_other_door_and_a_refusal_leaves_a_trace() {
    let (_upstream, mut guan) = start();
    let (viewer, token) = admin(&guan, "viewer", &[]);
    let text = token["token"].as_str().unwrap();
    let model_key = guan.key("admin");
    for path in [
        "/",
        "/admin/v1/keys",
        "/admin/v1/nothing",
        "/v1/models",
        "/livez",
    ] {
        for client in [guan.admin_door(), guan.admin_door().with_key(&model_key)] {
            let said = client.get(path);
            assert_eq!(
                (said.status, said.error().0.as_str()),
                (401, "invalid_admin_token"),
                "{path}"
            );
            assert_eq!(said.headers["www-authenticate"], "Bearer");
        }
    }
    for path in ["/v1/models", "/admin/v1/keys"] {
        assert_eq!(guan.client().with_key(text).get(path).status, 401, "{path}");
    }
    assert_eq!(
        guan.client()
            .with_key(&model_key)
            .get("/admin/v1/keys")
            .status,
        404
    );
    assert_eq!(viewer.get("/admin/v1/keys").status, 200);
    assert_eq!(viewer.get("/v1/models").status, 404);
    let refused = post(
        &viewer,
        "/admin/v1/keys",
        "",
        &json!({ "name": "a", "role": "user" }),
    );
    assert_eq!(
        (refused.status, refused.error().0.as_str()),
        (403, "insufficient_right")
    );
    guan.until("both refusals are recorded", |guan| {
        let records = guan.records();
        let of = |reason: &str| {
            records.iter().any(|record| {
                record["event.action"] == "admin-denied" && record["event.reason"] == *reason
            })
        };
        of("no-credential") && of("not-an-admin-token") && of("right")
    });
    ask(
        &guan,
        &["admin", "revoke", "--json", token["id"].as_str().unwrap()],
    );
    assert_eq!(viewer.get("/admin/v1/keys").status, 401);
}

#[test]
fn a_token_that_is_taken_back_on_one_node_opens_nothing_on_the_other() {
    let upstream = Upstream::start(|_, answer| answer.json(200, WHOLE));
    let Some(url) = testkit::postgres::database() else {
        return;
    };
    let config = in_front_of(&upstream.url()) + &format!("\n[store]\nurl = \"{url}\"\n");
    let one = Guan::start(guan(), &config);
    let kek = one.data().join("secrets/kek");
    let two = Guan::start_with(guan(), &config, |data| {
        std::fs::create_dir(data.join("secrets")).unwrap();
        std::fs::copy(&kek, data.join("secrets/kek")).unwrap();
    });
    let (_client, token) = admin(&one, "viewer", &[]);
    let at_two = two.admin_door().with_key(token["token"].as_str().unwrap());
    assert_eq!(at_two.get("/admin/v1/me").status, 200);
    ask(
        &one,
        &["admin", "revoke", "--json", token["id"].as_str().unwrap()],
    );
    assert_eq!(at_two.get("/admin/v1/me").status, 401);
}

#[test]
fn commands_make_list_and_take_back_tokens_with_and_without_a_server() {
    let (_upstream, mut guan) = start();
    let (operator, made) = admin(&guan, "operator", &["--role", "user", "--expires", "30d"]);
    assert_eq!(
        operator.get("/admin/v1/me").json()["roles"],
        json!(["user"])
    );
    let refused = post(
        &operator,
        "/admin/v1/keys",
        "",
        &json!({ "name": "a", "role": "admin" }),
    );
    assert_eq!((refused.status, refused.error().1.as_str()), (403, "role"));
    assert_eq!(guan.stop(), Some(0));
    let words = ["admin", "create", "--name", "o", "--right", "owner"];
    let done = guan.run(&words);
    let text = String::from_utf8_lossy(&done.stdout).trim().to_owned();
    assert!(text.starts_with("sk-guan-admin-"), "{done:?}");
    let list = ask(&guan, &["admin", "list", "--json"]);
    assert_eq!(list.as_array().unwrap().len(), 2);
    assert!(!list.to_string().contains(&text));
    ask(
        &guan,
        &["admin", "revoke", "--json", made["id"].as_str().unwrap()],
    );
    guan.serve();
    let owner = guan.admin_door().with_key(&text);
    assert_eq!(owner.get("/admin/v1/me").json()["right"], "owner");
    let revoked = guan.admin_door().with_key(made["token"].as_str().unwrap());
    assert_eq!(revoked.get("/admin/v1/me").status, 401);
    let described = ask(&guan, &["admin", "openapi"]);
    assert_eq!(described, owner.get("/admin/v1/openapi.json").json());
    assert_eq!(described["openapi"], "3.1.0");
    let wrong = guan.run(&["admin", "create", "--name", "o", "--right", "boss"]);
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn a_creation_that_is_sent_twice_over_tls_makes_one_key() {
    let (_upstream, guan) = start();
    let (operator, _token) = admin(&guan, "operator", &[]);
    let send = || {
        let body = json!({ "name": "twice", "role": "user" });
        post(
            &operator,
            "/admin/v1/keys",
            "Idempotency-Key: 7f\r\n",
            &body,
        )
    };
    let (first, again) = (send(), send());
    assert_eq!((first.status, again.status), (201, 201));
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(again.json()["key"], Value::Null);
    assert_eq!(again.json()["id"], first.json()["id"]);
    // The first key and this one, each on a page of its own.
    let page = operator.get("/admin/v1/keys?limit=1");
    let link = page.headers["link"].clone();
    let next = link.strip_prefix('<').unwrap().split_once('>').unwrap().0;
    let rest = operator.get(next).json();
    assert_eq!(rest["has_more"], false);
    let names = [page.json(), rest].map(|page| page["data"][0]["name"].clone());
    assert!(names.contains(&json!("twice")) && names.contains(&json!("first key")));
}

#[test]
fn the_admin_door_has_the_deadlines_and_the_framing_of_the_data_door() {
    let (_upstream, guan) = start();
    let door = guan.admin_door();
    let twice = "GET /admin/v1/me HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n";
    assert_eq!(door.raw(twice).status, 400);
    let bodied = "GET /admin/v1/me HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx";
    assert_eq!(door.raw(bodied).status, 400);
    let (viewer, _token) = admin(&guan, "operator", &[]);
    let large = "x".repeat(70_000);
    let said = post(
        &viewer,
        "/admin/v1/keys",
        "",
        &json!({ "name": large, "role": "user" }),
    );
    assert_eq!(said.status, 413);
    // Plain HTTP and other protocols are no handshake.
    let address = testkit::server::read_file(&guan.data().join("state/run/admin-address"));
    let mut plain = TcpStream::connect(address.trim()).unwrap();
    plain
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let mut rest = Vec::new();
    plain.read_to_end(&mut rest).ok();
    assert!(!rest.starts_with(b"HTTP"));
    // A head that never ends costs its own connection, and nobody else's.
    let mut slow: Vec<_> = (0..8).map(|_| door.connect().unwrap()).collect();
    for connection in &mut slow {
        connection.write("GET /admin/v1/me HTTP/1.1\r\n");
    }
    assert_eq!(viewer.get("/admin/v1/me").status, 200);
}

#[test]
fn the_admin_listener_can_be_off_and_a_network_address_is_refused() {
    let upstream = Upstream::start(|_, answer| answer.json(200, WHOLE));
    let config = in_front_of(&upstream.url());
    let off = config.replace(
        "[admin]\nlisten = \"127.0.0.1:0\"",
        "[admin]\nlisten = \"off\"",
    );
    let guan = Guan::start(guan(), &off);
    assert!(!guan.data().join("state/run/admin-address").exists());
    // The Unix socket serves the commands all the same.
    assert!(
        ask(&guan, &["admin", "list", "--json"])
            .as_array()
            .unwrap()
            .is_empty()
    );
    let open = config.replace(
        "[admin]\nlisten = \"127.0.0.1:0\"",
        "[admin]\nlisten = \"0.0.0.0:0\"",
    );
    let folder = tempfile::tempdir().unwrap();
    testkit::server::write_file(&folder.path().join("guan.toml"), &open);
    let done = testkit::server::command(crate::guan(), folder.path(), &["config", "check"])
        .output()
        .unwrap();
    let said = [done.stdout, done.stderr].concat();
    assert!(String::from_utf8_lossy(&said).contains("this machine alone"));
}
