//! House rules as tests: what a reader relies on and no compiler holds.
//!
//! Arrows between crates, where `unsafe` may stand, what a file looks like, and that the documents say what the
//! code says. It reads the tree and asks cargo; it changes nothing. Run with the other tests.

#![expect(
    clippy::expect_used,
    reason = "a broken tree is a failed test, and the message names the place"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Which of our crates each may depend on. `testkit` is for tests and the bench only, so nothing else may name it here.
const ARROWS: [(&str, &[&str]); 10] = [
    ("bench", &["testkit"]),
    ("control", &["rules"]),
    ("engine", &["sandbox", "wire"]),
    ("gateway", &["rules", "wire"]),
    ("guan", &["control", "gateway", "rules", "sandbox", "wire"]),
    ("pkcs11", &["sandbox", "wire"]),
    ("rules", &[]),
    ("sandbox", &[]),
    ("testkit", &["rules", "wire"]),
    ("wire", &[]),
];

/// Crates that make decisions or read formats have no way to reach the outside.
const PURE: [&str; 2] = ["rules", "wire"];
const OUTSIDE: [&str; 7] = ["hyper", "libc", "mio", "rustix", "socket2", "sqlx", "tokio"];

const MOST_LINES: usize = 700;

#[test]
fn arrows_between_crates_are_those_of_the_plan() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> = ARROWS
        .iter()
        .map(|(name, to)| (*name, to.iter().copied().collect()))
        .collect();
    let packages = packages();
    let names: BTreeSet<&str> = packages.iter().map(|p| text(p, "name")).collect();
    let planned: BTreeSet<&str> = allowed.keys().copied().collect();
    assert_eq!(
        names, planned,
        "a crate came or went: say its arrows in this test and in ARCHITECTURE.md"
    );
    for package in &packages {
        let name = text(package, "name");
        for dependency in list(package, "dependencies") {
            // Tests may look anywhere; `kind` is null for what is built in.
            if dependency.get("kind").and_then(Value::as_str) == Some("dev") {
                continue;
            }
            let to = text(dependency, "name");
            assert!(
                !names.contains(to) || allowed.get(name).is_some_and(|set| set.contains(to)),
                "{name} must not depend on {to}"
            );
        }
    }
}

#[test]
fn the_pure_crates_can_not_reach_the_outside() {
    for name in PURE {
        let listed = cargo(&[
            "tree",
            "--offline",
            "--locked",
            "-p",
            name,
            "-e",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ]);
        let closure: BTreeSet<&str> = listed
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert!(closure.contains(name), "cargo tree shows no {name}");
        for banned in OUTSIDE {
            assert!(
                !closure.contains(banned),
                "{name} must not have {banned} anywhere below it"
            );
        }
    }
}

#[test]
fn unsafe_code_stands_in_the_sandbox_only() {
    for package in packages() {
        let name = text(&package, "name");
        for target in list(&package, "targets") {
            let is_root = list(target, "kind")
                .iter()
                .any(|k| matches!(k.as_str(), Some("lib" | "bin")));
            let path = text(target, "src_path");
            if is_root && name != "sandbox" {
                let source = read(Path::new(path));
                assert!(
                    source.contains("#![forbid(unsafe_code)]"),
                    "{path} must say #![forbid(unsafe_code)]"
                );
            }
        }
    }
}

#[test]
fn a_new_refusal_can_not_hide_behind_a_wildcard() {
    let root = read(&top().join("crates/rules/src/lib.rs"));
    let refusal = read(&top().join("crates/rules/src/refusal.rs"));
    assert!(
        [root, refusal]
            .iter()
            .any(|source| source.contains("deny(clippy::wildcard_enum_match_arm)")),
        "rules must deny clippy::wildcard_enum_match_arm"
    );
}

