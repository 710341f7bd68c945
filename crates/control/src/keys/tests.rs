//! Acts on keys: what is valid, what is recorded, and what holds when the store or the log fails.

use crate::actor::Actor;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::*;
use crate::testbench::{Bench, NOW, new_key, roles};

#[tokio::test]
async fn a_key_is_shown_once_published_at_once_and_kept_as_a_digest_only() {
    let bench = Bench::new().await;
    let project = NewProject {
        name: "研发部".to_owned(),
        ..NewProject::default()
    };
    let _project = bench
        .keys
        .create_project(project, &Actor::local(1000))
        .await
        .unwrap();
    let new = NewKey {
        project: Some("研发部".to_owned()),
        expires_at: Some(NOW + 60),
        ..new_key("Ana's laptop")
    };
    let created = bench
        .keys
        .create(new, &roles(), &Actor::local(1000))
        .await
        .unwrap();
    assert_eq!(rules::key::check(&created.text), Ok(created.id));
    assert_eq!(bench.accepts(&created.text), Some(true));
    assert!(created.text.ends_with(&created.row.last4));
    assert_eq!(
        bench.keys.list().await.unwrap(),
        std::slice::from_ref(&created.row)
    );
    let record = bench.records.lock().unwrap()[1].clone();
    assert_eq!(
        (&*record.action, &*record.outcome),
        ("key-create", "success")
    );
    assert_eq!(record.user_id.as_deref(), Some("local:1000"));
    assert_eq!(record.act.as_ref().unwrap()["id"], created.id.as_str());

    bench.store.close().await;
    let secret = created.text.get(21..64).unwrap();
    let shown = format!("{created:?} {:?} {record:?}", bench.keys);
    assert!(!shown.contains(secret) && !shown.contains("7, 7"));
    for entry in std::fs::read_dir(bench.dir.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(
            !bytes
                .windows(secret.len())
                .any(|part| part == secret.as_bytes())
        );
    }
}

#[tokio::test]
async fn bad_names_roles_and_expiries_make_no_key() {
    let bench = Bench::new().await;
    let mut bad: Vec<(NewKey, &str)> = ["", " a", "a\n", "\u{202e}a", "a\u{200b}b", "tab\there"]
        .into_iter()
        .map(|name| (new_key(name), "printable"))
        .collect();
    bad.push((new_key(&"ü".repeat(129)), "printable"));
    let project = Some(String::new());
    bad.push((
        NewKey {
            project,
            ..new_key("a")
        },
        "project",
    ));
    let role = "root".to_owned();
    bad.push((
        NewKey {
            role,
            ..new_key("a")
        },
        "admin, user",
    ));
    let expires_at = Some(NOW);
    bad.push((
        NewKey {
            expires_at,
            ..new_key("a")
        },
        "2027-01-15T08:00:00Z",
    ));
    for (new, word) in bad {
        let fault = bench
            .keys
            .create(new.clone(), &roles(), &Actor::local(0))
            .await
            .unwrap_err();
        assert!(fault.to_string().contains(word), "{new:?}: {fault}");
    }
    assert!(bench.keys.list().await.unwrap().is_empty() && bench.actions().is_empty());
    let longest = bench
        .keys
        .create(new_key(&"ü".repeat(128)), &roles(), &Actor::local(0))
        .await;
    assert!(longest.is_ok());
}

#[tokio::test]
async fn a_revoked_key_is_refused_at_once_and_revoking_again_says_so() {
    let bench = Bench::new().await;
    let created = bench
        .keys
        .create(new_key("a"), &roles(), &Actor::local(0))
        .await
        .unwrap();
    let first = bench
        .keys
        .revoke(created.id.as_str(), &Actor::local(0))
        .await
        .unwrap();
    assert_eq!((first.already, first.row.revoked_at), (false, Some(NOW)));
    assert_eq!(bench.accepts(&created.text), Some(false));
    let second = bench
        .keys
        .revoke(created.id.as_str(), &Actor::local(0))
        .await
        .unwrap();
    assert_eq!((second.already, second.row), (true, first.row));
    assert_eq!(bench.actions(), ["key-create", "key-revoke", "key-revoke"]);
}

