//! Requests that are sent again, and lists that are asked for in pages: on both databases.

use std::collections::BTreeMap;

use super::remote::{Door, doors};
use super::*;
use crate::keys::Right;
use crate::store::{Cursor, NodeRow, Sums, UsageKey};
use crate::testbench::futures_of;

const KEYS: &str = "POST /admin/v1/keys";
const BODY: &str = r#"{"name":"a","role":"user"}"#;

#[tokio::test]
async fn a_request_that_is_sent_twice_acts_once_and_shows_its_secret_once() {
    for door in doors().await {
        let token = door.token(Right::Operator, None).await;
        let once = [("idempotency-key", "k-1")];
        let first = door.ask(&token, KEYS, &once, BODY).await;
        assert_eq!(first.status, 201);
        let again = door.ask(&token, KEYS, &once, BODY).await;
        assert_eq!((again.status, &again.body["id"]), (201, &first.body["id"]));
        assert_eq!(again.body["key"], Value::Null);
        assert_eq!(again.headers["idempotency-replayed"], "true");
        assert_eq!(door.bench.keys.list().await.unwrap().len(), 1);
        let place = format!("{KEYS}/{}/rotate", first.body["id"].as_str().unwrap());
        let third = [("idempotency-key", "k-3")];
        for secret in [true, false] {
            let body = r#"{"overlap_seconds":60}"#;
            let said = door.ask(&token, &place, &third, body).await;
            assert_eq!(said.body["key"].is_string(), secret, "{}", said.body);
        }
        // What is kept has no secret in it.
        let digest = door.bench.keys.digest_of_request(&[]);
        let by = format!("admin:{}", token.get(14..26).unwrap());
        let kept = door
            .bench
            .store
            .take_once((&by, "k-1"), &digest, (NOW, 0))
            .await;
        let (_status, kept) = kept.unwrap().unwrap().answer.unwrap();
        assert!(kept.contains(first.body["id"].as_str().unwrap()));
        assert!(!kept.contains("sk-guan-"), "{kept}");
    }
}

#[tokio::test]
async fn another_request_under_the_same_key_is_refused_and_one_that_failed_can_be_sent_again() {
    for door in doors().await {
        let token = door.token(Right::Operator, None).await;
        let once = [("idempotency-key", "k-1")];
        assert_eq!(door.ask(&token, KEYS, &once, BODY).await.status, 201);
        let other = r#"{"name":"b","role":"user"}"#;
        let said = door.ask(&token, KEYS, &once, other).await;
        let code = said.body["error"]["code"].as_str();
        assert_eq!((said.status, code), (422, Some("idempotency_key_reused")));
        let elsewhere = door
            .ask(&token, "POST /admin/v1/projects", &once, BODY)
            .await;
        assert_eq!(elsewhere.status, 422);
        // Keys are of him who sends them.
        let operator = door.token(Right::Operator, None).await;
        let his = door.ask(&operator, KEYS, &once, BODY).await;
        assert!(his.body["key"].is_string());
        let fails = [("idempotency-key", "k-2")];
        let paid = r#"{"name":"a","role":"user","project":"p"}"#;
        assert_eq!(door.ask(&token, KEYS, &fails, paid).await.status, 404);
        let project = r#"{"name":"p"}"#;
        assert_eq!(
            door.status(&token, "POST /admin/v1/projects", project)
                .await,
            201
        );
        assert_eq!(door.ask(&token, KEYS, &fails, paid).await.status, 201);
        for wrong in ["", "a b", &"x".repeat(129)] {
            let more = [("idempotency-key", wrong)];
            let said = door.ask(&token, KEYS, &more, BODY).await;
            assert_eq!(said.status, 400, "{wrong:?}");
        }
    }
}

#[tokio::test]
async fn a_first_sending_that_was_cut_is_told_and_its_key_is_free_after_a_day() {
    for door in doors().await {
        let (store, place, digest) = (&door.bench.store, ("admin:x", "k"), [0_u8; 32]);
        let take = |now: i64| store.take_once(place, &digest, (now, now - 86_400));
        assert_eq!(take(NOW).await.unwrap(), None);
        assert_eq!(take(NOW).await.unwrap().unwrap().answer, None);
        assert_eq!(take(NOW + 86_400).await.unwrap().unwrap().answer, None);
        assert_eq!(take(NOW + 86_401).await.unwrap(), None);
    }
}

