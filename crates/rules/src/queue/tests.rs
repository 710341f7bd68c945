//! Shares, bounds, and a seeded simulation of many comings and goings.

use super::*;

fn ask(tenant: &'static str, tokens: u64) -> Ask<&'static str> {
    Ask {
        tenant,
        caller: tenant,
        tokens,
        weight: 1,
    }
}

const LONG: Duration = Duration::from_secs(100_000);

/// A patient call comes, and nobody else may start by that.
fn enter(queue: &mut Queue<&'static str>, ask: Ask<&'static str>, at: u64) -> Entered {
    let mut others = Vec::new();
    let entered = queue.enter(ask, LONG, at, &mut others);
    assert!(others.is_empty(), "{others:?}");
    entered
}

fn started(queue: &mut Queue<&'static str>, ask: Ask<&'static str>, at: u64) -> Ticket {
    let entered = enter(queue, ask, at);
    let Entered::Started(ticket) = entered else {
        panic!("{entered:?}");
    };
    ticket
}

fn waits(queue: &mut Queue<&'static str>, ask: Ask<&'static str>, at: u64) -> Ticket {
    let entered = enter(queue, ask, at);
    let Entered::Waiting {
        ticket,
        instead: None,
    } = entered
    else {
        panic!("{entered:?}");
    };
    ticket
}

/// Who gets the next place when one call ends.
fn next(queue: &mut Queue<&'static str>, ended: Ticket, at: u64) -> Vec<Ticket> {
    let mut started = Vec::new();
    queue.leave(ended, Left::Unknown, at, &mut started);
    started
}

#[test]
fn a_tenant_with_five_hundred_waiting_calls_does_not_hold_up_another() {
    let mut queue = Queue::new(2, 1000);
    let first = started(&mut queue, ask("batch", 100), 0);
    started(&mut queue, ask("batch", 100), 0);
    for _ in 0..500 {
        waits(&mut queue, ask("batch", 100), 0);
    }
    let chat = waits(&mut queue, ask("chat", 100), 10);
    assert_eq!(queue.place(chat).unwrap().position, 2);
    assert_eq!(next(&mut queue, first, 20), [chat]);
}

#[test]
fn token_seconds_are_shared_not_calls() {
    let mut queue = Queue::new(1, 1000);
    let mut running = started(&mut queue, ask("other", 1), 0);
    let mut tickets = HashMap::new();
    for _ in 0..300 {
        tickets.insert(waits(&mut queue, ask("large", 1000), 0), "large");
        tickets.insert(waits(&mut queue, ask("small", 100), 0), "small");
    }
    let mut served: HashMap<&str, u32> = HashMap::new();
    for n in 1..=220 {
        running = next(&mut queue, running, n * 1000)[0];
        *served.entry(tickets[&running]).or_default() += 1;
    }
    let (large, small) = (served["large"], served["small"]);
    assert!((19..=21).contains(&large), "{large} large, {small} small");
}

#[test]
fn what_a_call_really_took_is_what_counts() {
    // Both ask for the same; one holds its places ten times as long.
    let mut queue = Queue::new(2, 1000);
    let (mut at, mut ends) = (0, BTreeMap::new());
    let mut owner = HashMap::new();
    let enter = |queue: &mut Queue<&'static str>, who, at| match enter(queue, ask(who, 10), at) {
        Entered::Started(t) => (t, true, who),
        Entered::Waiting { ticket, .. } => (ticket, false, who),
        other @ (Entered::TooLate(_) | Entered::Full { .. }) => panic!("{other:?}"),
    };
    let lasts = |who| if who == "slow" { 1000 } else { 100 };
    for _ in 0..400 {
        for who in ["slow", "fast"] {
            let (ticket, runs, who) = enter(&mut queue, who, at);
            owner.insert(ticket, who);
            if runs {
                ends.insert((at + lasts(who), ticket), who);
            }
        }
    }
    let mut held: HashMap<&str, u64> = HashMap::new();
    let mut served = HashMap::<&str, u32>::new();
    while served.values().sum::<u32>() < 300 {
        let ((end, ticket), who) = ends.pop_first().unwrap();
        at = end;
        *held.entry(who).or_default() += lasts(who);
        *served.entry(who).or_default() += 1;
        for next in next(&mut queue, ticket, at) {
            let who = owner[&next];
            ends.insert((at + lasts(who), next), who);
        }
    }
    let ratio = held["slow"] as f64 / held["fast"] as f64;
    assert!((0.8..1.25).contains(&ratio), "{held:?} {served:?}");
}

