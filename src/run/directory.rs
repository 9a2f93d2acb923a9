//! `outputs/<model>/<dataset>/run_<time>/`: the only code that knows the layout.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::{adapter, manifest, model_directory};
use crate::console::complain;
use crate::embedded;
use crate::exit::{Resumable, quoted};

/// The resolved configuration.
pub const CONFIG: &str = "config.yaml";
/// A run is finished when this file exists.
pub(super) const SUMMARY: &str = "summary.json";
/// A line for each step that was logged; in the directory of a seed.
pub const HISTORY: &str = "history.jsonl";
/// What a training gave; in the directory of a seed.
pub const RESULT: &str = "result.json";
/// The trained classifier in the directory of a seed.
const BEST: &str = "best";
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

/// A trained classifier on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trained {
    /// The directory with tokenizer, `classifier.json`, and an adapter or a complete model.
    pub adapter: PathBuf,
    /// The directory of its seed, or the adapter's own if it belongs to no run.
    pub home: PathBuf,
    /// The configuration of its run, if it belongs to one.
    pub config: Option<PathBuf>,
}

impl Trained {
    /// Returns true if it needs no base.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        model_directory::is_complete(&self.adapter)
    }

    /// The files that it is read from, and the records of its training: no output may replace them.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        const RECORDS: [&str; 4] = [HISTORY, "history.csv", "predictions_validation.jsonl", "predictions_test.jsonl"];
        let inside = fs::read_dir(&self.adapter).into_iter().flatten().flatten().map(|entry| entry.path());
        let records = RECORDS.into_iter().map(|name| self.home.join(name));
        inside.chain(self.config.clone()).chain(records).collect()
    }
}

/// Returns true if a directory holds a trained classifier: an adapter, or a complete model.
fn is_classifier(directory: &Path) -> bool {
    adapter::is_adapter(directory) || model_directory::is_complete(directory)
}

/// Finds the classifier that `--run` names: a run (then its seed with the best validation metric),
/// a seed's directory, a peft directory, or a directory with a complete model.
pub fn find_trained(path: &Path) -> Result<Trained> {
    ensure!(embedded::is_dir(path), "{}: no such run directory", path.display());
    if is_classifier(path) {
        let seed = fs::canonicalize(path).ok().and_then(|path| path.parent().map(Path::to_owned));
        let config = seed.as_deref().and_then(Path::parent).map(|run| run.join(CONFIG));
        let is_best = path.ends_with(BEST) && config.as_ref().is_some_and(|config| config.is_file());
        let home = seed.filter(|_| is_best).unwrap_or_else(|| path.to_owned());
        return Ok(Trained { adapter: path.to_owned(), home, config: config.filter(|_| is_best) });
    }
    let best = path.join(BEST);
    if is_classifier(&best) {
        let config = path.join("..").join(CONFIG);
        return Ok(Trained { adapter: best, home: path.to_owned(), config: config.is_file().then_some(config) });
    }
    let summary = path.join(SUMMARY);
    if !summary.is_file() {
        return find_below(path);
    }
    let text = fs::read_to_string(&summary).with_context(|| format!("{}: cannot read", summary.display()))?;
    if let Some(cell) = best_cell(path, &text)? {
        return find_trained(&cell);
    }
    let seed = best_seed(&text).with_context(|| format!("{}: names no best seed", summary.display()))?;
    let seed = path.join(format!("seed_{seed}"));
    ensure!(is_classifier(&seed.join(BEST)), "{}: its best/ directory is missing", seed.display());
    Ok(Trained { adapter: seed.join(BEST), home: seed, config: Some(path.join(CONFIG)) })
}

