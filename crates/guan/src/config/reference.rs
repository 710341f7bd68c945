//! Secrets by reference: `file:PATH` or `env:NAME`, never the secret itself.
//!
//! It reads what a reference names and refuses what is unset or blank; it never repeats what it read. Called while
//! the config file is turned into its meaning, and by `guan init`.

use std::path::Path;

use zeroize::Zeroizing;

/// What a reference names.
pub(crate) enum Reference<'a> {
    /// A file, relative to the data folder.
    File(&'a str),
    /// A variable of the environment.
    Env(&'a str),
}

/// Reads a reference's form.
///
/// # Errors
/// A text that is no reference: most likely the secret itself, so the answer doesn't repeat it.
pub(crate) fn parse(text: &str) -> Result<Reference<'_>, String> {
    match text.split_once(':') {
        Some(("file", path)) if !path.is_empty() => Ok(Reference::File(path)),
        Some(("env", name)) if is_variable(name) => Ok(Reference::Env(name)),
        Some(("env", _)) => {
            Err("names no environment variable; write \"env:UPSTREAM_KEY\"".to_owned())
        }
        _ => Err(
            "must be a reference, not the key itself: write the key into a file that only \
             this user can read and say \"file:secrets/upstream-key\", or say \"env:NAME\""
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