#[test]
fn a_weight_of_three_gets_three_times_as_much_and_callers_share_their_tenants_part() {
    let mut queue = Queue::new(1, 1000);
    let mut running = started(&mut queue, ask("other", 1), 0);
    let mut tickets = HashMap::new();
    for _ in 0..200 {
        let heavy = Ask {
            weight: 3,
            ..ask("heavy", 10)
        };
        tickets.insert(waits(&mut queue, heavy, 0), "heavy");
        for caller in ["one", "two"] {
            let light = Ask {
                caller,
                ..ask("light", 10)
            };
            tickets.insert(waits(&mut queue, light, 0), caller);
        }
    }
    let mut served: HashMap<&str, u32> = HashMap::new();
    for n in 1..=160 {
        running = next(&mut queue, running, n * 1000)[0];
        *served.entry(tickets[&running]).or_default() += 1;
    }
    assert!((118..=122).contains(&served["heavy"]), "{served:?}");
    assert!(served["one"].abs_diff(served["two"]) <= 2, "{served:?}");
}

#[test]
fn having_been_away_gains_nothing() {
    let mut queue = Queue::new(1, 1000);
    let mut running = started(&mut queue, ask("a", 10), 0);
    let mut tickets = HashMap::new();
    for _ in 0..100 {
        tickets.insert(waits(&mut queue, ask("a", 10), 0), "a");
    }
    for n in 1..=50 {
        running = next(&mut queue, running, n * 1000)[0];
    }
    for _ in 0..50 {
        tickets.insert(waits(&mut queue, ask("b", 10), 50_000), "b");
    }
    let mut served: HashMap<&str, u32> = HashMap::new();
    for n in 51..=70 {
        running = next(&mut queue, running, n * 1000)[0];
        *served.entry(tickets[&running]).or_default() += 1;
    }
    assert!(served["a"].abs_diff(served["b"]) <= 2, "{served:?}");
}

#[test]
fn a_quarter_is_kept_for_who_was_here_a_moment_ago_and_only_so_long() {
    let mut queue = Queue::new(8, 100);
    let chat = started(&mut queue, ask("chat", 10), 0);
    assert!(next(&mut queue, chat, 100).is_empty());
    let mut tickets = Vec::new();
    for _ in 0..7 {
        tickets.push(started(&mut queue, ask("batch", 10), 200));
    }
    let waiting = waits(&mut queue, ask("batch", 10), 200);
    // The place is there for whom it is kept.
    let chat = started(&mut queue, ask("chat", 10), 300);
    assert!(next(&mut queue, chat, 400).is_empty());
    // Ten seconds later it is anybody's.
    let began = next(&mut queue, tickets[0], 10_500);
    assert_eq!(began, [waiting]);
    started(&mut queue, ask("batch", 10), 10_500);
    assert_eq!(queue.running(), 8);
}

#[test]
fn a_place_that_was_kept_goes_to_who_waits_when_its_time_is_over() {
    for by_tick in [true, false] {
        let mut queue = Queue::new(8, 100);
        let chat = started(&mut queue, ask("chat", 10), 0);
        assert!(next(&mut queue, chat, 100).is_empty());
        for _ in 0..7 {
            started(&mut queue, ask("batch", 10), 200);
        }
        let waiting = waits(&mut queue, ask("batch", 10), 200);
        let mut began = Vec::new();
        queue.tick(10_100, &mut began);
        assert!(began.is_empty(), "{began:?}");
        if by_tick {
            queue.tick(10_101, &mut began);
        } else {
            queue.enter(ask("batch", 10), LONG, 10_101, &mut began);
        }
        assert_eq!(began, [waiting]);
    }
}

#[test]
fn who_comes_often_pushes_nobody_out_of_memory() {
    let mut queue = Queue::new(8, 1000);
    let chat = started(&mut queue, ask("chat", 10), 0);
    assert!(next(&mut queue, chat, 0).is_empty());
    for n in 0..200 {
        for who in ["a", "b"] {
            let one = started(&mut queue, ask(who, 10), n);
            assert!(next(&mut queue, one, n).is_empty());
        }
    }
    for _ in 0..6 {
        started(&mut queue, ask("batch", 10), 300);
    }
    // Places for two of the three that were here.
    waits(&mut queue, ask("batch", 10), 300);
    started(&mut queue, ask("a", 10), 300);
    started(&mut queue, ask("chat", 10), 300);
}

