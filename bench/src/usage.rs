//! What processes use, from `/proc`: CPU time of a process and all below it, and their memory, each page counted once.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks at memory.
const LOOK: Duration = Duration::from_millis(200);

/// Milliseconds of a tick as `/proc` counts them, on every architecture that Guan is built for.
const TICK: u64 = 10;

/// A process and everything below it.
pub(crate) fn tree(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        next += 1;
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        for thread in threads.flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            found.extend(
                children
                    .split_whitespace()
                    .filter_map(|child| child.parse::<u32>().ok()),
            );
        }
    }
    found
}

/// CPU time so far, user and system, of these processes.
pub(crate) fn cpu(processes: &[u32]) -> Duration {
    let ticks: u64 = processes.iter().map(|&pid| ticks(pid).unwrap_or(0)).sum();
    Duration::from_millis(ticks.saturating_mul(TICK))
}

fn ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything; the state is the first field after it, then come utime and
    // stime as the 12th and 13th.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let (user, system) = (
        fields.next()?.parse::<u64>().ok()?,
        fields.next()?.parse::<u64>().ok()?,
    );
    Some(user + system)
}

/// Memory of these processes, bytes: shared pages count in part for each.
pub(crate) fn memory(processes: &[u32]) -> u64 {
    processes.iter().map(|&pid| pss(pid).unwrap_or(0)).sum()
}

fn pss(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find(|line| line.starts_with("Pss:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

/// Looks at memory again and again, and keeps the most.
#[derive(Debug)]
pub(crate) struct Peak {
    most: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Peak {
    /// Starts to look.
    pub(crate) fn watch(processes: Vec<u32>) -> Self {
        let (most, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (seen, ended) = (Arc::clone(&most), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                seen.fetch_max(memory(&processes), Ordering::Relaxed);
                std::thread::park_timeout(LOOK);
            }
            seen.fetch_max(memory(&processes), Ordering::Relaxed);
        });
        Self { most, stop, thread }
    }

    /// Stops, and tells the most that was seen, bytes.
    pub(crate) fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        self.thread.join().ok();
        self.most.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let own = tree(std::process::id());
        assert_eq!(own.first(), Some(&std::process::id()));
        assert!(memory(&own) > 100_000);
        assert!(ticks(std::process::id()).is_some());
        assert!(ticks(u32::MAX).is_none());
    }
}
