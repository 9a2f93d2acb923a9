//! Other classifiers on the rows of an evaluation, and their differences.

use std::path::Path;

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
use crate::run::report::Compared;
use crate::run::results::ScoreDifference;
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
    /// As the report shows it.
    pub(super) compared: Compared,
    intervals: Intervals,
}

impl Comparison {
    pub(super) fn record(&self) -> ComparisonRecord {
        let Compared { run, scores, difference, .. } = &self.compared;
        ComparisonRecord {
            run: run.clone(),
            f1_micro: scores.f1_micro,
            f1_macro: scores.f1_macro,
            accuracy: scores.accuracy,
            difference: Difference { f1_micro: difference.f1_micro, f1_macro: difference.f1_macro },
            difference_ci95: self.intervals,
        }
    }

    /// One line for the terminal.
    pub(super) fn to_line(&self) -> String {
        let Compared { run, scores, difference, .. } = &self.compared;
        let change = |value: f64, [low, high]: Interval| match low.is_nan() {
            true => format!("{value:+.4}"),
            false => format!("{value:+.4} ({low:+.4} to {high:+.4})"),
        };
        format!(
            "{run}: f1_micro {:.4}, {}; f1_macro {:.4}, {}\n",
            scores.f1_micro,
            change(difference.f1_micro, self.intervals.f1_micro),
            scores.f1_macro,
            change(difference.f1_macro, self.intervals.f1_macro)
        )
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
    let per_label = indices.iter().map(|&index| scored.scores.per_label[index].clone()).collect();
    let scores = Scores { per_label, ..scored.scores };
    let intervals = Intervals::of_difference(own.predictions, &ordered, BOOTSTRAP_SEED);
    let difference = ScoreDifference::new(&scores, own.scores, &intervals);
    // Its name is where it is below the working directory, so that a report says no more of this machine than it must.
    let here = std::env::current_dir().unwrap_or_default();
    let name = Path::new(&run).strip_prefix(here).map_or_else(|_| run.clone(), |path| path.display().to_string());
    let compared = Compared::new(name, (own.predictions, own.scores), (&ordered, &scores), difference);
    Ok(Comparison { compared, intervals })
}
