//! Calibration by one number (Guo et al., 2017): logits divided by a temperature T, which is fitted on validation.
//!
//! T changes no ranking. Above 1 it makes probabilities less certain, below 1 more.

use super::Predictions;

/// Temperatures that are looked at: beyond them the rows say nothing of T.
const LOW: f64 = 0.05;
const HIGH: f64 = 20.0;

/// The temperature whose negative log-likelihood on these rows is least. `is_single`: probabilities are a softmax.
#[must_use]
pub fn fit(predictions: &Predictions, is_single: bool) -> f64 {
    /// Halvings of the interval: four digits of T.
    const STEPS: usize = 40;
    let rows: Vec<(Vec<f64>, &[bool])> = predictions
        .probabilities
        .iter()
        .zip(&predictions.targets)
        .map(|(row, targets)| (row.iter().map(|&p| logit(p, is_single)).collect(), targets.as_slice()))
        .collect();
    let loss = |log_temperature: f64| {
        let scale = (-log_temperature).exp();
        let terms = rows.iter().map(|(logits, targets)| negative_log_likelihood(logits, targets, scale, is_single));
        terms.sum::<f64>()
    };
    // The loss is convex in 1/T, so along log T it falls and then rises: golden-section search.
    let ratio = (5f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (LOW.ln(), HIGH.ln());
    let (mut a, mut b) = (high - ratio * (high - low), low + ratio * (high - low));
    let (mut of_a, mut of_b) = (loss(a), loss(b));
    for _ in 0..STEPS {
        if of_a <= of_b {
            (high, b, of_b) = (b, a, of_a);
            a = high - ratio * (high - low);
            of_a = loss(a);
        } else {
            (low, a, of_a) = (a, b, of_b);
            b = low + ratio * (high - low);
            of_b = loss(b);
        }
    }
    (0.5 * (low + high)).exp()
}

/// The logit that a probability came from; of a softmax up to a constant of the row.
fn logit(probability: f32, is_single: bool) -> f64 {
    let p = f64::from(probability);
    if is_single { p.max(1e-38).ln() } else { p.max(1e-38).ln() - (1.0 - p).max(3e-8).ln() }
}

fn negative_log_likelihood(logits: &[f64], targets: &[bool], scale: f64, is_single: bool) -> f64 {
    if is_single {
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|logit| ((logit - max) * scale).exp()).sum();
        let own = logits.iter().zip(targets).find(|(_, holds)| **holds).map_or(0.0, |(logit, _)| (logit - max) * scale);
        return sum.ln() - own;
    }
    let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
    logits.iter().zip(targets).map(|(logit, &holds)| softplus(if holds { -logit * scale } else { logit * scale })).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row for each of some logits, as often true as its logit over `temperature` says.
    fn rows(temperature: f64) -> Predictions {
        let (mut probabilities, mut targets) = (Vec::new(), Vec::new());
        for logit in [-6.0f64, -3.0, -1.0, 0.5, 2.0, 5.0] {
            let share = 1.0 / (1.0 + (-logit / temperature).exp());
            for row in 0..2000 {
                probabilities.push(vec![(1.0 / (1.0 + (-logit).exp())) as f32]);
                targets.push(vec![(f64::from(row) + 0.5) / 2000.0 < share]);
            }
        }
        Predictions { probabilities, predicted: Vec::new(), targets }
    }

    #[test]
    fn the_temperature_that_made_the_labels_is_found() {
        for temperature in [0.5, 1.0, 2.5] {
            let found = fit(&rows(temperature), false);
            assert!((found / temperature - 1.0).abs() < 0.01, "{found}, made with {temperature}");
        }
    }

    #[test]
    fn two_classes_of_a_softmax_are_a_sigmoid() {
        let of_one = rows(2.5);
        let two = |row: &Vec<f32>| vec![row[0], 1.0 - row[0]];
        let of_two = Predictions {
            probabilities: of_one.probabilities.iter().map(two).collect(),
            predicted: Vec::new(),
            targets: of_one.targets.iter().map(|row| vec![row[0], !row[0]]).collect(),
        };
        let (sigmoid, softmax) = (fit(&of_one, false), fit(&of_two, true));
        assert!((sigmoid / softmax - 1.0).abs() < 1e-3, "{sigmoid} {softmax}");
    }

    #[test]
    fn rows_that_are_all_right_do_not_run_away() {
        let all_right = Predictions {
            probabilities: vec![vec![0.9], vec![0.2]],
            predicted: Vec::new(),
            targets: vec![vec![true], vec![false]],
        };
        assert!((fit(&all_right, false) / LOW - 1.0).abs() < 0.01);
        assert!(fit(&Predictions::default(), false).is_finite());
    }
}
