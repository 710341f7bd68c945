//! Chains over several files: begun, packed, removed by age, and judged all the while.

use std::time::SystemTime;

use super::super::files::{ChainFile, list};
use super::super::judge::judge;
use super::super::keep::{Keeper, Keeping};
use super::*;
use crate::testbench::Bench;

/// A finished chain of many small parts; its files.
fn parts(dir: &Path, generation: u64) -> Vec<ChainFile> {
    let spec = AuditSpec {
        rotate: Rotate {
            size: 4000,
            after: Duration::from_hours(1),
        },
        ..spec(dir, generation)
    };
    let (to, log) = open(spec).unwrap();
    for number in 0..200 {
        to.blocking_send(silent(&format!("r{number}"))).unwrap();
        // One batch a record: a part ends between batches.
        while to.capacity() < to.max_capacity() {
            std::thread::yield_now();
        }
    }
    drop(to);
    assert!(log.join());
    let files: Vec<_> = list(dir)
        .unwrap()
        .into_iter()
        .filter(|it| it.generation == generation)
        .collect();
    assert!(files.len() > 4, "{files:?}");
    files
}

/// All records of a chain, judged to be what was written.
fn good(files: &[ChainFile]) -> Vec<String> {
    let key = signer().public();
    let judged = judge(files, Some(&key), &[]).unwrap();
    assert!(judged.is_good(), "{judged:?}");
    let mut words = Vec::new();
    for file in files {
        let mut lines = file.lines().unwrap();
        while let Some((line, _)) = lines.next_line().unwrap() {
            let value: Value = serde_json::from_slice(line).unwrap();
            words.extend(value["event.reason"].as_str().map(str::to_owned));
        }
    }
    words
}

#[test]
fn a_chain_goes_on_in_further_files_and_nothing_can_be_taken_out_between_them() {
    let dir = tempfile::tempdir().unwrap();
    let files = parts(dir.path(), 3);
    let wanted: Vec<_> = (0..200).map(|number| format!("r{number}")).collect();
    assert_eq!(good(&files), wanted);
    // The chain after it names the head of its last part.
    let next = finished(dir.path(), 4, &[]);
    let (seq, head) = head_of(&files.last().unwrap().path);
    let previous = previous_of(&next);
    assert_eq!(
        (&previous["chain"], &previous["seq"], &previous["head"]),
        (&"n0de00000000-3".into(), &seq.into(), &head.into())
    );
    let key = signer().public();
    let mut without = list(dir.path()).unwrap();
    without.remove(2);
    let judged = judge(&without, Some(&key), &[]).unwrap();
    let said = judged.chains[0].report.fault.clone().unwrap().to_string();
    assert!(said.contains("is missing, and all up to"), "{said}");
}

#[test]
fn a_part_that_was_cut_while_it_was_begun_is_set_aside_and_the_one_before_it_ends_the_chain() {
    let dir = tempfile::tempdir().unwrap();
    let files = parts(dir.path(), 3);
    let last = &files.last().unwrap().path;
    let before = head_of(&files[files.len() - 2].path);
    let text = fs::read(last).unwrap();
    fs::write(last, &text[..30]).unwrap();
    let next = finished(dir.path(), 4, &[]);
    let previous = previous_of(&next);
    assert_eq!(
        (
            previous["seq"].as_u64().unwrap(),
            previous["head"].as_str().unwrap()
        ),
        (before.0, &*before.1)
    );
    assert_eq!(fs::metadata(last).unwrap().len(), 0);
}

fn bench_keeper(bench: &Bench, dir: &Path, hours: i128) -> (Keeper, mpsc::Receiver<Entry>) {
    let (audit, records) = mpsc::channel(64);
    let keeper = Keeper {
        dir: dir.to_path_buf(),
        node: NODE.to_owned(),
        store: bench.store.clone(),
        audit,
        clock: Arc::new(move || clock::system()() + hours * 3_600_000_000_000),
    };
    (keeper, records)
}

/// Answers records as the log would.
fn answered(mut records: mpsc::Receiver<Entry>) -> tokio::task::JoinHandle<Vec<Record>> {
    tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Some(entry) = records.recv().await {
            (entry.done)(true);
            seen.push(entry.record);
        }
        seen
    })
}

#[tokio::test]
async fn closed_files_are_packed_when_they_are_counted_and_removed_at_their_age() {
    let bench = Bench::new().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_path_buf();
    let files = tokio::task::spawn_blocking(move || parts(&path, 3))
        .await
        .unwrap();
    let wanted = good(&files);
    let keeping = Keeping {
        pack_after: Some(Duration::from_hours(2)),
        remove_after: Some(Duration::from_hours(48)),
    };
    let packed = || {
        list(dir.path())
            .unwrap()
            .iter()
            .filter(|file| file.packed)
            .count()
    };
    // Too young, then not counted yet.
    let (keeper, _records) = bench_keeper(&bench, dir.path(), 1);
    keeper.look(keeping).await.unwrap();
    let (keeper, _records) = bench_keeper(&bench, dir.path(), 3);
    keeper.look(keeping).await.unwrap();
    assert_eq!(packed(), 0);
    let mut counter =
        crate::usage::Counter::new(bench.store.clone(), dir.path().to_owned(), NODE.to_owned());
    counter.catch_up().await.unwrap();
    // One that is still written is left alone, whatever its age.
    let held = File::open(&files[1].path).unwrap();
    held.try_lock().unwrap();
    keeper.look(keeping).await.unwrap();
    assert_eq!(packed(), files.len() - 1);
    drop(held);
    keeper.look(keeping).await.unwrap();
    let now = list(dir.path()).unwrap();
    assert!(now.iter().all(|file| file.packed) && now.len() == files.len());
    assert_eq!(good(&now), wanted);
    // Counted again nothing is: a packed file was counted before.
    let mut again =
        crate::usage::Counter::new(bench.store.clone(), dir.path().to_owned(), NODE.to_owned());
    again.catch_up().await.unwrap();
    // A chain after it finds the head in the packed file.
    let path = dir.path().to_path_buf();
    let next = tokio::task::spawn_blocking(move || finished(&path, 4, &[]))
        .await
        .unwrap();
    assert!(previous_of(&next)["head"].is_string());
    fs::remove_file(&next).unwrap();
    // Without the first two the rest is good, and says where it begins.
    for file in &now[..2] {
        let old = SystemTime::now() - Duration::from_hours(60);
        File::options()
            .write(true)
            .open(&file.path)
            .unwrap()
            .set_modified(old)
            .unwrap();
    }
    let (keeper, records) = bench_keeper(&bench, dir.path(), 0);
    let seen = answered(records);
    keeper.look(keeping).await.unwrap();
    drop(keeper);
    let seen = seen.await.unwrap();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|record| record.action == "audit-removed"));
    assert_eq!(
        seen[0].act.as_ref().unwrap()["file"],
        "n0de00000000-3.jsonl.gz"
    );
    let left = list(dir.path()).unwrap();
    assert_eq!(left.len(), files.len() - 2);
    let judged = judge(&left, Some(&signer().public()), &[]).unwrap();
    assert!(
        judged.is_good() && judged.chains[0].report.first.unwrap() > 0,
        "{judged:?}"
    );
}
