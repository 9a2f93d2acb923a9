//! The base of an experiment: its files, its weights, and what tells whether they have changed.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::DType;

use crate::artifacts::classifier_file::Base;
use crate::config::model::{ModelConfig, TorchDtype};
use crate::console::Console;
use crate::data::tokenize::TextEncoder;
use crate::hub::model_files::ModelFiles;
use crate::model::classifier::{Classifier, ClassifierOptions};
use crate::model::config::BackboneConfig;
use crate::model::weights::{BaseStorage, Checkpoint, Precision, Weights};
use crate::ops::place::Place;

/// The base's files and how they are to be read.
pub struct BaseModel {
    /// Where they are.
    pub files: ModelFiles,
    /// `config.json`
    pub config: BackboneConfig,
    /// The weights.
    pub weights: Weights,
    /// How they are held.
    pub storage: BaseStorage,
    /// What tells whether they changed.
    pub fingerprint: String,
    /// Where the model computes.
    pub place: Place,
}

impl BaseModel {
    /// Finds and opens the base of a configuration's `model` section.
    ///
    /// # Errors
    /// If a file is missing or not usable.
    pub fn open(model: &ModelConfig, place: &Place, console: Console) -> Result<Self> {
        let token = model.hf_token.as_ref().map(|token| token.secret());
        let files = ModelFiles::find(&model.model_name, token, !model.random_init, console)?;
        let config = BackboneConfig::from_file(&files.config)?;
        let weights = if model.random_init {
            Weights::random(model.init_seed, config.initializer_range)
        } else {
            Weights::Checkpoint(Checkpoint::open(&files.weights)?)
        };
        let fingerprint = weights.fingerprint(&files.config)?;
        let storage = BaseStorage {
            precision: match model.torch_dtype {
                TorchDtype::Float32 => Precision::Float32,
                TorchDtype::Bfloat16 => Precision::Bfloat16,
                TorchDtype::Float16 => Precision::Float16,
            },
            is_4bit: model.use_4bit,
        };
        let place = match model.torch_dtype {
            TorchDtype::Float32 => place.with_dtype(DType::F32),
            TorchDtype::Bfloat16 => place.with_dtype(DType::BF16),
            TorchDtype::Float16 => {
                ensure!(!place.is_gpu(), "model.torch_dtype float16 is for the CPU; on a GPU use bfloat16 or float32");
                place.clone()
            }
        };
        Ok(Self { files, config, weights, storage, fingerprint, place })
    }

    /// Builds a classifier on this base.
    ///
    /// # Errors
    /// If a weight is missing or of another shape, or no module is a LoRA target.
    pub fn classifier(&self, options: &ClassifierOptions) -> Result<Classifier> {
        Classifier::new(&self.config, &self.weights, options)
            .with_context(|| format!("{}: cannot build the model", self.files.name))
    }

    /// The base's tokenizer.
    ///
    /// # Errors
    /// If it is not usable.
    pub fn encoder(&self, max_length: usize) -> Result<TextEncoder> {
        let tokenizer = self.files.tokenizer.first().filter(|path| path.ends_with("tokenizer.json"));
        let tokenizer = tokenizer.with_context(|| format!("{}: `tokenizer.json` is missing", self.files.name))?;
        self.encoder_from(tokenizer, max_length)
    }

    /// As [`BaseModel::encoder`], with the tokenizer of another directory.
    ///
    /// # Errors
    /// If it is not usable.
    pub fn encoder_from(&self, tokenizer: &Path, max_length: usize) -> Result<TextEncoder> {
        if let Some(longest) = self.config.max_tokens {
            ensure!(
                max_length <= longest,
                "data.max_length is {max_length}, and `{}` can take {longest} tokens; set data.max_length={longest} or less",
                self.files.name
            );
        }
        TextEncoder::open(tokenizer, max_length, self.config.empty_token)
    }

    /// The base's part of `classifier.json`.
    #[must_use]
    pub fn record(&self) -> Base {
        Base {
            name: self.files.name.clone(),
            revision: self.files.revision.clone(),
            fingerprint: self.fingerprint.clone(),
        }
    }
}
