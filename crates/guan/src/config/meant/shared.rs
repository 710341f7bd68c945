//! The part of `[limits]` that says where limits are kept: in memory, or in Redis or Valkey that nodes share.
//!
//! Passwords stand in references, never in the URL. Called by `meant::convert`; `guan config show` writes it.

use std::path::PathBuf;
use std::time::Duration;

use gateway::limits::shared::{Address, Form, Shared, WhenUnreachable};
use gateway::settings::Secret;
use rules::policy::Pool;

use super::super::units::write_duration;
use super::super::{Place, Seat, reference, written};
use super::Judge;

const FORMS: &str = "must be \"memory\", \"redis://HOST:PORT\", \"unix:/PATH\", \
    \"redis+sentinel://HOST:PORT,HOST:PORT/MASTER\" or \"redis+cluster://HOST:PORT,HOST:PORT\"; \"rediss\" for TLS";

/// The longest that one decision may wait, and the shortest.
const TIMEOUTS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(5)..=Duration::from_secs(1);

const TIMEOUT: Duration = Duration::from_millis(50);

impl Judge {
    /// `[limits]`: what the node shares, and where limits are kept.
    pub(super) fn whole_limits(
        &mut self,
        seat: &Seat,
        written: &written::Limits,
        place: &Place<'_>,
    ) -> (Pool, Option<Shared>) {
        let node = self.node(&seat.key("node"), &written.node);
        (node, self.shared(seat, written, place))
    }

    /// The shared store of `[limits]`; `None`: memory.
    fn shared(
        &mut self,
        seat: &Seat,
        written: &written::Limits,
        place: &Place<'_>,
    ) -> Option<Shared> {
        let timeout = self.span(seat, "timeout", written.timeout, TIMEOUT, TIMEOUTS);
        let word = written.when_unreachable.as_deref().unwrap_or("local");
        self.word(
            seat,
            "when_unreachable",
            word,
            &["local", "refuse", "allow"],
        );
        let backend = written.backend.as_deref().unwrap_or("memory");
        if backend == "memory" {
            self.only_shared(seat, written);
            return None;
        }
        let read = match read(backend) {
            Ok(read) => read,
            Err(why) => {
                self.fault(seat, "backend", &why);
                return None;
            }
        };
        let address = self.address(seat, read, written, place);
        let prefix = written.prefix.clone().unwrap_or_else(|| "guan".to_owned());
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if prefix.is_empty() || prefix.len() > 64 || !prefix.chars().all(good) {
            self.fault(
                seat,
                "prefix",
                "must be 1 to 64 letters, digits, `-`, `_` or `.`",
            );
        }
        Some(Shared {
            address,
            prefix,
            timeout,
            when_unreachable: match word {
                "refuse" => WhenUnreachable::Refuse,
                "allow" => WhenUnreachable::Allow,
                _ => WhenUnreachable::Local,
            },
        })
    }

    fn only_shared(&mut self, seat: &Seat, written: &written::Limits) {
        let given = [
            ("username", written.username.is_some()),
            ("password", written.password.is_some()),
            ("sentinel_username", written.sentinel_username.is_some()),
            ("sentinel_password", written.sentinel_password.is_some()),
            ("ca", written.ca.is_some()),
            ("client_certificate", written.client_certificate.is_some()),
            ("client_key", written.client_key.is_some()),
            ("prefix", written.prefix.is_some()),
            ("timeout", written.timeout.is_some()),
            ("when_unreachable", written.when_unreachable.is_some()),
        ];
        for (key, _) in given.iter().filter(|(_, is_given)| *is_given) {
            self.fault(
                seat,
                key,
                "is for a backend that nodes share; backend is \"memory\"",
            );
        }
    }

