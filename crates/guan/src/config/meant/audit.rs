//! The `[audit]` part of the conversion: when records reach the disk, when they are signed, and how long they stay.
//!
//! Decides ranges and defaults. Called by `meant::convert`.

use std::time::Duration;

use control::audit_log::keep::Keeping;
use control::audit_log::{CHECKPOINT_EVERY, Rotate};

use super::super::units::Span;
use super::super::{Seat, written};
use super::{Fsync, Judge};

/// What `[audit]` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Audit {
    /// When audit records reach the disk.
    pub(crate) fsync: Fsync,
    /// How long they may stand without a signed checkpoint.
    pub(crate) checkpoint_every: Duration,
    /// When a chain goes on in another file.
    pub(crate) rotate: Rotate,
    /// What becomes of closed files.
    pub(crate) keeping: Keeping,
}

impl Judge {
    pub(super) fn audit(&mut self, audit: &Seat, file: written::Audit) -> Audit {
        let fsync = file.fsync.as_deref().unwrap_or("interval");
        self.word(audit, "fsync", fsync, &["interval", "each"]);
        let fsync = if fsync == "each" {
            Fsync::Each
        } else {
            Fsync::Interval
        };
        let checkpoint_every = self.span(
            audit,
            "checkpoint_every",
            file.checkpoint_every,
            CHECKPOINT_EVERY,
            Duration::from_secs(1)..=Duration::from_hours(1),
        );
        let defaults = Rotate::default();
        let rotate = Rotate {
            size: self.size(
                audit,
                "rotate_size",
                file.rotate_size,
                defaults.size,
                (64 << 10)..=(1 << 40),
            ),
            after: self.span(
                audit,
                "rotate_after",
                file.rotate_after,
                defaults.after,
                Duration::from_mins(1)..=Duration::from_hours(24 * 366),
            ),
        };
        let longest = Duration::from_hours(24 * 366 * 100);
        let remove_after = file.retention.map(|Span(after)| {
            let shortest = Duration::from_hours(1);
            self.span(
                audit,
                "retention",
                Some(Span(after)),
                shortest,
                shortest..=longest,
            )
        });
        Audit {
            fsync,
            checkpoint_every,
            rotate,
            keeping: Keeping {
                pack_after: file.compress.unwrap_or(true).then_some(PACK_AFTER),
                remove_after,
            },
        }
    }
}

/// A limiter that starts anew reads an hour back, from the end of files.
const PACK_AFTER: Duration = Duration::from_hours(2);
