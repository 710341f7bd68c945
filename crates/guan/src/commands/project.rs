//! `guan project …`: who pays, and what all keys of a project may not exceed. Called by `commands`.

use clap::{Args, Subcommand};
use control::keys::{NewProject, ProjectRow};

use super::door::{Door, escaped};
use super::key::{OwnArgs, columns, patch, runtime};
use super::{Failure, Places, remark, say};

/// Make projects, and disable them with all their keys.
#[derive(Debug, Args)]
pub(super) struct ProjectArgs {
    #[command(subcommand)]
    command: Command,
    /// Print JSON for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a project
    Create {
        /// What keys name it by
        name: String,
        /// What to remember of it
        #[arg(long, default_value = "")]
        notes: String,
        #[command(flatten)]
        own: OwnArgs,
    },
    /// List all projects
    List,
    /// Print a project
    Show {
        /// Its name or id
        name: String,
    },
    /// Change what all its keys may do; what isn't named stays
    Change {
        /// Its name or id
        name: String,
        /// What to remember of it
        #[arg(long)]
        notes: Option<String>,
        #[command(flatten)]
        own: OwnArgs,
        /// Take a value away, by the name that `project show --json` gives it; may be given several times
        #[arg(long, value_name = "VALUE")]
        clear: Vec<String>,
    },
    /// Refuse all its keys until it is enabled
    Disable {
        /// Its name or id
        name: String,
    },
    /// Take its keys again
    Enable {
        /// Its name or id
        name: String,
    },
}

/// Does it.
///
/// # Errors
/// When the folder, the server or the store says no.
pub(super) fn run(args: ProjectArgs, places: &Places) -> Result<(), Failure> {
    let runtime = runtime()?;
    let door = Door::open(&runtime, places)?;
    let acting = async {
        Ok(match args.command {
            Command::Create { name, notes, own } => {
                let own = own.meant();
                vec![door.create_project(NewProject { name, own, notes }).await?]
            }
            Command::List => door.projects().await?,
            Command::Show { name } => vec![door.project(&name).await?],
            Command::Change {
                name,
                notes,
                own,
                clear,
            } => {
                let patch = patch([("notes", notes)], own, clear, &["notes"]);
                let path = format!("/admin/v1/projects/{}", escaped(&name));
                let row = door.change(&path, &patch).await?;
                vec![serde_json::from_value(row).map_err(|e| Failure::new(e.to_string()))?]
            }
            Command::Disable { name } => vec![door.enable_project(&name, false).await?],
            Command::Enable { name } => vec![door.enable_project(&name, true).await?],
        })
    };
    let done = runtime
        .block_on(acting)
        .and_then(|rows| show(&rows, args.json));
    door.close(&runtime);
    done
}

fn show(rows: &[ProjectRow], as_json: bool) -> Result<(), Failure> {
    if as_json {
        return say(&serde_json::to_string(rows).unwrap_or_default());
    }
    if rows.is_empty() {
        remark("there is no project; make one with `guan project create NAME`");
        return Ok(());
    }
    let mut table = vec![["ID", "NAME", "STATE", "NARROWS", "MADE"].map(str::to_owned)];
    table.extend(rows.iter().map(|row| {
        let state = if row.enabled { "enabled" } else { "disabled" };
        let own = if row.own.is_empty() {
            "-".to_owned()
        } else {
            serde_json::to_string(&row.own).unwrap_or_default()
        };
        let made = control::clock::rfc3339_seconds(row.created_at);
        [
            row.id.clone(),
            row.name.clone(),
            state.to_owned(),
            own,
            made,
        ]
    }));
    say(&columns(&table))
}
