//! Each way to tamper with a chain, and what is said of it.

use serde_json::{Value, json};

use super::super::{Link, Record, Signer};
use super::*;

const CHAIN: &str = "node-3";

fn signer() -> Signer {
    Signer::from_seed(&[7; 32]).unwrap()
}

fn record(action: &str, act: Option<Value>) -> Record {
    Record {
        timestamp: "2026-01-01T00:00:00.000000000Z".into(),
        action: action.into(),
        outcome: "success".into(),
        reason: None,
        duration_ns: None,
        source_ip: None,
        user_id: None,
        role: None,
        identity: None,
        status: None,
        path: None,
        request_id: None,
        call: None,
        act,
    }
}

/// Writes a chain: a start, records, a checkpoint after each fifth line, an end.
struct Chaining {
    link: Link,
    lines: Vec<Vec<u8>>,
    signer: Signer,
    name: &'static str,
}

impl Chaining {
    fn start(name: &'static str) -> Self {
        let mut new = Self {
            link: Link {
                seq: 0,
                head: Head::NONE,
            },
            lines: Vec::new(),
            signer: signer(),
            name,
        };
        let previous = json!({ "chain": "node-2", "seq": 9, "head": Head::of(b"x").to_string() });
        new.add(
            "chain-start",
            Some(json!({ "chain": name, "previous": previous })),
        );
        new
    }

    fn add(&mut self, action: &str, act: Option<Value>) {
        let mut line = Vec::new();
        self.link.append(&record(action, act), &mut line).unwrap();
        line.pop();
        self.lines.push(line);
    }

    fn sign(&mut self, action: &str) {
        let at = "2026-01-01T00:00:00Z".to_owned();
        let signed = self
            .signer
            .sign(self.name, self.link.seq - 1, self.link.head, at);
        self.add(action, Some(json!({ "checkpoint": signed })));
    }
}

/// 0 start, 1 to 4, 5 checkpoint, 6 to 9, 10 checkpoint, 11 to 13.
fn chain() -> Vec<Vec<u8>> {
    let mut chain = Chaining::start(CHAIN);
    for number in 1..=13 {
        if number % 5 == 0 {
            chain.sign("checkpoint");
        } else {
            let act = json!({ "n": number });
            chain.add("model-request", Some(act));
        }
    }
    chain.lines
}

fn judge_by(lines: &[Vec<u8>], known: &Known, key: &PublicKey) -> Report {
    let mut verifier = Verifier::new(CHAIN, Some(key), known);
    for line in lines {
        if !verifier.take(line, true) {
            break;
        }
    }
    verifier.end()
}

fn judge(lines: &[Vec<u8>]) -> Report {
    judge_by(lines, &Known::default(), &signer().public())
}

fn fault(lines: &[Vec<u8>]) -> Fault {
    judge(lines).fault.unwrap()
}

/// A line with something else in it, as an editor would leave it.
fn edited(line: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(line.to_vec()).unwrap();
    assert!(text.contains(from), "{text}");
    text.replace(from, to).into_bytes()
}

/// The lines from `from` on, chained anew: what somebody does who knows the format and hasn't the key.
fn chained_anew(lines: &mut [Vec<u8>], from: usize) {
    let mut head = match from.checked_sub(1) {
        Some(before) => Head::of(&lines[before]),
        None => Head::NONE,
    };
    for (number, line) in lines.iter_mut().enumerate().skip(from) {
        let mut value: Value = serde_json::from_slice(line).unwrap();
        value["guan.chain"] = json!({ "seq": number, "prev": head.to_string() });
        *line = serde_json::to_vec(&value).unwrap();
        head = Head::of(line);
    }
}

