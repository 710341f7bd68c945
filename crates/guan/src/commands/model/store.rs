//! Decides what lies in the folder of models: the lock of a running command, the record beside each pulled model,
//! how a finished file takes its place (read-only, never over another), free space and digests of files.
//! Never speaks to the network. Called by all of `commands::model`; `installed` also by whoever picks a model to serve.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use rustix::fs::{FlockOperation, RenameFlags};
use serde::{Deserialize, Serialize};

use super::fault::Fault;
use super::manifest::{is_sha256, plain_name};
use super::progress::Meter;

/// What is known of a pulled model: `NAME.toml` beside it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Record {
    /// The model's name.
    pub(crate) name: String,
    /// Licence, or what is known of it.
    pub(crate) licence: String,
    /// Texts of the licence, saved beside the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) licence_files: Vec<String>,
    /// Size and quantisation, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parameters: Option<String>,
    /// Whose word the digests are.
    pub(crate) digest_from: DigestFrom,
    /// The GGUF file, or its shards in order.
    pub(crate) files: Vec<RecordedFile>,
}

/// One file of a record.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct RecordedFile {
    /// Name in the folder.
    pub(crate) file: String,
    /// Bytes.
    pub(crate) size: u64,
    /// Lower-case hex.
    pub(crate) sha256: String,
    /// Where it came from, without query.
    pub(crate) source: String,
}

/// Whose word a digest is.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DigestFrom {
    /// Guan's own list.
    Manifest,
    /// The user's, by `--sha256`.
    Given,
    /// The hub that served the file.
    Hub,
    /// Nobody's: what came first is what later checks compare with.
    FirstUse,
}

impl DigestFrom {
    /// For people.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Manifest => "checked against Guan's own list",
            Self::Given => "checked against the digest you gave",
            Self::Hub => "checked against the digest that the hub publishes",
            Self::FirstUse => {
                "nobody publishes a digest: trusted on first use, checked from now on"
            }
        }
    }
}

impl Record {
    /// The record of `name`, if there is one that makes sense.
    pub(super) fn read(dir: &Path, name: &str) -> Result<Option<Self>, Fault> {
        let path = dir.join(format!("{name}.toml"));
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Fault::io("read", &path, e)),
        };
        // a foreign or broken file is no record; paths out of the folder never are
        let record: Option<Self> = toml::from_str(&text).ok();
        Ok(record.filter(|r| r.name == name && r.is_whole()))
    }

    /// Writes `NAME.toml` at once or not at all.
    pub(super) fn write(&self, dir: &Path) -> Result<(), Fault> {
        let path = dir.join(format!("{}.toml", self.name));
        let body = toml::to_string(self).map_err(|e| Fault::Manifest(e.to_string()))?;
        let text = format!(
            "# Written by `guan model pull`; `guan model verify` compares with it.\n{body}"
        );
        put(&path, text.as_bytes(), 0o644)
    }

    /// All files of the model, first shard first.
    pub(crate) fn paths(&self, dir: &Path) -> Vec<PathBuf> {
        self.files.iter().map(|f| dir.join(&f.file)).collect()
    }

    /// Bytes of all files.
    pub(crate) fn size(&self) -> u64 {
        self.files
            .iter()
            .fold(0, |sum, f| sum.saturating_add(f.size))
    }

    /// Whether every file is there with its size and hasn't been written since the record was.
    pub(super) fn looks_untouched(&self, dir: &Path) -> bool {
        let written =
            fs::metadata(dir.join(format!("{}.toml", self.name))).and_then(|m| m.modified());
        let Ok(written) = written else { return false };
        self.files.iter().all(|f| {
            fs::symlink_metadata(dir.join(&f.file)).is_ok_and(|m| {
                m.is_file() && m.len() == f.size && m.modified().is_ok_and(|t| t <= written)
            })
        })
    }

    fn is_whole(&self) -> bool {
        plain_name(&self.name)
            && !self.files.is_empty()
            && self
                .files
                .iter()
                .all(|f| plain_name(&f.file) && is_sha256(&f.sha256))
            && self.licence_files.iter().all(|f| plain_name(f))
    }
}

/// The models that were pulled into `dir`, by name.
///
/// # Errors
/// [`Fault::Io`] when the folder can't be read; a folder that isn't there is empty.
pub(crate) fn installed(dir: &Path) -> Result<Vec<Record>, Fault> {
    let mut records = Vec::new();
    for name in names(dir)? {
        if let Some(name) = name.strip_suffix(".toml")
            && let Some(record) = Record::read(dir, name)?
        {
            records.push(record);
        }
    }
    Ok(records)
}

/// What goes when a model goes. The record is the last: a removal that was cut short can be repeated.
pub(super) fn all_names_of(record: &Record) -> Vec<String> {
    let files = record.files.iter().map(|f| f.file.clone());
    let texts = record.licence_files.iter().cloned();
    files
        .chain(texts)
        .chain([format!("{}.toml", record.name)])
        .collect()
}

