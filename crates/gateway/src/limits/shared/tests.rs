//! The shared store against a real one: the same answers as memory, on a clock of the test; and what becomes of calls
//! while it is away.

use rules::limit::{Class, Limit, parse_budget, parse_limit};
use testkit::redis::{self as servers, Redis};

use super::*;
use crate::limits::memory::Memory;

const S: u64 = 1_000_000;

/// 2026-11-25, a Wednesday, at 12:00 UTC.
const NOON: u64 = 1_795_608_000 * S;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn at(form: Form) -> Address {
    Address {
        form,
        tls: false,
        username: None,
        password: None,
        database: 0,
        authorities: None,
        client: None,
    }
}

fn one(redis: &Redis) -> Address {
    at(Form::One("127.0.0.1".to_owned(), redis.port))
}

fn id(n: u64) -> RequestId {
    let mut random = [0_u8; 10];
    for (to, from) in random.iter_mut().zip(n.to_be_bytes()) {
        *to = from;
    }
    RequestId::new(1, random)
}

fn scope(name: &str) -> Scope {
    Scope::named(Class::Key, name)
}

fn plan(of: &[(Scope, Limit)], amounts: &Amounts) -> Plan {
    let mut plan = Plan::new();
    for (scope, limit) in of {
        plan.add(*scope, [*limit]);
    }
    plan.ask(amounts);
    plan
}

fn tokens(input: u64, output: u64) -> Amounts {
    Amounts {
        input,
        output,
        money: 3 * input + 7 * output,
    }
}

/// A server, asked with the time of the test.
struct Asked {
    runtime: tokio::runtime::Runtime,
    link: Link,
    names: Names,
}

impl Asked {
    fn new(address: &Address) -> Self {
        let runtime = runtime();
        let link = runtime.block_on(Link::open(address)).unwrap();
        Self {
            runtime,
            link,
            names: Names::new("guan"),
        }
    }

    fn act(&mut self, act: Act, id: u64, plan: &Plan, now: u64) -> ::redis::Value {
        let day = Duration::from_hours(24 * 365);
        let cmd = words::on_plan(&self.names, act, &self::id(id), plan, (now, day));
        self.runtime.block_on(self.link.ask(&cmd)).unwrap()
    }

    fn verdict(&mut self, act: Act, id: u64, plan: &Plan, now: u64) -> Verdict {
        let answer = self.act(act, id, plan, now);
        words::read(plan, &answer).unwrap_or_else(|| panic!("{answer:?}"))
    }
}

/// Small numbers from a seed: a failing run can be had again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

struct Running {
    id: u64,
    plan: Plan,
    taken: u64,
    reserved: Amounts,
}

const MENU: [&str; 12] = [
    "10 requests/minute",
    "7 requests/second",
    "600 requests/hour burst 3",
    "10 requests/minute sliding",
    "500 requests/hour sliding",
    "100 tokens/minute",
    "1000 tokens/hour",
    "60 output_tokens/second",
    "300 input_tokens/minute",
    "5000 tokens/day",
    "3 running",
    "9 running",
];

const BUDGETS: [&str; 4] = [
    "3000 tokens/day",
    "9000 tokens/week",
    "0.05 money/month",
    "20000 tokens/month",
];

fn any_limit(dice: &mut Dice) -> Limit {
    let n = dice.roll(16);
    let pick = |list: &[&'static str]| list[usize::try_from(n).unwrap() % list.len()];
    if n >= 12 {
        return parse_budget(pick(&BUDGETS)).unwrap();
    }
    match pick(&MENU).strip_suffix(" running") {
        Some(size) => Limit::running(size.parse().unwrap()),
        None => parse_limit(pick(&MENU)).unwrap(),
    }
}

/// Random calls of three callers in two projects, with random endings, some long after. Each step is done on both, and
/// both must say the same; and no limit is ever passed.
#[test]
fn memory_and_redis_agree_step_by_step() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let mut asked = Asked::new(&one(&redis));
    let seeds = match std::env::var("GUAN_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (1..=12).collect::<Vec<u64>>(),
    };
    let mut steps = 0;
    for seed in seeds {
        redis.says(&["FLUSHALL"]);
        steps += agree(&mut asked, seed);
    }
    println!("{steps} steps");
    // Whatever was done, nothing stays for ever.
    for key in redis.says(&["KEYS", "*"]).lines() {
        let ttl: i64 = redis.says(&["PTTL", key]).parse().unwrap();
        assert!(ttl > 0, "{key} {ttl}");
    }
}

