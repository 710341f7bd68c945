//! The metrics door of the running binary: who may look, and what is seen.
#![cfg(test)]

use std::path::Path;

use testkit::server::{Guan, in_front_of, read_file, write_file};
use testkit::upstream::Upstream;

use crate::guan;
use crate::secrets::sealed;

const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
const WHOLE: &str = r#"{"id":"c","object":"chat.completion","created":1,"model":"u","choices":[{"index":0,"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8}}"#;
const TOKEN: &str = "a-collector-of-figures-1";
const DOOR: &str = "[metrics]\nlisten = \"127.0.0.1:0\"\ntoken = \"file:secrets/metrics-token\"\n";

fn start(more: &str) -> (Upstream, Guan) {
    let upstream = Upstream::start(|_, answer| answer.json(200, WHOLE));
    let config = format!("{}\n{more}", in_front_of(&upstream.url()));
    let guan = Guan::start_with(guan(), &config, give_token(TOKEN));
    (upstream, guan)
}

fn give_token(token: &str) -> impl FnOnce(&Path) {
    move |data| {
        std::fs::create_dir_all(data.join("secrets")).unwrap();
        write_file(&data.join("secrets/metrics-token"), token);
    }
}

fn has(text: &str, line: &str) -> bool {
    text.lines().any(|it| it == line)
}

#[test]
fn only_its_own_token_opens_the_metrics_door() {
    let (_upstream, guan) = start(DOOR);
    let made = guan.run(&[
        "admin", "create", "--json", "--name", "n", "--right", "owner",
    ]);
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    let door = guan.metrics_door();
    let model_key = guan.key("admin");
    for shown in [
        &model_key,
        made["token"].as_str().unwrap(),
        TOKEN.strip_suffix('1').unwrap(),
        &format!("{TOKEN}1"),
        "",
    ] {
        let said = door.with_key(shown).get("/metrics");
        assert_eq!(said.status, 401, "{shown}");
        assert_eq!(said.headers["www-authenticate"], "Bearer");
        assert_eq!(said.json()["error"]["code"], "invalid_metrics_token");
    }
    // Whether something is there is told to nobody else.
    for path in ["/metrics", "/", "/admin/v1/keys", "/v1/models"] {
        assert_eq!(door.get(path).status, 401, "{path}");
    }
    let known = door.with_key(TOKEN);
    for path in ["/", "/metrics/", "/admin/v1/keys", "/v1/models", "/debug"] {
        assert_eq!(known.get(path).status, 404, "{path}");
    }
    let posted = known.send("POST", "/metrics", "", Some("{}"));
    assert_eq!((posted.status, &*posted.headers["allow"]), (405, "GET"));
    let shown = known.get("/metrics");
    assert_eq!(shown.status, 200);
    assert!(shown.headers["content-type"].starts_with("application/openmetrics-text"));
    assert!(
        has(
            &shown.text(),
            "guan_refusals_total{reason=\"metrics-token\"} 9"
        ),
        "{}",
        shown.text()
    );
    // Nor does it open anything else.
    assert_eq!(guan.client().with_key(TOKEN).get("/v1/models").status, 401);
    assert_eq!(
        guan.admin_door().with_key(TOKEN).get("/admin/v1/me").status,
        401
    );
}

