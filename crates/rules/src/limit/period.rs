//! Calendar periods in UTC: days, weeks from Monday on, months. Used by budgets and by whoever seeds them.

use super::{SECOND, Span};

/// One period, microseconds since 1970: from `start` to before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// Its first microsecond.
    pub start: u64,
    /// The first one after it.
    pub end: u64,
}

const DAY: u64 = 86_400 * SECOND;

impl Period {
    /// Its first day, days since 1970.
    #[must_use]
    pub fn first_day(&self) -> i64 {
        i64::try_from(self.start / DAY).unwrap_or(i64::MAX)
    }
}

/// The period of this length that `now` lies in. Spans that aren't calendar ones count from 1970 on.
#[must_use]
pub fn period(span: Span, now: u64) -> Period {
    let today = now / DAY;
    let (first, after) = match span {
        Span::Week => {
            // 1970-01-01 was a Thursday.
            let since_monday = today.saturating_add(3) % 7;
            let first = today.saturating_sub(since_monday);
            (first, first.saturating_add(7))
        }
        Span::Month => month(today),
        Span::Now | Span::Second | Span::Minute | Span::Hour | Span::Day => {
            (today, today.saturating_add(1))
        }
    };
    Period {
        start: first.saturating_mul(DAY),
        end: after.saturating_mul(DAY),
    }
}

/// First day of the month that `day` lies in, and of the next one.
fn month(day: u64) -> (u64, u64) {
    let mut year = 1970_u64;
    let mut first = 0_u64;
    loop {
        let next = first.saturating_add(if is_leap(year) { 366 } else { 365 });
        if day < next {
            break;
        }
        first = next;
        year = year.saturating_add(1);
    }
    let february = if is_leap(year) { 29 } else { 28 };
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        let next = first.saturating_add(length);
        if day < next {
            return (first, next);
        }
        first = next;
    }
    (first, first.saturating_add(31))
}

const fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Days since 1970 of some dates, from a calendar.
    #[test]
    fn periods_begin_and_end_where_the_calendar_says() {
        let at = |day: u64| day * DAY + DAY / 2;
        let days = |span, day| {
            let found = period(span, at(day));
            (found.start / DAY, found.end / DAY)
        };
        // 2024-02-29 is day 19782, a Thursday; February 2024 began on day 19754.
        assert_eq!(days(Span::Day, 19_782), (19_782, 19_783));
        assert_eq!(days(Span::Week, 19_782), (19_779, 19_786));
        assert_eq!(days(Span::Month, 19_782), (19_754, 19_783));
        // 2026-11-25 is day 20782, a Wednesday; November 2026 is day 20758 to 20787.
        assert_eq!(days(Span::Week, 20_782), (20_780, 20_787));
        assert_eq!(days(Span::Month, 20_782), (20_758, 20_788));
        assert_eq!(days(Span::Month, 0), (0, 31));
        assert_eq!(period(Span::Day, at(7)).first_day(), 7);
        // The first and last microsecond of a month.
        let november = period(Span::Month, at(20_782));
        assert_eq!(period(Span::Month, november.start), november);
        assert_eq!(period(Span::Month, november.end - 1), november);
        assert_ne!(period(Span::Month, november.end), november);
    }
}
