//! How many tokens a piece of a body can be at most, without a tokenizer: no byte-level vocabulary makes more
//! tokens than there are bytes. It never guesses low. Called by `walk`.

use crate::json::Value;

/// Upper bound of the tokens of one string: its bytes, thrice where normalising may lengthen it.
pub(super) fn text_bound(value: Value<'_>) -> u64 {
    if value.is_plain_ascii() {
        return as_u64(value.raw().len()).saturating_sub(2);
    }
    let text = value.as_str().unwrap_or_default();
    let factor = if text.is_ascii() || unicode_normalization::is_nfc(&text) {
        1
    } else {
        3
    };
    as_u64(text.len()).saturating_mul(factor)
}

/// Upper bound for a value that passes whole: a template may print it again with other spacing and escapes.
pub(super) fn whole(value: Value<'_>) -> u64 {
    let raw = value.raw();
    let factor = match std::str::from_utf8(raw) {
        Ok(text) if text.is_ascii() || unicode_normalization::is_nfc(text) => 1,
        _ => 3,
    };
    let printed = as_u64(value.inner_nodes()).saturating_mul(4);
    as_u64(raw.len())
        .saturating_mul(factor)
        .saturating_add(printed)
}

/// Lengths fit 64 bits on every machine this builds for.
pub(super) fn as_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
