//! Judges a chain line by line: which record was the first to be changed, removed, inserted or put elsewhere.
//!
//! It decides what follows from what; it reads no file. What it can't tell it says: lines after the last checkpoint
//! hang together, but whoever can write the file can make them anew, unless a head that was kept elsewhere is among
//! [`Known`]. Called by `guan audit verify`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::checkpoint::{Checkpoint, PublicKey};
use super::{Chain, Head};

/// Heads of chains that are known from elsewhere: a later chain's first record, the store, an administrator's paper.
#[derive(Clone, Debug, Default)]
pub struct Known(BTreeMap<u64, Vec<(Head, String)>>);

/// The first thing in a chain that isn't as it was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A record isn't what the records after it were chained to.
    #[error("record {seq} was changed")]
    Changed {
        /// Its number.
        seq: u64,
    },
    /// Records aren't there.
    #[error("record {from} is missing{}", upto(*.from, *.to))]
    Missing {
        /// The first.
        from: u64,
        /// The last.
        to: u64,
    },
    /// Two records have one number.
    #[error("a record was inserted: two have the number {seq}")]
    Inserted {
        /// That number.
        seq: u64,
    },
    /// A record stands behind later ones.
    #[error("record {seq} doesn't stand in its place")]
    Moved {
        /// Its number.
        seq: u64,
    },
    /// Not a record at all.
    #[error("line {line} is no record")]
    NoRecord {
        /// From 1.
        line: u64,
    },
    /// The last line has no end.
    #[error("the last line, {line}, was cut")]
    Cut {
        /// From 1.
        line: u64,
    },
    /// A checkpoint doesn't fit what stands before it, or its signature isn't the key's.
    #[error("the checkpoint in record {seq} isn't genuine: {why}")]
    Forged {
        /// The record that has it.
        seq: u64,
        /// In what.
        why: &'static str,
    },
    /// The file is another chain's.
    #[error("this is the chain {named}, under another name")]
    Other {
        /// Which it is.
        named: String,
    },
    /// It ends before a record that is known to have been there.
    #[error("it ends with record {last}, but {by} knows of record {seq}: records were cut off")]
    Truncated {
        /// The last that is there.
        last: u64,
        /// The one that is known.
        seq: u64,
        /// From where.
        by: String,
    },
    /// A record that is known from elsewhere was another one.
    #[error("record {seq} isn't the one that {by} knows: it and what follows were written anew")]
    Rewritten {
        /// Its number.
        seq: u64,
        /// From where.
        by: String,
    },
}

/// What a chain turned out to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The number of the first record, unless there is none.
    pub first: Option<u64>,
    /// The number of the last good record.
    pub last: Option<u64>,
    /// The last checkpoint that is genuine.
    pub checkpoint: Option<Checkpoint>,
    /// The last record that a genuine checkpoint or a known head vouches for.
    pub vouched: Option<u64>,
    /// The chain was closed by whoever wrote it.
    pub ended: bool,
    /// The chain that its first record names as the one before: name, number and hash of its last line then.
    pub previous: Option<(String, u64, Head)>,
    /// The first thing that isn't as it was written.
    pub fault: Option<Fault>,
}

/// Judges one chain.
#[derive(Debug)]
pub struct Verifier<'a> {
    chain: &'a str,
    key: Option<&'a PublicKey>,
    known: &'a Known,
    /// Number and hash of the line before.
    before: Option<(u64, Head)>,
    /// The line before doesn't name the hash of the one before it: which of the two was changed, the next line says.
    doubtful: Option<u64>,
    /// A number that was passed over: whether it comes later says what happened to it.
    awaited: Option<(u64, u64)>,
    line: u64,
    report: Report,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "guan.chain")]
    chain: Chain,
    #[serde(rename = "event.action")]
    action: String,
    #[serde(rename = "guan.act", default)]
    act: Option<Act>,
}

#[derive(Default, Deserialize)]
struct Act {
    #[serde(default)]
    checkpoint: Option<Checkpoint>,
    #[serde(default)]
    chain: Option<String>,
    #[serde(default)]
    previous: Option<Previous>,
}

#[derive(Deserialize)]
struct Previous {
    chain: String,
    seq: Option<u64>,
    head: Option<String>,
}

impl Known {
    /// Adds that record `seq` had this hash, as `by` says.
    pub fn add(&mut self, seq: u64, head: Head, by: String) {
        self.0.entry(seq).or_default().push((head, by));
    }
}

impl<'a> Verifier<'a> {
    /// Of a chain by its name; without a key checkpoints are taken as they are. `begins` is where its first file
    /// begins: not at 0, where older ones were removed by age.
    #[must_use]
    pub fn new(chain: &'a str, key: Option<&'a PublicKey>, known: &'a Known) -> Self {
        Self {
            chain,
            key,
            known,
            before: None,
            doubtful: None,
            awaited: None,
            line: 0,
            report: Report::default(),
        }
    }

    /// Says that the file begins in the middle: records before `seq` were removed by whoever keeps the log.
    pub const fn begin_at(&mut self, seq: u64, head: Head) {
        if let Some(before) = seq.checked_sub(1) {
            self.before = Some((before, head));
        }
    }

