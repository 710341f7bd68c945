//! Redis servers for tests, from Debian's packages: one, one with Sentinels, a cluster. Gone with their folder.
//!
//! They can be stopped, hung, started again and spoken to by `redis-cli`. `None` where the packages aren't installed;
//! `GUAN_TEST_REDIS=1` (which `scripts/test` sets) makes that a failure.

#![expect(
    clippy::disallowed_methods,
    reason = "a test's service, not a child of the server"
)]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// One server, on 127.0.0.1.
#[derive(Debug)]
pub struct Redis {
    dir: TempDir,
    child: Option<Child>,
    /// Its port.
    pub port: u16,
    words: Vec<String>,
    /// What `redis-cli` is told besides the port.
    login: Vec<String>,
}

/// Whether the packages are there.
///
/// # Panics
/// When they aren't and must be.
#[must_use]
pub fn is_installed() -> bool {
    let known = |name: &str| Path::new("/usr/bin").join(name).is_file();
    let is = known("redis-server") && known("redis-cli");
    assert!(
        is || std::env::var_os("GUAN_TEST_REDIS").is_none(),
        "Redis isn't installed: apt-get install redis-server"
    );
    is
}

impl Redis {
    /// Starts one with these words of its configuration, each `--name value`; `{port}` and `{dir}` stand for its own.
    ///
    /// # Panics
    /// When it can't be started though it is installed, or isn't installed and must be.
    #[must_use]
    pub fn start(words: &[&str]) -> Option<Self> {
        Self::with(words, &[], |_folder| {})
    }

