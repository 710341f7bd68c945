//! The `[admin]` part of the conversion: where the admin API listens.
//!
//! Decides that it never faces a network by mistake. Called by `meant::convert`.

use std::net::SocketAddr;

use super::super::{Seat, written};
use super::Judge;

impl Judge {
    /// `None`: nowhere but on the Unix socket.
    pub(super) fn admin(
        &mut self,
        admin: &Seat,
        file: &written::Admin,
        server: SocketAddr,
    ) -> Option<SocketAddr> {
        let text = file.listen.as_deref().unwrap_or(DEFAULT);
        if text == "off" {
            return None;
        }
        let Ok(address) = text.parse::<SocketAddr>() else {
            let why = "must be an IP address and a port, such as \"127.0.0.1:8444\", or \"off\"";
            self.fault(admin, "listen", why);
            return None;
        };
        if !address.ip().is_loopback() {
            self.fault(
                admin,
                "listen",
                "must be an address of this machine alone, such as \"127.0.0.1:8444\" or \"[::1]:8444\": whoever acts from elsewhere comes through SSH (ssh -L 8444:127.0.0.1:8444 HOST)",
            );
        }
        self.own_port(admin, address, ("server", server));
        Some(address)
    }

    /// Two doors of one machine don't share a port.
    pub(super) fn own_port(
        &mut self,
        seat: &Seat,
        address: SocketAddr,
        (table, other): (&str, SocketAddr),
    ) {
        let (ours, theirs) = (address.ip(), other.ip());
        let shared = ours == theirs || ours.is_unspecified() || theirs.is_unspecified();
        if address.port() != 0 && address.port() == other.port() && shared {
            let why = format!(
                "must have another port than listen in [{table}], which has {}",
                other.port()
            );
            self.fault(seat, "listen", &why);
        }
    }
}

const DEFAULT: &str = "127.0.0.1:8444";
