//! Data keys under real key services: `OpenBao`'s Transit engine and an AWS KMS emulator.
#![cfg(test)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use control::actor::Actor;
use control::audit_log::{self, AuditSpec, Fsync, Log};
use control::bootstrap::{self, BootstrapFault, Opened};
use control::clock;
use control::seal::client::Endpoint;
use control::seal::{Kms, SEALED, SealFault, Secret, aws, vault};
use control::secrets::{Secrets, SecretsFault};
use control::store::Target;
use testkit::kms::{Bao, Moto, ROOT};

fn secret(text: &str) -> Secret {
    Secret::new(text.to_owned().into())
}

fn on_bao(bao: &Bao, key: &str, token: &str) -> Kms {
    Kms::Vault(vault::Settings {
        endpoint: Endpoint::parse(&bao.url(), None).unwrap(),
        mount: "transit".to_owned(),
        key: key.to_owned(),
        token: secret(token),
        namespace: None,
    })
}

fn on_moto(moto: &Moto, key_id: &str) -> Kms {
    Kms::Aws(aws::Settings {
        endpoint: Endpoint::parse(&moto.url(), None).unwrap(),
        region: "us-east-1".to_owned(),
        key_id: key_id.to_owned(),
        access_key_id: secret("AKIDEXAMPLE"),
        access_key_secret: secret("aws-hunter2"),
        session_token: Some(secret("session-hunter2")),
    })
}

/// A data folder in a temporary one.
struct Folder {
    dir: tempfile::TempDir,
    generation: u64,
}

impl Folder {
    async fn make(kms: &Kms) -> (Self, String) {
        let folder = Self {
            dir: tempfile::tempdir().unwrap(),
            generation: 0,
        };
        let data = folder.data();
        let target = Target::in_folder(&data);
        let clock = clock::system();
        let made = bootstrap::init(&data, &[], &target, kms, &clock);
        let first = Box::pin(made).await.unwrap();
        (folder, first.key.to_string())
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    async fn open(&self, kms: &Kms) -> Result<Opened, BootstrapFault> {
        let target = Target::in_folder(&self.data());
        Box::pin(bootstrap::open(&self.data(), &target, kms)).await
    }

    /// Opened by one, to act with what another says.
    async fn secrets(&mut self, opened_by: &Kms, named: &Kms) -> (Secrets, Log) {
        let opened = self.open(opened_by).await.unwrap();
        self.generation += 1;
        let signer = rules::chain::Signer::from_seed(&[7; 32]).unwrap();
        let (audit, log) = audit_log::open(AuditSpec {
            signer: Arc::new(signer),
            checkpoint_every: audit_log::CHECKPOINT_EVERY,
            rotate: audit_log::Rotate::default(),
            dir: self.data().join("state/audit"),
            node: opened.node,
            generation: self.generation,
            clock: clock::system(),
            fsync: Fsync::Interval,
        })
        .unwrap();
        let named = named.clone();
        let secrets = Secrets::new(
            opened.envelope,
            opened.store,
            audit,
            clock::system(),
            Arc::new(move || named.clone()),
            self.data().join("secrets"),
        );
        (secrets, log)
    }

    async fn still_knows(&self, kms: &Kms, key: &str) {
        let opened = self.open(kms).await.unwrap();
        let keys = control::publish::load(&opened.store).await.unwrap();
        assert!(keys.find(&opened.pepper.digest(key)).is_some());
        opened.store.close().await;
    }
}

/// Every file below, for a search.
fn bytes_below(dir: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(bytes_below(&path));
        } else {
            all.extend(std::fs::read(&path).unwrap_or_default());
        }
    }
    all
}

#[tokio::test]
async fn bao_wraps_a_data_key_and_a_token_for_one_key_is_enough() {
    let bao = Bao::start();
    let token = bao.token();
    let kms = on_bao(&bao, "guan", &token);
    let (folder, key) = Folder::make(&kms).await;
    assert!(
        !folder.data().join("secrets/kek").exists(),
        "no key file is made"
    );
    folder.still_knows(&kms, &key).await;

    // Another of its keys, a token without the right, and a key of the same name elsewhere open nothing.
    let fault = folder.open(&on_bao(&bao, "other", ROOT)).await.unwrap_err();
    assert!(
        matches!(fault, BootstrapFault::Seal(SealFault::OtherProvider { .. })),
        "{fault}"
    );
    let fault = folder
        .open(&on_bao(&bao, "guan", "hvs.hunter2"))
        .await
        .unwrap_err();
    let said = format!("{fault} {fault:?}");
    assert!(
        said.contains("refused") && said.contains("permission denied"),
        "{said}"
    );
    assert!(!said.contains("hunter2"), "{said}");
    let elsewhere = Bao::start();
    let fault = folder
        .open(&on_bao(&elsewhere, "guan", ROOT))
        .await
        .unwrap_err();
    assert!(
        matches!(fault, BootstrapFault::Seal(SealFault::Refused { .. })),
        "{fault}"
    );
    let fault = folder
        .open(&Kms::in_folder(&folder.data()))
        .await
        .unwrap_err();
    assert!(fault.to_string().contains("guan secret rewrap"), "{fault}");
    let all = bytes_below(&folder.data());
    assert!(
        !all.windows(token.len())
            .any(|part| part == token.as_bytes())
    );
}

