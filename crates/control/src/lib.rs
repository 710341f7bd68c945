//! Who may do what: sealed secrets, the store, keys, issuers, the admin API, the audit chain, the certificate.
//!
//! It decides who holds a key and keeps the record of it; it never sees a model request and never talks to an
//! upstream. Called by `guan` (the commands and the wiring of the server), which hands its snapshots to `gateway`.
#![forbid(unsafe_code)]

pub mod clock;
pub mod actor;
pub mod seal;
pub mod store;
pub mod keys;
pub mod publish;
pub mod identity;
pub mod secrets;
pub mod api;
pub mod audit_log;
pub mod usage;
pub mod reconcile;
pub mod certificates;
pub mod bootstrap;
mod folder;
#[cfg(test)]
mod testbench;
