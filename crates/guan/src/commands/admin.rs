//! `guan admin …`: admin tokens, and the description of the API that they open. Called by `commands`.

use std::time::Duration;

use clap::{Args, Subcommand};
use control::keys::{AdminRow, Right};
use serde_json::{Value, json};

use super::door::{Door, checked};
use super::key::{columns, runtime, span};
use super::{Failure, Places, remark, say};

/// Make, list and take back admin tokens.
#[derive(Debug, Args)]
pub(super) struct AdminArgs {
    #[command(subcommand)]
    command: Command,
    /// Print JSON for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a token for the admin API and print it, this once
    Create {
        /// Whose it is: a person, a program
        #[arg(long)]
        name: String,
        /// viewer looks; operator makes and changes keys and projects; owner makes admin tokens and seals secrets too
        #[arg(long, value_parser = right)]
        right: Right,
        /// For an operator: only keys of this role; may be given several times [default: all roles]
        #[arg(long, value_name = "ROLE")]
        role: Vec<String>,
        /// For how long it is good, such as 30d or 12h [default: until it is revoked]
        #[arg(long, value_name = "TIME", value_parser = span)]
        expires: Option<Duration>,
    },
    /// List all tokens; never their text
    List,
    /// Take a token back; it is refused from then on
    Revoke {
        /// Its id
        id: String,
        /// The tokens that were made with it too, and with those
        #[arg(long)]
        with_made: bool,
    },
    #[command(about = "Print the OpenAPI 3.1 description of the admin API")]
    Openapi,
}

fn right(text: &str) -> Result<Right, String> {
    Right::parse(text).ok_or_else(|| "write viewer, operator or owner".to_owned())
}

/// Does it.
///
/// # Errors
/// When the folder, the server or the store says no.
pub(super) fn run(args: AdminArgs, places: &Places) -> Result<(), Failure> {
    if matches!(args.command, Command::Openapi) {
        let text = serde_json::to_string_pretty(&control::api::description());
        return say(&text.unwrap_or_default());
    }
    let runtime = runtime()?;
    let door = Door::open(&runtime, places)?;
    let done = runtime
        .block_on(act(&door, args.command))
        .and_then(|shown| show(&shown, args.json));
    door.close(&runtime);
    done
}

enum Shown {
    Made(Value),
    List(Vec<Value>),
    Revoked(Value),
}

async fn act(door: &Door, command: Command) -> Result<Shown, Failure> {
    let path = "/admin/v1/admins";
    match command {
        Command::Create {
            name,
            right,
            role,
            expires,
        } => {
            let seconds = expires.map(|d| u32::try_from(d.as_secs()).unwrap_or(u32::MAX));
            let body = json!({
                "name": name,
                "right": right,
                "roles": (!role.is_empty()).then_some(role),
                "expires_in_seconds": seconds,
            });
            door.call("POST", path, &[], Some(&body))
                .await
                .map(Shown::Made)
        }
        Command::List => {
            let rows = door.pages(&format!("{path}?limit=1000"), "id").await;
            rows.map(Shown::List)
        }
        Command::Revoke { id, with_made } => {
            let path = format!("{path}/{}?with_made={with_made}", checked(&id)?);
            door.call("DELETE", &path, &[], None)
                .await
                .map(Shown::Revoked)
        }
        // It needs no data folder, and was printed before one was opened.
        Command::Openapi => Ok(Shown::List(Vec::new())),
    }
}

fn show(shown: &Shown, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return say(&match shown {
            Shown::Made(row) | Shown::Revoked(row) => row.to_string(),
            Shown::List(rows) => Value::from(rows.clone()).to_string(),
        });
    }
    let text = |row: &Value, name: &str| {
        let text = row.get(name).and_then(Value::as_str);
        text.unwrap_or("-").to_owned()
    };
    match shown {
        Shown::Made(row) => {
            remark(&format!(
                "admin token {} for \"{}\", right {}; it is shown this once:",
                text(row, "id"),
                text(row, "name"),
                text(row, "right")
            ));
            say(&text(row, "token"))
        }
        Shown::Revoked(row) => {
            let made = row.get("made").and_then(Value::as_array);
            for one in made.into_iter().flatten() {
                let still = one.get("revoked_at").is_none_or(Value::is_null);
                remark(&format!(
                    "admin token {} (\"{}\") was made with it and {}",
                    text(one, "id"),
                    text(one, "name"),
                    if still {
                        "is still good: --with-made takes it back too"
                    } else {
                        "is revoked too"
                    }
                ));
            }
            say(&format!(
                "admin token {} (\"{}\") is revoked",
                text(row, "id"),
                text(row, "name")
            ))
        }
        Shown::List(rows) if rows.is_empty() => {
            remark(
                "there is no admin token; make one with `guan admin create --name NAME --right viewer`",
            );
            Ok(())
        }
        Shown::List(rows) => table(rows),
    }
}

fn table(rows: &[Value]) -> Result<(), Failure> {
    let now = crate::supervisor::unix_seconds();
    let mut table = vec![
        [
            "ID",
            "ENDS IN",
            "NAME",
            "RIGHT",
            "ROLES",
            "LAST USED",
            "STATE",
        ]
        .map(str::to_owned),
    ];
    for row in rows {
        let row: AdminRow = serde_json::from_value(row.clone())
            .map_err(|e| Failure::new(format!("the list can't be read: {e}")))?;
        let time = control::clock::rfc3339_seconds;
        let state = match (row.revoked_at, row.expires_at) {
            (Some(at), _) => format!("revoked {}", time(at)),
            (None, Some(at)) if at <= now => format!("expired {}", time(at)),
            (None, Some(at)) => format!("good until {}", time(at)),
            (None, None) => "good".to_owned(),
        };
        table.push([
            row.id.to_string(),
            row.last4,
            row.name,
            row.right.as_str().to_owned(),
            row.roles
                .map_or_else(|| "all".to_owned(), |roles| roles.join(", ")),
            row.last_used.map_or_else(|| "never".to_owned(), time),
            state,
        ]);
    }
    say(&columns(&table))
}
