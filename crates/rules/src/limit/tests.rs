//! The arithmetic of limits, on a clock of the test.

use super::*;
use crate::key::KeyId;

const S: u64 = SECOND;

fn limit(text: &str) -> Limit {
    parse_limit(text).unwrap()
}

#[test]
fn ten_a_minute_lets_ten_through_at_once_and_the_formula_holds_after() {
    let limit = Limit::per_minute(10);
    let mut cell = Cell::new(&limit);
    let start = 1_000 * S;
    let mut passed = 0;
    for tick in 0..600 {
        passed += u64::from(cell.take(start + tick * S / 2, &limit, 1).is_ok());
        let most = 10 + 10 * (tick / 2) / 60;
        assert!(passed <= most + 1, "{passed} after {tick} half seconds");
    }
    assert_eq!(passed, 10 + 49);
}

#[test]
fn a19_a_retry_at_the_told_moment_succeeds_and_one_a_second_earlier_does_not() {
    for text in ["10 requests/minute", "10 requests/minute sliding"] {
        let limit = limit(text);
        let mut cell = Cell::new(&limit);
        let now = 1_764_072_030 * S;
        for _ in 0..10 {
            cell.take(now, &limit, 1).unwrap();
        }
        let later = now + 15 * S;
        match cell.take(later, &limit, 1) {
            // GCRA has let two more through by then.
            Ok(()) => {
                cell.take(later, &limit, 1).unwrap();
                let wait = cell.take(later, &limit, 1).unwrap_err();
                assert_eq!(wait, 3 * S);
                assert!(cell.clone().take(later + wait - S, &limit, 1).is_err());
                assert!(cell.take(later + wait, &limit, 1).is_ok());
            }
            Err(wait) => {
                assert_eq!(wait, 45 * S, "{text}");
                assert!(cell.clone().take(later + wait - S, &limit, 1).is_err());
                assert!(cell.take(later + wait, &limit, 1).is_ok());
            }
        }
    }
}

#[test]
fn a19_a_sliding_window_has_no_edge() {
    let limit = limit("10 requests/minute sliding");
    let mut cell = Cell::new(&limit);
    let noon = 43_200 * S;
    let before = noon - S / 10;
    assert!((0..10).all(|_| cell.take(before, &limit, 1).is_ok()));
    assert!(cell.take(noon + S / 10, &limit, 1).is_err());
    assert!(cell.take(before + 60 * S - 1, &limit, 1).is_err());
    assert!(cell.take(before + 60 * S, &limit, 1).is_ok());
}

#[test]
fn a_sliding_window_never_holds_more_than_its_size_in_any_span() {
    for (text, amount) in [
        ("300 requests/minute sliding", 1),
        ("1000 tokens/minute", 7),
    ] {
        let limit = limit(text);
        let mut cell = Cell::new(&limit);
        let mut taken: Vec<u64> = Vec::new();
        let mut now = 77 * S;
        let mut seed = 12345_u64;
        for _ in 0..5000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            now += (seed >> 33) % 150_000;
            if cell.take(now, &limit, amount).is_ok() {
                taken.push(now);
            }
            let since = now - 60 * S;
            let sum = taken.iter().rev().take_while(|at| **at > since).count() as u64 * amount;
            assert!(sum <= limit.size, "{sum} of {text}");
        }
        assert!(taken.len() > 500);
    }
}

