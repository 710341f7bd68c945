//! Reads what a GGUF file says about itself, without loading one weight and without llama.cpp.
//! Decides whether the file is whole (header, tables, and every tensor inside the file), so that
//! the C++ loader only ever sees files that passed here. It never reads tensor data.
//! Called by `weights` before loading and by `guan-engine describe`.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

/// What stands in the header of one GGUF file.
#[derive(Debug, Default)]
pub(crate) struct Header {
    values: BTreeMap<String, Value>,
    /// Number of weights, all tensors together.
    pub(crate) parameters: u64,
    /// Length of the file in bytes.
    pub(crate) size_bytes: u64,
}

/// One metadata value; long arrays keep only their length.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Whole(u64),
    Other,
    Text(String),
    Wholes(Vec<u64>),
}

/// Why a file can't be used. The message names the file and says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("{path}: {cause}; give the path of a GGUF file that this user can read")]
    Unreadable { path: String, cause: io::Error },
    #[error("{path} is not a GGUF file; this engine runs GGUF models only")]
    NotGguf { path: String },
    #[error("{path} is GGUF version {version}; versions 2 and 3 are known: convert it anew")]
    Version { path: String, version: u32 },
    #[error("{path} is cut short ({detail}); download it again and compare its SHA-256")]
    Truncated { path: String, detail: String },
    #[error("{path} is damaged ({detail}); download it again and compare its SHA-256")]
    Damaged { path: String, detail: String },
}

impl Header {
    /// Reads the header of `path`.
    ///
    /// # Errors
    /// [`Broken`], when the file can't be read, is no GGUF, is cut short or contradicts itself.
    pub(crate) fn read(path: &Path) -> Result<Self, Broken> {
        let name = path.display().to_string();
        let unreadable = |cause| Broken::Unreadable {
            path: name.clone(),
            cause,
        };
        let file = File::open(path).map_err(unreadable)?;
        let about = file.metadata().map_err(unreadable)?;
        if !about.is_file() {
            return Err(unreadable(io::Error::other("not a regular file")));
        }
        parse(BufReader::new(file), about.len()).map_err(|fault| fault.at(name))
    }

    /// The text under `key`.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.values.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The whole number under `key`; of a list (a value per layer) the largest.
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        match self.values.get(key) {
            Some(Value::Whole(n)) => Some(*n),
            Some(Value::Wholes(list)) => list.iter().copied().max(),
            _ => None,
        }
    }

    /// `general.architecture`, the family the weights belong to.
    pub(crate) fn architecture(&self) -> &str {
        self.text("general.architecture").unwrap_or("unknown")
    }

    /// The number under `<architecture>.<key>`.
    pub(crate) fn arch_number(&self, key: &str) -> Option<u64> {
        self.number(&format!("{}.{key}", self.architecture()))
    }

    /// The kind of quantisation, as people write it (`Q4_K_M`).
    pub(crate) fn file_type(&self) -> Option<&'static str> {
        let number = self.number("general.file_type")?;
        FILE_TYPES
            .iter()
            .find(|(id, _)| *id == number)
            .map(|(_, name)| *name)
    }
}

/// A fault whose file is not named yet.
#[derive(Debug)]
enum Fault {
    Io(io::Error),
    NotGguf,
    Version(u32),
    Short(String),
    Damaged(String),
}

