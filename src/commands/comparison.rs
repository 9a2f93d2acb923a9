//! Other classifiers on the rows of an evaluation, and their differences.

use anyhow::{Result, ensure};
use serde::Serialize;

use super::loaded::Loaded;
use crate::cli::RunArgs;
use crate::cluster::Group;
use crate::console::Console;
use crate::evaluation::NotFinite;
use crate::experiment::run_report::BOOTSTRAP_SEED;
use crate::experiment::split_rows::SplitRows;
use crate::kernels::device::Device;
use crate::metrics::bootstrap::{Interval, Intervals};
use crate::metrics::{Predictions, Scores};
use crate::training::scored::score;

/// An entry of `compared` in `metrics.json`.
#[derive(Serialize)]
pub(super) struct ComparisonRecord {
    run: String,
    f1_micro: f64,
    f1_macro: f64,
    accuracy: f64,
    difference: Difference,
    difference_ci95: Intervals,
}

/// Another run's scores minus those of the evaluated run.
#[derive(Serialize)]
pub(super) struct Difference {
    f1_micro: f64,
    f1_macro: f64,
}

/// The predictions that others are compared with.
pub(super) struct Own<'a> {
    pub(super) labels: &'a [String],
    pub(super) predictions: &'a Predictions,
    pub(super) scores: &'a Scores,
}

/// Another run on the same rows.
pub(super) struct Comparison {
    run: String,
    scores: Scores,
    /// This run's scores minus those of the evaluated run.
    difference: Intervals,
    f1_micro: f64,
    f1_macro: f64,
}

impl Comparison {
    pub(super) fn record(&self) -> ComparisonRecord {
        ComparisonRecord {
            run: self.run.clone(),
            f1_micro: self.scores.f1_micro,
            f1_macro: self.scores.f1_macro,
            accuracy: self.scores.accuracy,
            difference: Difference { f1_micro: self.f1_micro, f1_macro: self.f1_macro },
            difference_ci95: self.difference,
        }
    }

    /// One line for the terminal.
    pub(super) fn to_line(&self) -> String {
        let [run, micro, difference, macro_] = self.to_row();
        format!("{run}: f1_micro {micro}, {difference}; f1_macro {macro_}\n")
    }

    pub(super) fn to_row(&self) -> [String; 4] {
        let difference = |value: f64, [low, high]: Interval| match low.is_nan() {
            true => format!("{value:+.4}"),
            false => format!("{value:+.4} ({low:+.4} to {high:+.4})"),
        };
        [
            self.run.clone(),
            format!("{:.4}", self.scores.f1_micro),
            difference(self.f1_micro, self.difference.f1_micro),
            format!("{:.4}, {}", self.scores.f1_macro, difference(self.f1_macro, self.difference.f1_macro)),
        ]
    }
}

/// Scores another run on the rows of the one that is evaluated, and gives the differences.
pub(super) fn compared(
    args: &RunArgs,
    own: &Own<'_>,
    rows: &SplitRows,
    device: &Device,
    group: &Group,
    console: Console,
) -> Result<Comparison> {
    let other = Loaded::open(args, device, console)?;
    let run = args.run.as_deref().unwrap_or(&other.predictor.trained.home).display().to_string();
    let labels = &other.predictor.file.labels;
    let is_same = labels.len() == own.labels.len() && own.labels.iter().all(|label| labels.contains(label));
    ensure!(is_same, "{run}: has other labels: {}", labels.join(", "));
    let problem = other.predictor.classifier.problem();
    let examples = rows.read(&other.columns(true)?, problem, console)?;
    let samples = other.predictor.encode(&examples, &rows.path.display().to_string(), 0)?;
    let decision = other.predictor.decision();
    let scored =
        score(&other.predictor.classifier, &samples, labels, &decision, other.batch_size(args), group, console)
            .map_err(|error| NotFinite::named(error, |row| rows.location(row, &examples[row])))?;
    // In the order of the labels of the run that is evaluated.
    let indices: Vec<usize> = own
        .labels
        .iter()
        .map(|label| labels.iter().position(|other| other == label))
        .map(Option::unwrap_or_default)
        .collect();
    let found = &scored.evaluation.predictions;
    let flags = |rows: &[Vec<bool>]| rows.iter().map(|row| indices.iter().map(|&index| row[index]).collect()).collect();
    let ordered =
        Predictions { probabilities: Vec::new(), predicted: flags(&found.predicted), targets: flags(&found.targets) };
    let comparison = Comparison {
        run,
        difference: Intervals::of_difference(own.predictions, &ordered, BOOTSTRAP_SEED),
        f1_micro: scored.scores.f1_micro - own.scores.f1_micro,
        f1_macro: scored.scores.f1_macro - own.scores.f1_macro,
        scores: scored.scores,
    };
    Ok(comparison)
}
