//! The conformance suite: the same acts on SQLite and on PostgreSQL, with the same results.

use crate::actor::Actor;
use std::collections::BTreeMap;

use rules::policy::Own;

use super::*;
use crate::keys::{NewKey, NewProject};
use crate::testbench::{Bench, NOW, new_key, postgres, roles};

/// One bench on each database that is here.
async fn benches() -> Vec<Bench> {
    let mut benches = vec![Bench::new().await];
    if let Some(target) = postgres() {
        benches.push(Bench::on(tempfile::tempdir().unwrap(), &target).await);
    }
    benches
}

#[tokio::test]
async fn facts_are_added_once_all_or_none() {
    for bench in benches().await {
        bench.store.add_facts(&[("a", b"1")]).await.unwrap();
        let fault = bench
            .store
            .add_facts(&[("b", b"2"), ("a", b"3")])
            .await
            .unwrap_err();
        assert_eq!(fault, StoreFault::Taken);
        assert_eq!(bench.store.fact("a").await.unwrap().unwrap(), b"1");
        assert_eq!(bench.store.fact("b").await.unwrap(), None);
    }
}

#[tokio::test]
async fn keys_that_are_due_for_a_new_secret_are_counted_as_they_are_listed() {
    for bench in benches().await {
        let mut roles = roles();
        let user = roles.get_mut("user").unwrap();
        user.rotate_after = Some(60);
        let mut made = Vec::new();
        for (name, expires_at) in [("a", None), ("b", None), ("c", Some(NOW + 61))] {
            let new = NewKey {
                expires_at,
                ..new_key(name)
            };
            let key = bench
                .keys
                .create(new, &roles, &Actor::local(0))
                .await
                .unwrap();
            made.push(key.row.id.to_string());
        }
        let _row = bench.keys.revoke(&made[0], &Actor::local(0)).await.unwrap();
        for (now, due) in [(NOW + 59, 0), (NOW + 60, 2), (NOW + 61, 1)] {
            let counted = crate::keys::count_due(&bench.store, &roles, now).await;
            assert_eq!(counted.unwrap(), due);
            let listed = bench.keys.list().await.unwrap();
            let listed = listed
                .iter()
                .filter(|row| crate::keys::is_due(row, &roles, now));
            assert_eq!(u64::try_from(listed.count()).unwrap(), due);
        }
    }
}

#[tokio::test]
async fn a_sealed_thing_is_replaced_only_by_who_has_read_it() {
    for bench in benches().await {
        let store = &bench.store;
        assert_eq!(store.sealed("a").await.unwrap(), None);
        let dropped = store.keep_sealed("a", None, b"never", NOW).await.unwrap();
        drop(dropped);
        assert_eq!(store.sealed("a").await.unwrap(), None);
        let first = store.keep_sealed("a", None, b"1", NOW).await.unwrap();
        first.commit().await.unwrap();
        for old in [None, Some(&b"0"[..])] {
            let late = store.keep_sealed("a", old, b"2", NOW).await;
            assert_eq!(late.unwrap_err(), StoreFault::Taken);
        }
        let second = store.keep_sealed("a", Some(b"1"), b"2", NOW).await.unwrap();
        second.commit().await.unwrap();
        assert_eq!(store.sealed("a").await.unwrap().unwrap(), b"2");
        let absent = store.keep_sealed("b", Some(b"1"), b"2", NOW).await;
        assert_eq!(absent.unwrap_err(), StoreFault::Taken);
    }
}

