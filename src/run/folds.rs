//! What folds tell: scores of rows that a model has not seen, and whether more rows would help.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::over_seeds::OverSeeds;

/// 97.5% quantiles of Student's t for 1 to 30 degrees of freedom.
const T_QUANTILES: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];
/// For more degrees of freedom, a little too wide.
const T_OF_MANY: f64 = 2.042;

/// Results of the folds of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoldSummary {
    pub folds: usize,
    /// Of the trainings in place of folds.
    pub seed: u32,
    /// Mean and deviation over folds of each metric on the held-out rows.
    pub over_folds: BTreeMap<String, OverSeeds>,
    /// With a part of the other folds' rows, and with all of them.
    pub learning_curve: Vec<CurvePoint>,
    /// From half of the rows to all of them, on the same held-out rows.
    pub from_half: Gains,
    /// Whether the run's thresholds were tuned on the out-of-fold predictions.
    pub tuned_thresholds: bool,
}

/// Scores of models that were trained on a part of the rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    pub share: f64,
    /// Rows of a training, the mean over folds.
    pub rows: f64,
    pub f1_micro: OverSeeds,
    pub f1_macro: OverSeeds,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gains {
    pub f1_micro: Gain,
    pub f1_macro: Gain,
}

/// A mean difference over folds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gain {
    pub mean: f64,
    /// By Student's t over folds. Folds share training rows, so it is a little too narrow.
    pub ci95: [f64; 2],
}

impl Gain {
    /// The mean of paired differences, of at least two folds.
    #[must_use]
    pub fn new(differences: &[f64]) -> Self {
        let OverSeeds { mean, sd } = OverSeeds::new(differences);
        let t = T_QUANTILES.get(differences.len().saturating_sub(2)).copied().unwrap_or(T_OF_MANY);
        let half = t * sd.unwrap_or(f64::NAN) / (differences.len() as f64).sqrt();
        Self { mean, ci95: [mean - half, mean + half] }
    }
}

impl FoldSummary {
    /// Mean and deviation of F1 on the held-out rows.
    #[must_use]
    pub fn scores(&self) -> String {
        let shown = |name: &str| {
            let OverSeeds { mean, sd } = self.over_folds.get(name)?;
            Some(format!("{name} {mean:.4} ± {:.4}", sd.unwrap_or(f64::NAN)))
        };
        let scores: Vec<String> = ["f1_micro", "f1_macro"].into_iter().filter_map(shown).collect();
        format!("{} folds, on held-out rows: {}", self.folds, scores.join(", "))
    }

    /// The answer to "would more data help?".
    #[must_use]
    pub fn answer(&self) -> String {
        let said = |name: &str, gain: &Gain| {
            format!("{name} changes by {:+.4} (95%: {:+.4} to {:+.4})", gain.mean, gain.ci95[0], gain.ci95[1])
        };
        let Gains { f1_micro, f1_macro } = &self.from_half;
        let helps = |gain: &Gain| gain.ci95[0] > 0.0;
        format!(
            "From half of the rows to all of them, {} and {}. {}",
            said("micro-F1", f1_micro),
            said("macro-F1", f1_macro),
            match (helps(f1_micro), helps(f1_macro)) {
                (true, _) => "More rows like these would very likely help.",
                (false, true) => "More rows would very likely help the rare labels.",
                (false, false) => "The folds do not show that more rows would help.",
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `scipy.stats.t.interval(0.95, 2, mean, sem)` of the differences.
    #[test]
    fn a_gain_has_the_interval_of_students_t() {
        let gain = Gain::new(&[0.01, 0.03, 0.02]);
        assert!((gain.mean - 0.02).abs() < 1e-12);
        assert!((gain.ci95[0] + 0.004_841).abs() < 1e-5 && (gain.ci95[1] - 0.044_841).abs() < 1e-5, "{gain:?}");
    }
}
