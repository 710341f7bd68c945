//! Test services and peers: a model server that lies, a client that sees the wire, and a running `guan`.
//!
//! For tests only: panics are its way to fail, and nothing of it is in a shipped binary.
#![forbid(unsafe_code)]
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by a panic, with the reason in it"
)]

pub mod authority;
pub mod client;
pub mod issuer;
pub mod kms;
pub mod postgres;
pub mod prometheus;
pub mod redis;
pub mod server;
pub mod token;
pub mod upstream;
