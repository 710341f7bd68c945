//! Decides what `guan model pull|list|verify|rm` does: which source is asked in which order, when a smaller model is
//! taken instead, and what people are told (name, size, licence, whose digest).
//! Writes the folder of models only, runs outside of any fence, never starts anything it loaded. Called by `main`.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

mod manifest;
mod address;
mod client;
mod hub;
mod fetch;
mod wheel;
mod store;
mod progress;
mod fault;
mod pull;

pub(crate) use fault::Fault;
pub(crate) use store::{Record, installed};

/// Load models, and look after those that are there.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Load a model: one that Guan knows by name, or any GGUF file by its address
    Pull(PullArgs),
    /// Show the models that are here and those known by name
    List(ListArgs),
    /// Compare the files with the digests they were loaded with
    Verify(VerifyArgs),
    /// Remove a model that was loaded
    Rm(RmArgs),
}

#[derive(Debug, clap::Args)]
struct Place {
    /// Folder of the models [default: models/ in the data folder]
    #[arg(long = "to", visible_alias = "dir", value_name = "DIR")]
    to: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// A list of models in place of the built-in one (TOML)
    #[arg(long, value_name = "FILE", hide = true)]
    manifest: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct PullArgs {
    /// A name from `guan model list`, or the https:// address of a GGUF file [default: a small instruct model]
    #[arg(value_name = "NAME|URL")]
    what: Option<String>,
    /// Ask this mirror of Hugging Face and no hub, by its base address
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// SHA-256 that the file must have, for an address
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    #[command(flatten)]
    place: Place,
    /// Milliseconds without a byte before a line counts as dead
    #[arg(long, hide = true, default_value_t = 30_000)]
    stall_ms: u64,
    /// Milliseconds before the first repetition
    #[arg(long, hide = true, default_value_t = 1_000)]
    pause_ms: u64,
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
struct VerifyArgs {
    /// One model only
    name: Option<String>,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
struct RmArgs {
    /// The model's name
    name: String,
    #[command(flatten)]
    place: Place,
}

/// Runs one `guan model` command. `models` is the folder of models of the data folder, `mirror` what the
/// configuration names in `[hub] mirror`; both give way to what was typed.
///
/// # Errors
/// A [`Fault`]; its text says what to do next.
pub(crate) fn run(args: &ModelArgs, models: &Path, mirror: Option<&str>) -> Result<(), Fault> {
    match &args.command {
        Command::Pull(args) => {
            let order = pull::Order {
                what: args.what.as_deref(),
                dir: args.place.dir(models),
                mirror: args
                    .mirror
                    .as_deref()
                    .or(mirror)
                    .filter(|m| !m.trim().is_empty()),
                sha256: args.sha256.as_deref(),
                manifest: manifest::Manifest::load(args.place.manifest.as_deref())?,
                patience: client::Patience {
                    connect: Duration::from_secs(10),
                    stall: Duration::from_millis(args.stall_ms),
                    pause: Duration::from_millis(args.pause_ms),
                },
            };
            let pulled = pull::pull(&order)?;
            tell_pulled(&pulled, order.dir, args.place.json);
            Ok(())
        }
        Command::List(args) => list(&args.place, models),
        Command::Verify(args) => verify(args, models),
        Command::Rm(args) => remove(args, models),
    }
}

impl Place {
    fn dir<'a>(&'a self, models: &'a Path) -> &'a Path {
        self.to.as_deref().unwrap_or(models)
    }
}

fn tell_pulled(pulled: &pull::Pulled, dir: &Path, json: bool) {
    #[derive(Serialize)]
    struct Shown<'a> {
        #[serde(flatten)]
        record: &'a Record,
        path: PathBuf,
        size: u64,
        already_here: bool,
        instead_of: Option<&'a str>,
    }
    let record = &pulled.record;
    let first = record.paths(dir).into_iter().next().unwrap_or_default();
    if json {
        return print_json(&Shown {
            record,
            path: first,
            size: record.size(),
            already_here: pulled.already_here,
            instead_of: pulled.instead_of.as_deref(),
        });
    }
    let mut lines = Vec::new();
    if pulled.already_here {
        lines.push(format!("{} is here already, nothing to load", record.name));
    }
    lines.push(format!("model    {}", record.name));
    let parameters = record
        .parameters
        .as_deref()
        .map_or(String::new(), |p| format!(" ({p})"));
    lines.push(format!(
        "size     {}{parameters}",
        progress::size(record.size())
    ));
    lines.push(format!("licence  {}", record.licence));
    for text in &record.licence_files {
        lines.push(format!("         {}", dir.join(text).display()));
    }
    lines.extend(pulled.terms.iter().map(|terms| format!("         {terms}")));
    lines.push(format!("digest   {}", record.digest_from.words()));
    for file in &record.files {
        lines.push(format!("         {}  {}", file.sha256, file.file));
    }
    lines.push(format!("file     {}", first.display()));
    print(&lines.join("\n"));
}

fn list(place: &Place, models: &Path) -> Result<(), Fault> {
    #[derive(Serialize)]
    struct Shown<'a> {
        models: &'a [Record],
        unrecorded: &'a [String],
        known: Vec<&'a str>,
    }
    let dir = place.dir(models);
    let manifest = manifest::Manifest::load(place.manifest.as_deref())?;
    let records = installed(dir)?;
    let recorded = |name: &String| {
        records
            .iter()
            .any(|r| r.files.iter().any(|f| f.file == *name))
    };
    let mut unrecorded = store::names(dir)?;
    unrecorded.retain(|name| name.ends_with(".gguf") && !recorded(name));
    if place.json {
        let known = manifest.models.iter().map(|m| m.name.as_str()).collect();
        print_json(&Shown {
            models: &records,
            unrecorded: &unrecorded,
            known,
        });
        return Ok(());
    }
    let mut lines = vec![format!("in {}:", dir.display())];
    if records.is_empty() && unrecorded.is_empty() {
        lines.push("  none; load one with: guan model pull".to_owned());
    }
    for record in &records {
        let size = progress::size(record.size());
        lines.push(format!(
            "  {:28} {size:>9}  {}",
            record.name, record.licence
        ));
    }
    for file in &unrecorded {
        lines.push(format!(
            "  {file:28}            put there by hand, no digest known"
        ));
    }
    lines.push("known by name:".to_owned());
    for model in &manifest.models {
        let size = model.size().map_or_else(|| "?".to_owned(), progress::size);
        lines.push(format!("  {:28} {size:>9}  {}", model.name, model.licence));
        lines.push(format!("  {:28} {:>9}  {}", "", "", model.description));
    }
    print(&lines.join("\n"));
    Ok(())
}

fn verify(args: &VerifyArgs, models: &Path) -> Result<(), Fault> {
    #[derive(Serialize)]
    struct Checked {
        name: String,
        file: String,
        fits: bool,
        why: Option<String>,
    }
    let dir = args.place.dir(models);
    let records = match &args.name {
        None => installed(dir)?,
        Some(name) => vec![recorded(dir, name)?],
    };
    let mut checked = Vec::new();
    for (record, file) in records
        .iter()
        .flat_map(|r| r.files.iter().map(move |f| (r, f)))
    {
        let why = match store::digest_of(&dir.join(&file.file)) {
            Ok((digest, _)) if digest == file.sha256 => None,
            Ok((digest, _)) => Some(format!("SHA-256 is {digest}, was {}", file.sha256)),
            Err(Fault::Io { source, .. }) => Some(source.to_string()),
            Err(other) => return Err(other),
        };
        let name = record.name.clone();
        checked.push(Checked {
            name,
            file: file.file.clone(),
            fits: why.is_none(),
            why,
        });
    }
    if args.place.json {
        print_json(&checked);
    } else if checked.is_empty() {
        print(&format!(
            "no model was pulled into {}; load one with: guan model pull",
            dir.display()
        ));
    } else {
        for c in &checked {
            let why = c.why.as_deref().unwrap_or("as pulled");
            print(&format!(
                "{} {}: {why}",
                if c.fits { "ok " } else { "BAD" },
                c.file
            ));
        }
    }
    let mut damaged: Vec<_> = checked
        .iter()
        .filter(|c| !c.fits)
        .map(|c| c.name.as_str())
        .collect();
    damaged.dedup();
    if damaged.is_empty() {
        Ok(())
    } else {
        Err(Fault::Damaged(damaged.join(", ")))
    }
}

fn remove(args: &RmArgs, models: &Path) -> Result<(), Fault> {
    #[derive(Serialize)]
    struct Removed<'a> {
        removed: &'a [String],
        freed: u64,
    }
    let dir = args.place.dir(models);
    let _lock = store::Lock::take(dir)?;
    let leftovers = store::leftovers_of(dir, &args.name)?;
    let (names, freed) = match recorded(dir, &args.name) {
        Ok(record) => (store::all_names_of(&record), record.size()),
        Err(fault) if leftovers.is_empty() => return Err(fault),
        Err(_) => (Vec::new(), 0),
    };
    let names = leftovers.into_iter().chain(names);
    let mut removed = Vec::new();
    for name in names {
        let path = dir.join(&name);
        if path.symlink_metadata().is_ok() {
            store::remove(&path)?;
            removed.push(name);
        }
    }
    if args.place.json {
        print_json(&Removed {
            removed: &removed,
            freed,
        });
    } else {
        print(&format!("removed {}: {}", args.name, removed.join(", ")));
    }
    Ok(())
}

fn recorded(dir: &Path, name: &str) -> Result<Record, Fault> {
    let record = if manifest::plain_name(name) {
        Record::read(dir, name)?
    } else {
        None
    };
    record.ok_or_else(|| Fault::NotPulled {
        name: name.to_owned(),
        dir: dir.to_owned(),
    })
}

/// A reader that went away (`| head`) is no trouble of ours.
fn print(text: &str) {
    writeln!(io::stdout(), "{text}").ok();
}

fn print_json(value: &impl Serialize) {
    print(&serde_json::to_string_pretty(value).unwrap_or_default());
}
