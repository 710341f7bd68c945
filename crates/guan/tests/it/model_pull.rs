//! `guan model pull|list|verify|rm` against a server that cuts, stalls, lies and redirects, and against a small
//! package index. Asserts what lies in the folder afterwards, what was asked of the server and what people are told.
#![cfg(test)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

mod hostile;
mod index;
mod server;

use server::{Reply, Server};

/// A folder of models and the command on it.
struct Bench {
    home: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self {
            home: tempfile::tempdir().unwrap(),
        }
    }

    fn dir(&self) -> PathBuf {
        self.home.path().join("models")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the test runs the program itself"
    )]
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_guan"));
        command.arg("model").args(args).arg("--to").arg(self.dir());
        // nothing of the machine's own settings
        command.env_clear().env("HOME", self.home.path());
        command
            .env("PIP_CONFIG_FILE", "/dev/null")
            .env("PIP_INDEX_URL", "http://127.0.0.1:1/");
        command
    }

    fn run(&self, args: &[&str]) -> Told {
        Told::from(self.command(args).output().unwrap())
    }

    fn pull(&self, args: &[&str]) -> Told {
        self.run(&[&["pull", "--stall-ms", "20000", "--pause-ms", "1"], args].concat())
    }

    /// All that lies in the folder, but for the lock.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.dir())
            .map(|all| {
                all.map(|e| e.unwrap().file_name().into_string().unwrap())
                    .collect()
            })
            .unwrap_or_default();
        names.retain(|n| n != ".lock");
        names.sort();
        names
    }
}

/// How a command ended.
#[derive(Debug)]
struct Told {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Told {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Told {
    #[track_caller]
    fn well(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// Ended with 1 and these words.
    #[track_caller]
    fn badly(self, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(1), "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "no {word:?} in {self:?}");
        }
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap()
    }
}

/// `len` bytes that begin as a GGUF file does and repeat nowhere.
fn gguf(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let noise = std::iter::repeat_with(move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    });
    b"GGUF".iter().copied().chain(noise).take(len).collect()
}

fn sha256(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_file_by_address_comes_whole_read_only_and_with_a_record() {
    let (bench, body) = (Bench::new(), gguf(300_000, 1));
    let served = body.clone();
    let server = Server::start(move |asked| Reply::ranged(asked, &served, "\"a\""));
    let told = bench
        .pull(&[&server.url("/m.gguf?token=s3cret"), "--json"])
        .well();

    assert_eq!(fs::read(bench.file("m.gguf")).unwrap(), body);
    assert_eq!(mode(&bench.file("m.gguf")), 0o444);
    assert_eq!(mode(&bench.dir()), 0o755);
    assert_eq!(bench.names(), ["m.gguf", "m.toml"]);
    let json = told.json();
    assert_eq!(json["digest_from"], "first-use");
    assert_eq!(json["files"][0]["sha256"], sha256(&body));
    assert_eq!(json["path"], bench.file("m.gguf").to_str().unwrap());
    let record = fs::read_to_string(bench.file("m.toml")).unwrap();
    assert!(
        !record.contains("s3cret") && !told.err.contains("s3cret"),
        "{record}{told:?}"
    );
}

#[test]
fn what_is_here_is_not_loaded_again_and_says_so() {
    let (bench, body) = (Bench::new(), gguf(1000, 2));
    let server = Server::start(move |asked| Reply::ranged(asked, &body, "\"a\""));
    bench.pull(&[&server.url("/m.gguf")]).well();
    let told = bench.pull(&[&server.url("/m.gguf")]).well();
    assert!(told.out.contains("here already"), "{told:?}");
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn a_file_that_somebody_else_put_there_is_left_alone() {
    let (bench, body) = (Bench::new(), gguf(1000, 3));
    let server = Server::start(move |asked| Reply::ranged(asked, &body, "\"a\""));
    fs::create_dir(bench.dir()).unwrap();
    fs::write(bench.file("m.gguf"), "mine").unwrap();
    bench
        .pull(&[&server.url("/m.gguf")])
        .badly(&["is there already", "guan model rm"]);
    assert_eq!(fs::read_to_string(bench.file("m.gguf")).unwrap(), "mine");
    assert!(server.asked().is_empty());
}

#[test]
fn all_shards_come_by_the_address_of_the_first() {
    let bench = Bench::new();
    let server = Server::start(|asked| {
        let seed = u64::from(asked.path.contains("00002-of"));
        Reply::ranged(asked, &gguf(5000, seed), "\"a\"")
    });
    let told = bench
        .pull(&[&server.url("/m-00001-of-00002.gguf"), "--json"])
        .well();
    assert_eq!(
        bench.names(),
        ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "m.toml"]
    );
    assert_eq!(
        fs::read(bench.file("m-00002-of-00002.gguf")).unwrap(),
        gguf(5000, 1)
    );
    assert!(
        told.json()["path"]
            .as_str()
            .unwrap()
            .ends_with("m-00001-of-00002.gguf")
    );
}

#[test]
fn verify_finds_a_changed_byte_and_rm_leaves_nothing() {
    let (bench, body) = (Bench::new(), gguf(70_000, 4));
    let served = body.clone();
    let server = Server::start(move |asked| Reply::ranged(asked, &served, "\"a\""));
    bench.pull(&[&server.url("/m.gguf")]).well();
    bench.run(&["verify"]).well();
    let list = bench.run(&["list", "--json"]).well().json();
    assert_eq!(list["models"][0]["name"], "m");
    assert!(
        list["known"]
            .as_array()
            .unwrap()
            .contains(&"qwen2.5-7b-instruct".into())
    );

    let mut damaged = body;
    damaged[60_000] ^= 1;
    fs::set_permissions(bench.file("m.gguf"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(bench.file("m.gguf"), damaged).unwrap();
    let told = bench.run(&["verify", "m"]).badly(&["m", "guan model rm"]);
    assert!(told.out.contains("BAD m.gguf"), "{told:?}");

    bench.run(&["rm", "m"]).well();
    assert!(bench.names().is_empty(), "{:?}", bench.names());
    bench.run(&["rm", "m"]).badly(&["guan model list"]);
    bench.run(&["rm", "../models"]).badly(&["no model named"]);
}

#[test]
fn an_unknown_name_says_which_are_known() {
    Bench::new()
        .pull(&["gpt-5"])
        .badly(&["qwen2.5-0.5b-instruct", "gemma-3-270m", "pull URL"]);
}

#[test]
fn a_password_in_an_address_is_refused_and_not_repeated() {
    let told = Bench::new()
        .pull(&["https://u:hunter2@127.0.0.1/m.gguf"])
        .badly(&["user name"]);
    assert!(!told.err.contains("hunter2"), "{told:?}");
}

#[test]
fn plain_http_to_another_machine_is_refused() {
    Bench::new()
        .pull(&["http://hub.invalid/m.gguf"])
        .badly(&["not HTTPS"]);
}
