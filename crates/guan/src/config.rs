//! The config file: bytes in, a whole and checked meaning out, or every fault with file, line and key.
//!
//! It decides what `guan.toml` means and fills in every default; it opens no file but those that secret references
//! name. Called by the supervisor, by the gateway's wiring (start and reload) and by `guan config`.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use toml::de::{DeTable, DeValue};

pub(crate) mod units;
mod written;
pub(crate) mod reference;
mod upstream;
mod meant;

pub(crate) use meant::shared::render as render_shared;
pub(crate) use meant::{ClientAuth, Config, EngineSpec, Fsync, is_model_name};
pub(crate) use upstream::{Upstream, parse as parse_upstream};

/// What the meaning of a file depends on besides its bytes.
pub(crate) struct Place<'a> {
    /// The file's name, for messages.
    pub(crate) file: &'a Path,
    /// The data folder: relative paths start there.
    pub(crate) data: &'a Path,
    /// The environment, for `env:` references.
    pub(crate) env: &'a dyn Fn(&str) -> Option<String>,
    /// What opens `sealed:` references.
    pub(crate) opener: reference::Opener<'a>,
    /// When the models were made known, seconds since 1970.
    pub(crate) now: i64,
}

/// The variable `name` of this process's environment.
pub(crate) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// What is wrong with a file: at least one fault.
#[derive(Debug)]
pub(crate) struct Faults {
    file: String,
    list: Vec<Fault>,
}

/// One fault.
#[derive(Debug)]
struct Fault {
    line: Option<usize>,
    text: String,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, fault) in self.list.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            match fault.line {
                Some(line) => write!(f, "{}:{line}: {}", self.file, fault.text)?,
                None => write!(f, "{}: {}", self.file, fault.text)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Reads the whole of `text` as meant; an empty text is a good config without models.
///
/// # Errors
/// [`Faults`]: all that is wrong with the values, or the first that is wrong with the form.
pub(crate) fn check(text: &str, place: &Place<'_>) -> Result<Config, Faults> {
    let (written, tree) = parse(text, place.file)?;
    let file = place.file.display().to_string();
    meant::convert(written, place).map_err(|problems| {
        let located = problems.into_iter().map(|p| Fault {
            line: locate(&p.seat, &tree).map(|at| line_of(text, at)),
            text: p.text,
        });
        let mut list: Vec<Fault> = located.collect();
        list.sort_by_key(|fault| fault.line);
        Faults {
            file: file.clone(),
            list,
        }
    })
}

/// The form of a file: known keys, known types.
fn parse<'t>(text: &'t str, file: &Path) -> Result<(written::File, DeTable<'t>), Faults> {
    let one = |e: &toml::de::Error, text_of: String| {
        let line = e.span().map(|span| line_of(text, span.start));
        Faults {
            file: file.display().to_string(),
            list: vec![Fault {
                line,
                text: text_of,
            }],
        }
    };
    let tree = DeTable::parse(text)
        .map_err(|e| one(&e, syntax(&e, text)))?
        .into_inner();
    let written = toml::from_str(text).map_err(|e| {
        let at = e.span().map(|span| span.start);
        one(&e, explain(e.message(), at, &tree))
    })?;
    Ok((written, tree))
}

/// What commands need of a file whose secrets may be out of their reach.
#[derive(Debug, Default)]
pub(crate) struct Glance {
    /// All roles.
    pub(crate) roles: rules::snapshot::Roles,
    /// `[store]`, unread: [`Glance::store`] reads it.
    store: written::Store,
    /// `[kms]`, unread: [`Glance::kms`] reads it.
    kms: written::Kms,
    /// `[server] names`.
    pub(crate) names: Vec<String>,
    /// `[hub] mirror`.
    pub(crate) mirror: Option<String>,
}

/// Reads the form of a file and a few values, without looking at any secret.
///
/// # Errors
/// [`Faults`]: what is wrong with the form.
pub(crate) fn glance(text: &str, file: &Path) -> Result<Glance, Faults> {
    let written = parse(text, file)?.0;
    Ok(Glance {
        roles: meant::roles(written.roles),
        store: written.store,
        kms: written.kms,
        names: written.server.names,
        mirror: written.hub.mirror,
    })
}

/// The database at a URL, with the password that a reference names.
///
/// # Errors
/// What is wrong with either.
pub(crate) fn store_target(
    url: &str,
    password: Option<&str>,
    data: &Path,
) -> Result<control::store::Target, String> {
    let store = written::Store {
        url: Some(url.to_owned()),
        password: password.map(str::to_owned),
        max_stale: None,
    };
    meant::store::target(&store, data, &environment)
        .map(|(target, _variable)| target)
        .map_err(|(key, why)| format!("the {key} {why}"))
}

