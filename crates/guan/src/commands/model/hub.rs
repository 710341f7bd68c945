//! Decides what a model hub publishes about a file before it is loaded: its SHA-256 and size.
//! Knows the two shapes of address, `/models/OWNER/NAME/resolve/REVISION/FILE` (`ModelScope`, asked through its list of
//! files) and `/OWNER/NAME/resolve/REVISION/FILE` (Hugging Face, whose answer to the download itself says it; see
//! `client::Linked`). Never loads the file. Called by `commands::model`.

use serde::Deserialize;

use super::address::Address;
use super::client::{Client, Linked};
use super::fault::Fault;
use super::manifest::is_sha256;

/// Asks the hub. Nothing is known where the hub has another shape or keeps silent.
pub(super) fn published(client: &Client, address: &Address) -> Result<Linked, Fault> {
    let Some((list, file)) = list_of(address) else {
        return Ok(Linked::default());
    };
    match client.text(&list, "application/json") {
        Ok((text, _, _)) => Ok(found_in(&text, &file)),
        // it hasn't the list, but may well have the file
        Err(Fault::Status { .. } | Fault::Answer { .. }) => Ok(Linked::default()),
        // a wall that breaks the line during the handshake: as good as not there
        Err(Fault::Cut { host, why }) => Err(Fault::Unreachable { host, why }),
        Err(fault) => Err(fault),
    }
}

/// Where `ModelScope` lists the files of the repository, and the file's path in it.
fn list_of(address: &Address) -> Option<(Address, String)> {
    let mut words = address.path().trim_start_matches('/').splitn(6, '/');
    if words.next() != Some("models") {
        return None;
    }
    let (owner, name) = (words.next()?, words.next()?);
    if words.next() != Some("resolve") {
        return None;
    }
    let (revision, file) = (words.next()?, words.next()?);
    let list = address
        .join(&format!(
            "/api/v1/models/{owner}/{name}/repo/files?Revision={revision}&Recursive=true"
        ))
        .ok()?;
    Some((list, file.to_owned()))
}

fn found_in(text: &str, file: &str) -> Linked {
    let list: List = serde_json::from_str(text).unwrap_or_default();
    list.data
        .files
        .into_iter()
        .find(|f| f.path == file)
        .map(|f| Linked {
            sha256: f
                .sha256
                .map(|s| s.to_ascii_lowercase())
                .filter(|s| is_sha256(s)),
            size: f.size,
        })
        .unwrap_or_default()
}

#[derive(Default, Deserialize)]
struct List {
    #[serde(rename = "Data", default)]
    data: Data,
}

#[derive(Default, Deserialize)]
struct Data {
    #[serde(rename = "Files", default)]
    files: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "Path")]
    path: String,
    #[serde(rename = "Size")]
    size: Option<u64>,
    #[serde(rename = "Sha256")]
    sha256: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_a_modelscope_repository_is_found_from_the_files_address() {
        let address =
            Address::parse("https://ms.example/models/O/N/resolve/master/sub/f.gguf").unwrap();
        let (list, file) = list_of(&address).unwrap();
        assert_eq!(list.path(), "/api/v1/models/O/N/repo/files");
        assert_eq!(file, "sub/f.gguf");
        let other = Address::parse("https://hf.example/O/N/resolve/main/f.gguf").unwrap();
        assert!(list_of(&other).is_none());
    }

    #[test]
    fn digest_and_size_are_read_and_nonsense_is_nothing() {
        let sha = "a".repeat(64);
        let text = format!(
            r#"{{"Code":200,"Data":{{"Files":[{{"Path":"x","Size":1}},{{"Path":"f","Size":9,"Sha256":"{sha}","More":1}}]}}}}"#
        );
        assert_eq!(
            found_in(&text, "f"),
            Linked {
                sha256: Some(sha),
                size: Some(9)
            }
        );
        assert_eq!(found_in(&text, "g"), Linked::default());
        assert_eq!(found_in("<html>", "f"), Linked::default());
    }
}