/// The database's word may have been lost after it acted: nobody can say, so nothing acts twice.
#[tokio::test]
async fn a_request_that_failed_on_our_side_is_not_run_again_under_its_key() {
    let door = Door::open().await;
    let token = door.token(Right::Operator, None).await;
    let once = [("idempotency-key", "k")];
    door.bench.log_works.store(false, Ordering::SeqCst);
    assert_eq!(door.ask(&token, KEYS, &once, BODY).await.status, 503);
    door.bench.log_works.store(true, Ordering::SeqCst);
    let said = door.ask(&token, KEYS, &once, BODY).await;
    let code = said.body["error"]["code"].as_str();
    assert_eq!((said.status, code), (409, Some("idempotency_key_in_use")));
    let other = [("idempotency-key", "l")];
    assert_eq!(door.ask(&token, KEYS, &other, BODY).await.status, 201);
}

/// Of many that are sent at once one acts; the others are told that it hasn't ended, or get its answer.
#[tokio::test]
async fn of_many_equal_requests_at_once_one_acts() {
    for door in doors().await {
        let token = door.token(Right::Operator, None).await;
        let once = [("idempotency-key", "k")];
        let asks = (0..8).map(|_| door.ask(&token, KEYS, &once, BODY));
        let mut made = 0;
        for said in futures_of(asks).await {
            assert!(matches!(said.status, 201 | 409), "{}", said.body);
            made += usize::from(said.body["key"].is_string());
        }
        assert_eq!((made, door.bench.keys.list().await.unwrap().len()), (1, 1));
    }
}

/// Five of everything that is listed.
async fn fill(door: &Door, token: &str) {
    let mut usage = BTreeMap::new();
    for n in 0..5 {
        let name = format!("n {n}");
        for (line, more) in [
            ("POST /admin/v1/projects", ""),
            (KEYS, r#","role":"user""#),
            ("POST /admin/v1/admins", r#","right":"viewer""#),
        ] {
            let body = format!(r#"{{"name":"{name}"{more}}}"#);
            assert_eq!(door.status(token, line, &body).await, 201);
        }
        let node = NodeRow {
            id: format!("node-{n}"),
            started_at: NOW,
            seen_at: NOW,
            version: "1".to_owned(),
            config: "c".to_owned(),
        };
        door.bench.store.node_lives(&node).await.unwrap();
        let place = UsageKey {
            day: 1,
            key: name.clone(),
            project: String::new(),
            model: name,
        };
        let sums = Sums {
            calls: n,
            ..Sums::default()
        };
        let _none = usage.insert(place, sums);
    }
    let (store, to) = (&door.bench.store, Cursor { seq: 1, offset: 1 });
    store.add_usage("c", to, &usage, &[]).await.unwrap();
}

#[tokio::test]
async fn every_list_comes_in_pages_that_join() {
    for door in doors().await {
        let token = door.token(Right::Owner, None).await;
        fill(&door, &token).await;
        for (path, count) in [
            ("/admin/v1/keys?limit=2", 5),
            ("/admin/v1/projects?limit=2", 5),
            ("/admin/v1/admins?limit=2", 6),
            ("/admin/v1/nodes?limit=2", 5),
            ("/admin/v1/usage?by=model&since_day=0&limit=2", 5),
        ] {
            let (mut next, mut rows) = (path.to_owned(), Vec::new());
            loop {
                let said = door.ask(&token, &format!("GET {next}"), &[], "").await;
                assert_eq!(said.status, 200, "{next}: {}", said.body);
                rows.extend(said.body["data"].as_array().unwrap().clone());
                let link = said.headers.get("link");
                assert_eq!(said.body["has_more"], link.is_some());
                let Some(link) = link else { break };
                let (place, rest) = link.to_str().unwrap().split_once('>').unwrap();
                assert_eq!(rest, "; rel=\"next\"");
                place.trim_start_matches('<').clone_into(&mut next);
            }
            rows.dedup();
            assert_eq!(rows.len(), count, "{path}");
            for wrong in ["limit=0", "limit=1001", "sort=x"] {
                let line = format!("GET {}", path.replace("limit=2", wrong));
                assert_eq!(door.status(&token, &line, "").await, 400, "{line}");
            }
        }
    }
}