/// Serves `count` calls of those that wait, each for a second and each with what `left` says; who got how many.
fn serve<'a>(
    queue: &mut Queue<&'static str>,
    running: &mut VecDeque<Ticket>,
    owners: &HashMap<Ticket, &'a str>,
    at: &mut u64,
    (count, left): (usize, Left),
) -> HashMap<&'a str, u32> {
    let mut served = HashMap::new();
    for _ in 0..count {
        *at += 250;
        let mut began = Vec::new();
        queue.leave(running.pop_front().unwrap(), left, *at, &mut began);
        for ticket in began {
            *served.entry(owners[&ticket]).or_default() += 1;
            running.push_back(ticket);
        }
    }
    served
}

#[test]
fn estimates_a_hundred_times_too_high_neither_starve_nor_favour_who_comes_late() {
    let mut queue = Queue::new(4, 10_000);
    let (mut owners, mut running, mut at) = (HashMap::new(), VecDeque::new(), 0);
    for _ in 0..4 {
        running.push_back(started(&mut queue, ask("early", 10_000), 0));
    }
    for _ in 0..1000 {
        owners.insert(waits(&mut queue, ask("early", 10_000), 0), "early");
    }
    let real = Left::Held(100);
    serve(&mut queue, &mut running, &owners, &mut at, (200, real));
    for _ in 0..1000 {
        owners.insert(waits(&mut queue, ask("late", 10_000), at), "late");
    }
    for _ in 0..5 {
        let served = serve(&mut queue, &mut running, &owners, &mut at, (40, real));
        assert!(served["early"].abs_diff(served["late"]) <= 6, "{served:?}");
    }
}

#[test]
fn a_weight_that_changes_while_a_call_runs_gives_back_what_was_charged() {
    let mut queue = Queue::new(2, 100);
    started(&mut queue, ask("other", 1), 0);
    // Charged in full, with weight 1; another key of the project has weight 1000.
    let first = started(&mut queue, ask("mixed", 1000), 0);
    waits(&mut queue, ask("other", 1), 0);
    let heavy = Ask {
        weight: 1000,
        caller: "key",
        ..ask("mixed", 1000)
    };
    waits(&mut queue, heavy, 0);
    queue.leave(first, Left::Held(1000), 1000, &mut Vec::new());
    let share = queue.tenants["mixed"].share;
    assert_eq!(share.settled, 1_000_000);
    assert_eq!(share.outstanding, 0, "the other one took the place");
}

#[test]
fn one_key_can_not_fill_its_projects_line() {
    let mut queue = Queue::new(1, 4);
    started(&mut queue, ask("other", 10), 0);
    let of = |caller| Ask {
        caller,
        ..ask("project", 10)
    };
    let heap: Vec<_> = (0..4).map(|_| waits(&mut queue, of("script"), 0)).collect();
    let instead = |entered| {
        let Entered::Waiting { instead, .. } = entered else {
            panic!("{entered:?}");
        };
        instead
    };
    assert_eq!(
        enter(&mut queue, of("script"), 0),
        Entered::Full { own: true }
    );
    assert_eq!(instead(enter(&mut queue, of("person"), 0)), Some(heap[3]));
    // Two against one: nobody is longer by more than one after the next.
    assert_eq!(instead(enter(&mut queue, of("person"), 0)), Some(heap[2]));
    assert_eq!(
        enter(&mut queue, of("person"), 0),
        Entered::Full { own: true }
    );
    // Nothing of a third and a fourth one waits, so a call of the others makes room for each.
    assert!(instead(enter(&mut queue, of("third"), 0)).is_some());
    assert!(instead(enter(&mut queue, of("fourth"), 0)).is_some());
    assert_eq!(
        enter(&mut queue, of("fifth"), 0),
        Entered::Full { own: false }
    );
    let other = instead(enter(&mut queue, ask("other", 10), 0));
    assert!(other.is_some(), "another tenant's first call finds room");
}

