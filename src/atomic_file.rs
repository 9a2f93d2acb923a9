//! Files and directories that appear whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::failpoint::{self, Place};

/// Writes a file through `write`, under a temporary name beside it, and renames it when it is
/// complete and on disk.
///
/// # Errors
/// If anything fails; then `path` is as it was, and the temporary is gone.
pub fn write_file(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let temporary = beside(path);
    remove_stale(path);
    let result: Result<()> = (|| {
        let mut writer = BufWriter::new(File::create(&temporary)?);
        write(&mut writer)?;
        let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        failpoint::reached(Place::Write).inspect_err(|_| {
            // What a disk that fills up leaves.
            let _ = file.set_len(file.metadata().map_or(0, |data| data.len() / 2));
        })?;
        file.sync_all()?;
        failpoint::reached(Place::Rename)?;
        fs::rename(&temporary, path)?;
        Ok(sync_directory(path.parent().unwrap_or(Path::new(".")))?)
    })();
    if result.is_err() {
        // The error that matters is the first one.
        let _ = fs::remove_file(&temporary);
    }
    result.with_context(|| format!("{}: cannot write", path.display()))
}

/// As [`write_file`], with contents that are at hand.
///
/// # Errors
/// As [`write_file`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_file(path, |writer| Ok(writer.write_all(bytes)?))
}

/// Fills a directory through `fill`, under a temporary name beside it, and renames it when every
/// file in it is on disk. An existing `path` is an error.
///
/// # Errors
/// If anything fails; then `path` is as it was, and the temporary is gone.
pub fn write_directory(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temporary = beside(path);
    remove_stale(path);
    let result: Result<()> = (|| {
        fs::create_dir(&temporary)?;
        fill(&temporary)?;
        for entry in fs::read_dir(&temporary)? {
            File::open(entry?.path())?.sync_all()?;
        }
        sync_directory(&temporary)?;
        failpoint::reached(Place::Rename)?;
        fs::rename(&temporary, path)?;
        Ok(sync_directory(path.parent().unwrap_or(Path::new(".")))?)
    })();
    if result.is_err() {
        let _ = fs::remove_dir_all(&temporary);
    }
    result.with_context(|| format!("{}: cannot write", path.display()))
}

/// `.name.tmp-<process>` in the same directory, so that a rename stays on one filesystem.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp-{}", std::process::id()))
}

/// Removes temporaries of `path` whose process was killed.
fn remove_stale(path: &Path) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sweep(parent, &format!(".{name}"));
}

/// Removes what killed processes left half-written in a directory, of names that start with `prefix`.
/// What cannot be removed stays: it is in nobody's way.
pub fn sweep(directory: &Path, prefix: &str) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let file = entry.file_name();
        let file = file.to_str().filter(|file| file.starts_with('.')).unwrap_or_default();
        let process = file.rsplit_once(".tmp-").filter(|(name, _)| name.starts_with(prefix));
        let Some(process) = process.and_then(|(_, process)| process.parse::<u32>().ok()) else { continue };
        if process == std::process::id() || !is_running(process) {
            let path = entry.path();
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}

/// Whether a process is there; taken to be so where the system does not tell.
fn is_running(process: u32) -> bool {
    !cfg!(target_os = "linux") || Path::new("/proc").join(process.to_string()).exists()
}

/// The SHA-256 of a file, as hexadecimal digits.
///
/// # Errors
/// If it cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let mut hashed = || -> io::Result<u64> { io::copy(&mut File::open(path)?, &mut hash) };
    hashed().with_context(|| format!("{}: cannot read", path.display()))?;
    Ok(hex(&hash.finalize()))
}

/// Bytes as lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes renames in a directory last through a power cut.
fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        File::open(path)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_temporary() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        write_bytes(&path, b"old").unwrap();
        let failed = write_file(&path, |writer| {
            writer.write_all(b"new")?;
            anyhow::bail!("the disk is full")
        });
        assert!(format!("{:#}", failed.unwrap_err()).contains("a.json: cannot write: the disk is full"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_appears_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("best");
        let failed = write_directory(&path, |inside| {
            fs::write(inside.join("a"), "1")?;
            anyhow::bail!("stopped")
        });
        assert!(failed.is_err() && !path.exists());
        write_directory(&path, |inside| Ok(fs::write(inside.join("a"), "1")?)).unwrap();
        assert_eq!(fs::read(path.join("a")).unwrap(), b"1");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_process_left_is_swept_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        // No process has a number this high.
        let stale = directory.path().join(".checkpoint-3.tmp-4294967295");
        fs::create_dir(&stale).unwrap();
        for name in ["checkpoint-4", ".lock", "a.tmp-7", ".a.tmp-1"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        sweep(directory.path(), "");
        assert!(!stale.exists());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), if cfg!(target_os = "linux") { 4 } else { 5 });
    }
}
