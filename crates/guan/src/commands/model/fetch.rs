//! Decides how one file comes over the network: resumable, hashed while it is read, cut when it grows past its size,
//! put in place only when its SHA-256 fits. Never overwrites a file, never keeps one that doesn't fit.
//! Called by `commands::model` and `wheel`.
//!
//! Beside `FILE` lie, while it comes, `FILE.part` and `FILE.part.json` (who served it, its `ETag`, what is known).

use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use ureq::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_RANGE, RANGE};

use super::address::Address;
use super::client::{Answer, Client, bad_status};
use super::fault::Fault;
use super::progress::{self, Meter};
use super::store::{self, DigestFrom};

mod part;

use part::{Note, Part};

/// What is asked for.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// Where it lies.
    pub(super) address: &'a Address,
    /// Where it goes.
    pub(super) place: &'a Path,
    /// Bytes, when known before.
    pub(super) size: Option<u64>,
    /// Its SHA-256 and whose word that is, when known before.
    pub(super) sha256: Option<(String, DigestFrom)>,
    /// Refuse it when nobody, the hub included, says what its SHA-256 is.
    pub(super) needs_digest: bool,
    /// Refuse it when it doesn't begin as a GGUF file does.
    pub(super) is_gguf: bool,
}

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fetched {
    pub(super) size: u64,
    pub(super) sha256: String,
    pub(super) digest_from: DigestFrom,
}

/// Loads one file and puts it in place.
pub(super) fn fetch(client: &Client, wanted: &Wanted<'_>) -> Result<Fetched, Fault> {
    let mut run = Run {
        client,
        wanted,
        part: Part::open(wanted.place)?,
        sha256: wanted.sha256.clone(),
        size: wanted.size,
        meter: None,
    };
    run.keep_what_is_usable()?;
    let mut fresh_starts = 0;
    loop {
        run.load()?;
        match run.finish() {
            // what an earlier run left may be damaged, by a crash for example: once more from the start
            Err(Fault::Digest { .. }) if run.part.inherited > 0 && fresh_starts == 0 => {
                fresh_starts += 1;
                progress::note("the part from an earlier run does not fit: starting afresh");
                run.part.clear()?;
            }
            Err(fault) => {
                run.part.discard()?;
                return Err(fault);
            }
            Ok(fetched) => return Ok(fetched),
        }
    }
}

struct Run<'a> {
    client: &'a Client,
    wanted: &'a Wanted<'a>,
    part: Part,
    sha256: Option<(String, DigestFrom)>,
    size: Option<u64>,
    meter: Option<Meter>,
}

/// How one request ended, when not well.
enum Trouble {
    /// The same again, after a pause.
    Again(Fault),
    /// The part and what the server has don't belong together.
    Restart,
    /// No use.
    Final(Fault),
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Self::Final(fault)
    }
}