#[tokio::test]
async fn a_key_reads_back_as_it_was_written_and_pages_join() {
    for bench in benches().await {
        let project = NewProject {
            name: "研发部".to_owned(),
            ..NewProject::default()
        };
        let _row = bench
            .keys
            .create_project(project, &Actor::local(0))
            .await
            .unwrap();
        let mut made = Vec::new();
        for number in 0..5 {
            let new = NewKey {
                project: Some("研发部".to_owned()),
                not_before: Some(NOW + 5),
                expires_at: Some(NOW + 60),
                own: Own {
                    models: Some(std::sync::Arc::new(["m".to_owned()])),
                    addresses: Some(std::sync::Arc::new(["10.0.0.0/8".parse().unwrap()])),
                    requests_per_minute: Some(3),
                    ..Own::default()
                },
                notes: "two\nlines".to_owned(),
                ..new_key(&format!("key {number}"))
            };
            made.push(
                bench
                    .keys
                    .create(new, &roles(), &Actor::local(0))
                    .await
                    .unwrap()
                    .row,
            );
        }
        let first = bench.store.keys_after(None, 2).await.unwrap();
        let rest = bench.store.keys_after(Some(first[1].id), 10).await.unwrap();
        let mut read: Vec<KeyRow> = first.into_iter().chain(rest).collect();
        read.sort_by_key(|row| row.name.clone());
        assert_eq!(read, made);
        let nobody = rules::key::KeyId::parse("000000000000").unwrap();
        assert!(
            bench
                .store
                .keys_after(Some(nobody), 10)
                .await
                .unwrap()
                .is_empty()
        );
        let prefix = made[0].id.as_str().get(..6).unwrap();
        assert_eq!(
            bench.store.keys_named(prefix, 4).await.unwrap(),
            [made[0].clone()]
        );
        assert_eq!(bench.store.count_keys().await.unwrap(), 5);
    }
}

#[tokio::test]
async fn every_act_that_requests_must_see_raises_the_revision_and_what_is_given_up_does_not() {
    for bench in benches().await {
        let at = |store: Store| async move { store.revision().await.unwrap() };
        let start = at(bench.store.clone()).await;
        let made = bench
            .keys
            .create(new_key("a"), &roles(), &Actor::local(0))
            .await
            .unwrap();
        assert_eq!(at(bench.store.clone()).await, start + 1);
        let digest = bench.pepper.digest("x");
        let pending = bench
            .store
            .add_keys(&[(
                KeyRow {
                    id: rules::key::KeyId::parse("aaaaaaaaaaaa").unwrap(),
                    ..made.row.clone()
                },
                digest,
            )])
            .await
            .unwrap();
        drop(pending);
        assert_eq!(at(bench.store.clone()).await, start + 1);
        let fault = bench
            .store
            .add_keys(&[(made.row.clone(), digest)])
            .await
            .unwrap_err();
        assert_eq!(fault, StoreFault::Taken);
        let (row, first) = bench
            .store
            .revoke(made.id, None, NOW + 1)
            .await
            .unwrap()
            .unwrap();
        assert_eq!((row.revoked_at, first), (Some(NOW + 1), true));
        let (row, first) = bench
            .store
            .revoke(made.id, None, NOW + 2)
            .await
            .unwrap()
            .unwrap();
        assert_eq!((row.revoked_at, first), (Some(NOW + 1), false));
        assert!(bench.store.seen_since(start + 1).await.unwrap()[0].revoked);
        assert!(at(bench.store.clone()).await > start + 1);
    }
}

#[tokio::test]
async fn a_rotation_keeps_the_key_and_both_secrets_work_until_the_overlap_ends() {
    for bench in benches().await {
        let first = bench
            .keys
            .create(new_key("a"), &roles(), &Actor::local(0))
            .await
            .unwrap();
        let second = bench
            .keys
            .rotate(first.id.as_str(), 100, &Actor::local(0))
            .await
            .unwrap();
        assert_eq!(second.id, first.id);
        assert_eq!(rules::key::check(&second.text), Ok(first.id));
        for (text, now, good) in [
            (&first.text, NOW + 99, true),
            (&first.text, NOW + 100, false),
            (&second.text, NOW + 100, true),
        ] {
            assert_eq!(bench.accepts_at(text, now), Some(good));
        }
        let third = bench
            .keys
            .rotate(first.id.as_str(), 0, &Actor::local(0))
            .await
            .unwrap();
        assert_eq!(bench.accepts(&first.text), Some(false));
        assert_eq!(bench.accepts(&second.text), Some(false));
        assert_eq!(bench.accepts(&third.text), Some(true));
        let shown = bench.keys.show(first.id.as_str(), &roles()).await.unwrap();
        assert_eq!(shown.secrets.len(), 3);
        assert_eq!(
            (shown.secrets[0].valid_until, &shown.secrets[0].last4),
            (None, &third.row.last4)
        );
        assert_eq!(bench.actions(), ["key-create", "key-rotate", "key-rotate"]);
        let _row = bench
            .keys
            .revoke(first.id.as_str(), &Actor::local(0))
            .await
            .unwrap();
        assert_eq!(bench.accepts(&third.text), Some(false));
        let fault = bench
            .keys
            .rotate(first.id.as_str(), 0, &Actor::local(0))
            .await
            .unwrap_err();
        assert!(fault.to_string().contains("revoked"), "{fault}");
    }
}

