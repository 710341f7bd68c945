//! A million keys in memory: what they take, how fast one is found, how long a change takes. Run with `--release` or
//! `--profile ci`; prints figures, asserts nothing.

#![expect(
    clippy::expect_used,
    reason = "a bench that can't run says why by a panic"
)]

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use rules::key::{Digest, KeyId};
use rules::snapshot::{Key, Keys, Secret};

fn digest(n: u64) -> Digest {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &n.to_be_bytes());
    let mut bytes = [0; 32];
    for (to, from) in bytes.iter_mut().zip(hash.as_ref()) {
        *to = *from;
    }
    Digest::from_bytes(bytes)
}

fn secret(n: u64, role: &Arc<str>) -> Secret {
    let id = KeyId::parse(&format!("{n:012}")).expect("twelve digits");
    Secret {
        digest: digest(n),
        key: Arc::new(Key {
            id,
            name: format!("key number {n}").into(),
            role: Arc::clone(role),
            project: None,
            not_before: None,
            expires_at: None,
            revoked: false,
            own: None,
        }),
        until: i64::MAX,
    }
}

/// Resident memory, bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0);
    kib.saturating_mul(1024)
}

fn main() {
    const MANY: u64 = 1_000_000;
    let role: Arc<str> = "user".into();
    let before = resident();
    let began = Instant::now();
    let keys = Keys::default().with((0..MANY).map(|n| secret(n, &role)));
    let built = began.elapsed();
    let bytes = resident().saturating_sub(before) / MANY;
    let digests: Vec<Digest> = (0..MANY)
        .step_by(10)
        .map(|n| digest(n * 7 % (2 * MANY)))
        .collect();
    let address = [127, 0, 0, 1].into();
    let began = Instant::now();
    let found = digests
        .iter()
        .filter(|digest| keys.judge(digest, 0, address).is_ok())
        .count();
    let each = began.elapsed() / u32::try_from(digests.len()).unwrap_or(1);
    let began = Instant::now();
    let next = keys.with([secret(MANY, &role)]);
    let change = began.elapsed();
    writeln!(
        std::io::stdout(),
        "{} keys built in {built:?}; {bytes} bytes of resident memory a key; {each:?} a look-up ({found} of {} found); {change:?} a change, {} keys after it",
        keys.len(),
        digests.len(),
        next.len()
    )
    .expect("standard output");
}
