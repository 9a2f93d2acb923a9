//! `manifest.json`: sizes and SHA-256 of a directory's files, to detect damage.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::atomic_file::{self, sha256};

/// The file's name.
pub const NAME: &str = "manifest.json";

/// Files that are replaced on their own after the directory was made.
const REPLACEABLE: [&str; 2] = ["classifier.json", "README.md"];

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    sha256: String,
}

/// Writes the manifest of what is in a directory. Call it last.
pub fn write(directory: &Path) -> Result<()> {
    let mut entries = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !REPLACEABLE.contains(&name.as_str()) && name != NAME {
            entries.insert(name.clone(), describe(&directory.join(name))?);
        }
    }
    atomic_file::write_bytes(&directory.join(NAME), serde_json::to_string_pretty(&entries)?.as_bytes())
}

/// The SHA-256 of files by their names, as the manifest has them; none without one.
#[must_use]
pub fn digests(directory: &Path) -> BTreeMap<String, String> {
    let entries = fs::read(directory.join(NAME)).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let entries: BTreeMap<String, Entry> = entries.unwrap_or_default();
    entries.into_iter().map(|(name, entry)| (name, entry.sha256)).collect()
}

/// Checks every file that the manifest names, where there is one: peft saves none.
pub fn verify_if_present(directory: &Path) -> Result<()> {
    if directory.join(NAME).is_file() { verify(directory) } else { Ok(()) }
}

/// Checks every file that the manifest names.
///
/// # Errors
/// Names the first file that is missing or changed; a manifest that is missing is damage, too, as it is the
/// last file to be written.
pub fn verify(directory: &Path) -> Result<()> {
    let path = directory.join(NAME);
    let text = fs::read_to_string(&path).with_context(|| format!("{}: cannot read", path.display()))?;
    let entries: BTreeMap<String, Entry> =
        serde_json::from_str(&text).with_context(|| format!("{}: not a valid manifest", path.display()))?;
    for (name, expected) in entries {
        let is_plain = Path::new(&name).file_name().is_some_and(|file| file == name.as_str());
        ensure!(is_plain, "{}: `{name}` is not a plain file name", path.display());
        let file = directory.join(&name);
        ensure!(
            describe(&file)? == expected,
            "{}: has changed since it was written: the directory is damaged",
            file.display()
        );
    }
    Ok(())
}

fn describe(path: &Path) -> Result<Entry> {
    let bytes = fs::metadata(path).with_context(|| format!("{}: cannot read", path.display()))?.len();
    Ok(Entry { bytes, sha256: sha256(path)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_or_missing_file_is_named_and_a_replaceable_one_may_change() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        verify_if_present(directory.path()).unwrap();
        assert!(format!("{:#}", verify(directory.path()).unwrap_err()).contains("manifest.json: cannot read"));
        for name in ["a", "b", "classifier.json"] {
            fs::write(path(name), name).unwrap();
        }
        write(directory.path()).unwrap();
        fs::write(path("classifier.json"), "other").unwrap();
        verify(directory.path()).unwrap();
        fs::write(path("b"), "c").unwrap();
        assert!(verify(directory.path()).unwrap_err().to_string().contains("b: has changed"));
        fs::remove_file(path("a")).unwrap();
        assert!(format!("{:#}", verify(directory.path()).unwrap_err()).contains("a: cannot read"));
    }
}