#[tokio::test]
async fn keys_of_a_disabled_project_are_refused_until_it_is_enabled() {
    for bench in benches().await {
        let new = NewKey {
            project: Some("p".to_owned()),
            ..new_key("a")
        };
        let fault = bench
            .keys
            .create(new.clone(), &roles(), &Actor::local(0))
            .await
            .unwrap_err();
        assert!(
            fault.to_string().contains("guan project create p"),
            "{fault}"
        );
        let project = NewProject {
            name: "p".to_owned(),
            ..NewProject::default()
        };
        let row = bench
            .keys
            .create_project(project.clone(), &Actor::local(0))
            .await
            .unwrap();
        let again = bench
            .keys
            .create_project(project, &Actor::local(0))
            .await
            .unwrap_err();
        assert_eq!(again, crate::keys::KeysFault::Store(StoreFault::Taken));
        let key = bench
            .keys
            .create(new, &roles(), &Actor::local(0))
            .await
            .unwrap();
        for (enabled, changed) in [(false, true), (false, false), (true, true)] {
            let (row, was) = bench
                .keys
                .enable_project(&row.id, enabled, &Actor::local(0))
                .await
                .unwrap();
            assert_eq!((row.enabled, was), (enabled, changed));
            assert_eq!(bench.accepts(&key.text), Some(enabled));
        }
    }
}