fn agree(asked: &mut Asked, seed: u64) -> u64 {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let memory = Memory::default();
    let holders: Vec<(Scope, Vec<Limit>)> = ["a", "b", "c", "p", "q", "role"]
        .iter()
        .map(|name| {
            let count = 1 + dice.roll(3);
            (
                scope(name),
                (0..count).map(|_| any_limit(&mut dice)).collect(),
            )
        })
        .collect();
    let mut running: Vec<Running> = Vec::new();
    let mut now = NOON + dice.roll(86_400) * S;
    let steps = 400;
    for step in 0..steps {
        let what = format!("seed {seed} step {step}");
        now += match dice.roll(12) {
            0 => dice.roll(3600) * S,
            1..=4 => dice.roll(10 * S),
            5 => 86_400 * S * dice.roll(3),
            _ => dice.roll(100_000),
        };
        if dice.roll(5) < 2 && !running.is_empty() {
            let which = usize::try_from(dice.roll(running.len() as u64)).unwrap();
            let call = running.swap_remove(which);
            // Sometimes more than was reserved, as an upstream may report.
            let cost =
                |reserved: u64, dice: &mut Dice| dice.roll(reserved + 1) + dice.roll(9) / 8 * 7;
            let actual = tokens(
                cost(call.reserved.input, &mut dice),
                cost(call.reserved.output, &mut dice),
            );
            memory.settle(&call.plan, call.taken, now, &actual);
            asked.act(Act::Settle(actual), call.id, &call.plan, now);
            assert_eq!(
                memory.look(&call.plan, now),
                asked.verdict(Act::Look, 0, &call.plan, now).standings,
                "{what}: settled"
            );
            continue;
        }
        let caller = usize::try_from(dice.roll(3)).unwrap();
        let project = 3 + usize::try_from(dice.roll(2)).unwrap();
        let reserved = tokens(1 + dice.roll(60), 1 + dice.roll(60));
        let mut whole = Plan::new();
        for (scope, limits) in [&holders[caller], &holders[project], &holders[5]] {
            whole.add(*scope, limits.iter().copied());
        }
        whole.ask(&reserved);
        let verdict = asked.verdict(Act::Take, step + 1, &whole, now);
        let decided = memory.take(&whole, now).unwrap();
        assert_eq!(decided.denied, verdict.denied, "{what}");
        assert_eq!(memory.look(&whole, now), verdict.standings, "{what}");
        assert_eq!(decided.told, verdict.told(&whole), "{what}");
        assert_eq!(verdict.at, now);
        if verdict.denied.is_none() {
            running.push(Running {
                id: step + 1,
                plan: whole,
                taken: now,
                reserved,
            });
        }
    }
    // All calls end, and after the longest window everything is free again.
    for call in running {
        memory.settle(&call.plan, call.taken, now, &call.reserved);
        asked.act(Act::Settle(call.reserved), call.id, &call.plan, now);
    }
    all_is_free_at_last(asked, &memory, &holders, now, seed);
    steps
}

fn all_is_free_at_last(
    asked: &mut Asked,
    memory: &Memory,
    holders: &[(Scope, Vec<Limit>)],
    now: u64,
    seed: u64,
) {
    for (scope, limits) in holders {
        let mut all = Plan::new();
        all.add(*scope, limits.iter().copied());
        assert_eq!(
            memory.look(&all, now),
            asked.verdict(Act::Look, 0, &all, now).standings,
            "seed {seed}: the end"
        );
        let later = now + 32 * 86_400 * S;
        for standing in asked.verdict(Act::Look, 0, &all, later).standings {
            assert_eq!(standing.remaining, standing.limit, "seed {seed}");
        }
    }
}