/// What a download that never ended left behind: the half file, its note, the packages of a model in parts.
pub(super) fn leftovers_of(dir: &Path, name: &str) -> Result<Vec<String>, Fault> {
    let mut left = names(dir)?;
    left.retain(|file| {
        let plain = file.strip_suffix(".new").unwrap_or(file);
        let plain = plain.strip_suffix(".json").unwrap_or(plain);
        let stem = plain
            .strip_suffix(".gguf.part")
            .and_then(|stem| stem.strip_prefix(name));
        *file == shelf_name(name)
            || stem.is_some_and(|rest| {
                rest.is_empty()
                    || (rest.starts_with('-') && rest.len() == 15 && rest.contains("-of-"))
            })
    });
    Ok(left)
}

/// The folder in which the packages of a model wait to be joined.
pub(super) fn shelf_name(name: &str) -> String {
    format!(".{name}.wheels")
}

/// All names in the folder, sorted.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, Fault> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Fault::io("read", dir, e)),
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// Held while a command changes the folder; given back when the process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Makes the folder if need be and takes its lock.
    pub(super) fn take(dir: &Path) -> Result<Self, Fault> {
        make_dir(dir)?;
        let path = dir.join(".lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o644)
            .custom_flags(NOFOLLOW)
            .open(&path)
            .map_err(|e| Fault::io("open", &path, e))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Fault::Busy(dir.to_owned())),
            Err(e) => Err(Fault::io("lock", &path, e.into())),
        }
    }
}

/// A folder with mode 0755, and those above it.
pub(super) fn make_dir(dir: &Path) -> Result<(), Fault> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
        .map_err(|e| Fault::io("make the folder", dir, e))
}

/// Opens a file that is being loaded, without following a link that somebody left in its place.
pub(super) fn open_part(path: &Path) -> Result<File, Fault> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o644)
        .custom_flags(NOFOLLOW)
        .open(path)
        .map_err(|e| Fault::io("open", path, e))
}

/// A finished, checked and synced file takes its place: read-only, never over another file.
pub(super) fn settle(part: &Path, place: &Path) -> Result<(), Fault> {
    fs::set_permissions(part, Permissions::from_mode(0o444))
        .map_err(|e| Fault::io("set the mode of", part, e))?;
    let here = rustix::fs::CWD;
    match rustix::fs::renameat_with(here, part, here, place, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST) => return Err(Fault::Occupied(place.to_owned())),
        // some network file systems know no such flag; we hold the lock, so looking first is enough
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            if place.symlink_metadata().is_ok() {
                return Err(Fault::Occupied(place.to_owned()));
            }
            fs::rename(part, place).map_err(|e| Fault::io("put in place", place, e))?;
        }
        Err(e) => return Err(Fault::io("put in place", place, e.into())),
    }
    sync_folder_of(place)
}

/// A small file, whole or not at all, over an older one.
pub(super) fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Fault> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let fault = |e| Fault::io("write", &new, e);
    remove(&new)?;
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(mode)
        .open(&new)
        .map_err(fault)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(fault)?;
    fs::rename(&new, path).map_err(|e| Fault::io("put in place", path, e))?;
    sync_folder_of(path)
}

/// Removes a file or a folder of ours; one that isn't there is no trouble.
pub(super) fn remove(path: &Path) -> Result<(), Fault> {
    let removed = match path.symlink_metadata() {
        Ok(there) if there.is_dir() => fs::remove_dir_all(path),
        _ => fs::remove_file(path),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Fault::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// Refuses when `bytes` more would not fit, with a margin for everything else on that disk.
pub(super) fn check_space(dir: &Path, bytes: u64) -> Result<(), Fault> {
    let stat = rustix::fs::statvfs(dir).map_err(|e| Fault::io("look at", dir, e.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let needed = bytes.saturating_add(SPACE_MARGIN);
    if free < needed {
        return Err(Fault::Space {
            needed,
            free,
            dir: dir.to_owned(),
        });
    }
    Ok(())
}

/// SHA-256 and size of a file, with a bar for the big ones.
pub(super) fn digest_of(path: &Path) -> Result<(String, u64), Fault> {
    let fault = |e| Fault::io("read", path, e);
    let mut file = File::open(path).map_err(fault)?;
    let total = file.metadata().map_err(fault)?.len();
    let label = format!(
        "checking {}",
        path.file_name().unwrap_or_default().to_string_lossy()
    );
    let mut meter = (total > QUIET_UP_TO).then(|| Meter::start(&label, total, 0));
    let mut hash = Context::new(&SHA256);
    let mut size = 0_u64;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(fault)?;
        let Some(bytes) = buffer.get(..n).filter(|b| !b.is_empty()) else {
            break;
        };
        hash.update(bytes);
        let n = u64::try_from(n).unwrap_or(u64::MAX);
        size = size.saturating_add(n);
        if let Some(meter) = &mut meter {
            meter.advance(n);
        }
    }
    Ok((hex(hash.finish().as_ref()), size))
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(
        String::with_capacity(bytes.len().saturating_mul(2)),
        |mut out, b| {
            for nibble in [b >> 4, b & 15] {
                out.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
            }
            out
        },
    )
}

fn sync_folder_of(path: &Path) -> Result<(), Fault> {
    let dir = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(|e| Fault::io("sync", dir, e))
}

const NOFOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
const SPACE_MARGIN: u64 = 64 * 1024 * 1024;
const QUIET_UP_TO: u64 = 64 * 1024 * 1024;

#[cfg(test)]
mod tests;
