//! A complete classifier in one directory: weights, configuration and tokenizer as transformers reads them, and
//! `classifier.json`. `export` writes it of a base and an adapter.

use std::path::Path;

use anyhow::Result;

use super::base_facts::BaseFacts;
use super::classifier_file::{ClassifierFile, RecordedFingerprint};
use super::{model_config, model_weights};
use crate::data::tokenize::TextEncoder;
use crate::embedded;
use crate::model::config::{BackboneConfig, LayersConfig, Pooling};
use crate::model::merged::NamedTensor;
use crate::model::weights::Precision;

/// Returns true if a directory holds a complete model, and no adapter that needs a base.
#[must_use]
pub fn is_complete(directory: &Path) -> bool {
    let has = |name: &str| embedded::is_file(&directory.join(name));
    has(model_config::CONFIG)
        && (has(model_weights::WEIGHTS) || has(model_weights::INDEX))
        && !super::adapter::is_adapter(directory)
}

/// `classifier.json` of a complete model with the weights of a classifier: nothing in it leads to a directory of this
/// machine.
#[must_use]
pub fn described(classifier: &ClassifierFile, dtype: Precision) -> ClassifierFile {
    let mut file = without_paths(classifier);
    if classifier.random_init {
        file.base.name.push_str(" (random weights)");
    }
    // The base is in it, and nothing is to be compared with the original one.
    file.base.fingerprint = RecordedFingerprint::Sampled(String::new());
    file.random_init = false;
    file.init_seed = 0;
    dtype.name().clone_into(&mut file.torch_dtype);
    if dtype != Precision::Bfloat16 {
        Precision::Float32.name().clone_into(&mut file.compute);
    }
    file.use_4bit = false;
    file
}

/// `classifier.json` with the base's name as others know it.
#[must_use]
pub fn without_paths(classifier: &ClassifierFile) -> ClassifierFile {
    let facts = BaseFacts::of(classifier);
    let mut file = classifier.clone();
    file.base.name = facts.hub_name.unwrap_or(facts.short);
    file
}

/// A complete classifier that is to be written.
pub struct CompleteModel<'a> {
    /// All tensors, by their names in transformers.
    pub tensors: Vec<NamedTensor<'a>>,
    /// Storage of the numbers.
    pub dtype: Precision,
    /// The largest file of weights.
    pub shard_bytes: u64,
    /// The base's `config.json`.
    pub base_config: &'a Path,
    /// The same, parsed.
    pub config: &'a BackboneConfig,
    /// Labels and thresholds.
    pub file: &'a ClassifierFile,
    /// The tokenizer, whose files lie in the directory already.
    pub encoder: &'a TextEncoder,
}

impl CompleteModel<'_> {
    /// Writes weights, configuration and `classifier.json` into a directory, and settles the tokenizer's files there.
    /// Returns the token that batches are padded with in Python, if there is one.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn write(&self, directory: &Path) -> Result<Option<String>> {
        model_weights::write(directory, &self.tensors, self.dtype, self.shard_bytes)?;
        let padding = self.padding(directory)?;
        let id = padding.as_deref().and_then(|token| self.encoder.id_of(token));
        model_config::write(directory, self.base_config, self.file, self.dtype, id)?;
        let has_types =
            matches!(&self.config.layers, LayersConfig::PostNorm(layers) if layers.embeddings.token_types > Some(1));
        model_config::settle_tokenizer(directory, self.file.max_length, padding.as_deref(), has_types)?;
        self.file.save(directory)?;
        Ok(padding)
    }

    /// The padding token. Where the model looks for it in its input, it must be the one that this model passes over, or
    /// one that ends no text: transformers pools the last token that is no padding.
    fn padding(&self, directory: &Path) -> Result<Option<String>> {
        let of_tokenizer = model_config::padding_token(directory)?.filter(|token| self.encoder.id_of(token).is_some());
        let of_model = match (self.config.head.pooling, &self.config.layers) {
            (Pooling::Last { padding }, _) => padding,
            (_, LayersConfig::PostNorm(layers)) => layers.embeddings.first_position.checked_sub(1).map(|id| id as u32),
            (Pooling::First | Pooling::Mean | Pooling::Late, LayersConfig::PreNorm(_)) => None,
        };
        if let Some(token) = of_model.and_then(|id| self.encoder.token_of(id)) {
            return Ok(Some(token));
        }
        if !matches!(self.config.head.pooling, Pooling::Last { .. }) {
            return Ok(of_tokenizer);
        }
        let last = self.encoder.encode(vec!["a"])?[0].token_ids.last().copied();
        let ends_no_text = |token: &String| self.encoder.id_of(token) != last;
        let spare = self.config.empty_token.and_then(|id| self.encoder.token_of(id));
        Ok(of_tokenizer.filter(ends_no_text).or(spare.filter(ends_no_text)))
    }
}
