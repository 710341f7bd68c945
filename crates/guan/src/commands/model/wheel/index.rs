//! Decides which package index is asked and which of its files is the wheel we want.
//! Reads pip's own settings so that a company's mirror is used as it is for Python; names no host but the public one.
//! Never loads a wheel. Called by `wheel` only.

use std::path::PathBuf;

use serde::Deserialize;

use crate::commands::model::address::Address;
use crate::commands::model::client::Client;
use crate::commands::model::fault::Fault;
use crate::commands::model::manifest::{Wheel, is_sha256};

/// Where the wheel lies and what the index says of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) address: Address,
    pub(super) sha256: Option<String>,
    pub(super) size: Option<u64>,
}

/// The index that pip would use on this machine, user info included.
pub(super) fn configured() -> String {
    let from_env = std::env::var("PIP_INDEX_URL")
        .ok()
        .filter(|v| !v.trim().is_empty());
    from_env
        .or_else(|| {
            config_files()
                .iter()
                .filter_map(|path| std::fs::read_to_string(path).ok())
                .find_map(|text| index_url(&text))
        })
        .map_or_else(|| PUBLIC_INDEX.to_owned(), |v| v.trim().to_owned())
}

/// Asks the index for the project's files and picks the wheel of the wanted version.
pub(super) fn find(client: &Client, index: &Address, wheel: &Wheel) -> Result<Found, Fault> {
    let page = index.join(&format!("{}/", wheel.project))?;
    let (text, base, is_html) = match client.text(&page, ACCEPT) {
        Ok(answer) => answer,
        Err(Fault::Status { status: 404, .. }) => {
            return Err(fault(index, wheel, "it does not know the project"));
        }
        Err(other) => return Err(other),
    };
    let candidates = if is_html {
        from_html(&text)
    } else {
        from_json(&text)
    };
    let wanted = format!("{}-{}-", wheel.project.replace('-', "_"), wheel.version);
    let listed = candidates
        .into_iter()
        .find(|c| c.filename.starts_with(&wanted) && c.filename.ends_with(".whl"))
        .ok_or_else(|| fault(index, wheel, "it lists no wheel of that version"))?;
    let address = base.join(&listed.url)?;
    Ok(Found {
        address,
        sha256: listed.sha256.filter(|s| is_sha256(s)),
        size: listed.size,
    })
}

pub(super) fn fault(index: &Address, wheel: &Wheel, why: &'static str) -> Fault {
    Fault::Index {
        host: index.host().to_owned(),
        project: wheel.project.clone(),
        version: wheel.version.clone(),
        why,
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Listed {
    filename: String,
    url: String,
    sha256: Option<String>,
    size: Option<u64>,
}

fn from_json(text: &str) -> Vec<Listed> {
    #[derive(Default, Deserialize)]
    struct Page {
        files: Vec<File>,
    }
    #[derive(Deserialize)]
    struct File {
        filename: String,
        url: String,
        #[serde(default)]
        hashes: Hashes,
        size: Option<u64>,
    }
    #[derive(Default, Deserialize)]
    struct Hashes {
        sha256: Option<String>,
    }
    let page: Page = serde_json::from_str(text).unwrap_or_default();
    page.files
        .into_iter()
        .map(|f| Listed {
            filename: f.filename,
            url: f.url,
            sha256: f.hashes.sha256.map(|s| s.to_ascii_lowercase()),
            size: f.size,
        })
        .collect()
}

/// The older form of the index: a page of links, the digest behind `#sha256=`.
fn from_html(text: &str) -> Vec<Listed> {
    text.split("href=")
        .skip(1)
        .filter_map(|rest| {
            let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
            let (url, _) = rest.strip_prefix(quote)?.split_once(quote)?;
            let url = url.replace("&amp;", "&");
            let (before, fragment) = url.split_once('#').unwrap_or((&url, ""));
            let path = before.split_once('?').map_or(before, |(path, _)| path);
            let filename = path
                .rsplit_once('/')
                .map_or(path, |(_, file)| file)
                .to_owned();
            let sha256 = fragment
                .strip_prefix("sha256=")
                .map(str::to_ascii_lowercase);
            Some(Listed {
                filename,
                url: before.to_owned(),
                sha256,
                size: None,
            })
        })
        .collect()
}

fn config_files() -> Vec<PathBuf> {
    let env = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    let home = env("HOME");
    let under_home = |path: &str| home.as_ref().map(|h| h.join(path));
    [
        env("PIP_CONFIG_FILE"),
        env("VIRTUAL_ENV").map(|v| v.join("pip.conf")),
        env("XDG_CONFIG_HOME")
            .map(|c| c.join("pip/pip.conf"))
            .or_else(|| under_home(".config/pip/pip.conf")),
        under_home(".pip/pip.conf"),
        Some(PathBuf::from("/etc/xdg/pip/pip.conf")),
        Some(PathBuf::from("/etc/pip.conf")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// `index-url` of the sections that count for a download.
fn index_url(text: &str) -> Option<String> {
    let mut counts = false;
    let mut found = None;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            counts = matches!(
                section.trim_end_matches(']'),
                "global" | "install" | "download"
            );
        } else if counts
            && let Some((key, value)) = line.split_once(['=', ':'])
            && matches!(key.trim(), "index-url" | "index_url")
        {
            found = Some(value.trim().to_owned());
        }
    }
    found.filter(|v| !v.is_empty())
}

const PUBLIC_INDEX: &str = "https://pypi.org/simple/";
const ACCEPT: &str = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_index_give_the_same() {
        let sha = "A".repeat(64);
        let json = format!(
            r#"{{"meta":{{}},"files":[{{"filename":"p-1-py3-none-any.whl","url":"../f/p-1-py3-none-any.whl","hashes":{{"sha256":"{sha}"}},"yanked":false}}]}}"#
        );
        let html = format!(
            r#"<html><a class="x" href="../f/p-1-py3-none-any.whl#sha256={sha}" data-requires-python="&gt;=3">p</a>"#
        );
        assert_eq!(from_json(&json), from_html(&html));
        assert_eq!(from_json(&json)[0].sha256, Some("a".repeat(64)));
        assert!(from_json("<html>").is_empty() && from_html("href=x href=\"").is_empty());
    }

    #[test]
    fn pips_own_file_names_the_index() {
        let text =
            "[list]\nindex-url = https://no/\n[global]\n# c\nindex-url = https://yes/simple\n";
        assert_eq!(index_url(text).as_deref(), Some("https://yes/simple"));
        assert_eq!(index_url("[global]\ncert = /x\n"), None);
    }
}
