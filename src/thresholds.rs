//! Thresholds that suit a classifier better than 0.5, found on its validation split.
//!
//! A label's own best threshold is noise where it has few positive rows, so it is drawn towards the
//! one that is best for all labels together.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::config::train::TuneThresholds;
use crate::metrics::Predictions;

/// Positive rows from which a label's own threshold counts in full; with n rows below it, the share
/// n / 50 of the way from the global threshold is gone.
pub const FULL_SUPPORT: usize = 50;

/// The goal of a threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Objective {
    /// The highest F1.
    #[default]
    F1,
    /// The highest recall at this precision or more.
    PrecisionAtLeast(f64),
    /// The highest precision at this recall or more.
    RecallAtLeast(f64),
}

/// The number of thresholds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One threshold for all labels.
    Global,
    /// One threshold for each label.
    PerLabel,
}

impl Scope {
    /// The scope that `train.tune_thresholds` asks for.
    #[must_use]
    pub fn of(tune: TuneThresholds) -> Option<Self> {
        match tune {
            TuneThresholds::None => None,
            TuneThresholds::Global => Some(Self::Global),
            TuneThresholds::PerLabel => Some(Self::PerLabel),
        }
    }
}

impl FromStr for Objective {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let share = |text: &str| text.trim().parse().ok().filter(|share| (0.0..=1.0).contains(share));
        let parsed = match text.split_once(">=") {
            None if text == "f1" => Some(Self::F1),
            Some(("precision", share_text)) => share(share_text).map(Self::PrecisionAtLeast),
            Some(("recall", share_text)) => share(share_text).map(Self::RecallAtLeast),
            _ => None,
        };
        parsed.ok_or_else(|| "expected f1, precision>=P or recall>=R, with P or R from 0 to 1".to_owned())
    }
}

/// One threshold a label, from predictions whose targets are known.
#[must_use]
pub fn tune(predictions: &Predictions, labels: usize, scope: Scope, objective: Objective) -> Vec<f32> {
    let column = |label: usize| {
        predictions.probabilities.iter().zip(&predictions.targets).map(move |(p, t)| (p[label], t[label]))
    };
    let global = best((0..labels).flat_map(column).collect(), objective);
    (0..labels)
        .map(|label| match scope {
            Scope::Global => global,
            Scope::PerLabel => {
                let support = column(label).filter(|(_, holds)| *holds).count();
                let own = best(column(label).collect(), objective);
                // With full support, its very number: sums round, and it may stand between neighbouring floats.
                if support >= FULL_SUPPORT {
                    own
                } else {
                    global + support as f32 / FULL_SUPPORT as f32 * (own - global)
                }
            }
        })
        .collect()
}

/// Scores of a label at its threshold, on the rows on which that was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reached {
    pub label: String,
    pub threshold: f32,
    /// None if nothing is predicted.
    pub precision: Option<f64>,
    /// None without a positive row.
    pub recall: Option<f64>,
    /// Rows that have the label.
    pub positives: usize,
    /// Rows for which it is predicted.
    pub predicted: usize,
    /// True if few positive rows pulled the threshold to the global one, in full or in part.
    pub is_drawn_to_global: bool,
}

/// Scores each label at its threshold.
#[must_use]
pub fn reached(predictions: &Predictions, labels: &[String], thresholds: &[f32], scope: Scope) -> Vec<Reached> {
    let rows = || predictions.probabilities.iter().zip(&predictions.targets);
    let count = |holds: &dyn Fn(f32, bool) -> bool, label: usize| {
        rows().filter(|(probabilities, targets)| holds(probabilities[label], targets[label])).count()
    };
    let share = |part: usize, whole: usize| (whole > 0).then(|| part as f64 / whole as f64);
    (labels.iter().zip(thresholds).enumerate())
        .map(|(label, (name, &threshold))| {
            let positives = count(&|_, target| target, label);
            let predicted = count(&|probability, _| probability > threshold, label);
            let found = count(&|probability, target| target && probability > threshold, label);
            Reached {
                label: name.clone(),
                threshold,
                precision: share(found, predicted),
                recall: share(found, positives),
                positives,
                predicted,
                is_drawn_to_global: scope == Scope::PerLabel && positives < FULL_SUPPORT,
            }
        })
        .collect()
}

impl Objective {
    /// Returns true if the label misses the goal on the rows on which its threshold was found. False without positive
    /// rows; a label that is never predicted misses every precision.
    #[must_use]
    pub fn is_missed(self, label: &Reached) -> bool {
        match self {
            Self::F1 => false,
            Self::PrecisionAtLeast(target) => {
                label.positives > 0 && label.precision.is_none_or(|precision| precision < target)
            }
            Self::RecallAtLeast(target) => label.recall.is_some_and(|recall| recall < target),
        }
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F1 => f.write_str("f1"),
            Self::PrecisionAtLeast(target) => write!(f, "precision>={target}"),
            Self::RecallAtLeast(target) => write!(f, "recall>={target}"),
        }
    }
}