#[test]
fn who_would_start_too_late_pushes_nobody_out() {
    let mut queue = Queue::new(1, 3);
    let first = started(&mut queue, ask("batch", 10), 0);
    let heap: Vec<_> = (0..3)
        .map(|_| waits(&mut queue, ask("batch", 10), 0))
        .collect();
    let short = Duration::from_millis(1999);
    let entered = queue.enter(ask("chat", 10), short, 0, &mut Vec::new());
    assert_eq!(entered, Entered::TooLate(Duration::from_secs(2)));
    assert!(heap.iter().all(|ticket| queue.place(*ticket).is_some()));
    assert_eq!(
        (queue.waiting(), queue.place(heap[2]).unwrap().position),
        (3, 3)
    );
    assert_eq!(next(&mut queue, first, 100), [heap[0]]);
    assert_eq!(next(&mut queue, heap[0], 200), [heap[1]]);
    assert_eq!(next(&mut queue, heap[1], 300), [heap[2]]);
}

#[test]
fn a_call_that_hung_or_never_went_on_does_not_change_what_waiting_ones_are_told() {
    let mut queue = Queue::new(1, 10);
    for n in 0..100 {
        let one = started(&mut queue, ask("a", 10), n * 1000);
        queue.leave(one, Left::Held(5), n * 1000 + 100, &mut Vec::new());
    }
    let told = queue.wait_of_next();
    assert!(told < Duration::from_millis(120), "{told:?}");
    for n in 0..100 {
        let one = started(&mut queue, ask("a", 10), 100_000 + n);
        queue.leave(one, Left::Unused, 100_000 + n, &mut Vec::new());
    }
    assert_eq!(queue.wait_of_next(), told);
    let hung = started(&mut queue, ask("a", 10), 200_000);
    queue.leave(hung, Left::Held(5), 3_800_000, &mut Vec::new());
    assert!(
        queue.wait_of_next() < told * 2,
        "{:?}",
        queue.wait_of_next()
    );
}

#[test]
fn who_never_went_on_pays_nothing() {
    let mut queue = Queue::new(2, 10);
    started(&mut queue, ask("other", 1), 0);
    let one = started(&mut queue, ask("a", 1000), 0);
    queue.leave(one, Left::Unused, 5000, &mut Vec::new());
    assert_eq!(queue.tenants["a"].share.tag(), 0);
}

#[test]
fn a_full_line_takes_from_the_longest_and_refuses_only_him() {
    let mut queue = Queue::new(1, 4);
    started(&mut queue, ask("batch", 10), 0);
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.push(waits(&mut queue, ask("batch", 10), 0));
    }
    assert_eq!(
        enter(&mut queue, ask("batch", 10), 0),
        Entered::Full { own: true }
    );
    let Entered::Waiting { ticket, instead } = enter(&mut queue, ask("chat", 10), 0) else {
        panic!("chat is refused");
    };
    assert_eq!(instead, Some(waiting[3]));
    assert!(queue.place(ticket).is_some() && queue.place(waiting[3]).is_none());
    assert_eq!(queue.waiting(), 4);
    // Two and two: nobody is the longer.
    enter(&mut queue, ask("chat", 10), 0);
    assert_eq!(
        enter(&mut queue, ask("chat", 10), 0),
        Entered::Full { own: true }
    );
    assert_eq!(
        enter(&mut queue, ask("batch", 10), 0),
        Entered::Full { own: true }
    );
}

#[test]
fn what_a_caller_is_told_comes_true_when_nobody_else_comes() {
    let mut queue = Queue::new(2, 100);
    let mut running = vec![
        started(&mut queue, ask("a", 10), 0),
        started(&mut queue, ask("a", 10), 0),
    ];
    let waiting: Vec<Ticket> = (0..10)
        .map(|_| waits(&mut queue, ask("a", 10), 0))
        .collect();
    for n in 1..=5 {
        for ended in std::mem::take(&mut running) {
            running.extend(next(&mut queue, ended, n * 1000));
        }
    }
    assert_eq!(running, waiting[8..]);
    let last = waits(&mut queue, ask("a", 10), 5000);
    let told = queue.place(last).unwrap();
    assert_eq!((told.position, told.wait), (1, Duration::from_millis(500)));
}

/// A small generator (SplitMix64): the same seed, the same story.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
}

