//! `guan config check` and `guan config show`. They read and print; they change nothing. Called by `commands`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use control::seal::Kms;
use control::seal::pkcs11::Named;
use control::store::Target;
use gateway::settings::{Concurrency, OnRevoke};
use rules::policy::Models;

use super::{Failure, Places, say};
use crate::config::reference::Opener;
use crate::config::units::{write_duration, write_size};
use crate::config::{self, Config, Fsync, Glance, Place};
use crate::supervisor::unix_seconds;

mod identity;
mod limits;

/// Look at the config file.
#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what is wrong with the config file, line by line; exit code 1 if anything is
    Check {
        /// The file [default: the server's]
        file: Option<PathBuf>,
    },
    /// Print what the config file means, with every default and without secrets
    Show {
        /// The file [default: the server's]
        file: Option<PathBuf>,
    },
}

/// Does it.
///
/// # Errors
/// All that is wrong with the file.
pub(super) fn run(args: &ConfigArgs, places: &Places) -> Result<(), Failure> {
    match &args.command {
        Command::Check { file } => {
            let path = file.as_deref().unwrap_or(&places.config);
            let config = read(path, file.is_some(), places)?;
            let absent = config.absent_files();
            if !absent.is_empty() {
                return Err(Failure::new(absent.join("\n")));
            }
            say(&format!(
                "{}: good; {} and {}",
                path.display(),
                count(config.settings.models.len(), "model"),
                count(config.settings.roles.len(), "role")
            ))
        }
        Command::Show { file } => {
            let path = file.as_deref().unwrap_or(&places.config);
            say(render(&read(path, file.is_some(), places)?).trim_end())
        }
    }
}

/// What commands need of the server's config file.
///
/// # Errors
/// When it can't be read or its form is wrong.
pub(super) fn glance(places: &Places) -> Result<Glance, Failure> {
    let text = config::read_file(&places.config)?.unwrap_or_default();
    config::glance(&text, &places.config).map_err(|faults| Failure::new(faults.to_string()))
}

/// The same of another config file, which must be there.
///
/// # Errors
/// When it can't be read or its form is wrong.
pub(super) fn glance_at(path: &Path) -> Result<Glance, Failure> {
    let text = config::read_file(path)?;
    let text = text.ok_or_else(|| Failure::new(format!("{} isn't there", path.display())))?;
    config::glance(&text, path).map_err(|faults| Failure::new(faults.to_string()))
}

fn read(path: &Path, must_exist: bool, places: &Places) -> Result<Config, Failure> {
    let text = match config::read_file(path)? {
        Some(text) => text,
        None if must_exist => return Err(Failure::new(format!("{} isn't there", path.display()))),
        None => String::new(),
    };
    let place = Place {
        file: path,
        data: &places.data,
        env: &config::environment,
        // Whether they open is seen by the server, which has the key.
        opener: Opener::Nobody,
        now: unix_seconds(),
    };
    config::check(&text, &place).map_err(|faults| Failure::new(faults.to_string()))
}

fn count(n: usize, what: &str) -> String {
    if n == 1 {
        format!("1 {what}")
    } else {
        format!("{n} {what}s")
    }
}

