//! Digests of large files, kept in the user's cache directory so that a file is read for them once.
//!
//! An entry holds for a device, inode, size, modification and change time. A cache that cannot be read or written
//! costs time and is no error; entries appear by a rename, so processes do not disturb each other.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::atomic_file::{self, hex};
use crate::file_identity::{self, FileIdentity};

/// Smaller files are read again: that takes no longer than to look for an entry.
const SMALLEST: u64 = 256 << 10;
/// Rises when digests are taken of something else.
const VERSION: u32 = 1;

/// Digests of a file's parts by their names.
pub(super) type Digests = BTreeMap<String, String>;

#[derive(Serialize, Deserialize)]
struct Entry {
    version: u32,
    file: FileIdentity,
    digests: Digests,
    /// SHA-256 of the rest.
    check: String,
}

/// The file at a path now; `None` if it is small, or the system does not tell.
pub(super) fn identity(path: &Path) -> Option<FileIdentity> {
    FileIdentity::of(path).filter(|file| file.size >= SMALLEST)
}

/// The digests of a file, if the cache has them.
pub(super) fn load(file: &FileIdentity) -> Option<Digests> {
    load_from(&directory()?, file)
}

/// Keeps the digests of the file at `path`, which was `file` before it was read.
pub(super) fn store(path: &Path, file: &FileIdentity, digests: Digests) {
    if let Some(directory) = directory().filter(|_| file.is_settled() && identity(path).as_ref() == Some(file)) {
        store_in(&directory, file, digests);
    }
}

fn load_from(directory: &Path, file: &FileIdentity) -> Option<Digests> {
    let entry: Entry = serde_json::from_slice(&fs::read(entry_path(directory, file)).ok()?).ok()?;
    let is_whole = entry.version == VERSION && entry.file == *file && entry.check == check(file, &entry.digests)?;
    is_whole.then_some(entry.digests)
}

fn store_in(directory: &Path, file: &FileIdentity, digests: Digests) {
    let write = || -> Option<()> {
        let check = check(file, &digests)?;
        let text = serde_json::to_vec(&Entry { version: VERSION, file: file.clone(), digests, check }).ok()?;
        fs::create_dir_all(directory).ok()?;
        atomic_file::write_bytes(&entry_path(directory, file), &text).ok()
    };
    // The digests are at hand; only the next start has to take them again.
    let _ = write();
}

/// One entry for each file there ever was at an inode: a file that is written anew replaces its own.
fn entry_path(directory: &Path, file: &FileIdentity) -> PathBuf {
    directory.join(format!("{:x}-{:x}.json", file.device, file.inode))
}

fn check(file: &FileIdentity, digests: &Digests) -> Option<String> {
    Some(hex(&Sha256::digest(serde_json::to_vec(&(file, digests)).ok()?)))
}

fn directory() -> Option<PathBuf> {
    Some(file_identity::user_cache()?.join("llmcls").join("digests"))
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;

    fn file(directory: &Path) -> (PathBuf, FileIdentity) {
        let path = directory.join("weights");
        fs::write(&path, vec![7; SMALLEST as usize]).unwrap();
        let found = identity(&path).unwrap();
        (path, found)
    }

    #[test]
    fn an_entry_holds_for_the_same_file_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (_, identity) = file(directory.path());
        let cache = directory.path().join("cache");
        let digests = Digests::from([("a".to_owned(), "12".to_owned())]);
        store_in(&cache, &identity, digests.clone());
        assert_eq!(load_from(&cache, &identity), Some(digests));
        for other in [
            FileIdentity { size: identity.size + 1, ..identity.clone() },
            FileIdentity { modified: identity.modified + 1, ..identity.clone() },
            FileIdentity { changed: identity.changed + 1, ..identity.clone() },
        ] {
            assert_eq!(load_from(&cache, &other), None);
        }
        assert!(!identity.is_settled(), "a file that was just written may be written again");
        assert!(FileIdentity { modified: 0, changed: 0, ..identity }.is_settled());
    }

    #[test]
    fn a_damaged_entry_and_a_cache_that_cannot_be_written_are_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let (path, identity) = file(directory.path());
        let cache = directory.path().join("cache");
        store_in(&cache, &identity, Digests::from([("a".to_owned(), "12".to_owned())]));
        let entry = entry_path(&cache, &identity);
        let whole = fs::read_to_string(&entry).unwrap();
        for damaged in [whole.replace("\"12\"", "\"13\""), whole[..whole.len() / 2].to_owned(), String::new()] {
            assert_ne!(damaged, whole);
            fs::write(&entry, damaged).unwrap();
            assert_eq!(load_from(&cache, &identity), None);
        }
        // A file where the directory should be.
        store_in(&path, &identity, Digests::new());
        assert_eq!(load_from(&path, &identity), None);
    }

    #[test]
    fn small_files_are_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("small");
        fs::write(&path, "x").unwrap();
        assert_eq!(identity(&path), None);
    }
}
