//! Files and folders with the modes that Guan's data folder has, made durable.
//!
//! Decides nothing but modes; never follows a link when it makes something. Called by `bootstrap`, `seal`,
//! `certificates` and `audit_log`.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use zeroize::Zeroizing;

/// Makes a folder with exactly this mode (less the umask); one that is there already is an error.
pub(crate) fn make(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().mode(mode).create(path)
}

/// Writes a new file with this mode and waits until it is on disk. A file that is there already is an error.
pub(crate) fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    sync(path.parent().unwrap_or(Path::new(".")))
}

/// Waits until the names in this folder are on disk.
pub(crate) fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// What a secret file's mode and content gave.
pub(crate) enum Secret {
    /// Its bytes.
    Bytes(Zeroizing<Vec<u8>>),
    /// Others than its owner may read it: not used. With its mode.
    Exposed(u32),
}

/// Reads a file that only its owner may read, at most `limit` bytes of it.
pub(crate) fn read_secret(path: &Path, limit: u64) -> io::Result<Secret> {
    let file = File::open(path)?;
    // Of the file that was opened, not of its name: nothing can be put in between.
    let mode = file.metadata()?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Ok(Secret::Exposed(mode));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(limit).unwrap_or(0)));
    let _read = file.take(limit).read_to_end(&mut bytes)?;
    Ok(Secret::Bytes(bytes))
}
