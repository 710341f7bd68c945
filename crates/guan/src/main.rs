//! `guan`: the guarded front of a company's own language model. Reads the command line and hands over.
#![forbid(unsafe_code)]

use std::process::ExitCode;

mod commands;
mod config;
mod folder;
mod journal;
mod supervisor;
mod token;
mod wiring;

fn main() -> ExitCode {
    commands::run()
}
