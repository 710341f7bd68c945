//! Whose a limit is: small copyable names, the same in memory and in Redis.
//!
//! Keys keep their id; what has a text for a name (projects, roles, models) is hashed to 128 bits. Whoever names a
//! project, role or model is an operator, so the hash need not withstand attack; the ids of subjects, which outsiders
//! choose, are made by a keyed hash (`rules::key`).

use std::fmt;

use crate::key::KeyId;

/// Who calls: a key, or whoever is vouched for (a token's subject, a certificate's name), by his own id. Small, and
/// copied freely.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallerId([u8; 16]);

impl From<KeyId> for CallerId {
    fn from(key: KeyId) -> Self {
        let mut id = [0; 16];
        for (to, from) in id.iter_mut().zip(key.bytes()) {
            *to = from;
        }
        Self(id)
    }
}

impl fmt::Debug for CallerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What kind of holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// One key, or one subject.
    Key,
    /// All keys of a project together.
    Project,
    /// All keys of a role together.
    Role,
    /// All calls of a model.
    Model,
    /// All calls of this server.
    Node,
}

impl Class {
    /// One letter, for names in Redis.
    #[must_use]
    pub const fn letter(self) -> char {
        match self {
            Self::Key => 'k',
            Self::Project => 'p',
            Self::Role => 'r',
            Self::Model => 'm',
            Self::Node => 'n',
        }
    }

    /// Its word, for people and programs.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Project => "project",
            Self::Role => "role",
            Self::Model => "model",
            Self::Node => "node",
        }
    }

    /// As a caller is told.
    #[must_use]
    pub const fn spoken(self) -> &'static str {
        match self {
            Self::Key => "your key",
            Self::Project => "your project",
            Self::Role => "your role",
            Self::Model => "the model",
            Self::Node => "this server",
        }
    }
}

/// One holder of limits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope {
    /// What kind.
    pub class: Class,
    id: [u8; 16],
}

impl Scope {
    /// One caller.
    #[must_use]
    pub const fn caller(id: CallerId) -> Self {
        Self {
            class: Class::Key,
            id: id.0,
        }
    }

    /// What has a text for a name.
    #[must_use]
    pub fn named(class: Class, name: &str) -> Self {
        Self {
            class,
            id: fnv(name.as_bytes()).to_be_bytes(),
        }
    }

    /// A number that spreads scopes evenly over shards.
    #[must_use]
    pub fn spread(&self) -> u64 {
        let (high, low) = self.id.split_at(8);
        let number = |half: &[u8]| half.iter().fold(0_u64, |n, &b| n << 8 | u64::from(b));
        let mixed = number(high) ^ number(low).rotate_left(29) ^ (self.class as u64);
        mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.class.letter())?;
        self.id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// FNV-1a of 128 bits.
fn fnv(bytes: &[u8]) -> u128 {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(BASIS, |hash, &byte| {
        (hash ^ u128::from(byte)).wrapping_mul(PRIME)
    })
}
