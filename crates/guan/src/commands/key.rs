//! `guan key …`: makes, shows, rotates, takes over and takes back keys.
//!
//! It decides how keys are printed; who may have one is `control`'s business, and `door` decides where it acts.
//! Called by `commands`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use control::keys::{Foreign, KeyRow, NewKey};
use rules::limit::{Limit, parse_budget, parse_limit};
use rules::network::Network;
use rules::policy::Own;
use serde_json::Value;
use zeroize::Zeroizing;

use super::door::Door;
use super::{Failure, Places, remark, say};
use crate::config::units;

/// Make, list and take back API keys.
#[derive(Debug, Args)]
pub(super) struct KeyArgs {
    #[command(subcommand)]
    command: Command,
    /// Print JSON for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key and print it, this once
    Create {
        /// What it is for: a person, a team, a program
        #[arg(long)]
        name: String,
        /// Its role: user, admin, or one of the config file's
        #[arg(long)]
        role: String,
        /// Who pays
        #[arg(long)]
        project: Option<String>,
        /// For how long it is good, such as 30d or 12h [default: until it is revoked]
        #[arg(long, value_name = "TIME", value_parser = span)]
        expires: Option<Duration>,
        /// From when it is good, such as 2030-12-31T08:00:00Z [default: at once]
        #[arg(long, value_name = "TIME", value_parser = moment)]
        not_before: Option<i64>,
        /// What to remember of it
        #[arg(long, default_value = "")]
        notes: String,
        #[command(flatten)]
        own: OwnArgs,
    },
    /// List all keys; never their text
    List {
        #[arg(
            long,
            help = "Only those whose secret is older than their role's rotate_after"
        )]
        due: bool,
    },
    /// Print what a key may do, and who says so
    Show {
        /// Its id, or the first letters of it
        id: String,
    },
    /// Give a key a new secret and print it, this once; id, limits and usage stay
    #[command(group(clap::ArgGroup::new("when").required(true).args(["overlap", "at_once"])))]
    Rotate {
        /// Its id, or the first letters of it
        id: String,
        /// How long the old secret works on, such as 24h
        #[arg(long, value_name = "TIME", value_parser = span)]
        overlap: Option<Duration>,
        /// The old secret ends now: for a leaked one
        #[arg(long)]
        at_once: bool,
    },
    /// Take over keys of another gateway, so that no client changes
    ///
    /// One key a line, then perhaps a blank and a name; `#` begins a remark. With --plain the keys themselves are read,
    /// from a file or (`-`) from standard input; with --sha256 their SHA-256 in hex.
    #[command(group(clap::ArgGroup::new("form").required(true).args(["sha256", "plain"])))]
    Import {
        /// A file of SHA-256 hashes, `-` for standard input
        #[arg(long, value_name = "FILE")]
        sha256: Option<PathBuf>,
        /// A file of keys, `-` for standard input
        #[arg(long, value_name = "FILE")]
        plain: Option<PathBuf>,
        /// What keys without a name are called
        #[arg(long, default_value = "imported")]
        name: String,
        /// Their role
        #[arg(long)]
        role: String,
        /// Who pays
        #[arg(long)]
        project: Option<String>,
    },
    /// Change what a key is called and may do; what isn't named stays
    Change(Box<ChangeArgs>),
    /// Take a key back; it is refused from then on
    Revoke {
        /// Its id, or the first letters of it
        id: String,
    },
}

/// What shall be different in a key.
#[derive(Debug, Args)]
struct ChangeArgs {
    /// Its id, or the first letters of it
    id: String,
    /// What it is for
    #[arg(long)]
    name: Option<String>,
    /// Its role
    #[arg(long)]
    role: Option<String>,
    /// Who pays
    #[arg(long)]
    project: Option<String>,
    /// For how long it is good from now on, such as 30d or 12h
    #[arg(long, value_name = "TIME", value_parser = span)]
    expires: Option<Duration>,
    /// From when it is good, such as 2030-12-31T08:00:00Z
    #[arg(long, value_name = "TIME", value_parser = moment)]
    not_before: Option<i64>,
    /// What to remember of it
    #[arg(long)]
    notes: Option<String>,
    #[command(flatten)]
    own: OwnArgs,
    /// Take a value away, by the name that `key show --json` gives it; may be given several times
    #[arg(long, value_name = "VALUE")]
    clear: Vec<String>,
}

