//! Sealing and rewrapping: recorded, whole, and not while the provider is away.

use crate::actor::Actor;
use std::sync::atomic::Ordering;

use super::*;
use crate::testbench::Bench;

#[tokio::test]
async fn a_rewrap_is_recorded_and_the_pepper_still_opens() {
    let bench = Bench::new().await;
    let secrets = bench.secrets(bench.kms()).await;
    let before = bench.store.fact(FACT).await.unwrap();
    let done = secrets.rewrap(&Actor::local(0)).await.unwrap();
    assert_eq!(
        (done.old_provider.as_str(), done.provider.as_str()),
        ("file", "file")
    );
    assert_ne!(bench.store.fact(FACT).await.unwrap(), before);
    let again = bench.secrets(bench.kms()).await;
    let sealed = secrets.seal("sk-secret", &Actor::local(0)).await.unwrap();
    let value = sealed.strip_prefix(crate::seal::SEALED).unwrap();
    assert_eq!(
        again.envelope.open_value(value).unwrap().as_str(),
        "sk-secret"
    );
    assert_eq!(bench.actions(), ["secret-rewrap", "secret-seal"]);
    assert!(!format!("{:?}", bench.records.lock().unwrap()).contains("sk-secret"));
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_done() {
    let bench = Bench::new().await;
    let secrets = bench.secrets(bench.kms()).await;
    let before = bench.store.fact(FACT).await.unwrap();
    bench.log_works.store(false, Ordering::SeqCst);
    assert!(matches!(
        secrets.rewrap(&Actor::local(0)).await,
        Err(SecretsFault::Audit(_))
    ));
    assert!(matches!(
        secrets.seal("a", &Actor::local(0)).await,
        Err(SecretsFault::Audit(_))
    ));
    assert_eq!(bench.store.fact(FACT).await.unwrap(), before);
}

#[tokio::test]
async fn nothing_is_sealed_while_the_provider_is_away_or_is_another() {
    let bench = Bench::new().await;
    let secrets = bench.secrets(bench.kms()).await;
    let kek = bench.dir.path().join("secrets/kek");
    std::fs::rename(&kek, bench.dir.path().join("kept")).unwrap();
    for fault in [
        secrets
            .seal("a", &Actor::local(0))
            .await
            .map(drop)
            .unwrap_err(),
        secrets
            .rewrap(&Actor::local(0))
            .await
            .map(drop)
            .unwrap_err(),
    ] {
        assert!(
            matches!(fault, SecretsFault::Seal(SealFault::File { .. })),
            "{fault}"
        );
    }
    // Another key in its place would open nothing after the next start.
    let _other = Kek::create(&bench.dir.path().join("secrets")).unwrap();
    let fault = secrets.seal("a", &Actor::local(0)).await.unwrap_err();
    assert!(
        matches!(fault, SecretsFault::Seal(SealFault::OtherKey { .. })),
        "{fault}"
    );
    assert!(bench.actions().is_empty());
}

#[tokio::test]
async fn the_status_says_who_wraps_and_since_when_it_is_away() {
    let bench = Bench::new().await;
    let secrets = bench.secrets(bench.kms()).await;
    let status = secrets.status().await.unwrap();
    assert_eq!(status.provider, "file");
    assert_eq!(status.data_key, secrets.envelope.id());
    assert!(status.kms.reachable && !status.rewrap_due);
    let kek = bench.dir.path().join("secrets/kek");
    let aside = bench.dir.path().join("aside");
    std::fs::rename(&kek, &aside).unwrap();
    assert!(secrets.look().await.is_err());
    let status = secrets.status().await.unwrap();
    assert!(!status.kms.reachable, "{status:?}");
    assert_eq!(status.kms.since, crate::testbench::NOW);
    assert!(status.kms.fault.unwrap().contains("kek"));
    std::fs::rename(&aside, &kek).unwrap();
    secrets.look().await.unwrap();
    assert!(secrets.health().state().reachable);
    // Another key file in its place: what wraps is no longer what is named.
    std::fs::remove_file(&kek).unwrap();
    let _other = Kek::create(&bench.dir.path().join("secrets")).unwrap();
    assert!(secrets.status().await.unwrap().rewrap_due);
}

#[test]
fn a_jittered_pause_is_never_shorter_and_at_most_a_tenth_longer() {
    let minute = Duration::from_secs(60);
    for share in 0..=u8::MAX {
        let pause = with_jitter(minute, share);
        assert!(pause >= minute && pause <= minute + minute / 10);
    }
}

#[tokio::test]
async fn a_secret_that_no_header_carries_is_refused_and_not_repeated() {
    let bench = Bench::new().await;
    let secrets = bench.secrets(bench.kms()).await;
    for text in [
        "",
        "hunter 2",
        "hunter\n2",
        "häunter2",
        &"h".repeat(LONGEST + 1),
    ] {
        let fault = secrets.seal(text, &Actor::local(0)).await.unwrap_err();
        assert_eq!(fault, SecretsFault::Value);
        assert!(!fault.to_string().contains("hunter"));
    }
}