#[test]
fn a_whole_chain_is_good_up_to_its_last_checkpoint() {
    let report = judge(&chain());
    assert_eq!(report.fault, None);
    assert_eq!(
        (report.first, report.last, report.vouched),
        (Some(0), Some(13), Some(9))
    );
    assert_eq!(
        report.previous,
        Some(("node-2".to_owned(), 9, Head::of(b"x")))
    );
    assert!(!report.ended);
    let mut closed = Chaining::start(CHAIN);
    closed.sign("chain-end");
    let report = judge(&closed.lines);
    assert!(report.ended && report.vouched == Some(0));
}

#[test]
fn an_edit_is_found_wherever_it_is() {
    for number in 0..12 {
        let mut lines = chain();
        lines[number] = edited(&lines[number], "success", "failure");
        assert_eq!(
            fault(&lines),
            Fault::Changed { seq: number as u64 },
            "{number}"
        );
    }
    // The next line's own word of the line before was changed, not that line.
    let mut lines = chain();
    let prev = Head::of(&lines[5]).to_string();
    lines[6] = edited(&lines[6], &prev, &Head::of(b"other").to_string());
    assert_eq!(fault(&lines), Fault::Changed { seq: 6 });
    // Behind the last record nothing says anything: that is what checkpoints and heads are for.
    let mut lines = chain();
    lines[13] = edited(&lines[13], "success", "failure");
    let report = judge(&lines);
    assert_eq!((report.fault, report.vouched), (None, Some(9)));
}

#[test]
fn what_is_removed_inserted_or_put_elsewhere_is_told_apart() {
    for number in 0..13 {
        let mut lines = chain();
        lines.remove(number);
        let seq = number as u64;
        assert_eq!(fault(&lines), Fault::Missing { from: seq, to: seq });
    }
    let mut lines = chain();
    lines.drain(3..6);
    assert_eq!(fault(&lines), Fault::Missing { from: 3, to: 5 });
    for number in 1..13 {
        let mut lines = chain();
        lines.insert(number, lines[number].clone());
        assert_eq!(fault(&lines), Fault::Inserted { seq: number as u64 });
        let mut lines = chain();
        lines.insert(number, edited(&lines[number], "success", "failure"));
        // Which of the two is the real one is for people to say.
        assert!(matches!(fault(&lines), Fault::Inserted { seq } if seq == number as u64));
    }
    for number in 1..12 {
        let mut lines = chain();
        lines.swap(number, number + 1);
        assert_eq!(fault(&lines), Fault::Moved { seq: number as u64 });
    }
}

#[test]
fn a_chain_that_was_made_anew_fails_at_the_next_checkpoint() {
    for number in [1, 4, 6, 9] {
        let mut lines = chain();
        lines[number] = edited(&lines[number], "success", "failure");
        chained_anew(&mut lines, number + 1);
        let at = if number < 5 { 5 } else { 10 };
        let why = "it was signed over other records";
        assert_eq!(fault(&lines), Fault::Forged { seq: at, why });
    }
    // With the checkpoints left out it hangs together: it ends where nobody vouches for it, and says so.
    let mut lines = chain();
    lines[7] = edited(&lines[7], "success", "failure");
    lines.remove(10);
    chained_anew(&mut lines, 8);
    let report = judge(&lines);
    assert_eq!((report.fault, report.vouched), (None, Some(4)));
    // A head that was kept elsewhere binds it.
    let mut known = Known::default();
    known.add(9, Head::of(&chain()[9]), "the store".to_owned());
    let report = judge_by(&lines, &known, &signer().public());
    let by = "the store".to_owned();
    assert_eq!(report.fault, Some(Fault::Rewritten { seq: 9, by }));
}

