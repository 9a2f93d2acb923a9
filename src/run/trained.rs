//! Finds the trained classifier that a path names: a run, a seed of it, an adapter, a complete model, or what lies above.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::directory::{
    BEST, CONFIG, HISTORY, SUMMARY, SWEEP, is_run, model_component, only_configured, runs_below, safe_component,
    subdirectories,
};
use super::{adapter, manifest, model_directory};
use crate::embedded;
use crate::exit::Resumable;

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

#[cfg(test)]
mod tests {
    use super::*;

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
