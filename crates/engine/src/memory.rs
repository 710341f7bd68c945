//! How much memory this process may still take: the kernel's estimate, or what the control group
//! leaves if that is less. Read once, before the fence, by `main`.

use std::fs;

/// Bytes that may still be taken; `None` where the kernel doesn't say.
pub(crate) fn available() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| free(&text));
    let group = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/memory.{name}")).ok();
    let group = left(group("max").as_deref(), group("current").as_deref());
    machine.into_iter().chain(group).min()
}

fn free(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// `max` is the word "max" where there is no limit.
fn left(max: Option<&str>, current: Option<&str>) -> Option<u64> {
    let max: u64 = max?.trim().parse().ok()?;
    let current: u64 = current?.trim().parse().ok()?;
    Some(max.saturating_sub(current))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:  100 kB\nMemFree:  5 kB\nMemAvailable:   64 kB\n";
        assert_eq!(free(text), Some(65536));
        assert_eq!(free("MemTotal: 100 kB\n"), None);
    }

    #[test]
    fn a_group_limit_counts_only_if_set() {
        assert_eq!(left(Some("max\n"), Some("5\n")), None);
        assert_eq!(left(Some("100\n"), Some("30\n")), Some(70));
        assert_eq!(left(None, None), None);
    }
}
