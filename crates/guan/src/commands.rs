//! The command line: what can be typed, where the data folder lies, how a command ends.
//!
//! It decides nothing but that; each command has its own file. Called by `main`.

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

mod admin;
mod audit;
mod config;
mod describe;
mod door;
mod http;
mod init;
mod key;
mod limits;
mod model;
mod probe;
mod project;
mod secret;
mod store;
mod tls;
mod usage;

/// The guarded front of your own language model.
#[derive(Debug, Parser)]
#[command(name = "guan", version, propagate_version = true, after_help = EXIT_CODES)]
struct Cli {
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        help_heading = "Where",
        help = "The data folder [default: $GUAN_DATA, else ./guan-data]"
    )]
    data: Option<PathBuf>,
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        help_heading = "Where",
        help = "The config file [default: $GUAN_CONFIG, else guan.toml in the data folder]"
    )]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve models over HTTPS until SIGTERM or Ctrl-C; SIGHUP reads the config file again
    ///
    /// On an empty data folder it makes certificate, database and the first key, and serves the only GGUF file in
    /// models/.
    Serve,
    /// Make the data folder and, with --model or --upstream, its guan.toml
    Init(init::InitArgs),
    /// Make, list, rotate and take back API keys, whether or not the server runs
    Key(key::KeyArgs),
    /// Make projects, and disable them with all their keys
    Project(project::ProjectArgs),
    /// Make, list and take back admin tokens, and describe the admin API
    Admin(admin::AdminArgs),
    /// Seal secrets for the config file, and move the key they are sealed under
    Secret(secret::SecretArgs),
    /// Move the database to a server
    Store(store::StoreArgs),
    /// Print the certificate that clients must trust
    Tls(tls::TlsArgs),
    /// Show what is left of a key's limits, or let it start afresh
    Limits(limits::LimitsArgs),
    /// Print what keys, projects and models used
    Usage(usage::UsageArgs),
    /// Judge the audit log, and print what others can judge it by
    Audit(audit::AuditArgs),
    /// Load models and look after them
    Model(model::ModelArgs),
    /// Look at the config file
    Config(config::ConfigArgs),
    /// Print the completions of a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// The process behind the listeners; the supervisor starts it
    #[command(hide = true)]
    Gateway,
}

/// Where a command finds its things.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// The data folder.
    pub(crate) data: PathBuf,
    /// The config file.
    pub(crate) config: PathBuf,
}

impl Places {
    fn new(data: Option<PathBuf>, config: Option<PathBuf>) -> io::Result<Self> {
        let from = |name: &str| {
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        let data = data
            .or_else(|| from("GUAN_DATA"))
            .unwrap_or_else(|| PathBuf::from("guan-data"));
        let data = std::path::absolute(data)?;
        let config = config
            .or_else(|| from("GUAN_CONFIG"))
            .unwrap_or_else(|| data.join("guan.toml"));
        Ok(Self {
            config: std::path::absolute(config)?,
            data,
        })
    }
}

/// Why a command failed, in words for the one who typed it.
#[derive(Debug)]
pub(crate) struct Failure(Option<String>);

impl Failure {
    /// With a text that says what to do.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(Some(text.into()))
    }

    /// A child process has said it already.
    pub(crate) const fn told() -> Self {
        Self(None)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            self.0
                .as_deref()
                .unwrap_or("it failed; the lines above say why"),
        )
    }
}

impl std::error::Error for Failure {}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        Self::new(e.to_string())
    }
}

/// Does what the command line says.
pub(crate) fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version come this way too.
            e.print().ok();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    if matches!(cli.command, Command::Gateway) {
        crate::journal::begin();
        return crate::wiring::run();
    }
    match Places::new(cli.data, cli.config)
        .map_err(Failure::from)
        .and_then(|p| act(cli.command, &p))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(text)) => {
            if let Some(text) = text {
                writeln!(io::stderr(), "guan: {text}").ok();
            }
            ExitCode::FAILURE
        }
    }
}

fn act(command: Command, places: &Places) -> Result<(), Failure> {
    match command {
        Command::Serve => {
            crate::journal::begin();
            crate::supervisor::run(places)
        }
        Command::Init(args) => init::run(&args, places),
        Command::Key(args) => key::run(args, places),
        Command::Project(args) => project::run(args, places),
        Command::Admin(args) => admin::run(args, places),
        Command::Secret(args) => secret::run(&args, places),
        Command::Store(args) => store::run(&args, places),
        Command::Tls(args) => tls::run(&args, places),
        Command::Limits(args) => limits::run(&args, places),
        Command::Usage(args) => usage::run(&args, places),
        Command::Audit(args) => audit::run(&args, places),
        Command::Model(args) => {
            let glance = config::glance(places)?;
            let models = places.data.join("models");
            model::run(&args, &models, glance.mirror.as_deref())
                .map_err(|e| Failure::new(e.to_string()))
        }
        Command::Config(args) => config::run(&args, places),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "guan", &mut script);
            Ok(io::stdout().write_all(&script)?)
        }
        // Handled before: it has no data folder.
        Command::Gateway => Ok(()),
    }
}

/// Prints a text and a newline for people or programs to read.
fn say(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(Failure::from)
}

/// Prints a remark that a program reading standard output must not see.
fn remark(text: &str) {
    writeln!(io::stderr(), "{text}").ok();
}

const EXIT_CODES: &str =
    "Exit codes: 0 done, 1 failed (standard error says why), 2 not understood.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_option_takes_a_secret() {
        fn walk(command: &clap::Command) {
            for argument in command.get_arguments() {
                let name = argument.get_id().as_str();
                assert!(
                    !["password", "secret", "token"]
                        .iter()
                        .any(|w| name.contains(w)),
                    "{name}"
                );
            }
            command.get_subcommands().for_each(walk);
        }
        walk(&Cli::command());
    }
}