#[test]
fn a_forged_checkpoint_is_found() {
    // Signed by somebody else's key, with and without our key's name on it.
    let stranger = Signer::from_seed(&[8; 32]).unwrap();
    for named_as_ours in [false, true] {
        let mut lines = chain();
        lines[7] = edited(&lines[7], "success", "failure");
        chained_anew(&mut lines, 8);
        let mut forged = stranger.sign(CHAIN, 9, Head::of(&lines[9]), "now".to_owned());
        if named_as_ours {
            forged.key = signer().public().id();
        }
        let mut value: Value = serde_json::from_slice(&lines[10]).unwrap();
        value["guan.act"] = json!({ "checkpoint": forged });
        lines[10] = serde_json::to_vec(&value).unwrap();
        chained_anew(&mut lines, 10);
        let why = if named_as_ours {
            "its signature is wrong"
        } else {
            "another key signed it"
        };
        assert_eq!(fault(&lines), Fault::Forged { seq: 10, why });
    }
    // A genuine one of another chain.
    let mut other = Chaining::start("node-4");
    other.name = "node-4";
    let mut lines = chain();
    let moved = other
        .signer
        .sign("node-4", 9, Head::of(&lines[9]), "now".to_owned());
    let mut value: Value = serde_json::from_slice(&lines[10]).unwrap();
    value["guan.act"] = json!({ "checkpoint": moved });
    lines[10] = serde_json::to_vec(&value).unwrap();
    chained_anew(&mut lines, 10);
    let why = "it is another chain's";
    assert_eq!(fault(&lines), Fault::Forged { seq: 10, why });
}

#[test]
fn what_is_cut_off_shows_by_a_head_that_is_known() {
    let whole = chain();
    let mut known = Known::default();
    known.add(13, Head::of(&whole[13]), "node-4".to_owned());
    assert_eq!(judge_by(&whole, &known, &signer().public()).fault, None);
    assert_eq!(
        judge_by(&whole, &known, &signer().public()).vouched,
        Some(13)
    );
    for left in [0, 1, 6, 13] {
        let report = judge_by(&whole[..left], &known, &signer().public());
        let cut = Fault::Truncated {
            last: (left as u64).saturating_sub(1),
            seq: 13,
            by: "node-4".to_owned(),
        };
        assert_eq!(report.fault, Some(cut));
        // Without it nobody can tell.
        assert_eq!(judge(&whole[..left]).fault, None);
    }
}

#[test]
fn an_old_file_under_a_new_name_says_whose_it_is() {
    let mut old = Chaining::start("node-1");
    old.sign("chain-end");
    let named = "node-1".to_owned();
    assert_eq!(fault(&old.lines), Fault::Other { named });
}

#[test]
fn what_is_no_record_and_what_is_cut_in_the_middle_is_said_with_its_line() {
    for junk in [&b""[..], b"x", b"{}", b"\xff\xfe", b"null"] {
        let mut lines = chain();
        lines.insert(3, junk.to_vec());
        assert_eq!(fault(&lines), Fault::NoRecord { line: 4 });
    }
    let lines = chain();
    let (known, key) = (Known::default(), signer().public());
    let mut verifier = Verifier::new(CHAIN, Some(&key), &known);
    for line in &lines[..4] {
        assert!(verifier.take(line, true));
    }
    assert!(!verifier.take(&lines[4][..20], false));
    assert_eq!(verifier.end().fault, Some(Fault::Cut { line: 5 }));
}

#[test]
fn a_file_whose_beginning_was_removed_by_age_is_judged_from_there() {
    let lines = chain();
    let (known, key) = (Known::default(), signer().public());
    let mut verifier = Verifier::new(CHAIN, Some(&key), &known);
    verifier.begin_at(6, Head::of(&lines[5]));
    for line in &lines[6..] {
        assert!(verifier.take(line, true));
    }
    let report = verifier.end();
    assert_eq!(
        (report.first, report.last, report.vouched),
        (Some(6), Some(13), Some(9))
    );
    assert_eq!(report.fault, None);
}

#[test]
fn without_a_key_the_chain_alone_is_judged() {
    let (known, lines) = (Known::default(), chain());
    let mut verifier = Verifier::new(CHAIN, None, &known);
    for line in &lines {
        assert!(verifier.take(line, true));
    }
    assert_eq!(verifier.end().fault, None);
}