#[tokio::test]
async fn a_rewrap_takes_up_the_newest_version_and_what_was_sealed_stays() {
    let bao = Bao::start();
    let kms = on_bao(&bao, "guan", &bao.token());
    let (mut folder, key) = Folder::make(&kms).await;
    let (secrets, log) = folder.secrets(&kms, &kms).await;
    let sealed = secrets.seal("sk-upstream", &Actor::local(0)).await.unwrap();
    bao.rotate("guan");
    let done = secrets.rewrap(&Actor::local(0)).await.unwrap();
    assert_eq!(
        (done.old_version.as_deref(), done.version.as_deref()),
        (Some("1"), Some("2"))
    );
    drop(secrets);
    assert!(log.join());
    folder.still_knows(&kms, &key).await;
    // The old version is no longer needed.
    bao.ask(
        "POST",
        "/v1/transit/keys/guan/config",
        &serde_json::json!({ "min_decryption_version": 2 }),
    );
    let opened = folder.open(&kms).await.unwrap();
    let value = sealed.strip_prefix(SEALED).unwrap();
    assert_eq!(
        opened.envelope.open_value(value).unwrap().as_str(),
        "sk-upstream"
    );
    let audit =
        String::from_utf8_lossy(&bytes_below(&folder.data().join("state/audit"))).into_owned();
    assert!(audit.contains("secret-rewrap") && audit.contains("secret-seal"));
    assert!(!audit.contains("sk-upstream"));
}

#[tokio::test]
async fn a_service_that_hangs_is_away_within_its_deadline_and_nothing_is_changed() {
    let bao = Bao::start();
    let kms = on_bao(&bao, "guan", &bao.token());
    let (mut folder, key) = Folder::make(&kms).await;
    let (secrets, _log) = folder.secrets(&kms, &kms).await;
    bao.freeze(true);
    let began = Instant::now();
    let actor = Actor::local(0);
    let faults = tokio::join!(
        secrets.seal("a", &actor),
        secrets.rewrap(&actor),
        folder.open(&kms)
    );
    assert!(began.elapsed() < Duration::from_secs(15));
    let away = |fault: &SealFault| matches!(fault, SealFault::Away { .. });
    assert!(
        matches!(&faults.0, Err(SecretsFault::Seal(fault)) if away(fault)),
        "{faults:?}"
    );
    assert!(
        matches!(&faults.1, Err(SecretsFault::Seal(fault)) if away(fault)),
        "{faults:?}"
    );
    assert!(
        matches!(&faults.2, Err(BootstrapFault::Seal(fault)) if away(fault)),
        "{faults:?}"
    );
    bao.freeze(false);
    let _sealed = secrets.seal("a", &Actor::local(0)).await.unwrap();
    drop(secrets);
    folder.still_knows(&kms, &key).await;
    // Sealed itself, it answers 503.
    bao.ask("PUT", "/v1/sys/seal", &serde_json::json!({}));
    let fault = folder.open(&kms).await.unwrap_err();
    assert!(
        matches!(fault, BootstrapFault::Seal(SealFault::Away { .. })),
        "{fault}"
    );
}

