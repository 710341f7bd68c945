//! The fence: starting children with exactly what they may hold, and giving up power before work begins.
//!
//! The only crate with `unsafe`. It decides how a child is started, which inherited descriptors are taken over and
//! which powers a profile gives up; it never reads config, opens a socket or keeps a thread. Called by `guan`
//! (supervisor and gateway) and by the engine worker, first thing in `main`.
#![expect(
    unsafe_code,
    reason = "descriptors by number, `pre_exec` and `unshare` have no safe form"
)]

mod inherit;
mod spawn;
mod fence;

pub use fence::{Fault, Profile, Report, enter};
pub use inherit::inherited_fd;
pub use spawn::{Child, Exit, Program, Signal, Spec, Stream, spawn};
