//! Secrets by reference: `file:PATH`, `env:NAME` or `sealed:VALUE`, never the secret itself.
//!
//! It reads what a reference names and refuses what is unset or blank; it never repeats what it read. Called while
//! the config file is turned into its meaning, and by `guan init`.

use std::path::Path;

use control::seal::{Envelope, SEALED};
use zeroize::Zeroizing;

/// What a reference names.
pub(crate) enum Reference<'a> {
    /// A file, relative to the data folder.
    File(&'a str),
    /// A variable of the environment.
    Env(&'a str),
    /// A sealed value, without the word in front of it.
    Sealed(&'a str),
}

/// What opens sealed values.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Opener<'a> {
    /// Nothing here: their form is judged, and an empty secret stands for each. For whoever sends no secret anywhere.
    Nobody,
    /// The store's data key.
    Envelope(&'a Envelope),
}

/// Reads a reference's form.
///
/// # Errors
/// A text that is no reference: most likely the secret itself, so the answer doesn't repeat it.
pub(crate) fn parse(text: &str) -> Result<Reference<'_>, String> {
    if let Some(value) = text.strip_prefix(SEALED) {
        return if Envelope::is_value(value) {
            Ok(Reference::Sealed(value))
        } else {
            Err("holds no sealed value; make one with `guan secret seal`".to_owned())
        };
    }
    match text.split_once(':') {
        Some(("file", path)) if !path.is_empty() => Ok(Reference::File(path)),
        Some(("env", name)) if is_variable(name) => Ok(Reference::Env(name)),
        Some(("env", _)) => {
            Err("names no environment variable; write \"env:UPSTREAM_KEY\"".to_owned())
        }
        _ => Err(
            "must be a reference, not the key itself: write the key into a file that only \
             this user can read and say \"file:secrets/upstream-key\", say \"env:NAME\", or seal it with `guan secret seal`"
                .to_owned(),
        ),
    }
}

/// The secret that a reference names.
///
/// # Errors
/// Why there is none, never with a part of it.
pub(crate) fn resolve(
    reference: &Reference<'_>,
    data: &Path,
    env: &dyn Fn(&str) -> Option<String>,
    opener: Opener<'_>,
) -> Result<Zeroizing<String>, String> {
    match (reference, opener) {
        (Reference::Sealed(_), Opener::Nobody) => Ok(Zeroizing::new(String::new())),
        (Reference::Sealed(value), Opener::Envelope(envelope)) => envelope
            .open_value(value)
            .map_err(|fault| format!("can't be opened: {fault}")),
        (Reference::File(_) | Reference::Env(_), _) => resolve_plain(reference, data, env),
    }
}

/// The same where nothing sealed can be opened yet.
///
/// # Errors
/// Why there is none, never with a part of it.
pub(crate) fn resolve_plain(
    reference: &Reference<'_>,
    data: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Zeroizing<String>, String> {
    let (text, what) = match reference {
        Reference::File(path) => {
            let full = data.join(path);
            let shown = full.display();
            let size = std::fs::metadata(&full)
                .map_err(|e| format!("names {shown}: {e}"))?
                .len();
            if size > MOST {
                return Err(format!("names {shown}, which is larger than {MOST} bytes"));
            }
            let text = std::fs::read_to_string(&full).map_err(|e| format!("names {shown}: {e}"))?;
            (text, format!("the file {shown}"))
        }
        Reference::Env(name) => {
            let text = env(name);
            let text = text
                .ok_or_else(|| format!("names the environment variable {name}, which isn't set"))?;
            (text, format!("the environment variable {name}"))
        }
        Reference::Sealed(_) => {
            return Err(
                "can't be sealed: it is needed before anything sealed can be opened; say \"file:…\" or \"env:NAME\""
                    .to_owned(),
            );
        }
    };
    let text = Zeroizing::new(text);
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return Err(format!("names {what}, which is blank"));
    }
    // It becomes part of a header line.
    if !trimmed.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!(
            "names {what}, which holds blanks or characters no header may carry"
        ));
    }
    Ok(Zeroizing::new(trimmed.to_owned()))
}

fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// No key is longer, bytes.
const MOST: u64 = 64 << 10;
