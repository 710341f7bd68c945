//! The inside of JSON strings: finding their end fast, undoing and writing escapes. It never judges a whole
//! document. Called by `json` and by what writes JSON by hand.

/// Longest name that is repeated to a caller, in characters.
const SHOWN: usize = 64;

/// How many bytes come before the next quote, backslash or control character.
pub(super) fn plain_run(bytes: &[u8]) -> usize {
    let special = |byte: u8| byte == b'"' || byte == b'\\' || byte < 0x20;
    let mut run: usize = 0;
    // A fold without an early exit becomes vector code; the exact place is looked for in one block only.
    for block in bytes.chunks(32) {
        if block.iter().fold(false, |any, byte| any | special(*byte)) {
            return run.saturating_add(block.iter().position(|byte| special(*byte)).unwrap_or(0));
        }
        run = run.saturating_add(block.len());
    }
    run
}

/// Four hexadecimal digits.
pub(super) fn hex4(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0_u32, |value, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(value.wrapping_shl(4) | digit)
    })
}

/// Undoes the escapes of a string that the scanner accepted (quotes outside).
pub(super) fn decode(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((plain, tail)) = rest.split_once('\\') {
        out.push_str(plain);
        let mut chars = tail.chars();
        match chars.next() {
            Some('b') => out.push('\u{8}'),
            Some('f') => out.push('\u{c}'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('u') => out.push(decode_unit(&mut chars)),
            Some(other) => out.push(other),
            None => {}
        }
        rest = chars.as_str();
    }
    out.push_str(rest);
    out
}

fn decode_unit(chars: &mut std::str::Chars<'_>) -> char {
    let high = take4(chars);
    let code = if (0xD800..=0xDBFF).contains(&high) {
        let _slash_u = (chars.next(), chars.next());
        let low = take4(chars);
        0x10000_u32
            .wrapping_add(high.wrapping_sub(0xD800).wrapping_shl(10))
            .wrapping_add(low.wrapping_sub(0xDC00))
    } else {
        high
    };
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn take4(chars: &mut std::str::Chars<'_>) -> u32 {
    chars.by_ref().take(4).fold(0, |value, digit| {
        value.wrapping_shl(4) | digit.to_digit(16).unwrap_or(0)
    })
}

/// Appends `text` as a JSON string, quotes and escapes included.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut rest = text.as_bytes();
    out.push(b'"');
    while !rest.is_empty() {
        let run = plain_run(rest);
        let (plain, tail) = rest.split_at_checked(run).unwrap_or((rest, &[]));
        out.extend_from_slice(plain);
        let Some((byte, tail)) = tail.split_first() else {
            break;
        };
        match *byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => {
                let nibble = |value: u8| HEX.get(usize::from(value & 15)).copied().unwrap_or(b'0');
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[nibble(control.wrapping_shr(4)), nibble(control)]);
            }
        }
        rest = tail;
    }
    out.push(b'"');
}

/// A caller's word made fit for a message or a header: visible ASCII, at most 64 characters, the rest as `%XX`.
/// Comma and `%` are escaped too, so that a list of such words can be split again.
pub(crate) fn shorten(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for byte in text.bytes() {
        if out.len() >= SHOWN {
            out.push_str("...");
            break;
        }
        if byte.is_ascii_graphic() && byte != b',' && byte != b'%' {
            out.push(char::from(byte));
        } else if write!(out, "%{byte:02X}").is_err() {
            break;
        }
    }
    out
}
