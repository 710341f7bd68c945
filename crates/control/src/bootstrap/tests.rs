//! First starts: whole, cut, repeated, and in folders that hold something else.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use sqlx::ConnectOptions;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::*;

/// On SQLite in the folder, as a config says that says nothing.
async fn init_here(
    data: &Path,
    names: &[String],
    clock: &Clock,
) -> Result<FirstStart, BootstrapFault> {
    init(
        data,
        names,
        &Target::in_folder(data),
        &Kms::in_folder(data),
        clock,
    )
    .await
}

async fn open_here(data: &Path) -> Result<Opened, BootstrapFault> {
    open(data, &Target::in_folder(data), &Kms::in_folder(data)).await
}

fn now() -> Clock {
    clock::system()
}

async fn made() -> (tempfile::TempDir, FirstStart) {
    let dir = tempfile::tempdir().unwrap();
    let names = ["guan.example".to_owned()];
    let first = init_here(&dir.path().join("data"), &names, &now())
        .await
        .unwrap();
    (dir, first)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

fn all_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all_files(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[tokio::test]
async fn a_first_start_makes_a_private_folder_and_a_key_that_opens_it() {
    let (dir, first) = made().await;
    let data = dir.path().join("data");
    for folder in [
        "state",
        "state/audit",
        "state/inflight",
        "state/run",
        "secrets",
    ] {
        assert_eq!(mode(&data.join(folder)), 0o700, "{folder}");
    }
    for file in ["kek", "tls.crt"] {
        assert_eq!(mode(&data.join("secrets").join(file)), 0o400, "{file}");
    }
    assert!(!data.join("secrets/tls.key").exists());
    assert_eq!(mode(&data.join("state/guan.db")), 0o600);
    assert!(data.join("models").is_dir() && is_ready(&data));
    assert!(!data.join("state/unfinished").exists());

    let opened = open_here(&data).await.unwrap();
    assert_eq!(opened.node, first.node);
    assert!(first.node.len() == 12 && first.node.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    let keys = crate::publish::load(&opened.store).await.unwrap();
    let key = &keys.find(&opened.pepper.digest(&first.key)).unwrap().key;
    assert_eq!(
        (&*key.role, &*key.name, key.id),
        ("admin", "first key", first.key_id)
    );
    let text = fs::read(data.join("secrets/tls.crt")).unwrap();
    let own = CertificateDer::from_pem_slice(&text).unwrap();
    assert_eq!(certificates::fingerprint_sha256(&own), first.fingerprint);
    let name = Name::TlsPair {
        node: first.node.clone(),
    };
    let kept = opened.envelope.kept(&opened.store, &name).await.unwrap();
    let kept = kept.unwrap().plain;
    assert!(kept.starts_with(&text) && String::from_utf8_lossy(&kept).contains("PRIVATE KEY"));
    let audit =
        fs::read_to_string(data.join(format!("state/audit/{}-0.jsonl", first.node))).unwrap();
    assert!(audit.contains("key-create") && audit.contains("chain-end"));

    opened.store.close().await;
    let path = write_first_key(&data.join("secrets"), &first.key).unwrap();
    assert_eq!(mode(&path), 0o400);
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        format!("{}\n", *first.key)
    );
    assert!(write_first_key(&data.join("secrets"), &first.key).is_err());
    fs::remove_file(path).unwrap();
    let shown = format!("{first:?} {opened:?}");
    let secret = first.key.get(21..64).unwrap();
    assert!(!shown.contains(secret));
    let mut files = Vec::new();
    all_files(&data, &mut files);
    for file in files {
        let bytes = fs::read(&file).unwrap();
        assert!(
            !bytes.windows(43).any(|part| part == secret.as_bytes()),
            "{file:?}"
        );
    }
}

#[tokio::test]
async fn nothing_that_is_there_is_overwritten() {
    let (dir, _first) = made().await;
    let data = dir.path().join("data");
    let kek = fs::read(data.join("secrets/kek")).unwrap();
    let again = init_here(&data, &[], &now()).await.unwrap_err();
    assert_eq!(again, BootstrapFault::AlreadyMade(data.clone()));
    // A folder that lost its mark is no folder of a cut start.
    fs::remove_file(data.join("state/ready")).unwrap();
    let found = init_here(&data, &[], &now()).await.unwrap_err();
    assert!(matches!(found, BootstrapFault::NotEmpty(_)), "{found}");
    assert!(matches!(
        open_here(&data).await.unwrap_err(),
        BootstrapFault::NotMade(_)
    ));
    assert_eq!(fs::read(data.join("secrets/kek")).unwrap(), kek);

    let other = tempfile::tempdir().unwrap();
    folder::make(&other.path().join("secrets"), 0o700).unwrap();
    fs::write(other.path().join("secrets/tls.key"), "mine").unwrap();
    let found = init_here(other.path(), &[], &now()).await.unwrap_err();
    assert_eq!(
        found,
        BootstrapFault::NotEmpty(other.path().join("secrets/tls.key"))
    );
    assert!(!other.path().join("state").exists());
    let wrong = init_here(&dir.path().join("new"), &["a b".to_owned()], &now())
        .await
        .unwrap_err();
    assert!(matches!(
        wrong,
        BootstrapFault::Certificate(CertificateFault::Name(_))
    ));
    assert!(!dir.path().join("new").exists());
}

#[tokio::test]
async fn folders_and_files_of_others_in_the_data_folder_stay() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path();
    fs::create_dir_all(data.join("models")).unwrap();
    fs::create_dir_all(data.join("state/run")).unwrap();
    fs::set_permissions(data.join("state"), fs::Permissions::from_mode(0o755)).unwrap();
    for file in ["models/m.gguf", "guan.toml", "state/lock"] {
        fs::write(data.join(file), "x").unwrap();
    }
    let _first = init_here(data, &[], &now()).await.unwrap();
    assert_eq!(mode(&data.join("state")), 0o700);
    assert_eq!(fs::read(data.join("models/m.gguf")).unwrap(), b"x");
    assert!(data.join("state/lock").exists());

    let linked = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(data, linked.path().join("secrets")).unwrap();
    let fault = init_here(linked.path(), &[], &now()).await.unwrap_err();
    assert!(matches!(fault, BootstrapFault::Place { .. }), "{fault}");
}

#[tokio::test]
async fn another_kek_or_a_changed_pepper_opens_nothing() {
    let (dir, _first) = made().await;
    let (other, _second) = made().await;
    let (data, foreign) = (dir.path().join("data"), other.path().join("data"));
    let own = data.join("secrets/kek");
    let kept = fs::read(&own).unwrap();
    fs::remove_file(&own).unwrap();
    assert!(matches!(
        open_here(&data).await,
        Err(BootstrapFault::Seal(SealFault::File { .. }))
    ));
    let kek = fs::read(foreign.join("secrets/kek")).unwrap();
    folder::write_new(&own, 0o400, &kek).unwrap();
    let fault = open_here(&data).await.unwrap_err();
    assert!(
        matches!(fault, BootstrapFault::Seal(SealFault::OtherKey { .. })),
        "{fault}"
    );
    assert!(fault.to_string().contains("same backup"));

    fs::remove_file(&own).unwrap();
    folder::write_new(&own, 0o400, &kept).unwrap();
    let mut database = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(data.join("state/guan.db"))
        .connect()
        .await
        .unwrap();
    let change = "UPDATE meta SET value = CAST(substr(value, 1, 40) || x'00' || substr(value, 42) AS BLOB) WHERE name = 'pepper'";
    sqlx::raw_sql(change).execute(&mut database).await.unwrap();
    let fault = open_here(&data).await.unwrap_err();
    assert_eq!(fault, BootstrapFault::Seal(SealFault::Tampered));
    fs::remove_file(data.join("state/guan.db")).unwrap();
    assert_eq!(
        open_here(&data).await.unwrap_err(),
        BootstrapFault::NoFact("file")
    );
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            // A file that the cut start still removes is gone for a crash, too.
            match fs::copy(&path, &target) {
                Ok(_) => {}
                Err(gone) if gone.kind() == io::ErrorKind::NotFound => {}
                Err(fault) => panic!("{fault}"),
            }
        }
    }
}

