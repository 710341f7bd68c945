//! Time as this crate takes it (an argument) and as it writes it (RFC 3339, UTC).
//!
//! Decides the form of a timestamp; never reads the system's clock except in [`system`]. Called by every module
//! that writes a time, and by the wiring, which lends [`rfc3339_nanos`] to the gateway.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Nanoseconds since 1970 now: a function, so that a test can stop it.
pub type Clock = Arc<dyn Fn() -> i128 + Send + Sync>;

/// The system's wall clock.
#[must_use]
pub fn system() -> Clock {
    Arc::new(|| match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i128::try_from(since.as_nanos()).unwrap_or(i128::MAX),
        Err(before) => {
            i128::try_from(before.duration().as_nanos()).map_or(i128::MIN, i128::wrapping_neg)
        }
    })
}

/// A clock that stands still at `unix_nanos`.
#[must_use]
pub fn fixed(unix_nanos: i128) -> Clock {
    Arc::new(move || unix_nanos)
}

/// Whole seconds since 1970, rounded down.
#[must_use]
pub fn seconds(unix_nanos: i128) -> i64 {
    i64::try_from(unix_nanos.div_euclid(NANOS)).unwrap_or(i64::MAX)
}

/// `2026-01-31T23:59:59.000000000Z`: always nine digits, so that texts sort as times do. A time outside the years
/// 0 to 9999 is written as the nearest end.
#[must_use]
pub fn rfc3339_nanos(unix_nanos: i128) -> String {
    let at =
        OffsetDateTime::from_unix_timestamp_nanos(unix_nanos.clamp(FIRST * NANOS, LAST * NANOS))
            .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    Form::new(at, true).to_string()
}

/// `2026-01-31T23:59:59Z`, from seconds since 1970.
#[must_use]
pub fn rfc3339_seconds(unix_seconds: i64) -> String {
    rfc3339_whole(i128::from(unix_seconds))
}

/// Reads an RFC 3339 time with any offset: seconds since 1970, a fraction dropped. `None` if it isn't one.
#[must_use]
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    OffsetDateTime::parse(text, &Rfc3339)
        .ok()
        .map(OffsetDateTime::unix_timestamp)
}

fn rfc3339_whole(unix_seconds: i128) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(unix_seconds.clamp(FIRST, LAST) * NANOS)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    Form::new(at, false).to_string()
}

struct Form {
    at: OffsetDateTime,
    nanos: bool,
}

impl Form {
    const fn new(at: OffsetDateTime, nanos: bool) -> Self {
        Self { at, nanos }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hour, minute, second, nano) = self.at.to_hms_nano();
        write!(
            f,
            "{:04}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}",
            self.at.year(),
            u8::from(self.at.month()),
            self.at.day()
        )?;
        if self.nanos {
            write!(f, ".{nano:09}")?;
        }
        f.write_str("Z")
    }
}

/// The form of a time, for schemas.
#[derive(Debug)]
pub(crate) struct Stamp;

impl schemars::JsonSchema for Stamp {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Time".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "format": "date-time" })
    }
}

/// For serde: seconds since 1970 as an RFC 3339 text.
pub(crate) mod text {
    use serde::{Deserialize, Deserializer, Serializer, de};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(crate) fn serialize<S: Serializer>(seconds: &i64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::rfc3339_seconds(*seconds))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
        let text = String::deserialize(from)?;
        super::parse_rfc3339(&text).ok_or_else(|| de::Error::custom(super::NOT_A_TIME))
    }
}

/// The same, or `null`.
pub(crate) mod text_or_null {
    use serde::{Deserialize, Deserializer, Serializer, de};

    #[expect(clippy::ref_option, reason = "serde's signature")]
    pub(crate) fn serialize<S: Serializer>(at: &Option<i64>, to: S) -> Result<S::Ok, S::Error> {
        match at {
            Some(seconds) => to.serialize_some(&super::rfc3339_seconds(*seconds)),
            None => to.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i64>, D::Error> {
        Option::<String>::deserialize(from)?
            .map(|text| {
                super::parse_rfc3339(&text).ok_or_else(|| de::Error::custom(super::NOT_A_TIME))
            })
            .transpose()
    }
}

const NANOS: i128 = 1_000_000_000;
/// 0000-01-01T00:00:00Z.
const FIRST: i128 = -62_167_219_200;
/// 9999-12-31T23:59:59Z.
const LAST: i128 = 253_402_300_799;
const NOT_A_TIME: &str = "not a time of the form 2030-12-31T23:59:59Z";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_one_width_and_read_back() {
        assert_eq!(rfc3339_nanos(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(
            rfc3339_nanos(1_767_225_599_000_000_007),
            "2025-12-31T23:59:59.000000007Z"
        );
        assert_eq!(rfc3339_nanos(-1), "1969-12-31T23:59:59.999999999Z");
        assert_eq!(rfc3339_nanos(i128::MAX), "9999-12-31T23:59:59.000000000Z");
        assert_eq!(rfc3339_nanos(i128::MIN), "0000-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339_seconds(1_767_225_599), "2025-12-31T23:59:59Z");
        assert_eq!(rfc3339_seconds(i64::MIN), "0000-01-01T00:00:00Z");
        assert_eq!(
            parse_rfc3339("2026-01-01T01:00:00.5+02:00"),
            Some(1_767_222_000)
        );
        assert_eq!(parse_rfc3339("2026-01-01"), None);
        assert_eq!(seconds(-1), -1);
        assert!(seconds(system()()) > 1_700_000_000);
    }
}
