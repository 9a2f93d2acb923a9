//! `llmcls eval`: scores a trained classifier on labelled rows.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::setup::{self, Loaded};
use super::warnings;
use crate::artifacts::classifier_file::ClassifierFile;
use crate::artifacts::records;
use crate::cli::{EvalArgs, Split, TuneScope};
use crate::console::Console;
use crate::metrics::Decision;
use crate::model::classifier::Problem;
use crate::thresholds::{Scope, tune};
use crate::training::trainer::score;

/// Evaluates.
///
/// # Errors
/// If the classifier or the rows cannot be used.
pub fn run(args: &EvalArgs, console: Console) -> Result<()> {
    let loaded = Loaded::open(&args.run, console)?;
    let (name, path, limit) = rows(args, &loaded)?;
    let problem = loaded.classifier.problem();
    let examples = setup::read_split(&path, &loaded.columns(true), limit, problem, console)?;
    let samples = setup::encode(&loaded.encoder, &examples)?;
    warnings::about(&name, &examples, &samples, loaded.file.max_length, console);
    let labels = &loaded.file.labels;
    let batch_size = loaded.batch_size(&args.run);
    let thresholds = match args.tune_thresholds {
        None => loaded.file.thresholds.clone(),
        Some(scope) => tuned(args, scope, &loaded, console)?,
    };
    let usual = Decision::above(&vec![0.5; labels.len()]);
    let mut scored = score(&loaded.classifier, &samples, labels, &usual, batch_size, console)?;
    if thresholds.iter().any(|&threshold| threshold != 0.5) && problem == Problem::MultiLabel {
        print_table(&format!(
            "with threshold 0.5: f1_micro {:.4}, f1_macro {:.4}; with the classifier's own:\n",
            scored.scores.f1_micro, scored.scores.f1_macro
        ));
        scored.decide(&Decision::above(&thresholds), labels);
    }
    print_table(&records::score_table(&scored.scores, scored.evaluation.loss));

    let directory = match &args.output_dir {
        Some(directory) => directory.clone(),
        None => loaded.trained.home.join(format!("eval_{name}")),
    };
    fs::create_dir_all(&directory).with_context(|| format!("{}: cannot create", directory.display()))?;
    let mut metrics = scored.record;
    metrics.insert("rows".into(), json!(path.display().to_string()));
    metrics.insert("per_label".into(), json!(scored.scores.per_label));
    records::write_json(&directory.join("metrics.json"), &metrics)?;
    let ids: Vec<String> = examples.into_iter().map(|example| example.id).collect();
    records::write_predictions(&directory.join("predictions.jsonl"), &ids, labels, &scored.evaluation)?;
    console.say(format!("wrote {}", directory.display()));
    Ok(())
}

/// Finds thresholds on the run's validation split, stores them in `classifier.json`, and returns them.
fn tuned(args: &EvalArgs, scope: TuneScope, loaded: &Loaded, console: Console) -> Result<Vec<f32>> {
    let problem = loaded.classifier.problem();
    ensure!(
        problem == Problem::MultiLabel,
        "--tune_thresholds: thresholds do not apply to single_label_classification"
    );
    let data = &loaded.config.as_ref().context("--tune_thresholds needs a run, whose validation split it uses")?.data;
    let examples = setup::read_split(&data.val_csv, &loaded.columns(true), data.max_val_samples, problem, console)?;
    let samples = setup::encode(&loaded.encoder, &examples)?;
    let labels = &loaded.file.labels;
    let usual = Decision::above(&loaded.file.thresholds);
    let scored = score(&loaded.classifier, &samples, labels, &usual, loaded.batch_size(&args.run), console)?;
    let scope = match scope {
        TuneScope::Global => Scope::Global,
        TuneScope::PerLabel => Scope::PerLabel,
    };
    let thresholds = tune(&scored.evaluation.predictions, labels.len(), scope, args.objective);
    ClassifierFile { thresholds: thresholds.clone(), ..loaded.file.clone() }.save(&loaded.trained.adapter)?;
    console.say(format!("stored thresholds in {}", loaded.trained.adapter.display()));
    Ok(thresholds)
}

#[expect(clippy::print_stdout, reason = "the table is this command's result")]
fn print_table(table: &str) {
    print!("{table}");
}

/// The rows to score: their name, their file, and how many of them.
fn rows(args: &EvalArgs, loaded: &Loaded) -> Result<(String, PathBuf, Option<usize>)> {
    if let Some(path) = &args.input_csv {
        let name = path.file_stem().map_or_else(|| "input".into(), |stem| stem.to_string_lossy().into_owned());
        return Ok((name, path.clone(), None));
    }
    let split = args.split.unwrap_or(Split::Test);
    let data = &loaded
        .config
        .as_ref()
        .context("this directory belongs to no run, so it has no splits; name rows with --input_csv")?
        .data;
    let (path, limit) = match split {
        Split::Train => (Some(&data.train_csv), data.max_train_samples),
        Split::Validation => (Some(&data.val_csv), data.max_val_samples),
        Split::Test => (data.test_csv.as_ref(), data.max_test_samples),
    };
    let path = path.context("the run has no data.test_csv; name rows with --input_csv, or --split validation")?;
    Ok((split.name().to_owned(), path.clone(), limit))
}
