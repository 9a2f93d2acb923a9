//! A trained classifier, ready to predict: one type behind `predict`, `eval` and whatever serves predictions.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::console::Console;
use crate::data::table::Example;
use crate::data::tokenize::TextEncoder;
use crate::evaluation::{Evaluation, Sample, evaluate};
use crate::experiment::base_head;
use crate::experiment::base_model::BaseModel;
use crate::experiment::dataset::{self, Rows};
use crate::metrics::Decision;
use crate::model::classifier::{Classifier, ClassifierOptions, Problem};
use crate::ops::loss::BceWeights;
use crate::run::adapter;
use crate::run::classifier_file::ClassifierFile;
use crate::run::directory::Trained;

/// A trained classifier, ready to predict.
pub struct Predictor {
    /// Where it lies.
    pub trained: Trained,
    /// Model and parameters.
    pub classifier: Classifier,
    /// Its tokenizer.
    pub encoder: TextEncoder,
    /// The base's files.
    base_files: Vec<PathBuf>,
    /// How many tokens the model has.
    vocab_size: usize,
    /// Labels, thresholds, columns.
    pub file: ClassifierFile,
}

impl Predictor {
    /// Builds the model on its base, and reads adapter, head and tokenizer.
    ///
    /// # Errors
    /// If a part is missing, or does not fit the others.
    pub fn open(trained: Trained, file: ClassifierFile, is_of_a_run: bool, base: &BaseModel) -> Result<Self> {
        let (lora, _) = adapter::read_config(&trained.adapter)?;
        let classifier = base.classifier(&ClassifierOptions {
            labels: file.labels.len(),
            base_rows: base_head::rows((&base.config, &base.weights), &file.labels, None),
            problem: Problem::from(file.model_config()?.problem_type),
            storage: base.storage,
            lora,
            weights: BceWeights::default(),
            recompute: false,
            device: base.device_for_predicting(),
        })?;
        adapter::load(&trained.adapter, &classifier)?;
        let encoder = base.encoder_of(&trained.adapter, is_of_a_run, file.max_length)?;
        let (base_files, vocab_size) = (base.files.paths(), base.config.vocab_size);
        Ok(Self { trained, classifier, encoder, base_files, vocab_size, file })
    }

    /// The files that it was read from: no output may replace them.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        [self.trained.files(), self.base_files.clone()].concat()
    }

    /// Tokenizes rows of `source`, which follow `before` others.
    ///
    /// # Errors
    /// If the tokenizer fails or gives a token that the model does not have, or the user wants to stop.
    pub fn encode(&self, examples: &[Example], source: &str, before: usize) -> Result<Vec<Sample>> {
        dataset::encode(&self.encoder, self.vocab_size, &Rows { examples, source, before })
    }

    /// Probabilities and predicted labels of samples, in their order. `on_batch` hears how many a batch had.
    ///
    /// # Errors
    /// If the model fails, or with [`crate::evaluation::NotFinite`] for a sample whose output is not finite.
    pub fn evaluate(
        &self,
        samples: &[Sample],
        decision: &Decision,
        batch_size: usize,
        on_batch: impl FnMut(usize),
    ) -> Result<Evaluation> {
        evaluate(&self.classifier, samples, decision, batch_size, on_batch)
    }

    /// What the classifier's own thresholds make of probabilities.
    #[must_use]
    pub fn decision(&self) -> Decision {
        Decision::above(&self.file.thresholds)
    }
}

/// Checks that a base is the one that a classifier was trained on.
///
/// # Errors
/// Says in what it differs.
pub fn ensure_base(trained: &Trained, file: &ClassifierFile, base: &BaseModel, console: Console) -> Result<()> {
    // A tokenizer of its own is used in place of the base's.
    let needs_tokenizer = !trained.adapter.join("tokenizer.json").is_file();
    base.ensure_is(&file.base, needs_tokenizer, console).with_context(|| format!("{}", trained.adapter.display()))
}
