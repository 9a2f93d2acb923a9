//! The trained weights of a directory: an adapter in peft's format, or every weight.

use std::path::Path;

use anyhow::Result;

use super::adapter::{self, BaseName};
use super::{model_weights, whole_model};
use crate::model::classifier::Classifier;
use crate::model::lora::LoraOptions;

/// Writes what was trained into a directory.
pub fn save(directory: &Path, classifier: &Classifier, lora: &LoraOptions, base: BaseName<'_>) -> Result<()> {
    match lora.trains_base {
        true => whole_model::save(directory, classifier),
        false => adapter::save(directory, classifier, lora, base),
    }
}

/// Sets a classifier's parameters from a directory.
///
/// # Errors
/// If a tensor is missing, left over, of another shape or not finite.
pub fn load(directory: &Path, classifier: &Classifier) -> Result<()> {
    match directory.join(model_weights::WEIGHTS).is_file() {
        true => whole_model::load(directory, classifier),
        false => adapter::load(directory, classifier),
    }
}
