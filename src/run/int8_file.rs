//! `int8.json` beside an adapter: what predicting in int8 costs, as `eval` measured it, and which columns it
//! keeps apart.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::atomic_file;

/// The file's name.
pub const NAME: &str = "int8.json";

const FORMAT_VERSION: u32 = 1;

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
    /// Of each linear module: columns of its input that are multiplied in bf16.
    pub outliers: BTreeMap<String, Vec<usize>>,
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
    pub fn new(rows: usize, reference: Int8Scores, int8: Int8Scores, outliers: BTreeMap<String, Vec<usize>>) -> Self {
        Self { format_version: FORMAT_VERSION, rows, reference, int8, outliers }
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
            for (module, columns) in &file.outliers {
                ensure!(columns.is_sorted_by(|a, b| a < b), "the outliers of {module} are not in ascending order");
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
