//! The worker as its clients see it: the built binary, a real model, HTTP on a Unix socket.
//! The model comes from `GUAN_TEST_MODEL`; without it these tests fail, they don't pass silently.
//! `cfg(test)` is true for all of this file; the lints that spare tests only look for the word.

#[cfg(test)]
#[path = "it/worker.rs"]
mod worker;
#[cfg(test)]
#[path = "it/answers.rs"]
mod answers;
#[cfg(test)]
#[path = "it/cancel.rs"]
mod cancel;
#[cfg(test)]
#[path = "it/start.rs"]
mod start;
