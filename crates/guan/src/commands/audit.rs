//! `guan audit`: what the audit log says, and whether it still says what was written. Called by `commands`.

use clap::{Args, Subcommand};

use super::{Failure, Places};

mod keys;
mod read;
mod reconcile;
mod verify;

/// Judge the audit log, and print what others can judge it by.
#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Tell the first record that was changed, removed, inserted or put elsewhere; works offline
    Verify(verify::VerifyArgs),
    /// Print the public key that checkpoints are judged by
    Key(keys::KeyArgs),
    /// Print the last signed head of each chain, as the store has it
    Heads(keys::HeadsArgs),
    /// Print the last records, and those that come
    Tail(read::TailArgs),
    /// Write records as lines or as comma-separated values
    Export(read::ExportArgs),
    /// Prove that the store's usage is what the log adds up to
    Reconcile(reconcile::ReconcileArgs),
}

/// Does it.
///
/// # Errors
/// When something isn't as it was written, or can't be read.
pub(super) fn run(args: &AuditArgs, places: &Places) -> Result<(), Failure> {
    match &args.act {
        Act::Verify(args) => verify::run(args, places),
        Act::Key(args) => keys::key(args, places),
        Act::Heads(args) => keys::heads(args, places),
        Act::Tail(args) => read::tail(args, places),
        Act::Export(args) => read::export(args, places),
        Act::Reconcile(args) => reconcile::run(args, places),
    }
}
