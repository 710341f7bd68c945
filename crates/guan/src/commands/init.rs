//! `guan init`: makes the data folder and its first key, and writes a `guan.toml` with one model.
//!
//! It decides the model's name and kind and how the first key is shown; it overwrites nothing. Called by
//! `commands`, and by the supervisor as a child on the first start.

use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use control::bootstrap::{self, BootstrapFault, FirstStart};

use super::{Failure, Places, config, describe, probe, remark, say};
use crate::config::{is_model_name, parse_upstream, reference};
use crate::folder::{Folder, Held};

/// Make the data folder.
#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// Serve this GGUF file
    #[arg(long, value_name = "FILE", conflicts_with = "upstream")]
    model: Option<PathBuf>,
    #[arg(
        long,
        value_name = "URL",
        help = "Stand in front of this server: http://HOST:PORT, https://HOST, unix:/PATH"
    )]
    upstream: Option<String>,
    /// The model's public name; with --upstream and several models there, the one to serve
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[arg(
        long,
        value_name = "REFERENCE",
        requires = "upstream",
        help = "Where the upstream's own key lies: file:PATH or env:NAME, never the key itself"
    )]
    upstream_key: Option<String>,
    /// The supervisor holds the lock
    #[arg(long, hide = true)]
    held: bool,
}

/// Does it.
///
/// # Errors
/// When the folder is in use or can't be made, or there is a config file already.
pub(super) fn run(args: &InitArgs, places: &Places) -> Result<(), Failure> {
    let folder = Folder::open(&places.data)?;
    let _lock = if args.held {
        None
    } else {
        Some(lock(&folder)?)
    };
    let written = match (&args.model, &args.upstream) {
        (Some(_), _) | (_, Some(_)) if places.config.exists() => {
            return Err(Failure::new(format!(
                "{} is there already and stays as it is; add a [[models]] table to it, or move it away",
                places.config.display()
            )));
        }
        (Some(file), _) => Some(for_file(&folder, file, args.name.as_deref())?),
        (None, Some(url)) => Some(for_upstream(&folder, url, args)?),
        (None, None) => None,
    };
    if bootstrap::is_ready(folder.path()) {
        if written.is_none() && !args.held {
            say(&format!(
                "{} is ready already; type `guan serve`",
                folder.path().display()
            ))?;
        }
    } else {
        first_start(&folder, places)?;
    }
    if let Some(text) = written {
        write_config(&places.config, &text)?;
        remark(&format!("wrote {}", places.config.display()));
    }
    Ok(())
}

fn lock(folder: &Folder) -> Result<crate::folder::Lock, Failure> {
    folder.lock()?.map_err(|Held { .. }| {
        Failure::new(format!(
            "{} is in use by a running guan and made already; nothing was changed",
            folder.path().display()
        ))
    })
}

/// Certificate, secrets, database, first key; shows the key once.
fn first_start(folder: &Folder, places: &Places) -> Result<(), Failure> {
    let glance = config::glance(places)?;
    let target = glance.store(folder.path()).map_err(Failure::new)?;
    let kms = glance.kms(folder.path()).map_err(Failure::new)?;
    let runtime = super::key::runtime()?;
    let clock = control::clock::system();
    let made = runtime.block_on(bootstrap::init(
        folder.path(),
        &glance.names,
        &target,
        &kms,
        &clock,
    ));
    match made {
        Ok(first) => show(folder, &first),
        // The folder is whole: serving goes on, and the text says how to get a key.
        Err(fault @ (BootstrapFault::KeyNeverShown | BootstrapFault::Joined(_))) => {
            remark(&format!("guan: {fault}"));
            Ok(())
        }
        Err(fault) => Err(Failure::new(fault.to_string())),
    }
}