#[test]
fn what_is_settled_comes_back_and_an_over_run_is_charged() {
    let limit = limit("100 tokens/minute");
    let mut cell = Cell::new(&limit);
    let now = 9_000_000 * S;
    cell.take(now, &limit, 60).unwrap();
    assert!(cell.take(now, &limit, 60).is_err());
    cell.settle(now, now + S, &limit, 60, 5);
    assert_eq!(cell.look(now + S, &limit).remaining, 95);
    cell.take(now + S, &limit, 60).unwrap();
    cell.settle(now + S, now + 2 * S, &limit, 60, 130);
    let standing = cell.look(now + 2 * S, &limit);
    assert_eq!(standing.remaining, 0);
    // Settling after the window has passed gives nothing back twice.
    let mut late = Cell::new(&limit);
    late.take(now, &limit, 90).unwrap();
    assert_eq!(late.look(now + 62 * S, &limit).remaining, 100);
    late.take(now + 62 * S, &limit, 100).unwrap();
    late.settle(now, now + 63 * S, &limit, 90, 0);
    assert_eq!(late.look(now + 63 * S, &limit).remaining, 0);
}

#[test]
fn a_clock_that_steps_back_frees_nothing_and_locks_nobody_out_for_ever() {
    for text in [
        "2 requests/minute",
        "2 requests/minute sliding",
        "2 tokens/minute",
    ] {
        let limit = limit(text);
        let mut cell = Cell::new(&limit);
        cell.take(100 * S, &limit, 1).unwrap();
        cell.take(100 * S, &limit, 1).unwrap();
        assert!(cell.take(99 * S, &limit, 1).is_err(), "{text}");
        assert!(cell.take(161 * S, &limit, 1).is_ok(), "{text}");
        let mut far = Cell::new(&limit);
        far.take(100_000 * S, &limit, 1).unwrap();
        far.take(100_000 * S, &limit, 1).unwrap();
        assert!(
            far.take(130 * S, &limit, 1).is_ok() || far.take(200 * S, &limit, 1).is_ok(),
            "{text}"
        );
    }
}

#[test]
fn a_budget_counts_what_runs_and_turns_with_its_period() {
    let limit = parse_budget("1000 tokens/day").unwrap();
    let mut cell = Cell::new(&limit);
    let day = 86_400 * S;
    let now = 20_000 * day + day / 2;
    cell.take(now, &limit, 600).unwrap();
    assert_eq!(
        cell.take(now, &limit, 600),
        Err(SECOND),
        "a call may still give some back"
    );
    cell.settle(now, now, &limit, 600, 500);
    assert_eq!(cell.take(now, &limit, 600), Err(day / 2));
    cell.spent(now, &limit, 900);
    assert_eq!(cell.look(now, &limit).remaining, 100);
    cell.spent(now, &limit, 10);
    assert_eq!(
        cell.look(now, &limit).remaining,
        100,
        "what this node knows stands"
    );
    assert_eq!(cell.look(now + day, &limit).remaining, 1000);
}

#[test]
fn the_narrowest_of_one_kind_stands_and_room_is_by_size() {
    let key = Scope::caller(KeyId::parse("abcdefghijkl").unwrap().into());
    let project = Scope::named(Class::Project, "p");
    let mut plan = Plan::new();
    plan.add(
        key,
        [limit("100 requests/hour"), limit("500 tokens/minute")],
    );
    plan.add(project, [limit("900 tokens/minute")]);
    plan.add(
        key,
        [
            limit("7 requests/hour burst 3"),
            limit("200 output_tokens/minute"),
        ],
    );
    let sizes: Vec<u64> = plan.demands().iter().map(|d| d.limit.size).collect();
    assert_eq!(
        sizes,
        [7, 500, 200, 900],
        "those of one holder stand together"
    );
    let price = Price {
        input: 1_000_000,
        output: 2_000_000,
    };
    assert_eq!(plan.room(100, 1, &price), 200);
    assert_eq!(plan.room(400, 2, &price), 50);
    assert_eq!(plan.room(600, 1, &price), 0);
    plan.add(key, [parse_budget("0.000250 money/day").unwrap()]);
    let room = plan.room(100, 1, &price);
    assert!(price.of(100, room) <= 250 && room > 70, "{room}");
    plan.ask(&Amounts::of(100, 401, &price));
    let never = plan.never().unwrap();
    assert_eq!(
        (never.asked, never.limit.size, never.never()),
        (501, 500, true)
    );
}
