//! `guan key create|list|revoke`: in this process when nobody serves from the data folder, else through the server.
//!
//! The data folder's lock decides which (so both write audit records, in one order). It decides how keys are
//! printed; who may have one is `control`'s business. Called by `commands`.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use control::audit_log::{self, AuditSpec, Fsync};
use control::bootstrap;
use control::keys::{KeyRow, Keys, KeysFault, NewKey};
use control::publish::Publisher;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{Failure, Places, config, http, remark, say};
use crate::config::units;
use crate::folder::{Folder, Held};

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
    },
    /// List all keys; never their text
    List,
    /// Take a key back; it is refused from then on
    Revoke {
        /// Its id, or the first letters of it
        id: String,
    },
}

/// Does it.
///
/// # Errors
/// When the folder, the server or the key's particulars say no.
pub(super) fn run(args: KeyArgs, places: &Places) -> Result<(), Failure> {
    if !places.data.is_dir() {
        return Err(Failure::new(format!(
            "there is no data folder {}; name the server's with --data DIR, or make one with `guan init`",
            places.data.display()
        )));
    }
    let folder = Folder::open(&places.data)?;
    let runtime = runtime()?;
    let door = match folder.lock()? {
        Ok(lock) => Door::Here(Box::new(
            runtime.block_on(Here::open(&folder, lock, places))?,
        )),
        Err(Held { .. }) => Door::Server(Server { folder }),
    };
    let done = match args.command {
        Command::Create {
            name,
            role,
            project,
            expires,
        } => {
            let wish = Wish {
                name,
                role,
                project,
                expires,
            };
            runtime
                .block_on(door.create(wish))
                .and_then(|made| show_created(&made, args.json))
        }
        Command::List => runtime
            .block_on(door.list())
            .and_then(|rows| show_list(&rows, args.json)),
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

struct Wish {
    name: String,
    role: String,
    project: Option<String>,
    expires: Option<Duration>,
}

/// A key as it was made; its text is printed and forgotten.
struct Made {
    row: KeyRow,
    key: Zeroizing<String>,
}

/// Where keys are acted on.
enum Door {
    Here(Box<Here>),
    Server(Server),
}

impl Door {
    async fn create(&self, wish: Wish) -> Result<Made, Failure> {
        match self {
            Self::Here(here) => here.create(wish).await,
            Self::Server(server) => server.create(&wish),
        }
    }

    async fn list(&self) -> Result<Vec<KeyRow>, Failure> {
        match self {
            Self::Here(here) => here.keys.list().await.map_err(words),
            Self::Server(server) => server.list(),
        }
    }

    async fn revoke(&self, id: &str) -> Result<(KeyRow, bool), Failure> {
        match self {
            Self::Here(here) => {
                let revoked = here.keys.revoke(id, &actor()).await.map_err(words)?;
                Ok((revoked.row, revoked.already))
            }
            Self::Server(server) => server.revoke(id),
        }
    }

    /// Waits until what was recorded is on disk.
    fn close(self, runtime: &tokio::runtime::Runtime) {
        if let Self::Here(here) = self {
            let Here {
                store,
                keys,
                log,
                _lock,
                ..
            } = *here;
            drop(keys);
            if !log.join() {
                remark(
                    "guan: the last audit records may not be on disk; make room on the disk of state/audit",
                );
            }
            runtime.block_on(store.close());
        }
    }
}

/// In this process, under the lock.
struct Here {
    _lock: crate::folder::Lock,
    store: control::store::Store,
    keys: Keys,
    log: audit_log::Log,
    roles: Vec<String>,
}

impl Here {
    async fn open(
        folder: &Folder,
        lock: crate::folder::Lock,
        places: &Places,
    ) -> Result<Self, Failure> {
        let roles = config::glance(places)?.roles;
        let opened = bootstrap::open(folder.path())
            .await
            .map_err(|e| Failure::new(e.to_string()))?;
        let clock = control::clock::system();
        let (entries, log) = audit_log::open(AuditSpec {
            dir: folder.audit(),
            node: opened.node,
            generation: folder.next_generation()?,
            clock: Arc::clone(&clock),
            fsync: Fsync::Each,
        })
        .map_err(|e| Failure::new(e.to_string()))?;
        let publisher = Publisher::nobody(opened.store.clone());
        let keys = Keys::new(
            opened.store.clone(),
            opened.pepper,
            publisher,
            entries,
            clock,
        );
        Ok(Self {
            _lock: lock,
            store: opened.store,
            keys,
            log,
            roles,
        })
    }

    async fn create(&self, wish: Wish) -> Result<Made, Failure> {
        let now = crate::supervisor::unix_seconds();
        let expires_at = wish
            .expires
            .map(|span| now.saturating_add(i64::try_from(span.as_secs()).unwrap_or(i64::MAX)));
        let Wish {
            name,
            role,
            project,
            expires: _,
        } = wish;
        let new = NewKey {
            name,
            role,
            project,
            expires_at,
        };
        let created = self
            .keys
            .create(new, &self.roles, &actor())
            .await
            .map_err(words)?;
        Ok(Made {
            row: created.row,
            key: created.text,
        })
    }
}

/// Through the server that holds the lock.
struct Server {
    folder: Folder,
}

impl Server {
    fn create(&self, wish: &Wish) -> Result<Made, Failure> {
        let seconds = wish
            .expires
            .map(|span| u32::try_from(span.as_secs()))
            .transpose()
            .map_err(|_large| {
                Failure::new("--expires is too long; leave it out for a key without an end")
            })?;
        let body = json!({
            "name": wish.name,
            "role": wish.role,
            "project": wish.project,
            "expires_in_seconds": seconds,
        });
        let mut answer = self.call("POST", "/admin/v1/keys", Some(&body))?;
        let key = answer.get_mut("key").map(Value::take);
        let key = match key {
            Some(Value::String(text)) => Zeroizing::new(text),
            _ => return Err(Failure::new("the server's answer has no key; see its log")),
        };
        Ok(Made {
            row: row(answer)?,
            key,
        })
    }

    fn list(&self) -> Result<Vec<KeyRow>, Failure> {
        let mut rows: Vec<KeyRow> = Vec::new();
        loop {
            let after = rows
                .last()
                .map(|row| format!("&after={}", row.id))
                .unwrap_or_default();
            let mut page = self.call("GET", &format!("/admin/v1/keys?limit=100{after}"), None)?;
            let data = page.get_mut("data").map(Value::take).unwrap_or_default();
            let data: Vec<KeyRow> = serde_json::from_value(data).map_err(|e| unreadable(&e))?;
            let is_last = data.is_empty() || page.get("has_more") != Some(&Value::Bool(true));
            rows.extend(data);
            if is_last {
                return Ok(rows);
            }
        }
    }

    fn revoke(&self, id: &str) -> Result<(KeyRow, bool), Failure> {
        // What isn't an id must not become a path.
        let plain = !id.is_empty()
            && id
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        if !plain {
            return Err(words(KeysFault::NotAnId));
        }
        let answer = self.call("DELETE", &format!("/admin/v1/keys/{id}"), None)?;
        let already = answer.get("already_revoked") == Some(&Value::Bool(true));
        Ok((row(answer)?, already))
    }

    /// One exchange on the admin socket.
    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let socket = self.folder.admin_socket();
        let at = |e: std::io::Error| {
            Failure::new(format!(
                "the data folder is in use, but the server doesn't answer on {}: {e}; if it is starting, try again in a moment",
                socket.display()
            ))
        };
        let stream = UnixStream::connect(&socket).map_err(at)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(at)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(at)?;
        let bytes = body.map(|value| value.to_string().into_bytes());
        let answer =
            http::exchange(stream, method, "guan", path, None, bytes.as_deref()).map_err(at)?;
        let value: Value = serde_json::from_slice(&answer.body).map_err(|e| unreadable(&e))?;
        if (200..300).contains(&answer.status) {
            return Ok(value);
        }
        let message = value.pointer("/error/message").and_then(Value::as_str);
        Err(Failure::new(match message {
            Some(message) => message.to_owned(),
            None => format!("the server answered {}; see its log", answer.status),
        }))
    }
}

/// Who acts, for the audit record.
fn actor() -> String {
    format!("local:{}", rustix::process::geteuid().as_raw())
}

fn words(fault: KeysFault) -> Failure {
    Failure::new(fault.to_string())
}

fn unreadable(e: &serde_json::Error) -> Failure {
    Failure::new(format!(
        "the server's answer can't be read: {e}; is it of another version?"
    ))
}

/// A row from an answer that may say more than the row.
fn row(answer: Value) -> Result<KeyRow, Failure> {
    serde_json::from_value(answer).map_err(|e| unreadable(&e))
}

fn span(text: &str) -> Result<Duration, String> {
    units::duration(text)
        .filter(|d| *d >= Duration::from_secs(1))
        .ok_or_else(|| "write a number and a unit, such as 30d or 12h".to_owned())
}

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

fn show_list(rows: &[KeyRow], as_json: bool) -> Result<(), Failure> {
    if as_json {
        return say(&serde_json::to_string(rows).unwrap_or_default());
    }
    if rows.is_empty() {
        remark("there is no key; make one with `guan key create --name NAME --role user`");
        return Ok(());
    }
    let now = crate::supervisor::unix_seconds();
    let mut table =
        vec![["ID", "ENDS IN", "NAME", "ROLE", "PROJECT", "MADE", "STATE"].map(str::to_owned)];
    table.extend(rows.iter().map(|row| {
        let state = match (row.revoked_at, row.expires_at) {
            (Some(at), _) => format!("revoked {}", control::clock::rfc3339_seconds(at)),
            (None, Some(at)) if at <= now => {
                format!("expired {}", control::clock::rfc3339_seconds(at))
            }
            (None, Some(at)) => format!("good until {}", control::clock::rfc3339_seconds(at)),
            (None, None) => "good".to_owned(),
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
fn columns<const N: usize>(table: &[[String; N]]) -> String {
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

/// For each step of an exchange with the server.
const PATIENCE: Duration = Duration::from_secs(10);
