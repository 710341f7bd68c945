//! A `PostgreSQL` server for tests, from Debian's packages: on a Unix socket in a folder of its own, gone with it.
//!
//! One server a test process, one database a test. `None` where the packages aren't installed; `GUAN_TEST_POSTGRES=1`
//! (which `scripts/test` sets) makes that a failure.

#![expect(
    clippy::disallowed_methods,
    reason = "a test's service, not a child of the server"
)]

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

#[derive(Debug)]
struct Service {
    dir: TempDir,
    bin: PathBuf,
}

/// The URL of a new database; each call another one.
///
/// # Panics
/// When the server can't be started though it is installed, or isn't installed and must be.
#[must_use]
pub fn database() -> Option<String> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let Some(service) = service() else {
        assert!(
            std::env::var_os("GUAN_TEST_POSTGRES").is_none(),
            "PostgreSQL isn't installed: apt-get install postgresql"
        );
        return None;
    };
    let name = format!("t{}", NEXT.fetch_add(1, Ordering::SeqCst));
    let socket = service.dir.path().display().to_string();
    let made = service.user(&["createdb", "-h", &socket, "-U", "guan", &name]);
    assert!(made, "createdb failed");
    Some(format!(
        "postgres://guan@{}/{name}",
        socket.replace('/', "%2F")
    ))
}

/// Lets nobody into a database any more and ends who is in it, or lets them in again.
///
/// # Panics
/// When the server doesn't do so.
pub fn allow(url: &str, allowed: bool) {
    let service = service().expect("a server that gave the URL");
    let name = url.rsplit('/').next().expect("a database's name");
    let socket = service.dir.path().display().to_string();
    let word = format!("ALTER DATABASE {name} WITH ALLOW_CONNECTIONS {allowed}");
    let end =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
    let mut words = vec![
        "psql", "-q", "-h", &socket, "-U", "guan", "-d", "postgres", "-c", &word,
    ];
    if !allowed {
        words.extend(["-c", &end]);
    }
    assert!(service.user(&words), "psql failed");
}

/// The port of another server, on 127.0.0.1: over TLS only (with this certificate and key, PEM), where the user
/// `guan_tls` needs this password.
///
/// # Panics
/// When it can't be started though it is installed, or isn't installed and must be.
#[must_use]
pub fn over_tls(certificate: &str, key: &str, password: &str) -> Option<u16> {
    let service = Service::make();
    let Some(service) = service else {
        assert!(
            std::env::var_os("GUAN_TEST_POSTGRES").is_none(),
            "PostgreSQL isn't installed: apt-get install postgresql"
        );
        return None;
    };
    let data = service.data();
    let words = "local all all trust\nhostssl all guan_tls 127.0.0.1/32 scram-sha-256\n";
    let files = [
        ("server.crt", certificate),
        ("server.key", key),
        ("pg_hba.conf", words),
    ];
    for (name, text) in files {
        // Written as its own user writes it, so that owner and mode are right.
        let path = data.join(name);
        let script = format!("umask 077; cat > {}", path.display());
        let mut shell = as_user(Path::new("/bin/sh"))
            .args(["-c", &script])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("a shell runs");
        let mut input = shell.stdin.take().expect("a pipe");
        input.write_all(text.as_bytes()).expect("the shell reads");
        drop(input);
        assert!(shell.wait().expect("a shell runs").success());
    }
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = free.local_addr().expect("a port").port();
    drop(free);
    service.run(&format!(
        "-c listen_addresses=127.0.0.1 -c port={port} -c ssl=on"
    ));
    let (socket, port_text) = (service.dir.path().display().to_string(), port.to_string());
    let word = format!("CREATE ROLE guan_tls LOGIN SUPERUSER PASSWORD '{password}'");
    assert!(service.user(&[
        "psql", "-q", "-h", &socket, "-p", &port_text, "-U", "guan", "-d", "postgres", "-c", &word,
    ]));
    // It ends with this process, and removes its folder then.
    Box::leak(Box::new(service));
    Some(port)
}

fn service() -> Option<&'static Service> {
    static SERVICE: OnceLock<Option<Service>> = OnceLock::new();
    let start = || {
        let service = Service::make()?;
        service.run("-c listen_addresses=''");
        Some(service)
    };
    SERVICE.get_or_init(start).as_ref()
}

impl Service {
    /// A folder with an empty cluster.
    fn make() -> Option<Self> {
        let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
            .ok()?
            .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
            .filter(|bin| bin.join("initdb").is_file())
            .collect();
        versions.sort();
        let bin = versions.pop()?;
        let dir = tempfile::Builder::new()
            .prefix("guan-pg-")
            .tempdir()
            .expect("PostgreSQL's tools run");
        let service = Self { dir, bin };
        if is_root() {
            let owned = Command::new("chown")
                .arg("postgres")
                .arg(service.dir.path())
                .status();
            assert!(owned.expect("PostgreSQL's tools run").success());
        }
        let data = service.data();
        let data = data.to_str().expect("PostgreSQL's tools run");
        assert!(service.user(&["initdb", "-A", "trust", "-U", "guan", "-N", "-D", data]));
        Some(service)
    }

    /// Starts the server; it ends with this process.
    fn run(&self, more: &str) {
        let socket = self.dir.path().display();
        let options = format!("{more} -c unix_socket_directories='{socket}' -c fsync=off");
        let (data, log) = (self.data(), self.dir.path().join("log"));
        let text = |path: &Path| path.to_str().expect("PostgreSQL's tools run").to_owned();
        let (data, log) = (text(&data), text(&log));
        assert!(self.user(&[
            "pg_ctl", "start", "-w", "-D", &data, "-l", &log, "-o", &options
        ]));
        self.end_with_this_process();
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The server refuses to run as root.
    fn user(&self, words: &[&str]) -> bool {
        let program = self.bin.join(words[0]);
        let mut command = as_user(&program);
        command
            .args(&words[1..])
            .stdout(std::process::Stdio::null());
        command
            .current_dir(self.dir.path())
            .status()
            .expect("PostgreSQL's tools run")
            .success()
    }

    /// A static is never dropped: a shell that waits for this process's end stops the server and removes its folder.
    fn end_with_this_process(&self) {
        let script = format!(
            "while [ -d /proc/{} ]; do sleep 0.2; done; {} stop -m immediate -D {} ; rm -rf {}",
            std::process::id(),
            self.bin.join("pg_ctl").display(),
            self.data().display(),
            self.dir.path().display()
        );
        let mut shell = as_user(Path::new("/bin/sh"));
        let started = shell
            .args(["-c", &script])
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn();
        drop(started.expect("PostgreSQL's tools run"));
    }
}

fn as_user(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
        .arg(program);
    command
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|of| of.uid() == 0)
}
