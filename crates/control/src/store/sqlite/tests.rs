//! The store against real files and a second connection.

use crate::actor::Actor;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use sqlx::SqliteConnection;

use super::*;
use crate::store::{Kind, Store, Target};
use crate::testbench::{BUSY, Bench, new_key, roles};

async fn open(path: &Path) -> Result<Store, StoreFault> {
    Store::open(&Target::Sqlite(path.to_path_buf())).await
}

fn base(bench: &Bench) -> &Base {
    match &bench.store.kind {
        Kind::Sqlite(base) => base,
        Kind::Postgres(_) => panic!("the bench is on SQLite"),
    }
}

async fn raw(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .connect()
        .await
        .unwrap()
}

#[tokio::test]
async fn all_files_of_the_database_are_private() {
    let bench = Bench::new().await;
    let _created = bench
        .keys
        .create(new_key("a"), &roles(), &Actor::local(0))
        .await
        .unwrap();
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(bench.dir.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.path());
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["guan.db", "guan.db-shm", "guan.db-wal"]);
}

#[tokio::test]
async fn a_database_that_others_may_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("guan.db");
    open(&path).await.unwrap().close().await;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let fault = open(&path).await.unwrap_err();
    assert_eq!(fault, StoreFault::Exposed { path, mode: 0o640 });
}

#[tokio::test]
async fn a_newer_database_and_one_of_another_program_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let newer = dir.path().join("newer.db");
    open(&newer).await.unwrap().close().await;
    let mut other = raw(&newer).await;
    sqlx::raw_sql("PRAGMA user_version = 99")
        .execute(&mut other)
        .await
        .unwrap();
    let fault = open(&newer).await.unwrap_err();
    assert!(
        matches!(
            fault,
            StoreFault::TooNew {
                found: 99,
                known: 6,
                ..
            }
        ),
        "{fault}"
    );

    let foreign = dir.path().join("foreign.db");
    fs::write(&foreign, "").unwrap();
    fs::set_permissions(&foreign, fs::Permissions::from_mode(0o600)).unwrap();
    let mut other = raw(&foreign).await;
    sqlx::raw_sql("CREATE TABLE keys (id TEXT)")
        .execute(&mut other)
        .await
        .unwrap();
    let fault = open(&foreign).await.unwrap_err();
    assert!(matches!(fault, StoreFault::Foreign { .. }), "{fault}");

    let text = dir.path().join("text.db");
    fs::write(
        &text,
        "this is a text, and long enough to have a header. ".repeat(40),
    )
    .unwrap();
    fs::set_permissions(&text, fs::Permissions::from_mode(0o600)).unwrap();
    let fault = open(&text).await.unwrap_err();
    assert!(matches!(fault, StoreFault::Foreign { .. }), "{fault}");

    let nowhere = dir.path().join("no/such/guan.db");
    assert!(matches!(open(&nowhere).await, Err(StoreFault::Open { .. })));
}

#[tokio::test]
async fn a_migration_that_fails_leaves_everything_as_it_was() {
    let bench = Bench::new().await;
    let bad: Vec<&'static str> = MIGRATIONS
        .iter()
        .copied()
        .chain(["CREATE TABLE more (x INTEGER) STRICT; PRAGMA user_version = 98; CREATE TABLE keys (id TEXT);"])
        .collect();
    assert!(base(&bench).migrate(&bad).await.is_err());
    let mut other = raw(&bench.database()).await;
    let version: i64 = sqlx::query_scalar("PRAGMA user_version")
        .fetch_one(&mut other)
        .await
        .unwrap();
    let more: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema WHERE name = 'more'")
        .fetch_one(&mut other)
        .await
        .unwrap();
    assert_eq!(
        (usize::try_from(version).unwrap(), more),
        (MIGRATIONS.len(), 0)
    );
    base(&bench).migrate(MIGRATIONS).await.unwrap();
}

#[tokio::test]
async fn who_holds_the_database_makes_writers_busy_and_readers_go_on() {
    let bench = Bench::new().await;
    let created = bench
        .keys
        .create(new_key("a"), &roles(), &Actor::local(0))
        .await
        .unwrap();
    let mut other = bench.hold().await;
    let began = Instant::now();
    let fault = bench.store.revoke(created.id, None, 1).await.unwrap_err();
    assert_eq!(fault, StoreFault::Busy);
    assert!(
        began.elapsed() >= BUSY && began.elapsed() < BUSY * 20,
        "{:?}",
        began.elapsed()
    );
    assert_eq!(
        bench.store.keys_after(None, 10).await.unwrap(),
        [created.row]
    );
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    assert!(
        bench
            .store
            .revoke(created.id, None, 1)
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn what_is_written_is_there_after_it_was_closed() {
    let bench = Bench::new().await;
    let created = bench
        .keys
        .create(new_key("a"), &roles(), &Actor::local(0))
        .await
        .unwrap();
    bench.store.close().await;
    assert!(!bench.dir.path().join("guan.db-wal").exists());
    let again = open(&bench.database()).await.unwrap();
    assert_eq!(again.keys_after(None, 10).await.unwrap(), [created.row]);
    assert_eq!(again.count_keys().await.unwrap(), 1);
}

#[tokio::test]
async fn a_database_of_the_first_schema_is_brought_up_to_date_with_all_its_keys() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("guan.db");
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let mut old = raw(&path).await;
    sqlx::raw_sql(MIGRATIONS[0])
        .execute(&mut old)
        .await
        .unwrap();
    for (id, digest, project) in [("aaaaaaaaaaaa", 1_u8, Some("p")), ("bbbbbbbbbbbb", 2, None)] {
        sqlx::query(
            "INSERT INTO keys VALUES ($1, $2, 'n', 'user', $3, 7, 9, NULL, 'local:0', 'wxyz')",
        )
        .bind(id)
        .bind(vec![digest; 32])
        .bind(project)
        .execute(&mut old)
        .await
        .unwrap();
    }
    sqlx::Connection::close(old).await.unwrap();
    let store = open(&path).await.unwrap();
    let rows = store.keys_after(None, 10).await.unwrap();
    assert_eq!((rows.len(), rows[0].version), (2, 1));
    assert_eq!(
        (
            rows[0].rotated_at,
            rows[0].expires_at,
            rows[0].project.as_deref()
        ),
        (7, Some(9), Some("p"))
    );
    let keys = crate::publish::load(&store).await.unwrap();
    let digest = rules::key::Digest::from_bytes([1; 32]);
    assert!(keys.judge(&digest, 8, [127, 0, 0, 1].into()).is_ok());
    assert!(store.project("p").await.unwrap().unwrap().enabled);
    // The references follow the table that was put in place of the old one.
    store.close().await;
    let mut again = raw(&path).await;
    let broken: Vec<(String,)> = sqlx::query_as("SELECT \"table\" FROM pragma_foreign_key_check")
        .fetch_all(&mut again)
        .await
        .unwrap();
    assert!(broken.is_empty());
}
