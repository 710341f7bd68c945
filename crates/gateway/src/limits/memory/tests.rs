//! The limits of one node, by threads and on a clock of the test.

use rules::key::KeyId;
use rules::limit::{Class, parse_budget, parse_limit};

use super::*;

const S: u64 = 1_000_000;

fn key() -> Scope {
    Scope::caller(KeyId::parse("abcdefghijkl").unwrap().into())
}

fn plan(of: &[(Scope, Limit)], amounts: &Amounts) -> Plan {
    let mut plan = Plan::new();
    for (scope, limit) in of {
        plan.add(*scope, [*limit]);
    }
    plan.ask(amounts);
    plan
}

fn take(memory: &Memory, plan: &Plan, now: u64) -> Result<Told, Refusal> {
    let decided = memory.take(plan, now)?;
    decided
        .denied
        .map_or(Ok(decided.told), |denied| Err(Refusal::Limit(denied)))
}

fn denied(refusal: Refusal) -> Denied {
    match refusal {
        Refusal::Limit(denied) => denied,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a10_two_hundred_threads_take_exactly_the_limit() {
    let memory = Memory::default();
    let limit = parse_limit("10 requests/hour").unwrap();
    let role = Scope::named(Class::Role, "user");
    let shared = parse_limit("1000 requests/minute").unwrap();
    // Half of them name the scopes the other way round: no order of theirs may block the other half.
    let plans = [
        plan(&[(key(), limit), (role, shared)], &Amounts::default()),
        plan(&[(role, shared), (key(), limit)], &Amounts::default()),
    ];
    let passed: usize = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..200)
            .map(|n| {
                let (memory, plan) = (&memory, &plans[n % 2]);
                scope.spawn(move || usize::from(take(memory, plan, 3600 * S).is_ok()))
            })
            .collect();
        tries.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(passed, 10);
    let standing = memory.look(&plans[0], 3600 * S);
    assert_eq!((standing[0].remaining, standing[1].remaining), (0, 990));
}

#[test]
fn all_limits_of_a_call_are_taken_or_none_and_the_longest_wait_is_told() {
    let memory = Memory::default();
    let project = Scope::named(Class::Project, "p");
    let limits = [
        (key(), Limit::per_minute(10)),
        (key(), Limit::running(4)),
        (project, parse_limit("100 tokens/minute").unwrap()),
        (project, parse_limit("3 requests/hour sliding").unwrap()),
    ];
    let amounts = |output| Amounts {
        input: 10,
        output,
        money: 0,
    };
    let small = plan(&limits, &amounts(10));
    let large = plan(&limits, &amounts(80));
    let now = 100_000 * S;
    take(&memory, &small, now).unwrap();
    let before = memory.look(&small, now);
    let token_rate = denied(take(&memory, &large, now).unwrap_err());
    assert_eq!(
        (token_rate.class, token_rate.asked, token_rate.used),
        (Class::Project, 90, 20)
    );
    assert_eq!(memory.look(&small, now), before, "nothing was taken");
    take(&memory, &small, now).unwrap();
    take(&memory, &small, now).unwrap();
    let both = denied(take(&memory, &large, now).unwrap_err());
    assert_eq!(
        both.retry,
        Duration::from_secs(3600),
        "the hour, not the minute"
    );
    assert_eq!(memory.look(&small, now)[1].remaining, 1);
    for _ in 0..3 {
        memory.settle(&small, now, now, &amounts(5));
    }
    let after = memory.look(&small, now);
    assert_eq!((after[1].remaining, after[2].remaining), (4, 55));
}

#[test]
fn a_rebuilt_limiter_still_refuses_who_had_used_up_his_minute() {
    let memory = Memory::default();
    let limits = [(key(), Limit::per_minute(10))];
    let one = plan(&limits, &Amounts::default());
    for i in 0..10 {
        memory.replay(&one, 100 * S + i);
    }
    assert!(take(&memory, &one, 101 * S).is_err());
    assert!(take(&memory, &one, 107 * S).is_ok());
}

#[test]
fn a_budget_starts_from_what_the_store_knows() {
    let memory = Memory::default();
    let limits = [(key(), parse_budget("1000 tokens/day").unwrap())];
    let ask = |n| {
        plan(
            &limits,
            &Amounts {
                input: n,
                ..Amounts::default()
            },
        )
    };
    memory.spent(&ask(950), 50 * S);
    let refused = take(&memory, &ask(60), 50 * S).unwrap_err();
    assert_eq!(refused.answer().code.as_deref(), Some("insufficient_quota"));
    assert_eq!(refused.answer().should_retry, Some(false));
    assert!(take(&memory, &ask(50), 50 * S).is_ok());
}

#[test]
fn scopes_at_rest_are_forgotten_and_there_is_an_end() {
    let memory = Memory::default();
    let limit = Limit::per_minute(10);
    let one = |n: u32| {
        let scope = Scope::named(Class::Key, &n.to_string());
        plan(&[(scope, limit)], &Amounts::default())
    };
    // Who holds something stays, whoever comes.
    let running = plan(&[(key(), Limit::running(1))], &Amounts::default());
    take(&memory, &running, S).unwrap();
    // A thousand a minute, each with one call: a bucket of ten a minute is full again after six seconds.
    for n in 0..200_000 {
        take(&memory, &one(n), S + u64::from(n) * 60_000).unwrap();
    }
    assert!(memory.len() <= 2 * SHARDS * SWEEP, "{}", memory.len());
    assert!(take(&memory, &running, 20_000 * S).is_err());
    let full = (0..2_000_000).any(|n| take(&memory, &one(n), 1 << 50).is_err());
    assert!(full && memory.len() <= SHARDS * MOST);
}
