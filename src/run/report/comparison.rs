//! Another run on the same rows: what a report shows of it.

use crate::metrics::{Predictions, Scores};
use crate::run::results::{BaselineScores, ScoreDifference};

/// Another run on the same rows.
#[derive(Clone)]
pub struct Compared {
    /// Its name.
    pub run: String,
    pub scores: BaselineScores,
    /// Its scores less those of the run of the report.
    pub difference: ScoreDifference,
    /// In the order of the report's labels.
    pub per_label: Vec<LabelDifference>,
}

/// A label's F1 in another run, and the rows that only one of the two runs has right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelDifference {
    pub f1: f64,
    pub difference: f64,
    pub only_other: usize,
    pub only_own: usize,
}

impl Compared {
    /// The other run's predictions are for the same rows and labels in the same order.
    #[must_use]
    pub fn new(
        run: String,
        (own, own_scores): (&Predictions, &Scores),
        (other, other_scores): (&Predictions, &Scores),
        difference: ScoreDifference,
    ) -> Self {
        let per_label = (own_scores.per_label.iter().zip(&other_scores.per_label).enumerate())
            .map(|(label, (own_label, other_label))| {
                let right = |predictions: &Predictions, row: usize| {
                    predictions.predicted[row][label] == own.targets[row][label]
                };
                let count = |a: &Predictions, b: &Predictions| {
                    (0..own.targets.len()).filter(|&row| right(a, row) && !right(b, row)).count()
                };
                LabelDifference {
                    f1: other_label.f1,
                    difference: other_label.f1 - own_label.f1,
                    only_other: count(other, own),
                    only_own: count(own, other),
                }
            })
            .collect();
        Self { run, scores: BaselineScores::of(other_scores), difference, per_label }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Decision;
    use crate::metrics::bootstrap::Intervals;

    #[test]
    fn labels_count_the_rows_that_only_one_run_has_right() {
        let targets: Vec<Vec<bool>> = [[1, 0], [1, 1], [0, 1]].map(|row| row.map(|flag| flag == 1).to_vec()).to_vec();
        let run = |rows: [[f32; 2]; 3]| {
            let probabilities = rows.map(|row| row.to_vec()).to_vec();
            Predictions { probabilities, predicted: Vec::new(), targets: targets.clone() }
                .decided(&Decision::above(&[0.5; 2]))
        };
        let (own, other) = (run([[0.9, 0.1], [0.2, 0.8], [0.3, 0.4]]), run([[0.8, 0.7], [0.9, 0.9], [0.1, 0.2]]));
        let labels = ["a".to_owned(), "b".to_owned()];
        let (own_scores, other_scores) = (Scores::new(&own, &labels), Scores::new(&other, &labels));
        let change = ScoreDifference::new(&other_scores, &own_scores, &Intervals::NONE);
        let compared = Compared::new(String::new(), (&own, &own_scores), (&other, &other_scores), change);
        // Label a: row 1 is right only in the other run. Label b: row 0 only in the own.
        let counts: Vec<_> = compared.per_label.iter().map(|label| (label.only_other, label.only_own)).collect();
        assert_eq!(counts, [(1, 0), (0, 1)]);
        assert!(compared.per_label[0].difference > 0.0 && compared.per_label[1].difference < 0.0);
    }
}
