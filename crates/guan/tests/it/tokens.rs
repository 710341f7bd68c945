//! A data key in a real PKCS#11 token (`SoftHSM`), by the running binary and its `guan-pkcs11`.
#![cfg(test)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use testkit::server::{Guan, command, in_front_of, write_file};
use testkit::token::{PIN, SoftHsm};
use testkit::upstream::Upstream;

use crate::guan;
use crate::secrets::{CHAT, errors, good, is_below, seal, sealed, status};

/// `[kms]` for a key of the token, with the PIN in a file of the data folder.
fn kms(module: &Path, token: &str, key: &str) -> String {
    format!(
        "[kms]\nprovider = \"pkcs11\"\nmodule = \"{}\"\ntoken_label = \"{token}\"\nkey = \"{key}\"\npin = \"file:pin\"\n\
         module_environment = [\"SOFTHSM2_CONF\"]\ncheck_every = \"1s\"\n",
        module.display()
    )
}

fn environment(hsm: &SoftHsm) -> [(&'static str, PathBuf); 1] {
    [("SOFTHSM2_CONF", hsm.config())]
}

fn pin(data: &Path, text: &str) {
    write_file(&data.join("pin"), text);
}

/// A start on an empty data folder that must fail, and leaves nothing behind.
fn failed_start(program: &Path, hsm: &SoftHsm, kms: &str, pin_text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    pin(folder.path(), pin_text);
    let config = format!("{kms}{}", in_front_of("http://127.0.0.1:9"));
    write_file(&folder.path().join("guan.toml"), &config);
    let done: Output = command(program, folder.path(), &["serve"])
        .env("SOFTHSM2_CONF", hsm.config())
        .output()
        .unwrap();
    assert!(!folder.path().join("state/ready").exists(), "{done:?}");
    let said = errors(&done);
    assert!(
        !said.contains(PIN) && !said.contains("wrong-hunter2"),
        "{said}"
    );
    said
}

#[test]
fn a_token_wraps_the_data_key_from_the_first_start_on() {
    let (hsm, upstream) = (SoftHsm::make(), Upstream::start(good));
    let config = format!(
        "{}{}",
        kms(hsm.module(), "guan", "kek"),
        in_front_of(&upstream.url())
    );
    let mut running =
        Guan::start_with_env(guan(), &config, &environment(&hsm), |data| pin(data, PIN));
    assert!(!running.data().join("secrets/kek").exists());
    assert_eq!(running.caller("user").chat(CHAT).status, 200);
    let kept = status(&running);
    assert_eq!(
        (&kept["provider"], &kept["key_id"], &kept["reachable"]),
        (&"pkcs11".into(), &"guan/kek".into(), &true.into()),
        "{kept}"
    );
    let value = sealed(&running, "sk-upstream-hunter2");
    let helper = running.child_pid("pkcs11").unwrap();
    for file in ["cmdline", "environ"] {
        let seen = std::fs::read(format!("/proc/{helper}/{file}")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&seen).contains(PIN), "{file}");
    }
    let line = running.wait_log("guan-pkcs11: for the token");
    assert!(
        line.contains("no exec") && line.contains("no new privileges"),
        "{line}"
    );
    assert_eq!(running.stop(), Some(0));
    assert!(!running.log_text().contains(PIN));
    assert!(!is_below(&running.data().join("state"), PIN));
    assert!(!running.data().join("state/run/pkcs11.sock").exists());

    // While nobody serves a command starts a program of its own.
    assert_ne!(sealed(&running, "sk-upstream-hunter2"), value);
    assert_eq!(status(&running)["reachable"], true);
    let config = format!("{config}key = \"{value}\"\n");
    write_file(&running.data().join("guan.toml"), &config);
    running.serve();
    assert_eq!(running.caller("user").chat(CHAT).status, 200);
    let received = upstream.received();
    let sent = received.last().unwrap().header("authorization");
    assert_eq!(sent, ["Bearer sk-upstream-hunter2"]);
    assert_eq!(running.stop(), Some(0));

    // Another key of the same token opens nothing, and says so.
    let other = config.replace("key = \"kek\"", "key = \"other\"");
    write_file(&running.data().join("guan.toml"), &other);
    let said = errors(&running.run(&["serve"]));
    assert!(
        said.contains("guan/kek") && said.contains("guan/other"),
        "{said}"
    );
}

