//! A real `guan serve` on a free port with a data folder of its own, ended and removed with the test.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::authority::Identity;
use crate::client::{Client, Response};
use crate::upstream::PATIENCE;

/// A running server.
#[derive(Debug)]
pub struct Guan {
    binary: PathBuf,
    data: TempDir,
    child: Option<Child>,
    log: Receiver<String>,
    seen: Vec<String>,
    env: Vec<(String, PathBuf)>,
    /// What is logged; `None`: the default.
    level: Option<&'static str>,
    /// What shows that it is ready, where it asks for a certificate.
    known_as: Option<Identity>,
}

/// More in the environment, another level of the log, and what shows that it is ready.
type Circumstances<'a> = (
    &'a [(&'a str, PathBuf)],
    Option<&'static str>,
    Option<Identity>,
);

/// The config of one model `m` in front of an upstream, on a free port.
#[must_use]
pub fn in_front_of(url: &str) -> String {
    format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n\n[admin]\nlisten = \"127.0.0.1:0\"\n\n[[models]]\nname = \"m\"\n\n[[models.replicas]]\nurl = \"{url}\"\n"
    )
}

impl Guan {
    /// Starts `binary` with this `guan.toml` and waits until it answers.
    ///
    /// # Panics
    /// When it doesn't.
    #[must_use]
    pub fn start(binary: &Path, config: &str) -> Self {
        Self::start_with(binary, config, |_data| ())
    }

    /// The same, with something put into the data folder first.
    ///
    /// # Panics
    /// When it doesn't answer.
    #[must_use]
    pub fn start_with(binary: &Path, config: &str, prepare: impl FnOnce(&Path)) -> Self {
        Self::start_with_env(binary, config, &[], prepare)
    }

    /// The same as [`Self::start`], with another level of its log.
    ///
    /// # Panics
    /// When it doesn't answer.
    #[must_use]
    pub fn start_logging(binary: &Path, config: &str, level: &'static str) -> Self {
        Self::start_as(binary, config, (&[], Some(level), None), |_data| ())
    }

    /// The same as [`Self::start_with`], for a server that lets nobody in without a certificate.
    ///
    /// # Panics
    /// When it doesn't answer.
    #[must_use]
    pub fn start_for(
        binary: &Path,
        config: &str,
        identity: Identity,
        prepare: impl FnOnce(&Path),
    ) -> Self {
        Self::start_as(binary, config, (&[], None, Some(identity)), prepare)
    }

    /// The same, with more in the environment of it and of its commands.
    ///
    /// # Panics
    /// When it doesn't answer.
    #[must_use]
    pub fn start_with_env(
        binary: &Path,
        config: &str,
        env: &[(&str, PathBuf)],
        prepare: impl FnOnce(&Path),
    ) -> Self {
        Self::start_as(binary, config, (env, None, None), prepare)
    }