/// On a terminal the key is shown; a log file is no place for it.
fn show(folder: &Folder, first: &FirstStart) -> Result<(), Failure> {
    remark(&format!(
        "made {}; certificate SHA-256 {}",
        folder.path().display(),
        first.fingerprint
    ));
    if io::stdout().is_terminal() {
        return say(&format!(
            "\nYour first key, role admin. It is shown this once and kept nowhere:\n\n    {}\n",
            *first.key
        ));
    }
    let path = bootstrap::write_first_key(&folder.path().join("secrets"), &first.key)
        .map_err(|fault| Failure::new(fault.to_string()))?;
    remark(&format!(
        "the first key (role admin) is in {}; read it, then remove the file",
        path.display()
    ));
    Ok(())
}

/// A config for a GGUF file.
fn for_file(folder: &Folder, file: &Path, name: Option<&str>) -> Result<String, Failure> {
    let full = file
        .canonicalize()
        .map_err(|e| Failure::new(format!("the model {} can't be read: {e}", file.display())))?;
    let description = describe::describe(&full)?;
    let name = match name {
        Some(name) => checked(name)?,
        None => describe::name_of(&description, &full),
    };
    // A file in models/ moves with the folder, so it is named without it.
    let inside = folder
        .models()
        .canonicalize()
        .ok()
        .filter(|models| full.parent() == Some(models.as_path()));
    let shown = match (inside, full.file_name()) {
        (Some(_), Some(name)) => PathBuf::from(name),
        _ => full.clone(),
    };
    let shown = shown
        .to_str()
        .ok_or_else(|| Failure::new(format!("{}: a model's path must be UTF-8", full.display())))?;
    remark(&format!(
        "model {name}: {} parameters, licence {}",
        description.parameters,
        description
            .licence
            .as_deref()
            .unwrap_or("not named in the file")
    ));
    Ok(document(
        &name,
        &[],
        &format!("engine = {}\n", quote(shown)),
    ))
}

/// A config for somebody else's server.
fn for_upstream(folder: &Folder, url: &str, args: &InitArgs) -> Result<String, Failure> {
    let upstream = parse_upstream(url).map_err(|why| Failure::new(format!("--upstream {why}")))?;
    let named = args.name.as_deref();
    let mut replica = format!(
        "url = {}\n",
        quote(&format!("{}{}", upstream.name, upstream.base_path))
    );
    let mut key = None;
    if let Some(text) = &args.upstream_key {
        let at = |why: String| Failure::new(format!("--upstream-key {why}"));
        let read = reference::parse(text).map_err(at)?;
        key = Some(
            reference::resolve_plain(&read, folder.path(), &crate::config::environment)
                .map_err(at)?,
        );
        replica.push_str(&format!("key = {}\n", quote(text)));
    }
    if matches!(upstream.target, gateway::settings::Target::Https { .. })
        && let Some(name) = named
    {
        let id = checked(name)?;
        return Ok(document(&id, &[("kind", quote("openai"))], &replica));
    }
    let found = probe::ask(&upstream, key.as_ref().map(|k| k.as_str()))?;
    let model = chosen(&found, named)?;
    let name = match named {
        Some(name) => checked(name)?,
        None => public_name(&model.id),
    };
    let mut keys = vec![("kind", quote(found.kind))];
    if name != model.id {
        keys.push(("upstream_name", quote(&model.id)));
    }
    if let Some(n) = model
        .context_tokens
        .filter(|n| (64..=16_777_216).contains(n))
    {
        keys.push(("context_tokens", n.to_string()));
    }
    remark(&format!(
        "{} serves {} ({})",
        upstream.name, model.id, found.kind
    ));
    Ok(document(&name, &keys, &replica))
}

/// The model to serve: the only one, or the one that was named.
fn chosen<'f>(found: &'f probe::Found, named: Option<&str>) -> Result<&'f probe::Model, Failure> {
    if let Some(model) = named.and_then(|name| found.models.iter().find(|m| m.id == name)) {
        return Ok(model);
    }
    match &found.models[..] {
        [one] => Ok(one),
        [] => Err(Failure::new(
            "the upstream serves no model; load one there first",
        )),
        several => {
            let ids: Vec<&str> = several.iter().map(|m| m.id.as_str()).collect();
            Err(Failure::new(format!(
                "the upstream serves several models; choose one with --name: {}",
                ids.join(", ")
            )))
        }
    }
}

