//! Just enough of an X.509 certificate to know whose it is: its time and the names in its subjectAltName (RFC 5280).
//!
//! It judges nothing: the certificate was verified by TLS before. Names come with a word in front, `dns:`, `uri:` or
//! `email:`, so that one kind is never taken for another; the common name is never read. Called by `gateway::door`.

/// Whose a certificate is, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// From when it is valid, seconds since 1970.
    pub not_before: i64,
    /// Until when it is valid, this second included.
    pub not_after: i64,
    /// The names, such as `dns:a.example`, in their order; host names in lower case.
    pub names: Vec<String>,
}

/// Reads a certificate in DER. `None`: it isn't one.
#[must_use]
pub fn read(certificate: &[u8]) -> Option<Certificate> {
    let (outer, _) = element(certificate, SEQUENCE)?;
    let (mut rest, _) = element(outer, SEQUENCE)?;
    if let Some((_version, after)) = element(rest, VERSION) {
        rest = after;
    }
    let (_serial, rest) = element(rest, INTEGER)?;
    let (_algorithm, rest) = element(rest, SEQUENCE)?;
    let (_issuer, rest) = element(rest, SEQUENCE)?;
    let (validity, rest) = element(rest, SEQUENCE)?;
    let (_subject, rest) = element(rest, SEQUENCE)?;
    let (_key, mut rest) = element(rest, SEQUENCE)?;
    let (not_before, after) = time(validity)?;
    let (not_after, _) = time(after)?;
    let mut names = Vec::new();
    while !rest.is_empty() {
        let (tag, content, after) = any(rest)?;
        if tag == EXTENSIONS {
            names = alternative_names(content)?;
        }
        rest = after;
    }
    Some(Certificate {
        not_before,
        not_after,
        names,
    })
}

fn alternative_names(extensions: &[u8]) -> Option<Vec<String>> {
    let (mut rest, _) = element(extensions, SEQUENCE)?;
    while !rest.is_empty() {
        let (extension, after) = element(rest, SEQUENCE)?;
        rest = after;
        let (id, value) = element(extension, OBJECT_ID)?;
        if id != SUBJECT_ALT_NAME {
            continue;
        }
        let value = element(value, BOOLEAN).map_or(value, |(_critical, after)| after);
        let (value, _) = element(value, OCTETS)?;
        let (mut list, _) = element(value, SEQUENCE)?;
        let mut names = Vec::new();
        while !list.is_empty() && names.len() < MOST_NAMES {
            let (tag, name, after) = any(list)?;
            list = after;
            names.extend(named(tag, name));
        }
        return Some(names);
    }
    Some(Vec::new())
}

/// Other kinds of names, and names that a record couldn't show, are nobody's.
fn named(tag: u8, name: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(name).ok()?;
    if text.is_empty() || text.len() > LONGEST_NAME || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return None;
    }
    match tag {
        EMAIL => {
            let (person, host) = text.rsplit_once('@')?;
            Some(format!("email:{person}@{}", host.to_ascii_lowercase()))
        }
        DNS => Some(format!("dns:{}", text.to_ascii_lowercase())),
        URI => Some(format!("uri:{text}")),
        _ => None,
    }
}

/// A time and what follows it.
fn time(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (tag, text, rest) = any(bytes)?;
    let text = std::str::from_utf8(text).ok()?;
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, at) = match tag {
        UTC_TIME => {
            // Two digits from 50 on are of the last century.
            let year = number(0, 2)?;
            let century = if year < 50 { 2000 } else { 1900 };
            (year.checked_add(century)?, 2)
        }
        GENERALIZED_TIME => (number(0, 4)?, 4),
        _ => return None,
    };
    let part = |n: usize| {
        let from = n.checked_mul(2)?.checked_add(at)?;
        number(from, from.checked_add(2)?)
    };
    let (month, day) = (part(0)?, part(1)?);
    let (hour, minute, second) = (part(2)?, part(3)?, part(4)?);
    if text.get(at.checked_add(10)?..) != Some("Z") || !(1..=12).contains(&month) {
        return None;
    }
    let hours = days(year, month, day)?.checked_mul(24)?.checked_add(hour)?;
    let minutes = hours.checked_mul(60)?.checked_add(minute)?;
    Some((minutes.checked_mul(60)?.checked_add(second)?, rest))
}

/// Days from 1970-01-01 to a day of the Gregorian calendar, by years that begin in March.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    let year = year.checked_sub(i64::from(month <= 2))?;
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let month = month.checked_add(9)? % 12;
    let of_year = month.checked_mul(153)?.checked_add(2)? / 5;
    let of_year = of_year.checked_add(day)?.checked_sub(1)?;
    let leaps = (of_era / 4).checked_sub(of_era / 100)?;
    let in_era = of_era
        .checked_mul(365)?
        .checked_add(leaps)?
        .checked_add(of_year)?;
    era.checked_mul(146_097)?
        .checked_add(in_era)?
        .checked_sub(719_468)
}

