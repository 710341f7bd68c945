//! Request ids: sortable by time, unguessable, safe in a header and in a log; and what a name may not hold.
//!
//! A ULID (48 bits of milliseconds, 80 random bits, Crockford base 32) behind `req_`.

use std::fmt;

const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Whether a text holds what moves the cursor, hides or turns the text around it: no name that people read does.
#[must_use]
pub fn hides(text: &str) -> bool {
    text.chars().any(|c| {
        c.is_control()
            || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    })
}

/// One call's id, as it stands in `x-request-id` and in the audit record.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId(u128);

impl RequestId {
    /// From the clock, milliseconds since 1970, and ten random bytes.
    #[must_use]
    pub fn new(unix_ms: u64, random: [u8; 10]) -> Self {
        let mut low = [0_u8; 16];
        for (to, from) in low.iter_mut().skip(6).zip(random) {
            *to = from;
        }
        let time = u128::from(unix_ms & 0xffff_ffff_ffff) << 80;
        Self(time | u128::from_be_bytes(low))
    }

    /// The bits, for a slot on disk.
    #[must_use]
    pub const fn bits(self) -> u128 {
        self.0
    }

    /// Back from [`Self::bits`].
    #[must_use]
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("req_")?;
        for place in (0..26_u32).rev() {
            let shift = place.saturating_mul(5);
            let digit = usize::try_from((self.0 >> shift) & 31).unwrap_or(0);
            let letter = CROCKFORD.get(digit).copied().unwrap_or(b'0');
            fmt::Write::write_char(f, char::from(letter))?;
        }
        Ok(())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_ids_sort_later_and_all_have_one_length() {
        let a = RequestId::new(1_700_000_000_000, [0xff; 10]).to_string();
        let b = RequestId::new(1_700_000_000_001, [0; 10]).to_string();
        assert!(a < b);
        assert_eq!(a.len(), 30);
        assert_eq!(
            RequestId::new(0, [0; 10]).to_string(),
            format!("req_{}", "0".repeat(26))
        );
    }
}
