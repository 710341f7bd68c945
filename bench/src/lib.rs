//! Guan and nginx in the same run, under the same load, in front of the same model server that only pretends.
//!
//! What counts is the ratio of the two: CPU a request of the processes under test, and their memory. Everything is on
//! 127.0.0.1, bounded in count and time. Called by `scripts/bench`; nothing of the product reads this.
#![forbid(unsafe_code)]

mod client;
mod load;
mod report;
mod run;
mod target;
mod upstream;
mod usage;
mod workload;

pub use run::{Options, run};

/// What may go wrong: it ends the bench.
pub type Fault = Box<dyn std::error::Error + Send + Sync>;
