//! Records of a run: metrics and predictions as JSON.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::results::{HistoryLine, SeedResult};
use crate::atomic_file;
use crate::data::table::Example;
use crate::evaluation::Evaluation;
use crate::metrics::errors::{confusions, cooccurrences, worst_mistakes};
use crate::metrics::{LabelScores, Predictions, Scores};

/// `history.jsonl`: one object a line, appended as training goes.
pub struct History {
    file: File,
    lines: usize,
}

impl History {
    /// Continues after the first `lines` lines and removes the rest.
    ///
    /// # Errors
    /// If the file has fewer lines, or cannot be read or written.
    pub fn open(path: &Path, lines: usize) -> Result<Self> {
        let mut kept = String::new();
        if lines > 0 {
            let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
            kept = text.split_inclusive('\n').take(lines).collect();
            let found = kept.lines().count();
            ensure!(found == lines, "{}: has {found} lines, but the checkpoint recorded {lines}", path.display());
        }
        atomic_file::write_bytes(path, kept.as_bytes())?;
        let file =
            File::options().append(true).open(path).with_context(|| format!("{}: cannot open", path.display()))?;
        Ok(Self { file, lines })
    }

    pub fn push(&mut self, line: &HistoryLine) -> Result<()> {
        self.lines += 1;
        // Through a value: its keys are in alphabetical order.
        writeln!(self.file, "{}", json!(line)).context("cannot write to history.jsonl")
    }

    /// Makes sure that all lines are on disk; returns how many there are.
    pub fn sync(&self) -> Result<usize> {
        self.file.sync_all().context("cannot write to history.jsonl")?;
        Ok(self.lines)
    }
}

/// Writes the lines of a `history.jsonl` as CSV: a column for each key, empty where a line has none.
pub fn write_history_csv(history: &Path, path: &Path) -> Result<()> {
    let text = std::fs::read_to_string(history).with_context(|| format!("{}: cannot read", history.display()))?;
    let lines: Vec<Map<String, Value>> = text
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("{}: not JSON", history.display())))
        .collect::<Result<_>>()?;
    let mut columns = vec!["step".to_owned(), "epoch".to_owned()];
    for key in lines.iter().flat_map(Map::keys) {
        if !columns.contains(key) {
            columns.push(key.clone());
        }
    }
    atomic_file::write_file(path, |writer| {
        let mut csv = csv::Writer::from_writer(writer);
        csv.write_record(&columns)?;
        for line in &lines {
            csv.write_record(columns.iter().map(|column| line.get(column).map_or_else(String::new, Value::to_string)))?;
        }
        Ok(csv.flush()?)
    })
}

/// The lines of a `history.jsonl`; none if there is no such file.
pub fn read_history(path: &Path) -> Result<Vec<HistoryLine>> {
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
    let line = |(index, line)| {
        serde_json::from_str(line).with_context(|| format!("{}:{}: not a line of a history", path.display(), index + 1))
    };
    text.lines().enumerate().map(line).collect()
}

/// The `result.json` of a seed; none if there is no such file.
pub fn read_seed_result(path: &Path) -> Result<Option<SeedResult>> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
    let result = serde_json::from_str(&text).with_context(|| format!("{}: not a seed's result", path.display()))?;
    Ok(Some(result))
}

/// One line of a predictions file.
#[derive(Serialize)]
pub struct PredictionLine<'a> {
    pub id: &'a str,
    /// One probability a label.
    pub probs: &'a [f32],
    /// All labels.
    pub labels: &'a [String],
    /// The labels that are predicted.
    pub predicted: Vec<&'a str>,
    /// The true labels, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<Vec<&'a str>>,
    /// Which words weighed, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<Vec<Why>>,
}

/// What the words of a text weighed for one label: their weights and `rest` sum to `logit − baseline`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Why {
    /// The label.
    pub label: String,
    /// The model's output for the text.
    pub logit: f64,
    /// Its output for no text in particular.
    pub baseline: f64,
    /// The weight of special tokens.
    pub rest: f64,
    /// What the weights miss of `logit − baseline`, where that is more than a fiftieth of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<f64>,
    /// In the order of the text.
    pub words: Vec<WordWeight>,
}

/// A word, where it is in the text in bytes, and its weight: positive ones speak for the label.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WordWeight {
    /// As it stands in the text.
    pub word: String,
    /// First byte.
    pub start: usize,
    /// Behind the last byte.
    pub end: usize,
    /// In units of the logit.
    pub weight: f64,
}

/// The names of the labels that are set.
#[must_use]
pub fn names<'a>(labels: &'a [String], is_set: &[bool]) -> Vec<&'a str> {
    labels.iter().zip(is_set).filter(|(_, is_set)| **is_set).map(|(label, _)| label.as_str()).collect()
}

/// Writes predictions with their targets, a line a sample.
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
                why: None,
            };
            serde_json::to_writer(&mut *writer, &line)?;
            writer.write_all(b"\n")?;
        }
        Ok(())
    })
}