impl Run<'_> {
    /// A part from an earlier run goes on when something will tell that it belongs to this file.
    fn keep_what_is_usable(&mut self) -> Result<(), Fault> {
        let same_source = self.part.note.address == self.wanted.address.shown();
        let other_digest = match (&self.sha256, &self.part.note.sha256) {
            (Some((ours, _)), Some(theirs)) => ours != theirs,
            _ => false,
        };
        let too_long = self.size.is_some_and(|size| self.part.len > size);
        let usable = same_source || (self.sha256.is_some() && self.part.note.sha256.is_some());
        if !same_source {
            self.part.note.etag = None;
        }
        if self.part.len > 0 && (other_digest || too_long || !usable) {
            self.part.clear()?;
        }
        if self.part.len > 0 {
            self.size = self.size.or(self.part.note.size);
            progress::note(&format!(
                "going on at {} of an earlier download",
                progress::size(self.part.len)
            ));
        }
        Ok(())
    }

    /// Requests until all bytes are there.
    fn load(&mut self) -> Result<(), Fault> {
        let mut pause = self.client.patience().pause;
        let (mut tries, mut restarts) = (0, 0);
        loop {
            let before = self.part.len;
            let trouble = match self.request() {
                Ok(()) => return Ok(()),
                Err(trouble) => trouble,
            };
            self.meter = None;
            match trouble {
                Trouble::Restart if restarts < MAX_RESTARTS => {
                    restarts += 1;
                    progress::note("the file at the source has changed: starting afresh");
                    self.part.clear()?;
                }
                Trouble::Restart => {
                    let why = "the file changes while it is loaded".to_owned();
                    return Err(Fault::Answer {
                        host: self.host(),
                        why,
                    });
                }
                Trouble::Again(fault) => {
                    if self.part.len.saturating_sub(before) >= PROGRESS {
                        (tries, pause) = (0, self.client.patience().pause);
                    }
                    tries += 1;
                    let brief = fault.brief();
                    match fault {
                        // never a byte, only broken lines: a wall on the way, not bad luck
                        Fault::Cut { host, why } if self.part.loaded == 0 && tries > MAX_KNOCKS => {
                            return Err(self.give_up(Fault::Unreachable { host, why }));
                        }
                        fault if tries > MAX_TRIES => return Err(self.give_up(fault)),
                        _ => progress::note(&format!("{brief}; trying again")),
                    }
                    wait(pause);
                    pause = pause.saturating_mul(2);
                }
                Trouble::Final(fault) => return Err(self.give_up(fault)),
            }
        }
    }

    /// What can't be used later isn't left lying around.
    fn give_up(&mut self, fault: Fault) -> Fault {
        let spoiled = matches!(fault, Fault::Size { .. } | Fault::NotGguf { .. });
        let discarded = if spoiled || self.part.len == 0 {
            self.part.discard()
        } else {
            Ok(())
        };
        discarded.err().unwrap_or(fault)
    }

    fn request(&mut self) -> Result<(), Trouble> {
        if self.sha256.is_some() && self.part.len > 0 && self.size == Some(self.part.len) {
            return Ok(());
        }
        let answer = match self.client.get(self.wanted.address, &self.range_headers()?) {
            Ok(answer) => answer,
            Err(fault @ Fault::Cut { .. }) => return Err(Trouble::Again(fault)),
            // the line was good a moment ago
            Err(fault @ Fault::Unreachable { .. }) if self.part.loaded > 0 => {
                return Err(Trouble::Again(fault));
            }
            Err(fault) => return Err(Trouble::Final(fault)),
        };
        let total = self.judge(&answer)?;
        self.remember(&answer, total)?;
        store::check_space(self.folder(), total.saturating_sub(self.part.len))?;
        self.read(answer, total)
    }

    fn range_headers(&mut self) -> Result<Vec<(ureq::http::HeaderName, String)>, Fault> {
        let validator = self.part.note.etag.clone();
        if self.part.len > 0 && validator.is_none() && self.sha256.is_none() {
            // nothing would tell whether the rest belongs to what we have
            self.part.clear()?;
        }
        if self.part.len == 0 {
            return Ok(Vec::new());
        }
        let mut headers = vec![(RANGE, format!("bytes={}-", self.part.len))];
        headers.extend(validator.map(|etag| (IF_RANGE, etag)));
        Ok(headers)
    }

    /// Whether these bytes are the ones we want, and how many there will be in all.
    fn judge(&mut self, answer: &Answer) -> Result<u64, Trouble> {
        let announced = match answer.status {
            206 => {
                let (start, total) = content_range(answer)
                    .ok_or_else(|| self.answer_fault(answer, "it names no range of its own"))?;
                if start != self.part.len || self.part.len == 0 {
                    return Err(Trouble::Restart);
                }
                Some(total)
            }
            200 => number(answer, &CONTENT_LENGTH),
            416 if self.part.len > 0 => return Err(Trouble::Restart),
            status => {
                let fault = bad_status(&answer.address, status);
                return Err(match status {
                    408 | 425 | 429 | 500..=599 => Trouble::Again(fault),
                    _ => Trouble::Final(fault),
                });
            }
        };
        let coded = answer
            .headers
            .get(CONTENT_ENCODING)
            .is_some_and(|v| v != "identity");
        if coded {
            return Err(self
                .answer_fault(answer, "it is packed though we asked for it plain")
                .into());
        }
        self.judge_digest(answer)?;
        if answer.status == 206
            && let (Some(old), Some(new)) = (&self.part.note.etag, strong_etag(answer))
            && *old != new
        {
            return Err(Trouble::Restart);
        }
        let total = self.judge_size(answer, announced)?;
        if answer.status == 200 && self.part.len > 0 {
            progress::note("the server does not go on in the middle: starting afresh");
            self.part.clear()?;
        }
        Ok(total)
    }

    fn judge_digest(&mut self, answer: &Answer) -> Result<(), Trouble> {
        let file = || self.file();
        match (&self.sha256, &answer.linked.sha256) {
            (Some((ours, from)), Some(hubs)) if ours != hubs => {
                // between two requests of one download the hub got another file
                if *from == DigestFrom::Hub && self.wanted.sha256.is_none() {
                    self.sha256 = Some((hubs.clone(), DigestFrom::Hub));
                    return Err(Trouble::Restart);
                }
                Err(Fault::OtherFile {
                    host: self.host(),
                    file: file(),
                }
                .into())
            }
            (None, Some(hubs)) => {
                let fits = self
                    .part
                    .note
                    .sha256
                    .as_ref()
                    .is_none_or(|noted| noted == hubs);
                self.sha256 = Some((hubs.clone(), DigestFrom::Hub));
                if fits || self.part.len == 0 {
                    Ok(())
                } else {
                    Err(Trouble::Restart)
                }
            }
            (None, None) if self.wanted.needs_digest => Err(Fault::NoDigest {
                host: self.host(),
                file: file(),
            }
            .into()),
            _ => Ok(()),
        }
    }

    fn judge_size(&mut self, answer: &Answer, announced: Option<u64>) -> Result<u64, Trouble> {
        let known = self.wanted.size.or(answer.linked.size);
        // what an earlier answer announced binds only one that goes on with it
        let earlier = self.size.filter(|_| answer.status == 206);
        match (known.or(earlier), announced) {
            (Some(wanted), Some(found)) if wanted != found => match known {
                None => Err(Trouble::Restart),
                Some(_) => Err(Fault::Size {
                    host: self.host(),
                    file: self.file(),
                    found,
                    wanted,
                }
                .into()),
            },
            (Some(total), _) | (None, Some(total)) => {
                self.size = Some(total);
                Ok(total)
            }
            (None, None) => Err(self
                .answer_fault(answer, "it does not say how long the file is")
                .into()),
        }
    }

    fn remember(&mut self, answer: &Answer, total: u64) -> Result<(), Fault> {
        self.part.write_note(Note {
            address: self.wanted.address.shown(),
            etag: strong_etag(answer),
            size: Some(total),
            sha256: self.sha256.as_ref().map(|(digest, _)| digest.clone()),
        })
    }

    fn read(&mut self, answer: Answer, total: u64) -> Result<(), Trouble> {
        self.meter = Some(Meter::start(&self.file(), total, self.part.len));
        let mut body = answer.body.into_reader();
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let n = match body.read(&mut buffer) {
                Ok(n) => n,
                // all is there; how the line ends doesn't matter
                Err(_) if self.part.len == total => 0,
                Err(e) => return Err(Trouble::Again(self.cut(&ended(&e)))),
            };
            let Some(bytes) = buffer.get(..n).filter(|b| !b.is_empty()) else {
                return if self.part.len == total {
                    Ok(())
                } else {
                    Err(Trouble::Again(self.cut("the line was cut")))
                };
            };
            let grown = self
                .part
                .len
                .saturating_add(u64::try_from(n).unwrap_or(u64::MAX));
            if grown > total {
                return Err(Fault::Size {
                    host: self.host(),
                    file: self.file(),
                    found: grown,
                    wanted: total,
                }
                .into());
            }
            self.part.append(bytes)?;
            if self.wanted.is_gguf && !self.part.begins_as_gguf() {
                return Err(Fault::NotGguf { host: self.host() }.into());
            }
            if let Some(meter) = &mut self.meter {
                meter.advance(u64::try_from(n).unwrap_or(0));
            }
        }
    }

    /// All bytes are there: are they the right ones?
    fn finish(&mut self) -> Result<Fetched, Fault> {
        self.meter = None;
        let found = self.part.digest();
        let (wanted, digest_from) = self
            .sha256
            .clone()
            .unwrap_or_else(|| (found.clone(), DigestFrom::FirstUse));
        if found != wanted {
            return Err(Fault::Digest {
                file: self.file(),
                found,
                wanted,
            });
        }
        self.part.settle(self.wanted.place)?;
        Ok(Fetched {
            size: self.part.len,
            sha256: found,
            digest_from,
        })
    }

    fn host(&self) -> String {
        self.wanted.address.host().to_owned()
    }

    fn file(&self) -> String {
        self.wanted
            .place
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }

    fn folder(&self) -> &Path {
        self.wanted.place.parent().unwrap_or(Path::new("."))
    }

    fn cut(&self, why: &str) -> Fault {
        Fault::Cut {
            host: self.host(),
            why: why.to_owned(),
        }
    }

    fn answer_fault(&self, answer: &Answer, why: &str) -> Fault {
        Fault::Answer {
            host: answer.address.host().to_owned(),
            why: why.to_owned(),
        }
    }
}

