//! `classifier.json`: what a trained classifier is, beside its weights.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::atomic_file;
use crate::config::data::{LongText, Quoting, WindowPooling};
use crate::config::model::{Form, ModelConfig};
use crate::data::long_text::Limit;
use crate::embedded;
use crate::model::fingerprint::Fingerprint;

/// The file's name.
pub const NAME: &str = "classifier.json";
/// Of a model that versions before it would compute in its family's way, or of long texts that they would cut.
const FORMAT_VERSION: u32 = 3;
/// The oldest that is read. Version 1 has a sampled fingerprint of the base, and no commit.
const OLDEST_VERSION: u32 = 1;

/// All that `predict` needs beside adapter, tokenizer and base.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassifierFile {
    /// Rises when old readers would misread the file.
    pub format_version: u32,
    /// In the order of the logits.
    pub labels: Vec<String>,
    /// One a label: it is predicted if its probability is above.
    pub thresholds: Vec<f32>,
    /// `multi_label_classification` or `single_label_classification`.
    pub problem_type: String,
    /// Columns that make the text, if not one alone.
    pub text_fields: Option<Vec<String>>,
    /// The column with the text.
    pub target_text_column: String,
    /// The column with the id.
    pub id_column: Option<String>,
    /// The column that lists a row's labels, if they have no columns of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels_column: Option<String>,
    /// Between labels of `labels_column`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_separator: Option<String>,
    /// Logits are divided by this before they become probabilities.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub temperature: f32,
    /// How CSV files of its rows are quoted. Files from before the key leave it to the run's configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quoting: Option<Quoting>,
    /// Tokens that the model reads at once.
    pub max_length: usize,
    /// What is read of longer texts; none: their beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub long_text: Option<LongText>,
    /// How the logits of a text's windows make one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_pooling: Option<WindowPooling>,
    /// The most windows of a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_windows: Option<usize>,
    pub base: Base,
    /// True if every weight was trained.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_whole_model: bool,
    /// True if the base is made from `init_seed`.
    pub random_init: bool,
    /// Seed of a random base.
    pub init_seed: u32,
    /// Storage of frozen weights in training.
    pub torch_dtype: String,
    /// In what products with frozen weights were computed on the CPU; `auto` if training was on a GPU. Files
    /// from before the key stand for float32.
    #[serde(default = "float32")]
    pub compute: String,
    /// True if linear layers were stored in 4 bits.
    pub use_4bit: bool,
    /// How it is computed, where that is not as its family's models are.
    #[serde(flatten)]
    pub form: Form,
}

/// The frozen model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Base {
    /// A directory or a Hub name.
    pub name: String,
    /// On the Hub, if one was asked for.
    pub revision: Option<String>,
    /// The Hub's commit whose files were used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Tells whether the base is still the same.
    pub fingerprint: RecordedFingerprint,
}

/// A fingerprint in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RecordedFingerprint {
    /// Over all of the base.
    Whole(Fingerprint),
    /// Fingerprint of format version 1: over the configuration's bytes and the beginnings of the tensors.
    Sampled(String),
}

impl Base {
    /// The name that stands for exactly the files that were used: of the Hub, with their commit.
    #[must_use]
    pub fn exact_name(&self) -> String {
        match self.commit.as_ref().or(self.revision.as_ref()) {
            Some(revision) => format!("{}@{revision}", self.name),
            None => self.name.clone(),
        }
    }
}

fn one() -> f32 {
    1.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(temperature: &f32) -> bool {
    *temperature == 1.0
}

fn float32() -> String {
    "float32".to_owned()
}

impl ClassifierFile {
    pub const VERSION: u32 = FORMAT_VERSION;
    /// Of a classifier that cuts long texts: older versions of llmcls read it rightly.
    pub const OF_CUT_TEXTS: u32 = 2;

    /// What it reads of a text.
    #[must_use]
    pub fn limit(&self) -> Limit {
        Limit {
            tokens: self.max_length,
            long_text: self.long_text.unwrap_or(LongText::Cut),
            max_windows: self.max_windows.unwrap_or(1),
        }
    }

    /// How the logits of a text's windows make one.
    #[must_use]
    pub fn window_pooling(&self) -> WindowPooling {
        self.window_pooling.unwrap_or(WindowPooling::Mean)
    }

    /// The base's name for titles: random weights are marked as such.
    #[must_use]
    pub fn base_title(&self) -> String {
        if self.random_init { format!("{} (random weights)", self.base.name) } else { self.base.name.clone() }
    }

    /// Records how the model is computed.
    pub fn set_form(&mut self, form: Form) {
        self.form = form;
        if !form.is_usual() {
            self.format_version = FORMAT_VERSION;
        }
    }

    /// The `model` section that the file stands for.
    pub fn model_config(&self) -> Result<ModelConfig> {
        ModelConfig::from_pairs(&[
            ("model_name", self.base.exact_name().into()),
            ("problem_type", self.problem_type.clone().into()),
            ("torch_dtype", self.torch_dtype.clone().into()),
            ("compute", self.compute.clone().into()),
            ("use_4bit", self.use_4bit.into()),
            ("random_init", self.random_init.into()),
            ("init_seed", self.init_seed.into()),
            ("pooling", json!(self.form.pooling)),
            ("attention", json!(self.form.attention)),
            ("bidirectional_from_layer", json!(self.form.bidirectional_from_layer)),
        ])
    }

    /// Writes the file into a directory, replacing the old one whole.
    pub fn save(&self, directory: &Path) -> Result<()> {
        atomic_file::write_bytes(&directory.join(NAME), serde_json::to_string_pretty(self)?.as_bytes())
    }

    /// Returns true if a directory has the file.
    #[must_use]
    pub fn is_in(directory: &Path) -> bool {
        embedded::is_file(&directory.join(NAME))
    }

    /// Reads the file of a directory; `None` if there is none.
    pub fn load(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(NAME);
        if !embedded::is_file(&path) {
            return Ok(None);
        }
        let read = || -> Result<Self> {
            let file: Self = serde_json::from_str(&embedded::read_to_string(&path)?)?;
            ensure!(
                (OLDEST_VERSION..=FORMAT_VERSION).contains(&file.format_version),
                "format_version is {}, and this llmcls reads {OLDEST_VERSION} to {FORMAT_VERSION}; use the version that \
                 wrote it",
                file.format_version
            );
            ensure!(!file.labels.is_empty(), "there are no labels");
            ensure!(
                file.temperature > 0.0 && file.temperature.is_finite(),
                "temperature is {}, expected a number above 0",
                file.temperature
            );
            ensure!(
                file.thresholds.len() == file.labels.len(),
                "{} thresholds for {} labels",
                file.thresholds.len(),
                file.labels.len()
            );
            Ok(file)
        };
        read().map(Some).with_context(|| format!("{}: not a usable classifier description", path.display()))
    }
}
