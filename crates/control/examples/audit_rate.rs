//! How many records a second the audit thread chains, signs and writes, and what sending one costs the sender.
//!
//! `cargo run --release -p control --example audit_rate [RECORDS]`. It asserts nothing.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench that people read"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use control::audit_log::{AuditSpec, Fsync, Rotate, open};
use rules::chain::{Call, Entry, Record, Signer};
use rules::measure::{Ending, Source, Tokens};

fn main() {
    let count: u64 = std::env::args()
        .nth(1)
        .map_or(200_000, |n| n.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let (to, log) = open(AuditSpec {
        dir: dir.path().to_path_buf(),
        node: "bench".to_owned(),
        generation: 1,
        clock: control::clock::system(),
        fsync: Fsync::Interval,
        signer: Arc::new(Signer::from_seed(&[7; 32]).unwrap()),
        checkpoint_every: Duration::from_secs(1),
        rotate: Rotate::default(),
    })
    .unwrap();
    let began = Instant::now();
    let mut sending = Duration::ZERO;
    for _ in 0..count {
        let entry = Entry {
            record: record(),
            done: Box::new(|_| ()),
        };
        let before = Instant::now();
        to.blocking_send(entry).unwrap();
        sending += before.elapsed();
    }
    drop(to);
    let path = log.path().to_path_buf();
    assert!(log.join());
    let took = began.elapsed().as_secs_f64();
    let bytes = std::fs::metadata(path).map_or(0, |it| it.len());
    let each = sending.as_nanos() / u128::from(count);
    println!(
        "{count} records in {took:.2} s: {:.0} a second",
        f64::from(u32::try_from(count).unwrap()) / took
    );
    println!(
        "{} bytes a record; sending one took {each} ns, waiting for room in the queue included",
        bytes / count
    );
}

/// One such as a call leaves.
fn record() -> Record {
    Record {
        timestamp: "2026-01-01T00:00:00.000000000Z".to_owned(),
        action: "model-request".to_owned(),
        outcome: "success".to_owned(),
        reason: None,
        duration_ns: Some(812_345_678),
        source_ip: Some("10.20.30.40".to_owned()),
        user_id: Some("0123456789ab".to_owned()),
        role: Some("user".to_owned()),
        identity: None,
        status: Some(200),
        path: Some("/v1/chat/completions".to_owned()),
        request_id: Some("req_01JD8M3V7Q6X9R2T4W8Y0Z1A2B".to_owned()),
        call: Some(Call {
            project: Some("research".to_owned()),
            model: Some("qwen2.5-7b-instruct".to_owned()),
            ending: Ending::Finished,
            stream: true,
            charged: Tokens {
                input: 512,
                output: 256,
            },
            source: Source::Reported,
            reserved: Tokens {
                input: 900,
                output: 2048,
            },
            taken_ns: Some(1_790_000_000_000_000_000),
            replica: Some("http://10.0.0.11:8000".to_owned()),
            attempts: 1,
            first_byte_ns: Some(112_345_678),
            request_bytes: 2048,
            dropped: Vec::new(),
        }),
        act: None,
    }
}
