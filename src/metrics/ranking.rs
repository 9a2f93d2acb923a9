//! Scores that do not depend on a threshold: ranking and calibration, by the definitions of scikit-learn and
//! torchmetrics.

/// Bins of the calibration error, as in torchmetrics.
const BINS: usize = 15;

/// Average precision: the mean of the precisions at which recall rises, weighted by the rise. `None`
/// without a positive.
#[must_use]
pub fn average_precision(pairs: &[(f32, bool)]) -> Option<f64> {
    let positives = pairs.iter().filter(|pair| pair.1).count();
    let (mut found, mut seen, mut sum) = (0, 0, 0.0);
    for group in tied_groups(pairs) {
        let rise = group.iter().filter(|pair| pair.1).count();
        found += rise;
        seen += group.len();
        sum += rise as f64 * found as f64 / seen as f64;
    }
    (positives > 0).then(|| sum / positives as f64)
}

/// Area under the ROC curve: the chance that a positive example has a higher probability than a
/// negative one, ties counting half. `None` unless there are both.
#[must_use]
pub fn roc_auc(pairs: &[(f32, bool)]) -> Option<f64> {
    let positives = pairs.iter().filter(|pair| pair.1).count();
    let negatives = pairs.len() - positives;
    let (mut above, mut sum) = (0, 0.0);
    for group in tied_groups(pairs) {
        let hits = group.iter().filter(|pair| pair.1).count();
        let misses = group.len() - hits;
        // Each negative of the group is below the positives so far, and level with those of the group.
        sum += misses as f64 * (above as f64 + hits as f64 / 2.0);
        above += hits;
    }
    (positives > 0 && negatives > 0).then(|| sum / (positives as f64 * negatives as f64))
}

/// Mean of −log p for what holds and −log(1 − p) for what does not, with p kept a rounding error away
/// from 0 and 1, as scikit-learn does.
#[must_use]
pub fn log_loss(pairs: &[(f32, bool)]) -> f64 {
    let epsilon = f64::from(f32::EPSILON);
    let term = |&(probability, target): &(f32, bool)| {
        let p = f64::from(probability).clamp(epsilon, 1.0 - epsilon);
        -(if target { p } else { 1.0 - p }).ln()
    };
    pairs.iter().map(term).sum::<f64>() / pairs.len().max(1) as f64
}

/// Mean squared difference of probability and truth.
#[must_use]
pub fn brier(pairs: &[(f32, bool)]) -> f64 {
    let sum: f64 = pairs.iter().map(|&(p, holds)| (f64::from(p) - f64::from(u8::from(holds))).powi(2)).sum();
    sum / pairs.len().max(1) as f64
}

/// Expected calibration error over equal-width bins: the mean gap between a bin's mean probability and
/// its share of positives, weighted by the bin's size.
#[must_use]
pub fn calibration_error(pairs: &[(f32, bool)]) -> f64 {
    let mut bins = [(0.0, 0usize); BINS];
    for &(probability, holds) in pairs {
        // The upper edge belongs to a bin, as in torchmetrics.
        let bin = ((f64::from(probability) * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
        bins[bin].0 += f64::from(probability) - f64::from(u8::from(holds));
        bins[bin].1 += 1;
    }
    bins.iter().map(|(gap, _)| gap.abs()).sum::<f64>() / pairs.len().max(1) as f64
}

/// Pairs of equal probability together, highest first.
fn tied_groups(pairs: &[(f32, bool)]) -> Vec<Vec<(f32, bool)>> {
    let mut sorted = pairs.to_vec();
    sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
    sorted.chunk_by(|a, b| a.0 == b.0).map(<[_]>::to_vec).collect()
}
