//! `guan usage`: what keys, projects and models took. Called by `commands`.

use std::time::Duration;

use clap::{Args, ValueEnum};
use control::store::{UsageBy, UsageRow};

use super::door::Door;
use super::key::{columns, runtime, span};
use super::{Failure, Places, remark, say};

/// Print what was used: calls and tokens.
#[derive(Debug, Args)]
pub(super) struct UsageArgs {
    /// What to sum by
    #[arg(long, value_enum, default_value = "key")]
    by: By,
    /// How far back, in whole days (UTC), today among them
    #[arg(long, value_name = "TIME", value_parser = span, default_value = "7d")]
    since: Duration,
    /// Print comma-separated values
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    Key,
    Project,
    Model,
}

/// Does it.
///
/// # Errors
/// When the folder, the server or the store says no.
pub(super) fn run(args: &UsageArgs, places: &Places) -> Result<(), Failure> {
    let runtime = runtime()?;
    let door = Door::open(&runtime, places)?;
    let (by, head) = match args.by {
        By::Key => (UsageBy::Key, "KEY"),
        By::Project => (UsageBy::Project, "PROJECT"),
        By::Model => (UsageBy::Model, "MODEL"),
    };
    let days = i64::try_from(args.since.as_secs().div_ceil(DAY))
        .unwrap_or(i64::MAX)
        .max(1);
    let today = crate::supervisor::unix_seconds().div_euclid(86_400);
    let since = today.saturating_sub(days.saturating_sub(1));
    let done = runtime
        .block_on(door.usage(by, since))
        .and_then(|rows| show(&rows, head, args));
    door.close(&runtime);
    done
}

fn show(rows: &[UsageRow], head: &str, args: &UsageArgs) -> Result<(), Failure> {
    if args.json {
        return say(&serde_json::to_string(rows).unwrap_or_default());
    }
    let heads = [head, "CALLS", "FAILED", "INPUT TOKENS", "OUTPUT TOKENS"];
    let mut table = vec![heads.map(str::to_owned)];
    table.extend(rows.iter().map(|row| {
        let sums = row.sums;
        [
            row.of.clone(),
            sums.calls.to_string(),
            sums.failed.to_string(),
            sums.input_tokens.to_string(),
            sums.output_tokens.to_string(),
        ]
    }));
    if args.csv {
        let lines = table
            .iter()
            .map(|row| row.each_ref().map(|cell| quoted(cell)).join(","));
        return say(&lines.collect::<Vec<_>>().join("\r\n"));
    }
    if rows.is_empty() {
        remark("nothing was used in that time");
        return Ok(());
    }
    for row in table.iter_mut().skip(1) {
        if let [of, ..] = row
            && of.is_empty()
        {
            "-".clone_into(of);
        }
    }
    say(&columns(&table))
}

/// A field of RFC 4180. One that a spreadsheet would take for a formula is told to be text.
pub(super) fn quoted(text: &str) -> String {
    let text = if text.starts_with(['=', '+', '-', '@']) {
        format!("'{text}")
    } else {
        text.to_owned()
    };
    if text.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text
    }
}

const DAY: u64 = 86_400;
