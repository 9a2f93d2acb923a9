//! Records of a run: metrics and predictions as JSON.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::atomic_file;
use crate::evaluation::Evaluation;
use crate::metrics::Scores;

/// `history.jsonl`: one object a line, appended as training goes.
pub struct History {
    file: File,
    lines: usize,
}

impl History {
    /// Goes on after the first `lines` lines; what follows them is removed.
    ///
    /// # Errors
    /// If the file has fewer lines, or cannot be read or written.
    pub fn open(path: &Path, lines: usize) -> Result<Self> {
        let mut kept = String::new();
        if lines > 0 {
            let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
            kept = text.split_inclusive('\n').take(lines).collect();
            let found = kept.lines().count();
            ensure!(found == lines, "{}: has {found} lines, and the checkpoint knows {lines}", path.display());
        }
        atomic_file::write_bytes(path, kept.as_bytes())?;
        let file =
            File::options().append(true).open(path).with_context(|| format!("{}: cannot open", path.display()))?;
        Ok(Self { file, lines })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn push(&mut self, record: &Value) -> Result<()> {
        self.lines += 1;
        writeln!(self.file, "{record}").context("cannot write to history.jsonl")
    }

    /// Makes sure that all lines are on disk; returns how many there are.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn sync(&self) -> Result<usize> {
        self.file.sync_all().context("cannot write to history.jsonl")?;
        Ok(self.lines)
    }
}

/// The metrics of an evaluation under transformers' names.
#[must_use]
pub fn evaluation_record(evaluation: &Evaluation, scores: &Scores, seconds: f64, batches: usize) -> Map<String, Value> {
    let samples = evaluation.predictions.predicted.len() as f64;
    let mut record = Map::new();
    record.insert("eval_loss".into(), json!(evaluation.loss));
    record.extend(score_entries(scores));
    record.insert("eval_runtime".into(), json!(seconds));
    record.insert("eval_samples_per_second".into(), json!(samples / seconds));
    record.insert("eval_steps_per_second".into(), json!(batches as f64 / seconds));
    record
}

/// Scores under transformers' names.
#[must_use]
pub fn score_entries(scores: &Scores) -> Map<String, Value> {
    let Ok(Value::Object(entries)) = serde_json::to_value(scores) else { unreachable!("scores are a plain structure") };
    entries.into_iter().map(|(name, value)| (format!("eval_{name}"), value)).collect()
}

/// One line of a predictions file.
#[derive(Serialize)]
pub struct PredictionLine<'a> {
    /// The row's id.
    pub id: &'a str,
    /// One probability a label.
    pub probs: &'a [f32],
    /// All labels.
    pub labels: &'a [String],
    /// The labels that are predicted.
    pub predicted: Vec<&'a str>,
    /// The labels that hold, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<Vec<&'a str>>,
}

/// The names of the labels that are set.
#[must_use]
pub fn names<'a>(labels: &'a [String], is_set: &[bool]) -> Vec<&'a str> {
    labels.iter().zip(is_set).filter(|(_, is_set)| **is_set).map(|(label, _)| label.as_str()).collect()
}

/// Writes predictions with their targets, a line a sample.
///
/// # Errors
/// If the file cannot be written.
pub fn write_predictions(path: &Path, ids: &[String], labels: &[String], evaluation: &Evaluation) -> Result<()> {
    let predictions = &evaluation.predictions;
    atomic_file::write_file(path, |writer| {
        for (row, id) in ids.iter().enumerate() {
            let line = PredictionLine {
                id,
                probs: &predictions.probabilities[row],
                labels,
                predicted: names(labels, &predictions.predicted[row]),
                targets: Some(names(labels, &predictions.targets[row])),
            };
            serde_json::to_writer(&mut *writer, &line)?;
            writer.write_all(b"\n")?;
        }
        Ok(())
    })
}

/// Writes a value as indented JSON.
///
/// # Errors
/// If the file cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    atomic_file::write_bytes(path, text.as_bytes())
}

/// A table of per-label scores for a terminal.
#[must_use]
pub fn score_table(scores: &Scores, loss: f64) -> String {
    let width = scores.per_label.iter().map(|row| row.label.chars().count()).max().unwrap_or(0).max(9);
    let mut out = format!("{:width$}  precision  recall      f1  support\n", "label");
    for row in &scores.per_label {
        out.push_str(&format!(
            "{:width$}  {:9.3}  {:6.3}  {:6.3}  {:7}\n",
            row.label, row.precision, row.recall, row.f1, row.support
        ));
    }
    let support: usize = scores.per_label.iter().map(|row| row.support).sum();
    for (name, precision, recall, f1) in [
        ("micro avg", scores.precision_micro, scores.recall_micro, scores.f1_micro),
        ("macro avg", scores.precision_macro, scores.recall_macro, scores.f1_macro),
    ] {
        out.push_str(&format!("{name:width$}  {precision:9.3}  {recall:6.3}  {f1:6.3}  {support:7}\n"));
    }
    out.push_str(&format!("loss {loss:.4}, all labels right {:.3}\n", scores.accuracy));
    out
}
