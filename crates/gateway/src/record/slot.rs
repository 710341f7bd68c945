//! In-flight slots: 128 bytes a running call in `state/inflight/GENERATION`, so that a killed process can't lose
//! one. Written before the call is forwarded and again every 64 tokens; cleared once its record is written.
//!
//! What a dead generation left is read once, at start, by the next one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rules::ident::RequestId;
use rules::key::KeyId;
use rules::measure::Tokens;

const SIZE: usize = 128;
const MAGIC: [u8; 4] = *b"GSL1";
const MODEL: usize = 40;

/// Calls that may run at the same time on this node.
pub const SLOTS: u32 = 8192;

/// The file of one generation.
#[derive(Debug)]
pub struct Slots {
    file: File,
    free: Mutex<Vec<u32>>,
}

/// What a slot says of its call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The request's id.
    pub id: RequestId,
    /// Whose it is.
    pub key: KeyId,
    /// Index of the endpoint in the closed list.
    pub endpoint: u8,
    /// A stream.
    pub stream: bool,
    /// When it arrived, nanoseconds since 1970.
    pub started_ns: u64,
    /// What was reserved.
    pub reserved: Tokens,
    /// Prompt tokens that the upstream reported, 0 before.
    pub prompt: u64,
    /// Output so far: one a text event, or as reported.
    pub output: u64,
    /// The model's public name, cut to 40 bytes.
    pub model: String,
}

/// A taken slot. Clearing it is an act of its own: a slot that is only dropped stays on disk, and the next start
/// finds it.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: std::sync::Arc<Slots>,
    number: u32,
}

impl Slots {
    /// Creates the file of a new generation.
    ///
    /// # Errors
    /// When it exists already or can't be written.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.set_len(u64::from(SLOTS) * SIZE as u64)?;
        Ok(Self {
            file,
            free: Mutex::new((0..SLOTS).rev().collect()),
        })
    }

    /// The calls that a generation left when it died. Slots that were cut in the middle of a write don't count:
    /// their call had not been forwarded.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn left_over(path: &Path) -> io::Result<Vec<Call>> {
        let mut bytes = Vec::new();
        File::open(path)?
            .take(u64::from(SLOTS) * SIZE as u64)
            .read_to_end(&mut bytes)?;
        Ok(bytes.chunks_exact(SIZE).filter_map(decode).collect())
    }

    /// Whether no call holds a slot.
    #[must_use]
    pub fn are_free(&self) -> bool {
        self.free().len() == usize::try_from(SLOTS).unwrap_or(0)
    }

    /// Takes a slot and writes `call` into it.
    ///
    /// # Errors
    /// `WouldBlock` when all are taken; else what the disk says.
    pub(crate) fn take(self: &std::sync::Arc<Self>, call: &Call) -> io::Result<Slot> {
        let number = self.free().pop().ok_or(io::ErrorKind::WouldBlock)?;
        let slot = Slot {
            slots: std::sync::Arc::clone(self),
            number,
        };
        match slot.write(call) {
            Ok(()) => Ok(slot),
            Err(fault) => {
                slot.clear();
                Err(fault)
            }
        }
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<u32>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Writes how far the call is.
    pub(crate) fn write(&self, call: &Call) -> io::Result<()> {
        self.slots
            .file
            .write_all_at(&encode(call), u64::from(self.number) * SIZE as u64)
    }

    /// The call's record is in the log: the slot is free.
    pub(crate) fn clear(self) {
        // A slot that can't be cleared is found at the next start; the log then already has its call.
        if let Err(fault) = self
            .slots
            .file
            .write_all_at(&[0; SIZE], u64::from(self.number) * SIZE as u64)
        {
            tracing::warn!(%fault, "an in-flight slot can't be cleared");
        }
        self.slots.free().push(self.number);
    }
}

