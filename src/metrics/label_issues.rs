//! Labels that a classifier contradicts with confidence (confident learning; Northcutt et al., 2021), for rows that it was
//! not trained on.
//!
//! A given label is suspect if the classifier is as sure of the opposite as it is, in the mean, for rows that are given the
//! opposite.

use super::Predictions;

/// A label of a row that may be wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelIssue {
    /// The row.
    pub row: usize,
    /// The label.
    pub label: usize,
    /// Whether the row has it.
    pub is_given: bool,
    /// The classifier's probability.
    pub probability: f32,
}

impl LabelIssue {
    /// How sure the classifier is of the opposite.
    fn confidence(&self) -> f32 {
        if self.is_given { 1.0 - self.probability } else { self.probability }
    }
}

/// The suspect labels, the surest first.
#[must_use]
pub fn label_issues(predictions: &Predictions) -> Vec<LabelIssue> {
    let labels = predictions.targets.first().map_or(0, Vec::len);
    let mut found = Vec::new();
    for label in 0..labels {
        let cells: Vec<(f32, bool)> =
            predictions.probabilities.iter().zip(&predictions.targets).map(|(p, t)| (p[label], t[label])).collect();
        let mean = |wanted: bool| {
            let of: Vec<f64> = cells.iter().filter(|cell| cell.1 == wanted).map(|cell| f64::from(cell.0)).collect();
            of.iter().sum::<f64>() / of.len().max(1) as f64
        };
        let (usual_of_positives, usual_of_negatives) = (mean(true), 1.0 - mean(false));
        if cells.iter().all(|cell| cell.1) || cells.iter().all(|cell| !cell.1) {
            continue;
        }
        for (row, &(probability, is_given)) in cells.iter().enumerate() {
            let issue = LabelIssue { row, label, is_given, probability };
            let usual = if is_given { usual_of_negatives } else { usual_of_positives };
            if issue.confidence() > 0.5 && f64::from(issue.confidence()) >= usual {
                found.push(issue);
            }
        }
    }
    found.sort_by(|a, b| b.confidence().total_cmp(&a.confidence()).then((a.row, a.label).cmp(&(b.row, b.label))));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_that_is_contradicted_as_surely_as_the_others_are_confirmed_is_suspect() {
        // Positives at 0.9, 0.8 and 0.1; negatives at 0.1, 0.3 and 0.95; the second label holds for all.
        let rows = [(0.9, true), (0.8, true), (0.1, true), (0.1, false), (0.3, false), (0.95, false)];
        let predictions = Predictions {
            probabilities: rows.iter().map(|row| vec![row.0, 0.1]).collect(),
            predicted: Vec::new(),
            targets: rows.iter().map(|row| vec![row.1, true]).collect(),
        };
        let found = label_issues(&predictions);
        assert_eq!(
            found,
            [
                LabelIssue { row: 5, label: 0, is_given: false, probability: 0.95 },
                LabelIssue { row: 2, label: 0, is_given: true, probability: 0.1 },
            ]
        );
        assert!(label_issues(&Predictions::default()).is_empty());
    }
}
