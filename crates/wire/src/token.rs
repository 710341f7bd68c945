//! What is said to `guan-pkcs11`, which holds a PKCS#11 token, and what it answers.
//!
//! A closed list: it wraps a key of 32 bytes, opens what it wrapped, and can't be asked for more. A frame is a
//! big-endian `u16` length, one byte that says what it is, and fields of two bytes' length each. Buffers that hold a
//! key or a PIN are wiped. Called by `guan` (which asks) and `pkcs11` (which answers); the bytes move there.

use std::fmt;

use zeroize::Zeroizing;

/// The largest frame that either side accepts, bytes, without its length.
pub const MOST: usize = 8 << 10;

/// What a wrapped key is authenticated with: nothing that the token encrypted for another use opens as one.
pub const PURPOSE: &[u8] = b"guan data key";

/// The first message: which module, token and key. Sent once, by whoever starts the program.
#[derive(Clone, PartialEq, Eq)]
pub struct Start {
    /// Path of the PKCS#11 module.
    pub module: String,
    /// Which token.
    pub token: Token,
    /// Which key on it.
    pub key: Key,
    /// The user's PIN.
    pub pin: Zeroizing<String>,
}

/// Which token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// The one with this label.
    Label(String),
    /// The one with this serial number.
    Serial(String),
}

/// Which key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// The one with this label.
    Label(String),
    /// The one with this id.
    Id(Vec<u8>),
}

/// What may be asked.
#[derive(Clone, PartialEq, Eq)]
pub enum Ask {
    /// Wrap this key.
    Wrap(Zeroizing<Vec<u8>>),
    /// Open what was wrapped.
    Open(Vec<u8>),
}

/// What is answered.
#[derive(Clone, PartialEq, Eq)]
pub enum Answer {
    /// The key, wrapped.
    Wrapped(Vec<u8>),
    /// The key, opened.
    Opened(Zeroizing<Vec<u8>>),
    /// Why not.
    Fault(Fault),
}

/// Why it can't be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Whether trying again can help.
    pub kind: FaultKind,
    /// In words for people, never with a part of the PIN or of a key.
    pub text: String,
}

/// Whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The module or the token isn't there: perhaps later.
    Away,
    /// The token said no.
    Refused,
}

/// The bytes aren't a frame of this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes that are no message of guan-pkcs11's list")
    }
}

impl std::error::Error for Malformed {}

/// The length of the frame that these two bytes begin.
///
/// # Errors
/// [`Malformed`]: nothing, or more than is accepted.
pub fn length(head: [u8; 2]) -> Result<usize, Malformed> {
    let length = usize::from(u16::from_be_bytes(head));
    if (1..=MOST).contains(&length) {
        Ok(length)
    } else {
        Err(Malformed)
    }
}

impl Start {
    /// As a frame.
    ///
    /// # Errors
    /// [`Malformed`]: longer than is accepted.
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>, Malformed> {
        let (token, named) = match &self.token {
            Token::Label(label) => (LABEL, label),
            Token::Serial(serial) => (SERIAL, serial),
        };
        let (key, id) = match &self.key {
            Key::Label(label) => (LABEL, label.as_bytes()),
            Key::Id(id) => (ID, id.as_slice()),
        };
        frame(
            START,
            &[
                self.module.as_bytes(),
                &[token],
                named.as_bytes(),
                &[key],
                id,
                self.pin.as_bytes(),
            ],
        )
    }

    /// From a frame without its length.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::of(body, START)?;
        let module = fields.text()?;
        let (kind, named) = (fields.next()?, fields.text()?);
        let token = match kind {
            [LABEL] => Token::Label(named),
            [SERIAL] => Token::Serial(named),
            _ => return Err(Malformed),
        };
        let (kind, named) = (fields.next()?, fields.next()?);
        let key = match kind {
            [LABEL] => Key::Label(text(named)?),
            [ID] => Key::Id(named.to_vec()),
            _ => return Err(Malformed),
        };
        let pin = Zeroizing::new(fields.text()?);
        fields.end()?;
        Ok(Self {
            module,
            token,
            key,
            pin,
        })
    }
}

impl Ask {
    /// As a frame.
    ///
    /// # Errors
    /// [`Malformed`]: longer than is accepted.
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>, Malformed> {
        match self {
            Self::Wrap(key) => frame(WRAP, &[key]),
            Self::Open(blob) => frame(OPEN, &[blob]),
        }
    }

    /// From a frame without its length.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        match body.first() {
            Some(&WRAP) => Fields::of(body, WRAP)?
                .only()
                .map(|key| Self::Wrap(Zeroizing::new(key.to_vec()))),
            Some(&OPEN) => Fields::of(body, OPEN)?
                .only()
                .map(|blob| Self::Open(blob.to_vec())),
            _ => Err(Malformed),
        }
    }
}

impl Answer {
    /// As a frame.
    ///
    /// # Errors
    /// [`Malformed`]: longer than is accepted.
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>, Malformed> {
        match self {
            Self::Wrapped(blob) => frame(WRAPPED, &[blob]),
            Self::Opened(key) => frame(OPENED, &[key]),
            Self::Fault(fault) => {
                let kind = match fault.kind {
                    FaultKind::Away => AWAY,
                    FaultKind::Refused => REFUSED,
                };
                frame(kind, &[fault.text.as_bytes()])
            }
        }
    }

    /// From a frame without its length.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let fault = |kind, word| {
            Fields::of(body, word)?
                .only()
                .and_then(text)
                .map(|text| Self::Fault(Fault { kind, text }))
        };
        match body.first() {
            Some(&WRAPPED) => Fields::of(body, WRAPPED)?
                .only()
                .map(|blob| Self::Wrapped(blob.to_vec())),
            Some(&OPENED) => Fields::of(body, OPENED)?
                .only()
                .map(|key| Self::Opened(Zeroizing::new(key.to_vec()))),
            Some(&AWAY) => fault(FaultKind::Away, AWAY),
            Some(&REFUSED) => fault(FaultKind::Refused, REFUSED),
            _ => Err(Malformed),
        }
    }
}

