//! Data keys: opened by their provider alone, values by their store alone.

use super::*;
use crate::seal::{FILE, Secret, vault};
use crate::testbench::Bench;

fn elsewhere() -> Kms {
    Kms::Vault(vault::Settings {
        endpoint: crate::seal::client::Endpoint::parse("https://vault.invalid", None).unwrap(),
        mount: "transit".to_owned(),
        key: "guan".to_owned(),
        token: Secret::new("hvs.hunter2".to_owned().into()),
        namespace: None,
    })
}

#[tokio::test]
async fn a_value_opens_in_its_store_only_and_no_change_goes_unseen() {
    let (one, two) = (Bench::new().await, Bench::new().await);
    let mut opened = Vec::new();
    for bench in [&one, &two] {
        let _made = bench.secrets(bench.kms()).await;
        let folder = bench.dir.path().join("secrets");
        let found = Envelope::open(&bench.store, &bench.kms(), &folder).await;
        opened.push(found.unwrap().unwrap().0);
    }
    let sealed = opened[0].seal_value("sk-secret").unwrap();
    let value = sealed.strip_prefix(SEALED).unwrap();
    assert!(Envelope::is_value(value));
    assert_eq!(opened[0].open_value(value).unwrap().as_str(), "sk-secret");
    assert_eq!(opened[1].open_value(value), Err(SealFault::OtherStore));
    // The pepper under the same key is no value of the config.
    let pepper = one.store.fact(PEPPER).await.unwrap().unwrap();
    let pepper = URL_SAFE_NO_PAD.encode(pepper);
    assert_eq!(opened[0].open_value(&pepper), Err(SealFault::Tampered));
    let mut blob = URL_SAFE_NO_PAD.decode(value).unwrap();
    for place in 0..blob.len() {
        blob[place] ^= 1;
        let changed = URL_SAFE_NO_PAD.encode(&blob);
        assert!(opened[0].open_value(&changed).is_err(), "byte {place}");
        blob[place] ^= 1;
        let cut = URL_SAFE_NO_PAD.encode(&blob[..place]);
        assert!(opened[0].open_value(&cut).is_err(), "cut {place}");
    }
    for text in ["", "a b", "sk-hunter2", "AgAA"] {
        assert!(!Envelope::is_value(text), "{text}");
        assert!(opened[0].open_value(text).is_err(), "{text}");
    }
    assert_eq!(
        format!("{:?}", opened[0]),
        format!("Envelope {{ key: DataKey({}, …) }}", opened[0].id())
    );
}

#[tokio::test]
async fn only_the_provider_that_is_named_opens_it_or_the_key_file_of_this_machine() {
    let bench = Bench::new().await;
    let secrets = bench.secrets(bench.kms()).await;
    let folder = bench.dir.path().join("secrets");
    // [kms] was changed and nothing rewrapped yet: the key file is still good.
    assert!(
        Envelope::open(&bench.store, &elsewhere(), &folder)
            .await
            .unwrap()
            .is_some()
    );
    std::fs::rename(folder.join("kek"), folder.join("moved")).unwrap();
    let fault = Envelope::open(&bench.store, &elsewhere(), &folder)
        .await
        .unwrap_err();
    assert!(matches!(fault, SealFault::OtherProvider { .. }), "{fault}");
    assert!(fault.to_string().contains("guan secret rewrap"), "{fault}");
    std::fs::rename(folder.join("moved"), folder.join("kek")).unwrap();

    // Whoever writes to the database can't bring in a data key of another of the provider's keys.
    let mut wrapped = wrapped_of(&bench.store).await.unwrap().unwrap();
    assert_eq!(wrapped.provider, FILE);
    let old = written(&wrapped);
    wrapped.provider = "vault".to_owned();
    wrapped.key_id = "transit/theirs".to_owned();
    let pending = bench
        .store
        .change_facts(&[], &[(FACT, &old, &written(&wrapped))])
        .await;
    pending.unwrap().commit().await.unwrap();
    let fault = Envelope::open(&bench.store, &elsewhere(), &folder)
        .await
        .unwrap_err();
    let said = fault.to_string();
    assert!(
        said.contains("transit/theirs") && said.contains("transit/guan"),
        "{said}"
    );
    drop(secrets);
}

#[tokio::test]
async fn what_the_store_keeps_says_its_format() {
    let bench = Bench::new().await;
    let _secrets = bench.secrets(bench.kms()).await;
    let fact = bench.store.fact(FACT).await.unwrap().unwrap();
    assert_eq!(
        read(&fact).map(|wrapped| written(&wrapped)),
        Ok(fact.clone())
    );
    assert_eq!(read(&[9]), Err(SealFault::Format(9)));
    assert_eq!(read(&[]), Err(SealFault::Tampered));
    assert_eq!(read(&fact[..fact.len() - 1]), Err(SealFault::Tampered));
    let gone = bench
        .store
        .change_facts(&[], &[(FACT, b"other", b"x")])
        .await;
    assert_eq!(gone.map(drop), Err(StoreFault::Taken));
}
