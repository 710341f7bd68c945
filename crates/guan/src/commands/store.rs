//! `guan store copy`: everything of this data folder's database into an empty one on a server. Called by `commands`.

use clap::{Args, Subcommand};
use control::bootstrap;
use control::store::{Store, StoreFault};

use super::key::runtime;
use super::{Failure, Places, config, say};
use crate::config::store_target;
use crate::folder::{Folder, Held};

/// Move the database.
#[derive(Debug, Args)]
pub(super) struct StoreArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Copy keys, projects and usage into an empty PostgreSQL database; the server must be stopped
    Copy {
        /// postgres://USER@HOST:PORT/DATABASE, without a password
        #[arg(long, value_name = "URL")]
        to: String,
        #[arg(
            long = "auth",
            value_name = "REFERENCE",
            help = "Where the database's password lies: file:PATH or env:NAME, never the password itself"
        )]
        reference: Option<String>,
    },
}

/// Does it.
///
/// # Errors
/// When the server runs, a database can't be opened, or the target isn't empty.
pub(super) fn run(args: &StoreArgs, places: &Places) -> Result<(), Failure> {
    let Command::Copy { to, reference } = &args.command;
    let folder = Folder::open(&places.data)?;
    let _lock = folder.lock()?.map_err(|Held { .. }| {
        Failure::new("the server runs; stop it first, so that nothing is written meanwhile")
    })?;
    let words = |fault: StoreFault| Failure::new(fault.to_string());
    let from = config::glance(places)?
        .store(folder.path())
        .map_err(Failure::new)?;
    let kms = config::glance(places)?
        .kms(folder.path())
        .map_err(Failure::new)?;
    let target = store_target(to, reference.as_deref(), folder.path()).map_err(Failure::new)?;
    let copied = runtime()?.block_on(async {
        let opened = bootstrap::open(folder.path(), &from, &kms)
            .await
            .map_err(|fault| Failure::new(fault.to_string()))?;
        let to = Store::open(&target).await.map_err(words)?;
        let copied = opened.store.copy_to(&to).await;
        to.close().await;
        opened.store.close().await;
        let copied = copied.map_err(|fault| match fault {
            StoreFault::Taken => Failure::new(
                "the target isn't empty: it has keys or secrets already; nothing was copied",
            ),
            other => words(other),
        })?;
        bootstrap::remember_node(folder.path(), &opened.node)
            .map_err(|fault| Failure::new(fault.to_string()))?;
        Ok::<_, Failure>(copied)
    })?;
    let password = reference
        .as_ref()
        .map(|reference| format!("password = \"{reference}\"\n"))
        .unwrap_or_default();
    say(&format!(
        "{} keys, {} projects and {} sums of usage are copied; every key stays valid. Write this into guan.toml, then start the server:\n\n[store]\nurl = \"{to}\"\n{password}",
        copied.keys, copied.projects, copied.usage
    ))
}
