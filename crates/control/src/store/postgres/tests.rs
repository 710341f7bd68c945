//! PostgreSQL only: the schema, and nodes that hear of each other.

use crate::actor::Actor;
use std::time::Instant;

use super::*;
use crate::publish::follow;
use crate::store::{Store, Target};
use crate::testbench::{Bench, elsewhere, new_key, postgres, roles};

fn server(target: &Target) -> &Server {
    match target {
        Target::Postgres(server) => server,
        Target::Sqlite(_) => panic!("not a server"),
    }
}

#[tokio::test]
async fn nodes_that_start_together_make_the_schema_once() {
    let Some(target) = postgres() else {
        return;
    };
    let opened = tokio::join!(
        Store::open(&target),
        Store::open(&target),
        Store::open(&target)
    );
    let (a, b, c) = (opened.0.unwrap(), opened.1.unwrap(), opened.2.unwrap());
    a.add_facts(&[("x", b"1")]).await.unwrap();
    assert_eq!(b.fact("x").await.unwrap(), c.fact("x").await.unwrap());
}

#[tokio::test]
async fn a_newer_schema_and_another_programs_database_are_refused() {
    let Some(target) = postgres() else {
        return;
    };
    let base = Base::open(server(&target), PATIENCE).await.unwrap();
    sqlx::raw_sql("UPDATE guan_schema SET version = 99")
        .execute(base.pool())
        .await
        .unwrap();
    let fault = Store::open(&target).await.unwrap_err();
    assert!(
        matches!(
            fault,
            StoreFault::TooNew {
                found: 99,
                known: 5,
                ..
            }
        ),
        "{fault}"
    );
    sqlx::raw_sql("DROP TABLE guan_schema")
        .execute(base.pool())
        .await
        .unwrap();
    let fault = Store::open(&target).await.unwrap_err();
    assert!(matches!(fault, StoreFault::Foreign { .. }), "{fault}");
}

#[tokio::test]
async fn a_server_that_isnt_there_is_said_so() {
    let target = Target::Postgres(Server {
        url: "postgres://guan@%2Fnowhere/guan".to_owned(),
        password: None,
    });
    let fault = Store::open_within(&target, Duration::from_millis(300))
        .await
        .unwrap_err();
    assert!(matches!(fault, StoreFault::Unreachable(_)), "{fault}");
}

/// A certificate for a name, and its key, PEM.
fn certificate(name: &str) -> (String, String) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

#[tokio::test]
async fn a_server_over_the_network_must_show_its_name_and_hear_the_password() {
    let (shown, key) = certificate("localhost");
    let Some(port) = testkit::postgres::over_tls(&shown, &key, "hunter2") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (right, wrong) = (dir.path().join("right.pem"), dir.path().join("wrong.pem"));
    std::fs::write(&right, shown).unwrap();
    std::fs::write(&wrong, certificate("localhost").0).unwrap();
    let opened = |host: &str, more: String, password: Option<&str>| {
        let target = Target::Postgres(Server {
            url: format!("postgres://guan_tls@{host}:{port}/postgres?{more}"),
            password: password.map(|text| text.to_owned().into()),
        });
        async move { Store::open_within(&target, Duration::from_secs(5)).await }
    };
    let root = |path: &std::path::Path| format!("sslrootcert={}", path.display());
    // The name is resolved, its certificate verified without being told to, the password sent by SCRAM.
    let store = opened("localhost", root(&right), Some("hunter2"))
        .await
        .unwrap();
    store.add_facts(&[("x", b"1")]).await.unwrap();
    store.close().await;
    for (host, more, password) in [
        ("localhost", root(&wrong), Some("hunter2")),
        ("localhost", String::new(), Some("hunter2")),
        (
            "127.0.0.1",
            "sslmode=verify-full&".to_owned() + &root(&right),
            Some("hunter2"),
        ),
        ("localhost", "sslmode=disable".to_owned(), Some("hunter2")),
        ("localhost", root(&right), Some("hunter3")),
        ("localhost", root(&right), None),
    ] {
        let fault = opened(host, more.clone(), password).await.unwrap_err();
        let said = fault.to_string();
        assert!(!said.contains("hunter"), "{said}");
        assert!(
            matches!(fault, StoreFault::Unreachable(_) | StoreFault::Denied(_)),
            "{host} {more}: {said}"
        );
    }
}

#[tokio::test]
async fn a_revocation_on_one_node_is_heard_on_the_other_within_a_second() {
    let Some(target) = postgres() else {
        return;
    };
    let bench = Bench::on(tempfile::tempdir().unwrap(), &target).await;
    let created = bench
        .keys
        .create(new_key("a"), &roles(), &Actor::local(0))
        .await
        .unwrap();
    let (_ask, questions) = tokio::sync::mpsc::channel(1);
    let _task = tokio::spawn(follow(bench.publisher.clone(), questions, || ()));
    assert_eq!(bench.accepts(&created.text), Some(true));
    let other = elsewhere(&bench);
    let began = Instant::now();
    let _row = other
        .revoke(created.id.as_str(), &Actor::local(0))
        .await
        .unwrap();
    while bench.accepts(&created.text) == Some(true) {
        assert!(began.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    println!("a revocation took {:?} to the other node", began.elapsed());
}

const PATIENCE: Duration = Duration::from_secs(5);
