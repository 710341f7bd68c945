//! The `[server]` part of the conversion.
//!
//! Decides ranges and defaults of what holds for all callers and models. Called by `meant::convert`.

use std::net::SocketAddr;
use std::time::Duration;

use gateway::settings::OnRevoke;

use super::super::units::write_size;
use super::super::{Seat, written};
use super::Judge;

/// Credentials that aren't valid, from one address a minute.
const FAILED_CREDENTIALS: u32 = 60;

/// What `[server]` says.
pub(super) struct Server {
    pub(super) listen: SocketAddr,
    pub(super) names: Vec<String>,
    pub(super) max_body: u64,
    pub(super) body_budget: u64,
    pub(super) commit_after: Duration,
    pub(super) comment_every: Duration,
    pub(super) cors_origins: Vec<String>,
    pub(super) on_revoke: OnRevoke,
    pub(super) failed_credentials_per_minute: u32,
}

impl Judge {
    pub(super) fn server(&mut self, server: &Seat, file: written::Server) -> Server {
        let max_body = self.size(
            server,
            "max_body",
            file.max_body,
            8 << 20,
            (1 << 10)..=(256 << 20),
        );
        let body_budget = self.size(
            server,
            "body_budget",
            file.body_budget,
            256 << 20,
            (4 << 10)..=(1 << 40),
        );
        if body_budget / 4 < max_body {
            self.problem(&server.key("body_budget"), format!(
                "body_budget in [server] must be at least four times max_body ({}), since one caller gets a quarter of it",
                write_size(max_body.saturating_mul(4))
            ));
        }
        let commit_after = self.span(
            server,
            "commit_after",
            file.commit_after,
            Duration::from_secs(10),
            Duration::from_millis(100)..=Duration::from_mins(10),
        );
        let comment_every = self.span(
            server,
            "comment_every",
            file.comment_every,
            Duration::from_secs(15),
            Duration::from_millis(100)..=Duration::from_mins(5),
        );
        let on_revoke = file.on_revoke.as_deref().unwrap_or("cut");
        self.word(server, "on_revoke", on_revoke, &["cut", "finish"]);
        let failed_credentials = self.number(
            server,
            "failed_credentials_per_minute",
            file.failed_credentials_per_minute,
            &(1..=100_000),
        );
        Server {
            listen: self.listen(server, file.listen.as_deref()),
            names: self.names(server, file.names),
            max_body,
            body_budget,
            commit_after,
            comment_every,
            cors_origins: self.origins(server, file.cors_origins),
            on_revoke: if on_revoke == "cut" {
                OnRevoke::Cut
            } else {
                OnRevoke::Finish
            },
            failed_credentials_per_minute: failed_credentials
                .and_then(|n| u32::try_from(n).ok())
                .unwrap_or(FAILED_CREDENTIALS),
        }
    }

    fn listen(&mut self, server: &Seat, written: Option<&str>) -> SocketAddr {
        let default = SocketAddr::from(([0, 0, 0, 0], 8443));
        let Some(text) = written else { return default };
        if let Ok(address) = text.parse() {
            return address;
        }
        self.fault(
            server,
            "listen",
            "must be an IP address and a port, such as \"0.0.0.0:8443\" or \"[::]:8443\"",
        );
        default
    }

    /// Origins as browsers write them: scheme, host and perhaps a port, in small letters.
    fn origins(&mut self, server: &Seat, origins: Vec<String>) -> Vec<String> {
        let good = |b: u8| {
            b.is_ascii_lowercase()
                || b.is_ascii_digit()
                || matches!(b, b'.' | b'-' | b':' | b'[' | b']')
        };
        for (n, origin) in origins.iter().enumerate() {
            let host = origin
                .strip_prefix("https://")
                .or_else(|| origin.strip_prefix("http://"));
            if host.is_none_or(|host| host.is_empty() || !host.bytes().all(good)) {
                self.problem(
                    &server.key("cors_origins").index(n),
                    format!("cors_origins in [server] holds {origin:?}, which is no origin: write it as a browser does, such as \"https://app.example.com\", without a path and never \"*\""),
                );
            }
        }
        origins
    }

    fn names(&mut self, server: &Seat, names: Vec<String>) -> Vec<String> {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'*');
        for (n, name) in names.iter().enumerate() {
            if name.is_empty() || name.len() > 253 || !name.bytes().all(good) {
                self.problem(
                    &server.key("names").index(n),
                    format!(
                        "names in [server] holds {name:?}, which is no host name and no IP address"
                    ),
                );
            }
        }
        names
    }
}
