//! Scores of predictions against labels, as pure functions over rows of probabilities.

pub mod bootstrap;
pub mod curves;
pub mod errors;
pub mod label_issues;
pub mod platt;
pub mod ranking;
pub mod temperature;

use serde::{Deserialize, Serialize};

/// Predictions for some examples and L labels.
#[derive(Clone, Debug, Default)]
pub struct Predictions {
    /// One row an example, one probability a label.
    pub probabilities: Vec<Vec<f32>>,
    /// For each row, the predicted labels.
    pub predicted: Vec<Vec<bool>>,
    /// For each row, the true labels.
    pub targets: Vec<Vec<bool>>,
}

/// Counts and scores of one label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelScores {
    pub label: String,
    /// Share of its predictions that are right; 0 if there are none.
    pub precision: f64,
    /// Share of its examples that are found; 0 if there are none.
    pub recall: f64,
    /// Harmonic mean of both; 0 if there is nothing to find and nothing was predicted.
    pub f1: f64,
    /// Examples that have it.
    pub support: usize,
    /// Examples for which it is predicted.
    pub predicted: usize,
    /// Average precision; none without a positive.
    pub average_precision: Option<f64>,
    /// Area under the ROC curve; none unless it holds for some and not for others.
    pub roc_auc: Option<f64>,
}

/// Scores of some predictions, as torchmetrics' multi-label ones define them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// F1 over all labels' counts together.
    pub f1_micro: f64,
    /// Mean of the labels' F1.
    pub f1_macro: f64,
    /// Precision over all labels' counts together.
    pub precision_micro: f64,
    /// Mean of the labels' precision.
    pub precision_macro: f64,
    /// Recall over all labels' counts together.
    pub recall_micro: f64,
    /// Mean of the labels' recall.
    pub recall_macro: f64,
    /// Mean of the labels' F1, weighted by support.
    pub f1_weighted: f64,
    /// Mean of the examples' F1; 0 for one with nothing to find and nothing predicted.
    pub f1_samples: f64,
    /// Share of examples whose labels are all right.
    pub accuracy: f64,
    /// Share of labels of examples that are wrong.
    pub hamming_loss: f64,
    /// Mean average precision over the labels that have one; 0 if none has.
    pub average_precision_macro: f64,
    /// Mean area under the ROC curve over the labels that have one; 0 if none has.
    pub roc_auc_macro: f64,
    /// Mean squared difference of probability and truth.
    pub brier: f64,
    /// Expected calibration error, over 15 bins.
    pub calibration_error: f64,
    /// Mean negative logarithm of the probability that the truth was given, label by label.
    pub log_loss: f64,
    /// One entry a label.
    #[serde(skip)]
    pub per_label: Vec<LabelScores>,
}

/// A metric that can choose the best epoch, and that files and reports show.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub lower_is_better: bool,
    /// The metric's value, from an evaluation's loss and scores.
    pub of: fn(f64, &Scores) -> f64,
}

/// All metrics. Add one here and to [`Scores`]: the configuration, the summary, the files and TensorBoard follow.
pub const METRICS: [Metric; 16] = [
    Metric { name: "loss", lower_is_better: true, of: |loss, _| loss },
    Metric { name: "f1_micro", lower_is_better: false, of: |_, scores| scores.f1_micro },
    Metric { name: "f1_macro", lower_is_better: false, of: |_, scores| scores.f1_macro },
    Metric { name: "f1_weighted", lower_is_better: false, of: |_, scores| scores.f1_weighted },
    Metric { name: "f1_samples", lower_is_better: false, of: |_, scores| scores.f1_samples },
    Metric { name: "precision_micro", lower_is_better: false, of: |_, scores| scores.precision_micro },
    Metric { name: "precision_macro", lower_is_better: false, of: |_, scores| scores.precision_macro },
    Metric { name: "recall_micro", lower_is_better: false, of: |_, scores| scores.recall_micro },
    Metric { name: "recall_macro", lower_is_better: false, of: |_, scores| scores.recall_macro },
    Metric { name: "accuracy", lower_is_better: false, of: |_, scores| scores.accuracy },
    Metric { name: "hamming_loss", lower_is_better: true, of: |_, scores| scores.hamming_loss },
    Metric { name: "average_precision_macro", lower_is_better: false, of: |_, scores| scores.average_precision_macro },
    Metric { name: "roc_auc_macro", lower_is_better: false, of: |_, scores| scores.roc_auc_macro },
    Metric { name: "brier", lower_is_better: true, of: |_, scores| scores.brier },
    Metric { name: "calibration_error", lower_is_better: true, of: |_, scores| scores.calibration_error },
    Metric { name: "log_loss", lower_is_better: true, of: |_, scores| scores.log_loss },
];