fn encode(call: &Call) -> [u8; SIZE] {
    let mut out = Vec::with_capacity(SIZE);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&call.id.bits().to_be_bytes());
    out.extend_from_slice(&call.key.bytes());
    let mut cut = call.model.len().min(MODEL);
    while !call.model.is_char_boundary(cut) {
        cut = cut.saturating_sub(1);
    }
    let model = call.model.as_bytes().get(..cut).unwrap_or_default();
    out.extend_from_slice(&[
        call.endpoint,
        u8::from(call.stream),
        u8::try_from(cut).unwrap_or(0),
        0,
    ]);
    for number in [
        call.started_ns,
        call.reserved.input,
        call.reserved.output,
        call.prompt,
        call.output,
    ] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(model);
    let mut slot = [0; SIZE];
    for (to, from) in slot.iter_mut().zip(out) {
        *to = from;
    }
    let sum = checksum(&slot);
    for (to, from) in slot.iter_mut().skip(4).zip(sum.to_be_bytes()) {
        *to = from;
    }
    slot
}

fn decode(slot: &[u8]) -> Option<Call> {
    let mut at = slot;
    if *take::<4>(&mut at)? != MAGIC || u32::from_be_bytes(*take::<4>(&mut at)?) != checksum(slot) {
        return None;
    }
    let id = RequestId::from_bits(u128::from_be_bytes(*take::<16>(&mut at)?));
    let key = KeyId::parse(std::str::from_utf8(take::<12>(&mut at)?).ok()?).ok()?;
    let [endpoint, stream, model_length, _] = *take::<4>(&mut at)?;
    let mut number = || Some(u64::from_be_bytes(*take::<8>(&mut at)?));
    let (started_ns, input, output_cap) = (number()?, number()?, number()?);
    let (prompt, output, _spare) = (number()?, number()?, number()?);
    let model = at.get(..usize::from(model_length))?;
    Some(Call {
        id,
        key,
        endpoint,
        stream: stream != 0,
        started_ns,
        reserved: Tokens {
            input,
            output: output_cap,
        },
        prompt,
        output,
        model: String::from_utf8_lossy(model).into_owned(),
    })
}

fn take<'a, const N: usize>(at: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (head, rest) = at.split_first_chunk::<N>()?;
    *at = rest;
    Some(head)
}

/// FNV-1a over all but the checksum itself: finds a torn write, defends against nothing.
fn checksum(slot: &[u8]) -> u32 {
    let counted = slot.iter().take(4).chain(slot.iter().skip(8));
    counted.fold(0x811c_9dc5, |sum, &byte| {
        (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn call(n: u64) -> Call {
        Call {
            id: RequestId::new(n, [7; 10]),
            key: KeyId::parse("abcdefghijkl").unwrap(),
            endpoint: 1,
            stream: true,
            started_ns: n,
            reserved: Tokens {
                input: 30,
                output: 2048,
            },
            prompt: 0,
            output: n,
            model: "名".repeat(20),
        }
    }

    #[test]
    fn what_a_dead_generation_left_is_read_back_and_cleared_slots_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("00000001");
        let slots = Arc::new(Slots::create(&path).unwrap());
        let kept = slots.take(&call(1)).unwrap();
        let cleared = slots.take(&call(2)).unwrap();
        cleared.clear();
        kept.write(&call(64)).unwrap();
        drop(kept);
        let mut expected = call(64);
        expected.model = "名".repeat(13);
        assert_eq!(Slots::left_over(&path).unwrap(), [expected]);
    }

    #[test]
    fn a_torn_slot_does_not_count() {
        let mut slot = encode(&call(9));
        assert!(decode(&slot).is_some());
        slot[100] ^= 1;
        assert!(decode(&slot).is_none());
        assert!(decode(&[0; SIZE]).is_none());
    }

    #[test]
    fn all_slots_taken_is_said_and_one_given_back_serves_again() {
        let folder = tempfile::tempdir().unwrap();
        let slots = Arc::new(Slots::create(&folder.path().join("g")).unwrap());
        let mut held: Vec<_> = (0..SLOTS).map(|_| slots.take(&call(1)).unwrap()).collect();
        assert_eq!(
            slots.take(&call(1)).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        held.pop().unwrap().clear();
        assert!(slots.take(&call(1)).is_ok());
    }
}
