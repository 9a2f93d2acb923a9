//! The output of a long job, which a killed process leaves as `NAME.partial` for `--resume`.
//!
//! `NAME.partial.json` beside it says which job it belongs to, and how many rows and bytes of it are whole. The
//! file gets its name when it is complete and on disk.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::atomic_file::{self, Destination};
use crate::failpoint::{self, Site};

/// An output that is not complete.
pub struct PartialOutput {
    target: PathBuf,
    path: PathBuf,
    state: PathBuf,
    job: Value,
    writer: BufWriter<File>,
    bytes: u64,
    saved: Option<Instant>,
}

/// The whole rows of an unfinished output, and its job.
#[derive(Serialize, Deserialize)]
struct Record {
    rows: usize,
    bytes: u64,
    #[serde(default)]
    job: Value,
}

/// The beginning of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A new, empty file.
    New,
    /// Empty, in place of what another job left.
    Replaces,
    /// Continue after this many rows.
    After(usize),
}

impl PartialOutput {
    /// Between two records of how far the output is.
    const INTERVAL: Duration = Duration::from_secs(1);

    /// Begins the output of `job`, or continues it if it `resumes`. `None` for a device or a FIFO.
    ///
    /// # Errors
    /// If another process writes it, or what is there belongs to another job.
    pub fn open(output: &Path, job: Value, resumes: bool) -> Result<Option<(Self, Start)>> {
        let Destination::File(target) = atomic_file::destination(output)? else { return Ok(None) };
        let [path, state] = names(&target);
        let open = || -> Result<(Self, Start)> {
            let file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => bail!("another process writes it"),
                // A file system without locks.
                Err(TryLockError::Error(_)) | Ok(()) => {}
            }
            let is_there = file.metadata()?.len() > 0 && state.is_file();
            let (rows, bytes) = if resumes && is_there { whole(&state, &job, &file)? } else { (0, 0) };
            if rows == 0 {
                let _ = fs::remove_file(&state);
            }
            file.set_len(bytes)?;
            io::Seek::seek(&mut &file, io::SeekFrom::End(0))?;
            let start = match rows {
                0 if is_there && !resumes => Start::Replaces,
                0 => Start::New,
                rows => Start::After(rows),
            };
            let writer = BufWriter::new(file);
            let (target, path, state) = (target.clone(), path.clone(), state.clone());
            Ok((Self { target, path, state, job, writer, bytes, saved: None }, start))
        };
        open().with_context(|| format!("{}: cannot write ({})", target.display(), path.display())).map(Some)
    }

    /// What is written beside an output until it is complete. Nothing for a device or a FIFO.
    ///
    /// # Errors
    /// If the output is no name for a file.
    pub fn paths(output: &Path) -> Result<Vec<PathBuf>> {
        if output.as_os_str() == "-" {
            return Ok(Vec::new());
        }
        let cannot_write = || format!("{}: cannot write", output.display());
        Ok(match atomic_file::destination(output).with_context(cannot_write)? {
            Destination::File(target) => names(&target).to_vec(),
            Destination::Stream => Vec::new(),
        })
    }

    /// Records that this many rows are written, if the last record is old.
    pub fn record(&mut self, rows: usize) -> Result<bool> {
        self.writer.flush()?;
        if self.saved.is_some_and(|saved| saved.elapsed() < Self::INTERVAL) {
            return Ok(false);
        }
        self.writer.get_ref().sync_data()?;
        let state = json!(Record { rows, bytes: self.bytes, job: self.job.clone() });
        atomic_file::write_bytes(&self.state, format!("{state:#}\n").as_bytes())?;
        self.saved = Some(Instant::now());
        Ok(true)
    }

    /// Gives the complete file its name.
    pub fn finish(mut self) -> Result<()> {
        let mut finish = || -> Result<()> {
            self.writer.flush()?;
            failpoint::reached(Site::Write)?;
            self.writer.get_ref().sync_all()?;
            failpoint::reached(Site::Rename)?;
            fs::rename(&self.path, &self.target)?;
            Ok(atomic_file::sync_directory(self.target.parent().unwrap_or(Path::new(".")))?)
        };
        match finish().with_context(|| format!("{}: cannot write", self.target.display())) {
            Ok(()) => {
                let _ = fs::remove_file(&self.state);
                Ok(())
            }
            Err(error) => {
                self.discard();
                Err(error)
            }
        }
    }

    /// Removes the unfinished output: a resumed job would fail in the same way.
    pub fn discard(self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(&self.state);
    }
}

impl Write for PartialOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.writer.write(bytes)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// The file, and the record of how far it is.
fn names(target: &Path) -> [PathBuf; 2] {
    [".partial", ".partial.json"].map(|ending| {
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(ending);
        target.with_file_name(name)
    })
}

/// The rows and bytes that are whole, if they are of this job.
fn whole(state: &Path, job: &Value, file: &File) -> Result<(usize, u64)> {
    let found: Record = serde_json::from_slice(&fs::read(state)?)
        .with_context(|| format!("{} is damaged; without --resume the job starts over", state.display()))?;
    for (key, value) in job.as_object().into_iter().flatten() {
        ensure!(
            found.job.get(key) == Some(value),
            "it was written with {}, so resuming would mix two jobs; without --resume the job starts over",
            if key == "options" { "other options".to_owned() } else { format!("another {key}") }
        );
    }
    ensure!(file.metadata()?.len() >= found.bytes, "it is shorter than it was; without --resume the job starts over");
    Ok((found.rows, found.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_goes_on_after_the_last_record_and_only_for_the_same_job() {
        let place = tempfile::tempdir().unwrap();
        let output = place.path().join("out.jsonl");
        let open = |job: &str, resumes| PartialOutput::open(&output, json!({"classifier": job}), resumes);
        let (mut partial, start) = open("a", false).unwrap().unwrap();
        assert_eq!(start, Start::New);
        partial.write_all(b"one\n").unwrap();
        partial.record(1).unwrap();
        partial.write_all(b"tw").unwrap();
        assert!(open("a", true).err().unwrap().to_string().contains("out.jsonl.partial"));
        drop(partial);
        assert!(!output.exists());
        let error = format!("{:#}", open("b", true).err().unwrap());
        assert!(error.contains("another classifier") && error.contains("without --resume"), "{error}");
        let (mut partial, start) = open("a", true).unwrap().unwrap();
        assert_eq!(start, Start::After(1));
        partial.write_all(b"two\n").unwrap();
        partial.finish().unwrap();
        assert_eq!(fs::read(&output).unwrap(), b"one\ntwo\n");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
        assert_eq!(open("a", true).unwrap().unwrap().1, Start::New);
    }
}