/// The upstream's id where it can be a name here, else its last part cleaned.
fn public_name(id: &str) -> String {
    if is_model_name(id) && !id.starts_with('/') {
        return id.to_owned();
    }
    let last = id.trim_end_matches('/').rsplit('/').next().unwrap_or(id);
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) {
            c
        } else {
            '-'
        }
    };
    let name: String = last.chars().take(100).map(plain).collect();
    if is_model_name(&name) {
        name
    } else {
        "model".to_owned()
    }
}

fn checked(name: &str) -> Result<String, Failure> {
    if is_model_name(name) {
        return Ok(name.to_owned());
    }
    Err(Failure::new(format!(
        "--name {name:?} can't be a model's name: letters, digits and \"._-:/@+\" only, at most 128"
    )))
}

/// The text of a `guan.toml` with one model.
fn document(name: &str, keys: &[(&str, String)], replica: &str) -> String {
    let mut out = format!(
        "# Written by `guan init`. `guan config check` says what is wrong with this file,\n\
         # `guan config show` what it means with every default.\n\n\
         [[models]]\nname = {}\n",
        quote(name)
    );
    for (key, value) in keys {
        out.push_str(&format!("{key} = {value}\n"));
    }
    out.push_str("[[models.replicas]]\n");
    out.push_str(replica);
    out
}

/// A TOML string: JSON's escapes are TOML's.
fn quote(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

fn write_config(path: &Path, text: &str) -> Result<(), Failure> {
    let at = |e: io::Error| Failure::new(format!("{} can't be written: {e}", path.display()));
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)
        .map_err(at)?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_a_good_config() {
        let place = crate::config::Place {
            file: Path::new("guan.toml"),
            data: Path::new("/data"),
            env: &|_| None,
            opener: reference::Opener::Nobody,
            now: 0,
        };
        let keys = [
            ("kind", quote("vllm")),
            ("context_tokens", "4096".to_owned()),
        ];
        let text = document("a/b", &keys, "url = \"unix:/run/v.sock\"\n");
        let config = crate::config::check(&text, &place).unwrap();
        assert_eq!(
            config.settings.models["a/b"].replicas[0].name,
            "unix:/run/v.sock"
        );
        let text = document(
            "m",
            &[],
            &format!("engine = {}\n", quote("/m \"x\"/a.gguf")),
        );
        let config = crate::config::check(&text, &place).unwrap();
        assert_eq!(config.engines[0].file, Path::new("/m \"x\"/a.gguf"));
    }

    #[test]
    fn a_public_name_is_the_upstreams_where_it_can_be() {
        assert_eq!(
            public_name("Qwen/Qwen2.5-7B-Instruct"),
            "Qwen/Qwen2.5-7B-Instruct"
        );
        assert_eq!(public_name("/models/My Model.gguf"), "My-Model.gguf");
        assert_eq!(public_name("///"), "model");
    }

    #[test]
    fn one_of_several_models_is_chosen_by_name_only() {
        let model = |id: &str| probe::Model {
            id: id.to_owned(),
            context_tokens: None,
        };
        let found = probe::Found {
            kind: "vllm",
            models: vec![model("a"), model("b")],
        };
        assert_eq!(chosen(&found, Some("b")).unwrap().id, "b");
        assert!(
            chosen(&found, None)
                .unwrap_err()
                .to_string()
                .contains("a, b")
        );
        assert!(chosen(&found, Some("c")).is_err());
        let one = probe::Found {
            kind: "vllm",
            models: vec![model("a")],
        };
        assert_eq!(chosen(&one, Some("public")).unwrap().id, "a");
    }
}
