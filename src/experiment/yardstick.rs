//! What classifiers without a language model reach on the same rows: the most frequent labels, and TF-IDF with logistic
//! regression.

use std::time::Instant;

use anyhow::Result;

use super::prepared::Experiment;
use super::run_report::BOOTSTRAP_SEED;
use crate::baseline::Baseline;
use crate::console::Console;
use crate::data::table::Example;
use crate::metrics::bootstrap::Intervals;
use crate::metrics::{Decision, Predictions, Scores};
use crate::model::classifier::Problem;
use crate::run::results::{BaselineScores, ScoreDifference, Yardstick};

/// Rows times labels up to which the end of a training measures: a minute or so.
const MOST_CELLS: usize = 20_000_000;

/// What a baseline learns from.
#[derive(Clone, Copy)]
pub struct Lesson<'a> {
    /// The training rows.
    pub train: &'a [Example],
    /// Names of the labels.
    pub labels: &'a [String],
    pub problem: Problem,
}

impl<'a> Lesson<'a> {
    /// What the experiment's classifier learns from, too.
    #[must_use]
    pub fn of(experiment: &'a Experiment<'_>) -> Self {
        let (train, labels) = (&experiment.train.examples, &experiment.file.labels);
        Self { train, labels, problem: experiment.classifier.problem() }
    }

    /// Whether the baseline is trained in about a minute.
    #[must_use]
    pub fn is_quick(&self) -> bool {
        self.train.len().saturating_mul(self.labels.len()) <= MOST_CELLS
    }
}

/// Trains on the training rows and scores `rows`; says what `model`, the classifier's own predictions, adds.
///
/// # Errors
/// If the user stops it.
pub fn measure(
    lesson: Lesson<'_>,
    (split, rows): (&str, &[Example]),
    model: Option<&Predictions>,
    console: Console,
) -> Result<Yardstick> {
    let started = Instant::now();
    let Lesson { train, labels, problem } = lesson;
    let is_single = problem == Problem::SingleLabel;
    let texts = |rows: &[Example]| rows.iter().map(|row| row.text.clone()).collect::<Vec<_>>();
    let flags = |rows: &[Example]| rows.iter().map(|row| row.labels.clone()).collect::<Vec<_>>();
    console.say("training the baseline: TF-IDF and logistic regression");
    let linear = Baseline::fit(&texts(train), &flags(train))?;
    let decision = if is_single { Decision::Top(1) } else { Decision::above(&vec![0.5; labels.len()]) };
    let targets: Vec<Vec<bool>> =
        rows.iter().map(|row| row.labels.iter().map(|&label| label > 0.5).collect()).collect();
    let predictions =
        Predictions { probabilities: linear.predict(&texts(rows)), predicted: Vec::new(), targets: targets.clone() }
            .decided(&decision);
    let frequent = most_frequent(train, labels.len(), is_single);
    let always = Predictions {
        probabilities: vec![frequent.iter().map(|&is_set| f32::from(u8::from(is_set))).collect(); rows.len()],
        predicted: vec![frequent.clone(); rows.len()],
        targets,
    };
    let (of_linear, of_always) = (Scores::new(&predictions, labels), Scores::new(&always, labels));
    Ok(Yardstick {
        split: split.to_owned(),
        most_frequent_labels: labels.iter().zip(&frequent).filter(|(_, set)| **set).map(|(l, _)| l.clone()).collect(),
        most_frequent: BaselineScores::of(&of_always),
        linear: BaselineScores::of(&of_linear),
        linear_features: linear.features(),
        runtime: started.elapsed().as_secs_f64(),
        model: model.map(|model| BaselineScores::of(&Scores::new(model, labels))),
        difference: model.map(|model| {
            let own = Scores::new(model, labels);
            let intervals = Intervals::of_difference(&predictions, model, BOOTSTRAP_SEED);
            ScoreDifference::new(&own, &of_linear, &intervals)
        }),
    })
}

/// The labels that are predicted for every row: the most frequent one of a single-label problem, else those most frequent
/// ones whose micro-F1 on the training rows is best.
fn most_frequent(train: &[Example], labels: usize, is_single: bool) -> Vec<bool> {
    let mut counts: Vec<(usize, usize)> =
        (0..labels).map(|label| (train.iter().filter(|row| row.labels[label] > 0.5).count(), label)).collect();
    counts.sort_by_key(|&(count, label)| (std::cmp::Reverse(count), label));
    let total: usize = counts.iter().map(|(count, _)| count).sum();
    let mut found = 0;
    let f1: Vec<f64> = (1..=labels)
        .map(|taken| {
            found += counts[taken - 1].0;
            2.0 * found as f64 / (taken * train.len() + total).max(1) as f64
        })
        .collect();
    let best = f1.iter().rposition(|value| f1.iter().all(|other| other <= value)).map_or(1, |index| index + 1);
    let mut set = vec![false; labels];
    counts.iter().take(if is_single { 1 } else { best }).for_each(|(_, label)| set[*label] = true);
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(labels: &[[f32; 3]]) -> Vec<Example> {
        let row = |labels: &[f32; 3]| Example { id: String::new(), text: String::new(), labels: labels.to_vec() };
        labels.iter().map(row).collect()
    }

    #[test]
    fn the_most_frequent_labels_are_those_with_the_best_micro_f1() {
        // Counts 3, 3, 1 of 4 rows: F1 6/11 with one label, 12/15 with two, 14/19 with three.
        let rows = rows(&[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]);
        assert_eq!(most_frequent(&rows, 3, false), [true, true, false]);
        assert_eq!(most_frequent(&rows, 3, true), [true, false, false]);
    }
}
