//! Curves behind the scores: over thresholds, and of probabilities against truth.

use super::Predictions;

/// Precision, recall and F1 of one label if it is predicted above `threshold`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AtThreshold {
    /// From 0 to 1.
    pub threshold: f64,
    /// Predicted and there.
    pub true_positives: usize,
    /// Predicted and not there.
    pub false_positives: usize,
    /// Not predicted and there.
    pub false_negatives: usize,
    /// Neither.
    pub true_negatives: usize,
}

impl AtThreshold {
    /// Share of predictions that are right; 1 if there are none, so that curves end where they should.
    #[must_use]
    pub fn precision(&self) -> f64 {
        let predicted = self.true_positives + self.false_positives;
        if predicted == 0 { 1.0 } else { self.true_positives as f64 / predicted as f64 }
    }

    /// Share of positives that are found; 0 if there are none.
    #[must_use]
    pub fn recall(&self) -> f64 {
        let positives = self.true_positives + self.false_negatives;
        if positives == 0 { 0.0 } else { self.true_positives as f64 / positives as f64 }
    }

    /// Their harmonic mean.
    #[must_use]
    pub fn f1(&self) -> f64 {
        let denominator = 2 * self.true_positives + self.false_positives + self.false_negatives;
        if denominator == 0 { 0.0 } else { 2.0 * self.true_positives as f64 / denominator as f64 }
    }
}

/// One label at `count` thresholds, evenly from 0 to 1.
#[must_use]
pub fn over_thresholds(predictions: &Predictions, label: usize, count: usize) -> Vec<AtThreshold> {
    let rows = predictions.probabilities.iter().zip(&predictions.targets);
    let (mut positive, mut negative): (Vec<f32>, Vec<f32>) = (Vec::new(), Vec::new());
    for (probabilities, targets) in rows {
        if targets[label] { &mut positive } else { &mut negative }.push(probabilities[label]);
    }
    positive.sort_by(f32::total_cmp);
    negative.sort_by(f32::total_cmp);
    (0..count)
        .map(|index| {
            let threshold = index as f64 / (count - 1).max(1) as f64;
            let above = |sorted: &[f32]| sorted.len() - sorted.partition_point(|&p| f64::from(p) <= threshold);
            let (found, wrong) = (above(&positive), above(&negative));
            AtThreshold {
                threshold,
                true_positives: found,
                false_positives: wrong,
                false_negatives: positive.len() - found,
                true_negatives: negative.len() - wrong,
            }
        })
        .collect()
}

/// All label decisions together at `count` thresholds, evenly from 0 to 1: the micro-average.
#[must_use]
pub fn micro_over_thresholds(predictions: &Predictions, count: usize) -> Vec<AtThreshold> {
    let thresholds: Vec<f64> = (0..count).map(|index| index as f64 / (count - 1).max(1) as f64).collect();
    // Cells by the number of thresholds below their probability.
    let (mut positive, mut negative) = (vec![0usize; count + 1], vec![0usize; count + 1]);
    for (probabilities, targets) in predictions.probabilities.iter().zip(&predictions.targets) {
        for (&probability, &target) in probabilities.iter().zip(targets) {
            let below = thresholds.partition_point(|&threshold| threshold < f64::from(probability));
            let cells = if target { &mut positive } else { &mut negative };
            cells[below] += 1;
        }
    }
    let [positives, negatives] = [&positive, &negative].map(|cells| cells.iter().sum::<usize>());
    let (mut found, mut wrong) = (positives, negatives);
    thresholds
        .into_iter()
        .enumerate()
        .map(|(index, threshold)| {
            found -= positive[index];
            wrong -= negative[index];
            AtThreshold {
                threshold,
                true_positives: found,
                false_positives: wrong,
                false_negatives: positives - found,
                true_negatives: negatives - wrong,
            }
        })
        .collect()
}

/// Probabilities of one bin.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bin {
    /// Number of probabilities.
    pub count: usize,
    /// Mean of the probabilities.
    pub probability: f64,
    /// Share of them whose label holds.
    pub share: f64,
}