#[test]
fn a_program_that_dies_or_hangs_leaves_traffic_alone_and_comes_back() {
    let (hsm, upstream) = (SoftHsm::make(), Upstream::start(good));
    let config = format!(
        "{}{}",
        kms(hsm.module(), "guan", "kek"),
        in_front_of(&upstream.url())
    );
    let mut running =
        Guan::start_with_env(guan(), &config, &environment(&hsm), |data| pin(data, PIN));
    let caller = running.caller("user");
    let first = running.child_pid("pkcs11").unwrap();
    Guan::signal(first, "KILL");
    assert_eq!(caller.chat(CHAT).status, 200);
    running.wait_log("guan-pkcs11 died");
    running.wait_log("guan-pkcs11 is started again");
    let _value = sealed(&running, "after-death");
    let second = running.child_pid("pkcs11").unwrap();
    assert_ne!(first, second);

    // Stopped in its tracks it is away within its deadline, and back as soon as it goes on.
    Guan::signal(second, "STOP");
    let said = errors(&seal(&running, "meanwhile"));
    assert!(said.contains("gave no answer"), "{said}");
    running.wait_log("can't be opened any more");
    assert_eq!(status(&running)["reachable"], false);
    assert_eq!(caller.chat(CHAT).status, 200);
    Guan::signal(second, "CONT");
    running.wait_log("opens the data key again");
    let _value = sealed(&running, "after-silence");
    assert_eq!(running.stop(), Some(0));
}

#[test]
fn a_data_key_moves_from_a_file_to_a_token_and_back_while_it_serves() {
    let (hsm, upstream) = (SoftHsm::make(), Upstream::start(good));
    let plain = in_front_of(&upstream.url());
    let mut running = Guan::start_with_env(guan(), &plain, &environment(&hsm), |_data| ());
    let (file, kek) = (
        running.data().join("guan.toml"),
        running.data().join("secrets/kek"),
    );
    let caller = running.caller("user");
    assert!(running.child_pid("pkcs11").is_none());

    // With a wrong PIN nothing changes, and it is tried once only: a token locks itself.
    pin(running.data(), "wrong-hunter2");
    write_file(
        &file,
        &format!("{}{plain}", kms(hsm.module(), "guan", "kek")),
    );
    running.wait_log("is in force");
    let said = errors(&running.run(&["secret", "rewrap"]));
    assert!(
        said.contains("PinIncorrect") && said.contains("isn't tried again"),
        "{said}"
    );
    assert!(!said.contains("wrong-hunter2"), "{said}");
    pin(running.data(), PIN);
    Guan::signal(running.pid(), "HUP");
    running.until("the right PIN is taken", |guan| {
        guan.run(&["secret", "rewrap"]).status.success()
    });
    assert_eq!(status(&running)["provider"], "pkcs11");
    std::fs::remove_file(&kek).unwrap();
    assert_eq!(caller.chat(CHAT).status, 200);
    assert_eq!(running.stop(), Some(0));
    running.serve();
    assert_eq!(running.caller("user").chat(CHAT).status, 200);

    write_file(&file, &plain);
    running.until("the program is no longer needed", |guan| {
        guan.child_pid("pkcs11").is_none()
    });
    let done = running.run(&["secret", "rewrap"]);
    assert!(done.status.success() && kek.exists(), "{done:?}");
    assert_eq!(running.stop(), Some(0));
    running.serve();
    assert_eq!(running.caller("user").chat(CHAT).status, 200);
    assert!(!running.log_text().contains("hunter2"));
}

#[test]
fn what_is_missing_or_wrong_is_said_and_nothing_is_left_behind() {
    let hsm = SoftHsm::make();
    let module = hsm.module();
    let good = kms(module, "guan", "kek");
    let said = failed_start(guan(), &hsm, &good, "wrong-hunter2");
    assert!(said.contains("PinIncorrect"), "{said}");
    let said = failed_start(guan(), &hsm, &kms(module, "nobody", "kek"), PIN);
    assert!(said.contains("no token of that name"), "{said}");
    let said = failed_start(guan(), &hsm, &kms(module, "guan", "nothing"), PIN);
    assert!(said.contains("no AES key of that name"), "{said}");
    let said = failed_start(
        guan(),
        &hsm,
        &kms(Path::new("/nowhere/p11.so"), "guan", "kek"),
        PIN,
    );
    assert!(said.contains("can't be loaded"), "{said}");

    // A module that never answers.
    let folder = tempfile::tempdir().unwrap();
    let (source, hangs) = (
        folder.path().join("hangs.c"),
        folder.path().join("hangs.so"),
    );
    write_file(
        &source,
        "#include <unistd.h>\nint C_GetFunctionList(void **list) { (void)list; for (;;) pause(); }\n",
    );
    #[expect(clippy::disallowed_methods, reason = "makes a module for this test")]
    let made = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&hangs, &source])
        .status()
        .unwrap();
    assert!(made.success());
    let said = failed_start(guan(), &hsm, &kms(&hangs, "guan", "kek"), PIN);
    assert!(said.contains("gave no answer in 5 s"), "{said}");

    // As in an image without the dynamic program.
    let alone = folder.path().join("guan");
    std::fs::copy(guan(), &alone).unwrap();
    let said = failed_start(&alone, &hsm, &good, PIN);
    assert!(
        said.contains("guan-pkcs11, which loads PKCS#11 modules, is missing"),
        "{said}"
    );
}
