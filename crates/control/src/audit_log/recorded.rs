//! Whether a generation's chain already has the record of a call: asked at replay, so that a call whose process died
//! between its record and the clearing of its slot isn't recorded twice.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use super::files::list;

/// Those of `request_ids` that a chain of `generation` or a later one in `dir` records: a replay that was itself cut
/// has written some of them into a chain of its own.
///
/// # Errors
/// When the folder or a chain can't be read.
pub fn recorded(
    dir: &Path,
    generation: u64,
    request_ids: &[String],
) -> io::Result<HashSet<String>> {
    let mut found = HashSet::new();
    if request_ids.is_empty() {
        return Ok(found);
    }
    for file in list(dir)? {
        if file.generation < generation {
            continue;
        }
        let mut lines = file.lines()?;
        while let Some((line, _)) = lines.next_line()? {
            // The id is looked for as a whole JSON string, so no text of another member can stand for it.
            let text = String::from_utf8_lossy(line);
            let here = |id: &&String| text.contains(&format!("\"http.request.id\":\"{id}\""));
            found.extend(request_ids.iter().filter(here).cloned());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_of_that_generation_or_a_later_one_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let line = |id: &str| format!("{{\"http.request.id\":\"{id}\",\"x\":1}}\n");
        for (name, text) in [
            ("node-7.jsonl", line("req_A")),
            ("node-6.jsonl", line("req_B")),
        ] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let ids = ["req_A".to_owned(), "req_B".to_owned()];
        let found = recorded(folder.path(), 7, &ids).unwrap();
        assert_eq!(found, HashSet::from(["req_A".to_owned()]));
    }
}
