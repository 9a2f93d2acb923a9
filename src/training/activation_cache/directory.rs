//! The directory of all caches: one below it for each base and number of frozen layers.

use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::chunk::ENDING;
use crate::atomic_file;
use crate::file_identity;

/// What a directory's chunks are of.
const ABOUT: &str = "about.json";

/// What a cache is of, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The base's name.
    pub base: String,
    /// Frozen layers.
    pub frozen_layers: usize,
    /// Layers of the base.
    pub layers: usize,
    /// How it computes.
    pub compute: String,
}

/// One cache.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its directory.
    pub path: PathBuf,
    /// What it is of, if that can be read.
    pub about: Option<About>,
    /// Of its chunks.
    pub bytes: u64,
    /// When a chunk was last used.
    pub used: Option<SystemTime>,
}

struct ChunkFile {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

/// Where caches are; `None` where the system names no directory for them.
#[must_use]
pub fn root() -> Option<PathBuf> {
    Some(file_identity::user_cache()?.join("llmcls").join("activations"))
}

/// Says what a cache is of. Without it only the list is poorer.
pub fn describe(directory: &Path, about: &About) {
    let write = || -> Result<()> {
        fs::create_dir_all(directory)?;
        atomic_file::write_bytes(&directory.join(ABOUT), &serde_json::to_vec_pretty(about)?)
    };
    if fs::read(directory.join(ABOUT)).ok().and_then(|text| serde_json::from_slice(&text).ok()).as_ref() != Some(about)
    {
        let _ = write();
    }
}

/// All caches, the last used one first.
#[must_use]
pub fn list(root: &Path) -> Vec<Listed> {
    let mut listed: Vec<Listed> = subdirectories(root)
        .map(|path| {
            let chunks = chunks(&path);
            Listed {
                about: fs::read(path.join(ABOUT)).ok().and_then(|text| serde_json::from_slice(&text).ok()),
                bytes: chunks.iter().map(|chunk| chunk.bytes).sum(),
                used: chunks.iter().map(|chunk| chunk.used).max(),
                path,
            }
        })
        .collect();
    listed.sort_by_key(|cache| std::cmp::Reverse(cache.used));
    listed
}

/// Removes all caches; returns their bytes. A training that uses one goes on: the system keeps files that are open.
///
/// # Errors
/// If something cannot be removed.
pub fn clear(root: &Path) -> Result<u64> {
    let bytes = list(root).iter().map(|cache| cache.bytes).sum();
    if root.is_dir() {
        fs::remove_dir_all(root).with_context(|| format!("{}: cannot remove", root.display()))?;
    }
    Ok(bytes)
}

/// Marks a chunk as used now.
pub(super) fn touch(path: &Path) {
    let now = FileTimes::new().set_modified(SystemTime::now());
    // It only decides which chunk goes first.
    let _ = File::open(path).and_then(|file| file.set_times(now));
}

/// Removes the least recently used chunks but those in `kept`, until all take `limit` bytes at most.
pub(super) fn make_room(root: &Path, limit: u64, kept: &[PathBuf]) {
    let mut all: Vec<ChunkFile> = subdirectories(root).flat_map(|directory| chunks(&directory)).collect();
    all.sort_by_key(|chunk| chunk.used);
    let mut total: u64 = all.iter().map(|chunk| chunk.bytes).sum();
    for chunk in all.iter().filter(|chunk| !kept.contains(&chunk.path)) {
        if total <= limit {
            break;
        }
        if fs::remove_file(&chunk.path).is_ok() {
            total -= chunk.bytes;
        }
    }
    for directory in subdirectories(root) {
        atomic_file::sweep(&directory, "");
        if chunks(&directory).is_empty() && !kept.iter().any(|chunk| chunk.starts_with(&directory)) {
            let _ = fs::remove_dir_all(&directory);
        }
    }
}

fn subdirectories(root: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir())
}

fn chunks(directory: &Path) -> Vec<ChunkFile> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().extension().is_some_and(|ending| ending == ENDING))
        .filter_map(|entry| {
            let data = entry.metadata().ok()?;
            Some(ChunkFile { path: entry.path(), bytes: data.len(), used: data.modified().ok()? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_least_recently_used_chunks_make_room() {
        let root = tempfile::tempdir().unwrap();
        let chunk = |name: &str, age: u64| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, vec![0; 100]).unwrap();
            let used = SystemTime::now() - Duration::from_secs(age);
            File::options().write(true).open(&path).unwrap().set_modified(used).unwrap();
            path
        };
        let old = chunk("a/1.safetensors", 40);
        let oldest_but_kept = chunk("b/2.safetensors", 50);
        let newer = chunk("b/3.safetensors", 30);
        let newest = chunk("b/4.safetensors", 20);
        touch(&newer);
        make_room(root.path(), 250, std::slice::from_ref(&oldest_but_kept));
        assert!(!old.exists() && !old.parent().unwrap().exists());
        assert!(oldest_but_kept.exists() && newer.exists() && !newest.exists());
        let about = About { base: "m".to_owned(), frozen_layers: 3, layers: 4, compute: "float32".to_owned() };
        describe(&root.path().join("b"), &about);
        let listed = list(root.path());
        assert_eq!((listed.len(), listed[0].bytes, listed[0].about.as_ref()), (1, 200, Some(&about)));
        assert_eq!(clear(root.path()).unwrap(), 200);
        assert!(list(root.path()).is_empty());
    }
}