/// The meaning as a file that means the same, with comments where a value has no key.
fn render(config: &Config) -> String {
    let mut out = String::new();
    let names = list(config.names.iter().map(String::as_str));
    let settings = &config.settings;
    let fsync = match config.audit.fsync {
        Fsync::Interval => "interval",
        Fsync::Each => "each",
    };
    let mut client_auth = String::new();
    identity::render_client_auth(&mut client_auth, config);
    let head = format!(
        "[server]\nlisten = {}\nnames = {names}\nmax_body = {}\nbody_budget = {}\ncommit_after = {}\ncomment_every = {}\ncors_origins = {}\non_revoke = \"{}\"\nfailed_credentials_per_minute = {}\n\n\
         [tls]\nmode = \"self-signed\"\n{client_auth}\n[admin]\nlisten = {}\n\n[store]\nurl = {}\nmax_stale = {}\n\n[audit]\nfsync = \"{fsync}\"\ncheckpoint_every = {}\nrotate_size = {}\nrotate_after = {}\ncompress = {}\n",
        text(&config.listen.to_string()),
        text(&write_size(settings.max_body)),
        text(&write_size(settings.body_budget)),
        text(&write_duration(settings.commit_after)),
        text(&write_duration(settings.comment_every)),
        list(settings.cors_origins.iter().map(String::as_str)),
        match settings.on_revoke {
            OnRevoke::Cut => "cut",
            OnRevoke::Finish => "finish",
        },
        settings.failed_credentials_per_minute,
        text(
            &config
                .admin
                .map_or_else(|| "off".to_owned(), |a| a.to_string())
        ),
        text(match &config.store {
            Target::Sqlite(_) => "sqlite:state/guan.db",
            Target::Postgres(server) => &server.url,
        }),
        text(&write_duration(settings.max_stale)),
        text(&write_duration(config.audit.checkpoint_every)),
        text(&write_size(config.audit.rotate.size)),
        text(&write_duration(config.audit.rotate.after)),
        config.audit.keeping.pack_after.is_some(),
    );
    out.push_str(&head);
    render_audit_and_metrics(&mut out, config);
    render_kms(&mut out, config);
    if let Some(mirror) = &config.mirror {
        write!(out, "\n[hub]\nmirror = {}\n", text(mirror)).ok();
    }
    for role in settings.roles.values() {
        let models = match &role.models {
            Models::All => "[\"*\"]".to_owned(),
            Models::Named(names) => list(names.iter().map(String::as_str)),
        };
        write!(
            out,
            "\n[roles.{}]\nmodels = {models}\nrequests_per_minute = {}\nmax_output_tokens = {}\nmax_choices = {}\nweight = {}\n",
            key(&role.name),
            role.requests_per_minute,
            role.max_output_tokens,
            role.max_choices,
            role.weight
        )
        .ok();
        if let Some(seconds) = role.rotate_after {
            writeln!(out, "rotate_after = \"{seconds}s\"").ok();
        }
        match role.concurrent_requests {
            Some(n) => writeln!(out, "concurrent_requests = {n}").ok(),
            None => writeln!(out, "# concurrent_requests: no limit").ok(),
        };
        limits::render_role(&mut out, role);
    }
    identity::render_identity(&mut out, config);
    limits::render(&mut out, config);
    for model in settings.models.values() {
        render_model(&mut out, model, config);
    }
    out
}

/// The end of `[audit]`, and `[metrics]`.
fn render_audit_and_metrics(out: &mut String, config: &Config) {
    match config.audit.keeping.remove_after {
        Some(after) => writeln!(out, "retention = {}", text(&write_duration(after))).ok(),
        None => writeln!(out, "# retention: for ever").ok(),
    };
    if let Some(address) = config.metrics {
        // A reader of this has the token's reference in the file itself; without one the table would mean nothing.
        writeln!(
            out,
            "\n[metrics]\n# listen = {}\n# token: set, not shown",
            text(&address.to_string())
        )
        .ok();
    }
}

fn render_kms(out: &mut String, config: &Config) {
    let kms = &config.kms;
    let mut keys = vec![("provider", kms.name())];
    let (url, module);
    let mut hidden: &[&str] = &[];
    let mut ca = None;
    match kms {
        Kms::File(_) => {}
        Kms::Vault(vault) => {
            url = vault.endpoint.url();
            ca = vault.endpoint.ca();
            keys.extend([
                ("address", url.as_str()),
                ("mount", &vault.mount),
                ("key", &vault.key),
            ]);
            keys.extend(vault.namespace.as_deref().map(|n| ("namespace", n)));
            hidden = &["token"];
        }
        Kms::Aws(aws) => {
            url = aws.endpoint.url();
            ca = aws.endpoint.ca();
            keys.extend([
                ("key_id", aws.key_id.as_str()),
                ("region", &aws.region),
                ("endpoint", &url),
            ]);
            hidden = &["access_key_id", "access_key_secret"];
        }
        Kms::Aliyun(aliyun) => {
            url = aliyun.endpoint.url();
            ca = aliyun.endpoint.ca();
            keys.extend([("key_id", aliyun.key_id.as_str()), ("endpoint", &url)]);
            hidden = &["access_key_id", "access_key_secret"];
        }
        Kms::Pkcs11(pkcs11) => {
            module = pkcs11.module.to_string_lossy();
            keys.push(("module", &module));
            keys.push(match &pkcs11.token {
                Named::Label(label) => ("token_label", label),
                Named::Number(serial) => ("token_serial", serial),
            });
            keys.push(match &pkcs11.key {
                Named::Label(label) => ("key", label),
                Named::Number(id) => ("key_id", id),
            });
            hidden = &["pin"];
        }
    }
    out.push_str("\n[kms]\n");
    for (name, value) in keys {
        writeln!(out, "{name} = {}", text(value)).ok();
    }
    if let Kms::Pkcs11(pkcs11) = kms {
        let names = list(pkcs11.environment.iter().map(String::as_str));
        writeln!(
            out,
            "network = {}\nmodule_environment = {names}",
            pkcs11.network
        )
        .ok();
    }
    let every = write_duration(config.kms_check_every);
    writeln!(out, "check_every = {}", text(&every)).ok();
    if let Some(ca) = ca {
        writeln!(out, "ca = {}", text(&ca.to_string_lossy())).ok();
    }
    for name in hidden {
        writeln!(out, "# {name}: set, not shown").ok();
    }
}

