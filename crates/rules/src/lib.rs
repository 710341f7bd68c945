//! Decisions: who a key is, what its role allows, whether a limit holds, how a call is charged, what a refusal says.
//!
//! Pure: the clock, randomness and data are arguments; no I/O, no thread, nothing of ours below it.
//! Called by `gateway`, `control` and `guan`.
#![forbid(unsafe_code)]
#![deny(clippy::wildcard_enum_match_arm)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

pub mod ident;
pub mod key;
pub mod network;
pub mod policy;
pub mod limit;
pub mod queue;
pub mod adapt;
pub mod measure;
pub mod refusal;
pub mod token;
pub mod certificate;
pub mod chain;
pub mod snapshot;
