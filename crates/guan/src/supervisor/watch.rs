//! Tells when the config file may have changed.
//!
//! It watches the folder, since editors and Kubernetes replace the file instead of writing into it. It reads no
//! file. Called by the supervisor's loop.

use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

/// A watch on the folder of one file.
#[derive(Debug)]
pub(super) struct Watch {
    fd: OwnedFd,
    file: OsString,
}

impl Watch {
    /// Watches the folder that `file` stands in.
    ///
    /// # Errors
    /// When the folder isn't there or the kernel has no watch left.
    pub(super) fn on(file: &Path) -> io::Result<Self> {
        let name = file
            .file_name()
            .ok_or(io::ErrorKind::InvalidInput)?
            .to_owned();
        let folder = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let what = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::CREATE
            | WatchFlags::DELETE;
        inotify::add_watch(&fd, folder, what)?;
        Ok(Self { fd, file: name })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether anything happened to the file since the last look.
    pub(super) fn changed(&self) -> bool {
        let mut buffer = [const { MaybeUninit::uninit() }; 4096];
        let mut reader = inotify::Reader::new(&self.fd, &mut buffer);
        let mut changed = false;
        while let Ok(event) = reader.next() {
            changed |= event.file_name().is_none_or(|name| {
                let name = name.to_bytes();
                name == self.file.as_bytes() || name == KUBERNETES
            });
        }
        changed
    }
}

/// A mounted `ConfigMap` changes by this link alone.
const KUBERNETES: &[u8] = b"..data";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_and_a_replaced_file_are_seen_and_a_neighbour_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("guan.toml");
        let watch = Watch::on(&file).unwrap();
        assert!(!watch.changed());
        std::fs::write(dir.path().join("other"), "").unwrap();
        assert!(!watch.changed());
        std::fs::write(&file, "").unwrap();
        assert!(watch.changed());
        assert!(!watch.changed());
        std::fs::rename(dir.path().join("other"), &file).unwrap();
        assert!(watch.changed());
    }
}
