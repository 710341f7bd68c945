//! The API as it answers on the admin listener: rights, what may be given, pages, idempotency keys, the description.

use std::net::IpAddr;

use axum::response::Response;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};

use super::*;
use crate::actor::Actor;
use crate::api::table::table;
use crate::keys::{NewAdmin, Refused, Right};
use crate::testbench::new_key;

pub(super) struct Door {
    pub(super) bench: Bench,
    state: ApiState,
}

/// A status, a body, and the headers.
pub(super) struct Said {
    pub(super) status: u16,
    pub(super) body: Value,
    pub(super) headers: http::HeaderMap,
}

impl Door {
    pub(super) async fn open() -> Self {
        Self::on(Box::pin(Bench::new()).await).await
    }

    pub(super) async fn on(bench: Bench) -> Self {
        let state = state_of(&bench).await;
        Self { bench, state }
    }

    pub(super) async fn token(&self, right: Right, given: Option<&[&str]>) -> String {
        let new = NewAdmin {
            name: right.as_str().to_owned(),
            right,
            roles: given.map(|roles| roles.iter().map(|role| (*role).to_owned()).collect()),
            expires_at: None,
        };
        let actor = Actor::local(0);
        let made = self.bench.keys.create_admin(new, &roles(), &actor).await;
        made.unwrap().text.to_string()
    }

    pub(super) async fn ask(
        &self,
        token: &str,
        line: &str,
        more: &[(&str, &str)],
        body: &str,
    ) -> Said {
        let (method, path) = line.split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(path);
        if !token.is_empty() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in more {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(Bytes::from(body.to_owned())))
            .unwrap();
        let from: IpAddr = [192, 0, 2, 7].into();
        let answered: Response = Remote::new(&self.state).answer(from, request).await;
        let (head, body) = answered.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Said {
            status: head.status.as_u16(),
            body: serde_json::from_slice(&body).unwrap(),
            headers: head.headers,
        }
    }

    /// Only the status, without more headers.
    pub(super) async fn status(&self, token: &str, line: &str, body: &str) -> u16 {
        self.ask(token, line, &[], body).await.status
    }
}

/// One door on each database that is here.
pub(super) async fn doors() -> Vec<Door> {
    let mut doors = vec![Door::open().await];
    if let Some(target) = crate::testbench::postgres() {
        let bench = Bench::on(tempfile::tempdir().unwrap(), &target).await;
        doors.push(Door::on(bench).await);
    }
    doors
}

#[tokio::test]
async fn every_route_wants_its_right_and_every_path_a_credential() {
    let door = Door::open().await;
    let key = door
        .bench
        .keys
        .create(new_key("a"), &roles(), &Actor::local(0))
        .await
        .unwrap();
    let mut tokens = Vec::new();
    for right in Right::ALL {
        tokens.push((right, door.token(right, None).await));
    }
    let forged = rules::key::mint_admin(&[9; 44]).text.to_string();
    let mut walked = 0;
    for route in table() {
        let path = route.rule.path.replace("{id}", "000000000000");
        let line = format!("{} {path}", route.rule.method);
        for stranger in ["", "x", key.text.as_str(), forged.as_str()] {
            let said = door.ask(stranger, &line, &[], "").await;
            assert_eq!(said.status, 401, "{line} {stranger}");
            assert_eq!(said.body["error"]["code"], "invalid_admin_token");
        }
        for (right, token) in &tokens {
            let said = door.ask(token, &line, &[], "").await;
            let refused = matches!(said.status, 401 | 403);
            assert_eq!(
                refused,
                *right < route.rule.right,
                "{line} {right:?}: {}",
                said.body
            );
            walked += 1;
        }
    }
    assert_eq!(walked, 3 * table().len());
    for line in [
        "GET /",
        "GET /admin/v1/nothing",
        "PUT /admin/v1/keys",
        "GET /v1/models",
    ] {
        assert_eq!(door.ask("", line, &[], "").await.status, 401, "{line}");
        let known = door.ask(&tokens[0].1, line, &[], "").await.status;
        assert!(matches!(known, 404 | 405), "{line}: {known}");
    }
}