/// A first start that is cut wherever it waits, seen as a crash would leave it: made anew, or whole without its key
/// having been shown. Never stuck, never two databases.
#[tokio::test]
async fn a_first_start_cut_anywhere_is_made_anew_or_whole() {
    let (mut anew, mut whole) = (0, 0);
    for cut in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let (cut_one, crashed) = (dir.path().join("cut"), dir.path().join("crashed"));
        let clock = now();
        let mut polls = 0;
        let ended = {
            let mut first = pin!(init_here(&cut_one, &[], &clock));
            poll_fn(|context| match first.as_mut().poll(context) {
                Poll::Ready(result) => Poll::Ready(Some(result)),
                Poll::Pending if polls == cut => {
                    copy(&cut_one, &crashed);
                    Poll::Ready(None)
                }
                Poll::Pending => {
                    polls += 1;
                    Poll::Pending
                }
            })
            .await
        };
        if let Some(result) = ended {
            let _first = result.unwrap();
            break;
        }
        assert!(matches!(
            open_here(&crashed).await.unwrap_err(),
            BootstrapFault::HalfMade(_)
        ));
        match init_here(&crashed, &[], &clock).await {
            Ok(first) => {
                let opened = open_here(&crashed).await.unwrap();
                assert_eq!(opened.node, first.node);
                assert_eq!(opened.store.count_keys().await.unwrap(), 1);
                anew += 1;
            }
            Err(BootstrapFault::KeyNeverShown) => {
                let opened = open_here(&crashed).await.unwrap();
                assert_eq!(opened.store.count_keys().await.unwrap(), 1);
                whole += 1;
            }
            Err(other) => panic!("cut {cut}: {other}"),
        }
        assert!(is_ready(&crashed) && !crashed.join("state/unfinished").exists());
    }
    println!("made anew {anew} times, whole {whole} times");
    assert!(anew > 5, "{anew} {whole}");
}

