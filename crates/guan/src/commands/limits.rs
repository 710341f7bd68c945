//! `guan limits …`: what is left of a key's limits, and a fresh start for it. Called by `commands`.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::door::{Door, checked};
use super::key::{columns, runtime};
use super::{Failure, Places, say};

/// Show what is left of a key's limits, or let it start afresh.
#[derive(Debug, Args)]
pub(super) struct LimitsArgs {
    #[command(subcommand)]
    command: Command,
    /// Print JSON for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print each limit that holds for a key: used, left, and when all of it is free again
    Show {
        /// The key's id, or the first letters of it
        id: String,
    },
    /// Forget what a key used of its own limits and budgets; those that it shares stay as they are
    Reset {
        /// The key's id, or the first letters of it
        id: String,
    },
}

/// Does it.
///
/// # Errors
/// When no server runs, or it says no.
pub(super) fn run(args: &LimitsArgs, places: &Places) -> Result<(), Failure> {
    let runtime = runtime()?;
    let door = Door::open(&runtime, places)?;
    let acting = async {
        match &args.command {
            Command::Show { id } => {
                let path = format!("/admin/v1/keys/{}/limits", checked(id)?);
                door.call("GET", &path, &[], None).await
            }
            Command::Reset { id } => {
                let path = format!("/admin/v1/keys/{}/limits/reset", checked(id)?);
                door.call("POST", &path, &[], None).await
            }
        }
    };
    let done = runtime
        .block_on(acting)
        .and_then(|shown| show(&shown, args.json));
    door.close(&runtime);
    done
}

fn show(shown: &Value, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return say(&shown.to_string());
    }
    let mut table = vec![["WHOSE", "LIMIT", "USED", "LEFT", "ALL FREE IN"].map(str::to_owned)];
    let rows = shown.get("limits").and_then(Value::as_array);
    for row in rows.into_iter().flatten() {
        let text = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default();
        let number = |name: &str| row.get(name).and_then(Value::as_u64).unwrap_or_default();
        let limit = text("limit");
        let amount = |n: u64| {
            if limit.contains(" money/") {
                format!("{}.{:06}", n / 1_000_000, n % 1_000_000)
            } else {
                n.to_string()
            }
        };
        table.push([
            text("holder").to_owned(),
            limit.to_owned(),
            amount(number("used")),
            amount(number("remaining")),
            spoken(number("resets_in_ms")),
        ]);
    }
    say(&columns(&table))
}

/// Whole seconds, in the words of a person.
fn spoken(ms: u64) -> String {
    let seconds = ms.div_ceil(1000);
    match seconds {
        0 => "-".to_owned(),
        1..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds.div_ceil(60)),
        7200..=172_799 => format!("{}h", seconds.div_ceil(3600)),
        _ => format!("{}d", seconds.div_ceil(86_400)),
    }
}
