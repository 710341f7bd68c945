//! What `deploy/observability` has, against a real Prometheus that scrapes the running binary.
#![cfg(test)]

use std::path::{Path, PathBuf};

use serde_json::Value;
use testkit::prometheus::{Prometheus, Scrape, is_there, promtool};
use testkit::server::{Guan, in_front_of, read_file, write_file};
use testkit::upstream::Upstream;

use crate::guan;
use crate::secrets::good;

const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/observability")
}

#[test]
fn the_alerts_are_what_promtool_takes_and_fire_when_they_should() {
    if !is_there() {
        return;
    }
    let (rules, tests) = (
        deploy().join("guan.rules.yml"),
        deploy().join("guan.rules.test.yml"),
    );
    for words in [["check", "rules"], ["test", "rules"]] {
        let file = if words[0] == "check" { &rules } else { &tests };
        let (good, said) = promtool(&[words[0], words[1], &file.to_string_lossy()]).unwrap();
        assert!(good, "{said}");
    }
}

/// Every query of every panel.
fn panels() -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for file in std::fs::read_dir(deploy()).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|it| it != "json") {
            continue;
        }
        let board: Value = serde_json::from_str(&read_file(&path)).unwrap();
        for panel in board["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().unwrap() {
                let query = target["expr"].as_str().unwrap();
                let query = query
                    .replace("$__rate_interval", "1m")
                    .replace("$instance", ".*");
                let title = format!("{}: {}", board["title"], panel["title"]);
                queries.push((title, query));
            }
        }
    }
    assert!(queries.len() > 20);
    queries
}

#[test]
fn a_prometheus_scrapes_it_its_rules_evaluate_and_every_panel_has_data() {
    if !is_there() {
        return;
    }
    let upstream = Upstream::start(good);
    let config = format!(
        "{}concurrency = 4\n[metrics]\nlisten = \"127.0.0.1:0\"\ntoken = \"file:secrets/metrics-token\"\n[roles.user]\nrequests_per_minute = 5\nrotate_after = \"90d\"\n",
        in_front_of(&upstream.url())
    );
    let guan = Guan::start_with(guan(), &config, |data| {
        std::fs::create_dir_all(data.join("secrets")).unwrap();
        write_file(
            &data.join("secrets/metrics-token"),
            "a-collector-of-figures-1",
        );
    });
    let (key, other) = (guan.key("user"), guan.key("user"));
    let traffic = || {
        let caller = guan.client().with_key(&key);
        assert!(matches!(caller.chat(CHAT).status, 200 | 429));
        assert_eq!(guan.client().chat(CHAT).status, 401);
        let unknown = r#"{"model":"x","messages":[{"role":"user","content":"hi"}]}"#;
        assert!(matches!(
            guan.client().with_key(&other).chat(unknown).status,
            404 | 429
        ));
    };
    for _ in 0..8 {
        traffic();
    }
    let address = read_file(&guan.data().join("state/run/metrics-address"));
    let prometheus = Prometheus::start(&Scrape {
        target: address.trim(),
        token: &guan.data().join("secrets/metrics-token"),
        ca: &guan.data().join("secrets/tls.crt"),
        rules: &deploy().join("guan.rules.yml"),
    });
    let until = |what: &str, condition: &dyn Fn() -> bool| {
        let end = std::time::Instant::now() + testkit::upstream::PATIENCE;
        while !condition() {
            assert!(std::time::Instant::now() < end, "{what}");
            traffic();
        }
    };
    until("it is scraped", &|| {
        let up = prometheus.query("up{job=\"guan\"}");
        up.first().is_some_and(|sample| sample["value"][1] == "1")
    });
    for (title, query) in panels() {
        until(&format!("{title} has data: {query}"), &|| {
            !prometheus.query(&query).is_empty()
        });
    }
    until("the rules were evaluated", &|| {
        let (_, body) = prometheus.get("/api/v1/rules");
        let said: Value = serde_json::from_str(&body).unwrap();
        let rules = said["data"]["groups"][0]["rules"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        rules.len() > 15 && rules.iter().all(|rule| rule["health"] == "ok")
    });
    // Nothing is wrong, so nothing that says so burns.
    let (_, body) = prometheus.get("/api/v1/alerts");
    let said: Value = serde_json::from_str(&body).unwrap();
    let burning = said["data"]["alerts"].as_array().unwrap();
    assert!(
        burning
            .iter()
            .all(|it| it["labels"]["severity"] != "critical"),
        "{body}"
    );
}
