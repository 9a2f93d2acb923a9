//! `int8.json` beside an adapter: what predicting in int8 costs, as `eval` measured it, and how far the inputs of its
//! modules reach.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::atomic_file;
use crate::embedded;
use crate::model::quantization::Maxima;

/// The file's name.
pub const NAME: &str = "int8.json";

/// Version 2 knew the inputs of only one of the modules that share an input.
const FORMAT_VERSION: u32 = 3;

/// What is known of predicting in int8 with one classifier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Int8File {
    /// Of this file.
    pub format_version: u32,
    /// Validation rows that were measured.
    pub rows: usize,
    /// Scores as trained, and what products were computed in.
    pub reference: Int8Scores,
    /// Scores in int8.
    pub int8: Int8Scores,
    /// The classifier's thresholds, by which rows were scored.
    pub thresholds: Vec<f32>,
    /// Of each linear module: the largest magnitude of each column of its input, rounded.
    pub maxima: Maxima,
}

/// Scores on the validation rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Int8Scores {
    /// float32, bfloat16 or int8.
    pub compute: String,
    /// Micro-F1.
    pub f1_micro: f64,
    /// Macro-F1.
    pub f1_macro: f64,
}

impl Int8File {
    /// A measurement: scores as trained and in int8.
    #[must_use]
    pub fn new(rows: usize, [reference, int8]: [Int8Scores; 2], thresholds: Vec<f32>, maxima: Maxima) -> Self {
        Self { format_version: FORMAT_VERSION, rows, reference, int8, thresholds, maxima }
    }

    /// Magnitudes as the file has them: two digits are enough for what is made of them, and keep it small.
    #[must_use]
    pub fn rounded(mut maxima: Maxima) -> Maxima {
        for reach in maxima.values_mut().flatten() {
            *reach = format!("{reach:.1e}").parse().unwrap_or(*reach);
        }
        maxima
    }

    /// Points of micro-F1 that int8 loses; negative if it gains some.
    #[must_use]
    pub fn cost(&self) -> f64 {
        100.0 * (self.reference.f1_micro - self.int8.f1_micro)
    }

    /// [`Int8File::cost`] in words.
    #[must_use]
    pub fn described_cost(&self) -> String {
        match self.cost() {
            cost if cost < 0.0 => format!("gains {:.2} points of micro-F1", -cost),
            cost => format!("costs {cost:.2} points of micro-F1"),
        }
    }

    /// Writes the file into a directory, replacing the old one whole.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, directory: &Path) -> Result<()> {
        atomic_file::write_bytes(&directory.join(NAME), serde_json::to_string_pretty(self)?.as_bytes())
    }

    /// Reads the file of a directory; `None` if there is none.
    ///
    /// # Errors
    /// If it is there and not valid.
    pub fn load(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(NAME);
        if !embedded::is_file(&path) {
            return Ok(None);
        }
        let read = || -> Result<Self> {
            let file: Value = serde_json::from_str(&embedded::read_to_string(&path)?)?;
            ensure!(
                file["format_version"] == FORMAT_VERSION,
                "format_version is {}, and this version of llmcls reads {FORMAT_VERSION}",
                file["format_version"]
            );
            let file: Self = serde_json::from_value(file)?;
            for (module, maxima) in &file.maxima {
                ensure!(
                    maxima.iter().all(|reach| *reach >= 0.0 && reach.is_finite()),
                    "a magnitude of {module} is negative or not finite"
                );
                ensure!(maxima.iter().any(|reach| *reach > 0.0), "the magnitudes of {module} are all 0");
            }
            Ok(file)
        };
        read().map(Some).with_context(|| {
            format!(
                "{}: not usable; measure again with `llmcls eval --split validation --precision int8`",
                path.display()
            )
        })
    }
}