impl ChangeArgs {
    async fn ask(self, door: &Door) -> Result<Value, Failure> {
        let (id, patch) = self.patch();
        let path = format!("/admin/v1/keys/{}", super::door::checked(&id)?);
        door.change(&path, &patch).await
    }

    fn patch(self) -> (String, Value) {
        let now = crate::supervisor::unix_seconds();
        let end = |d: Duration| {
            let at = now.saturating_add(i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
            control::clock::rfc3339_seconds(at)
        };
        let given = [
            ("name", self.name),
            ("role", self.role),
            ("project", self.project),
            ("expires_at", self.expires.map(end)),
            (
                "not_before",
                self.not_before.map(control::clock::rfc3339_seconds),
            ),
            ("notes", self.notes),
        ];
        let plain = ["project", "not_before", "expires_at", "notes"];
        (self.id, patch(given, self.own, self.clear, &plain))
    }
}

/// A JSON Merge Patch: what is given, and `null` for what shall be cleared. What isn't one of the `plain` members is
/// one of those that are narrowed; the API knows which there are.
pub(super) fn patch<const N: usize>(
    given: [(&str, Option<String>); N],
    own: OwnArgs,
    clear: Vec<String>,
    plain: &[&str],
) -> Value {
    let mut own = serde_json::to_value(own.meant()).unwrap_or_default();
    let mut patch = serde_json::Map::new();
    for (name, value) in given {
        if let Some(value) = value {
            drop(patch.insert(name.to_owned(), value.into()));
        }
    }
    for name in clear {
        if plain.contains(&name.as_str()) {
            drop(patch.insert(name, Value::Null));
        } else if let Value::Object(own) = &mut own {
            drop(own.insert(name, Value::Null));
        }
    }
    if own.as_object().is_some_and(|own| !own.is_empty()) {
        drop(patch.insert("own".to_owned(), own));
    }
    Value::Object(patch)
}

/// What a key or a project narrows of its role.
#[derive(Debug, Args)]
pub(super) struct OwnArgs {
    /// Only this model; may be given several times
    #[arg(long, value_name = "MODEL")]
    model: Vec<String>,
    /// Only this endpoint, such as /v1/chat/completions; may be given several times
    #[arg(long, value_name = "PATH")]
    endpoint: Vec<String>,
    /// Only from this address or range, such as 10.0.0.0/8; may be given several times
    #[arg(long, value_name = "RANGE")]
    address: Vec<Network>,
    /// At most so many calls a minute
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<u32>,
    /// At most so many calls at the same time
    #[arg(long, value_name = "N")]
    concurrent_requests: Option<u32>,
    /// Answers of at most so many tokens
    #[arg(long, value_name = "N")]
    max_output: Option<u64>,
    /// A limit over a window, such as "40000 tokens/minute" or "600 requests/hour burst 20"; may be given several times
    #[arg(long, value_name = "LIMIT", value_parser = parse_limit)]
    limit: Vec<Limit>,
    /// A budget in UTC, such as "2000000 tokens/month" or "25.50 money/month"; may be given several times
    #[arg(long, value_name = "BUDGET", value_parser = parse_budget)]
    budget: Vec<Limit>,
}

impl OwnArgs {
    /// As the rules take it.
    pub(super) fn meant(self) -> Own {
        fn some<T>(list: Vec<T>) -> Option<Arc<[T]>> {
            (!list.is_empty()).then(|| list.into())
        }
        Own {
            models: some(self.model),
            endpoints: some(self.endpoint),
            addresses: some(self.address),
            requests_per_minute: self.requests_per_minute,
            concurrent_requests: self.concurrent_requests,
            max_output_tokens: self.max_output,
            limits: some(self.limit),
            budget: some(self.budget),
        }
    }
}

/// Does it.
///
/// # Errors
/// When the folder, the server or the key's particulars say no.
pub(super) fn run(args: KeyArgs, places: &Places) -> Result<(), Failure> {
    let runtime = runtime()?;
    let door = Door::open(&runtime, places)?;
    let done = match args.command {
        Command::Create {
            name,
            role,
            project,
            expires,
            not_before,
            notes,
            own,
        } => {
            let now = crate::supervisor::unix_seconds();
            let ends =
                |d: Duration| now.saturating_add(i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
            let wish = NewKey {
                name,
                role,
                project,
                not_before,
                expires_at: expires.map(ends),
                own: own.meant(),
                notes,
            };
            runtime
                .block_on(door.create(wish))
                .and_then(|made| show_created(&made, args.json))
        }
        Command::List { due } => runtime.block_on(door.list()).and_then(|mut rows| {
            if due && !args.json && rows.iter().all(|(_, is_due)| !is_due) {
                remark("no key is due for a new secret");
                return Ok(());
            }
            rows.retain(|(_, is_due)| *is_due || !due);
            show_list(&rows, args.json)
        }),
        Command::Show { id } => runtime
            .block_on(door.show(&id))
            .and_then(|key| show_one(&key, args.json)),
        Command::Rotate { id, overlap, .. } => {
            let seconds = u32::try_from(overlap.unwrap_or_default().as_secs()).unwrap_or(u32::MAX);
            runtime
                .block_on(door.rotate(&id, seconds))
                .and_then(|made| show_created(&made, args.json))
        }
        Command::Import {
            sha256,
            plain,
            name,
            role,
            project,
        } => {
            let form = if sha256.is_some() {
                Foreign::Sha256
            } else {
                Foreign::Plain
            };
            let file = sha256.or(plain).unwrap_or_else(|| PathBuf::from("-"));
            let like = NewKey {
                name,
                role,
                project,
                ..NewKey::default()
            };
            read_foreign(&file).and_then(|list| {
                let rows = runtime.block_on(door.import(form, list, like))?;
                show_imported(&rows, args.json)
            })
        }
        Command::Change(changes) => runtime
            .block_on(changes.ask(&door))
            .and_then(|row| show_changed(&row, args.json)),
        Command::Revoke { id } => {
            let done = runtime.block_on(door.revoke(&id));
            done.and_then(|(row, already)| show_revoked(&row, already, args.json))
        }
    };
    door.close(&runtime);
    done
}

/// A runtime for one command.
///
/// # Errors
/// When the system gives none.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| {
            Failure::new(format!(
                "this command can't start: {e}; raise the limit on open files"
            ))
        })
}