#[tokio::test]
async fn a_change_is_seen_and_recorded_and_never_overwrites_what_another_changed() {
    use crate::keys::{Expected, KeyChange, KeysFault};
    let body = |text: &str| serde_json::from_str::<KeyChange>(text).unwrap();
    for bench in benches().await {
        let (keys, roles) = (&bench.keys, roles());
        let made = keys
            .create(new_key("a"), &roles, &Actor::local(0))
            .await
            .unwrap();
        let id = made.id.as_str();
        let first = Expected::Versions(vec![1]);
        let text = r#"{"name":"b","notes":"n","own":{"models":["m"],"requests_per_minute":3}}"#;
        let row = keys
            .change(id, &first, body(text), &roles, &Actor::local(0))
            .await;
        let row = row.unwrap();
        assert_eq!((row.version, &*row.name, &*row.notes), (2, "b", "n"));
        assert_eq!(keys.list().await.unwrap(), std::slice::from_ref(&row));
        assert_eq!(bench.own_of(&made.text), Some(row.own.clone()));
        // Whoever saw the first version must look again; a change that changes nothing is none.
        let late = keys
            .change(id, &first, body(text), &roles, &Actor::local(0))
            .await;
        assert_eq!(late.unwrap_err(), KeysFault::Changed);
        let same = keys
            .change(id, &Expected::Any, body(text), &roles, &Actor::local(0))
            .await;
        assert_eq!(same.unwrap(), row);
        let clear = r#"{"notes":null,"own":{"models":null},"expires_at":"2099-01-01T00:00:00Z"}"#;
        let row = keys
            .change(id, &Expected::Any, body(clear), &roles, &Actor::local(0))
            .await
            .unwrap();
        assert_eq!((row.version, &*row.notes, &row.own.models), (3, "", &None));
        assert_eq!(row.own.requests_per_minute, Some(3));
        for (wrong, word) in [
            (r#"{"role":"boss"}"#, "admin, user"),
            (r#"{"project":"none"}"#, "guan project create none"),
            (r#"{"expires_at":"2001-01-01T00:00:00Z"}"#, "passed"),
            (r#"{"not_before":"2199-01-01T00:00:00Z"}"#, "never be valid"),
            (r#"{"own":{"requests_per_minute":0}}"#, "at least 1"),
            (r#"{"own":{"modles":null}}"#, "modles"),
            (r#"{"name":""}"#, "printable"),
        ] {
            let fault = keys
                .change(id, &Expected::Any, body(wrong), &roles, &Actor::local(0))
                .await;
            let fault = fault.unwrap_err().to_string();
            assert!(fault.contains(word), "{wrong}: {fault}");
        }
        let _gone = keys.revoke(id, &Actor::local(0)).await.unwrap();
        let fault = keys
            .change(id, &Expected::Any, body(text), &roles, &Actor::local(0))
            .await;
        assert_eq!(fault.unwrap_err(), KeysFault::IsRevoked(made.id));
        let actions = bench.actions();
        assert_eq!(
            actions,
            ["key-create", "key-change", "key-change", "key-revoke"]
        );
        let act = bench.records.lock().unwrap()[1].act.clone().unwrap();
        assert_eq!(
            (&act["before"]["name"], &act["after"]["name"]),
            (&"a".into(), &"b".into())
        );
        assert_eq!(act["after"]["own"]["models"][0], "m");
    }
}

#[tokio::test]
async fn a_project_is_changed_for_all_its_keys_by_who_saw_it_as_it_is() {
    use crate::keys::{Expected, KeysFault, ProjectChange};
    let first = Expected::Versions(vec![1]);
    for bench in benches().await {
        let (keys, by) = (&bench.keys, Actor::local(0));
        let project = NewProject {
            name: "p".to_owned(),
            ..NewProject::default()
        };
        let _row = keys.create_project(project, &by).await.unwrap();
        let change: ProjectChange = serde_json::from_str(r#"{"own":{"models":[]}}"#).unwrap();
        let changed = keys.change_project("p", &first, change.clone(), &by).await;
        assert_eq!(changed.unwrap().version, 2);
        let seen = bench.seen.lock().unwrap().clone();
        let narrowed = seen.project("p").unwrap().own.models.clone();
        assert_eq!(narrowed.as_deref(), Some(&[][..]));
        let late = keys.change_project("p", &first, change, &by).await;
        assert_eq!(late.unwrap_err(), KeysFault::Changed);
        assert_eq!(bench.actions(), ["project-create", "project-change"]);
    }
}

#[tokio::test]
async fn of_many_who_change_one_version_at_once_one_wins() {
    use crate::keys::{Expected, KeyChange};
    for bench in benches().await {
        let made = bench
            .keys
            .create(new_key("a"), &roles(), &Actor::local(0))
            .await
            .unwrap();
        let acts = (0..8).map(|n| {
            let (keys, id) = (bench.keys.clone(), made.id);
            let change = KeyChange {
                name: Some(format!("n{n}")),
                ..KeyChange::default()
            };
            tokio::spawn(async move {
                let first = Expected::Versions(vec![1]);
                keys.change(id.as_str(), &first, change, &roles(), &Actor::local(0))
                    .await
                    .is_ok()
            })
        });
        let mut won = 0;
        for act in acts.collect::<Vec<_>>() {
            won += usize::from(act.await.unwrap());
        }
        assert_eq!(won, 1);
        assert_eq!(bench.keys.list().await.unwrap()[0].version, 2);
    }
}

#[tokio::test]
async fn foreign_keys_are_taken_over_as_text_or_hash_all_or_none() {
    use crate::keys::{Foreign, read_list};
    for bench in benches().await {
        let text = "# a list\nsk-litellm-0001 Ana's notebook\n\nsk-litellm-0002\n";
        let list = read_list(text, Foreign::Plain).unwrap();
        let imported = bench
            .keys
            .import(list.clone(), new_key("moved"), &roles(), &Actor::local(0))
            .await
            .unwrap();
        let names: Vec<&str> = imported.rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["Ana's notebook", "moved"]);
        assert_eq!(imported.rows[0].last4, "0001");
        assert_eq!(bench.accepts("sk-litellm-0002"), Some(true));
        let hash = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8";
        let list = read_list(&format!("{hash} old\n"), Foreign::Sha256).unwrap();
        let _rows = bench
            .keys
            .import(list, new_key("moved"), &roles(), &Actor::local(0))
            .await
            .unwrap();
        assert_eq!(bench.accepts("password"), Some(true));
        let list = read_list("sk-litellm-0003\nsk-litellm-0001", Foreign::Plain).unwrap();
        let fault = bench
            .keys
            .import(list, new_key("moved"), &roles(), &Actor::local(0))
            .await
            .unwrap_err();
        assert!(fault.to_string().contains("here already"), "{fault}");
        assert_eq!(bench.accepts("sk-litellm-0003"), None);
        for (bad, form) in [
            ("short", Foreign::Plain),
            ("x y\tz", Foreign::Sha256),
            ("", Foreign::Plain),
            ("sk-ünï-12345", Foreign::Plain),
        ] {
            let fault = read_list(bad, form).unwrap_err().to_string();
            assert!(bad.is_empty() || !fault.contains(bad), "{fault}");
        }
    }
}

#[tokio::test]
async fn usage_adds_up_and_the_cursor_moves_with_it() {
    for bench in benches().await {
        let key = |key: &str, model: &str| UsageKey {
            day: 20_000,
            key: key.to_owned(),
            project: String::new(),
            model: model.to_owned(),
        };
        let sums = Sums {
            calls: 1,
            failed: 0,
            input_tokens: 10,
            output_tokens: 5,
        };
        let batch = BTreeMap::from([(key("a", "m"), sums), (key("b", "m"), sums)]);
        let to = Cursor { seq: 2, offset: 99 };
        bench.store.add_usage("n-1", to, &batch, &[]).await.unwrap();
        bench
            .store
            .add_usage(
                "n-1",
                Cursor {
                    seq: 4,
                    offset: 199,
                },
                &batch,
                &[],
            )
            .await
            .unwrap();
        assert_eq!(
            bench.store.cursor("n-1").await.unwrap(),
            Cursor {
                seq: 4,
                offset: 199
            }
        );
        assert_eq!(bench.store.cursor("n-2").await.unwrap(), Cursor::default());
        let rows = bench.store.usage(UsageBy::Model, 20_000).await.unwrap();
        assert_eq!(
            (rows.len(), rows[0].sums.calls, rows[0].sums.input_tokens),
            (1, 4, 40)
        );
        assert_eq!(
            bench.store.usage(UsageBy::Key, 20_000).await.unwrap().len(),
            2
        );
        assert!(
            bench
                .store
                .usage(UsageBy::Key, 20_001)
                .await
                .unwrap()
                .is_empty()
        );
    }
}

#[tokio::test]
async fn a_copy_has_everything_and_never_goes_into_a_store_that_is_used() {
    let Some(target) = postgres() else { return };
    let bench = Bench::new().await;
    bench
        .store
        .add_facts(&[("pepper", b"sealed"), ("node", b"n")])
        .await
        .unwrap();
    let project = NewProject {
        name: "p".to_owned(),
        ..NewProject::default()
    };
    let _row = bench
        .keys
        .create_project(project, &Actor::local(0))
        .await
        .unwrap();
    let new = NewKey {
        project: Some("p".to_owned()),
        ..new_key("a")
    };
    let first = bench
        .keys
        .create(new, &roles(), &Actor::local(0))
        .await
        .unwrap();
    let second = bench
        .keys
        .rotate(first.id.as_str(), 100, &Actor::local(0))
        .await
        .unwrap();
    let gone = bench
        .keys
        .create(new_key("b"), &roles(), &Actor::local(0))
        .await
        .unwrap();
    let _row = bench
        .keys
        .revoke(gone.id.as_str(), &Actor::local(0))
        .await
        .unwrap();
    let kept = bench.store.keep_sealed("a", None, b"blob", NOW).await;
    kept.unwrap().commit().await.unwrap();
    let to = Store::open(&target).await.unwrap();
    let copied = bench.store.copy_to(&to).await.unwrap();
    assert_eq!((copied.keys, copied.projects), (2, 1));
    assert_eq!(
        to.keys_after(None, 10).await.unwrap(),
        bench.store.keys_after(None, 10).await.unwrap()
    );
    assert_eq!(to.fact("pepper").await.unwrap().unwrap(), b"sealed");
    assert_eq!(to.fact("node").await.unwrap(), None);
    assert_eq!(to.sealed("a").await.unwrap().unwrap(), b"blob");
    let keys = crate::publish::load(&to).await.unwrap();
    for (text, good) in [
        (&first.text, true),
        (&second.text, true),
        (&gone.text, false),
    ] {
        let judged = keys.judge(&bench.pepper.digest(text), NOW, [127, 0, 0, 1].into());
        assert_eq!(judged.is_ok(), good);
    }
    assert_eq!(
        bench.store.copy_to(&to).await.unwrap_err(),
        StoreFault::Taken
    );
}