    fn address(
        &mut self,
        seat: &Seat,
        mut read: Read,
        written: &written::Limits,
        place: &Place<'_>,
    ) -> Address {
        let password = self.limits_secret(seat, "password", written.password.as_ref(), place);
        let asked_as = self.limits_secret(
            seat,
            "sentinel_password",
            written.sentinel_password.as_ref(),
            place,
        );
        if let Form::Sentinel {
            username, password, ..
        } = &mut read.form
        {
            (*username, *password) = (written.sentinel_username.clone(), asked_as);
        } else if written.sentinel_username.is_some() || asked_as.is_some() {
            self.fault(seat, "sentinel_password", "is for \"redis+sentinel://…\"");
        }
        let key = self
            .pem(seat, "client_key", written.client_key.as_ref(), place)
            .map(|bytes| Secret::new(String::from_utf8_lossy(&bytes).into_owned()));
        let certificate = self.pem(
            seat,
            "client_certificate",
            written.client_certificate.as_ref(),
            place,
        );
        let client = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                self.fault(seat, "client_key", "and client_certificate go together");
                None
            }
        };
        let authorities = self.pem(seat, "ca", written.ca.as_ref(), place);
        if !read.tls && (authorities.is_some() || client.is_some()) {
            self.fault(seat, "ca", "is for TLS: say \"rediss://…\"");
        }
        Address {
            form: read.form,
            tls: read.tls,
            username: written.username.clone(),
            password,
            database: read.database,
            authorities,
            client,
        }
    }

    fn limits_secret(
        &mut self,
        seat: &Seat,
        key: &'static str,
        written: Option<&String>,
        place: &Place<'_>,
    ) -> Option<Secret> {
        let found = reference::parse(written?).and_then(|read| {
            match &read {
                reference::Reference::Env(name) => {
                    self.environment.insert((*name).to_owned());
                }
                reference::Reference::Sealed(value) => {
                    self.sealed.insert((*value).to_owned());
                }
                reference::Reference::File(_) => {}
            }
            reference::resolve(&read, place.data, place.env, place.opener)
        });
        match found {
            Ok(secret) => Some(Secret::new(secret.to_string())),
            Err(why) => {
                self.fault(seat, key, &why);
                None
            }
        }
    }

    fn pem(
        &mut self,
        seat: &Seat,
        key: &'static str,
        written: Option<&PathBuf>,
        place: &Place<'_>,
    ) -> Option<Vec<u8>> {
        let path = place.data.join(written?);
        let read = std::fs::read(&path);
        match read {
            Ok(bytes) => Some(bytes),
            Err(fault) => {
                self.fault(
                    seat,
                    key,
                    &format!("can't be read: {}: {fault}", path.display()),
                );
                None
            }
        }
    }
}

/// What a URL says.
struct Read {
    form: Form,
    tls: bool,
    database: i64,
}

fn read(url: &str) -> Result<Read, String> {
    if let Some(path) = url.strip_prefix("unix:") {
        if !path.starts_with('/') {
            return Err(
                "must name a socket by its whole path: \"unix:/run/redis/redis.sock\"".to_owned(),
            );
        }
        return Ok(Read {
            form: Form::Socket(path.into()),
            tls: false,
            database: 0,
        });
    }
    let (scheme, rest) = url.split_once("://").ok_or_else(|| FORMS.to_owned())?;
    let (kind, tls) = match scheme {
        "redis" => ("", false),
        "rediss" => ("", true),
        "redis+sentinel" => ("sentinel", false),
        "rediss+sentinel" => ("sentinel", true),
        "redis+cluster" => ("cluster", false),
        "rediss+cluster" => ("cluster", true),
        _ => return Err(FORMS.to_owned()),
    };
    // Not repeated: it may hold the password.
    if rest.contains(['@', '?', '#']) {
        return Err(
            "holds more than hosts and a path; user and password have keys of their own: username, and password = \"file:secrets/limits-password\""
                .to_owned(),
        );
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let default = if kind == "sentinel" { 26_379 } else { 6379 };
    let hosts: Result<Vec<_>, String> =
        authority.split(',').map(|one| host(one, default)).collect();
    let mut hosts = hosts?;
    let number = |text: &str| {
        let n: Option<i64> = text.parse().ok().filter(|n| (0..=1023).contains(n));
        n.ok_or_else(|| "must end in the number of a database, or without one".to_owned())
    };
    let (form, database) = match kind {
        "cluster" => {
            if !path.is_empty() {
                return Err("has a path; a cluster has one database".to_owned());
            }
            (Form::Cluster(hosts), 0)
        }
        "sentinel" => {
            let (master, database) = path.split_once('/').unwrap_or((path, "0"));
            if master.is_empty() {
                return Err("must name the master that the sentinels watch: \"redis+sentinel://HOST:PORT/MASTER\"".to_owned());
            }
            let form = Form::Sentinel {
                sentinels: hosts,
                master: master.to_owned(),
                username: None,
                password: None,
            };
            (form, number(database)?)
        }
        _ => {
            let (Some((host, port)), true) = (hosts.pop(), hosts.is_empty()) else {
                return Err(
                    "names several hosts; say \"redis+cluster://…\" or \"redis+sentinel://…\""
                        .to_owned(),
                );
            };
            let database = if path.is_empty() { 0 } else { number(path)? };
            (Form::One(host, port), database)
        }
    };
    Ok(Read {
        form,
        tls,
        database,
    })
}

/// `HOST`, `HOST:PORT`, `[V6]`, `[V6]:PORT`.
fn host(text: &str, default: u16) -> Result<(String, u16), String> {
    let bad = || format!("names {text:?}, which isn't HOST or HOST:PORT");
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or_else(bad)?;
            let _v6: std::net::Ipv6Addr = address.parse().map_err(|_not| bad())?;
            (
                address,
                after.strip_prefix(':').or(after.is_empty().then_some("")),
            )
        }
        None => match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, Some("")),
        },
    };
    let port = match port.ok_or_else(bad)? {
        "" => default,
        port => port.parse().ok().filter(|p| *p > 0).ok_or_else(bad)?,
    };
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '_');
    if name.is_empty() || !name.chars().all(good) {
        return Err(bad());
    }
    Ok((name.to_owned(), port))
}

