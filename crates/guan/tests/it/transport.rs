//! HTTP/2 as a common client speaks it, against the running binary.
#![cfg(test)]

use std::io::Write;
use std::process::{Command, Stdio};

use testkit::server::{Guan, in_front_of, read_file};
use testkit::upstream::Upstream;

use crate::guan;

const WHOLE: &str = r#"{"model":"u","choices":[{"index":0,"message":{"content":"ok"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":5}}"#;

/// `curl` with this body on its standard input: what it prints, and its exit code.
#[expect(
    clippy::disallowed_methods,
    reason = "the test is about what curl sees"
)]
fn curl(guan: &Guan, arguments: &[&str], body: &[u8]) -> (String, Option<i32>) {
    let address = read_file(&guan.data().join("state/run/address"));
    let port = address
        .trim()
        .rsplit(':')
        .next()
        .expect("a port")
        .to_owned();
    let mut child = Command::new("curl")
        .args(["-sS", "--max-time", "20", "--cacert"])
        .arg(guan.data().join("secrets/tls.crt"))
        .args([
            "-H",
            "Content-Type: application/json",
            "--data-binary",
            "@-",
        ])
        .args(arguments)
        .arg(format!("https://localhost:{port}/v1/chat/completions"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl is here: scripts/test installs it");
    let mut stdin = child.stdin.take().expect("a pipe");
    // An answer may come before all was sent.
    stdin.write_all(body).ok();
    drop(stdin);
    let output = child.wait_with_output().expect("curl ends");
    (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        output.status.code(),
    )
}

#[test]
fn an_early_refusal_reaches_the_client_whole_over_both_versions() {
    let upstream = Upstream::start(|_, answer| answer.json(200, WHOLE));
    let guan = Guan::start(guan(), &in_front_of(&upstream.url()));
    let key = format!(
        "Authorization: Bearer {}",
        read_file(&guan.data().join("secrets/first-key")).trim()
    );
    let large = vec![b'a'; 30 << 20];
    for version in ["--http1.1", "--http2"] {
        let wanted = |arguments: &[&str], body: &[u8]| {
            let arguments = [
                &[version, "-w", "\n%{http_code} %{http_version}"],
                arguments,
            ]
            .concat();
            let (text, code) = curl(&guan, &arguments, body);
            assert_eq!(code, Some(0), "{version}: {text}");
            text.rsplit('\n').next().unwrap_or_default().to_owned()
        };
        let number = if version == "--http2" { "2" } else { "1.1" };
        assert_eq!(wanted(&["-H", &key], &large), format!("413 {number}"));
        assert_eq!(
            wanted(&["-H", "Authorization: Bearer no"], &large),
            format!("401 {number}")
        );
        let chat = br#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
        assert_eq!(wanted(&["-H", &key], chat), format!("200 {number}"));
    }
    assert_eq!(upstream.received().len(), 2);
}