impl Metric {
    /// The metric of a name, with or without `eval_` in front.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        let name = name.strip_prefix("eval_").unwrap_or(name);
        METRICS.iter().find(|metric| metric.name == name)
    }
}

impl Predictions {
    /// The same probabilities with labels predicted anew.
    #[must_use]
    pub fn decided(&self, decision: &Decision) -> Self {
        let predicted = self.probabilities.iter().map(|row| decision.decide(row)).collect();
        Self { predicted, ..self.clone() }
    }
}

#[derive(Clone, Copy, Default)]
struct Counts {
    true_positives: usize,
    predicted: usize,
    support: usize,
}

impl Counts {
    fn of(predicted: &[bool], targets: &[bool]) -> Self {
        let count = |flags: &mut dyn Iterator<Item = bool>| flags.filter(|flag| *flag).count();
        Self {
            true_positives: count(&mut predicted.iter().zip(targets).map(|(p, t)| *p && *t)),
            predicted: count(&mut predicted.iter().copied()),
            support: count(&mut targets.iter().copied()),
        }
    }

    fn add(&mut self, predicted: bool, target: bool) {
        self.true_positives += usize::from(predicted && target);
        self.predicted += usize::from(predicted);
        self.support += usize::from(target);
    }

    fn sum(counts: &[Self]) -> Self {
        counts.iter().fold(Self::default(), |sum, count| Self {
            true_positives: sum.true_positives + count.true_positives,
            predicted: sum.predicted + count.predicted,
            support: sum.support + count.support,
        })
    }

    fn precision(self) -> f64 {
        ratio(self.true_positives, self.predicted)
    }

    fn recall(self) -> f64 {
        ratio(self.true_positives, self.support)
    }

    fn f1(self) -> f64 {
        ratio(2 * self.true_positives, self.predicted + self.support)
    }
}

fn mean_of_known(values: &[Option<f64>]) -> f64 {
    let known: Vec<f64> = values.iter().flatten().copied().collect();
    known.iter().sum::<f64>() / known.len().max(1) as f64
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

impl Scores {
    /// Scores predictions. `labels` names the L columns.
    #[must_use]
    pub fn new(predictions: &Predictions, labels: &[String]) -> Self {
        let mut counts = vec![Counts::default(); labels.len()];
        let (mut exact, mut of_samples) = (0, 0.0);
        for (predicted, targets) in predictions.predicted.iter().zip(&predictions.targets) {
            for ((count, &predicted), &target) in counts.iter_mut().zip(predicted).zip(targets) {
                count.add(predicted, target);
            }
            exact += usize::from(predicted == targets);
            of_samples += Counts::of(predicted, targets).f1();
        }
        let total = Counts::sum(&counts);
        let column = |label: usize| -> Vec<(f32, bool)> {
            predictions.probabilities.iter().zip(&predictions.targets).map(|(p, t)| (p[label], t[label])).collect()
        };
        let columns: Vec<Vec<(f32, bool)>> = (0..labels.len()).map(column).collect();
        let average_precision: Vec<_> = columns.iter().map(|column| ranking::average_precision(column)).collect();
        let roc_auc: Vec<_> = columns.iter().map(|column| ranking::roc_auc(column)).collect();
        let all = columns.concat();
        let wrong = total.predicted + total.support - 2 * total.true_positives;
        let weighted: f64 = counts.iter().map(|count| count.f1() * count.support as f64).sum();
        let mean = |f: fn(Counts) -> f64| counts.iter().map(|&count| f(count)).sum::<f64>() / labels.len() as f64;
        Self {
            f1_micro: total.f1(),
            f1_macro: mean(Counts::f1),
            precision_micro: total.precision(),
            precision_macro: mean(Counts::precision),
            recall_micro: total.recall(),
            recall_macro: mean(Counts::recall),
            f1_weighted: weighted / total.support.max(1) as f64,
            f1_samples: of_samples / predictions.predicted.len().max(1) as f64,
            accuracy: ratio(exact, predictions.predicted.len()),
            hamming_loss: ratio(wrong, all.len()),
            average_precision_macro: mean_of_known(&average_precision),
            roc_auc_macro: mean_of_known(&roc_auc),
            brier: ranking::brier(&all),
            calibration_error: ranking::calibration_error(&all),
            log_loss: ranking::log_loss(&all),
            per_label: counts
                .iter()
                .zip(labels)
                .zip(average_precision.into_iter().zip(roc_auc))
                .map(|((&count, label), (average_precision, roc_auc))| LabelScores {
                    label: label.clone(),
                    precision: count.precision(),
                    recall: count.recall(),
                    f1: count.f1(),
                    support: count.support,
                    predicted: count.predicted,
                    average_precision,
                    roc_auc,
                })
                .collect(),
        }
    }
}

/// The rule that turns probabilities into predicted labels.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Those above their threshold, strictly.
    Above {
        /// One a label.
        thresholds: Vec<f32>,
        /// The most likely one, if none is above.
        always_one: bool,
    },
    /// The most likely ones, this many.
    Top(usize),
}