/// An `ETag` that may be compared byte for byte; a weak one may not.
fn strong_etag(answer: &Answer) -> Option<String> {
    let tag = answer.headers.get(ETAG)?.to_str().ok()?.trim();
    (tag.starts_with('"') && tag.len() <= 256).then(|| tag.to_owned())
}

/// `bytes START-END/TOTAL`.
fn content_range(answer: &Answer) -> Option<(u64, u64)> {
    let text = answer.headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end, total) = (
        start.parse::<u64>().ok()?,
        end.parse::<u64>().ok()?,
        total.parse::<u64>().ok()?,
    );
    (start <= end && end < total).then_some((start, total))
}

fn number(answer: &Answer, name: &ureq::http::HeaderName) -> Option<u64> {
    answer.headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

fn ended(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::TimedOut => "nothing came for too long".to_owned(),
        _ => error.to_string(),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a command in the foreground has nothing else to do"
)]
fn wait(pause: Duration) {
    std::thread::sleep(pause);
}

/// Repetitions without progress.
const MAX_TRIES: u32 = 5;
/// Repetitions while nothing at all has come.
const MAX_KNOCKS: u32 = 2;
/// Beginnings from zero because the file changed.
const MAX_RESTARTS: u32 = 2;
/// Bytes that count as progress, so that a long download survives many short cuts.
const PROGRESS: u64 = 1024 * 1024;
