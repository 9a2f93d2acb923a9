//! Digests of large files, kept in the user's cache directory so that a file is read for them once.
//!
//! An entry holds for a device, inode, size, modification and change time. A cache that cannot be read or written
//! costs time and is no error; entries appear by a rename, so processes do not disturb each other.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::atomic_file::hex;
use crate::hub::environment::user_cache;

/// Smaller files are read again: that takes no longer than to look for an entry.
const SMALLEST: u64 = 256 << 10;
/// A file that was written this short ago may be written again within the clock's resolution.
const SETTLED: Duration = Duration::from_secs(2);
/// Rises when digests are taken of something else.
const VERSION: u32 = 1;

/// Digests of a file's parts by their names.
pub(super) type Digests = BTreeMap<String, String>;

/// Metadata that change with a file's contents, so that an unchanged file is not read again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    /// Nanoseconds since 1970.
    modified: i128,
    changed: i128,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    version: u32,
    file: Identity,
    digests: Digests,
    /// SHA-256 of the rest.
    check: String,
}

impl Identity {
    /// The file at a path now; `None` if it is small, or the system does not tell.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let data = fs::metadata(path).ok()?;
        if data.len() < SMALLEST { None } else { Self::from_metadata(&data) }
    }

    #[cfg(unix)]
    fn from_metadata(data: &Metadata) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Some(Self {
            device: data.dev(),
            inode: data.ino(),
            size: data.len(),
            modified: nanoseconds(data.mtime(), data.mtime_nsec()),
            changed: nanoseconds(data.ctime(), data.ctime_nsec()),
        })
    }

    #[cfg(not(unix))]
    fn from_metadata(_: &Metadata) -> Option<Self> {
        None
    }

    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let last = self.modified.max(self.changed);
        i128::try_from(now.saturating_sub(SETTLED).as_nanos()).is_ok_and(|limit| last <= limit)
    }
}

/// The digests of a file, if the cache has them.
pub(super) fn load(file: &Identity) -> Option<Digests> {
    load_from(&directory()?, file)
}

/// Keeps the digests of the file at `path`, which was `file` before it was read.
pub(super) fn store(path: &Path, file: &Identity, digests: Digests) {
    if let Some(directory) = directory().filter(|_| file.is_settled() && Identity::of(path).as_ref() == Some(file)) {
        store_in(&directory, file, digests);
    }
}

fn load_from(directory: &Path, file: &Identity) -> Option<Digests> {
    let entry: Entry = serde_json::from_slice(&fs::read(entry_path(directory, file)).ok()?).ok()?;
    let is_whole = entry.version == VERSION && entry.file == *file && entry.check == check(file, &entry.digests)?;
    is_whole.then_some(entry.digests)
}

fn store_in(directory: &Path, file: &Identity, digests: Digests) {
    let write = || -> Option<()> {
        let check = check(file, &digests)?;
        let text = serde_json::to_vec(&Entry { version: VERSION, file: file.clone(), digests, check }).ok()?;
        fs::create_dir_all(directory).ok()?;
        let temporary = directory.join(format!(".{}-{:x}.tmp", std::process::id(), file.inode));
        let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, entry_path(directory, file)));
        if written.is_err() {
            let _ = fs::remove_file(temporary);
        }
        written.ok()
    };
    // The digests are at hand; only the next start has to take them again.
    let _ = write();
}

/// One entry for each file there ever was at an inode: a file that is written anew replaces its own.
fn entry_path(directory: &Path, file: &Identity) -> PathBuf {
    directory.join(format!("{:x}-{:x}.json", file.device, file.inode))
}

fn check(file: &Identity, digests: &Digests) -> Option<String> {
    Some(hex(&Sha256::digest(serde_json::to_vec(&(file, digests)).ok()?)))
}

fn directory() -> Option<PathBuf> {
    Some(user_cache()?.join("llmcls").join("digests"))
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;

    fn file(directory: &Path) -> (PathBuf, Identity) {
        let path = directory.join("weights");
        fs::write(&path, vec![7; SMALLEST as usize]).unwrap();
        let identity = Identity::of(&path).unwrap();
        (path, identity)
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
            Identity { size: identity.size + 1, ..identity.clone() },
            Identity { modified: identity.modified + 1, ..identity.clone() },
            Identity { changed: identity.changed + 1, ..identity.clone() },
        ] {
            assert_eq!(load_from(&cache, &other), None);
        }
        assert!(!identity.is_settled(), "a file that was just written may be written again");
        assert!(Identity { modified: 0, changed: 0, ..identity }.is_settled());
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
        assert_eq!(Identity::of(&path), None);
    }
}