/// Finds the classifier that a path names, as [`find_trained`] does, and checks that its files are whole.
///
/// # Errors
/// If there is none, or it is damaged.
pub fn find_verified(path: &Path) -> Result<Trained> {
    let trained = find_trained(path)?;
    // Its parts are checked when they are read.
    if embedded::contains(&trained.adapter) {
        return Ok(trained);
    }
    if trained.config.is_some() {
        manifest::verify(&trained.adapter)?;
    } else {
        manifest::verify_if_present(&trained.adapter)?;
    }
    Ok(trained)
}

/// The newest finished run below a directory that is none itself.
fn find_below(path: &Path) -> Result<Trained> {
    let is_seed = path.join("..").join(CONFIG).is_file() && path.join(HISTORY).is_file();
    let run = if is_seed { path.parent().filter(|_| !path.ends_with("..")) } else { Some(path) };
    if let Some(run) = run.filter(|run| run.join(CONFIG).is_file()) {
        bail!("{}", if is_run(run) { unfinished(run) } else { only_configured(run) });
    }
    let mut runs = runs_below(path, 3);
    runs.sort();
    if let Some((_, run)) = runs.iter().rev().find(|(_, run)| run.join(SUMMARY).is_file()) {
        return find_trained(run);
    }
    if let Some((_, run)) = runs.last() {
        bail!("{}: holds no finished run; the newest is {}", path.display(), unfinished(run));
    }
    bail!(
        "{}: neither a finished run (no summary.json), nor a seed with a best/ directory, nor a peft directory \
         (no adapter_config.json), nor a complete model (config.json and model.safetensors), nor a directory with such runs below it",
        path.display()
    )
}

/// Refuses a directory in which no training began.
pub fn ensure_run(path: &Path) -> Result<()> {
    ensure!(path.join(CONFIG).is_file(), "{}: not a run: it has no {CONFIG}", path.display());
    ensure!(is_run(path), "{}", only_configured(path));
    Ok(())
}

/// Whether a training or a sweep has begun in a directory with a configuration: `init` writes such a directory, too.
fn is_run(path: &Path) -> bool {
    let is_seed = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("seed_"));
    path.join(INPUTS).is_file() || path.join(SWEEP).is_file() || subdirectories(path).iter().any(is_seed)
}

fn only_configured(path: &Path) -> String {
    format!(
        "{}: not a run: it has a configuration, and no training began there; `llmcls train --config {}` makes a run of it",
        path.display(),
        quoted(&path.join(CONFIG).display().to_string())
    )
}

