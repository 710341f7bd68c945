//! The view that requests read: what brings it up to date, and how often the store is asked.

use crate::actor::Actor;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::testbench::{Bench, elsewhere, new_key, roles};

/// A follower with the sending side of its questions.
fn following(bench: &Bench) -> (mpsc::Sender<Question>, Arc<AtomicUsize>) {
    let (ask, questions) = mpsc::channel(MOST_ASKED);
    let heard = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&heard);
    let _task = tokio::spawn(follow(bench.publisher.clone(), questions, move || {
        let _before = count.fetch_add(1, Ordering::SeqCst);
    }));
    (ask, heard)
}

async fn answer(ask: &mpsc::Sender<Question>) -> bool {
    let (question, answer) = oneshot::channel();
    ask.send(question).await.unwrap();
    answer.await.unwrap()
}

#[tokio::test]
async fn a_key_made_elsewhere_is_found_when_a_request_asks_for_it() {
    let bench = Bench::new().await;
    let other = elsewhere(&bench);
    let created = other
        .create(new_key("a"), &roles(), &Actor::local(0))
        .await
        .unwrap();
    assert_eq!(bench.accepts(&created.text), None);
    let (ask, _heard) = following(&bench);
    assert!(answer(&ask).await);
    assert_eq!(bench.accepts(&created.text), Some(true));
}

#[tokio::test]
async fn many_who_ask_bring_one_look_and_the_next_comes_a_second_later() {
    let bench = Bench::new().await;
    let (ask, heard) = following(&bench);
    let (a, b, c) = tokio::join!(answer(&ask), answer(&ask), answer(&ask));
    assert!(a && b && c);
    let looks = heard.load(Ordering::SeqCst);
    assert!(looks <= 2, "{looks}");
    let began = Instant::now();
    assert!(answer(&ask).await);
    assert!(began.elapsed() > EVERY / 2, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_store_that_fails_is_told_and_what_was_read_stays() {
    let bench = Bench::new().await;
    let created = bench
        .keys
        .create(new_key("a"), &roles(), &Actor::local(0))
        .await
        .unwrap();
    let (ask, heard) = following(&bench);
    bench.store.close().await;
    assert!(!answer(&ask).await);
    assert_eq!(heard.load(Ordering::SeqCst), 0);
    assert_eq!(bench.accepts(&created.text), Some(true));
}

#[tokio::test]
async fn only_what_changed_is_read_and_the_view_equals_a_whole_one() {
    let bench = Bench::new().await;
    let mut made = Vec::new();
    for number in 0..5 {
        let name = format!("key {number}");
        made.push(
            bench
                .keys
                .create(new_key(&name), &roles(), &Actor::local(0))
                .await
                .unwrap(),
        );
    }
    let before = bench.store.revision().await.unwrap();
    let _revoked = bench
        .keys
        .revoke(made[2].id.as_str(), &Actor::local(0))
        .await
        .unwrap();
    assert_eq!(bench.store.seen_since(before).await.unwrap().len(), 1);
    let whole = load(&bench.store).await.unwrap();
    for key in &made {
        let digest = bench.pepper.digest(&key.text);
        let seen = bench.seen.lock().unwrap();
        assert_eq!(
            seen.find(&digest).unwrap().key,
            whole.find(&digest).unwrap().key
        );
    }
}