/// The best threshold for pairs of probability and truth: halfway between two probabilities, so that
/// a little noise in them changes nothing. Of equally good ones, the one nearest to 0.5.
fn best(mut pairs: Vec<(f32, bool)>, objective: Objective) -> f32 {
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    let positives = pairs.iter().filter(|(_, holds)| *holds).count();
    if positives == 0 {
        return 0.5;
    }
    let mut chosen = (value(objective, 0, 0, positives), f32::midpoint(1.0, pairs[0].0).max(0.5));
    let mut found = 0;
    for (index, &(probability, holds)) in pairs.iter().enumerate() {
        found += usize::from(holds);
        let next = pairs.get(index + 1).map_or(0.0, |pair| pair.0);
        // No threshold is below 0, so nothing predicts a probability of 0.
        if next == probability || probability <= 0.0 {
            continue;
        }
        // Halfway between neighbouring floats may be the upper one, and predicting is strictly above.
        let halfway = f32::midpoint(probability, next);
        let threshold = if halfway < probability { halfway } else { next };
        let candidate = (value(objective, found, index + 1, positives), threshold);
        let is_nearer = (candidate.1 - 0.5).abs() < (chosen.1 - 0.5).abs();
        if candidate.0 > chosen.0 || candidate.0 == chosen.0 && is_nearer {
            chosen = candidate;
        }
    }
    chosen.1
}

