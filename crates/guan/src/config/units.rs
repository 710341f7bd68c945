//! Sizes and durations as people write them. Called while the config file is read, and by options of commands.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

/// A number of bytes: `8388608` or `"8MiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

/// A duration with its unit: `"10s"`, `"500ms"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

/// Reads `8MiB`, `512 KiB`, `1024`.
pub(super) fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// Reads `500ms`, `10s`, `5m`, `2h`, `30d`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "ms" => return Some(Duration::from_millis(number)),
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number.checked_mul(factor).map(Duration::from_secs)
}

/// A duration as one would write it.
pub(crate) fn write_duration(d: Duration) -> String {
    let ms = d.as_millis();
    if ms.is_multiple_of(1000) {
        format!("{}s", ms / 1000)
    } else {
        format!("{ms}ms")
    }
}

/// A number of bytes as one would write it.
pub(crate) fn write_size(bytes: u64) -> String {
    let whole = [(1_u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]
        .into_iter()
        .find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    match whole {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => bytes.to_string(),
    }
}

/// Digits (underscores allowed) and what follows them.
fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '_')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end)?;
    Some((number.replace('_', "").parse().ok()?, unit.trim_start()))
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Sizes;
        impl Visitor<'_> for Sizes {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes or a text such as \"8MiB\"")
            }
            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Size, E> {
                let n = u64::try_from(n)
                    .map_err(|_negative| E::invalid_type(de::Unexpected::Signed(n), &self))?;
                Ok(Size(n))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                let n =
                    size(text).ok_or_else(|| E::invalid_type(de::Unexpected::Str(text), &self))?;
                Ok(Size(n))
            }
        }
        from.deserialize_any(Sizes)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Spans;
        impl Visitor<'_> for Spans {
            type Value = Span;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration with its unit such as \"10s\" or \"500ms\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                let d = duration(text)
                    .ok_or_else(|| E::invalid_type(de::Unexpected::Str(text), &self))?;
                Ok(Span(d))
            }
        }
        from.deserialize_any(Spans)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_read_as_people_write_them() {
        assert_eq!(size("8MiB"), Some(8 << 20));
        assert_eq!(size("8 MiB"), Some(8 << 20));
        assert_eq!(size("1_024"), Some(1024));
        assert_eq!(size("8mib"), None);
        assert_eq!(size("-1"), None);
        assert_eq!(size(""), None);
        assert_eq!(size("99999999999GiB"), None);
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(duration("30d"), Some(Duration::from_secs(2_592_000)));
        assert_eq!(duration("10"), None, "a unit is always written");
        assert_eq!(duration("ten"), None);
    }

    #[test]
    fn what_is_written_reads_back() {
        for bytes in [1, 1023, 1024, 8 << 20, 1 << 30, 1_000_000] {
            assert_eq!(size(&write_size(bytes)), Some(bytes));
        }
        for ms in [1, 999, 1000, 90_000] {
            let d = Duration::from_millis(ms);
            assert_eq!(duration(&write_duration(d)), Some(d));
        }
    }
}