#[test]
fn every_file_says_what_it_is_for_and_stays_readable() {
    let unfinished = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
    ];
    let mut faults = Vec::new();
    for path in sources() {
        let source = read(&path);
        let shown = path.display();
        if !source.starts_with("//! ") {
            faults.push(format!(
                "{shown}: the first line must be `//!` and say what the file is for"
            ));
        }
        if path.ends_with("mod.rs") {
            faults.push(format!("{shown}: modules are x.rs and x/…, not mod.rs"));
        }
        let lines = source.lines().count();
        if lines > MOST_LINES {
            faults.push(format!(
                "{shown}: {lines} lines; more than {MOST_LINES} are two rooms"
            ));
        }
        for (n, line) in source.lines().enumerate() {
            let words = line.split(|c: char| !c.is_alphanumeric());
            if let Some(word) = words.into_iter().find(|word| unfinished.contains(word)) {
                faults.push(format!(
                    "{shown}:{}: {word}; do it, or file an issue",
                    n + 1
                ));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_configuration_key_is_documented_and_no_other() {
    let source = read(&top().join("crates/guan/src/config/written.rs"));
    let keys: BTreeSet<&str> = source
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub(super) "))
        .filter_map(|field| field.split_once(": "))
        .map(|(name, _)| name)
        .collect();
    assert!(
        keys.contains("requests_per_minute"),
        "the fields of written.rs can't be read any more: mend this test"
    );
    let document = read(&top().join("docs/configuration.md"));
    for key in &keys {
        let ways = [
            format!("`{key}`"),
            format!("[{key}]"),
            format!("[{key}."),
            format!(".{key}]"),
        ];
        assert!(
            ways.iter().any(|way| document.contains(way)),
            "docs/configuration.md doesn't tell of {key}"
        );
    }
    for row in document.lines().filter_map(|line| line.strip_prefix("| `")) {
        let key = row.split('`').next().unwrap_or_default();
        let is_variable = key.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        assert!(
            is_variable || keys.contains(key),
            "docs/configuration.md tells of `{key}`, which written.rs doesn't know"
        );
    }
}

#[test]
fn every_code_and_word_of_a_refusal_is_documented() {
    let source = read(&top().join("crates/rules/src/refusal.rs"));
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    let document = read(&top().join("docs/errors.md"));
    let codes = source.split("Some(\"").skip(1);
    let words = source.split("=> \"").skip(1);
    let mut seen = 0;
    for quoted in codes.chain(words) {
        let word = quoted.split('"').next().unwrap_or_default();
        if !word.starts_with(|c: char| c.is_ascii_lowercase()) || word.contains(' ') {
            continue;
        }
        seen += 1;
        assert!(
            document.contains(&format!("`{word}`")),
            "docs/errors.md doesn't tell of {word}"
        );
    }
    assert!(
        seen > 30,
        "the words of refusal.rs can't be read any more: mend this test"
    );
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut faults = Vec::new();
    for path in documents() {
        let folder = path.parent().expect("a file lies in a folder");
        let source = read(&path);
        for link in source
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let target = link.split('#').next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !folder.join(target).exists() {
                faults.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(
        faults.is_empty(),
        "links to nothing:\n{}",
        faults.join("\n")
    );
}

#[test]
fn the_chinese_readme_says_the_same() {
    let [english, chinese] = ["README.md", "README.zh-CN.md"].map(|name| read(&top().join(name)));
    let headings = |text: &str| text.lines().filter(|line| line.starts_with("## ")).count();
    assert_eq!(
        headings(&english),
        headings(&chinese),
        "the two READMEs have different chapters"
    );
    let [english, chinese] = [&english, &chinese].map(|text| commands(text));
    assert_eq!(english, chinese, "the two READMEs show different commands");
}

/// What stands in fenced blocks, without comments: the same in every language.
fn commands(document: &str) -> Vec<&str> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in document.lines() {
        if line.starts_with("```") {
            inside = !inside;
        } else if inside {
            let line = line.split("  #").next().unwrap_or_default().trim_end();
            if !line.is_empty() && !line.starts_with('#') {
                found.push(line);
            }
        }
    }
    found
}

/// The top of the tree.
fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All Rust files of the workspace.
fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(&top().join("crates"), "rs", &mut found);
    walk(&top().join("bench"), "rs", &mut found);
    assert!(found.len() > 20, "the sources weren't found");
    found
}

/// All documents.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(&top().join("docs"), "md", &mut found);
    for entry in fs::read_dir(top()).expect("the top of the tree").flatten() {
        if entry.path().extension().is_some_and(|e| e == "md") {
            found.push(entry.path());
        }
    }
    found
}

fn walk(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder)
        .expect("a folder of the tree")
        .flatten()
    {
        let path = entry.path();
        if path.is_dir() {
            if !path.ends_with("target") && !path.ends_with("node_modules") {
                walk(&path, extension, found);
            }
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

fn read(path: &Path) -> String {
    let source = fs::read_to_string(path);
    assert!(source.is_ok(), "{}: {source:?}", path.display());
    source.unwrap_or_default()
}

/// Our crates, as cargo sees them.
fn packages() -> Vec<Value> {
    let said = cargo(&[
        "metadata",
        "--format-version",
        "1",
        "--no-deps",
        "--offline",
        "--locked",
    ]);
    let mut all: Value = serde_json::from_str(&said).expect("cargo metadata is JSON");
    let packages = all.get_mut("packages").map(Value::take);
    packages
        .and_then(|p| p.as_array().cloned())
        .expect("cargo metadata lists packages")
}

fn cargo(arguments: &[&str]) -> String {
    #[expect(
        clippy::disallowed_methods,
        reason = "a test asks cargo; nothing is served here"
    )]
    let mut command = Command::new(env!("CARGO"));
    let done = command
        .args(arguments)
        .current_dir(top())
        .output()
        .expect("cargo runs");
    assert!(
        done.status.success(),
        "cargo {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8_lossy(&done.stdout).into_owned()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value
        .get(key)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

/// A model that is asked for by name is never replaced by the package index's: a newcomer whose machine reaches no hub
/// gets an answer only from the pull without a name.
#[test]
fn the_start_script_pulls_no_model_by_name() {
    let script = fs::read_to_string(top().join("scripts/run")).unwrap();
    let pulls: Vec<_> = script
        .lines()
        .filter(|line| line.contains("model pull"))
        .collect();
    assert!(!pulls.is_empty());
    for line in pulls {
        assert!(line.contains("model pull --to"), "{line}");
    }
}