fn render_model(out: &mut String, model: &gateway::settings::Model, config: &Config) {
    let word = |value: serde_json::Result<String>| value.unwrap_or_default();
    write!(
        out,
        "\n[[models]]\nname = {}\naliases = {}\nkind = {}\nunknown_fields = {}\nupstream_name = {}\nowned_by = {}\n",
        text(&model.name),
        list(model.aliases.iter().map(String::as_str)),
        word(serde_json::to_string(&model.dialect)),
        word(serde_json::to_string(&model.unknown_fields)),
        text(&model.upstream_name),
        text(&model.owned_by),
    )
    .ok();
    if let Some(n) = model.max_output_tokens {
        writeln!(out, "max_output_tokens = {n}").ok();
    }
    writeln!(out, "queue = {}", model.queue).ok();
    let wait = text(&write_duration(model.queue_timeout));
    writeln!(out, "queue_timeout = {wait}").ok();
    limits::render_model(out, model);
    let t = model.timeouts;
    let spans = [
        ("connect", t.connect),
        ("first_byte", t.first_byte),
        ("idle", t.idle),
        ("total", t.total),
    ];
    let spans: Vec<String> = spans
        .iter()
        .map(|(name, span)| format!("{name} = {}", text(&write_duration(*span))))
        .collect();
    writeln!(out, "timeouts = {{ {} }}", spans.join(", ")).ok();
    for replica in &model.replicas {
        out.push_str("[[models.replicas]]\n");
        if let Some(engine) = replica
            .worker
            .as_ref()
            .and_then(|w| config.engines.iter().find(|e| e.name == *w))
        {
            writeln!(out, "engine = {}", text(&engine.file.to_string_lossy())).ok();
            let numbers = [
                ("context_tokens", engine.context_tokens),
                ("threads", engine.threads),
                ("parallel", engine.parallel),
            ];
            for (name, n) in numbers {
                if let Some(n) = n {
                    writeln!(out, "{name} = {n}").ok();
                }
            }
        } else {
            writeln!(
                out,
                "url = {}",
                text(&format!("{}{}", replica.name, replica.base_path))
            )
            .ok();
        }
        match replica.concurrency {
            Some(Concurrency::Fixed(n)) => writeln!(out, "concurrency = {n}").ok(),
            Some(Concurrency::Learned) => writeln!(out, "concurrency = \"auto\"").ok(),
            None => None,
        };
        if replica.key.is_some() {
            out.push_str("# key: set, not shown\n");
        }
    }
}

/// A TOML string: JSON's escapes are TOML's.
fn text(value: &str) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn list<'a>(values: impl Iterator<Item = &'a str>) -> String {
    format!("[{}]", values.map(text).collect::<Vec<_>>().join(", "))
}

/// A key, quoted when it must be.
fn key(name: &str) -> String {
    let plain = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    if plain { name.to_owned() } else { text(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_means_the_same_and_hides_the_key() {
        let written = "[server]\nlisten = \"[::1]:0\"\n[roles.\"a.b\"]\nrequests_per_minute = 3\nmax_output_tokens = 9\n\
            [[models]]\nname = \"m\"\n[[models.replicas]]\nurl = \"http://h/x/v1\"\nkey = \"env:K\"\n\
            [[models]]\nname = \"e\"\n[[models.replicas]]\nengine = \"e.gguf\"\nthreads = 2\n";
        let place = Place {
            file: Path::new("guan.toml"),
            data: Path::new("/data"),
            env: &|_| Some("sk-hunter2".to_owned()),
            opener: Opener::Nobody,
            now: 0,
        };
        let first = config::check(written, &place).unwrap();
        let shown = render(&first);
        assert!(!shown.contains("hunter2"), "{shown}");
        let second = config::check(&shown, &place).unwrap_or_else(|e| panic!("{e}\n{shown}"));
        assert_eq!(second.settings.roles, first.settings.roles);
        assert_eq!(second.engines, first.engines);
        assert_eq!(second.listen, first.listen);
        let ends = |c: &Config| {
            c.settings
                .models
                .values()
                .map(|m| (m.dialect, m.replicas[0].target.clone()))
                .collect::<Vec<_>>()
        };
        assert_eq!(ends(&second), ends(&first));
    }
}
