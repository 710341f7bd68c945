//! Takes over descriptors that the parent passed by number.
//!
//! It decides whether a number may be owned here; it never opens anything. Called once for each descriptor, at the
//! start of the gateway and of a worker.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// The descriptor `n`, passed by the parent; from now on it is closed on exec.
///
/// # Errors
/// When `n` is a standard stream or above 255, isn't open, was taken before, or was opened by this process itself.
pub fn inherited_fd(n: i32) -> io::Result<OwnedFd> {
    let refused = |why: &str| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("descriptor {n} can't be taken over: {why}"),
        )
    };
    let place = usize::try_from(n).ok().filter(|n| (3..MOST).contains(n));
    let place = place.ok_or_else(|| refused("it must be a number from 3 to 255"))?;
    // SAFETY: F_GETFD reads the flags of a number and touches nothing else, whether or not it is open.
    let flags = unsafe { libc::fcntl(n, libc::F_GETFD) };
    if flags < 0 {
        return Err(refused(
            "it isn't open; this command is started by `guan serve`, not by hand",
        ));
    }
    // An inherited descriptor can't carry the flag: exec would have closed it. What this process opened carries it.
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(refused("it belongs to this process already"));
    }
    if !take(place) {
        return Err(refused("it was taken before"));
    }
    // SAFETY: changes the flags of a descriptor that is open (checked above) and that nobody here owns.
    if unsafe { libc::fcntl(n, libc::F_SETFD, flags | libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, was inherited (no close-on-exec flag), and `take` gives each number to one caller only.
    Ok(unsafe { OwnedFd::from_raw_fd(n) })
}

/// Whether `place` had not been taken yet.
fn take(place: usize) -> bool {
    let bit = 1_u64 << (place % 64);
    TAKEN
        .get(place / 64)
        .is_some_and(|word| word.fetch_or(bit, Ordering::AcqRel) & bit == 0)
}

/// Numbers below this one can be taken.
const MOST: usize = 256;

static TAKEN: [AtomicU64; MOST / 64] = [const { AtomicU64::new(0) }; MOST / 64];

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_number_is_taken_once() {
        assert!(take(255));
        assert!(!take(255));
        assert!(take(254));
    }

    #[test]
    fn what_is_not_inherited_is_refused() {
        let own = std::fs::File::open("/dev/null").unwrap();
        let fault = inherited_fd(own.as_raw_fd()).unwrap_err().to_string();
        assert!(fault.contains("belongs to this process"), "{fault}");
        assert!(inherited_fd(1).is_err());
        assert!(inherited_fd(-1).is_err());
        assert!(inherited_fd(256).is_err());
        let fault = inherited_fd(253).unwrap_err().to_string();
        assert!(fault.contains("isn't open"), "{fault}");
    }
}
