//! The certificate on the running binary: its key in no file, an older folder brought up to date, one that ends soon.
#![cfg(test)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use control::certificates::self_signed::{Pem, make};
use testkit::server::{Guan, in_front_of, write_file};
use testkit::upstream::Upstream;

use crate::guan;
use crate::secrets::{CHAT, good, is_below};

const DAY: i64 = 86_400;

/// A pair as older versions made it, so many seconds ago.
fn pair(ago: i64) -> Pem {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    make(&[], i64::try_from(now.as_secs()).unwrap() - ago).unwrap()
}

/// Puts it where they put it.
fn put(data: &Path, pair: &Pem) {
    for (name, text) in [("tls.crt", &pair.chain), ("tls.key", &*pair.key)] {
        let path = data.join("secrets").join(name);
        std::fs::remove_file(&path).ok();
        write_file(&path, text);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
    }
}

/// As a store from before certificates lay in it.
#[expect(
    clippy::disallowed_methods,
    reason = "an operator's tool on a stopped server's file"
)]
fn forget(data: &Path) {
    let script = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1])\nc.execute('DELETE FROM secrets')\nc.commit()\n";
    let done = Command::new("python3")
        .args(["-c", script])
        .arg(data.join("state/guan.db"))
        .status();
    assert!(done.unwrap().success());
}

fn certificate(guan: &Guan) -> String {
    std::fs::read_to_string(guan.data().join("secrets/tls.crt")).unwrap()
}

fn actions(guan: &Guan) -> Vec<String> {
    let records = guan.records().into_iter();
    let named = records.filter_map(|record| Some(record["event.action"].as_str()?.to_owned()));
    named
        .filter(|action| action.starts_with("certificate-"))
        .collect()
}

#[test]
fn the_certificates_key_lies_in_no_file() {
    let upstream = Upstream::start(good);
    let mut running = Guan::start(guan(), &in_front_of(&upstream.url()));
    let first = certificate(&running);
    assert!(!is_below(running.data(), "PRIVATE KEY"));
    assert!(!running.data().join("secrets/tls.key").exists());
    let shown = running.run(&["tls", "ca"]);
    assert_eq!(String::from_utf8_lossy(&shown.stdout), first);
    assert!(String::from_utf8_lossy(&shown.stderr).contains("SHA-256"));
    assert_eq!(running.stop(), Some(0));
    // Changed by somebody, it is published again.
    std::fs::remove_file(running.data().join("secrets/tls.crt")).unwrap();
    running.serve();
    assert_eq!(certificate(&running), first);
    assert_eq!(running.caller("user").chat(CHAT).status, 200);
    assert!(actions(&running).is_empty());
}

#[test]
fn an_older_folders_key_moves_into_the_store_and_is_kept_there() {
    let upstream = Upstream::start(good);
    let mut running = Guan::start(guan(), &in_front_of(&upstream.url()));
    assert_eq!(running.stop(), Some(0));
    let old = pair(10 * DAY);
    put(running.data(), &old);
    forget(running.data());
    running.serve();
    assert_eq!(certificate(&running), old.chain);
    assert!(!running.data().join("secrets/tls.key").exists());
    assert_eq!(running.caller("user").chat(CHAT).status, 200);
    assert_eq!(actions(&running), ["certificate-sealed"]);
    assert_eq!(running.stop(), Some(0));
    running.serve();
    assert_eq!(certificate(&running), old.chain);
    assert!(!is_below(running.data(), "PRIVATE KEY"));
    assert_eq!(actions(&running).len(), 1);
}

#[test]
fn one_that_ends_soon_is_made_anew_at_the_start_and_your_own_stays() {
    let upstream = Upstream::start(good);
    let mut running = Guan::start(guan(), &in_front_of(&upstream.url()));
    assert_eq!(running.stop(), Some(0));
    let old = pair(380 * DAY);
    put(running.data(), &old);
    forget(running.data());
    running.serve();
    let new = certificate(&running);
    assert_ne!(new, old.chain);
    running.wait_log("the certificate was made anew");
    assert_eq!(running.caller("user").chat(CHAT).status, 200);
    let both = ["certificate-sealed", "certificate-renewed"];
    assert_eq!(actions(&running), both);
    assert_eq!(running.stop(), Some(0));

    // One of your own is served as it is, with a word on its end.
    let key = put_own(running.data());
    running.serve();
    running.wait_log("the certificate expires on");
    assert_ne!(certificate(&running), new);
    assert_eq!(running.caller("user").chat(CHAT).status, 200);
    let kept = std::fs::read_to_string(running.data().join("secrets/tls.key"));
    assert_eq!(kept.unwrap(), key);
    assert_eq!(actions(&running), both);
}

/// Puts a pair that is none of ours into `secrets/`, good for ten days; gives its key.
#[expect(clippy::disallowed_methods, reason = "an operator's tool")]
fn put_own(data: &Path) -> String {
    let [chain, key] = ["tls.crt", "tls.key"].map(|name| data.join("secrets").join(name));
    std::fs::remove_file(&chain).unwrap();
    let words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 10 -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE";
    let made = Command::new("openssl")
        .args(words.split(' '))
        .args(["-subj", "/O=Our own"])
        .arg("-out")
        .arg(&chain)
        .arg("-keyout")
        .arg(&key)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o400)).unwrap();
    std::fs::read_to_string(&key).unwrap()
}
