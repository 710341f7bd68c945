//! Golden pairs of written and meant, and the exact words of each refusal.

use std::path::{Path, PathBuf};
use std::time::Duration;

use control::seal::Kms;
use gateway::settings::Target;
use rules::policy::Models;
use wire::openai::{Dialect, UnknownFields};

use super::*;

pub(super) fn read_with(
    text: &str,
    data: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, String> {
    let place = Place {
        file: Path::new("guan.toml"),
        data,
        env,
        opener: reference::Opener::Nobody,
        now: 7,
    };
    check(text, &place).map_err(|faults| faults.to_string())
}

pub(super) fn read(text: &str) -> Result<Config, String> {
    read_with(text, Path::new("/data"), &|_| None)
}

/// Every line of what a bad file is answered with.
fn refused(text: &str) -> Vec<String> {
    let faults = read(text).expect_err("this file was taken for good");
    faults.lines().map(str::to_owned).collect()
}

#[test]
fn an_empty_file_means_the_defaults() {
    let config = read("").unwrap();
    assert_eq!(config.listen.to_string(), "0.0.0.0:8443");
    assert_eq!(config.admin.unwrap().to_string(), "127.0.0.1:8444");
    assert_eq!(config.settings.max_body, 8 << 20);
    assert_eq!(config.settings.body_budget, 256 << 20);
    assert_eq!(config.settings.commit_after, Duration::from_secs(10));
    assert_eq!(config.settings.roles, rules::policy::Role::defaults());
    assert!(config.settings.models.is_empty() && config.engines.is_empty());
    assert_eq!(config.audit.fsync, Fsync::Interval);
    assert_eq!(config.mirror, None);
}

#[test]
fn the_admin_api_never_faces_a_network() {
    let admin = |listen: &str| read(&format!("[admin]\nlisten = \"{listen}\"\n"));
    assert_eq!(admin("off").unwrap().admin, None);
    assert_eq!(admin("[::1]:0").unwrap().admin.unwrap().port(), 0);
    for (listen, word) in [
        ("0.0.0.0:8444", "this machine alone"),
        ("[::]:8444", "this machine alone"),
        ("192.0.2.1:8444", "this machine alone"),
        ("127.0.0.1:8443", "another port than listen in [server]"),
        ("localhost:1", "must be an IP address and a port"),
        ("", "must be an IP address and a port"),
    ] {
        let said = admin(listen).unwrap_err();
        assert!(
            said.contains("guan.toml:2: listen in [admin]") && said.contains(word),
            "{said}"
        );
    }
}

const FULL: &str = r#"
[server]
listen = "[::1]:0"
names = ["llm.corp.example", "10.1.2.3"]
max_body = "1 MiB"
body_budget = 8_388_608
commit_after = "2s"
[tls]
mode = "self-signed"
[store]
url = "sqlite:state/guan.db"
[audit]
fsync = "each"
[hub]
mirror = "https://hub.corp.example/"
[roles.user]
requests_per_minute = 20
[roles.guest]
models = ["big"]
requests_per_minute = 1
max_output_tokens = 64
concurrent_requests = 1
max_choices = 1
[[models]]
name = "big"
aliases = ["gpt-4o"]
kind = "vllm"
unknown_fields = "refuse"
upstream_name = "Qwen/Qwen2.5-7B-Instruct"
context_tokens = 131_072
max_output_tokens = 4096
owned_by = "corp"
timeouts = { connect = "1s", idle = "30s" }
[[models.replicas]]
url = "http://10.0.0.11:8000/v1"
key = "env:VLLM_KEY"
[[models.replicas]]
url = "https://10.0.0.12/openai/v1"
ca = "secrets/ca.pem"
[[models]]
name = "org/tiny"
[[models.replicas]]
engine = "tiny.gguf"
context_tokens = 2048
threads = 2
parallel = 4
"#;

fn full() -> Config {
    let env = |name: &str| (name == "VLLM_KEY").then(|| "sk-hunter2\n".to_owned());
    read_with(FULL, Path::new("/data"), &env).unwrap()
}

#[test]
fn a_full_file_means_what_it_says() {
    let config = full();
    assert_eq!(config.listen.to_string(), "[::1]:0");
    assert_eq!(config.names, ["llm.corp.example", "10.1.2.3"]);
    assert_eq!(
        (config.settings.max_body, config.settings.body_budget),
        (1 << 20, 8 << 20)
    );
    assert_eq!(config.audit.fsync, Fsync::Each);
    assert_eq!(config.mirror.as_deref(), Some("https://hub.corp.example"));
    assert_eq!(config.environment.iter().collect::<Vec<_>>(), ["VLLM_KEY"]);

    let user = &config.settings.roles["user"];
    assert_eq!(
        (user.requests_per_minute, user.max_output_tokens),
        (20, 2048)
    );
    assert_eq!(user.concurrent_requests, Some(4));
    let guest = &config.settings.roles["guest"];
    assert_eq!(guest.models, Models::Named(vec!["big".to_owned()].into()));
    assert_eq!((guest.concurrent_requests, guest.max_choices), (Some(1), 1));
}

#[test]
fn models_mean_what_the_full_file_says() {
    let config = full();
    let big = &config.settings.models["big"];
    assert_eq!(
        (big.dialect, big.unknown_fields),
        (Dialect::Vllm, UnknownFields::Refuse)
    );
    assert_eq!(big.upstream_name, "Qwen/Qwen2.5-7B-Instruct");
    assert_eq!((big.owned_by.as_str(), big.created), ("corp", 7));
    assert_eq!(big.timeouts.connect, Duration::from_secs(1));
    assert_eq!(big.timeouts.total, Duration::from_secs(3600));
    let [first, second] = &big.replicas[..] else {
        panic!("{:?}", big.replicas)
    };
    assert_eq!(first.name, "http://10.0.0.11:8000");
    assert!(first.key.is_some() && first.base_path.is_empty());
    assert_eq!(second.base_path, "/openai");
    let Target::Https { ca, .. } = &second.target else {
        panic!("{second:?}")
    };
    assert_eq!(ca.as_deref(), Some(Path::new("/data/secrets/ca.pem")));
    assert!(!format!("{config:?}").contains("hunter2"));

    let tiny = &config.settings.models["org/tiny"];
    assert_eq!(tiny.dialect, Dialect::Guan);
    assert_eq!(tiny.replicas[0].worker.as_deref(), Some("org/tiny"));
    assert_eq!(tiny.replicas[0].name, "engine:org/tiny");
    let [engine] = &config.engines[..] else {
        panic!("{:?}", config.engines)
    };
    assert_eq!(engine.file, PathBuf::from("/data/models/tiny.gguf"));
    assert_eq!(tiny.replicas[0].target, Target::Unix(engine.socket.clone()));
    assert_eq!(
        (engine.context_tokens, engine.threads, engine.parallel),
        (Some(2048), Some(2), Some(4))
    );
}

#[test]
fn an_absolute_engine_path_stays_and_a_model_gives_its_context() {
    let text = "[[models]]\nname = \"m\"\ncontext_tokens = 512\n[[models.replicas]]\nengine = \"/w/m.gguf\"";
    let config = read(text).unwrap();
    assert_eq!(config.engines[0].file, PathBuf::from("/w/m.gguf"));
    assert_eq!(config.engines[0].context_tokens, Some(512));
    assert_eq!(
        config.engines[0].socket,
        PathBuf::from("/data/state/run/engine-m.sock")
    );
}

#[test]
fn a15_a_misspelt_limit_names_the_right_key() {
    assert_eq!(
        refused("[roles.basic]\nmax_output_tokens = 5\nrequest_per_minute = 10\n"),
        [
            "guan.toml:3: unknown key \"request_per_minute\" in [roles.basic]; did you mean \"requests_per_minute\"?"
        ]
    );
    assert_eq!(
        refused("roles = { basic = { request_per_minute = 10 } }\n"),
        [
            "guan.toml:1: unknown key \"request_per_minute\" in [roles.basic]; did you mean \"requests_per_minute\"?"
        ]
    );
}

#[test]
fn a15_a_limit_in_words_is_refused() {
    assert_eq!(
        refused("[roles.basic]\nrequests_per_minute = \"ten\"\n"),
        ["guan.toml:2: requests_per_minute in [roles.basic] must be a whole number, not a text"]
    );
    assert_eq!(
        refused("[roles.basic]\nrequests_per_minute = 1.5\n"),
        [
            "guan.toml:2: requests_per_minute in [roles.basic] must be a whole number, not floating point `1.5`"
        ]
    );
}

#[test]
fn a15_a_negative_limit_is_refused() {
    assert_eq!(
        refused("[roles.user]\nrequests_per_minute = -1\n"),
        [
            "guan.toml:2: requests_per_minute in [roles.user] must be a whole number from 1 to 1000000, not -1"
        ]
    );
}

#[test]
fn a15_zero_is_refused_and_never_unlimited() {
    assert_eq!(
        refused("[roles.user]\nrequests_per_minute = 0\nmax_output_tokens = 0\n"),
        [
            "guan.toml:2: requests_per_minute in [roles.user] can't be 0; a role that may call nothing has models = []",
            "guan.toml:3: max_output_tokens in [roles.user] must be a whole number from 1 to 16777216, not 0",
        ]
    );
}

#[test]
fn a15_the_same_role_twice_is_refused() {
    assert_eq!(
        refused("[roles.basic]\nmax_choices = 1\n[roles.basic]\nmax_choices = 2\n"),
        ["guan.toml:3: \"basic\" is written twice; keep one"]
    );
    assert_eq!(
        refused("[roles.user]\nmax_choices = 1\nmax_choices = 2\n"),
        ["guan.toml:3: \"max_choices\" is written twice; keep one"]
    );
}

#[test]
fn a15_an_unknown_table_is_refused() {
    assert_eq!(
        refused("[server]\n\n[rolse.user]\nmax_choices = 1\n"),
        ["guan.toml:3: unknown table [rolse]; did you mean [roles]?"]
    );
    assert_eq!(
        refused("[logging]\nlevel = \"debug\"\n"),
        [
            "guan.toml:1: unknown table [logging]; known are server, tls, admin, metrics, store, kms, audit, hub, limits, prices, roles, issuers, client_certificates, models"
        ]
    );
}

#[test]
fn all_faults_of_values_come_at_once_each_with_its_line() {
    let text = r#"
[server]
listen = "localhost:8443"
max_body = "1GiB"
[roles.guest]
models = ["bgi"]
[[models]]
name = "big"
kind = "vlm"
[[models.replicas]]
url = "http://root:hunter2@h:8000"
[[models]]
name = "big"
replicas = []
"#;
    assert_eq!(
        refused(text),
        [
            "guan.toml:3: listen in [server] must be an IP address and a port, such as \"0.0.0.0:8443\" or \"[::]:8443\"",
            "guan.toml:4: max_body in [server] must be from 1KiB to 256MiB, not 1GiB",
            "guan.toml:5: requests_per_minute in [roles.guest] is missing; write how many calls a minute each key may make",
            "guan.toml:5: max_output_tokens in [roles.guest] is missing; write how long an answer may be",
            "guan.toml:6: models in [roles.guest] names \"bgi\", which no [[models]] has as its name; did you mean \"big\"?",
            "guan.toml:9: kind in [[models]] must be one of \"guan\", \"vllm\", \"sglang\", \"llama-server\", \"openai\"; did you mean \"vllm\"?",
            "guan.toml:11: url in [[models.replicas]] holds a user or a password; give the key as key = \"file:…\" instead",
            "guan.toml:12: model \"big\" has no [[models.replicas]]; add one with url = \"http://…\" or engine = \"FILE.gguf\"",
            "guan.toml:13: two models are called \"big\"; names and aliases must differ",
        ]
    );
}

#[test]
fn a_password_stands_nowhere_but_in_its_reference() {
    let table = [
        (
            "[store]\nurl = \"postgres://h/d\"",
            "guan.toml:2: url in [store] must name user and database: \"postgres://USER@HOST:PORT/DATABASE\"",
        ),
        (
            "[store]\nurl = \"postgres://u:hunter2@h/d\"",
            "guan.toml:2: url in [store] holds a password; take it out and say password = \"file:secrets/store-password\"",
        ),
        (
            "[store]\nurl = \"postgres://u@h/d?password=hunter2\"",
            "guan.toml:2: url in [store] holds a password; take it out and say password = \"file:secrets/store-password\"",
        ),
        (
            "[store]\npassword = \"file:x\"",
            "guan.toml:2: password in [store] is for PostgreSQL; SQLite has none",
        ),
    ];
    for (text, said) in table {
        assert_eq!(refused(text), [said], "{text}");
    }
}

#[test]
fn each_bad_value_is_refused_in_its_own_words() {
    let table = [
        (
            "[server",
            "guan.toml:1: this isn't TOML: unclosed table, expected `]`",
        ),
        (
            "x = 1",
            "guan.toml:1: unknown key \"x\"; known are server, tls, admin, metrics, store, kms, audit, hub, limits, prices, roles, issuers, client_certificates, models",
        ),
        (
            "server = 5",
            "guan.toml:1: server must be a table, not integer `5`",
        ),
        (
            "[server]\nnames = \"a\"",
            "guan.toml:2: names in [server] must be a list, not a text",
        ),
        (
            "[server]\nnames = [\"a b\"]",
            "guan.toml:2: names in [server] holds \"a b\", which is no host name and no IP address",
        ),
        (
            "[server]\ncommit_after = 10",
            "guan.toml:2: commit_after in [server] must be a duration with its unit such as \"10s\" or \"500ms\", not integer `10`",
        ),
        (
            "[server]\nmax_body = \"8 megs\"",
            "guan.toml:2: max_body in [server] must be a number of bytes or a text such as \"8MiB\", not a text",
        ),
        (
            "[server]\nbody_budget = \"16MiB\"",
            "guan.toml:2: body_budget in [server] must be at least four times max_body (32MiB), since one caller gets a quarter of it",
        ),
        (
            "[tls]\nmode = \"acme\"",
            "guan.toml:2: mode in [tls] can only be \"self-signed\"",
        ),
        (
            "[store]\nurl = \"mysql://h\"",
            "guan.toml:2: url in [store] must be \"sqlite:state/guan.db\" or \"postgres://USER@HOST:PORT/DATABASE\"",
        ),
        (
            "[audit]\nfsync = \"eech\"",
            "guan.toml:2: fsync in [audit] must be one of \"interval\", \"each\"; did you mean \"each\"?",
        ),
        (
            "[roles.\"a b\"]\nrequests_per_minute = 1\nmax_output_tokens = 1",
            "guan.toml:1: a role can't be called \"a b\": letters, digits, \".\", \"_\" and \"-\" only, at most 64",
        ),
        (
            "[[models]]",
            "guan.toml:1: name in [[models]] is missing; write the name that callers use",
        ),
        (
            "[[models]]\nname = \"a b\"\nreplicas = [{ url = \"http://h\" }]",
            "guan.toml:2: a model can't be called \"a b\": letters, digits and \"._-:/@+\" only, at most 128",
        ),
        (
            "[[models]]\nname = \"m\"\ntimeout = \"1s\"",
            "guan.toml:3: unknown key \"timeout\" in [[models]]; did you mean \"timeouts\"?",
        ),
    ];
    for (text, said) in table {
        assert_eq!(refused(text), [said], "{text}");
    }
}

#[test]
fn each_bad_replica_is_refused_in_its_own_words() {
    let replica = "[[models]]\nname = \"m\"\n[[models.replicas]]\n";
    let replicas = [
        ("", "guan.toml:3: a replica has either url or engine"),
        (
            "url = \"http://h\"\nengine = \"m.gguf\"",
            "guan.toml:3: a replica has either url or engine",
        ),
        (
            "engine = \"../m.gguf\"",
            "guan.toml:4: engine in [[models.replicas]] must name a file in models/ or be an absolute path, without \"..\"",
        ),
        (
            "engine = \"m.gguf\"\nkey = \"env:K\"",
            "guan.toml:5: key in [[models.replicas]] is for a url; leave it out next to engine",
        ),
        (
            "url = \"http://h\"\nthreads = 2",
            "guan.toml:5: threads in [[models.replicas]] is for an engine; leave it out next to url",
        ),
        (
            "url = \"http://h\"\nca = \"ca.pem\"",
            "guan.toml:5: ca in [[models.replicas]] is for an https url; leave it out",
        ),
        (
            "url = \"http://h?x=1\"",
            "guan.toml:4: url in [[models.replicas]] holds a query or a fragment; leave it out",
        ),
        (
            "url = \"http://h\"\nkey = \"env:GONE\"",
            "guan.toml:5: key in [[models.replicas]] names the environment variable GONE, which isn't set",
        ),
    ];
    for (text, said) in replicas {
        assert_eq!(refused(&format!("{replica}{text}")), [said], "{text}");
    }
}

#[test]
fn a_secret_in_the_wrong_place_is_never_repeated() {
    let replica = "[[models]]\nname = \"m\"\n[[models.replicas]]\nurl = \"http://h\"\n";
    for line in [
        "key = \"sk-hunter2\"",
        "key = sk-hunter2",
        "threads = \"sk-hunter2\"",
        "key = [\"sk-hunter2\"]",
        "key = { value = \"sk-hunter2\" }",
        "url = \"sk-hunter2\"",
    ] {
        let said = refused(&format!("{replica}{line}\n")).join("\n");
        assert!(!said.contains("hunter2"), "{said}");
    }
    let said = refused(&format!("{replica}key = \"sk-hunter2\"\n"));
    assert!(
        said[0].contains("must be a reference, not the key itself"),
        "{said:?}"
    );
}

#[test]
fn a_blank_or_missing_secret_is_an_error() {
    let data = tempfile::tempdir().unwrap();
    let text =
        "[[models]]\nname = \"m\"\n[[models.replicas]]\nurl = \"http://h\"\nkey = \"file:key\"\n";
    let said = read_with(text, data.path(), &|_| None).unwrap_err();
    assert!(
        said.starts_with("guan.toml:5: key in [[models.replicas]] names "),
        "{said}"
    );
    std::fs::write(data.path().join("key"), " \n").unwrap();
    let said = read_with(text, data.path(), &|_| None).unwrap_err();
    assert!(said.ends_with("which is blank"), "{said}");
    std::fs::write(data.path().join("key"), "a b\n").unwrap();
    assert!(
        read_with(text, data.path(), &|_| None)
            .unwrap_err()
            .contains("blanks or characters")
    );
    std::fs::write(data.path().join("key"), "good\n").unwrap();
    assert!(read_with(text, data.path(), &|_| None).is_ok());
    let said = read_with(&text.replace("file:key", "env:EMPTY"), data.path(), &|_| {
        Some(String::new())
    });
    assert!(
        said.unwrap_err()
            .ends_with("the environment variable EMPTY, which is blank")
    );
}

#[test]
fn sockets_are_short_and_differ_for_names_that_look_alike() {
    let long = "x".repeat(60);
    let text: String = ["a/b", "a-b", "a+b", &long]
        .iter()
        .map(|n| format!("[[models]]\nname = \"{n}\"\nreplicas = [{{ engine = \"m.gguf\" }}]\n"))
        .collect();
    let engines = read(&text).unwrap().engines;
    let names: std::collections::BTreeSet<_> = engines
        .iter()
        .map(|e| e.socket.file_name().unwrap().to_owned())
        .collect();
    assert_eq!(names.len(), 4);
    assert!(names.iter().all(|n| n.len() <= 64), "{names:?}");
}

#[test]
fn each_provider_of_kms_means_what_it_says() {
    let env = |name: &str| Some(format!("hunter2-of-{name}"));
    let read = |text: &str| read_with(text, Path::new("/data"), &env).unwrap();
    assert_eq!(read("").kms, Kms::in_folder(Path::new("/data")));
    let vault = read(
        "[kms]\nprovider = \"vault\"\naddress = \"https://vault.corp.example:8200\"\nkey = \"guan\"\n",
    );
    let Kms::Vault(settings) = &vault.kms else {
        panic!("{:?}", vault.kms)
    };
    assert_eq!(
        (settings.mount.as_str(), settings.endpoint.url().as_str()),
        ("transit", "https://vault.corp.example:8200")
    );
    assert!(vault.environment.contains("VAULT_TOKEN"));
    let aws = read(
        "[kms]\nprovider = \"aws\"\nregion = \"eu-central-1\"\nkey_id = \"alias/guan\"\naccess_key_secret = \"env:S\"\n",
    );
    let Kms::Aws(settings) = &aws.kms else {
        panic!("{:?}", aws.kms)
    };
    assert_eq!(
        settings.endpoint.url(),
        "https://kms.eu-central-1.amazonaws.com"
    );
    let variables: Vec<_> = aws.environment.iter().collect();
    assert_eq!(variables, ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "S"]);
    let aliyun =
        read("[kms]\nprovider = \"aliyun\"\nregion = \"cn-hangzhou\"\nkey_id = \"key-hzz1\"\n");
    let Kms::Aliyun(settings) = &aliyun.kms else {
        panic!("{:?}", aliyun.kms)
    };
    assert_eq!(
        settings.endpoint.url(),
        "https://kms.cn-hangzhou.aliyuncs.com"
    );
    assert!(!format!("{vault:?}{aws:?}{aliyun:?}").contains("hunter2"));
}

