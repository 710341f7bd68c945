//! `guan audit verify`: says of each chain whether it still is what was written, as far as anybody can tell.
//!
//! It opens no store and takes no lock: files, a public key and known heads are all it needs, here or on an
//! auditor's own machine.

use std::path::{Path, PathBuf};

use clap::Args;
use control::audit_log::PUBLIC;
use control::audit_log::files::{ChainFile, list};
use control::audit_log::judge::{Judged, Judgement, KnownHead, judge};
use rules::chain::verify::Report;
use rules::chain::{Checkpoint, Head, PublicKey};
use serde_json::json;

use super::super::{Failure, Places, remark, say};

/// Options of `guan audit verify`.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Chain files (NODE-GENERATION.jsonl) or folders with them [default: state/audit of the data folder]
    files: Vec<PathBuf>,
    /// The public key, or a file with it: what `guan audit key` printed [default: audit.pub beside the files]
    #[arg(long, value_name = "KEY|FILE")]
    key: Option<String>,
    /// A head that was kept elsewhere: CHAIN:RECORD:HASH, or a file that `guan audit heads --json` printed
    #[arg(long, value_name = "HEAD|FILE")]
    head: Vec<String>,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// Does it.
pub(super) fn run(args: &VerifyArgs, places: &Places) -> Result<(), Failure> {
    let audit = places.data.join("state/audit");
    let asked = if args.files.is_empty() {
        std::slice::from_ref(&audit)
    } else {
        &args.files
    };
    let files = gathered(asked)?;
    let key = public_key(args.key.as_deref(), &files)?;
    let mut heads = Vec::new();
    for head in &args.head {
        heads.extend(known(head, &key)?);
    }
    let judgement = judge(&files, Some(&key), &heads)
        .map_err(|cause| Failure::new(format!("a chain can't be read: {cause}")))?;
    if args.json {
        say(&as_json(&judgement, &key).to_string())?;
    } else {
        for judged in &judgement.chains {
            say(&words(judged))?;
        }
        for (chain, by) in &judgement.absent {
            say(&format!(
                "{chain}: not among these files, and {by} names it"
            ))?;
        }
        if args.key.is_none() {
            remark(
                "guan: the public key was taken from beside the files: whoever could change them could change it too. Give the one you kept with --key",
            );
        }
        if args.head.is_empty() {
            remark(
                "guan: without --head nobody can tell whether records were cut off after the last checkpoint, or whether whoever has the store's data key wrote a chain anew",
            );
        }
    }
    if judgement.is_good() {
        Ok(())
    } else {
        Err(Failure::new(
            "the audit log isn't what was written; see above",
        ))
    }
}

/// The chain files that are meant.
pub(super) fn gathered(asked: &[PathBuf]) -> Result<Vec<ChainFile>, Failure> {
    let mut files = Vec::new();
    for path in asked {
        let unreadable =
            |cause: std::io::Error| Failure::new(format!("{}: {cause}", path.display()));
        if std::fs::metadata(path).map_err(unreadable)?.is_dir() {
            files.extend(list(path).map_err(unreadable)?);
        } else {
            files.push(ChainFile::of(path).ok_or_else(|| {
                Failure::new(format!(
                    "{}: not the name of a chain file (NODE-GENERATION.jsonl), which is part of what is signed",
                    path.display()
                ))
            })?);
        }
    }
    files.sort();
    files.dedup();
    if files.is_empty() {
        return Err(Failure::new(
            "there is no chain file; name them, or the data folder with --data DIR",
        ));
    }
    Ok(files)
}

fn public_key(given: Option<&str>, files: &[ChainFile]) -> Result<PublicKey, Failure> {
    let beside = files.first().and_then(|file| file.path.parent());
    let path = match given {
        Some(text) => {
            if let Some(key) = PublicKey::parse(text) {
                return Ok(key);
            }
            PathBuf::from(text)
        }
        None => beside.unwrap_or_else(|| Path::new(".")).join(PUBLIC),
    };
    let text = read(&path)?;
    PublicKey::parse(&text).ok_or_else(|| {
        Failure::new(format!(
            "{}: not a public key; it is one line, as `guan audit key` prints it",
            path.display()
        ))
    })
}

