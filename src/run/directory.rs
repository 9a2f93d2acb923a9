//! `outputs/<model>/<dataset>/run_<time>/`: the only code that knows the layout.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};

use crate::console::complain;
use crate::exit::quoted;

/// The resolved configuration.
pub const CONFIG: &str = "config.yaml";
/// A run is finished when this file exists.
pub(super) const SUMMARY: &str = "summary.json";
/// A line for each step that was logged; in the directory of a seed.
pub const HISTORY: &str = "history.jsonl";
/// What a training gave; in the directory of a seed.
pub const RESULT: &str = "result.json";
/// The trained classifier in the directory of a seed.
pub(super) const BEST: &str = "best";
/// What a run was trained on.
pub const INPUTS: &str = "inputs.json";
/// The plan of a sweep; a directory with it is no run.
pub const SWEEP: &str = "sweep.json";
/// A report, of a run or of an evaluation.
pub const REPORT: &str = "report.html";
/// The message of the error that ended the last attempt.
pub(super) const ERROR: &str = "error.txt";

#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Held while a process trains here, by that process.
    lock: Option<Arc<File>>,
}

impl RunDir {
    /// Makes the directory of a new run; no other run can get the same one.
    pub fn create(root: &Path, model: &str, dataset: &str) -> Result<Self> {
        Self::create_as("run", root, model, dataset)
    }

    /// Makes the directory of a sweep, beside the runs.
    pub fn create_sweep(root: &Path, model: &str, dataset: &str) -> Result<Self> {
        Self::create_as("sweep", root, model, dataset)
    }

    /// Makes the directory of a learning-rate range test, beside the runs.
    pub fn create_rates(root: &Path, model: &str, dataset: &str) -> Result<Self> {
        Self::create_as("rates", root, model, dataset)
    }

    /// The points of a learning-rate range test.
    #[must_use]
    pub fn rates(&self) -> PathBuf {
        self.path.join("rates.json")
    }

