//! Judges the chains of a folder, or of files that were carried elsewhere, by a public key and known heads.
//!
//! It decides what the chains say of each other: the first record of each names the head of the one before. It asks
//! no store and changes nothing. Called by `guan audit verify`.

use std::collections::BTreeMap;
use std::io;

use rules::chain::verify::{Known, Report, Verifier};
use rules::chain::{Chain, Head, PublicKey};
use serde::Deserialize;

use super::files::ChainFile;

/// A head that somebody kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownHead {
    /// Of which chain.
    pub chain: String,
    /// The number of its record.
    pub seq: u64,
    /// That record's hash.
    pub head: Head,
    /// Who says so.
    pub by: String,
}

/// What became of one chain.
#[derive(Debug)]
pub struct Judged {
    /// The chain.
    pub chain: String,
    /// What it turned out to be.
    pub report: Report,
}

/// What became of all.
#[derive(Debug, Default)]
pub struct Judgement {
    /// Each chain, in the order of the files.
    pub chains: Vec<Judged>,
    /// Chains that others or known heads name and that aren't among the files, with who names them.
    pub absent: Vec<(String, String)>,
}

impl Judgement {
    /// Nothing is other than it was written, as far as can be told.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.chains.iter().all(|it| it.report.fault.is_none())
    }
}

/// Judges all of `files`.
///
/// # Errors
/// When one can't be read.
pub fn judge(
    files: &[ChainFile],
    key: Option<&PublicKey>,
    heads: &[KnownHead],
) -> io::Result<Judgement> {
    let mut known: BTreeMap<String, Known> = BTreeMap::new();
    let mut named: Vec<(String, String)> = Vec::new();
    for head in heads {
        named.push((head.chain.clone(), head.by.clone()));
        known
            .entry(head.chain.clone())
            .or_default()
            .add(head.seq, head.head, head.by.clone());
    }
    // What each says of the one before has to be known before that one is judged.
    for file in files.iter().filter(|file| file.part == 0) {
        let chain = file.chain();
        if let Some((previous, seq, head)) = previous(file)? {
            let by = format!("the first record of {chain}");
            named.push((previous.clone(), by.clone()));
            known.entry(previous).or_default().add(seq, head, by);
        }
    }
    let mut judgement = Judgement::default();
    let nothing = Known::default();
    for parts in files.chunk_by(|a, b| (&a.node, a.generation) == (&b.node, b.generation)) {
        let Some(first) = parts.first() else { continue };
        let chain = first.chain();
        let mut verifier = Verifier::new(&chain, key, known.get(&chain).unwrap_or(&nothing));
        if first.part > 0
            && let Some((seq, head)) = begins(first)?
        {
            verifier.begin_at(seq, head);
        }
        'all: for file in parts {
            let mut lines = file.lines()?;
            while let Some((line, whole)) = lines.next_line()? {
                if !verifier.take(line, whole) {
                    break 'all;
                }
            }
        }
        let report = verifier.end();
        judgement.chains.push(Judged { chain, report });
    }
    named.retain(|(chain, _)| !judgement.chains.iter().any(|it| it.chain == *chain));
    judgement.absent = named;
    Ok(judgement)
}

/// Where a chain begins whose older parts are gone: what its first line says of the one before is all there is.
fn begins(file: &ChainFile) -> io::Result<Option<(u64, Head)>> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(rename = "guan.chain")]
        chain: Chain,
    }
    let mut lines = file.lines()?;
    let first = lines.next_line()?;
    let read = first.and_then(|(line, _)| serde_json::from_slice::<Line>(line).ok());
    Ok(read.and_then(|line| Some((line.chain.seq, Head::parse(&line.chain.prev)?))))
}

/// What a chain's first record names as the one before, whether or not it is to be believed.
fn previous(file: &ChainFile) -> io::Result<Option<(String, u64, Head)>> {
    let chain = file.chain();
    let nothing = Known::default();
    let mut verifier = Verifier::new(&chain, None, &nothing);
    if let Some((line, whole)) = file.lines()?.next_line()? {
        verifier.take(line, whole);
    }
    Ok(verifier.end().previous)
}