/// `CHAIN:RECORD:HASH`, or a file of signed heads: those that the key didn't sign are no heads.
fn known(text: &str, key: &PublicKey) -> Result<Vec<KnownHead>, Failure> {
    let mut words = text.split(':');
    if let (Some(chain), Some(seq), Some(hash), None) =
        (words.next(), words.next(), words.next(), words.next())
        && let (Ok(seq), Some(head)) = (seq.parse(), Head::parse(hash))
    {
        let by = "--head".to_owned();
        let chain = chain.to_owned();
        return Ok(vec![KnownHead {
            chain,
            seq,
            head,
            by,
        }]);
    }
    let refused = || {
        Failure::new(format!(
            "{text}: neither CHAIN:RECORD:HASH nor a file of `guan audit heads --json`"
        ))
    };
    let listed: Vec<Checkpoint> =
        serde_json::from_str(&read(Path::new(text))?).map_err(|_form| refused())?;
    let heads = listed.into_iter().map(|it| {
        if !it.is_signed_by(key) {
            return Err(Failure::new(format!(
                "{text}: the head of {} isn't signed by the key {}",
                it.chain,
                key.id()
            )));
        }
        let head = Head::parse(&it.head).ok_or_else(refused)?;
        Ok(KnownHead {
            by: format!("the head signed at {}", it.at),
            chain: it.chain,
            seq: it.seq,
            head,
        })
    });
    heads.collect()
}

fn read(path: &Path) -> Result<String, Failure> {
    let unreadable = |cause: std::io::Error| Failure::new(format!("{}: {cause}", path.display()));
    std::fs::read_to_string(path).map_err(unreadable)
}

/// One chain, in a sentence.
fn words(judged: &Judged) -> String {
    let Report {
        first,
        last,
        checkpoint,
        vouched,
        ended,
        previous: _,
        fault,
    } = &judged.report;
    let chain = &judged.chain;
    let signed = checkpoint.as_ref().map_or_else(
        || "nothing in it is signed".to_owned(),
        |it| format!("signed up to record {} ({})", it.seq, it.at),
    );
    if let Some(fault) = fault {
        let trusted = vouched.map_or_else(
            || "no record before it is vouched for".to_owned(),
            |seq| format!("records up to {seq} are vouched for"),
        );
        return format!("{chain}: NOT AS WRITTEN: {fault}; {trusted}");
    }
    let (Some(first), Some(last)) = (first, last) else {
        return format!("{chain}: empty");
    };
    let after = last.saturating_sub(vouched.unwrap_or(0));
    let rest = match (vouched, after) {
        // The line that closes it has the checkpoint of all before.
        (Some(_), 1) if *ended => "closed".to_owned(),
        (Some(_), 0) => "all vouched for".to_owned(),
        (Some(at), after) => {
            format!("complete up to {at}; the {after} after it can't be judged offline")
        }
        (None, _) => "not one of them can be judged offline".to_owned(),
    };
    format!("{chain}: records {first} to {last} hang together, {signed}: {rest}")
}

fn as_json(judgement: &Judgement, key: &PublicKey) -> serde_json::Value {
    let chains = judgement.chains.iter().map(|judged| {
        let report = &judged.report;
        json!({
            "chain": judged.chain,
            "first": report.first,
            "last": report.last,
            "checkpoint": report.checkpoint,
            "vouched": report.vouched,
            "ended": report.ended,
            "fault": report.fault.as_ref().map(ToString::to_string),
        })
    });
    let absent = judgement
        .absent
        .iter()
        .map(|(chain, by)| json!({ "chain": chain, "by": by }));
    json!({
        "good": judgement.is_good(),
        "key": key.id(),
        "chains": chains.collect::<Vec<_>>(),
        "absent": absent.collect::<Vec<_>>(),
    })
}
