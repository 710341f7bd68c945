//! A real Prometheus (`prometheus` and `promtool` of the Debian package) on a free port, ended with the test.

#![expect(
    clippy::disallowed_methods,
    reason = "a test's service, not a child of the server"
)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::server::write_file;
use crate::upstream::PATIENCE;

/// A running Prometheus.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    port: u16,
    _dir: TempDir,
}

/// What it scrapes, and by which rules it judges.
#[derive(Debug)]
pub struct Scrape<'a> {
    /// `HOST:PORT`.
    pub target: &'a str,
    /// The file with the token.
    pub token: &'a Path,
    /// The file with the certificate to trust.
    pub ca: &'a Path,
    /// The file with the rules.
    pub rules: &'a Path,
}

/// Whether it is installed; it must be where `GUAN_TEST_PROMETHEUS` is set.
///
/// # Panics
/// When it isn't and must be.
#[must_use]
pub fn is_there() -> bool {
    let found = promtool(&["--version"]).is_some_and(|said| said.0);
    assert!(
        found || std::env::var_os("GUAN_TEST_PROMETHEUS").is_none(),
        "Prometheus isn't installed: apt-get install prometheus"
    );
    found
}

/// What `promtool` says, and whether it is content; `None`: there is none.
#[must_use]
pub fn promtool(words: &[&str]) -> Option<(bool, String)> {
    let done = Command::new("promtool").args(words).output().ok()?;
    let said = [done.stdout, done.stderr].concat();
    Some((
        done.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

impl Prometheus {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// When it doesn't.
    #[must_use]
    pub fn start(scrape: &Scrape<'_>) -> Self {
        let dir = TempDir::new().expect("a folder for the test");
        let config = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [{:?}]\nscrape_configs:\n  - job_name: guan\n    scheme: https\n    authorization: {{ credentials_file: {:?} }}\n    tls_config: {{ ca_file: {:?} }}\n    static_configs: [{{ targets: [{:?}] }}]\n",
            scrape.rules, scrape.token, scrape.ca, scrape.target
        );
        let file = dir.path().join("prometheus.yml");
        write_file(&file, &config);
        // It can't be told to take a free port and say which: one that was free a moment ago may be taken.
        for attempt in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0")
                .and_then(|listener| listener.local_addr())
                .expect("a free port")
                .port();
            let data = dir.path().join(format!("data-{attempt}"));
            // It dies with the test's thread, whatever ends that.
            let mut child = Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "prometheus"])
                .arg(format!("--config.file={}", file.display()))
                .arg(format!("--storage.tsdb.path={}", data.display()))
                .arg(format!("--web.listen-address=127.0.0.1:{port}"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("prometheus starts");
            let until = Instant::now() + PATIENCE;
            while Instant::now() < until && child.try_wait().ok().flatten().is_none() {
                if ask(port, "/-/ready").is_some_and(|(status, _)| status == 200) {
                    let _dir = dir;
                    return Self { child, port, _dir };
                }
                std::thread::sleep(PAUSE);
            }
            child.kill().ok();
            child.wait().ok();
        }
        panic!("prometheus doesn't start");
    }

    /// What a query gives now: the samples.
    ///
    /// # Panics
    /// When it isn't a query.
    #[must_use]
    pub fn query(&self, query: &str) -> Vec<serde_json::Value> {
        let (status, body) = self.get(&format!("/api/v1/query?query={}", escaped(query)));
        assert_eq!(status, 200, "{query}: {body}");
        let said: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        said["data"]["result"].as_array().expect("samples").clone()
    }

    /// What is at a path of its API.
    ///
    /// # Panics
    /// When it doesn't answer.
    #[must_use]
    pub fn get(&self, path: &str) -> (u16, String) {
        ask(self.port, path).expect("an answer of prometheus")
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// HTTP/1.0, so that the end of the answer is the end of the connection.
fn ask(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    Some((status, body.to_owned()))
}

fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric();
    let letters = text.bytes().map(|b| {
        if plain(b) {
            char::from(b).to_string()
        } else {
            format!("%{b:02X}")
        }
    });
    letters.collect()
}

/// Between two looks whether it answers.
const PAUSE: Duration = Duration::from_millis(50);
