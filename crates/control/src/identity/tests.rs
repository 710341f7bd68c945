//! When keys are fetched and what is published, against an issuer that comes and goes.

use std::sync::Mutex;

use serde_json::json;
use testkit::issuer::{Issuer, Manner, Signer};

use super::*;
use crate::testbench::futures_of;

type Published = Arc<Mutex<Vec<(String, Option<usize>)>>>;

/// A follower of some issuers, and what it published.
struct Bench {
    sources: watch::Sender<Vec<Source>>,
    ask: mpsc::Sender<Question>,
    published: Published,
    changed: watch::Receiver<usize>,
}

fn source(issuer: &Issuer) -> Source {
    Source::parse(issuer.url(), None, None).unwrap()
}

impl Bench {
    fn start(issuers: &[&Issuer]) -> Self {
        let (sources, meant) = watch::channel(issuers.iter().map(|one| source(one)).collect());
        let (ask, questions) = mpsc::channel(MOST_ASKED);
        let published = Published::default();
        let (count, changed) = watch::channel(0);
        let seen = Arc::clone(&published);
        let following = follow(meant, questions, move |issuer, keys| {
            let keys = keys.map(|keys| keys.len());
            seen.lock().unwrap().push((issuer.to_owned(), keys));
            count.send_modify(|n| *n += 1);
        });
        drop(tokio::spawn(following));
        Self {
            sources,
            ask,
            published,
            changed,
        }
    }

    async fn ask(&self, issuer: &str) -> Option<Looked> {
        let (answer, answered) = oneshot::channel();
        self.ask.send((issuer.into(), answer)).await.unwrap();
        answered.await.ok()
    }

    /// The last of so many.
    async fn published(&mut self, count: usize) -> (String, Option<usize>) {
        self.changed.wait_for(|n| *n >= count).await.unwrap();
        self.published.lock().unwrap()[count - 1].clone()
    }
}

#[tokio::test]
async fn keys_are_there_at_once_and_questions_share_one_look_in_a_while() {
    let (old, new) = (Signer::new("ES256", "1"), Signer::new("EdDSA", "2"));
    let issuer = Issuer::start(&[&old]);
    let mut bench = Bench::start(&[&issuer]);
    let url = issuer.url().to_owned();
    assert_eq!(bench.published(1).await, (url.clone(), Some(1)));
    issuer.publish(&[&old, &new]);
    assert_eq!(bench.ask(&url).await, Some(Looked::Fresh));
    assert_eq!(bench.published(2).await, (url.clone(), Some(2)));
    // They wait for the next look, which all of them get; beyond the places that there are nobody waits.
    let asks = (0..MOST_WAITING + 44).map(|_| bench.ask(&url));
    let asked = futures_of(asks).await;
    let fresh = asked.iter().filter(|one| **one == Some(Looked::Fresh));
    assert_eq!(fresh.count(), MOST_WAITING);
    assert_eq!(asked.iter().filter(|one| one.is_none()).count(), 44);
    assert_eq!(issuer.fetches(), 3);
    assert_eq!(
        bench.ask("https://nobody.example").await,
        Some(Looked::Away)
    );
}

#[tokio::test]
async fn what_is_known_stays_when_the_issuer_is_away_or_lies() {
    let signer = Signer::new("ES256", "1");
    let issuer = Issuer::start(&[&signer]);
    let mut bench = Bench::start(&[&issuer]);
    let url = issuer.url().to_owned();
    bench.published(1).await;
    issuer.behave(Manner::Away);
    for _ in 0..2 {
        assert_eq!(bench.ask(&url).await, Some(Looked::Away));
    }
    assert_eq!(bench.published.lock().unwrap().len(), 1);
    // It is tried again without a question.
    issuer.behave(Manner::Good);
    assert_eq!(bench.published(2).await, (url.clone(), Some(1)));
    assert_eq!(bench.ask(&url).await, Some(Looked::Fresh));
}

#[tokio::test]
async fn keys_are_fetched_twice_in_the_time_that_they_are_good_for() {
    let signer = Signer::new("ES256", "1");
    let issuer = Issuer::start(&[&signer]);
    let mut bench = Bench::start(&[]);
    let short = source(&issuer).good_for(Duration::from_secs(1));
    bench.sources.send_replace(vec![short]);
    assert_eq!(bench.published(3).await.1, Some(1));
}

#[tokio::test]
async fn no_document_is_believed_that_should_not_be() {
    let signer = Signer::new("ES256", "1");
    let many = json!({ "keys": vec![signer.jwk(); 65] }).to_string();
    for (manner, word) in [
        (Manner::Lying, "somebody.else.example"),
        (Manner::Redirecting, "redirects aren't followed"),
        (Manner::Oversized, "length limit"),
        (Manner::Away, "doesn't answer"),
        (Manner::Instead("[]".to_owned()), "isn't a JSON Web Key Set"),
        (
            Manner::Instead(r#"{"keys":[]}"#.to_owned()),
            "no key that can verify",
        ),
        (Manner::Instead(many), "more than 64 keys"),
    ] {
        let issuer = Issuer::start(&[&signer]);
        issuer.behave(manner.clone());
        let fault = source(&issuer).fetch().await.unwrap_err().to_string();
        assert!(fault.contains(word), "{manner:?}: {fault}");
        assert_eq!(issuer.asked("/elsewhere"), 0);
    }
}

#[tokio::test]
async fn other_issuers_are_taken_over_and_those_that_went_count_no_longer() {
    let signer = Signer::new("ES256", "1");
    let (one, two) = (Issuer::start(&[&signer]), Issuer::start(&[&signer]));
    let mut bench = Bench::start(&[&one]);
    bench.published(1).await;
    bench.sources.send_replace(vec![source(&one), source(&two)]);
    assert_eq!(bench.published(2).await, (two.url().to_owned(), Some(1)));
    bench.sources.send_replace(vec![source(&two)]);
    assert_eq!(bench.published(3).await, (one.url().to_owned(), None));
    assert_eq!(bench.ask(one.url()).await, Some(Looked::Away));
    assert_eq!((one.fetches(), two.fetches()), (1, 1));
}