    /// Opens a run inside this directory, and makes its directory if it is not there.
    ///
    /// # Errors
    /// If it cannot be made, or another process trains there.
    pub fn inside(&self, name: &str) -> Result<Self> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).with_context(|| format!("{}: cannot create", path.display()))?;
        Self::lock(path)
    }

    fn create_as(kind: &str, root: &Path, model: &str, dataset: &str) -> Result<Self> {
        Self::lock(create(root, model, dataset, kind)?)
    }

    /// Opens the directory of an unfinished run to resume it.
    ///
    /// # Errors
    /// If it is no run, is finished, or another process trains there.
    pub fn reopen(path: &Path) -> Result<Self> {
        ensure_run(path)?;
        ensure!(
            !path.join(SWEEP).is_file(),
            "{}: a sweep and no run; `llmcls sweep --resume` continues it, `train --resume` one of its runs",
            path.display()
        );
        Self::reopen_unfinished(path, "run")
    }

    /// Opens the directory of an unfinished sweep to resume it.
    ///
    /// # Errors
    /// If it is no sweep, is finished, or another process trains there.
    pub fn reopen_sweep(path: &Path) -> Result<Self> {
        ensure!(path.join(SWEEP).is_file(), "{}: not a sweep: it has no {SWEEP}", path.display());
        Self::reopen_unfinished(path, "sweep")
    }

    fn reopen_unfinished(path: &Path, kind: &str) -> Result<Self> {
        ensure!(
            !path.join(SUMMARY).is_file(),
            "{}: this {kind} is finished; there is nothing to resume",
            path.display()
        );
        Self::lock(path.to_owned())
    }

    /// The directory of a run that another rank of the same job has locked.
    ///
    /// # Errors
    /// If it is not there on this machine.
    pub fn of_leader(path: PathBuf) -> Result<Self> {
        ensure!(
            path.is_dir(),
            "{}: rank 0 trains there, and this machine does not see it: the output root must be on a file system that \
             all machines share, under the same path",
            path.display()
        );
        Ok(Self { path, lock: None })
    }

    fn lock(path: PathBuf) -> Result<Self> {
        let file = path.join(".lock");
        let lock = File::create(&file).with_context(|| format!("{}: cannot create", file.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, lock: Some(Arc::new(lock)) }),
            Err(TryLockError::Error(error)) => {
                complain(format!(
                    "warning: {}: this filesystem cannot lock ({error}); do not train or resume this run twice at once",
                    path.display()
                ));
                Ok(Self { path, lock: Some(Arc::new(lock)) })
            }
            Err(TryLockError::WouldBlock) => bail!("{}: another process trains there", path.display()),
        }
    }

    /// Lets others train here, and removes the trace of the lock: the run is finished.
    pub fn unlock(self) {
        // A file that stays does no harm.
        let _ = fs::remove_file(self.path.join(".lock"));
        drop(self.lock);
    }

    /// Returns true if a process trains in this directory.
    #[must_use]
    pub fn is_locked(path: &Path) -> bool {
        let lock = File::open(path.join(".lock"));
        lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// The error that ended the last attempt; signals leave none.
    #[must_use]
    pub fn error(&self) -> PathBuf {
        self.path.join(ERROR)
    }

    /// The newest checkpoint of the seed that was trained last, whole or not.
    #[must_use]
    pub fn newest_checkpoint(&self) -> Option<PathBuf> {
        newest_checkpoint(&self.path)
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    /// Version, machine and command line.
    #[must_use]
    pub fn environment(&self) -> PathBuf {
        self.path.join("environment.json")
    }

    /// The plan, if this is a sweep.
    #[must_use]
    pub fn sweep_plan(&self) -> PathBuf {
        self.path.join(SWEEP)
    }

    /// Report on the best seed, for a browser.
    #[must_use]
    pub fn report(&self) -> PathBuf {
        self.path.join(REPORT)
    }

    /// Rows that are worth looking at.
    #[must_use]
    pub fn data_issues(&self) -> PathBuf {
        self.path.join("data_issues.jsonl")
    }

    /// The results; written last.
    #[must_use]
    pub fn summary(&self) -> PathBuf {
        self.path.join(SUMMARY)
    }

    /// The out-of-fold predictions of the training rows.
    #[must_use]
    pub fn fold_predictions(&self) -> PathBuf {
        self.path.join("predictions_folds.jsonl")
    }

    /// The directory of one training in place of a fold, made if it is not there: on all rows of the other folds, or on a
    /// part of them.
    pub fn fold(&self, number: usize, part: Option<&str>) -> Result<SeedDir> {
        let fold = self.path.join("folds").join(number.to_string());
        let path = part.map_or(fold.clone(), |part| fold.join(part));
        fs::create_dir_all(&path).with_context(|| format!("{}: cannot create", path.display()))?;
        Ok(SeedDir { path })
    }

    /// The directory of one seed, made if it is not there.
    pub fn seed(&self, seed: u32) -> Result<SeedDir> {
        let seed = SeedDir::of(&self.path, seed);
        fs::create_dir_all(&seed.path).with_context(|| format!("{}: cannot create", seed.path.display()))?;
        Ok(seed)
    }
}

/// The directory of one seed of a run.
#[derive(Clone, Debug)]
pub struct SeedDir {
    path: PathBuf,
}

impl SeedDir {
    /// The directory of one seed of a run, whether it is there or not.
    #[must_use]
    pub fn of(run: &Path, seed: u32) -> Self {
        Self { path: run.join(format!("seed_{seed}")) }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A line for each step that was logged.
    #[must_use]
    pub fn history(&self) -> PathBuf {
        self.path.join(HISTORY)
    }

    /// The same as a table.
    #[must_use]
    pub fn history_csv(&self) -> PathBuf {
        self.path.join("history.csv")
    }

    /// The state after a step.
    #[must_use]
    pub fn checkpoint(&self, step: usize) -> PathBuf {
        self.path.join(format!("checkpoint-{step}"))
    }

    /// The trained classifier.
    #[must_use]
    pub fn best(&self) -> PathBuf {
        self.path.join(BEST)
    }

    /// TensorBoard's event files.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// The seed's part of the summary; written last: a seed is finished when it exists.
    #[must_use]
    pub fn result(&self) -> PathBuf {
        self.path.join(RESULT)
    }

    /// Metrics of the test split.
    #[must_use]
    pub fn test_metrics(&self) -> PathBuf {
        self.path.join("test_metrics.json")
    }

    #[must_use]
    pub fn predictions(&self, split: &str) -> PathBuf {
        self.path.join(format!("predictions_{split}.jsonl"))
    }
}

/// Refuses a directory in which no training began.
pub fn ensure_run(path: &Path) -> Result<()> {
    ensure!(path.join(CONFIG).is_file(), "{}: not a run: it has no {CONFIG}", path.display());
    ensure!(is_run(path), "{}", only_configured(path));
    Ok(())
}

/// Whether a training or a sweep has begun in a directory with a configuration: `init` writes such a directory, too.
pub(super) fn is_run(path: &Path) -> bool {
    let is_seed = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("seed_"));
    path.join(INPUTS).is_file() || path.join(SWEEP).is_file() || subdirectories(path).iter().any(is_seed)
}

pub(super) fn only_configured(path: &Path) -> String {
    format!(
        "{}: not a run: it has a configuration, and no training began there; `llmcls train --config {}` makes a run of it",
        path.display(),
        quoted(&path.join(CONFIG).display().to_string())
    )
}

/// The runs in a directory and up to `depth` directories below it, with their order in time.
pub(super) fn runs_below(path: &Path, depth: usize) -> Vec<((String, usize), PathBuf)> {
    let mut runs = Vec::new();
    for directory in subdirectories(path) {
        match directory.file_name().and_then(|name| run_order(&name.to_string_lossy())) {
            Some(age) if directory.join(CONFIG).is_file() => runs.push((age, directory)),
            _ if depth > 0 => runs.extend(runs_below(&directory, depth - 1)),
            _ => {}
        }
    }
    runs
}

fn newest_checkpoint(run: &Path) -> Option<PathBuf> {
    let step = |path: &Path| path.file_name()?.to_str()?.strip_prefix("checkpoint-")?.parse::<usize>().ok();
    let checkpoints = subdirectories(run).into_iter().flat_map(|seed| subdirectories(&seed));
    let mut checkpoints: Vec<(SystemTime, usize, PathBuf)> =
        checkpoints.filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, step(&path)?, path))).collect();
    checkpoints.sort();
    checkpoints.pop().map(|(.., path)| path)
}