fn unfinished(run: &Path) -> String {
    let command = if run.join(SWEEP).is_file() { "sweep" } else { "train" };
    let resumable = Resumable { run: run.to_owned(), command };
    let seeds: Vec<String> = subdirectories(run)
        .into_iter()
        .filter(|seed| is_classifier(&seed.join(BEST)))
        .map(|seed| seed.display().to_string())
        .collect();
    let finished = match seeds.as_slice() {
        [] => String::new(),
        seeds => format!("\nor use a seed that is finished: --run {}", seeds.join(", ")),
    };
    format!("{}: this run is not finished; to resume it:\n  {}{finished}", run.display(), resumable.command())
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

/// Reads this key alone: older summaries have others.
fn best_seed(summary: &str) -> Result<u32> {
    #[derive(Deserialize)]
    struct Summary {
        best_seed: u32,
    }
    Ok(serde_json::from_str::<Summary>(summary)?.best_seed)
}

/// The best run of a finished sweep; `None` if the directory is a run.
fn best_cell(path: &Path, summary: &str) -> Result<Option<PathBuf>> {
    #[derive(Deserialize)]
    struct Summary {
        best: usize,
        cells: Vec<Cell>,
    }
    #[derive(Deserialize)]
    struct Cell {
        run: String,
    }
    if !path.join(SWEEP).is_file() {
        return Ok(None);
    }
    let summary: Summary =
        serde_json::from_str(summary).with_context(|| format!("{}: not the summary of a sweep", path.display()))?;
    let best = summary.cells.get(summary.best).with_context(|| format!("{}: names no best run", path.display()))?;
    Ok(Some(path.join(&best.run)))
}

/// The newest finished run under `root`, of one model and data set if given.
pub fn newest_finished(root: &Path, of: Option<(&str, &str)>) -> Result<PathBuf> {
    let is_wanted = |run: &Path| {
        of.is_none_or(|(model, dataset)| {
            run.parent()
                .is_some_and(|above| above.ends_with(Path::new(&model_component(model)).join(safe_component(dataset))))
        })
    };
    let runs = runs_below(root, 2).into_iter();
    let newest = runs.filter(|(_, run)| run.join(SUMMARY).is_file() && is_wanted(run)).max();
    match (newest, of) {
        (Some((_, run)), _) => Ok(run),
        (None, Some((model, dataset))) => bail!(
            "{}: no finished run of model `{model}` and data set `{dataset}`; train one, or name one with --run",
            root.display()
        ),
        (None, None) => bail!("{}: no finished run; train one, or name one with --run", root.display()),
    }
}

fn subdirectories(path: &Path) -> Vec<PathBuf> {
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
fn model_component(model: &str) -> String {
    let name = model.trim_end_matches('/').split('@').next().unwrap_or_default();
    safe_component(name.rsplit('/').next().unwrap_or_default())
}

/// One path component: nothing that separates, hides or leads upwards.
fn safe_component(name: &str) -> String {
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

    #[test]
    fn a_directory_that_is_no_run_leads_to_the_newest_below_or_says_how_to_go_on() {
        let root = tempfile::tempdir().unwrap();
        let create = |path: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, r#"{"best_seed": 3}"#).unwrap();
        };
        create("m/d/run_20260301-000000/config.yaml");
        create("m/d/run_20260301-000000/seed_1/history.jsonl");
        create("m/d/run_20260301-000000/seed_2/best/adapter_config.json");
        for at in ["m/d/run_20260301-000000", "m/d/run_20260301-000000/seed_1", "m/d", "m", ""] {
            let error = find_trained(&root.path().join(at)).unwrap_err().to_string();
            let lines: Vec<&str> = error.lines().collect();
            assert!(
                lines[0].contains("not finished") && lines[1].ends_with("m/d/run_20260301-000000"),
                "{at}: {error}"
            );
            assert!(lines[2].contains("seed_2"), "{at}: {error}");
        }
        for run in ["run_20260101-000000", "run_20260201-000000"] {
            for file in ["config.yaml", "summary.json", "seed_3/best/adapter_config.json"] {
                create(&format!("m/d/{run}/{file}"));
            }
        }
        for above in ["m/d", "m", ""] {
            let found = find_trained(&root.path().join(above)).unwrap();
            assert!(found.home.ends_with("run_20260201-000000/seed_3"), "{above}: {found:?}");
        }
        create("other/file");
        assert!(find_trained(&root.path().join("other")).unwrap_err().to_string().contains("neither a finished run"));
    }

    #[test]
    fn the_newest_finished_run_is_found_and_unfinished_ones_are_not() {
        let root = tempfile::tempdir().unwrap();
        for (run, is_finished) in [
            ("m/d/run_20260101-000000", true),
            ("m/d/run_20260101-000000-10", true),
            ("m/d/run_20260101-000000-9", true),
            ("m/d/run_20260201-000000", false),
            ("m/e/run_20250101-000000", true),
        ] {
            let run = root.path().join(run);
            fs::create_dir_all(&run).unwrap();
            fs::write(run.join(CONFIG), "").unwrap();
            if is_finished {
                fs::write(run.join(SUMMARY), "{}").unwrap();
            }
        }
        assert!(newest_finished(root.path(), None).unwrap().ends_with("m/d/run_20260101-000000-10"));
        assert!(newest_finished(root.path(), Some(("x/m", "e"))).unwrap().ends_with("run_20250101-000000"));
        assert!(newest_finished(root.path(), Some(("m", "none"))).is_err());
    }
}