#[tokio::test]
async fn a_data_key_moves_from_a_file_to_bao_to_aws_and_every_key_stays() {
    let (bao, moto) = (Bao::start(), Moto::start());
    let dir = tempfile::tempdir().unwrap();
    let nowhere = Kms::in_folder(dir.path());
    drop(dir);
    let vault = on_bao(&bao, "guan", &bao.token());
    let cloud = on_moto(&moto, &moto.key());
    let mut folder = Folder {
        dir: tempfile::tempdir().unwrap(),
        generation: 0,
    };
    let file = Kms::in_folder(&folder.data());
    let target = Target::in_folder(&folder.data());
    let data = folder.data();
    let first = Box::pin(bootstrap::init(
        &data,
        &[],
        &target,
        &file,
        &clock::system(),
    ))
    .await
    .unwrap();
    let kek = data.join("secrets/kek");
    let mut before = file.clone();
    for next in [vault, cloud, file] {
        if next == Kms::in_folder(&data) {
            // Back to a key file, which is made anew.
            std::fs::remove_file(&kek).unwrap();
        }
        let (secrets, log) = folder.secrets(&before, &next).await;
        let done = secrets.rewrap(&Actor::local(0)).await.unwrap();
        assert_eq!(
            (done.old_provider.as_str(), done.provider.as_str()),
            (before.name(), next.name())
        );
        drop(secrets);
        assert!(log.join());
        folder.still_knows(&next, &first.key).await;
        let old = folder.open(&before).await;
        if next.name() != "file" {
            assert!(old.is_err(), "the old one is no longer needed, nor good");
        }
        before = next;
    }
    assert!(folder.open(&nowhere).await.is_err());
    let all = bytes_below(&folder.data());
    assert!(!all.windows(7).any(|part| part == b"hunter2"));
}

#[tokio::test]
async fn aws_is_asked_with_key_and_context_and_says_no_in_its_codes() {
    let moto = Moto::start();
    let kms = on_moto(&moto, &moto.key());
    let (folder, key) = Folder::make(&kms).await;
    folder.still_knows(&kms, &key).await;
    let elsewhere = Moto::start();
    let Kms::Aws(settings) = &kms else {
        panic!("{kms:?}")
    };
    let id = settings.key_id.clone();
    let fault = folder.open(&on_moto(&elsewhere, &id)).await.unwrap_err();
    assert!(
        matches!(fault, BootstrapFault::Seal(SealFault::Refused { .. })),
        "{fault}"
    );
    assert!(!format!("{fault} {fault:?}").contains("hunter2"));
    let none = on_moto(&moto, "00000000-0000-0000-0000-000000000000");
    let empty = tempfile::tempdir().unwrap();
    let data = empty.path().join("data");
    let (target, clock) = (Target::in_folder(&data), clock::system());
    let made = bootstrap::init(&data, &[], &target, &none, &clock);
    let fault = Box::pin(made).await.unwrap_err();
    assert!(fault.to_string().contains("NotFoundException"), "{fault}");
    assert!(!data.exists());
}

#[tokio::test]
async fn nodes_share_a_store_by_their_key_service_and_a_wrong_key_is_refused() {
    let Some(url) = testkit::postgres::database() else {
        return;
    };
    let bao = Bao::start();
    let kms = on_bao(&bao, "guan", &bao.token());
    let target = Target::Postgres(control::store::Server {
        url,
        password: None,
    });
    let dir = tempfile::tempdir().unwrap();
    let [one, two, three] = ["1", "2", "3"].map(|name| dir.path().join(name));
    let clock = clock::system();
    let made = bootstrap::init(&one, &[], &target, &kms, &clock);
    let first = Box::pin(made).await.unwrap();
    let joined = bootstrap::init(&two, &[], &target, &kms, &clock);
    let joined = Box::pin(joined).await.unwrap_err();
    assert!(matches!(joined, BootstrapFault::Joined(_)), "{joined}");
    let opened = Box::pin(bootstrap::open(&two, &target, &kms))
        .await
        .unwrap();
    let keys = control::publish::load(&opened.store).await.unwrap();
    assert!(keys.find(&opened.pepper.digest(&first.key)).is_some());
    assert!(!two.join("secrets/kek").exists());
    // A node that names another key, or a key file, neither joins nor starts.
    let other = on_bao(&bao, "other", ROOT);
    let fault = Box::pin(bootstrap::init(&three, &[], &target, &other, &clock)).await;
    let fault = fault.unwrap_err();
    assert!(
        matches!(fault, BootstrapFault::Seal(SealFault::OtherProvider { .. })),
        "{fault}"
    );
    assert!(!three.join("state").exists());
    let fault = Box::pin(bootstrap::open(&two, &target, &other)).await;
    assert!(matches!(fault, Err(BootstrapFault::Seal(_))), "{fault:?}");
    let file = Kms::in_folder(&three);
    let fault = Box::pin(bootstrap::init(&three, &[], &target, &file, &clock)).await;
    assert!(
        matches!(
            fault,
            Err(BootstrapFault::Seal(SealFault::OtherProvider { .. }))
        ),
        "{fault:?}"
    );
}
