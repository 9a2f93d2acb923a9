//! What Python needs to read a model of a family.

use std::path::Path;

use anyhow::{Context, Result};

use super::Family;
use super::file::ConfigFile;
use crate::embedded;
use crate::model::config::{BackboneConfig, LayersConfig};

/// Beside what every family needs.
#[derive(Clone, Debug, Default)]
pub struct PythonNeeds {
    /// Lines that make the model's class of transformers' generic one, where transformers has none (Granite, OLMo 2).
    pub making_of_class: Option<String>,
    /// True if transformers 4 has no code for the model (EuroBERT, NomicBERT).
    pub version_5: bool,
    /// True if transformers 4 must be asked for eager attention: its usual one leaves out the soft cap (Gemma 2).
    pub eager_attention: bool,
}

impl PythonNeeds {
    /// Those of a model with this `config.json`.
    ///
    /// # Errors
    /// If the file cannot be read, or its family is not supported.
    pub fn of(path: &Path) -> Result<Self> {
        let text = embedded::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
        let family = Family::of(&ConfigFile::parse(&text)?)?;
        let layers = BackboneConfig::from_json(&text)?.layers;
        Ok(Self {
            making_of_class: family.lacks_classifier().then(|| making_of_class(family)),
            version_5: family.is_of_version_5(),
            eager_attention: matches!(&layers, LayersConfig::PreNorm(layers) if layers.soft_cap.is_some()),
        })
    }

    /// What stands above the first line of Python.
    #[must_use]
    pub fn first_lines(&self) -> String {
        self.making_of_class.as_ref().map_or_else(String::new, |lines| format!("{lines}\n\n"))
    }

    /// Paragraphs of Markdown for below the lines of Python.
    #[must_use]
    pub fn notes(&self) -> String {
        let mut notes = String::new();
        if self.eager_attention {
            notes.push_str(
                "Without `eager`, transformers 4 leaves out the model's soft cap on attention, and predicts other numbers.\n\n",
            );
        }
        if self.version_5 {
            notes.push_str("Python needs transformers 5: version 4 has no code for this family.\n\n");
        }
        if self.making_of_class.is_some() {
            notes.push_str(
                "Not every version of transformers has a classifier of this family: the first lines make it of the generic \
                 one.\n\n",
            );
        }
        notes
    }
}

fn making_of_class(family: Family) -> String {
    let (prefix, model_type) = (family.class_prefix(), family.model_type());
    format!(
        "from transformers import AutoModelForSequenceClassification, {prefix}Config\n\
         from transformers.modeling_layers import GenericForSequenceClassification\n\
         from transformers.models.{model_type}.modeling_{model_type} import {prefix}PreTrainedModel\n\n\n\
         class {prefix}ForSequenceClassification(GenericForSequenceClassification, {prefix}PreTrainedModel):\n    \
         pass\n\n\n\
         AutoModelForSequenceClassification.register({prefix}Config, {prefix}ForSequenceClassification, exist_ok=True)\n"
    )
}