/// The content of the element of this kind that begins here, and what follows it.
fn element(bytes: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let (tag, content, rest) = any(bytes)?;
    (tag == wanted).then_some((content, rest))
}

fn any(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if digits.is_empty() || digits.len() > 4 {
            return None;
        }
        let length = digits
            .iter()
            .fold(0_u64, |length, &digit| (length << 8) | u64::from(digit));
        (usize::try_from(length).ok()?, rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const EMAIL: u8 = 0x81;
const DNS: u8 = 0x82;
const URI: u8 = 0x86;
/// 2.5.29.17.
const SUBJECT_ALT_NAME: [u8; 3] = [0x55, 0x1d, 0x11];
/// Names of one certificate that are looked at.
const MOST_NAMES: usize = 64;
const LONGEST_NAME: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        match u8::try_from(content.len()) {
            Ok(short) if short < 0x80 => out.push(short),
            _ => {
                out.push(0x82);
                out.extend_from_slice(&u16::try_from(content.len()).unwrap().to_be_bytes());
            }
        }
        out.extend_from_slice(content);
        out
    }

    fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
        der(SEQUENCE, &parts.concat())
    }

    fn certificate(times: [(u8, &str); 2], names: &[(u8, &[u8])]) -> Vec<u8> {
        let list: Vec<Vec<u8>> = names.iter().map(|(tag, name)| der(*tag, name)).collect();
        let other = sequence(&[
            der(OBJECT_ID, &[0x55, 0x1d, 0x0f]),
            der(BOOLEAN, &[255]),
            der(OCTETS, &[1]),
        ]);
        let names = sequence(&[
            der(OBJECT_ID, &SUBJECT_ALT_NAME),
            der(BOOLEAN, &[255]),
            der(OCTETS, &sequence(&list)),
        ]);
        let validity = times.map(|(tag, text)| der(tag, text.as_bytes()));
        let signed = sequence(&[
            der(VERSION, &der(INTEGER, &[2])),
            der(INTEGER, &[1]),
            sequence(&[]),
            sequence(&[]),
            sequence(&validity),
            sequence(&[]),
            sequence(&[]),
            der(EXTENSIONS, &sequence(&[other, names])),
        ]);
        sequence(&[signed, sequence(&[]), der(0x03, &[0])])
    }

    const TIMES: [(u8, &str); 2] = [
        (UTC_TIME, "260131235959Z"),
        (GENERALIZED_TIME, "20500228000000Z"),
    ];

    #[test]
    fn time_and_names_are_read_and_kinds_kept_apart() {
        let bytes = certificate(
            TIMES,
            &[
                (DNS, b"App.Example.COM"),
                (URI, b"spiffe://Cluster/ns/llm"),
                (EMAIL, b"Bot@Example.com"),
                (0x87, &[127, 0, 0, 1]),
                (DNS, b"a\0b"),
                (DNS, b"a b"),
                (DNS, b"uri:spiffe://x"),
                (EMAIL, b"nobody"),
                (DNS, b""),
            ],
        );
        let read = read(&bytes).unwrap();
        assert_eq!(read.not_before, 1_769_903_999);
        assert_eq!(read.not_after, 2_529_619_200);
        assert_eq!(
            read.names,
            [
                "dns:app.example.com",
                "uri:spiffe://Cluster/ns/llm",
                "email:Bot@example.com",
                "dns:uri:spiffe://x"
            ]
        );
    }

    #[test]
    fn days_are_counted_as_calendars_do() {
        for (date, wanted) in [
            ((1970, 1, 1), 0),
            ((1969, 12, 31), -1),
            ((2000, 2, 29), 11_016),
            ((2000, 3, 1), 11_017),
            ((2100, 3, 1), 47_541),
            ((1600, 1, 1), -135_140),
        ] {
            assert_eq!(days(date.0, date.1, date.2), Some(wanted), "{date:?}");
        }
    }

    #[test]
    fn nothing_that_is_cut_or_changed_makes_it_panic() {
        let good = certificate(TIMES, &[(DNS, b"a.example")]);
        for end in 0..good.len() {
            assert_eq!(read(&good[..end]), None);
        }
        for at in 0..good.len() {
            for value in [0, 1, 0x30, 0x7f, 0x80, 0x84, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                let _whatever = read(&bytes);
            }
        }
        for bad in [
            "2601312359Z",
            "260131235959",
            "261331235959Z",
            "26013123595aZ",
        ] {
            let bytes = certificate([(UTC_TIME, bad), (UTC_TIME, "260131235959Z")], &[]);
            assert_eq!(read(&bytes), None, "{bad}");
        }
    }
}