#[test]
fn each_bad_value_of_kms_is_refused_in_its_own_words() {
    let table = [
        (
            "provider = \"valt\"",
            "2: provider in [kms] must be one of \"file\", \"vault\", \"aws\", \"aliyun\", \"pkcs11\"; did you mean \"vault\"?",
        ),
        (
            "address = \"https://h\"",
            "2: address in [kms] is nothing that provider \"file\" knows; leave it out",
        ),
        (
            "provider = \"vault\"\nkey = \"k\"",
            "1: address in [kms] is missing; this provider needs it",
        ),
        (
            "provider = \"vault\"\nkey = \"k\"\naddress = \"http://10.0.0.1:8200\"\ntoken = \"env:T\"",
            "4: address in [kms] must begin with https://: plain HTTP goes to this machine only",
        ),
        (
            "provider = \"vault\"\nkey = \"../sys\"\naddress = \"https://h\"",
            "3: key in [kms] must be the name of a Transit key: letters, digits, \".\", \"_\" and \"-\"",
        ),
        (
            "provider = \"vault\"\nkey = \"k\"\naddress = \"https://h\"\ntoken = \"hvs.hunter2\"",
            "5: token in [kms] must be a reference, not the key itself: write the key into a file that only this user can read and say \"file:secrets/upstream-key\", say \"env:NAME\", or seal it with `guan secret seal`",
        ),
        (
            "provider = \"vault\"\nkey = \"k\"\naddress = \"https://h\"",
            "1: token in [kms] names the environment variable VAULT_TOKEN, which isn't set; set it, or say token = \"file:…\"",
        ),
        (
            "provider = \"vault\"\nkey = \"k\"\naddress = \"https://h\"\nca = \"gone.pem\"",
            "5: ca in [kms] names /data/gone.pem, which isn't there",
        ),
        (
            "provider = \"aws\"\nkey_id = \"k\"\nregion = \"EU west\"",
            "4: region in [kms] must be a region's name, such as \"eu-central-1\" or \"cn-hangzhou\"",
        ),
        (
            "provider = \"aws\"\nkey_id = \"a b\"\nregion = \"eu-west-1\"",
            "3: key_id in [kms] must be a key's id, its ARN, or \"alias/NAME\"",
        ),
        (
            "provider = \"aliyun\"\nkey_id = \"k\"",
            "1: region in [kms] is missing; this provider needs it",
        ),
        (
            "provider = \"aliyun\"\nkey_id = \"k\"\nregion = \"cn-hangzhou\"\ntoken = \"env:T\"",
            "5: token in [kms] is nothing that provider \"aliyun\" knows; leave it out",
        ),
        (
            "provider = \"pkcs11\"\nmodule = \"p11.so\"\ntoken_label = \"t\"\nkey = \"k\"\npin = \"env:T\"",
            "3: module in [kms] must be the module's whole path, such as \"/usr/lib/softhsm/libsofthsm2.so\"",
        ),
        (
            "provider = \"pkcs11\"\nmodule = \"/p11.so\"\nkey = \"k\"\npin = \"env:T\"",
            "1: token_label in [kms] is missing; name the token by it, or by token_serial",
        ),
        (
            "provider = \"pkcs11\"\nmodule = \"/p11.so\"\ntoken_serial = \"1\"\nkey_id = \"0x1\"\npin = \"env:T\"",
            "5: key_id in [kms] must be the key's id in hex, such as \"01a2\"",
        ),
        (
            "provider = \"pkcs11\"\nmodule = \"/p11.so\"\ntoken_serial = \"1\"\nkey = \"k\"\npin = \"hunter2\"",
            "6: pin in [kms] must be a reference, not the key itself: write the key into a file that only this user can read and say \"file:secrets/upstream-key\", say \"env:NAME\", or seal it with `guan secret seal`",
        ),
        (
            "provider = \"vault\"\nnetwork = true",
            "3: network in [kms] is nothing that provider \"vault\" knows; leave it out",
        ),
        (
            "provider = \"pkcs11\"\nmodule = \"/p11.so\"\ntoken_label = \"t\"\nkey = \"k\"\npin = \"env:T\"\nmodule_environment = [\"LD_PRELOAD\"]",
            "7: module_environment in [kms] must be names of variables, such as \"SOFTHSM2_CONF\", none of them LD_…",
        ),
    ];
    for (text, said) in table {
        let refused = refused(&format!("[kms]\n{text}\n"));
        assert_eq!(refused, [format!("guan.toml:{said}")], "{text}");
        assert!(!refused[0].contains("hunter2"));
    }
}