impl Glance {
    /// The database that the server uses; reads its password.
    ///
    /// # Errors
    /// What is wrong with `[store]`.
    pub(crate) fn store(&self, data: &Path) -> Result<control::store::Target, String> {
        meant::store::target(&self.store, data, &environment)
            .map(|(target, _variable)| target)
            .map_err(|(key, why)| format!("{key} in [store] {why}"))
    }

    /// Who wraps the store's data key; reads its credentials.
    ///
    /// # Errors
    /// What is wrong with `[kms]`.
    pub(crate) fn kms(&self, data: &Path) -> Result<control::seal::Kms, String> {
        meant::kms::provider(&self.kms, data, &environment, crate::token::Reach::Own)
            .map(|(kms, _variables)| kms)
            .map_err(|(key, why)| format!("{key} in [kms] {why}"))
    }
}

/// The file's text; `None` when there is none.
///
/// # Errors
/// When it can't be read or is too large to be one, with its name.
pub(crate) fn read_file(path: &Path) -> io::Result<Option<String>> {
    let at =
        |e: io::Error| io::Error::new(e.kind(), format!("{} can't be read: {e}", path.display()));
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(at(e)),
    };
    let mut text = String::new();
    let read = file
        .take(MOST_BYTES.saturating_add(1))
        .read_to_string(&mut text)
        .map_err(at)?;
    if u64::try_from(read).is_ok_and(|n| n > MOST_BYTES) {
        return Err(at(io::Error::other(format!(
            "it is larger than {MOST_BYTES} bytes"
        ))));
    }
    Ok(Some(text))
}

/// Where in a file a value stands: keys and indexes from the top.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seat(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

impl Seat {
    /// One key further down.
    fn key(&self, key: &str) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Key(key.to_owned()));
        Self(steps)
    }

    /// One place in a list further down.
    fn index(&self, index: usize) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Index(index));
        Self(steps)
    }

    /// As a table's header: `[roles.basic]`, `[[models.replicas]]`; nothing at the top.
    fn header(&self) -> Option<String> {
        let keys: Vec<&str> = self
            .0
            .iter()
            .filter_map(|step| match step {
                Step::Key(key) => Some(key.as_str()),
                Step::Index(_) => None,
            })
            .collect();
        let path = keys.join(".");
        match self.0.last()? {
            Step::Key(_) => Some(format!("[{path}]")),
            Step::Index(_) => Some(format!("[[{path}]]")),
        }
    }
}

/// The byte where `seat` stands, or the deepest table above it that exists.
fn locate(seat: &Seat, tree: &DeTable<'_>) -> Option<usize> {
    let mut at = None;
    let mut table = Some(tree);
    let mut list: Option<&toml::de::DeArray<'_>> = None;
    for step in &seat.0 {
        let value = match step {
            Step::Key(key) => {
                let Some((key, value)) = table.and_then(|t| t.get_key_value(key.as_str())) else {
                    return at;
                };
                at = Some(key.span().start);
                value
            }
            Step::Index(index) => {
                let Some(value) = list.and_then(|l| l.get(*index)) else {
                    return at;
                };
                at = Some(value.span().start);
                value
            }
        };
        table = value.get_ref().as_table();
        list = value.get_ref().as_array();
    }
    at
}

/// The seat of the innermost key or value that covers byte `at`, and whether `at` is on the key itself.
fn seat_of(at: usize, tree: &DeTable<'_>) -> Seat {
    let mut seat = Seat::default();
    let mut table = Some(tree);
    while let Some(inner) = table.take() {
        for (key, value) in inner {
            if key.span().contains(&at) {
                return seat.key(key.get_ref());
            }
            if let Some((deeper, next)) = descend(at, value, seat.key(key.get_ref())) {
                seat = deeper;
                table = next;
                if table.is_none() {
                    return seat;
                }
                break;
            }
        }
    }
    seat
}

/// Into a value that covers `at`; tables reach from their header to their last line.
fn descend<'t, 'i>(
    at: usize,
    value: &'t toml::Spanned<DeValue<'i>>,
    seat: Seat,
) -> Option<(Seat, Option<&'t DeTable<'i>>)> {
    match value.get_ref() {
        DeValue::Table(table) => covers(at, value).then_some((seat, Some(table))),
        DeValue::Array(list) => list
            .iter()
            .enumerate()
            .find_map(|(n, item)| descend(at, item, seat.index(n)))
            .or_else(|| value.span().contains(&at).then_some((seat, None))),
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => value.span().contains(&at).then_some((seat, None)),
    }
}