/// A key as it was made; its text is printed and forgotten.
pub(super) struct Made {
    pub(super) row: KeyRow,
    pub(super) key: Zeroizing<String>,
}

pub(super) fn span(text: &str) -> Result<Duration, String> {
    units::duration(text)
        .filter(|d| *d >= Duration::from_secs(1))
        .ok_or_else(|| "write a number and a unit, such as 30d or 12h".to_owned())
}

fn moment(text: &str) -> Result<i64, String> {
    control::clock::parse_rfc3339(text)
        .ok_or_else(|| "write a time such as 2030-12-31T08:00:00Z".to_owned())
}

/// A list of foreign keys.
fn read_foreign(file: &Path) -> Result<Zeroizing<String>, Failure> {
    let mut text = Zeroizing::new(String::new());
    let read = if file == Path::new("-") {
        std::io::stdin().take(MOST_LIST).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|f| f.take(MOST_LIST).read_to_string(&mut text))
    };
    let at = |e| Failure::new(format!("{} can't be read: {e}", file.display()));
    let _size = read.map_err(at)?;
    Ok(text)
}

fn show_imported(rows: &[KeyRow], as_json: bool) -> Result<(), Failure> {
    if as_json {
        return say(&serde_json::to_string(rows).unwrap_or_default());
    }
    remark(&format!(
        "{} keys are taken over; their clients go on as before",
        rows.len()
    ));
    let table: Vec<[String; 3]> = rows
        .iter()
        .map(|row| [row.id.to_string(), row.last4.clone(), row.name.clone()])
        .collect();
    say(&columns(&table))
}

/// A key with what it may do and who says so, from the API's answer.
fn show_one(key: &Value, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return say(&key.to_string());
    }
    let text = |name: &str| match key.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "-".to_owned(),
        Some(other) => other.to_string(),
    };
    let mut lines = Vec::new();
    let names = [
        "id",
        "name",
        "role",
        "project",
        "created_at",
        "created_by",
        "not_before",
        "expires_at",
        "revoked_at",
        "rotated_at",
        "last_used",
        "notes",
    ];
    lines.extend(names.map(|name| [name.to_owned(), text(name), String::new()]));
    let list = |name: &str| {
        key.get(name)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let of = |value: &Value, name: &str| {
        value
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or("")
            .to_owned()
    };
    for secret in list("secrets") {
        let until = of(&secret, "valid_until");
        let until = if until.is_empty() {
            "as long as the key".to_owned()
        } else {
            format!("until {until}")
        };
        lines.push([
            "secret".to_owned(),
            format!(
                "…{} made {}",
                of(&secret, "last4"),
                of(&secret, "created_at")
            ),
            until,
        ]);
    }
    for said in list("policy") {
        lines.push([
            of(&said, "name"),
            of(&said, "value"),
            format!("by {}", of(&said, "from")),
        ]);
    }
    if list("policy").is_empty() {
        remark("its role isn't in the config file: the key is refused");
    }
    if key.get("project_disabled") == Some(&Value::Bool(true)) {
        remark("its project is disabled: the key is refused");
    }
    if key.get("rotation_due") == Some(&Value::Bool(true)) {
        remark("its secret is older than the role's rotate_after: type `guan key rotate`");
    }
    say(&columns(&lines))
}

