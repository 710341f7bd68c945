//! `guan audit key` and `guan audit heads`: what an auditor keeps elsewhere, to judge the log by later.

use clap::Args;
use rules::chain::Checkpoint;
use serde_json::Value;

use super::super::door::Door;
use super::super::key::{columns, runtime};
use super::super::{Failure, Places, remark, say};

/// Options of `guan audit key`.
#[derive(Debug, Args)]
pub(super) struct KeyArgs {
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// Options of `guan audit heads`.
#[derive(Debug, Args)]
pub(super) struct HeadsArgs {
    /// Print JSON for programs, and for `guan audit verify --head FILE`
    #[arg(long)]
    json: bool,
}

/// Prints the key.
pub(super) fn key(args: &KeyArgs, places: &Places) -> Result<(), Failure> {
    let runtime = runtime()?;
    let door = Door::open(&runtime, places)?;
    let found = runtime.block_on(door.call("GET", "/admin/v1/audit/key", &[], None));
    door.close(&runtime);
    let found = found?;
    if args.json {
        return say(&found.to_string());
    }
    let word = |name: &str| found.get(name).and_then(Value::as_str).unwrap_or_default();
    say(word("key"))?;
    remark(&format!(
        "guan: its id is {}; keep it where whoever can write the log can't write",
        word("id")
    ));
    Ok(())
}

/// Prints the heads.
pub(super) fn heads(args: &HeadsArgs, places: &Places) -> Result<(), Failure> {
    let runtime = runtime()?;
    let door = Door::open(&runtime, places)?;
    let found = runtime.block_on(door.pages("/admin/v1/audit/heads?limit=1000", "chain"));
    door.close(&runtime);
    let found = Value::Array(found?);
    if args.json {
        return say(&found.to_string());
    }
    let heads: Vec<Checkpoint> = serde_json::from_value(found)
        .map_err(|e| Failure::new(format!("the server's answer isn't understood: {e}")))?;
    if heads.is_empty() {
        remark("the store has no head of a chain yet");
        return Ok(());
    }
    let mut table = vec![["CHAIN", "RECORD", "SIGNED", "HEAD"].map(str::to_owned)];
    table.extend(
        heads
            .into_iter()
            .map(|it| [it.chain, it.seq.to_string(), it.at, it.head]),
    );
    say(&columns(&table))
}