impl Decision {
    /// Labels above their threshold.
    #[must_use]
    pub fn above(thresholds: &[f32]) -> Self {
        Self::Above { thresholds: thresholds.to_vec(), always_one: false }
    }

    /// Applies the rule to one row. Among equal probabilities the first label wins.
    #[must_use]
    pub fn decide(&self, probabilities: &[f32]) -> Vec<bool> {
        match self {
            Self::Above { thresholds, always_one } => {
                let above: Vec<bool> =
                    probabilities.iter().zip(thresholds).map(|(p, threshold)| p > threshold).collect();
                if *always_one && !above.contains(&true) { Self::Top(1).decide(probabilities) } else { above }
            }
            Self::Top(count) => {
                let mut order: Vec<usize> = (0..probabilities.len()).collect();
                order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
                let mut predicted = vec![false; probabilities.len()];
                for &label in order.iter().take(*count) {
                    predicted[label] = true;
                }
                predicted
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected: torchmetrics 1.x `MultilabelF1Score`, `MultilabelPrecision`, `MultilabelRecall`,
    /// by scripts/make_fixtures.py. The third label has no positives and no predictions.
    #[test]
    fn scores_match_torchmetrics() {
        let probabilities = [
            [0.9, 0.2, 0.1, 0.5],
            [0.6, 0.7, 0.3, 0.4],
            [0.4, 0.8, 0.0, 0.9],
            [0.1, 0.6, 0.2, 0.51],
            [0.7, 0.1, 0.1, 0.2],
        ];
        let targets = [[1, 0, 0, 1], [0, 1, 0, 0], [1, 1, 0, 1], [0, 0, 0, 1], [1, 0, 0, 0]];
        let predictions = Predictions {
            predicted: probabilities.iter().map(|row| Decision::above(&[0.5; 4]).decide(row)).collect(),
            probabilities: probabilities.iter().map(|row| row.to_vec()).collect(),
            targets: targets.iter().map(|row| row.iter().map(|&t| t == 1).collect()).collect(),
        };
        let labels: Vec<String> = ["a", "b", "c", "d"].map(String::from).to_vec();
        let scores = Scores::new(&predictions, &labels);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
        close(scores.f1_micro, 0.75);
        close(scores.f1_macro, 0.566_666_7);
        close(scores.precision_micro, 0.75);
        close(scores.recall_macro, 0.583_333_3);
        assert_eq!(scores.per_label[2].f1, 0.0);
        assert_eq!(scores.accuracy, 0.2);
    }

    #[test]
    fn thresholds_and_counts_decide() {
        let row = [0.2, 0.4, 0.4, 0.1];
        assert_eq!(Decision::Top(1).decide(&row), [false, true, false, false]);
        assert_eq!(Decision::Top(3).decide(&row), [true, true, true, false]);
        assert_eq!(Decision::above(&[0.2, 0.3, 0.5, 0.0]).decide(&row), [false, true, false, true]);
        let always_one = Decision::Above { thresholds: vec![0.5; 4], always_one: true };
        assert_eq!(always_one.decide(&row), [false, true, false, false]);
    }
}