#[tokio::test]
async fn a_token_ends_when_it_expires_or_is_taken_back_and_says_when_it_was_used() {
    let door = Door::open().await;
    let owner = door.token(Right::Owner, None).await;
    let body = r#"{"name":"n","right":"viewer","expires_in_seconds":60}"#;
    let made = door.ask(&owner, "POST /admin/v1/admins", &[], body).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let token = made.body["token"].as_str().unwrap().to_owned();
    let me = door.ask(&token, "GET /admin/v1/me", &[], "").await;
    assert_eq!(
        (&me.body["right"], &me.body["id"]),
        (
            &"viewer".into(),
            &format!("admin:{}", made.body["id"].as_str().unwrap()).into()
        )
    );
    let list = door.ask(&owner, "GET /admin/v1/admins", &[], "").await.body;
    assert_eq!(list["data"].as_array().unwrap().len(), 2);
    assert!(list["data"][1]["last_used"].is_string() && !list.to_string().contains(&token));
    let path = format!(
        "DELETE /admin/v1/admins/{}",
        made.body["id"].as_str().unwrap()
    );
    assert_eq!(
        door.ask(&owner, &path, &[], "").await.body["already_revoked"],
        false
    );
    assert_eq!(
        door.ask(&owner, &path, &[], "").await.body["already_revoked"],
        true
    );
    assert_eq!(
        door.ask(&token, "GET /admin/v1/me", &[], "").await.status,
        401
    );
    // What a token makes ends no later than it does.
    let short = door
        .ask(
            &owner,
            "POST /admin/v1/admins",
            &[],
            &body.replace("viewer", "owner"),
        )
        .await;
    let short = short.body["token"].as_str().unwrap().to_owned();
    for (body, status) in [
        (r#"{"name":"n","right":"owner"}"#, 400),
        (
            r#"{"name":"n","right":"owner","expires_in_seconds":61}"#,
            400,
        ),
        (
            r#"{"name":"n","right":"owner","expires_in_seconds":60}"#,
            201,
        ),
    ] {
        let said = door.ask(&short, "POST /admin/v1/admins", &[], body).await;
        assert_eq!(said.status, status, "{body}: {}", said.body);
    }
    let later = clock::fixed(i128::from(NOW + 60) * 1_000_000_000);
    let keys = Keys::new(
        door.bench.store.clone(),
        door.bench.pepper.clone(),
        door.bench.publisher.clone(),
        door.bench.audit.clone(),
        later,
    );
    let why = |refused| match refused {
        Refused::Because(reason, id) => (reason, id.is_some()),
        Refused::Unknown(fault) => panic!("{fault}"),
    };
    let ended = keys.admin_by(&short).await.unwrap_err();
    assert_eq!(why(ended), ("expired-admin-token", true));
    let gone = keys.admin_by(&token).await.unwrap_err();
    assert_eq!(why(gone), ("revoked-admin-token", true));
    // It is kept as a digest only, and is never a key.
    let list = crate::keys::read_list(&owner, crate::keys::Foreign::Plain);
    assert!(list.unwrap_err().to_string().contains("admin token"));
    door.bench.store.close().await;
    let said = door.ask(&owner, "GET /admin/v1/me", &[], "").await;
    assert_eq!(
        (said.status, said.body["error"]["type"].as_str()),
        (503, Some("service_unavailable_error"))
    );
}

/// Whoever had a stolen token may have made himself others.
#[tokio::test]
async fn a_token_is_taken_back_with_those_that_were_made_with_it_if_so_asked() {
    let door = Door::open().await;
    let line = "POST /admin/v1/admins";
    let body = r#"{"name":"n","right":"owner"}"#;
    let root = door.token(Right::Owner, None).await;
    let mut tokens = vec![root.clone()];
    let mut ids = Vec::new();
    for _ in 0..3 {
        let made = door.ask(tokens.last().unwrap(), line, &[], body).await.body;
        tokens.push(made["token"].as_str().unwrap().to_owned());
        ids.push(made["id"].as_str().unwrap().to_owned());
    }
    let me = "GET /admin/v1/me";
    for (query, good) in [("", true), ("?with_made=true", false)] {
        let path = format!("DELETE /admin/v1/admins/{}{query}", ids[0]);
        let gone = door.ask(&root, &path, &[], "").await.body;
        let made = gone["made"].as_array().unwrap();
        let mut named: Vec<&str> = made.iter().map(|one| one["id"].as_str().unwrap()).collect();
        let mut wanted = [&*ids[1], &*ids[2]];
        named.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(named, wanted, "{query}");
        assert_eq!(made[0]["revoked_at"].is_null(), good);
        assert_eq!(door.status(&tokens[1], me, "").await, 401);
        for token in &tokens[2..] {
            let status = door.status(token, me, "").await;
            assert_eq!(status, if good { 200 } else { 401 });
        }
    }
    assert_eq!(door.status(&root, me, "").await, 200);
    let revoked = door.bench.actions();
    let revoked = revoked.iter().filter(|one| *one == "admin-revoke").count();
    assert_eq!(revoked, 4);
}

#[tokio::test]
async fn nobody_gives_what_he_does_not_hold() {
    let door = Door::open().await;
    let operator = door.token(Right::Operator, Some(&["user"])).await;
    let new = crate::keys::NewKey {
        role: "admin".to_owned(),
        ..new_key("a")
    };
    let by = Actor::local(0);
    let boss = door.bench.keys.create(new, &roles(), &by).await.unwrap();
    let body = r#"{"name":"a","role":"user"}"#;
    let made = door.ask(&operator, "POST /admin/v1/keys", &[], body).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let creator = made.body["created_by"].as_str().unwrap();
    assert!(creator.starts_with("admin:"));
    let whole = door.token(Right::Operator, None).await;
    let line = "POST /admin/v1/projects";
    assert_eq!(door.status(&whole, line, r#"{"name":"p"}"#).await, 201);
    assert_eq!(
        door.status(&whole, line, r#"{"name":"0123456789ab"}"#)
            .await,
        400
    );
    let own = format!("/admin/v1/keys/{}", made.body["id"].as_str().unwrap());
    let other = format!("/admin/v1/keys/{}", boss.id);
    let import = r#"{"form":"plain","list":"sk-litellm-1","like":{"name":"a","role":"admin"}}"#;
    for (line, body) in [
        (
            "POST /admin/v1/keys".to_owned(),
            r#"{"name":"a","role":"admin"}"#,
        ),
        (format!("PATCH {own}"), r#"{"role":"admin"}"#),
        (format!("PATCH {other}"), r#"{"role":"user"}"#),
        (format!("POST {other}/rotate"), r#"{"overlap_seconds":60}"#),
        (format!("DELETE {other}"), ""),
        ("POST /admin/v1/keys/import".to_owned(), import),
        (
            "POST /admin/v1/admins".to_owned(),
            r#"{"name":"a","right":"viewer"}"#,
        ),
        ("POST /admin/v1/projects".to_owned(), r#"{"name":"q"}"#),
        ("PATCH /admin/v1/projects/p".to_owned(), r#"{"own":null}"#),
        ("POST /admin/v1/projects/p/disable".to_owned(), ""),
        ("POST /admin/v1/projects/p/enable".to_owned(), ""),
    ] {
        let any = [("if-match", "*")];
        let more = if line.starts_with("PATCH") {
            &any[..]
        } else {
            &[]
        };
        let said = door.ask(&operator, &line, more, body).await;
        let code = said.body["error"]["code"].as_str();
        assert_eq!(
            (said.status, code),
            (403, Some("insufficient_right")),
            "{line}"
        );
    }
    assert_eq!(door.bench.accepts(&boss.text), Some(true));
    let narrow = r#"{"own":{"requests_per_minute":2}}"#;
    let line = format!("PATCH {own}");
    let said = door
        .ask(&operator, &line, &[("if-match", "*")], narrow)
        .await;
    assert_eq!(said.status, 200, "{}", said.body);
    let records = door.bench.records.lock().unwrap().clone();
    let of = |action: &'static str| records.iter().filter(move |record| record.action == action);
    let change = of("key-change").next().unwrap();
    assert_eq!(change.source_ip.as_deref(), Some("192.0.2.7"));
    assert_eq!(change.user_id.as_deref(), Some(creator));
    // One for each route: a PATCH of his own and of another's key are one caller and one reason.
    assert_eq!(of("admin-denied").count(), 10);
    assert!(of("admin-denied").all(|record| record.status == Some(403)));
}