impl fmt::Debug for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Start")
            .field("module", &self.module)
            .field("token", &self.token)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wrap(_) => "Wrap(…)",
            Self::Open(_) => "Open(…)",
        })
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrapped(_) => f.write_str("Wrapped(…)"),
            Self::Opened(_) => f.write_str("Opened(…)"),
            Self::Fault(fault) => fault.fmt(f),
        }
    }
}

/// Reserved whole before the first byte is written, so that no secret is left behind in a smaller buffer.
fn frame(kind: u8, fields: &[&[u8]]) -> Result<Zeroizing<Vec<u8>>, Malformed> {
    let size = fields.iter().try_fold(1_usize, |size, field| {
        size.checked_add(2)?.checked_add(field.len())
    });
    let size = size.filter(|size| *size <= MOST).ok_or(Malformed)?;
    let mut out = Zeroizing::new(Vec::with_capacity(size.saturating_add(2)));
    let short = |size: usize| u16::try_from(size).map_err(|_long| Malformed);
    out.extend_from_slice(&short(size)?.to_be_bytes());
    out.push(kind);
    for field in fields {
        out.extend_from_slice(&short(field.len())?.to_be_bytes());
        out.extend_from_slice(field);
    }
    Ok(out)
}

/// The fields of a frame, in their order.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn of(body: &'a [u8], kind: u8) -> Result<Self, Malformed> {
        match body.split_first() {
            Some((&first, rest)) if first == kind => Ok(Self(rest)),
            _ => Err(Malformed),
        }
    }

    fn next(&mut self) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<2>().ok_or(Malformed)?;
        let length = usize::from(u16::from_be_bytes(*head));
        let (field, rest) = rest.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(field)
    }

    fn text(&mut self) -> Result<String, Malformed> {
        self.next().and_then(text)
    }

    fn only(mut self) -> Result<&'a [u8], Malformed> {
        let field = self.next()?;
        self.end()?;
        Ok(field)
    }

    const fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed)
        }
    }
}

fn text(bytes: &[u8]) -> Result<String, Malformed> {
    std::str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|_not| Malformed)
}

const START: u8 = 1;
const WRAP: u8 = 2;
const OPEN: u8 = 3;
const WRAPPED: u8 = 4;
const OPENED: u8 = 5;
const AWAY: u8 = 6;
const REFUSED: u8 = 7;

const LABEL: u8 = 1;
const SERIAL: u8 = 2;
const ID: u8 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Start {
        Start {
            module: "/usr/lib/softhsm/libsofthsm2.so".to_owned(),
            token: Token::Serial("1234".to_owned()),
            key: Key::Id(vec![0, 1, 255]),
            pin: Zeroizing::new("hunter2".to_owned()),
        }
    }

    /// The frame's body, after its length was checked.
    fn body(frame: &[u8]) -> &[u8] {
        let (head, body) = frame.split_first_chunk::<2>().unwrap();
        assert_eq!(length(*head).unwrap(), body.len());
        body
    }

    #[test]
    fn every_message_reads_back_as_it_was_written() {
        let labelled = Start {
            token: Token::Label("guan".to_owned()),
            key: Key::Label("kek".to_owned()),
            ..start()
        };
        for start in [start(), labelled] {
            let frame = start.encode().unwrap();
            assert_eq!(Start::decode(body(&frame)).unwrap(), start);
        }
        for ask in [Ask::Wrap(vec![7; 32].into()), Ask::Open(vec![1, 2, 3])] {
            let frame = ask.encode().unwrap();
            assert_eq!(Ask::decode(body(&frame)).unwrap(), ask);
        }
        let fault = |kind| {
            Answer::Fault(Fault {
                kind,
                text: "no token".to_owned(),
            })
        };
        for answer in [
            Answer::Wrapped(vec![9; 61]),
            Answer::Opened(vec![7; 32].into()),
            fault(FaultKind::Away),
            fault(FaultKind::Refused),
        ] {
            let frame = answer.encode().unwrap();
            assert_eq!(Answer::decode(body(&frame)).unwrap(), answer);
        }
    }

    #[test]
    fn what_is_cut_long_or_of_another_list_is_refused() {
        let frame = start().encode().unwrap();
        let whole = body(&frame);
        for cut in 0..whole.len() {
            assert_eq!(Start::decode(&whole[..cut]), Err(Malformed));
        }
        assert_eq!(Start::decode(&[whole, &[0]].concat()), Err(Malformed));
        assert_eq!(Ask::decode(whole), Err(Malformed));
        assert_eq!(Answer::decode(whole), Err(Malformed));
        assert_eq!(length([0, 0]), Err(Malformed));
        assert_eq!(length([255, 255]), Err(Malformed));
        assert_eq!(Ask::Open(vec![0; MOST]).encode(), Err(Malformed));
        for first in 0..=255_u8 {
            let _read = (
                Start::decode(&[first, 0, 0]),
                Ask::decode(&[first, 0, 9]),
                Answer::decode(&[first, 0, 0]),
            );
        }
    }

    #[test]
    fn nothing_secret_is_in_debug_output() {
        let shown = format!(
            "{:?} {:?} {:?}",
            start(),
            Ask::Wrap(b"hunter2".to_vec().into()),
            Answer::Opened(b"hunter2".to_vec().into())
        );
        assert!(
            !shown.contains("hunter2") && !shown.contains("104, 117"),
            "{shown}"
        );
    }
}