/// As `guan config show` prints it: never a secret.
pub(crate) fn render(out: &mut String, shared: Option<&Shared>) {
    use std::fmt::Write as _;
    let Some(shared) = shared else {
        out.push_str("\n[limits]\nbackend = \"memory\"\n");
        return;
    };
    let address = &shared.address;
    let s = if address.tls { "s" } else { "" };
    let list = |hosts: &[(String, u16)]| {
        let one = |(host, port): &(String, u16)| {
            if host.contains(':') {
                format!("[{host}]:{port}")
            } else {
                format!("{host}:{port}")
            }
        };
        hosts.iter().map(one).collect::<Vec<_>>().join(",")
    };
    let database = match address.database {
        0 => String::new(),
        n => format!("/{n}"),
    };
    let backend = match &address.form {
        Form::One(host, port) => format!("redis{s}://{}{database}", list(&[(host.clone(), *port)])),
        Form::Socket(path) => format!("unix:{}", path.display()),
        Form::Sentinel {
            sentinels, master, ..
        } => format!("redis{s}+sentinel://{}/{master}{database}", list(sentinels)),
        Form::Cluster(nodes) => format!("redis{s}+cluster://{}", list(nodes)),
    };
    let when = match shared.when_unreachable {
        WhenUnreachable::Local => "local",
        WhenUnreachable::Refuse => "refuse",
        WhenUnreachable::Allow => "allow",
    };
    // Writing to a text can't fail.
    write!(
        out,
        "\n[limits]\nbackend = {backend:?}\nprefix = {:?}\ntimeout = \"{}\"\nwhen_unreachable = \"{when}\"\n",
        shared.prefix,
        write_duration(shared.timeout)
    )
    .ok();
    if let Some(name) = &address.username {
        writeln!(out, "username = {name:?}").ok();
    }
    if address.password.is_some() {
        out.push_str("# password: given\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_an_address_is_read_and_the_rest_refused() {
        let good = |url: &str| read(url).unwrap_or_else(|why| panic!("{url}: {why}"));
        let one = |url: &str| match good(url).form {
            Form::One(host, port) => (host, port),
            other => panic!("{other:?}"),
        };
        assert_eq!(one("redis://10.0.0.5"), ("10.0.0.5".to_owned(), 6379));
        assert_eq!(one("rediss://[::1]:7000/3"), ("::1".to_owned(), 7000));
        assert!(good("rediss://r").tls && !good("redis://r").tls);
        assert_eq!(good("redis://r/3").database, 3);
        let sentinel = good("redis+sentinel://a,b:1/main/2");
        assert_eq!(sentinel.database, 2);
        match sentinel.form {
            Form::Sentinel {
                sentinels, master, ..
            } => {
                assert_eq!(sentinels, [("a".to_owned(), 26_379), ("b".to_owned(), 1)]);
                assert_eq!(master, "main");
            }
            other => panic!("{other:?}"),
        }
        for url in [
            "",
            "redis",
            "http://r",
            "redis://",
            "redis://r:0",
            "redis://r:70000",
            "redis://a,b",
            "redis://u:secret@r",
            "redis://r/x",
            "redis://r?x=1",
            "redis+sentinel://a",
            "redis+cluster://a/1",
            "unix:redis.sock",
        ] {
            let why = read(url).err().unwrap_or_else(|| panic!("{url}"));
            assert!(!why.contains("secret@"), "{why}");
        }
    }
}
