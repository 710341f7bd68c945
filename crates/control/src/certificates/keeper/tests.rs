//! The pair in the store: moved there, found again, made anew, and never lost on the way.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::CHAIN;
use super::*;
use crate::testbench::{Bench, NOW};

const DAY: i64 = 86_400;

struct Place {
    bench: Bench,
    secrets: Secrets,
}

impl Place {
    async fn new() -> Self {
        let bench = Box::pin(Bench::new()).await;
        let secrets = Box::pin(bench.secrets(bench.kms())).await;
        Self { bench, secrets }
    }

    fn keeper(&self, now: i64) -> Keeper {
        Keeper::new(
            self.secrets.clone(),
            self.bench.audit.clone(),
            clock::fixed(i128::from(now) * 1_000_000_000),
            "node",
            self.folder(),
        )
    }

    fn folder(&self) -> PathBuf {
        self.bench.dir.path().join("secrets")
    }

    /// Puts a pair into `secrets/`, as older versions and operators did.
    fn put(&self, chain: &str, key: &str) {
        for (name, text) in [(CHAIN, chain), (KEY, key)] {
            let path = self.folder().join(name);
            fs::remove_file(&path).ok();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        }
    }

    fn put_ours(&self, made_at: i64) -> self_signed::Pem {
        let pem = self_signed::make(&[], made_at).unwrap();
        self.put(&pem.chain, &pem.key);
        pem
    }
}

#[tokio::test]
async fn a_key_of_ours_moves_into_the_store_and_is_found_there_without_its_file() {
    let place = Place::new().await;
    let pem = place.put_ours(NOW);
    let pair = place.keeper(NOW).open(&[]).await.unwrap();
    assert_eq!(pair.chain[0].as_ref(), pem.der);
    assert_eq!(pair.published.as_deref(), Some(pem.chain.as_str()));
    assert_eq!(place.bench.actions(), ["certificate-sealed"]);
    // Cut before the file went: the same again, without a second record.
    let again = place.keeper(NOW).open(&[]).await.unwrap();
    assert_eq!(again.chain, pair.chain);
    assert_eq!(place.bench.actions().len(), 1);
    fs::remove_file(place.folder().join(KEY)).unwrap();
    let found = place.keeper(NOW).open(&[]).await.unwrap();
    assert_eq!(
        (found.chain, found.key.secret_der().to_vec()),
        (pair.chain, pair.key.secret_der().to_vec())
    );
    let database = fs::read(place.bench.database()).unwrap();
    let key = again.key.secret_der();
    assert!(!database.windows(key.len()).any(|part| part == key));
    let name = Name::TlsPair {
        node: "another".to_owned(),
    };
    let (envelope, store) = place.secrets.parts();
    assert!(envelope.kept(store, &name).await.unwrap().is_none());
}

#[tokio::test]
async fn a_pair_of_your_own_is_served_from_its_files_and_never_replaced() {
    let place = Place::new().await;
    let _ours = place.put_ours(NOW);
    let _sealed = place.keeper(NOW).open(&[]).await.unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(["own.example".to_owned()]).unwrap();
    let own = params.self_signed(&key).unwrap();
    place.put(&own.pem(), &key.serialize_pem());
    let late = NOW + 390 * DAY;
    let pair = place.keeper(late).open(&[]).await.unwrap();
    assert_eq!(pair.chain[0].as_ref(), own.der().as_ref());
    assert!(pair.published.is_none());
    assert!(place.keeper(late).renewed(&[]).await.unwrap().is_none());
    assert_eq!(place.bench.actions(), ["certificate-sealed"]);
}

#[tokio::test]
async fn thirty_days_before_its_end_it_is_made_anew_once() {
    let place = Place::new().await;
    let pem = place.put_ours(NOW);
    let _sealed = place.keeper(NOW).open(&[]).await.unwrap();
    fs::remove_file(place.folder().join(KEY)).unwrap();
    let end = expires_at(&pem.der).unwrap();
    let early = place.keeper(end - 30 * DAY - 1);
    assert!(early.renewed(&[]).await.unwrap().is_none());
    let due = place.keeper(end - 30 * DAY);
    let names = ["new.example".to_owned()];
    let new = due.renewed(&names).await.unwrap().unwrap();
    assert_ne!(new.chain[0].as_ref(), pem.der);
    assert!(expires_at(&new.chain[0]).unwrap() > end + 300 * DAY);
    assert!(due.renewed(&names).await.unwrap().is_none());
    let found = due.open(&names).await.unwrap();
    assert_eq!(found.chain, new.chain);
    assert_eq!(
        place.bench.actions(),
        ["certificate-sealed", "certificate-renewed"]
    );
    // An old copy of the file doesn't bring the old pair back.
    place.put(&pem.chain, &pem.key);
    assert_eq!(due.open(&names).await.unwrap().chain, new.chain);
}

#[tokio::test]
async fn a_renewal_waits_for_the_key_service_and_for_its_record() {
    let place = Place::new().await;
    let pem = place.put_ours(NOW);
    let _sealed = place.keeper(NOW).open(&[]).await.unwrap();
    fs::remove_file(place.folder().join(KEY)).unwrap();
    let due = place.keeper(expires_at(&pem.der).unwrap() - DAY);
    let (kek, aside) = (
        place.folder().join("kek"),
        place.bench.dir.path().join("aside"),
    );
    fs::rename(&kek, &aside).unwrap();
    let fault = due.renewed(&[]).await.unwrap_err();
    assert!(matches!(fault, CertificateFault::Seal(_)), "{fault}");
    // The old one is served on.
    assert_eq!(due.open(&[]).await.unwrap().chain[0].as_ref(), pem.der);
    fs::rename(&aside, &kek).unwrap();
    place.bench.log_works.store(false, Ordering::SeqCst);
    assert!(matches!(
        due.renewed(&[]).await,
        Err(CertificateFault::Audit(_))
    ));
    assert_eq!(due.open(&[]).await.unwrap().chain[0].as_ref(), pem.der);
    place.bench.log_works.store(true, Ordering::SeqCst);
    assert!(due.renewed(&[]).await.unwrap().is_some());
}

#[tokio::test]
async fn of_two_that_renew_at_the_same_time_one_does() {
    let place = Place::new().await;
    let pem = place.put_ours(NOW);
    let _sealed = place.keeper(NOW).open(&[]).await.unwrap();
    fs::remove_file(place.folder().join(KEY)).unwrap();
    let due = Arc::new(place.keeper(expires_at(&pem.der).unwrap() - DAY));
    let (envelope, store) = place.secrets.parts();
    let kept = envelope.kept(store, &due.name).await.unwrap().unwrap();
    let new = due.renewed(&[]).await.unwrap().unwrap();
    let late = due
        .keep(Some(&kept), &pem.chain, "certificate-renewed")
        .await;
    assert!(late.is_err(), "what stood there was replaced meanwhile");
    assert_eq!(due.open(&[]).await.unwrap().chain, new.chain);
}

#[tokio::test]
async fn without_file_and_store_there_is_none_and_the_fault_says_where_it_belongs() {
    let place = Place::new().await;
    let fault = place.keeper(NOW).open(&[]).await.unwrap_err();
    assert!(fault.to_string().contains("tls.crt"), "{fault}");
}