#[tokio::test]
async fn a_key_that_was_never_shown_is_never_thrown_away() {
    let (dir, _first) = made().await;
    let data = dir.path().join("data");
    fs::remove_file(data.join("state/ready")).unwrap();
    fs::write(data.join("state/unfinished"), "").unwrap();
    let fault = init_here(&data, &[], &now()).await.unwrap_err();
    assert_eq!(fault, BootstrapFault::KeyNeverShown);
    let opened = open_here(&data).await.unwrap();
    assert_eq!(opened.store.count_keys().await.unwrap(), 1);
}

/// A folder of the versions before there were data keys: the key file sealed the pepper itself.
async fn make_old(data: &Path) {
    let opened = open_here(data).await.unwrap();
    let (_envelope, pepper) =
        Envelope::open(&opened.store, &Kms::in_folder(data), &data.join("secrets"))
            .await
            .unwrap()
            .unwrap();
    opened.store.close().await;
    let kek = Kek::read(&data.join("secrets")).unwrap();
    let sealed = kek.seal(PEPPER.as_bytes(), &pepper).unwrap();
    let mut database = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(data.join("state/guan.db"))
        .connect()
        .await
        .unwrap();
    // Nothing lay sealed in the store then.
    sqlx::query("DELETE FROM secrets")
        .execute(&mut database)
        .await
        .unwrap();
    sqlx::query("DELETE FROM meta WHERE name = 'data-key'")
        .execute(&mut database)
        .await
        .unwrap();
    sqlx::query("UPDATE meta SET value = $1 WHERE name = 'pepper'")
        .bind(sealed)
        .execute(&mut database)
        .await
        .unwrap();
}

