//! The command line of the bench: `scripts/bench --help`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

#[expect(clippy::print_stderr, reason = "a command tells its user why it ended")]
fn main() -> ExitCode {
    match bench::run(&bench::Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("scripts/bench: {fault}");
            ExitCode::FAILURE
        }
    }
}
