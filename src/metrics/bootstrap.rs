//! How far a score could have come out otherwise: the percentile bootstrap over rows (Efron, 1979).

use rand_mt::Mt;

use super::{Counts, Predictions};

/// Rows are drawn this often, fewer if they are many: `WORK` bounds the cells that are looked at.
const RESAMPLES: usize = 1_000;
const MIN_RESAMPLES: usize = 100;
const WORK: usize = 2_000_000_000;

/// A 95% interval.
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
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Intervals {
    /// Of [`Headline::f1_micro`].
    pub f1_micro: Interval,
    /// Of [`Headline::f1_macro`].
    pub f1_macro: Interval,
    /// Of [`Headline::accuracy`].
    pub accuracy: Interval,
}

impl Intervals {
    /// Intervals of the scores of some predictions; the same seed gives the same.
    #[must_use]
    pub fn new(predictions: &Predictions, seed: u32) -> Self {
        Self::of(&resampled(&[predictions], seed, |scores| scores[0]))
    }

    /// Intervals of `b − a` for two sets of predictions of the same rows, which are drawn together.
    #[must_use]
    pub fn of_difference(a: &Predictions, b: &Predictions, seed: u32) -> Self {
        Self::of(&resampled(&[a, b], seed, |scores| Headline {
            f1_micro: scores[1].f1_micro - scores[0].f1_micro,
            f1_macro: scores[1].f1_macro - scores[0].f1_macro,
            accuracy: scores[1].accuracy - scores[0].accuracy,
        }))
    }

    fn of(samples: &[Headline]) -> Self {
        let interval = |value: fn(&Headline) -> f64| {
            let mut values: Vec<f64> = samples.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            [quantile(&values, 0.025), quantile(&values, 0.975)]
        };
        Self {
            f1_micro: interval(|score| score.f1_micro),
            f1_macro: interval(|score| score.f1_macro),
            accuracy: interval(|score| score.accuracy),
        }
    }
}

/// Draws rows with replacement, again and again, and scores each draw.
fn resampled(of: &[&Predictions], seed: u32, combine: impl Fn(&[Headline]) -> Headline) -> Vec<Headline> {
    let rows = of[0].targets.len();
    if rows == 0 {
        return Vec::new();
    }
    let cells = rows * of[0].targets[0].len().max(1) * of.len();
    let count = (WORK / cells).clamp(MIN_RESAMPLES, RESAMPLES);
    let mut generator = Mt::new(seed);
    (0..count)
        .map(|_| {
            let drawn: Vec<usize> = (0..rows).map(|_| generator.next_u32() as usize % rows).collect();
            let scores: Vec<Headline> = of.iter().map(|predictions| headline(predictions, &drawn)).collect();
            combine(&scores)
        })
        .collect()
}

/// The headline scores of some rows.
fn headline(predictions: &Predictions, rows: &[usize]) -> Headline {
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
    Headline {
        f1_micro: total.f1(),
        f1_macro: counts.iter().map(|count| count.f1()).sum::<f64>() / labels.max(1) as f64,
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