#[test]
fn what_is_shown_is_what_happened() {
    let (_upstream, mut guan) = start(&format!("{DOOR}[roles.user]\nrotate_after = \"90d\"\n"));
    let key = guan.key("user");
    let caller = guan.client().with_key(&key);
    assert_eq!(caller.chat(CHAT).status, 200);
    assert_eq!(caller.chat(CHAT).status, 200);
    assert_eq!(
        caller
            .chat(r#"{"model":"x","messages":[{"role":"user","content":"hi"}]}"#)
            .status,
        404
    );
    assert_eq!(guan.client().chat(CHAT).status, 401);
    let _records = guan.wait_calls(3);
    let door = guan.metrics_door().with_key(TOKEN);
    // The count of the store is made beside the start.
    guan.until("the keys that are due are counted", |_| {
        has(
            &door.get("/metrics").text(),
            "guan_keys_rotation_due{role=\"user\"} 0",
        )
    });
    let text = door.get("/metrics").text();
    for line in [
        r#"guan_calls_total{endpoint="/v1/chat/completions",model="m",ending="finished"} 2"#,
        r#"guan_refusals_total{reason="model-unknown"} 1"#,
        r#"guan_refusals_total{reason="no-credential"} 1"#,
        r#"guan_tokens_total{model="m",direction="input",source="reported"} 6"#,
        r#"guan_tokens_total{model="m",direction="output",source="reported"} 10"#,
        r#"gen_ai_server_request_duration_seconds_count{gen_ai_request_model="m"} 2"#,
        "guan_sealing_reachable 1",
        "guan_audit_healthy 1",
        "guan_config_stale 0",
        "guan_draining 0",
        "guan_in_flight 0",
    ] {
        assert!(has(&text, line), "{line}\n{text}");
    }
    let ends = text
        .lines()
        .find_map(|line| line.strip_prefix("guan_certificate_not_after_timestamp_seconds "));
    let days = (ends.unwrap().parse::<i64>().unwrap() - now()) / 86_400;
    assert!((395..=397).contains(&days), "{days}");
    assert!(text.ends_with("# EOF\n"));
    // Labels are words of the code and the config, nothing of a caller.
    let id = key
        .trim_start_matches("sk-guan-")
        .split('_')
        .next()
        .unwrap();
    assert!(!text.contains(id) && !text.contains(TOKEN), "{text}");
}

fn now() -> i64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

#[test]
fn a_changed_token_holds_after_a_reload_and_one_that_is_gone_needs_a_restart() {
    let (_upstream, mut guan) = start(DOOR);
    let door = guan.metrics_door();
    let status = |token: &str| door.with_key(token).get("/metrics").status;
    assert_eq!(status(TOKEN), 200);
    write_file(
        &guan.data().join("secrets/metrics-token"),
        "another-collector-of-figures",
    );
    Guan::signal(guan.pid(), "HUP");
    guan.until("the new token holds", |_| {
        status("another-collector-of-figures") == 200
    });
    assert_eq!(status(TOKEN), 401);
    let config = guan.data().join("guan.toml");
    write_file(&config, &read_file(&config).replace(DOOR, ""));
    let said = guan.wait_log("restart `guan serve`");
    assert!(said.contains("[metrics]"), "{said}");
    // What is in force stays so, and says so.
    let text = door
        .with_key("another-collector-of-figures")
        .get("/metrics")
        .text();
    assert!(has(&text, "guan_config_stale 1"), "{text}");
}

#[test]
fn nobody_collects_without_a_token() {
    let (_upstream, guan) = start("");
    assert!(!guan.data().join("state/run/metrics-address").exists());
    let config = guan.data().join("guan.toml");
    for (written, said) in [
        (
            "[metrics]\nlisten = \"127.0.0.1:0\"\n",
            "token in [metrics] is missing",
        ),
        (
            "[metrics]\ntoken = \"a-token-as-such-is-refused\"\n",
            "must be a reference",
        ),
        (
            "[metrics]\nlisten = \"x\"\ntoken = \"file:secrets/metrics-token\"\n",
            "must be an IP address and a port",
        ),
        ("[metrics]\ntoken = \"file:secrets/short\"\n", "too short"),
    ] {
        write_file(&guan.data().join("secrets/short"), "fifteen-letters");
        let text = read_file(&config);
        let other = guan.data().join("other.toml");
        write_file(&other, &format!("{text}{written}"));
        let done = guan.run(&["config", "check", "--config", &other.to_string_lossy()]);
        let errors = String::from_utf8_lossy(&done.stderr);
        assert!(
            !done.status.success() && errors.contains(said),
            "{written}: {errors}"
        );
        assert!(!errors.contains("fifteen-letters") && !errors.contains("a-token-as-such"));
    }
}

#[test]
fn a_sealed_token_opens_it_too() {
    let (_upstream, mut guan) = start("");
    let sealed = sealed(&guan, TOKEN);
    let config = guan.data().join("guan.toml");
    let text = read_file(&config);
    assert_eq!(guan.stop(), Some(0));
    write_file(
        &config,
        &format!("{text}[metrics]\nlisten = \"127.0.0.1:0\"\ntoken = \"{sealed}\"\n"),
    );
    guan.serve();
    let door = guan.metrics_door();
    assert_eq!(door.get("/metrics").status, 401);
    assert_eq!(door.with_key("").get("/metrics").status, 401);
    assert_eq!(door.with_key(TOKEN).get("/metrics").status, 200);
}