    /// Takes a line without its newline; `whole`: it had one. `false`: nothing more needs to be known.
    pub fn take(&mut self, bytes: &[u8], whole: bool) -> bool {
        self.line = self.line.saturating_add(1);
        if let Some((from, to)) = self.awaited {
            return self.look_for(from, to, bytes);
        }
        if !whole {
            self.fault(Fault::Cut { line: self.line });
            return false;
        }
        let Ok(read) = serde_json::from_slice::<Line>(bytes) else {
            self.fault(Fault::NoRecord { line: self.line });
            return false;
        };
        if let Some(seq) = self.doubtful {
            let doubted = seq.saturating_add(1);
            self.fault(if read.chain.seq == doubted {
                Fault::Inserted { seq: doubted }
            } else if self.follows(&read.chain) == Ok(()) {
                // The line before is chained to as it stands, so the one before that was changed.
                Fault::Changed { seq }
            } else {
                Fault::Changed { seq: doubted }
            });
            return false;
        }
        match self.follows(&read.chain) {
            Ok(()) => {}
            Err(Some(Fault::Changed { seq })) => {
                self.doubtful = Some(seq);
                self.before = Some((read.chain.seq, Head::of(bytes)));
                return true;
            }
            Err(Some(Fault::Missing { from, to })) => {
                self.awaited = Some((from, to));
                return true;
            }
            Err(Some(fault)) => {
                self.fault(fault);
                return false;
            }
            Err(None) => {
                self.fault(Fault::NoRecord { line: self.line });
                return false;
            }
        }
        let judged = self.judge(read, bytes);
        if let Err(fault) = judged {
            self.fault(fault);
            return false;
        }
        true
    }

    /// What came of it.
    #[must_use]
    pub fn end(mut self) -> Report {
        if let Some((from, to)) = self.awaited {
            self.fault(Fault::Missing { from, to });
        }
        if let Some(seq) = self.doubtful {
            self.fault(Fault::Changed { seq });
        }
        if self.report.fault.is_none() {
            let last = self.before.map_or(0, |(seq, _)| seq);
            let beyond = match self.before {
                Some((seq, _)) => self.known.0.range(seq.saturating_add(1)..).next_back(),
                None => self.known.0.iter().next_back(),
            };
            let cut = beyond.and_then(|(seq, heads)| Some((*seq, heads.first()?.1.clone())));
            if let Some((seq, by)) = cut {
                self.fault(Fault::Truncated { last, seq, by });
            }
        }
        self.report
    }

    /// Whether a line follows the one before; `None`: its hash can't be read.
    fn follows(&self, chain: &Chain) -> Result<(), Option<Fault>> {
        let prev = Head::parse(&chain.prev).ok_or(None)?;
        let (expected, head) = match self.before {
            Some((seq, head)) => (seq.saturating_add(1), head),
            None => (0, Head::NONE),
        };
        if chain.seq > expected {
            return Err(Some(Fault::Missing {
                from: expected,
                to: chain.seq.saturating_sub(1),
            }));
        }
        if chain.seq < expected {
            return Err(Some(Fault::Inserted { seq: chain.seq }));
        }
        if prev != head {
            let seq = expected.saturating_sub(1);
            return Err(Some(Fault::Changed { seq }));
        }
        Ok(())
    }

    /// What a line that follows says of itself and of those before.
    fn judge(&mut self, line: Line, bytes: &[u8]) -> Result<(), Fault> {
        let (seq, head) = (line.chain.seq, Head::of(bytes));
        let act = line.act.unwrap_or_default();
        if let Some(named) = act.chain
            && matches!(&*line.action, "chain-start" | "part-start")
            && named != self.chain
        {
            return Err(Fault::Other { named });
        }
        if let Some(checkpoint) = act.checkpoint {
            self.judge_checkpoint(seq, &checkpoint)?;
            self.report.vouched = Some(checkpoint.seq);
            self.report.checkpoint = Some(checkpoint);
        }
        for (known, by) in self.known.0.get(&seq).into_iter().flatten() {
            if *known != head {
                let by = by.clone();
                return Err(Fault::Rewritten { seq, by });
            }
            self.report.vouched = Some(seq);
        }
        if line.action == "chain-start" && seq == 0 {
            self.report.previous = act.previous.and_then(|it| {
                let head = Head::parse(&it.head?)?;
                Some((it.chain, it.seq?, head))
            });
        }
        self.before = Some((seq, head));
        self.report.first.get_or_insert(seq);
        self.report.last = Some(seq);
        self.report.ended = line.action == "chain-end";
        Ok(())
    }

    fn judge_checkpoint(&self, seq: u64, checkpoint: &Checkpoint) -> Result<(), Fault> {
        let forged = |why| Fault::Forged { seq, why };
        if checkpoint.chain != self.chain {
            return Err(forged("it is another chain's"));
        }
        let signed = Head::parse(&checkpoint.head).map(|head| (checkpoint.seq, head));
        if signed != self.before {
            return Err(forged("it was signed over other records"));
        }
        if self.key.is_some_and(|key| checkpoint.key != key.id()) {
            return Err(forged("another key signed it"));
        }
        if self.key.is_some_and(|key| !checkpoint.is_signed_by(key)) {
            return Err(forged("its signature is wrong"));
        }
        Ok(())
    }

    /// Whether a number that was passed over comes later.
    fn look_for(&mut self, from: u64, to: u64, bytes: &[u8]) -> bool {
        let found = serde_json::from_slice::<Line>(bytes).ok();
        if found.is_some_and(|line| line.chain.seq == from) {
            self.awaited = None;
            self.fault(Fault::Moved { seq: from });
            return false;
        }
        self.awaited = Some((from, to));
        true
    }

    fn fault(&mut self, fault: Fault) {
        self.awaited = None;
        self.doubtful = None;
        self.report.fault.get_or_insert(fault);
    }
}

fn upto(from: u64, to: u64) -> String {
    if to > from {
        format!(", and all up to {to}")
    } else {
        String::new()
    }
}

#[cfg(test)]
mod tests;
