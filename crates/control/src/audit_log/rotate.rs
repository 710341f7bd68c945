//! When a chain goes on in another file: it decides by size and age. The chain itself goes on: numbers and hashes run
//! over the border, so nothing can be taken out between two parts. Called by `write`.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

/// Where a chain's next part is written.
pub(super) type Next<O> = Box<dyn FnMut(u32) -> io::Result<O> + Send>;

/// How large and how old a part may grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotate {
    /// Bytes.
    pub size: u64,
    /// Since its first line.
    pub after: Duration,
}

impl Default for Rotate {
    fn default() -> Self {
        Self {
            size: 256 << 20,
            after: Duration::from_hours(24),
        }
    }
}

/// Where one chain stands in its parts.
pub(super) struct Rotation<O> {
    limits: Rotate,
    next: Next<O>,
    part: u32,
    begun: Instant,
    /// The next part couldn't be begun: not before then.
    not_before: Option<Instant>,
}

impl<O> Rotation<O> {
    pub(super) fn new(limits: Rotate, next: Next<O>) -> Self {
        Self {
            limits,
            next,
            part: 0,
            begun: Instant::now(),
            not_before: None,
        }
    }

    /// Begins the next part, if one of `length` bytes is to end. One that can't be begun leaves the chain where it is.
    pub(super) fn next_if_due(&mut self, length: u64) -> Option<O> {
        let now = Instant::now();
        let full = length >= self.limits.size;
        let old = now.saturating_duration_since(self.begun) >= self.limits.after;
        if !(full || old) || self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        let number = self.part.saturating_add(1);
        match (self.next)(number) {
            Ok(out) => {
                self.part = number;
                self.begun = now;
                self.not_before = None;
                Some(out)
            }
            Err(cause) => {
                tracing::warn!(%cause, "the audit log can't go on in another file yet: it goes on in this one");
                self.not_before = now.checked_add(PAUSE);
                None
            }
        }
    }

    pub(super) const fn part(&self) -> u32 {
        self.part
    }
}

/// A file that a chain's next part is written to, by its number.
pub(super) fn files(dir: PathBuf, chain: String) -> Next<std::fs::File> {
    Box::new(move |part| {
        let path = dir.join(super::files::name_of(&chain, part));
        let file = super::begin(&path).map_err(|fault| io::Error::other(fault.to_string()))?;
        crate::folder::sync(&dir)?;
        Ok(file)
    })
}

/// After a part that couldn't be begun.
const PAUSE: Duration = Duration::from_mins(1);