/// Whether a table or anything in it covers `at`: a table's own span is its header only.
fn covers(at: usize, value: &toml::Spanned<DeValue<'_>>) -> bool {
    if value.span().contains(&at) {
        return true;
    }
    match value.get_ref() {
        DeValue::Table(table) => table
            .iter()
            .any(|(key, value)| key.span().contains(&at) || covers(at, value)),
        DeValue::Array(list) => list.iter().any(|item| covers(at, item)),
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => false,
    }
}

/// Line numbers start at 1.
fn line_of(text: &str, at: usize) -> usize {
    text.bytes()
        .take(at)
        .filter(|b| *b == b'\n')
        .count()
        .saturating_add(1)
}

/// A fault of TOML itself. The text in it may be a secret somebody wrote in the wrong place: never repeated.
fn syntax(e: &toml::de::Error, text: &str) -> String {
    let message = e.message();
    if message.contains("duplicate key") {
        let name = e
            .span()
            .and_then(|span| text.get(span))
            .filter(|name| name.len() <= 64 && !name.contains(['\n', '"', '=']));
        return match name {
            Some(name) => format!("\"{name}\" is written twice; keep one"),
            None => "a key or table is written twice; keep one".to_owned(),
        };
    }
    format!(
        "this isn't TOML: {}",
        message.lines().collect::<Vec<_>>().join(", ")
    )
}

/// Says a fault of form in the words of this file instead of the library's.
fn explain(message: &str, at: Option<usize>, tree: &DeTable<'_>) -> String {
    let seat = at.map(|at| seat_of(at, tree)).unwrap_or_default();
    if let Some(rest) = message.strip_prefix("unknown field ") {
        return unknown(rest, &seat, tree);
    }
    let (key, header) = name_of(&seat);
    let place = header.map(|h| format!(" in {h}")).unwrap_or_default();
    let Some(key) = key else {
        return message.to_owned();
    };
    let wanted = message
        .rsplit_once("expected ")
        .map(|(_, wanted)| wanted.trim_end_matches('`'))
        .map(|wanted| match wanted {
            "i64" => "a whole number",
            "a string" => "a text in quotes",
            "a sequence" => "a list",
            "a map" => "a table",
            other if other.starts_with("struct ") => "a table",
            other => other,
        });
    let given = message
        .split_once("invalid type: ")
        .and_then(|(_, rest)| rest.split_once(", expected"))
        // A text may be a secret in the wrong place: its kind is enough.
        .map(|(given, _)| if given.starts_with("string") { "a text" } else { given });
    match (wanted, given) {
        (Some(wanted), Some(given)) => format!("{key}{place} must be {wanted}, not {given}"),
        (Some(wanted), None) => format!("{key}{place} must be {wanted}"),
        (None, _) => format!("{key}{place}: {message}"),
    }
}

/// An unknown key and the nearest known one, from the library's "`a`, expected one of `b`, `c`".
fn unknown(rest: &str, seat: &Seat, tree: &DeTable<'_>) -> String {
    let mut quoted = rest.split('`').skip(1).step_by(2);
    let name = quoted.next().unwrap_or_default();
    let known: Vec<&str> = quoted.collect();
    let table = match seat.0.last() {
        Some(Step::Key(key)) if key == name => {
            Seat(seat.0.split_last().map_or(vec![], |(_, up)| up.to_vec()))
        }
        _ => seat.clone(),
    };
    let header = table.header();
    let is_table = header.is_none()
        && tree
            .get(name)
            .is_some_and(|v| v.get_ref().is_table() || v.get_ref().is_array());
    let near = nearest(name, known.iter().copied());
    if is_table {
        let hint = match near {
            Some(near) => format!("did you mean [{near}]?"),
            None => format!("known are {}", known.join(", ")),
        };
        return format!("unknown table [{name}]; {hint}");
    }
    let place = header.map(|h| format!(" in {h}")).unwrap_or_default();
    let hint = match near {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("known are {}", known.join(", ")),
    };
    format!("unknown key \"{name}\"{place}; {hint}")
}

/// The last key of a seat and the header of the table it stands in.
fn name_of(seat: &Seat) -> (Option<String>, Option<String>) {
    let last = seat.0.iter().rposition(|step| matches!(step, Step::Key(_)));
    let Some((last, Some(Step::Key(key)))) = last.map(|n| (n, seat.0.get(n))) else {
        return (None, None);
    };
    let table = Seat(seat.0.iter().take(last).cloned().collect());
    (Some(key.clone()), table.header())
}

/// The known word that a misspelt one most likely stands for.
pub(crate) fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    known
        .map(|k| (strsim::jaro_winkler(word, k), k))
        .filter(|(likeness, k)| *likeness >= 0.8 || strsim::osa_distance(word, k) == 1)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k)
}

/// No config file is larger, bytes.
const MOST_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests;
