//! The folder of models: records, places, locks.

use super::*;

fn record(name: &str) -> Record {
    Record {
        name: name.to_owned(),
        licence: "Apache-2.0".to_owned(),
        licence_files: Vec::new(),
        parameters: None,
        digest_from: DigestFrom::FirstUse,
        files: vec![RecordedFile {
            file: format!("{name}.gguf"),
            size: 3,
            sha256: "0".repeat(64),
            source: "https://h/x".to_owned(),
        }],
    }
}

#[test]
fn a_record_is_read_back_and_a_foreign_file_is_no_record() {
    let dir = tempfile::tempdir().unwrap();
    record("m").write(dir.path()).unwrap();
    fs::write(dir.path().join("guan.toml"), "listen = 1").unwrap();
    let all = installed(dir.path()).unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].digest_from, DigestFrom::FirstUse);
    let text = fs::read_to_string(dir.path().join("m.toml")).unwrap();
    assert!(text.contains("digest_from = \"first-use\""), "{text}");
}

#[test]
fn a_record_that_points_out_of_the_folder_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let mut bad = record("m");
    bad.files[0].file = "../../etc/passwd".to_owned();
    bad.write(dir.path()).unwrap();
    assert!(Record::read(dir.path(), "m").unwrap().is_none());
}

#[test]
fn a_finished_file_never_takes_the_place_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let (part, place) = (dir.path().join("a.part"), dir.path().join("a"));
    fs::write(&part, "new").unwrap();
    settle(&part, &place).unwrap();
    assert_eq!(
        fs::metadata(&place).unwrap().permissions().mode() & 0o777,
        0o444
    );
    fs::write(&part, "newer").unwrap();
    assert!(matches!(settle(&part, &place), Err(Fault::Occupied(_))));
    assert_eq!(fs::read_to_string(&place).unwrap(), "new");
}

#[test]
fn a_link_in_the_place_of_a_part_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let victim = dir.path().join("victim");
    fs::write(&victim, "mine").unwrap();
    std::os::unix::fs::symlink(&victim, dir.path().join("a.part")).unwrap();
    assert!(open_part(&dir.path().join("a.part")).is_err());
}

#[test]
fn two_commands_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let first = Lock::take(dir.path()).unwrap();
    assert!(matches!(Lock::take(dir.path()), Err(Fault::Busy(_))));
    drop(first);
    assert!(Lock::take(dir.path()).is_ok());
}

#[test]
fn digests_are_those_of_sha256sum() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("abc");
    fs::write(&path, "abc").unwrap();
    let (digest, size) = digest_of(&path).unwrap();
    assert_eq!(
        digest,
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
    assert_eq!(size, 3);
}

#[test]
fn a_disk_that_is_too_small_is_said_before() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        check_space(dir.path(), u64::MAX / 2),
        Err(Fault::Space { .. })
    ));
    assert!(check_space(dir.path(), 1).is_ok());
}
