//! Uncertainty of scores: the percentile bootstrap over rows (Efron, 1979).

use rand_mt::Mt;
use serde::Serialize;

use super::{Counts, Predictions};

/// Rows are drawn this often, fewer if they are many: `WORK` bounds the cells that are looked at.
const RESAMPLES: usize = 1_000;
const MIN_RESAMPLES: usize = 100;
const WORK: usize = 2_000_000_000;

/// A 95% interval; not numbers if there is none.
pub type Interval = [f64; 2];

/// Scores that get an interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Headline {
    /// F1 over all labels' counts together.
    pub f1_micro: f64,
    /// Mean of the labels' F1.
    pub f1_macro: f64,
    /// Share of rows whose labels are all right.
    pub accuracy: f64,
}

/// Intervals of the headline scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Intervals {
    /// Interval of [`Headline::f1_micro`].
    pub f1_micro: Interval,
    /// Interval of [`Headline::f1_macro`].
    pub f1_macro: Interval,
    /// Interval of [`Headline::accuracy`].
    pub accuracy: Interval,
}

impl Intervals {
    /// No intervals: older results have none.
    pub const NONE: Self = Self { f1_micro: [f64::NAN; 2], f1_macro: [f64::NAN; 2], accuracy: [f64::NAN; 2] };

    /// Intervals of the scores of some predictions; the same seed gives the same. A score has none if its
    /// resamples lie to one side of it: then they say nothing about its uncertainty.
    #[must_use]
    pub fn new(predictions: &Predictions, seed: u32) -> Self {
        Self::of(&[predictions], seed, |scores| scores[0])
    }

    /// Intervals of `b − a` for two sets of predictions of the same rows, which are drawn together.
    #[must_use]
    pub fn of_difference(a: &Predictions, b: &Predictions, seed: u32) -> Self {
        Self::of(&[a, b], seed, |scores| Headline {
            f1_micro: scores[1].f1_micro - scores[0].f1_micro,
            f1_macro: scores[1].f1_macro - scores[0].f1_macro,
            accuracy: scores[1].accuracy - scores[0].accuracy,
        })
    }

    fn of(predictions: &[&Predictions], seed: u32, combine: impl Fn(&[Headline]) -> Headline) -> Self {
        let Some(rows) = predictions.first().map(|first| first.targets.len()).filter(|&rows| rows > 0) else {
            return Self { f1_micro: NONE, f1_macro: NONE, accuracy: NONE };
        };
        let occurs = occurring(predictions[0]);
        let score = |drawn: &[usize]| {
            let scores: Vec<Headline> =
                predictions.iter().map(|predictions| headline(predictions, drawn, &occurs)).collect();
            combine(&scores)
        };
        let cells = rows * predictions[0].targets[0].len().max(1) * predictions.len();
        let count = (WORK / cells).clamp(MIN_RESAMPLES, RESAMPLES);
        let mut generator = Mt::new(seed);
        let mut draw = || (0..rows).map(|_| generator.next_u32() as usize % rows).collect::<Vec<_>>();
        let samples: Vec<Headline> = (0..count).map(|_| score(&draw())).collect();
        let estimate = score(&(0..rows).collect::<Vec<_>>());
        let interval = |value: fn(&Headline) -> f64| {
            let mut values: Vec<f64> = samples.iter().map(value).filter(|value| value.is_finite()).collect();
            values.sort_by(f64::total_cmp);
            let [low, high] = [quantile(&values, 0.025), quantile(&values, 0.975)];
            // Equal sums may differ in their last digit.
            let is_around = low - 1e-9 <= value(&estimate) && value(&estimate) <= high + 1e-9;
            if is_around { [low, high] } else { NONE }
        };
        Self {
            f1_micro: interval(|score| score.f1_micro),
            f1_macro: interval(|score| score.f1_macro),
            accuracy: interval(|score| score.accuracy),
        }
    }
}

const NONE: Interval = [f64::NAN; 2];

/// An interval for people.
#[must_use]
pub fn describe([low, high]: Interval) -> String {
    if low.is_nan() { "no 95% interval".to_owned() } else { format!("95% interval {low:.4} to {high:.4}") }
}

/// Marks the labels that at least one row has.
fn occurring(predictions: &Predictions) -> Vec<bool> {
    let labels = predictions.targets[0].len();
    (0..labels).map(|label| predictions.targets.iter().any(|targets| targets[label])).collect()
}

/// The headline scores of some rows. A label that occurs, but that these rows miss, is left out of the mean:
/// its F1 would be 0, and drawing rows could only lower the score. Where nothing is there to find and nothing
/// is predicted, micro-F1 is not a number.
fn headline(predictions: &Predictions, rows: &[usize], occurs: &[bool]) -> Headline {
    let labels = predictions.targets[0].len();
    let mut counts = vec![Counts::default(); labels];
    let mut exact = 0;
    for &row in rows {
        let (predicted, targets) = (&predictions.predicted[row], &predictions.targets[row]);
        for ((count, &predicted), &target) in counts.iter_mut().zip(predicted).zip(targets) {
            count.add(predicted, target);
        }
        exact += usize::from(predicted == targets);
    }
    let total = Counts::sum(&counts);
    let drawn = counts.iter().filter(|count| count.support > 0);
    let (scored, sum) = drawn.fold((0, 0.0), |(scored, sum), count| (scored + 1, sum + count.f1()));
    // A label that no row has counts 0 in the score, and here.
    let occurring = occurs.iter().filter(|occurs| **occurs).count();
    let macro_f1 = if occurring == 0 { 0.0 } else { sum / f64::from(scored) * occurring as f64 / labels as f64 };
    Headline {
        f1_micro: if total.support + total.predicted > 0 { total.f1() } else { f64::NAN },
        f1_macro: macro_f1,
        accuracy: exact as f64 / rows.len() as f64,
    }
}

/// Linear between the ranks, as numpy's default.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = q * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (at - at.floor()) * (high - low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Decision;

    /// `rows` of two labels; the first is right in `right` of them, the second always.
    fn predictions(rows: usize, right: usize) -> Predictions {
        let probabilities: Vec<Vec<f32>> =
            (0..rows).map(|row| vec![if row < right { 0.9 } else { 0.1 }, 0.9]).collect();
        let targets = vec![vec![true, true]; rows];
        Predictions { probabilities, predicted: Vec::new(), targets }.decided(&Decision::above(&[0.5; 2]))
    }

    /// Against the normal approximation of a binomial share, which is good to a third of a percent here.
    #[test]
    fn an_interval_is_as_wide_as_theory_says() {
        let intervals = Intervals::new(&predictions(400, 300), 3);
        let half = 1.96 * (0.75f64 * 0.25 / 400.0).sqrt();
        let [low, high] = intervals.accuracy;
        assert!((low - (0.75 - half)).abs() < 0.008 && (high - (0.75 + half)).abs() < 0.008, "{low} {high}");
        assert_eq!(intervals, Intervals::new(&predictions(400, 300), 3));
        assert_ne!(intervals, Intervals::new(&predictions(400, 300), 4));
    }

    #[test]
    fn what_is_the_same_does_not_differ_and_what_is_better_does() {
        let (a, b) = (predictions(200, 120), predictions(200, 180));
        assert_eq!(Intervals::of_difference(&a, &a, 1).f1_micro, [0.0, 0.0]);
        let [low, high] = Intervals::of_difference(&a, &b, 1).accuracy;
        assert!(low > 0.2 && low < 0.3 && high > 0.3 && high < 0.4, "{low} {high}");
    }
}
