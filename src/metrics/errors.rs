//! Mistakes: the most confident errors of each label, and labels that are predicted in place of each other.

use std::collections::HashMap;

use super::Predictions;

/// A label of a row that is predicted wrongly.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mistake {
    pub row: usize,
    pub label: usize,
    /// Predicted and not there; else there and not predicted.
    pub is_false_positive: bool,
    /// Predicted probability of the label in this row.
    pub probability: f32,
}

/// For each label the `count` most confident false positives, then false negatives, worst first.
#[must_use]
pub fn worst_mistakes(predictions: &Predictions, count: usize) -> Vec<Mistake> {
    let labels = predictions.targets.first().map_or(0, Vec::len);
    let mut mistakes = Vec::new();
    for label in 0..labels {
        for is_false_positive in [true, false] {
            let rows = (0..predictions.targets.len()).filter(|&row| {
                let (predicted, target) = (predictions.predicted[row][label], predictions.targets[row][label]);
                predicted != target && predicted == is_false_positive
            });
            let mut of_kind: Vec<Mistake> = rows
                .map(|row| Mistake {
                    row,
                    label,
                    is_false_positive,
                    probability: predictions.probabilities[row][label],
                })
                .collect();
            of_kind.sort_by(|a, b| {
                let order = b.probability.total_cmp(&a.probability);
                if is_false_positive { order } else { order.reverse() }
            });
            of_kind.truncate(count);
            mistakes.extend(of_kind);
        }
    }
    mistakes
}

/// Two labels, and in how many rows something holds of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub a: usize,
    pub b: usize,
    /// Number of rows.
    pub rows: usize,
}

/// Pairs of labels of which the first holds and is missed where the second does not and is predicted;
/// the most frequent `count`.
#[must_use]
pub fn confusions(predictions: &Predictions, count: usize) -> Vec<Pair> {
    let pairs = predictions.predicted.iter().zip(&predictions.targets).map(|(predicted, targets)| {
        let of = |target: bool| {
            let wrong = predicted.iter().zip(targets).enumerate();
            let wrong = wrong.filter(move |(_, (p, t))| **t == target && **p != target);
            wrong.map(|(label, _)| label).collect::<Vec<_>>()
        };
        (of(true), of(false))
    });
    most_frequent(pairs, count)
}

/// Pairs of labels that hold in the same rows, each once; the most frequent `count`.
#[must_use]
pub fn cooccurrences(predictions: &Predictions, count: usize) -> Vec<Pair> {
    let pairs = predictions.targets.iter().map(|targets| {
        let held: Vec<usize> = (0..targets.len()).filter(|&label| targets[label]).collect();
        (held.clone(), held)
    });
    let mut found = most_frequent(pairs, usize::MAX);
    found.retain(|pair| pair.a < pair.b);
    found.truncate(count);
    found
}

fn most_frequent(rows: impl Iterator<Item = (Vec<usize>, Vec<usize>)>, count: usize) -> Vec<Pair> {
    let mut found: HashMap<(usize, usize), usize> = HashMap::new();
    for (first, second) in rows {
        for &a in &first {
            for &b in &second {
                *found.entry((a, b)).or_default() += 1;
            }
        }
    }
    let mut pairs: Vec<Pair> = found.into_iter().map(|((a, b), rows)| Pair { a, b, rows }).collect();
    pairs.sort_by_key(|pair| (std::cmp::Reverse(pair.rows), pair.a, pair.b));
    pairs.truncate(count);
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Decision;

    fn predictions() -> Predictions {
        let probabilities = vec![vec![0.9, 0.2, 0.8], vec![0.6, 0.1, 0.7], vec![0.7, 0.9, 0.1], vec![0.3, 0.4, 0.6]];
        let targets = [[1, 1, 0], [0, 1, 0], [1, 1, 0], [1, 0, 1]];
        let targets = targets.iter().map(|row| row.iter().map(|&target| target == 1).collect()).collect();
        Predictions { probabilities, predicted: Vec::new(), targets }.decided(&Decision::above(&[0.5; 3]))
    }

    #[test]
    fn the_most_confident_mistakes_come_first() {
        let found = worst_mistakes(&predictions(), 1);
        let short: Vec<_> = found.iter().map(|m| (m.label, m.is_false_positive, m.row)).collect();
        assert_eq!(short, [(0, true, 1), (0, false, 3), (1, false, 1), (2, true, 0)]);
    }

    #[test]
    fn pairs_are_counted_by_rows() {
        let confused = confusions(&predictions(), 9);
        assert_eq!(confused[0], Pair { a: 1, b: 2, rows: 2 });
        assert_eq!(confused[1], Pair { a: 1, b: 0, rows: 1 });
        assert_eq!(confused.len(), 2);
        let together = cooccurrences(&predictions(), 9);
        assert_eq!(together, [Pair { a: 0, b: 1, rows: 2 }, Pair { a: 0, b: 2, rows: 1 }]);
    }
}
