//! The trained weights of a directory: an adapter in peft's format, or a whole model.

use std::path::Path;

use anyhow::Result;

use super::adapter::{self, BaseName};
use super::whole_model::{self, BaseConfig};
use crate::model::classifier::Classifier;
use crate::model::lora::LoraOptions;

/// How trained weights are saved.
pub enum SavedAs<'a> {
    /// Adapters and head.
    Adapter {
        /// For `adapter_config.json`.
        lora: &'a LoraOptions,
        /// The base's name.
        base: BaseName<'a>,
    },
    /// Every weight.
    WholeModel(&'a BaseConfig),
}

impl SavedAs<'_> {
    /// Writes the weights into a directory.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, directory: &Path, classifier: &Classifier) -> Result<()> {
        match self {
            Self::Adapter { lora, base } => adapter::save(directory, classifier, lora, *base),
            Self::WholeModel(base) => whole_model::save(directory, classifier, base),
        }
    }

    /// Sets a classifier's parameters from a directory.
    ///
    /// # Errors
    /// If a tensor is missing, left over, of another shape or not finite.
    pub fn load(&self, directory: &Path, classifier: &Classifier) -> Result<()> {
        match self {
            Self::Adapter { .. } => adapter::load(directory, classifier),
            Self::WholeModel(_) => whole_model::load(directory, classifier),
        }
    }
}

/// Whether a directory holds a trained classifier: an adapter, or a whole model.
#[must_use]
pub fn is_classifier(directory: &Path) -> bool {
    adapter::is_adapter(directory) || whole_model::is_whole_model(directory)
}
