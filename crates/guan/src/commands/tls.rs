//! `guan tls ca`: the certificate that clients must trust while Guan vouches for itself. Called by `commands`.

use clap::{Args, Subcommand};

use super::{Failure, Places, remark, say};
use crate::supervisor::fingerprint;

/// Look at the certificate.
#[derive(Debug, Args)]
pub(super) struct TlsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the certificate for clients to trust (PEM); its fingerprint goes to standard error
    Ca,
}

/// Does it.
///
/// # Errors
/// When there is none.
pub(super) fn run(args: &TlsArgs, places: &Places) -> Result<(), Failure> {
    let Command::Ca = args.command;
    let path = places.data.join("secrets/tls.crt");
    let at = |why: &str| {
        Failure::new(format!(
            "{}: {why}; name the server's data folder with --data DIR, and start it once",
            path.display()
        ))
    };
    let text = std::fs::read_to_string(&path).map_err(|e| at(&e.to_string()))?;
    let print = fingerprint(&path).ok_or_else(|| at("no certificate in it"))?;
    remark(&format!("SHA-256 {print}"));
    say(text.trim_end())
}
