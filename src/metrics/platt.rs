//! Calibration of logits that no training has fitted to the labels (Platt, 1999):
//! `p = σ(a · (x − m) + c · m + b)`, where m is the mean of a row's logits: a model may say yes more readily of one text
//! than of another, whatever the label. `a` and `c` are of all labels, the shift `b` is of one.
//!
//! With λ = 1, one row's evidence, it minimises the negative log-likelihood plus `λ/2 · Σ (b − mean b)²`, so that the
//! shift of a label with few rows stays near the others'. The problem is convex: Newton's steps, one unknown at a time.

/// How strongly shifts are drawn to their mean: as one row's evidence.
const SHRINKS: f64 = 1.0;
/// Slopes between which the search stays: that of a label's own logit turns no ranking of labels around.
const OWN: [f64; 2] = [0.0, 20.0];
const MEAN: [f64; 2] = [-20.0, 20.0];

/// The fitted map.
#[derive(Clone, Debug, PartialEq)]
pub struct Platt {
    /// a
    pub slope: f64,
    /// c
    pub mean_slope: f64,
    /// b, one a label.
    pub shifts: Vec<f64>,
}

impl Platt {
    /// Fits rows of logits to what holds of each label.
    #[must_use]
    pub fn fit(logits: &[Vec<f32>], targets: &[Vec<bool>], labels: usize) -> Self {
        const ROUNDS: usize = 300;
        let mut found = Self { slope: 1.0, mean_slope: 1.0, shifts: vec![0.0; labels] };
        for _ in 0..ROUNDS {
            let before = found.clone();
            let mean = found.shifts.iter().sum::<f64>() / labels.max(1) as f64;
            for label in 0..labels {
                let start = (SHRINKS * (found.shifts[label] - mean), SHRINKS);
                found.shifts[label] -= found.step(logits, targets, start, |_, own| f64::from(u8::from(own == label)));
            }
            let start = (0.0, 1e-9);
            let own = found.step(logits, targets, start, |row, label| f64::from(row[label]) - mean_of(row));
            found.slope = (found.slope - own).clamp(OWN[0], OWN[1]);
            let of_mean = found.step(logits, targets, start, |row, _| mean_of(row));
            found.mean_slope = (found.mean_slope - of_mean).clamp(MEAN[0], MEAN[1]);
            let moved = found.shifts.iter().zip(&before.shifts).map(|(now, then)| (now - then).abs());
            let slopes = [found.slope - before.slope, found.mean_slope - before.mean_slope];
            if moved.chain(slopes.map(f64::abs)).fold(0.0, f64::max) < 1e-9 {
                break;
            }
        }
        found
    }

    /// Newton's step for an unknown that multiplies `factor(row, label)`, from the slope and curvature of its penalty.
    fn step(
        &self,
        logits: &[Vec<f32>],
        targets: &[Vec<bool>],
        (mut slope, mut curvature): (f64, f64),
        factor: impl Fn(&[f32], usize) -> f64,
    ) -> f64 {
        for (row, targets) in logits.iter().zip(targets) {
            let mean = mean_of(row);
            for (label, &holds) in targets.iter().enumerate() {
                let factor = factor(row, label);
                if factor != 0.0 {
                    let p = 1.0 / (1.0 + (-self.calibrated(row[label], mean, label)).exp());
                    slope += (p - f64::from(u8::from(holds))) * factor;
                    curvature += p * (1.0 - p) * factor * factor;
                }
            }
        }
        // Bounded: where all rows are alike Newton's step would leave the ground.
        (slope / curvature).clamp(-1.0, 1.0)
    }

    /// A row's logits, calibrated.
    #[must_use]
    pub fn logits(&self, row: &[f32]) -> Vec<f32> {
        let mean = mean_of(row);
        row.iter().enumerate().map(|(label, &x)| self.calibrated(x, mean, label) as f32).collect()
    }

    fn calibrated(&self, x: f32, mean: f64, label: usize) -> f64 {
        self.slope * (f64::from(x) - mean) + self.mean_slope * mean + self.shifts[label]
    }
}

fn mean_of(row: &[f32]) -> f64 {
    row.iter().copied().map(f64::from).sum::<f64>() / row.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of two labels that hold as often as the map says.
    #[test]
    fn the_map_that_made_the_labels_is_found() {
        let made = Platt { slope: 0.8, mean_slope: -0.3, shifts: vec![-1.5, -1.0] };
        let (mut logits, mut targets) = (Vec::new(), Vec::new());
        for row in [[-4.0f32, -1.0], [-1.0, 1.5], [0.5, 0.5], [3.0, 0.0], [6.0, 4.0], [1.0, 5.0]] {
            for index in 0..4000 {
                let share = |logit: &f32| 1.0 / (1.0 + (-f64::from(*logit)).exp());
                let holds = |logit: &f32| (f64::from(index) + 0.5) / 4000.0 < share(logit);
                targets.push(made.logits(&row).iter().map(holds).collect());
                logits.push(row.to_vec());
            }
        }
        let found = Platt::fit(&logits, &targets, 2);
        let slopes = [found.slope - made.slope, found.mean_slope - made.mean_slope];
        assert!(slopes.iter().all(|difference| difference.abs() < 0.01), "{found:?}");
        assert!(found.shifts.iter().zip(&made.shifts).all(|(found, made)| (found - made).abs() < 0.03), "{found:?}");
        assert!((found.logits(&[2.0, 1.0])[1] - made.logits(&[2.0, 1.0])[1]).abs() < 0.05);
    }

    /// A label that never holds is drawn to the others, not to minus infinity.
    #[test]
    fn few_rows_do_not_run_away() {
        let logits = vec![vec![2.0, 1.0], vec![-1.0, 0.0], vec![1.0, 3.0]];
        let targets = vec![vec![true, false], vec![false, false], vec![true, false]];
        let found = Platt::fit(&logits, &targets, 2);
        assert!(found.slope <= OWN[1] && found.mean_slope.abs() <= MEAN[1], "{found:?}");
        assert!(found.shifts.iter().all(|shift| shift.is_finite()) && found.shifts[1] < found.shifts[0], "{found:?}");
        assert_eq!(Platt::fit(&[], &[], 2).shifts, [0.0, 0.0]);
    }
}
