//! A number over several trainings.

use serde::{Deserialize, Serialize};

/// Mean and standard deviation (n − 1) over seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OverSeeds {
    pub mean: f64,
    /// None for one seed.
    pub sd: Option<f64>,
}

impl OverSeeds {
    #[must_use]
    pub fn new(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Self { mean, sd: (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt()) }
    }
}