    /// The same; `login` is what `redis-cli` needs to be let in, `prepare` may write into the folder.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn with(words: &[&str], login: &[&str], prepare: impl FnOnce(&Path)) -> Option<Self> {
        if !is_installed() {
            return None;
        }
        let mut redis = Self {
            dir: tempfile::Builder::new()
                .prefix("guan-redis-")
                .tempdir()
                .expect("a folder"),
            child: None,
            port: 0,
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            login: login.iter().map(|word| (*word).to_owned()).collect(),
        };
        prepare(redis.folder());
        // Another process may take a free port before the server does.
        for _ in 0..20 {
            redis.port = free_port();
            if redis.run() {
                return Some(redis);
            }
        }
        panic!("redis-server doesn't start: {}", redis.log());
    }

    /// Its folder: files that its words name may be written there.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// Starts it again, on the same port, with what it wrote down.
    ///
    /// # Panics
    /// When it doesn't start.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs");
        assert!(self.run(), "redis-server doesn't start: {}", self.log());
    }

    /// Ends it at once.
    ///
    /// # Panics
    /// When it can't be ended.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it can be ended");
            child.wait().expect("it ends");
        }
    }

    /// Hangs it: connections stay, answers don't come.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    /// What it says to a command.
    ///
    /// # Panics
    /// When it can't be asked.
    pub fn says(&self, words: &[&str]) -> String {
        let asked = Command::new("redis-cli")
            .args(["-p", &self.port.to_string()])
            .args(self.login.iter().map(|word| self.filled(word)))
            .args(words)
            .output()
            .expect("redis-cli runs");
        String::from_utf8_lossy(&asked.stdout).trim().to_owned()
    }

    /// Waits until it says so.
    ///
    /// # Panics
    /// When it doesn't within half a minute.
    pub fn wait_until(&self, words: &[&str], said: impl Fn(&str) -> bool) {
        let mut last = String::new();
        for _ in 0..600 {
            last = self.says(words);
            if said(&last) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{words:?} says {last}");
    }

    fn run(&mut self) -> bool {
        let log = self.dir.path().join("log");
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
            .arg("--dir")
            .arg(self.dir.path())
            .arg("--logfile")
            .arg(&log)
            .args(self.words.iter().map(|word| self.filled(word)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server runs");
        self.child = Some(child);
        for _ in 0..400 {
            if matches!(self.says(&["PING"]).as_str(), "PONG") {
                return true;
            }
            let ended = self.child.as_mut().map(Child::try_wait);
            if !matches!(ended, Some(Ok(None))) {
                break;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        self.kill();
        false
    }

    /// `{port}` and `{dir}` stand for its own.
    fn filled(&self, word: &str) -> String {
        word.replace("{port}", &self.port.to_string())
            .replace("{dir}", &self.dir.path().display().to_string())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn signal(&self, name: &str) {
        if let Some(child) = &self.child {
            let sent = Command::new("kill")
                .args([name, &child.id().to_string()])
                .status()
                .expect("kill runs");
            assert!(sent.success());
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Three masters, and a replica of each if wanted.
///
/// # Panics
/// As [`Redis::start`].
#[must_use]
pub fn cluster() -> Option<Vec<Redis>> {
    let words = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"];
    let mut nodes = Vec::new();
    for _ in 0..3 {
        // Its bus needs a port of its own; the default is too high for some free ones.
        let bus = free_port().to_string();
        let mut all = words.to_vec();
        all.extend(["--cluster-port", &bus]);
        nodes.push(Redis::start(&all)?);
    }
    let addresses: Vec<String> = nodes
        .iter()
        .map(|n| format!("127.0.0.1:{}", n.port))
        .collect();
    let made = Command::new("redis-cli")
        .args(["--cluster", "create"])
        .args(&addresses)
        .arg("--cluster-yes")
        .output()
        .expect("redis-cli runs");
    assert!(
        made.status.success(),
        "{}{}",
        String::from_utf8_lossy(&made.stdout),
        String::from_utf8_lossy(&made.stderr)
    );
    for node in &nodes {
        node.wait_until(&["CLUSTER", "INFO"], |said| {
            said.contains("cluster_state:ok")
        });
    }
    Some(nodes)
}

/// A master, its replica, and three Sentinels that call the master `m` and need one second.
#[derive(Debug)]
pub struct Watched {
    /// The master and its replica.
    pub servers: [Redis; 2],
    /// The Sentinels.
    pub sentinels: Vec<Redis>,
}

impl Watched {
    /// Starts them.
    ///
    /// # Panics
    /// As [`Redis::start`].
    #[must_use]
    pub fn start() -> Option<Self> {
        let master = Redis::start(&[])?;
        let of = master.port.to_string();
        let words = [
            "--replicaof",
            "127.0.0.1",
            &of,
            "--repl-diskless-sync-delay",
            "0",
        ];
        let replica = Redis::start(&words)?;
        replica.wait_until(&["INFO", "replication"], |said| {
            said.contains("master_link_status:up")
        });
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            let sentinel = sentinel(master.port);
            sentinels.push(sentinel);
        }
        for sentinel in &sentinels {
            sentinel.wait_until(&["SENTINEL", "MASTER", "m"], |said| {
                said.contains("num-other-sentinels\n2") && said.contains("num-slaves\n1")
            });
        }
        Some(Self {
            servers: [master, replica],
            sentinels,
        })
    }
}

fn sentinel(master: u16) -> Redis {
    let dir = tempfile::Builder::new()
        .prefix("guan-sentinel-")
        .tempdir()
        .expect("a folder");
    let file = dir.path().join("sentinel.conf");
    let text = format!(
        "sentinel monitor m 127.0.0.1 {master} 2\nsentinel down-after-milliseconds m 500\n\
         sentinel failover-timeout m 3000\nsentinel parallel-syncs m 1\n"
    );
    for _ in 0..20 {
        let port = free_port();
        std::fs::write(&file, format!("port {port}\nbind 127.0.0.1\n{text}")).expect("a file");
        let child = Command::new("redis-server")
            .arg(&file)
            .arg("--sentinel")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server runs");
        let mut sentinel = Redis {
            dir: tempfile::Builder::new()
                .prefix("guan-sentinel-")
                .tempdir()
                .expect("a folder"),
            child: Some(child),
            port,
            words: Vec::new(),
            login: Vec::new(),
        };
        for _ in 0..200 {
            if sentinel.says(&["PING"]) == "PONG" {
                // The file is the Sentinel's own: its folder goes with it.
                sentinel.dir = dir;
                return sentinel;
            }
            let ended = sentinel.child.as_mut().map(Child::try_wait);
            if !matches!(ended, Some(Ok(None))) {
                break;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
    }
    panic!("no sentinel starts");
}

fn free_port() -> u16 {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    free.local_addr().expect("a port").port()
}
