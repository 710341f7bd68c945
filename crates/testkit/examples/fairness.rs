//! How much a batch tenant with hundreds of waiting calls holds up a chat tenant: the chat's time to first token with
//! and without it, in front of a model server with a fixed service time.
//!
//! `cargo build --profile ci --bins && cargo run --profile ci -p testkit --example fairness`; the ratio is what counts.
#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a bench sleeps as its load does, and ends where it can't go on"
)]

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use testkit::client::Client;
use testkit::server::{Guan, in_front_of};
use testkit::upstream::{Answer, Received, Upstream};

const PLACES: usize = 8;
const SERVICE: Duration = Duration::from_millis(200);
const BATCH: usize = 100;
const CALLS: usize = 100;
const STREAM: &str =
    r#"{"model":"m","stream":true,"max_tokens":50,"messages":[{"role":"user","content":"hi"}]}"#;
const CHUNK: &str = r#"{"id":"c","object":"chat.completion.chunk","created":1,"model":"u","choices":[{"index":0,"delta":{"content":"ok"},"finish_reason":"stop"}]}"#;

fn serve(_request: &Received, answer: &mut Answer<'_>) {
    std::thread::sleep(SERVICE);
    answer.sse();
    answer.event(CHUNK);
    answer.event("[DONE]");
    answer.end();
}

/// Times to the first event of a chat's calls, sorted.
fn chat(client: &Client) -> Vec<Duration> {
    let mut times: Vec<Duration> = (0..CALLS)
        .map(|_| {
            std::thread::sleep(Duration::from_millis(30));
            let mut connection = client.connect().expect("a connection");
            let asked = Instant::now();
            connection.write(client.request("POST", "/v1/chat/completions", "", Some(STREAM)));
            assert_eq!(connection.head().status, 200, "a chat call is answered");
            connection.chunk();
            asked.elapsed()
        })
        .collect();
    times.sort_unstable();
    times
}

fn main() -> std::io::Result<()> {
    let here = std::env::current_exe()?;
    let folder = here.parent().and_then(|examples| examples.parent());
    let binary = folder.expect("a target folder").join("guan");
    let upstream = Upstream::start(serve);
    let config = in_front_of(&upstream.url())
        + &format!(
            "concurrency = {PLACES}\n\n[roles.fast]\nrequests_per_minute = 1000000\nmax_output_tokens = 100\n"
        );
    let guan = Guan::start(&binary, &config);
    let (people, batch) = (guan.caller("fast"), guan.caller("fast"));
    let alone = chat(&people);
    let stop = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..BATCH)
        .map(|_| {
            let (batch, stop) = (batch.clone(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut served = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    served += u64::from(batch.chat(STREAM).status == 200);
                }
                served
            })
        })
        .collect();
    std::thread::sleep(SERVICE * 4);
    let beside = chat(&people);
    stop.store(true, Ordering::Relaxed);
    let served: u64 = workers.into_iter().filter_map(|w| w.join().ok()).sum();
    let at = |times: &[Duration], percent: usize| {
        times[(times.len() * percent / 100).min(times.len() - 1)]
    };
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{PLACES} places, {} ms a call, {BATCH} batch calls waiting or running all the time ({served} served)",
        SERVICE.as_millis()
    )?;
    for percent in [50, 95] {
        let (alone, beside) = (at(&alone, percent), at(&beside, percent));
        writeln!(
            out,
            "time to first token, p{percent}: {} ms alone, {} ms beside the batch, ratio {:.2}",
            alone.as_millis(),
            beside.as_millis(),
            beside.as_secs_f64() / alone.as_secs_f64()
        )?;
    }
    Ok(())
}