/// Reads what [`write_predictions`] wrote, for labels in the order of `labels`.
pub fn read_predictions(path: &Path, labels: &[String]) -> Result<Predictions> {
    #[derive(Deserialize)]
    struct Line {
        probs: Vec<f32>,
        predicted: Vec<String>,
        targets: Vec<String>,
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
    let mut predictions = Predictions::default();
    for (number, line) in text.lines().enumerate() {
        let line: Line = serde_json::from_str(line)
            .with_context(|| format!("{}:{}: not a prediction", path.display(), number + 1))?;
        ensure!(line.probs.len() == labels.len(), "{}:{}: another number of labels", path.display(), number + 1);
        let flags = |names: &[String]| labels.iter().map(|label| names.contains(label)).collect();
        predictions.predicted.push(flags(&line.predicted));
        predictions.targets.push(flags(&line.targets));
        predictions.probabilities.push(line.probs);
    }
    Ok(predictions)
}

#[derive(Serialize)]
struct MistakeLine<'a> {
    error: &'a str,
    id: &'a str,
    label: &'a str,
    probability: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// The labels that the row has, and those that are predicted.
    targets: Vec<&'a str>,
    predicted: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a Why>,
}

/// Writes the most confident mistakes of each label, a line each; `why` has words that weighed, by row and label.
pub fn write_mistakes(
    path: &Path,
    (examples, predictions): (&[Example], &Predictions),
    labels: &[String],
    shows_texts: bool,
    why: &BTreeMap<(usize, usize), Why>,
) -> Result<()> {
    /// The most errors of each kind and label.
    const COUNT: usize = 10;
    const CHARACTERS: usize = 240;
    atomic_file::write_file(path, |writer| {
        for mistake in worst_mistakes(predictions, COUNT) {
            let example = &examples[mistake.row];
            let text = shows_texts.then(|| example.text.chars().take(CHARACTERS).collect());
            let line = MistakeLine {
                error: if mistake.is_false_positive { "false_positive" } else { "false_negative" },
                id: &example.id,
                label: &labels[mistake.label],
                probability: mistake.probability,
                text,
                targets: names(labels, &predictions.targets[mistake.row]),
                predicted: names(labels, &predictions.predicted[mistake.row]),
                why: why.get(&(mistake.row, mistake.label)),
            };
            let line = serde_json::to_string(&line)?;
            writeln!(writer, "{line}")?;
        }
        Ok(())
    })
}

/// Pairs of labels that are predicted in place of each other, and that occur together.
#[derive(Clone, Debug, Serialize)]
pub struct LabelPairs {
    confused: Vec<Confused>,
    together: Vec<Together>,
}

#[derive(Clone, Debug, Serialize)]
struct Confused {
    missed: String,
    predicted: String,
    rows: usize,
}

#[derive(Clone, Debug, Serialize)]
struct Together {
    labels: [String; 2],
    rows: usize,
}

impl LabelPairs {
    #[must_use]
    pub fn new(labels: &[String], predictions: &Predictions) -> Self {
        const COUNT: usize = 100;
        let name = |label: usize| labels[label].clone();
        let confused = confusions(predictions, COUNT).into_iter().map(|pair| Confused {
            missed: name(pair.a),
            predicted: name(pair.b),
            rows: pair.rows,
        });
        let together = cooccurrences(predictions, COUNT)
            .into_iter()
            .map(|pair| Together { labels: [name(pair.a), name(pair.b)], rows: pair.rows });
        Self { confused: confused.collect(), together: together.collect() }
    }
}

/// Writes a value as indented JSON.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    atomic_file::write_bytes(path, text.as_bytes())
}

/// Labels of a table on the terminal: those with the most rows.
const SHOWN: usize = 20;

/// A table of per-label scores for a terminal.
#[must_use]
pub fn score_table(scores: &Scores, loss: f64) -> String {
    let width = scores.per_label.iter().map(|row| row.label.chars().count()).max().unwrap_or(0).max(9);
    let mut out = format!("{:width$}  precision  recall      f1  support\n", "label");
    let mut shown: Vec<&LabelScores> = scores.per_label.iter().collect();
    let rest = shown.len().saturating_sub(SHOWN);
    if rest > 0 {
        shown.sort_by_key(|row| std::cmp::Reverse(row.support));
        shown.truncate(SHOWN);
    }
    for row in shown {
        out.push_str(&format!(
            "{:width$}  {:9.3}  {:6.3}  {:6.3}  {:7}\n",
            row.label, row.precision, row.recall, row.f1, row.support
        ));
    }
    if rest > 0 {
        out.push_str(&format!("… and {rest} labels with fewer rows; the report and the files have all\n"));
    }
    let support: usize = scores.per_label.iter().map(|row| row.support).sum();
    for (name, precision, recall, f1) in [
        ("micro avg", scores.precision_micro, scores.recall_micro, scores.f1_micro),
        ("macro avg", scores.precision_macro, scores.recall_macro, scores.f1_macro),
    ] {
        out.push_str(&format!("{name:width$}  {precision:9.3}  {recall:6.3}  {f1:6.3}  {support:7}\n"));
    }
    if !loss.is_nan() {
        out.push_str(&format!("loss {loss:.4}, "));
    }
    out.push_str(&format!("exact match {:.3}\n", scores.accuracy));
    out
}