    fn start_as(
        binary: &Path,
        config: &str,
        (env, level, known_as): Circumstances<'_>,
        prepare: impl FnOnce(&Path),
    ) -> Self {
        let data = TempDir::new().expect("a folder for the test");
        std::fs::set_permissions(
            data.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o700),
        )
        .expect("the folder's mode");
        write_file(&data.path().join("guan.toml"), config);
        prepare(data.path());
        let mut guan = Self {
            binary: binary.to_owned(),
            data,
            child: None,
            log: channel().1,
            seen: Vec::new(),
            env: env
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
            level,
            known_as,
        };
        guan.serve();
        guan
    }

    /// Starts it again on the same data folder.
    ///
    /// # Panics
    /// When it doesn't answer.
    pub fn serve(&mut self) {
        let address = self.data.path().join("state/run/address");
        std::fs::remove_file(&address).ok();
        let mut child = self
            .command(&["serve"])
            .envs(self.level.map(|level| ("GUAN_LOG", level)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("guan starts");
        let stderr = child.stderr.take().expect("a pipe");
        let (line, log) = channel();
        std::thread::spawn(move || {
            for text in BufReader::new(stderr).lines().map_while(Result::ok) {
                if line.send(text).is_err() {
                    return;
                }
            }
        });
        self.child = Some(child);
        self.log = log;
        self.until("it is ready", |guan| {
            read_file(&address)
                .trim()
                .parse::<std::net::SocketAddr>()
                .is_ok()
                && guan.answers()
        });
    }

    /// Whether it is ready, as far as it lets anybody ask.
    fn answers(&self) -> bool {
        match &self.known_as {
            None => self.client().connect().is_ok() && self.client().get("/readyz").status == 200,
            Some(identity) => {
                let client = self.certified(identity);
                client.connect().is_ok() && client.get("/readyz").status == 200
            }
        }
    }

    /// A `guan` command on this data folder.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(&self.binary, self.data.path(), arguments);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// When it can't be started.
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("guan runs")
    }

    /// The data folder.
    #[must_use]
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// The process id of the supervisor.
    ///
    /// # Panics
    /// When it isn't running.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("guan runs").id()
    }

    /// The process id of the gateway.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn gateway_pid(&self) -> u32 {
        self.child_pid("gateway").expect("a gateway process")
    }

    /// The process id of the first of the supervisor's children whose command line has this word.
    #[must_use]
    pub fn child_pid(&self, word: &str) -> Option<u32> {
        let pid = self.pid();
        let path = format!("/proc/{pid}/task/{pid}/children");
        read_file(Path::new(&path))
            .split_whitespace()
            .filter_map(|child| child.parse().ok())
            .find(|child: &u32| {
                read_file(Path::new(&format!("/proc/{child}/cmdline"))).contains(word)
            })
    }

    /// A client without a key.
    #[must_use]
    pub fn client(&self) -> Client {
        let address = read_file(&self.data.path().join("state/run/address"));
        let address = address
            .trim()
            .parse()
            .expect("state/run/address holds an address");
        Client::new(address, &self.data.path().join("secrets/tls.crt"))
    }

    /// A client of the admin listener, without a credential.
    ///
    /// # Panics
    /// When it isn't open.
    #[must_use]
    pub fn admin_door(&self) -> Client {
        self.door("admin-address")
    }

    /// A client of the metrics listener, without a credential.
    ///
    /// # Panics
    /// When it isn't open.
    #[must_use]
    pub fn metrics_door(&self) -> Client {
        self.door("metrics-address")
    }

    fn door(&self, file: &str) -> Client {
        let address = read_file(&self.data.path().join("state/run").join(file));
        let address = address
            .trim()
            .parse()
            .unwrap_or_else(|_| panic!("state/run/{file} holds no address"));
        Client::new(address, &self.data.path().join("secrets/tls.crt"))
    }

    /// A client with a certificate and without a key.
    ///
    /// # Panics
    /// When the server has no address.
    #[must_use]
    pub fn certified(&self, identity: &Identity) -> Client {
        let address = self.client().address();
        Client::certified(address, &self.data.path().join("secrets/tls.crt"), identity)
    }

    /// A client with the first key, which is an admin's.
    #[must_use]
    pub fn admin(&self) -> Client {
        self.client()
            .with_key(read_file(&self.data.path().join("secrets/first-key")).trim())
    }

    /// Makes a key of a role.
    ///
    /// # Panics
    /// When the command fails.
    #[must_use]
    pub fn key(&self, role: &str) -> String {
        let made = self.run(&["key", "create", "--name", "test", "--role", role, "--json"]);
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let made: serde_json::Value = serde_json::from_slice(&made.stdout).expect("JSON");
        made["key"].as_str().expect("the key").to_owned()
    }

    /// A client with a new key of a role.
    #[must_use]
    pub fn caller(&self, role: &str) -> Client {
        self.client().with_key(&self.key(role))
    }

    /// All audit records, oldest chain first, as written.
    #[must_use]
    pub fn records(&self) -> Vec<serde_json::Value> {
        let folder =
            std::fs::read_dir(self.data.path().join("state/audit")).expect("the audit folder");
        let mut files: Vec<_> = folder.filter_map(|file| Some(file.ok()?.path())).collect();
        // `NODE-GENERATION.jsonl`, further parts `NODE-GENERATION.PART.jsonl`.
        files.sort_by_key(|path| {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
            let numbers: Vec<u64> = name
                .as_deref()
                .and_then(|name| name.split_once('-'))
                .map(|(_, rest)| rest.split('.').map_while(|n| n.parse().ok()).collect())
                .unwrap_or_default();
            numbers
        });
        files
            .iter()
            .flat_map(|file| {
                read_file(file)
                    .lines()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .filter_map(|line| serde_json::from_str(&line).ok())
            .collect()
    }

    /// The records of calls to models.
    #[must_use]
    pub fn calls(&self) -> Vec<serde_json::Value> {
        self.records()
            .into_iter()
            .filter(|r| r["event.action"] == "model-request")
            .collect()
    }

    /// Waits until there are so many records of calls, and gives them.
    ///
    /// # Panics
    /// When there aren't.
    pub fn wait_calls(&mut self, count: usize) -> Vec<serde_json::Value> {
        self.until(&format!("{count} calls are recorded"), |guan| {
            guan.calls().len() >= count
        });
        self.calls()
    }

    /// Waits until `condition` holds.
    ///
    /// # Panics
    /// When it doesn't, or when the server ended.
    pub fn until(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            let ended = self
                .child
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten());
            assert!(
                ended.is_none(),
                "guan ended before {what}: {ended:?}\n{}",
                self.log_text()
            );
            assert!(
                Instant::now() < deadline,
                "never: {what}\n{}",
                self.log_text()
            );
            pause();
        }
    }

    /// Waits for a line of the log that contains `text`.
    ///
    /// # Panics
    /// When it doesn't come.
    pub fn wait_log(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(line) = self.seen.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.log.recv_timeout(left) {
                Ok(line) => self.seen.push(line),
                Err(_) => panic!("the log never said {text:?}:\n{}", self.seen.join("\n")),
            }
        }
    }

    /// The log so far.
    pub fn log_text(&mut self) -> String {
        self.seen.extend(self.log.try_iter());
        self.seen.join("\n")
    }

    /// Sends a signal to a process by `kill`.
    ///
    /// # Panics
    /// When it can't.
    #[expect(
        clippy::disallowed_methods,
        reason = "a test sends signals as an operator does"
    )]
    pub fn signal(pid: u32, signal: &str) {
        let done = Command::new("kill")
            .args(["-s", signal, &pid.to_string()])
            .status();
        assert!(
            done.is_ok_and(|status| status.success()),
            "kill -s {signal} {pid}"
        );
    }

    /// Ends it as a power cut would: its supervisor by SIGKILL, and with it whatever that started.
    ///
    /// # Panics
    /// When it isn't running.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("guan runs");
        child.kill().expect("it can be killed");
        child.wait().expect("its status");
    }

    /// Ends it by SIGTERM and gives its exit code.
    ///
    /// # Panics
    /// When it doesn't end.
    pub fn stop(&mut self) -> Option<i32> {
        let mut child = self.child.take()?;
        Self::signal(child.id(), "TERM");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().expect("its status") {
                return status.code();
            }
            if Instant::now() > deadline {
                child.kill().ok();
                panic!("guan didn't stop:\n{}", self.log_text());
            }
            pause();
        }
    }
}

