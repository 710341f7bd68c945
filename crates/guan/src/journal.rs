//! The log of a process: lines on standard error, chosen by `GUAN_LOG` (or `RUST_LOG`).
//!
//! It decides their shape, nothing else. Called once by `main` for the processes that serve.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// Begins to write what happens; `info` and worse unless the environment says otherwise.
pub(crate) fn begin() {
    let wanted = ["GUAN_LOG", "RUST_LOG"]
        .iter()
        .find_map(|name| std::env::var(name).ok());
    let filter = EnvFilter::try_new(wanted.as_deref().unwrap_or("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_bad| EnvFilter::new("info")))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(false);
    // A second call is a mistake that costs nothing: the first log goes on.
    log.try_init().ok();
}
