//! `int8.json` beside an adapter: what predicting in int8 costs, as `eval` measured it, and how far the inputs of its
//! modules reach.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::atomic_file;
use crate::model::quantization::Maxima;

/// The file's name.
pub const NAME: &str = "int8.json";

const FORMAT_VERSION: u32 = 2;

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
    /// A measurement.
    #[must_use]
    pub fn new(rows: usize, reference: Int8Scores, int8: Int8Scores, maxima: Maxima) -> Self {
        Self { format_version: FORMAT_VERSION, rows, reference, int8, maxima }
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
        if !path.is_file() {
            return Ok(None);
        }
        let read = || -> Result<Self> {
            let file: Self = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
            ensure!(file.format_version == FORMAT_VERSION, "format_version is {}", file.format_version);
            for (module, maxima) in &file.maxima {
                ensure!(
                    maxima.iter().all(|reach| *reach >= 0.0 && reach.is_finite()),
                    "a magnitude of {module} is none"
                );
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
