//! A trained classifier, ready to predict: one type behind `predict`, `eval` and whatever serves predictions.

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
use crate::model::lora::Trains;
use crate::ops::loss::BceWeights;
use crate::run::adapter;
use crate::run::classifier_file::ClassifierFile;
use crate::run::directory::Trained;
use crate::run::whole_model;

/// A trained classifier, ready to predict.
pub struct Predictor {
    /// Where it lies.
    pub trained: Trained,
    /// Model and parameters.
    pub classifier: Classifier,
    /// Its tokenizer.
    pub encoder: TextEncoder,
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
        let is_whole = whole_model::is_whole_model(&trained.adapter);
        let trains = match is_whole {
            true => Trains::Head,
            false => Trains::Adapters(adapter::read_config(&trained.adapter)?.0),
        };
        let classifier = base.classifier(&ClassifierOptions {
            labels: file.labels.len(),
            base_rows: base_head::rows((&base.config, &base.weights), &file.labels, None),
            problem: Problem::from(file.model_config()?.problem_type),
            storage: base.storage,
            trains,
            weights: BceWeights::default(),
            recompute: false,
            device: base.device_for_predicting(),
        })?;
        match is_whole {
            true => whole_model::load(&trained.adapter, &classifier)?,
            false => adapter::load(&trained.adapter, &classifier)?,
        }
        classifier.set_temperature(file.temperature);
        let encoder = base.encoder_of(&trained.adapter, is_of_a_run, file.max_length)?;
        Ok(Self { trained, classifier, encoder, vocab_size: base.config.vocab_size, file })
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
    // A whole model is its own base, and its manifest was checked.
    if whole_model::is_whole_model(&trained.adapter) {
        return Ok(());
    }
    // A tokenizer of its own is used in place of the base's.
    let needs_tokenizer = !trained.adapter.join("tokenizer.json").is_file();
    base.ensure_is(&file.base, needs_tokenizer, console).with_context(|| format!("{}", trained.adapter.display()))
}
