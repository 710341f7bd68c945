//! Tests of the running binary.

mod admin;
mod answers;
mod audit;
mod certificates;
mod exposure;
mod field_cases;
mod issuers;
mod keys;
mod limits;
mod shared_limits;
mod line;
mod metrics;
mod model_pull;
mod observed;
mod records;
mod secrets;
mod start;
mod taken_back;
mod tls;
mod tokens;
mod transport;
mod typed;

/// The binary under test.
fn guan() -> &'static std::path::Path {
    std::path::Path::new(env!("CARGO_BIN_EXE_guan"))
}
