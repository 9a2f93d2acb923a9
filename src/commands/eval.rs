//! `llmcls eval`: scores a trained classifier on labelled rows.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;

use super::setup::{self, Loaded};
use crate::artifacts::records;
use crate::cli::{EvalArgs, Split};
use crate::console::Console;
use crate::training::trainer::score;

/// Evaluates.
///
/// # Errors
/// If the classifier or the rows cannot be used.
pub fn run(args: &EvalArgs, console: Console) -> Result<()> {
    let loaded = Loaded::open(&args.run, console)?;
    let (name, path, limit) = rows(args, &loaded)?;
    let problem = loaded.classifier.problem();
    let examples = setup::read_split(&path, &loaded.columns(true), limit, problem)?;
    let samples = setup::encode(&loaded.encoder, &examples)?;
    setup::warn_about(&name, &examples, &samples, loaded.file.max_length, console);
    let labels = &loaded.file.labels;
    let batch_size = loaded.batch_size(&args.run);
    let scored = score(&loaded.classifier, &samples, labels, &loaded.file.thresholds, batch_size, console)?;
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