#[test]
fn an_end_is_done_once_and_a_decision_that_nobody_wants_is_never_made() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let mut asked = Asked::new(&one(&redis));
    let limits = [
        (scope("a"), Limit::per_minute(10)),
        (scope("a"), Limit::running(2)),
        (scope("a"), parse_limit("100 tokens/minute").unwrap()),
        (scope("a"), parse_budget("1000 tokens/day").unwrap()),
    ];
    let reserved = plan(&limits, &tokens(10, 50));
    let before = asked.verdict(Act::Look, 0, &reserved, NOON);
    // Taken back: as if it had never been.
    asked.verdict(Act::Take, 1, &reserved, NOON);
    asked.act(Act::Cancel, 1, &reserved, NOON);
    let after = asked.verdict(Act::Look, 0, &reserved, NOON);
    assert_eq!(after.standings, before.standings);
    // Taken back before it arrives: it finds that it isn't wanted.
    asked.act(Act::Cancel, 2, &reserved, NOON);
    let late = asked.act(Act::Take, 2, &reserved, NOON);
    assert_eq!(words::read(&reserved, &late), None);
    let after = asked.verdict(Act::Look, 0, &reserved, NOON);
    assert_eq!(after.standings, before.standings);
    // Settled twice: once.
    asked.verdict(Act::Take, 3, &reserved, NOON);
    for _ in 0..2 {
        asked.act(Act::Settle(tokens(10, 5)), 3, &reserved, NOON);
    }
    let left = asked.verdict(Act::Look, 0, &reserved, NOON);
    let left: Vec<u64> = left.standings.iter().map(|s| s.remaining).collect();
    assert_eq!(left, [9, 2, 85, 985]);
}

#[test]
fn a18_a_forgotten_script_is_told_again_and_no_key_stays_for_ever() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let mut asked = Asked::new(&one(&redis));
    for n in 0..100 {
        redis.says(&["SCRIPT", "FLUSH"]);
        let limits = [
            (scope(&format!("{}", n % 7)), Limit::per_minute(10)),
            (
                scope("role"),
                parse_limit("9 requests/hour sliding").unwrap(),
            ),
            (scope("node"), Limit::running(3)),
            (scope("p"), parse_budget("50 tokens/week").unwrap()),
        ];
        let one = plan(&limits, &tokens(1, 1));
        asked.verdict(Act::Take, n + 1, &one, 0);
    }
    let keys = redis.says(&["KEYS", "*"]);
    assert!(keys.lines().count() > 4, "{keys}");
    for key in keys.lines() {
        let ttl: i64 = redis.says(&["PTTL", key]).parse().unwrap();
        assert!(ttl > 0, "{key} {ttl}");
    }
}

#[test]
fn what_a_server_lost_of_a_running_call_is_charged_and_frees_nothing_of_others() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let mut asked = Asked::new(&one(&redis));
    let limits = [
        (scope("a"), Limit::running(2)),
        (scope("a"), parse_limit("100 tokens/minute").unwrap()),
        (scope("a"), parse_budget("1000 tokens/day").unwrap()),
    ];
    let reserved = plan(&limits, &tokens(10, 30));
    asked.verdict(Act::Take, 1, &reserved, 0);
    redis.says(&["FLUSHALL"]);
    let held = words::held(&asked.names, &reserved);
    let again = words::renew(&asked.names, &id(1), &held, LEASE);
    asked.runtime.block_on(asked.link.ask(&again)).unwrap();
    asked.verdict(Act::Take, 2, &reserved, 0);
    let left = |asked: &mut Asked| -> Vec<u64> {
        let standing = asked.verdict(Act::Look, 0, &reserved, 0);
        standing.standings.iter().map(|s| s.remaining).collect()
    };
    assert_eq!(left(&mut asked), [0, 60, 960]);
    asked.act(Act::Settle(tokens(10, 5)), 1, &reserved, 0);
    assert_eq!(left(&mut asked), [1, 45, 945]);
    asked.act(Act::Settle(tokens(10, 5)), 2, &reserved, 0);
    assert_eq!(left(&mut asked), [2, 70, 970]);
}

