//! What one decision over six limits costs in memory: `cargo run --profile ci -p gateway --example limits`.
//!
//! Prints nanoseconds for taking a plan and for settling it, by one thread and by all cores on keys of their own and on
//! one that they share. Asserts nothing: a machine that does other things besides prints other figures.

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a bench prints what it measured, and nobody depends on it"
)]

use std::time::Instant;

use gateway::limits::memory::Memory;
use rules::limit::{Amounts, Class, Limit, Plan, Scope, parse_budget, parse_limit};

const ROUNDS: u64 = 400_000;

fn six(key: &str) -> Plan {
    let rate = |text| parse_limit(text).expect("a limit");
    let mut plan = Plan::new();
    plan.add(
        Scope::named(Class::Key, key),
        [
            rate("1000000 requests/minute"),
            Limit::running(1000),
            rate("900000000000 tokens/minute"),
        ],
    );
    plan.add(
        Scope::named(Class::Project, key),
        [
            parse_budget("9000000000000 tokens/month").expect("a budget"),
            rate("900000000000 tokens/day"),
        ],
    );
    plan.add(Scope::named(Class::Role, key), [Limit::running(10_000)]);
    plan.ask(&AMOUNTS);
    plan
}

const AMOUNTS: Amounts = Amounts {
    input: 40,
    output: 60,
    money: 0,
};

fn measure(memory: &Memory, plan: &Plan) -> (u64, u64) {
    let (mut taking, mut settling) = (0, 0);
    let mut now = 1_795_608_000_000_000;
    for _ in 0..ROUNDS / 100 {
        let first = now;
        let begun = Instant::now();
        for _ in 0..100 {
            now += 997;
            let decided = memory.take(plan, now).expect("room");
            assert!(decided.denied.is_none());
        }
        taking += begun.elapsed().as_nanos();
        let begun = Instant::now();
        for n in 0..100 {
            memory.settle(plan, first + 997 * (n + 1), now, &AMOUNTS);
        }
        settling += begun.elapsed().as_nanos();
    }
    let each = |sum: u128| u64::try_from(sum / u128::from(ROUNDS)).unwrap_or(u64::MAX);
    (each(taking), each(settling))
}

fn main() {
    let memory = Memory::default();
    let (take, settle) = measure(&memory, &six("one"));
    println!("one thread: take {take} ns, settle {settle} ns for six limits");
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    for (what, shared) in [("keys of their own", false), ("one key", true)] {
        let memory = &memory;
        let each: Vec<(u64, u64)> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..cores)
                .map(|n| {
                    let name = if shared {
                        "shared".to_owned()
                    } else {
                        format!("k{n}")
                    };
                    scope.spawn(move || measure(memory, &six(&name)))
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("a thread"))
                .collect()
        });
        let (take, settle) = each.into_iter().max().unwrap_or_default();
        println!("{cores} threads, {what}: take {take} ns, settle {settle} ns");
    }
}
