//! What a GGUF file says about itself, asked of `guan-engine describe` in a child of its own, and a name from it.
//!
//! This process never parses a weights file. Called by `init`.

use std::io::Read;
use std::path::Path;

use sandbox::{Exit, Program, Spec, Stream};
use serde::Deserialize;

use super::Failure;

/// What is used of a description; the worker may say more.
#[derive(Debug, Deserialize)]
pub(super) struct Description {
    /// The name in the file.
    pub(super) name: Option<String>,
    /// Its size in words, such as `0.5B`.
    pub(super) size_label: Option<String>,
    /// The licence that the file names.
    pub(super) licence: Option<String>,
    /// Number of parameters.
    pub(super) parameters: u64,
}

/// Asks the worker's program.
///
/// # Errors
/// When the file is no model, or the program is missing.
pub(super) fn describe(file: &Path) -> Result<Description, Failure> {
    let program = crate::supervisor::engine_program()?;
    let (mut ours, theirs) = std::io::pipe()?;
    let spec = Spec {
        program: Program::Path(program.clone()),
        name: "guan: engine describe".to_owned(),
        args: vec!["describe".into(), file.into()],
        env: Vec::new(),
        fds: Vec::new(),
        stdout: Stream::To(theirs.into()),
        stderr: Stream::Inherit,
        die_with_parent: true,
        new_session: false,
    };
    let mut child = sandbox::spawn(&spec)
        .map_err(|e| Failure::new(format!("{} can't be started: {e}", program.display())))?;
    // Its copy of the pipe's end must be the only one, or the end never comes.
    drop(spec);
    let mut said = String::new();
    (&mut ours).take(1 << 20).read_to_string(&mut said)?;
    match child.wait()? {
        Exit::Code(0) => {}
        Exit::Code(_) => return Err(Failure::told()),
        exit @ Exit::Signal(_) => {
            return Err(Failure::new(format!(
                "{} can't be described: {exit}",
                file.display()
            )));
        }
    }
    serde_json::from_str(&said).map_err(|e| {
        Failure::new(format!(
            "guan-engine's answer can't be read: {e}; install both from one version"
        ))
    })
}

/// A public name for a model: what its file calls it, else the file's own name.
pub(super) fn name_of(description: &Description, file: &Path) -> String {
    let size = description
        .size_label
        .as_deref()
        .map(slug)
        .unwrap_or_default();
    let named = description
        .name
        .as_deref()
        .map(slug)
        .filter(|name| name.len() > 2);
    match named {
        Some(name) if size.is_empty() || name.contains(&size) => name,
        Some(name) => format!("{name}-{size}"),
        None => {
            let stem = file.file_stem().map(|s| s.to_string_lossy().into_owned());
            let stem = slug(&stem.unwrap_or_default());
            if stem.is_empty() {
                "model".to_owned()
            } else {
                stem
            }
        }
    }
}

/// Lower case, dots kept, everything else one hyphen.
fn slug(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(100) {
        if c.is_ascii_alphanumeric() || (c == '.' && !out.is_empty()) {
            out.push(c.to_ascii_lowercase());
        } else if !out.is_empty() && !out.ends_with('-') {
            out.push('-');
        }
    }
    out.trim_end_matches(['-', '.']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_people_would_type() {
        let table = [
            (
                Some("Qwen2.5 0.5B Instruct"),
                Some("0.5B"),
                "x.gguf",
                "qwen2.5-0.5b-instruct",
            ),
            (
                Some("qwen2.5-7b-instruct"),
                None,
                "x.gguf",
                "qwen2.5-7b-instruct",
            ),
            (
                Some("Gemma 3 It"),
                Some("268M"),
                "x.gguf",
                "gemma-3-it-268m",
            ),
            (None, Some("1B"), "My Model_Q4_K_M.gguf", "my-model-q4-k-m"),
            (Some("."), None, "tiny.gguf", "tiny"),
            (Some("模型"), None, "模型.gguf", "model"),
        ];
        for (name, size, file, wanted) in table {
            let description = Description {
                name: name.map(str::to_owned),
                size_label: size.map(str::to_owned),
                licence: None,
                parameters: 1,
            };
            let name = name_of(&description, Path::new(file));
            assert_eq!(name, wanted);
            assert!(crate::config::is_model_name(&name));
        }
    }
}