#[test]
fn leases_end_with_whoever_held_them() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let mut asked = Asked::new(&one(&redis));
    let place = |name: &str| plan(&[(scope(name), Limit::running(1))], &Amounts::default());
    let (one, other) = (place("a"), place("b"));
    let short = Duration::from_millis(200);
    let mut count = 0;
    let mut take = |asked: &mut Asked, plan: &Plan| {
        count += 1;
        let cmd = words::on_plan(&asked.names, Act::Take, &id(count), plan, (0, short));
        let answer = asked.runtime.block_on(asked.link.ask(&cmd)).unwrap();
        let verdict = words::read(plan, &answer).unwrap();
        verdict.denied.is_none().then_some(count)
    };
    assert!(take(&mut asked, &one).is_some());
    assert!(take(&mut asked, &one).is_none());
    // Nobody renews it.
    let n = loop {
        if let Some(n) = take(&mut asked, &one) {
            break n;
        }
    };
    // What runs longer than its lease is renewed: another lease begins and ends meanwhile.
    let held = words::held(&asked.names, &one);
    let again = words::renew(&asked.names, &id(n), &held, Duration::from_mins(1));
    asked.runtime.block_on(asked.link.ask(&again)).unwrap();
    assert!(take(&mut asked, &other).is_some());
    while take(&mut asked, &other).is_none() {}
    assert!(take(&mut asked, &one).is_none());
}

#[test]
fn a18_a_cluster_keeps_all_limits_of_a_call_together_also_while_their_slot_moves() {
    let Some(nodes) = servers::cluster() else {
        return;
    };
    let seats = nodes.iter().map(|n| ("127.0.0.1".to_owned(), n.port));
    let mut asked = Asked::new(&at(Form::Cluster(seats.collect())));
    let limits = [
        (scope("a"), Limit::per_minute(1000)),
        (
            scope("role"),
            parse_limit("50 requests/hour sliding").unwrap(),
        ),
        (scope("p"), parse_budget("50000 tokens/week").unwrap()),
    ];
    let one = plan(&limits, &tokens(1, 1));
    let slot = nodes[0].says(&["CLUSTER", "KEYSLOT", "{guan}:x"]);
    let home = |key: &str| nodes.iter().position(|n| n.says(&["EXISTS", key]) == "1");
    let key = asked.names.cell(&one.demands()[0]);
    let mut passed = 0;
    for n in 0..30 {
        let verdict = asked.verdict(Act::Take, n + 1, &one, NOON);
        passed += u64::from(verdict.denied.is_none());
        if n == 10 {
            move_slot(&nodes, home(&key).unwrap(), &slot);
        }
    }
    for n in 30..100 {
        let verdict = asked.verdict(Act::Take, n + 1, &one, NOON);
        passed += u64::from(verdict.denied.is_none());
    }
    assert_eq!(passed, 50);
}

/// To the next node, key by key, as `redis-cli --cluster reshard` does.
fn move_slot(nodes: &[Redis], from: usize, slot: &str) {
    let to = (from + 1) % nodes.len();
    let name = |node: &Redis| node.says(&["CLUSTER", "MYID"]);
    let (source, target) = (name(&nodes[from]), name(&nodes[to]));
    let ok = |said: String| assert!(said.contains("OK"), "{said}");
    ok(nodes[to].says(&["CLUSTER", "SETSLOT", slot, "IMPORTING", &source]));
    ok(nodes[from].says(&["CLUSTER", "SETSLOT", slot, "MIGRATING", &target]));
    let keys = nodes[from].says(&["CLUSTER", "GETKEYSINSLOT", slot, "1000"]);
    let port = nodes[to].port.to_string();
    for key in keys.lines() {
        ok(nodes[from].says(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]));
    }
    for node in [to, from] {
        ok(nodes[node].says(&["CLUSTER", "SETSLOT", slot, "NODE", &target]));
    }
}
