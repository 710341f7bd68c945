//! Binds every listener once: data listeners, the admin and metrics doors, the admin socket, one socket for each worker.
//!
//! It decides how a taken port or a stale socket is met; it never accepts. Called at the start of the supervisor,
//! which keeps the descriptors until it ends.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use socket2::{Domain, Protocol, Socket, Type};
use wire::control::Door;

use crate::commands::Failure;

/// A door that was bound once and is handed to each generation.
#[derive(Debug)]
pub(super) struct Bound {
    /// Which.
    pub(super) door: Door,
    /// The address with the port that was given; none for a Unix socket.
    pub(super) address: Option<SocketAddr>,
    /// Its listeners; the kernel spreads connections over them.
    pub(super) fds: Vec<OwnedFd>,
}

impl Bound {
    /// The file in `state/run` that holds its address while the server runs.
    pub(super) const fn file(&self) -> Option<&'static str> {
        match self.door {
            Door::Data => Some("address"),
            Door::Admin => Some("admin-address"),
            Door::Metrics => Some("metrics-address"),
            Door::AdminSocket => None,
        }
    }
}

/// Binds `count` listeners of a door on `address`; port 0 lets the kernel choose.
///
/// # Errors
/// When the address can't be had, with what to do.
pub(super) fn bind(door: Door, address: SocketAddr, count: usize) -> Result<Bound, Failure> {
    let refused = |e: io::Error| Failure::new(why(door, address, &e));
    if address.port() != 0 {
        // SO_REUSEPORT would share the port with any other program of this user that has set it too.
        let probe = socket(address, false).map_err(refused)?;
        drop(probe);
    }
    let first = socket(address, true).map_err(refused)?;
    let chosen = first.local_addr().ok().and_then(|a| a.as_socket());
    let chosen = chosen.ok_or_else(|| refused(io::Error::other("the socket has no address")))?;
    let mut fds = vec![OwnedFd::from(first)];
    while fds.len() < count {
        fds.push(socket(chosen, true).map_err(refused)?.into());
    }
    Ok(Bound {
        door,
        address: Some(chosen),
        fds,
    })
}

/// The admin socket as a door.
///
/// # Errors
/// When it can't be had, with what to do.
pub(super) fn bind_admin_socket(path: &Path) -> Result<Bound, Failure> {
    Ok(Bound {
        door: Door::AdminSocket,
        address: None,
        fds: vec![bind_unix(path)?.into()],
    })
}

/// Binds a Unix socket that only this user may reach.
///
/// # Errors
/// When it can't be had, with what to do.
pub(super) fn bind_unix(path: &Path) -> Result<UnixListener, Failure> {
    let shown = path.display();
    let length = path.as_os_str().len();
    if length > LONGEST_PATH {
        return Err(Failure::new(format!(
            "{shown}: a socket's path may have {LONGEST_PATH} bytes, this one has {length}; choose a data folder with a shorter path"
        )));
    }
    // The lock is held, so whoever made it is gone.
    let stale = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    let bound = if stale {
        std::fs::remove_file(path)
    } else {
        Ok(())
    }
    .and_then(|()| UnixListener::bind(path))
    .and_then(|listener| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    });
    bound.map_err(|e| Failure::new(format!("the socket {shown} can't be made: {e}")))
}

fn socket(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // Without it a restart waits for connections of the run before.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// What a refused bind means.
fn why(door: Door, address: SocketAddr, e: &io::Error) -> String {
    let port = address.port();
    let (key, usual) = match door {
        Door::Data | Door::AdminSocket => ("[server] listen", 8443),
        Door::Admin => ("[admin] listen", 8444),
        Door::Metrics => ("[metrics] listen", 8445),
    };
    match e.kind() {
        io::ErrorKind::AddrInUse => format!(
            "port {port} on {} is taken by another program. See who has it: ss -ltnp 'sport = :{port}'. \
             Or choose another one: {key} = \"{}\" in guan.toml",
            address.ip(),
            SocketAddr::new(
                address.ip(),
                if port == usual { usual + 1000 } else { usual }
            ),
        ),
        io::ErrorKind::PermissionDenied => format!(
            "port {port} may only be opened by root. Choose one from 1024: {key} in guan.toml"
        ),
        io::ErrorKind::AddrNotAvailable => format!(
            "this machine doesn't have the address {}. Choose one of its own, or 0.0.0.0 for all: {key} in guan.toml",
            address.ip()
        ),
        _ => format!("{address} can't be listened on: {e}; see {key} in guan.toml"),
    }
}

/// Connections that wait to be accepted, on each listener.
const BACKLOG: i32 = 1024;

/// Bytes of a Unix socket's path, at most (`sun_path` less its zero byte).
const LONGEST_PATH: usize = 107;

#[cfg(test)]
mod tests {
    use super::*;

    fn any() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[test]
    fn all_listeners_share_the_port_that_the_first_was_given() {
        let listeners = bind(Door::Data, any(), 3).unwrap();
        let address = listeners.address.unwrap();
        assert_ne!(address.port(), 0);
        assert_eq!(listeners.fds.len(), 3);
        assert!(std::net::TcpStream::connect(address).is_ok());
    }

    #[test]
    fn a_taken_port_is_refused_even_when_its_holder_shares() {
        let first = bind(Door::Data, any(), 1).unwrap();
        let address = first.address.unwrap();
        let said = bind(Door::Admin, address, 2).unwrap_err().to_string();
        assert!(said.contains("[admin] listen"), "{said}");
        let said = bind(Door::Data, address, 2).unwrap_err().to_string();
        let port = address.port();
        assert!(
            said.contains(&format!("port {port} on 127.0.0.1 is taken")),
            "{said}"
        );
        assert!(
            said.contains(&format!("ss -ltnp 'sport = :{port}'")),
            "{said}"
        );
    }

    #[test]
    fn an_address_of_another_machine_is_refused() {
        let said = bind(Door::Data, SocketAddr::from(([192, 0, 2, 1], 0)), 1)
            .unwrap_err()
            .to_string();
        assert!(
            said.contains("doesn't have the address 192.0.2.1"),
            "{said}"
        );
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_file_in_its_place_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        drop(bind_unix(&path).unwrap());
        let listener = bind_unix(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(listener);
        let file = dir.path().join("b.sock");
        std::fs::write(&file, "kept").unwrap();
        assert!(bind_unix(&file).is_err());
        assert_eq!(std::fs::read(&file).unwrap(), b"kept");
        let long = dir.path().join("x".repeat(120));
        assert!(
            bind_unix(&long)
                .unwrap_err()
                .to_string()
                .contains("shorter path")
        );
    }
}