/// Ranks a threshold that predicts `predicted` rows, `found` of them correctly: thresholds that reach the goal come
/// first, then those nearest to it.
fn value(objective: Objective, found: usize, predicted: usize, positives: usize) -> (f64, f64) {
    let precision = if predicted == 0 { 1.0 } else { found as f64 / predicted as f64 };
    let recall = found as f64 / positives as f64;
    match objective {
        Objective::F1 => (2.0 * found as f64 / (predicted + positives) as f64, 0.0),
        Objective::PrecisionAtLeast(target) => (precision.min(target), recall),
        Objective::RecallAtLeast(target) => (recall.min(target), precision),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn predictions(rows: &[([f32; 2], [bool; 2])]) -> Predictions {
        Predictions {
            probabilities: rows.iter().map(|(p, _)| p.to_vec()).collect(),
            predicted: Vec::new(),
            targets: rows.iter().map(|(_, t)| t.to_vec()).collect(),
        }
    }

    #[test]
    fn the_best_threshold_is_the_one_a_search_finds() {
        let mut numbers = vec![0.0; 400];
        crate::rng::Stream::new(3, 0, 0, crate::rng::Purpose::Base).uniform(0, 0.5, &mut numbers);
        let pairs: Vec<(f32, bool)> =
            numbers.as_chunks::<2>().0.iter().map(|[p, noise]| (p + 0.5, p + 0.6 * noise > 0.2)).collect();
        let f1 = |threshold: f32| {
            let predicted = pairs.iter().filter(|pair| pair.0 > threshold);
            let found = predicted.clone().filter(|pair| pair.1).count();
            2.0 * found as f64 / (predicted.count() + pairs.iter().filter(|pair| pair.1).count()) as f64
        };
        let searched = (0..10_000).map(|step| f1(step as f32 / 1e4)).fold(0.0, f64::max);
        assert!((f1(best(pairs.clone(), Objective::F1)) - searched).abs() < 1e-9);
        let threshold = best(pairs.clone(), Objective::PrecisionAtLeast(0.95));
        let predicted: Vec<_> = pairs.iter().filter(|pair| pair.0 > threshold).collect();
        let precision = predicted.iter().filter(|pair| pair.1).count() as f64 / predicted.len() as f64;
        assert!(precision >= 0.95 && predicted.len() > 10, "{precision} of {}", predicted.len());
        let threshold = best(pairs.clone(), Objective::RecallAtLeast(0.9));
        let found = pairs.iter().filter(|pair| pair.1 && pair.0 > threshold).count() as f64;
        let recall = found / pairs.iter().filter(|pair| pair.1).count() as f64;
        assert!((0.9..0.95).contains(&recall), "{recall}");
    }

    #[test]
    fn few_positives_draw_a_threshold_to_the_global_one() {
        let mut rows = Vec::new();
        for index in 0..100 {
            let holds = index % 2 == 0;
            rows.push(([if holds { 0.9 } else { 0.7 }, if index == 0 { 0.2 } else { 0.1 }], [holds, index == 0]));
        }
        let predictions = predictions(&rows);
        let global = tune(&predictions, 2, Scope::Global, Objective::F1)[0];
        let per_label = tune(&predictions, 2, Scope::PerLabel, Objective::F1);
        assert!((global - 0.8).abs() < 1e-6 && (per_label[0] - 0.8).abs() < 1e-6, "{global} {per_label:?}");
        // Its own best is 0.15; one positive of fifty moves it a fiftieth of the way.
        assert!((per_label[1] - (0.8 - 0.65 / 50.0)).abs() < 1e-6, "{}", per_label[1]);
    }

    /// Against counting again what each threshold predicts, for probabilities that stand side by side.
    #[test]
    fn thresholds_between_neighbouring_floats_decide_as_they_did_when_tuned() {
        let below = |x: f32| f32::from_bits(x.to_bits() - 1);
        let one = 1.0f32;
        let (tiny, half) = (f32::from_bits(1), 0.5f32);
        let ladders = [
            vec![one, below(one), below(below(one)), 0.3],
            vec![half, below(half), below(below(half)), 0.0],
            vec![tiny, 0.0, 0.0],
            vec![one, one, 0.0],
            vec![0.7, below(0.7), tiny, 0.0],
        ];
        for ladder in &ladders {
            // Every pattern of truth that has a positive.
            for bits in 1..1u32 << ladder.len() {
                let pairs: Vec<(f32, bool)> =
                    ladder.iter().enumerate().map(|(index, &p)| (p, bits >> index & 1 == 1)).collect();
                let positives = pairs.iter().filter(|pair| pair.1).count();
                for objective in ["f1", "precision>=0.9", "precision>=1", "recall>=0.6", "recall>=1"] {
                    let objective: Objective = objective.parse().unwrap();
                    let worth = |threshold: f32| {
                        let predicted = pairs.iter().filter(|pair| pair.0 > threshold).count();
                        let found = pairs.iter().filter(|pair| pair.0 > threshold && pair.1).count();
                        value(objective, found, predicted, positives)
                    };
                    let searched = ladder
                        .iter()
                        .map(|&p| worth(p))
                        .chain([worth(0.0)])
                        .fold((0.0, 0.0), |a, b| if b > a { b } else { a });
                    assert_eq!(worth(best(pairs.clone(), objective)), searched, "{pairs:?} {objective}");
                }
            }
        }
        // A label with full support gets its very threshold, not one that a sum has rounded.
        let rows: Vec<([f32; 2], [bool; 2])> = (0..120)
            .map(|row| {
                if row % 2 == 0 {
                    ([below(one), 0.2], [true, true])
                } else {
                    ([below(below(one)), 0.1], [false, false])
                }
            })
            .collect();
        let predictions = predictions(&rows);
        let tuned = tune(&predictions, 2, Scope::PerLabel, Objective::F1);
        let names = ["a", "b"].map(String::from);
        for label in reached(&predictions, &names, &tuned, Scope::PerLabel) {
            assert_eq!((label.precision, label.recall, label.positives), (Some(1.0), Some(1.0), 60), "{label:?}");
            assert!(!label.is_drawn_to_global && !Objective::PrecisionAtLeast(1.0).is_missed(&label));
        }
    }

    #[test]
    fn an_objective_that_is_out_of_reach_is_missed() {
        let rows: Vec<([f32; 2], [bool; 2])> = (0..8).map(|row| ([0.5, 0.25], [row % 2 == 0, false])).collect();
        let predictions = predictions(&rows);
        let names = ["a", "b"].map(String::from);
        for (objective, thresholds, misses) in [
            (Objective::PrecisionAtLeast(0.9), [0.4, 0.5], true),
            (Objective::PrecisionAtLeast(0.5), [0.4, 0.5], false),
            // Nothing predicted is no precision.
            (Objective::PrecisionAtLeast(0.5), [0.6, 0.5], true),
            (Objective::RecallAtLeast(0.1), [0.6, 0.5], true),
            (Objective::F1, [0.6, 0.5], false),
        ] {
            let labels = reached(&predictions, &names, &thresholds, Scope::PerLabel);
            assert_eq!(objective.is_missed(&labels[0]), misses, "{objective} {labels:?}");
            assert!(!objective.is_missed(&labels[1]) && labels[1].recall.is_none());
        }
    }

    #[test]
    fn a_label_without_positives_keeps_the_usual_threshold() {
        assert_eq!(best(vec![(0.9, false), (0.1, false)], Objective::F1), 0.5);
        assert_eq!("precision>=0.9".parse(), Ok(Objective::PrecisionAtLeast(0.9)));
        assert!("recall>=2".parse::<Objective>().is_err() && "auc".parse::<Objective>().is_err());
    }
}
