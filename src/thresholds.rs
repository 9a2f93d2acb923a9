//! Thresholds that suit a classifier better than 0.5, found on its validation split.
//!
//! A label's own best threshold is noise where it has few positive rows, so it is drawn towards the
//! one that is best for all labels together.

use std::str::FromStr;

use crate::metrics::Predictions;

/// Positive rows from which a label's own threshold counts in full; with n rows below it, the share
/// n / 50 of the way from the global threshold is gone.
pub const FULL_SUPPORT: usize = 50;

/// What a threshold is chosen for.
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

/// How many thresholds there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One for all labels.
    Global,
    /// One a label.
    PerLabel,
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
        parsed.ok_or_else(|| "expected f1, precision>=P or recall>=R with a number from 0 to 1".to_owned())
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
                let weight = (support as f32 / FULL_SUPPORT as f32).min(1.0);
                global + weight * (best(column(label).collect(), objective) - global)
            }
        })
        .collect()
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
        if next == probability {
            continue;
        }
        let candidate = (value(objective, found, index + 1, positives), f32::midpoint(probability, next));
        let is_nearer = (candidate.1 - 0.5).abs() < (chosen.1 - 0.5).abs();
        if candidate.0 > chosen.0 || candidate.0 == chosen.0 && is_nearer {
            chosen = candidate;
        }
    }
    chosen.1
}

/// How good a threshold is that predicts `predicted` rows, `found` of them rightly: first whether it
/// reaches the target, or else how near it comes.
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

    #[test]
    fn a_label_without_positives_keeps_the_usual_threshold() {
        assert_eq!(best(vec![(0.9, false), (0.1, false)], Objective::F1), 0.5);
        assert_eq!("precision>=0.9".parse(), Ok(Objective::PrecisionAtLeast(0.9)));
        assert!("recall>=2".parse::<Objective>().is_err() && "auc".parse::<Objective>().is_err());
    }
}