impl Bin {
    /// The 95% interval of the share (Wilson, 1927).
    #[must_use]
    pub fn interval(&self) -> (f64, f64) {
        const Z: f64 = 1.959_963_985;
        let n = self.count as f64;
        let scale = 1.0 + Z * Z / n;
        let centre = (self.share + Z * Z / (2.0 * n)) / scale;
        let half = Z * (self.share * (1.0 - self.share) / n + Z * Z / (4.0 * n * n)).sqrt() / scale;
        ((centre - half).max(0.0), (centre + half).min(1.0))
    }
}

/// All probabilities in `count` bins of equal width.
#[must_use]
pub fn reliability(predictions: &Predictions, count: usize) -> Vec<Bin> {
    let mut sums = vec![(0usize, 0.0, 0usize); count];
    for (probabilities, targets) in predictions.probabilities.iter().zip(&predictions.targets) {
        for (&probability, &target) in probabilities.iter().zip(targets) {
            let bin = &mut sums[((f64::from(probability) * count as f64) as usize).min(count - 1)];
            bin.0 += 1;
            bin.1 += f64::from(probability);
            bin.2 += usize::from(target);
        }
    }
    let mean = |sum: f64, count: usize| if count == 0 { 0.0 } else { sum / count as f64 };
    sums.into_iter()
        .map(|(count, sum, held)| Bin { count, probability: mean(sum, count), share: mean(held as f64, count) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn predictions() -> Predictions {
        Predictions {
            probabilities: vec![vec![0.1], vec![0.5], vec![0.9], vec![0.6]],
            predicted: Vec::new(),
            targets: vec![vec![false], vec![true], vec![true], vec![false]],
        }
    }

    #[test]
    fn a_curve_counts_what_is_strictly_above() {
        let curve = over_thresholds(&predictions(), 0, 11);
        let at = |index: usize| (curve[index].true_positives, curve[index].false_positives);
        assert_eq!([at(0), at(5), at(7), at(10)], [(2, 2), (1, 1), (1, 0), (0, 0)]);
        assert_eq!((curve[10].precision(), curve[10].recall(), curve[7].f1()), (1.0, 0.0, 2.0 / 3.0));
        assert!(curve.iter().all(|point| point.true_negatives + point.false_positives == 2));
    }

    #[test]
    fn the_micro_average_sums_the_labels() {
        let both = Predictions {
            probabilities: vec![vec![0.1, 0.95], vec![0.5, 0.3], vec![1.0, 0.0], vec![0.6, 0.31]],
            predicted: Vec::new(),
            targets: vec![vec![false, true], vec![true, false], vec![true, false], vec![false, true]],
        };
        let [first, second] = [0, 1].map(|label| over_thresholds(&both, label, 11));
        for (micro, (a, b)) in micro_over_thresholds(&both, 11).iter().zip(first.iter().zip(&second)) {
            assert_eq!(micro.true_positives, a.true_positives + b.true_positives, "{micro:?}");
            assert_eq!(micro.false_positives, a.false_positives + b.false_positives, "{micro:?}");
            assert_eq!(micro.false_negatives, a.false_negatives + b.false_negatives, "{micro:?}");
            assert_eq!(micro.true_negatives, a.true_negatives + b.true_negatives, "{micro:?}");
        }
    }

    #[test]
    fn few_cells_give_a_wide_interval() {
        // statsmodels' proportion_confint(3, 10, method="wilson").
        let (low, high) = Bin { count: 10, probability: 0.0, share: 0.3 }.interval();
        assert!((low - 0.107_789).abs() < 1e-5 && (high - 0.603_222).abs() < 1e-5, "{low} {high}");
        let (low, high) = Bin { count: 1, probability: 0.0, share: 1.0 }.interval();
        assert!(low < 0.25 && high == 1.0);
    }

    #[test]
    fn bins_hold_all_probabilities() {
        let bins = reliability(&predictions(), 2);
        assert_eq!((bins[0].count, bins[1].count), (1, 3));
        assert!((bins[1].probability - 2.0 / 3.0).abs() < 1e-6 && (bins[1].share - 2.0 / 3.0).abs() < 1e-9);
    }
}