#[tokio::test]
async fn an_older_folder_gets_a_data_key_once_and_keeps_its_keys() {
    let (dir, first) = made().await;
    let data = dir.path().join("data");
    Box::pin(make_old(&data)).await;
    let opened = open_here(&data).await.unwrap();
    let keys = crate::publish::load(&opened.store).await.unwrap();
    assert!(keys.find(&opened.pepper.digest(&first.key)).is_some());
    let id = opened.envelope.id();
    opened.store.close().await;
    let again = open_here(&data).await.unwrap();
    assert_eq!(again.envelope.id(), id, "made once");
    assert!(again.store.fact(FACT).await.unwrap().is_some());
    again.store.close().await;
    // Two starts at the same time end with one data key.
    Box::pin(make_old(&data)).await;
    let (one, two) = tokio::join!(open_here(&data), open_here(&data));
    assert_eq!(one.unwrap().envelope.id(), two.unwrap().envelope.id());
}

#[tokio::test]
async fn a_key_service_that_is_away_leaves_no_half_made_folder() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let kms = Kms::Vault(seal::vault::Settings {
        endpoint: seal::client::Endpoint::parse(&url, None).unwrap(),
        mount: "transit".to_owned(),
        key: "guan".to_owned(),
        token: seal::Secret::new("hvs.hunter2".to_owned().into()),
        namespace: None,
    });
    let fault = init(&data, &[], &Target::in_folder(&data), &kms, &now())
        .await
        .unwrap_err();
    let said = fault.to_string();
    assert!(
        said.contains("doesn't answer") && said.contains("[kms]"),
        "{said}"
    );
    assert!(!format!("{fault:?} {kms:?}").contains("hunter2"));
    assert!(!data.exists());
}

#[tokio::test]
async fn nodes_share_a_store_by_its_key_and_a_wrong_one_is_refused() {
    let Some(target) = crate::testbench::postgres() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (one, two, three) = (
        dir.path().join("1"),
        dir.path().join("2"),
        dir.path().join("3"),
    );
    let first = init(&one, &[], &target, &Kms::in_folder(&one), &now())
        .await
        .unwrap();
    // Without the key nothing is made; with another one neither.
    let fault = init(&two, &[], &target, &Kms::in_folder(&two), &now())
        .await
        .unwrap_err();
    assert!(matches!(fault, BootstrapFault::NoKek { .. }), "{fault}");
    assert!(!two.join("state").exists());
    let _first = init_here(&three, &[], &now()).await.unwrap();
    fs::create_dir_all(two.join("secrets")).unwrap();
    let bring = |from: &Path| {
        let to = two.join("secrets/kek");
        let _absent = fs::remove_file(&to);
        fs::copy(from.join("secrets/kek"), &to).unwrap();
    };
    bring(&three);
    let fault = init(&two, &[], &target, &Kms::in_folder(&two), &now())
        .await
        .unwrap_err();
    assert!(
        matches!(fault, BootstrapFault::Seal(SealFault::OtherKey { .. })),
        "{fault}"
    );
    bring(&one);
    let joined = init(&two, &[], &target, &Kms::in_folder(&two), &now())
        .await
        .unwrap_err();
    assert!(matches!(joined, BootstrapFault::Joined(_)), "{joined}");
    let opened = open(&two, &target, &Kms::in_folder(&two)).await.unwrap();
    assert_ne!(opened.node, first.node);
    assert_eq!(
        open(&one, &target, &Kms::in_folder(&one))
            .await
            .unwrap()
            .node,
        first.node
    );
    let keys = crate::publish::load(&opened.store).await.unwrap();
    assert!(keys.find(&opened.pepper.digest(&first.key)).is_some());
    // A node whose key was exchanged doesn't start either.
    let kek = two.join("secrets/kek");
    fs::remove_file(&kek).unwrap();
    fs::copy(three.join("secrets/kek"), &kek).unwrap();
    assert!(matches!(
        open(&two, &target, &Kms::in_folder(&two)).await,
        Err(BootstrapFault::Seal(_))
    ));
}
