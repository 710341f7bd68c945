//! Gives up power: `enter` is called once, before any thread, any runtime and any byte from outside.
//!
//! It decides which layers a profile has and refuses when one that must hold doesn't; it never starts anything.
//! Called first thing in `main` by the supervisor, the gateway, the engine worker and `guan-pkcs11`.

use std::fmt;
use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::UnshareFlags;

mod calls;

/// Who gives up power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Spawns and holds listeners.
    Supervisor,
    /// Parses what comes from outside.
    Gateway,
    /// Runs a model: no new socket, no program, no process, no network where the kernel lets it leave.
    Engine,
    /// Loads a PKCS#11 module: no program, no process, no listener, and no network unless the module needs it.
    Token {
        /// The module reaches its token over the network.
        network: bool,
    },
}

/// Which layers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    profile: Profile,
    network: Network,
}

/// What the process can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Network {
    /// Nothing was asked for.
    Unchanged,
    /// An empty network of its own.
    Own,
    /// The kernel didn't let it leave (not root, or a container without that right).
    Shared,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no new privileges, not dumpable, no core file")?;
        f.write_str(match self.profile {
            Profile::Supervisor | Profile::Gateway => "",
            Profile::Engine => ", system calls filtered (no socket, no exec, no new process)",
            Profile::Token { network: false } => {
                ", system calls filtered (Unix sockets only, no listener, no exec, no new process)"
            }
            Profile::Token { network: true } => {
                ", system calls filtered (no listener, no exec, no new process)"
            }
        })?;
        match self.network {
            Network::Unchanged => Ok(()),
            Network::Own => f.write_str(", a network of its own with nothing in it"),
            Network::Shared => {
                f.write_str(", network namespace shared (the kernel refused an own one)")
            }
        }
    }
}

/// Why the fence doesn't hold; the process must end.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A fence around one thread leaves the others outside.
    #[error("{0} threads run already: the fence must be entered before the first is started")]
    Threads(usize),
    /// A layer failed.
    #[error("{layer} can't be set: {cause}; run on Linux 5.11 or later with seccomp and /proc")]
    Layer {
        /// Which.
        layer: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// Gives up what `profile` doesn't need; there is no way back.
///
/// # Errors
/// [`Fault`]: more than one thread, or a layer that must hold and doesn't.
pub fn enter(profile: Profile) -> Result<Report, Fault> {
    let threads = std::fs::read_dir("/proc/self/task")
        .map_err(layer("counting threads"))?
        .count();
    if threads != 1 {
        return Err(Fault::Threads(threads));
    }
    rustix::thread::set_no_new_privs(true)
        .map_err(io::Error::from)
        .map_err(layer("no new privileges"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(io::Error::from)
        .map_err(layer("non-dumpable"))?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, none)
        .map_err(io::Error::from)
        .map_err(layer("the core file limit"))?;
    let network = match profile {
        Profile::Supervisor | Profile::Gateway => Network::Unchanged,
        Profile::Engine | Profile::Token { .. } => {
            let network = match profile {
                Profile::Token { network: true } => Network::Unchanged,
                _ => leave_network(),
            };
            calls::filter(profile).map_err(layer("the system call filter"))?;
            network
        }
    };
    Ok(Report { profile, network })
}

/// An empty network namespace where the kernel allows it.
fn leave_network() -> Network {
    // SAFETY: NEWNET alone; the descriptor table stays shared, which is what this function's rule is about.
    match unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) } {
        Ok(()) => Network::Own,
        Err(_refused) => Network::Shared,
    }
}

fn layer(layer: &'static str) -> impl FnOnce(io::Error) -> Fault {
    move |cause| Fault::Layer { layer, cause }
}

#[cfg(test)]
mod tests;
