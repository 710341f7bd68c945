//! What crosses a boundary: formats and parsers. It decides what bytes mean and which bytes go out; it never
//! does I/O, starts a thread or reads a clock. Used by the gateway, the engine worker and the supervisor.

#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

pub mod control;
pub mod headers;
pub mod json;
pub mod openai;
pub mod sse;
pub mod token;
pub mod x509;