/// No list is larger, bytes.
const MOST_LIST: u64 = 4 << 20;

/// The key alone on standard output, so that `KEY=$(guan key create …)` works.
fn show_created(made: &Made, as_json: bool) -> Result<(), Failure> {
    let Made { row, key } = made;
    if as_json {
        let mut shown = serde_json::to_value(row).unwrap_or_default();
        if let Value::Object(members) = &mut shown {
            drop(members.insert("key".to_owned(), Value::from(key.as_str())));
        }
        return say(&shown.to_string());
    }
    let until = row
        .expires_at
        .map(|at| format!(", good until {}", control::clock::rfc3339_seconds(at)))
        .unwrap_or_default();
    remark(&format!(
        "key {} for \"{}\", role {}{until}; it is shown this once:",
        row.id, row.name, row.role
    ));
    say(key)
}

fn show_list(rows: &[(KeyRow, bool)], as_json: bool) -> Result<(), Failure> {
    if as_json {
        let rows: Vec<Value> = rows
            .iter()
            .map(|(row, due)| {
                let mut row = serde_json::to_value(row).unwrap_or_default();
                if let Value::Object(members) = &mut row {
                    drop(members.insert("rotation_due".to_owned(), Value::from(*due)));
                }
                row
            })
            .collect();
        return say(&Value::from(rows).to_string());
    }
    if rows.is_empty() {
        remark("there is no key; make one with `guan key create --name NAME --role user`");
        return Ok(());
    }
    let now = crate::supervisor::unix_seconds();
    let mut table =
        vec![["ID", "ENDS IN", "NAME", "ROLE", "PROJECT", "MADE", "STATE"].map(str::to_owned)];
    table.extend(rows.iter().map(|(row, due)| {
        let state = match (row.revoked_at, row.expires_at) {
            (Some(at), _) => format!("revoked {}", control::clock::rfc3339_seconds(at)),
            (None, Some(at)) if at <= now => {
                format!("expired {}", control::clock::rfc3339_seconds(at))
            }
            (None, Some(at)) => format!("good until {}", control::clock::rfc3339_seconds(at)),
            (None, None) => "good".to_owned(),
        };
        let state = if *due {
            format!("{state}, rotation due")
        } else {
            state
        };
        [
            row.id.to_string(),
            row.last4.clone(),
            row.name.clone(),
            row.role.clone(),
            row.project.clone().unwrap_or_else(|| "-".to_owned()),
            control::clock::rfc3339_seconds(row.created_at),
            state,
        ]
    }));
    say(&columns(&table))
}

fn show_changed(row: &Value, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return say(&row.to_string());
    }
    let id = row.get("id").and_then(Value::as_str).unwrap_or("-");
    let version = row
        .get("version")
        .and_then(Value::as_i64)
        .unwrap_or_default();
    say(&format!(
        "key {id} is as you said (version {version}); see it with `guan key show {id}`"
    ))
}

fn show_revoked(row: &KeyRow, already: bool, as_json: bool) -> Result<(), Failure> {
    if as_json {
        let mut shown = serde_json::to_value(row).unwrap_or_default();
        if let Value::Object(members) = &mut shown {
            drop(members.insert("already_revoked".to_owned(), Value::from(already)));
        }
        return say(&shown.to_string());
    }
    let how = if already {
        "was revoked already"
    } else {
        "is revoked"
    };
    say(&format!("key {} (\"{}\") {how}", row.id, row.name))
}

/// Columns as wide as their widest text.
pub(super) fn columns<const N: usize>(table: &[[String; N]]) -> String {
    let width = |column: usize| {
        table
            .iter()
            .filter_map(|row| row.get(column))
            .map(|t| t.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let lines = table.iter().map(|row| {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(text, width)| format!("{text:<width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}
