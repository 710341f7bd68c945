//! What stands before the first gateway: lock, first start, config, engine program.
//!
//! It decides whether there is enough to serve and says what to type when there isn't. Called by the supervisor
//! once.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use sandbox::{Exit, Program, Spec, Stream};

use crate::commands::{Failure, Places};
use crate::config::{self, Config, Faults, Place};
use crate::folder::{Folder, Held, Lock};

/// The lock, or a refusal that says who has it.
///
/// # Errors
/// When another process holds the folder.
pub(super) fn lock(folder: &Folder) -> Result<Lock, Failure> {
    folder.lock()?.map_err(|Held { pid }| {
        let who = pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
        let stop = pid.map_or_else(|| "stop it first".to_owned(), |pid| format!("stop it first: kill {pid}"));
        Failure::new(format!(
            "another guan uses the data folder {}{who}; {stop}. To serve twice on one machine, give each its own --data and [server] listen",
            folder.path().display()
        ))
    })
}

/// Runs `guan init` as a child, which ends before anything listens: a data folder where there is none, and with
/// `model` a config that serves it.
///
/// # Errors
/// When the child failed.
pub(super) fn init(folder: &Folder, places: &Places, model: Option<&str>) -> Result<(), Failure> {
    let mut args: Vec<OsString> = vec![
        "init".into(),
        "--held".into(),
        "--data".into(),
        folder.path().into(),
        "--config".into(),
        places.config.clone().into(),
    ];
    if let Some(model) = model {
        args.extend(["--model".into(), folder.models().join(model).into()]);
    }
    let child = sandbox::spawn(&Spec {
        program: Program::SelfExe,
        name: "guan: init".to_owned(),
        args,
        env: super::passed_env(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())),
        fds: Vec::new(),
        stdout: Stream::Inherit,
        stderr: Stream::Inherit,
        die_with_parent: true,
        new_session: false,
    });
    match child.and_then(|mut child| child.wait()) {
        Ok(Exit::Code(0)) => Ok(()),
        Ok(Exit::Code(_)) => Err(Failure::told()),
        Ok(exit @ Exit::Signal(_)) => Err(Failure::new(format!("`guan init` failed: {exit}"))),
        Err(e) => Err(Failure::new(format!("`guan init` can't be run: {e}"))),
    }
}

/// The only GGUF file in `models/`.
pub(super) fn only_model(folder: &Folder) -> Result<String, Failure> {
    let models = folder.models();
    let found = folder
        .gguf_files()
        .map_err(|e| Failure::new(format!("{} can't be read: {e}", models.display())))?;
    let data = folder.path().display();
    match &found[..] {
        [one] => Ok(one.clone()),
        [] => Err(Failure::new(format!(
            "there is no model to serve: no guan.toml, and no GGUF file in {}. Type one of these, then `guan serve` again:\n  \
             guan model pull --to {}            load a small model\n  \
             guan init --data {data} --model FILE.gguf      use a GGUF file you have\n  \
             guan init --data {data} --upstream http://HOST:PORT   stand in front of vLLM, SGLang or llama-server",
            models.display(),
            models.display(),
        ))),
        several => Err(Failure::new(format!(
            "there is no guan.toml, and {} holds several models:\n  {}\nChoose one, then type `guan serve` again:\n  guan init --data {data} --model {}/FILE.gguf",
            models.display(),
            several.join("\n  "),
            models.display(),
        ))),
    }
}

/// Reads and checks the config file; one that isn't there is empty.
///
/// # Errors
/// When it can't be read or has faults.
pub(super) fn read(folder: &Folder, path: &Path) -> Result<(String, Config), Failure> {
    let text = config::read_file(path)
        .map_err(|e| Failure::new(e.to_string()))?
        .unwrap_or_default();
    let config = judge(folder, path, &text).map_err(|faults| Failure::new(faults.to_string()))?;
    if config.settings.models.is_empty() {
        return Err(Failure::new(format!(
            "{}: there is no model to serve; add [[models]] with [[models.replicas]], as `guan init --help` shows",
            path.display()
        )));
    }
    let absent = config.absent_files();
    if !absent.is_empty() {
        return Err(Failure::new(absent.join("\n")));
    }
    Ok((text, config))
}

/// What a config file's text means.
///
/// # Errors
/// All that is wrong with it.
pub(super) fn judge(folder: &Folder, path: &Path, text: &str) -> Result<Config, Faults> {
    let place = Place {
        file: path,
        data: folder.path(),
        env: &config::environment,
        // The key that opens them belongs to the gateway alone.
        opener: config::reference::Opener::Nobody,
        now: super::unix_seconds(),
    };
    config::check(text, &place)
}

/// The worker's program: beside this one, or where packages put it.
///
/// # Errors
/// When it is in neither place.
pub(crate) fn engine_program() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()
        .map_err(|e| Failure::new(format!("this program's own path can't be read: {e}")))?;
    let folder = own.parent().unwrap_or(Path::new("/"));
    let places = [
        folder.join("guan-engine"),
        folder.join("../libexec/guan/guan-engine"),
    ];
    places.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
        Failure::new(format!(
            "guan-engine, which runs the models, is missing: looked for {}. Build it (cargo build --release -p engine) or install the whole package; with only url replicas in guan.toml it isn't needed",
            places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" and ")
        ))
    })
}