pub(super) fn subdirectories(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// `run_20260102-030405-2` sorts as its time, then 2.
fn run_order(name: &str) -> Option<(String, usize)> {
    let rest = name.strip_prefix("run_")?;
    let mut parts = rest.splitn(3, '-');
    let time = format!("{}-{}", parts.next()?, parts.next()?);
    Some((time, parts.next().map_or(Some(1), |number| number.parse().ok())?))
}

/// Makes `<root>/<model>/<dataset>/<kind>_<time>/`; nobody else can get the same one.
pub fn create(root: &Path, model: &str, dataset: &str, kind: &str) -> Result<PathBuf> {
    let parent = root.join(model_component(model)).join(safe_component(dataset));
    fs::create_dir_all(&parent).with_context(|| format!("{}: cannot create", parent.display()))?;
    let time = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S");
    for attempt in 1.. {
        let suffix = if attempt == 1 { String::new() } else { format!("-{attempt}") };
        let path = parent.join(format!("{kind}_{time}{suffix}"));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("{}: cannot create", path.display())),
        }
    }
    unreachable!("some number is free")
}

/// The model's part of the path: the last part of its name, without the revision.
pub(super) fn model_component(model: &str) -> String {
    let name = model.trim_end_matches('/').split('@').next().unwrap_or_default();
    safe_component(name.rsplit('/').next().unwrap_or_default())
}

/// One path component: nothing that separates, hides or leads upwards.
pub(super) fn safe_component(name: &str) -> String {
    let safe: String = name.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect();
    let safe = safe.trim_start_matches('.');
    if safe.is_empty() { "unnamed".to_owned() } else { safe.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_one_safe_component() {
        assert_eq!(model_component("meta-llama/Llama-3.2-1B@main"), "Llama-3.2-1B");
        assert_eq!(model_component("data/tiny-llama/"), "tiny-llama");
        assert_eq!(safe_component("../../etc"), "_.._etc");
        assert_eq!(safe_component(".."), "unnamed");
        assert_eq!(safe_component("a b\\c"), "a_b_c");
    }

    #[test]
    fn runs_started_in_the_same_second_get_their_own_directories() {
        let root = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..3).map(|_| RunDir::create(root.path(), "m", "d").unwrap().path).collect();
        let mut distinct = paths.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), 3);
    }
}
