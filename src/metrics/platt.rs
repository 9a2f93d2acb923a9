//! Calibration of logits that no training has fitted to the labels (Platt, 1999): `p = σ(a · x + b)`, one slope `a` for
//! all labels and a shift `b` for each.
//!
//! With λ = [`SHRINKS`] it minimises the negative log-likelihood plus `λ/2 · Σ (b − mean b)²`, so that the shift of a label with
//! few rows stays near the others'. The problem is convex in `a` and `b`: Newton's steps, one unknown at a time.

/// How strongly shifts are drawn to their mean: as one row's evidence.
const SHRINKS: f64 = 1.0;
/// Slopes between which the search stays.
const SLOPES: [f64; 2] = [0.0, 20.0];

/// The fitted map.
#[derive(Clone, Debug, PartialEq)]
pub struct Platt {
    /// a
    pub slope: f64,
    /// b, one a label.
    pub shifts: Vec<f64>,
}

impl Platt {
    /// Fits rows of logits to what holds of each label.
    #[must_use]
    pub fn fit(logits: &[Vec<f32>], targets: &[Vec<bool>], labels: usize) -> Self {
        const ROUNDS: usize = 200;
        let mut found = Self { slope: 1.0, shifts: vec![0.0; labels] };
        for _ in 0..ROUNDS {
            let before = found.clone();
            let mean = found.shifts.iter().sum::<f64>() / labels.max(1) as f64;
            for label in 0..labels {
                let (mut slope, mut curvature) = (SHRINKS * (found.shifts[label] - mean), SHRINKS);
                for (row, targets) in logits.iter().zip(targets) {
                    let p = found.probability(row[label], label);
                    slope += p - f64::from(u8::from(targets[label]));
                    curvature += p * (1.0 - p);
                }
                // A step is bounded: where all rows are alike Newton's would leave the ground.
                found.shifts[label] -= (slope / curvature).clamp(-1.0, 1.0);
            }
            let (mut slope, mut curvature) = (0.0, 1e-9);
            for (row, targets) in logits.iter().zip(targets) {
                for (label, (&x, &holds)) in row.iter().zip(targets).enumerate() {
                    let p = found.probability(x, label);
                    slope += (p - f64::from(u8::from(holds))) * f64::from(x);
                    curvature += p * (1.0 - p) * f64::from(x) * f64::from(x);
                }
            }
            found.slope = (found.slope - (slope / curvature).clamp(-1.0, 1.0)).clamp(SLOPES[0], SLOPES[1]);
            let moved = found.shifts.iter().zip(&before.shifts).map(|(now, then)| (now - then).abs());
            if moved.fold((found.slope - before.slope).abs(), f64::max) < 1e-9 {
                break;
            }
        }
        found
    }

    /// The logit of a label, calibrated.
    #[must_use]
    pub fn logit(&self, x: f32, label: usize) -> f32 {
        (self.slope * f64::from(x) + self.shifts[label]) as f32
    }

    fn probability(&self, x: f32, label: usize) -> f64 {
        1.0 / (1.0 + (-(self.slope * f64::from(x) + self.shifts[label])).exp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of two labels that hold as often as `σ(a x + b)` says.
    #[test]
    fn the_map_that_made_the_labels_is_found() {
        let (slope, shifts) = (0.4, [-3.0, -2.0]);
        let (mut logits, mut targets) = (Vec::new(), Vec::new());
        for x in [-4.0f32, -1.0, 0.5, 3.0, 6.0] {
            for row in 0..4000 {
                logits.push(vec![x, x]);
                let share = |shift: f64| 1.0 / (1.0 + (-(slope * f64::from(x) + shift)).exp());
                targets.push(shifts.iter().map(|&shift| (f64::from(row) + 0.5) / 4000.0 < share(shift)).collect());
            }
        }
        let found = Platt::fit(&logits, &targets, 2);
        assert!((found.slope - slope).abs() < 0.01, "{found:?}");
        assert!(found.shifts.iter().zip(shifts).all(|(found, shift)| (found - shift).abs() < 0.03), "{found:?}");
        assert!((found.logit(2.0, 1) + 1.2).abs() < 0.05);
    }

    /// A label that never holds is drawn to the others, not to minus infinity.
    #[test]
    fn few_rows_do_not_run_away() {
        let logits = vec![vec![2.0, 1.0], vec![-1.0, 0.0], vec![1.0, 3.0]];
        let targets = vec![vec![true, false], vec![false, false], vec![true, false]];
        let found = Platt::fit(&logits, &targets, 2);
        assert!(found.slope <= SLOPES[1] && found.shifts.iter().all(|shift| shift.abs() < 60.0), "{found:?}");
        assert!(found.shifts[1] < found.shifts[0]);
        assert_eq!(Platt::fit(&[], &[], 2).shifts, [0.0, 0.0]);
    }
}