impl Drop for Guan {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // SIGTERM first: the supervisor ends its workers.
            Self::signal(child.id(), "TERM");
            let deadline = Instant::now() + PATIENCE;
            while Instant::now() < deadline {
                if child.try_wait().ok().flatten().is_some() {
                    return;
                }
                pause();
            }
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// A `guan` command on a data folder, with nothing of this environment that could change what it does.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "a test starts the program as a user does"
)]
pub fn command(binary: &Path, data: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary);
    command.args(arguments).arg("--data").arg(data);
    for variable in ["GUAN_DATA", "GUAN_CONFIG", "GUAN_LOG"] {
        command.env_remove(variable);
    }
    command
}

/// Sends one request to the admin socket.
///
/// # Panics
/// When there is no answer.
#[must_use]
pub fn over_socket(socket: &Path, request: &str) -> Response {
    use std::io::Write;
    let mut stream = std::os::unix::net::UnixStream::connect(socket).expect("the admin socket");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").expect("an answer with a head");
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .expect("a status");
    Response {
        status,
        headers: std::collections::BTreeMap::new(),
        body: body.as_bytes().to_vec(),
    }
}

/// Reads a file, empty when there is none.
#[must_use]
pub fn read_file(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Writes a file.
///
/// # Panics
/// When it can't.
pub fn write_file(path: &Path, text: &str) {
    std::fs::write(path, text).expect("the test's file is written");
}

#[expect(
    clippy::disallowed_methods,
    reason = "between two looks at a condition of another process"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}