#[tokio::test]
async fn a_key_is_named_by_the_first_letters_of_its_id_if_they_fit_one_only() {
    let bench = Bench::new().await;
    let created = bench
        .keys
        .create(new_key("a"), &roles(), &Actor::local(0))
        .await
        .unwrap();
    let prefix = created.id.as_str().get(..6).unwrap();
    assert!(
        !bench
            .keys
            .revoke(prefix, &Actor::local(0))
            .await
            .unwrap()
            .already
    );
    for given in ["", "abc", "%%%%", "____", "sk-guan-", &created.text] {
        let fault = bench
            .keys
            .revoke(given, &Actor::local(0))
            .await
            .unwrap_err();
        assert_eq!(fault, KeysFault::NotAnId);
        assert!(given.len() < 9 || !fault.to_string().contains(given));
    }
    // Letter for letter: the database compares no case.
    let turned: String = prefix
        .chars()
        .map(|c| {
            if c.is_ascii_lowercase() {
                c.to_ascii_uppercase()
            } else {
                c.to_ascii_lowercase()
            }
        })
        .collect();
    if turned != prefix {
        assert!(matches!(
            bench.keys.revoke(&turned, &Actor::local(0)).await,
            Err(KeysFault::Unknown(_))
        ));
    }
    for letter in ["a", "b"] {
        let row = KeyRow {
            id: KeyId::parse(&format!("zzzzzzzzzzz{letter}")).unwrap(),
            ..created.row.clone()
        };
        let digest = bench.pepper.digest(letter);
        bench
            .store
            .add_keys(&[(row, digest)])
            .await
            .unwrap()
            .commit()
            .await
            .unwrap();
    }
    let fault = bench
        .keys
        .revoke("zzzzz", &Actor::local(0))
        .await
        .unwrap_err();
    assert!(
        fault.to_string().contains("zzzzzzzzzzza, zzzzzzzzzzzb"),
        "{fault}"
    );
}

#[tokio::test]
async fn without_a_record_no_key_is_made_but_a_revocation_holds() {
    let bench = Bench::new().await;
    let kept = bench
        .keys
        .create(new_key("kept"), &roles(), &Actor::local(0))
        .await
        .unwrap();
    bench.log_works.store(false, Ordering::SeqCst);
    let fault = bench
        .keys
        .create(new_key("none"), &roles(), &Actor::local(0))
        .await
        .unwrap_err();
    assert_eq!(fault, KeysFault::Audit(AuditFault::Unwritten));
    assert_eq!(bench.keys.list().await.unwrap().len(), 1);
    let fault = bench
        .keys
        .revoke(kept.id.as_str(), &Actor::local(0))
        .await
        .unwrap_err();
    assert_eq!(fault, KeysFault::Unrecorded);
    assert_eq!(bench.accepts(&kept.text), Some(false));
    bench.log_works.store(true, Ordering::SeqCst);
    assert!(
        bench
            .keys
            .revoke(kept.id.as_str(), &Actor::local(0))
            .await
            .unwrap()
            .already
    );
    assert_eq!(bench.actions(), ["key-create", "key-revoke"]);
    // The transaction that was given up doesn't hold the writer.
    assert!(
        bench
            .keys
            .create(new_key("next"), &roles(), &Actor::local(0))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_held_database_is_busy_not_broken_and_nothing_is_recorded() {
    let bench = Bench::new().await;
    let other = bench.hold().await;
    let fault = bench
        .keys
        .create(new_key("a"), &roles(), &Actor::local(0))
        .await
        .unwrap_err();
    assert_eq!(fault, KeysFault::Store(StoreFault::Busy));
    assert!(bench.actions().is_empty());
    drop(other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_at_once_make_twenty_keys_and_the_last_view_has_them_all() {
    let bench = Arc::new(Bench::new().await);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..20 {
        let bench = Arc::clone(&bench);
        let _task = tasks.spawn(async move {
            let name = format!("key {number}");
            bench
                .keys
                .create(new_key(&name), &roles(), &Actor::local(0))
                .await
                .unwrap()
                .text
        });
    }
    let texts = tasks.join_all().await;
    let unique: HashSet<&str> = texts.iter().map(|text| text.as_str()).collect();
    assert_eq!(unique.len(), 20);
    assert!(texts.iter().all(|text| bench.accepts(text) == Some(true)));
    assert_eq!(bench.keys.list().await.unwrap().len(), 20);
    assert_eq!(bench.actions().len(), 20);
}

#[tokio::test]
async fn pages_join_to_the_whole_list() {
    let bench = Bench::new().await;
    for number in 0..7 {
        let name = format!("key {number}");
        let _created = bench
            .keys
            .create(new_key(&name), &roles(), &Actor::local(0))
            .await
            .unwrap();
    }
    let (mut rows, mut after) = (Vec::new(), None);
    loop {
        let page = bench.keys.page(after, 3).await.unwrap();
        assert!(page.rows.len() <= 3);
        rows.extend(page.rows);
        after = rows.last().map(|row: &KeyRow| row.id);
        if !page.has_more {
            break;
        }
    }
    assert_eq!(rows, bench.keys.list().await.unwrap());
    let nobody = KeyId::parse("000000000000").unwrap();
    assert!(matches!(
        bench.keys.page(Some(nobody), 3).await,
        Err(KeysFault::Unknown(_))
    ));
}