impl Fault {
    fn at(self, path: String) -> Broken {
        match self {
            Self::Io(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => Broken::Truncated {
                path,
                detail: "it ends inside its header".to_owned(),
            },
            Self::Io(cause) => Broken::Unreadable { path, cause },
            Self::NotGguf => Broken::NotGguf { path },
            Self::Version(version) => Broken::Version { path, version },
            Self::Short(detail) => Broken::Truncated { path, detail },
            Self::Damaged(detail) => Broken::Damaged { path, detail },
        }
    }
}

impl From<io::Error> for Fault {
    fn from(cause: io::Error) -> Self {
        Self::Io(cause)
    }
}

/// Reads a header from `input`, whose whole length is `length` bytes.
fn parse(input: impl Read, length: u64) -> Result<Header, Fault> {
    let mut input = Reader {
        input,
        at: 0,
        length,
    };
    if length < 4 || input.bytes::<4>()? != *b"GGUF" {
        return Err(Fault::NotGguf);
    }
    let version = input.u32()?;
    if !(2..=3).contains(&version) {
        return Err(Fault::Version(version));
    }
    let tensors = input.u64()?;
    let pairs = input.u64()?;
    // each pair and each tensor takes at least 12 bytes: larger counts are lies
    if tensors.saturating_add(pairs).saturating_mul(12) > length {
        return Err(Fault::Short(
            "its tables are longer than the file".to_owned(),
        ));
    }
    let mut header = Header {
        size_bytes: length,
        ..Header::default()
    };
    for _ in 0..pairs {
        let key = input.string()?;
        let kind = input.u32()?;
        let value = input.value(kind)?;
        header.values.insert(key, value);
    }
    let mut end = 0_u64;
    for _ in 0..tensors {
        let (weights, last) = tensor(&mut input)?;
        header.parameters = header.parameters.saturating_add(weights);
        end = end.max(last);
    }
    let align = header.number("general.alignment").unwrap_or(32).max(1);
    let data = input.at.checked_next_multiple_of(align).unwrap_or(u64::MAX);
    let needed = data.saturating_add(end);
    if tensors > 0 && needed > length {
        return Err(Fault::Short(format!(
            "{length} bytes are here, {needed} are needed"
        )));
    }
    Ok(header)
}

/// One line of the tensor table: the number of weights, and where its data ends.
fn tensor(input: &mut Reader<impl Read>) -> Result<(u64, u64), Fault> {
    let name = input.string()?;
    let dims = input.u32()?;
    if dims > 4 {
        return Err(Fault::Damaged(format!(
            "tensor {name:.40} has {dims} dimensions"
        )));
    }
    let mut weights = 1_u64;
    for _ in 0..dims {
        weights = weights
            .checked_mul(input.u64()?)
            .ok_or_else(|| Fault::Damaged(format!("tensor {name:.40} is too large")))?;
    }
    let kind = input.u32()?;
    let offset = input.u64()?;
    let size = TENSOR_TYPES
        .iter()
        .find(|(id, ..)| *id == kind)
        .map_or(0, |(_, block, bytes)| {
            weights.div_ceil(*block).saturating_mul(*bytes)
        });
    Ok((weights, offset.saturating_add(size)))
}

/// A little-endian reader that knows how much may still come.
struct Reader<R> {
    input: R,
    at: u64,
    length: u64,
}

impl<R: Read> Reader<R> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut buffer = [0; N];
        self.fill(&mut buffer)?;
        Ok(buffer)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Fault> {
        self.input.read_exact(buffer)?;
        self.at = self
            .at
            .saturating_add(u64::try_from(buffer.len()).unwrap_or(u64::MAX));
        Ok(())
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn string(&mut self) -> Result<String, Fault> {
        let length = self.u64()?;
        if length > self.length.saturating_sub(self.at) {
            return Err(Fault::Short("a text is longer than the file".to_owned()));
        }
        let length = usize::try_from(length)
            .ok()
            .filter(|n| *n <= LONGEST_TEXT)
            .ok_or_else(|| Fault::Damaged("a text is longer than 16 MiB".to_owned()))?;
        let mut buffer = vec![0; length];
        self.fill(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer).into_owned())
    }

    fn value(&mut self, kind: u32) -> Result<Value, Fault> {
        Ok(match kind {
            8 => Value::Text(self.string()?),
            9 => self.array()?,
            _ => self.scalar(kind)?,
        })
    }

    fn scalar(&mut self, kind: u32) -> Result<Value, Fault> {
        let signed = |n: i64| u64::try_from(n).map_or(Value::Other, Value::Whole);
        Ok(match kind {
            0 => Value::Whole(u64::from(u8::from_le_bytes(self.bytes()?))),
            1 => signed(i64::from(i8::from_le_bytes(self.bytes()?))),
            2 => Value::Whole(u64::from(u16::from_le_bytes(self.bytes()?))),
            3 => signed(i64::from(i16::from_le_bytes(self.bytes()?))),
            4 => Value::Whole(u64::from(self.u32()?)),
            5 => signed(i64::from(i32::from_le_bytes(self.bytes()?))),
            6 => {
                self.bytes::<4>()?;
                Value::Other
            }
            7 => {
                self.bytes::<1>()?;
                Value::Other
            }
            10 => Value::Whole(self.u64()?),
            11 => signed(i64::from_le_bytes(self.bytes()?)),
            12 => {
                self.bytes::<8>()?;
                Value::Other
            }
            other => return Err(Fault::Damaged(format!("value type {other} is unknown"))),
        })
    }

    fn array(&mut self) -> Result<Value, Fault> {
        let kind = self.u32()?;
        let count = self.u64()?;
        if count > self.length.saturating_sub(self.at) {
            return Err(Fault::Short("a list is longer than the file".to_owned()));
        }
        if kind == 9 {
            return Err(Fault::Damaged("a list of lists".to_owned()));
        }
        let mut kept = Vec::new();
        for _ in 0..count {
            if kind == 8 {
                self.string()?;
            } else if let Value::Whole(n) = self.scalar(kind)?
                && count <= LONGEST_KEPT_LIST
            {
                kept.push(n);
            }
        }
        Ok(Value::Wholes(kept))
    }
}

/// Longer texts than this are not real: the largest known template is under 100 KiB.
const LONGEST_TEXT: usize = 16 << 20;
/// Per-layer lists are kept, vocabularies are not.
const LONGEST_KEPT_LIST: u64 = 1024;

