//! The `[metrics]` part of the conversion: where figures are collected, and what opens that door.
//!
//! Decides that nobody collects anything without a token, and that the token can't be guessed. Called by
//! `meant::convert`.

use std::net::SocketAddr;

use gateway::settings::Secret;

use super::super::{Place, Seat, written};
use super::Judge;

impl Judge {
    /// Where it listens and what opens it. `None`: nobody collects.
    pub(super) fn metrics(
        &mut self,
        metrics: &Seat,
        file: &written::Metrics,
        others: &[(&str, SocketAddr)],
        place: &Place<'_>,
    ) -> Option<(SocketAddr, Secret)> {
        let Some(token) = &file.token else {
            if file.listen.is_some() {
                let why = "is missing: figures are given to whoever shows it, and to nobody without one; say \"file:secrets/metrics-token\", \"env:NAME\" or seal it with `guan secret seal`";
                self.fault(metrics, "token", why);
            }
            return None;
        };
        let secret = self.secret(metrics, "token", token, place);
        // What is sealed is judged where it can be opened.
        if let Some(secret) = &secret
            && (1..SHORTEST).contains(&secret.len())
        {
            let why = format!(
                "names a token that is too short: at least {SHORTEST} characters, such as what `openssl rand -hex 32` prints"
            );
            self.fault(metrics, "token", &why);
        }
        let text = file.listen.as_deref().unwrap_or(DEFAULT);
        let Ok(address) = text.parse::<SocketAddr>() else {
            let why = "must be an IP address and a port, such as \"127.0.0.1:8445\"";
            self.fault(metrics, "listen", why);
            return None;
        };
        for (table, other) in others {
            self.own_port(metrics, address, (table, *other));
        }
        Some((address, secret?))
    }
}

const DEFAULT: &str = "127.0.0.1:8445";
/// Characters of a token, at least.
const SHORTEST: usize = 16;