#[test]
fn thousands_of_comings_and_goings_lose_no_call_and_never_overfill() {
    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    for seed in 0..200 {
        let mut random = Random(seed);
        let mut places = 1 + u32::try_from(random.below(9)).unwrap();
        let most = usize::try_from(random.below(20)).unwrap();
        let mut queue = Queue::new(places, most);
        let (mut running, mut waiting) = (BTreeSet::new(), BTreeSet::new());
        let mut at = 0;
        for _ in 0..2000 {
            at += random.below(400);
            let mut began = Vec::new();
            match random.below(10) {
                0..=4 => {
                    let who = NAMES[usize::try_from(random.below(6)).unwrap()];
                    let caller = NAMES[usize::try_from(random.below(6)).unwrap()];
                    let call = Ask {
                        tenant: who,
                        caller,
                        tokens: random.below(5000),
                        weight: 1 + u32::try_from(random.below(3)).unwrap(),
                    };
                    let patience = Duration::from_millis(random.below(20_000));
                    match queue.enter(call, patience, at, &mut began) {
                        Entered::Started(ticket) => {
                            running.insert(ticket);
                        }
                        Entered::Waiting { ticket, instead } => {
                            waiting.insert(ticket);
                            if let Some(instead) = instead {
                                assert!(waiting.remove(&instead), "{instead} didn't wait");
                            }
                        }
                        Entered::TooLate(wait) => assert!(wait > patience),
                        Entered::Full { .. } => assert!(queue.waiting() >= most),
                    }
                }
                5..=7 => {
                    let nth = usize::try_from(random.below(64)).unwrap();
                    if let Some(&ticket) = running.iter().cycle().nth(nth) {
                        running.remove(&ticket);
                        let left = [Left::Unknown, Left::Unused, Left::Held(random.below(9000))];
                        let left = left[usize::try_from(random.below(3)).unwrap()];
                        queue.leave(ticket, left, at, &mut began);
                    }
                }
                8 => {
                    let nth = usize::try_from(random.below(64)).unwrap();
                    if let Some(&ticket) = waiting.iter().cycle().nth(nth) {
                        waiting.remove(&ticket);
                        queue.leave(ticket, Left::Unknown, at, &mut began);
                    }
                }
                _ => {
                    places = 1 + u32::try_from(random.below(9)).unwrap();
                    queue.resize(places, most, at, &mut began);
                }
            }
            for ticket in began {
                assert!(waiting.remove(&ticket), "{ticket} began twice");
                running.insert(ticket);
            }
            assert_eq!(running.len(), places_of(&queue), "seed {seed}");
            assert_eq!(waiting.len(), queue.waiting(), "seed {seed}");
            for ticket in &waiting {
                let told = queue.place(*ticket).unwrap();
                assert!((1..=waiting.len()).contains(&told.position));
            }
            if !waiting.is_empty() {
                // A quarter at most is kept free.
                assert!(queue.running() + places / 4 >= places, "seed {seed}");
            }
        }
        all_get_their_turn(queue, running, waiting.len(), at);
    }
}

/// All leave: everybody who waits gets his turn.
fn all_get_their_turn(
    mut queue: Queue<&'static str>,
    mut running: BTreeSet<Ticket>,
    waiting: usize,
    mut at: u64,
) {
    let mut served = running.len();
    let all = running.len() + waiting;
    while let Some(ticket) = running.pop_first() {
        at += 1;
        let mut began = Vec::new();
        queue.leave(ticket, Left::Unknown, at, &mut began);
        served += began.len();
        running.extend(began);
    }
    assert_eq!((served, queue.running(), queue.waiting()), (all, 0, 0));
    assert!(queue.tenants.is_empty() && queue.ready.is_empty() && queue.calls.is_empty());
}

fn places_of(queue: &Queue<&'static str>) -> usize {
    usize::try_from(queue.running()).unwrap()
}

#[test]
fn a_crowd_of_tenants_that_came_once_is_forgotten() {
    let mut queue: Queue<u64> = Queue::new(4, 10);
    let hold = Ask {
        tenant: u64::MAX,
        caller: 0,
        tokens: 1,
        weight: 1,
    };
    let Entered::Started(_held) = queue.enter(hold, LONG, 0, &mut Vec::new()) else {
        panic!("no place");
    };
    for n in 0..100_000 {
        let Entered::Started(ticket) = queue.enter(
            Ask {
                tenant: n,
                caller: n,
                tokens: 1,
                weight: 1,
            },
            LONG,
            n,
            &mut Vec::new(),
        ) else {
            panic!("no place");
        };
        queue.leave(ticket, Left::Unknown, n, &mut Vec::new());
    }
    // Those of the last ten seconds, one a millisecond, twice over.
    assert!(queue.tenants.len() < 21_000, "{}", queue.tenants.len());
}