/// ggml's tensor types: id, weights a block, bytes a block.
const TENSOR_TYPES: &[(u32, u64, u64)] = &[
    (0, 1, 4),
    (1, 1, 2),
    (2, 32, 18),
    (3, 32, 20),
    (6, 32, 22),
    (7, 32, 24),
    (8, 32, 34),
    (9, 32, 36),
    (10, 256, 84),
    (11, 256, 110),
    (12, 256, 144),
    (13, 256, 176),
    (14, 256, 210),
    (15, 256, 292),
    (16, 256, 66),
    (17, 256, 74),
    (18, 256, 98),
    (19, 256, 50),
    (20, 32, 18),
    (21, 256, 110),
    (22, 256, 82),
    (23, 256, 136),
    (24, 1, 1),
    (25, 1, 2),
    (26, 1, 4),
    (27, 1, 8),
    (28, 1, 8),
    (29, 256, 56),
    (30, 1, 2),
    (34, 256, 54),
    (35, 256, 66),
    (39, 32, 17),
];

/// llama.cpp's file types: id and the name people use.
const FILE_TYPES: &[(u64, &str)] = &[
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (7, "Q8_0"),
    (8, "Q5_0"),
    (9, "Q5_1"),
    (10, "Q2_K"),
    (11, "Q3_K_S"),
    (12, "Q3_K_M"),
    (13, "Q3_K_L"),
    (14, "Q4_K_S"),
    (15, "Q4_K_M"),
    (16, "Q5_K_S"),
    (17, "Q5_K_M"),
    (18, "Q6_K"),
    (19, "IQ2_XXS"),
    (20, "IQ2_XS"),
    (21, "Q2_K_S"),
    (22, "IQ3_XS"),
    (23, "IQ3_XXS"),
    (24, "IQ1_S"),
    (25, "IQ4_NL"),
    (26, "IQ3_S"),
    (27, "IQ3_M"),
    (28, "IQ2_S"),
    (29, "IQ2_M"),
    (30, "IQ4_XS"),
    (31, "IQ1_M"),
    (32, "BF16"),
    (36, "TQ1_0"),
    (37, "TQ2_0"),
    (38, "MXFP4"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend(u64::try_from(text.len()).unwrap().to_le_bytes());
        out.extend(text.as_bytes());
    }

    /// A tiny whole file: three pairs, one tensor of 64 F32 weights.
    fn small() -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3_u32.to_le_bytes());
        out.extend(1_u64.to_le_bytes());
        out.extend(3_u64.to_le_bytes());
        text(&mut out, "general.architecture");
        out.extend(8_u32.to_le_bytes());
        text(&mut out, "qwen2");
        text(&mut out, "qwen2.context_length");
        out.extend(4_u32.to_le_bytes());
        out.extend(32768_u32.to_le_bytes());
        text(&mut out, "qwen2.attention.head_count_kv");
        out.extend(9_u32.to_le_bytes());
        out.extend(5_u32.to_le_bytes());
        out.extend(2_u64.to_le_bytes());
        out.extend(2_i32.to_le_bytes());
        out.extend(4_i32.to_le_bytes());
        text(&mut out, "w");
        out.extend(1_u32.to_le_bytes());
        out.extend(64_u64.to_le_bytes());
        out.extend(0_u32.to_le_bytes());
        out.extend(0_u64.to_le_bytes());
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend([0; 256]);
        out
    }

    fn read(bytes: &[u8]) -> Result<Header, Fault> {
        parse(bytes, u64::try_from(bytes.len()).unwrap())
    }

    #[test]
    fn whole_file_is_described() {
        let header = read(&small()).unwrap();
        assert_eq!(header.architecture(), "qwen2");
        assert_eq!(header.arch_number("context_length"), Some(32768));
        assert_eq!(header.arch_number("attention.head_count_kv"), Some(4));
        assert_eq!(header.parameters, 64);
    }

    #[test]
    fn every_cut_is_noticed() {
        let whole = small();
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "cut at {length} passed");
        }
    }

    #[test]
    fn lies_about_lengths_take_no_memory() {
        let mut huge = b"GGUF\x03\0\0\0".to_vec();
        huge.extend(u64::MAX.to_le_bytes());
        huge.extend(u64::MAX.to_le_bytes());
        assert!(matches!(read(&huge), Err(Fault::Short(_))));
        let mut key = b"GGUF\x03\0\0\0".to_vec();
        key.extend(0_u64.to_le_bytes());
        key.extend(1_u64.to_le_bytes());
        key.extend((u64::MAX / 2).to_le_bytes());
        assert!(matches!(read(&key), Err(Fault::Short(_))));
    }

    #[test]
    fn other_files_are_named_as_such() {
        assert!(matches!(
            read(b"PK\x03\x04 a zip file"),
            Err(Fault::NotGguf)
        ));
        assert!(matches!(read(b""), Err(Fault::NotGguf)));
        assert!(matches!(read(b"GGUF\x01\0\0\0"), Err(Fault::Version(1))));
    }
}