#[test]
fn a_sealed_value_stands_where_a_key_does_and_not_where_it_opens_itself() {
    let value = format!("sealed:{}", "Ag".repeat(40));
    let replica = "[[models]]\nname = \"m\"\n[[models.replicas]]\nurl = \"http://h\"\n";
    let config = read(&format!("{replica}key = \"{value}\"\n")).unwrap();
    assert_eq!(config.sealed.len(), 1);
    assert_eq!(
        refused(&format!("{replica}key = \"sealed:hunter2\"\n")),
        [
            "guan.toml:5: key in [[models.replicas]] holds no sealed value; make one with `guan secret seal`"
        ]
    );
    let early = "can't be sealed: it is needed before anything sealed can be opened; say \"file:…\" or \"env:NAME\"";
    assert_eq!(
        refused(&format!(
            "[store]\nurl = \"postgres://u@h/d\"\npassword = \"{value}\"\n"
        )),
        [format!("guan.toml:3: password in [store] {early}")]
    );
    assert_eq!(
        refused(&format!(
            "[kms]\nprovider = \"vault\"\nkey = \"k\"\naddress = \"https://h\"\ntoken = \"{value}\"\n"
        )),
        [format!("guan.toml:5: token in [kms] {early}")]
    );
}

#[test]
fn a_model_whose_places_are_counted_in_two_ways_is_refused() {
    let replicas = |one: &str, two: &str| {
        format!(
            "[[models]]\nname = \"m\"\n[[models.replicas]]\nurl = \"http://a\"\n{one}\n[[models.replicas]]\nurl = \"http://b\"\n{two}\n"
        )
    };
    let said = refused(&replicas("concurrency = 4", "concurrency = \"auto\""));
    assert!(said[0].contains("write one or the other"), "{said:?}");
    for both in ["concurrency = 4", "concurrency = \"auto\""] {
        assert!(read(&replicas(both, both)).is_ok());
    }
}
