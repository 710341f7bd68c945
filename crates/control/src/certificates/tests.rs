//! The certificate that is made, read back.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

const NOW: i64 = 1_800_000_000;

fn contains(der: &[u8], part: &[u8]) -> bool {
    der.windows(part.len()).any(|window| window == part)
}

fn placed(names: &[&str]) -> (tempfile::TempDir, self_signed::Pem) {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let pem = self_signed::make(&names, NOW).unwrap();
    let dir = tempfile::tempdir().unwrap();
    folder::write_new(&dir.path().join(CHAIN), 0o400, pem.chain.as_bytes()).unwrap();
    folder::write_new(&dir.path().join(KEY), 0o400, pem.key.as_bytes()).unwrap();
    (dir, pem)
}

#[test]
fn the_certificate_carries_the_names_and_reads_back() {
    let (dir, pem) = placed(&[
        "Guan.Example.com.",
        "10.1.2.3",
        "*.lan.example",
        "fd00::7",
        "localhost",
    ]);
    let (chain, key) = load(dir.path()).unwrap();
    assert_eq!(chain.len(), 1);
    assert_eq!(chain[0].as_ref(), pem.der);
    assert!(matches!(key, PrivateKeyDer::Pkcs8(_)));
    for name in ["localhost", "guan.example.com", "*.lan.example"] {
        let length = u8::try_from(name.len()).unwrap();
        assert!(
            contains(&pem.der, &[&[0x82, length], name.as_bytes()].concat()),
            "{name}"
        );
    }
    assert!(contains(&pem.der, &[0x87, 4, 127, 0, 0, 1]));
    assert!(contains(&pem.der, &[0x87, 4, 10, 1, 2, 3]));
    assert!(contains(
        &pem.der,
        &[0x87, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    ));
    // No common name (2.5.4.3).
    assert!(!contains(&pem.der, &[0x06, 3, 0x55, 4, 3]));
    let shown = format!("{pem:?}");
    assert!(!shown.contains("PRIVATE KEY"));
}

#[test]
fn two_certificates_share_neither_serial_nor_key() {
    let (a, b) = (
        self_signed::make(&[], NOW).unwrap(),
        self_signed::make(&[], NOW).unwrap(),
    );
    assert_ne!(fingerprint_sha256(&a.der), fingerprint_sha256(&b.der));
    assert_ne!(a.key, b.key);
    let fingerprint = fingerprint_sha256(&a.der);
    assert_eq!(
        (fingerprint.len(), fingerprint.matches(':').count()),
        (95, 31)
    );
    assert_eq!(
        fingerprint_sha256(b"abc"),
        "BA:78:16:BF:8F:01:CF:EA:41:41:40:DE:5D:AE:22:23:B0:03:61:A3:96:17:7A:9C:B4:10:FF:61:F2:00:15:AD"
    );
}

#[test]
fn its_end_is_read_and_warned_of() {
    let (dir, _pem) = placed(&[]);
    let (chain, _key) = load(dir.path()).unwrap();
    let end = NOW - 3600 + 397 * 86_400;
    assert_eq!(expires_at(&chain[0]), Some(end));
    assert_eq!(expiry_warning(&chain, NOW), None);
    assert!(
        expiry_warning(&chain, end - 86_400)
            .unwrap()
            .contains("expires on")
    );
    assert!(expiry_warning(&chain, end).unwrap().contains("expired on"));
    // After 2049 the time has another form.
    let late = self_signed::make(&[], 2_600_000_000).unwrap();
    assert_eq!(
        expires_at(&late.der),
        Some(2_600_000_000 - 3600 + 397 * 86_400)
    );
    for cut in 0..late.der.len().min(300) {
        let _unread = expires_at(&late.der[..cut]);
    }
}

#[test]
fn names_that_no_certificate_can_carry_are_refused() {
    let long = "a".repeat(64);
    for name in [
        "",
        "a b",
        "-a.example",
        "1.2.3.999",
        "bücher.example",
        "a..b",
        "*",
        "a.*.b",
        "x/y",
        "host:8443",
        &long,
    ] {
        let fault = self_signed::make(&[name.to_owned()], NOW).unwrap_err();
        assert_eq!(fault, CertificateFault::Name(name.to_owned()));
    }
}

#[test]
fn a_missing_open_or_empty_file_says_what_to_do() {
    let (dir, _pem) = placed(&[]);
    let (chain, key) = (dir.path().join(CHAIN), dir.path().join(KEY));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o444)).unwrap();
    assert!(
        load(dir.path())
            .unwrap_err()
            .to_string()
            .contains("chmod 400")
    );
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&key, "nothing").unwrap();
    assert!(
        load(dir.path())
            .unwrap_err()
            .to_string()
            .contains("no private key")
    );
    fs::remove_file(&key).unwrap();
    assert!(matches!(
        load(dir.path()),
        Err(CertificateFault::File { .. })
    ));
    fs::set_permissions(&chain, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(
        &chain,
        "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    assert!(
        load(dir.path())
            .unwrap_err()
            .to_string()
            .contains("no certificate")
    );
}
