//! `guan secret seal|status|rewrap`. A secret comes by standard input, never by an argument. Called by `commands`.

use std::io::{self, IsTerminal, Read, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use serde_json::Value;
use zeroize::Zeroizing;

use super::door::Door;
use super::key::runtime;
use super::{Failure, Places, remark, say};

/// Seal secrets.
#[derive(Debug, Args)]
pub(super) struct SecretArgs {
    #[command(subcommand)]
    command: Command,
    /// Print JSON for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read a secret from standard input and print it as a sealed: value for guan.toml
    Seal,
    /// Print what wraps the data key, whether the key service is there, and what is due
    Status,
    /// Wrap the data key with what the config file names now: another provider, another key, or its newest version
    Rewrap {
        #[arg(
            long = "from",
            value_name = "FILE",
            help = "While the server doesn't run: a config file whose [kms] opens the store as it is [default: the server's config file]"
        )]
        from: Option<PathBuf>,
    },
}

/// Does it.
///
/// # Errors
/// When the folder, the server or the key service says no.
pub(super) fn run(args: &SecretArgs, places: &Places) -> Result<(), Failure> {
    let runtime = runtime()?;
    match &args.command {
        Command::Seal => {
            let secret = read_secret()?;
            let door = Door::open(&runtime, places)?;
            let sealed = runtime.block_on(door.seal(&secret));
            door.close(&runtime);
            let sealed = sealed?;
            if args.json {
                return say(&serde_json::json!({ "sealed": sealed }).to_string());
            }
            say(&sealed)
        }
        Command::Status => {
            let door = Door::open(&runtime, places)?;
            let status = runtime.block_on(door.secret_status());
            door.close(&runtime);
            show_status(&status?, args.json)
        }
        Command::Rewrap { from } => {
            let door = Door::open_from(&runtime, places, from.as_deref())?;
            let done = runtime.block_on(door.rewrap());
            door.close(&runtime);
            let done = done?;
            if args.json {
                return say(&done.to_string());
            }
            say(&format!(
                "the data key is wrapped by {} now; before, by {}",
                wrapping(&done, ""),
                wrapping(&done, "old_"),
            ))
        }
    }
}

/// Provider, key and version, as an answer names them.
fn wrapping(answer: &Value, prefix: &str) -> String {
    let text = |name: &str| {
        let value = answer.get(format!("{prefix}{name}"));
        value.and_then(Value::as_str).unwrap_or_default()
    };
    let version = match text("version") {
        "" => String::new(),
        version => format!(", version {version}"),
    };
    format!("\"{}\" (key {}{version})", text("provider"), text("key_id"))
}

fn show_status(status: &Value, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return say(&status.to_string());
    }
    let text = |name: &str| status.get(name).and_then(Value::as_str).unwrap_or_default();
    let flag = |name: &str| status.get(name) == Some(&Value::Bool(true));
    let word = if flag("reachable") { "yes" } else { "no" };
    let mut lines = vec![
        format!("data key     {}", text("data_key")),
        format!("wrapped by   {}", wrapping(status, "")),
        format!(
            "opens        {word}, since {}; last asked {}",
            text("since"),
            text("checked_at")
        ),
    ];
    if !text("fault").is_empty() {
        lines.push(format!("             {}", text("fault")));
    }
    if flag("rewrap_due") {
        lines.push(
            "rewrap       due: [kms] names another provider or key; type `guan secret rewrap`"
                .to_owned(),
        );
    }
    let due = status.get("keys_due").and_then(Value::as_u64);
    match due.unwrap_or_default() {
        0 => lines.push("keys due     none".to_owned()),
        due => lines.push(format!("keys due     {due}; see `guan key list --due`")),
    }
    say(&lines.join("\n"))
}

/// The secret, without the line's end. On a terminal nothing is shown while it is typed.
fn read_secret() -> Result<Zeroizing<String>, Failure> {
    let mut input = io::stdin().lock();
    let mut text = Zeroizing::new(String::with_capacity(CAPACITY));
    let wrong = |cause: io::Error| Failure::new(format!("the secret can't be read: {cause}"));
    if input.is_terminal() {
        let _quiet = Quiet::begin()?;
        write!(io::stderr(), "Secret (not shown): ").ok();
        let _size = io::BufRead::read_line(&mut input, &mut text).map_err(wrong)?;
        remark("");
    } else {
        let _size = (&mut input)
            .take(u64::try_from(CAPACITY).unwrap_or(u64::MAX))
            .read_to_string(&mut text)
            .map_err(wrong)?;
    }
    let kept = Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned());
    if kept.is_empty() {
        return Err(Failure::new(
            "there is no secret on standard input; pipe it in, such as: guan secret seal < FILE",
        ));
    }
    Ok(kept)
}

/// A terminal that shows nothing until this is dropped.
struct Quiet {
    before: Termios,
}

impl Quiet {
    fn begin() -> Result<Self, Failure> {
        let wrong = |cause: rustix::io::Errno| {
            Failure::new(format!(
                "the terminal can't be kept from showing the secret: {cause}"
            ))
        };
        let before = tcgetattr(io::stdin()).map_err(wrong)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &quiet).map_err(wrong)?;
        Ok(Self { before })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        tcsetattr(io::stdin(), OptionalActions::Flush, &self.before).ok();
    }
}

/// More than any secret that is taken, so that the text never moves in memory.
const CAPACITY: usize = 64 << 10;
