//! Finds a classifier and tells which base it needs, before the base is loaded.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::settings::Source;
use crate::config::model::ModelConfig;
use crate::console::Console;
use crate::experiment::base_model::BaseModel;
use crate::experiment::dataset;
use crate::experiment::prepared::describe;
use crate::kernels::device::Device;
use crate::run::classifier_file::{ClassifierFile, RecordedFingerprint};
use crate::run::directory::{Trained, find_verified};

/// A classifier on disk, and the base that it needs.
pub(super) struct Located {
    pub(super) trained: Trained,
    pub(super) file: ClassifierFile,
    pub(super) model: ModelConfig,
    pub(super) is_of_a_run: bool,
}

impl Located {
    /// Finds the classifier of a run, a seed's directory or a directory that peft saved.
    ///
    /// # Errors
    /// If there is none, it is damaged, or its base and labels are not named.
    pub(super) fn find(run: &Path, source: &Source, console: Console) -> Result<Self> {
        let trained = find_verified(run)?;
        let file = ClassifierFile::load(&trained.adapter)?;
        let is_of_a_run = file.is_some();
        let mut model = match (&file, &source.config) {
            (Some(file), _) => file.model_config()?,
            (None, Some(config)) => config.model.clone(),
            (None, None) => bail!(
                "{}: has no classifier.json, as a directory saved by peft; name base and labels with --config",
                trained.adapter.display()
            ),
        };
        model.hf_token = source.config.as_ref().and_then(|config| config.model.hf_token.clone());
        if let Some(base) = &source.base {
            model.model_name.clone_from(base);
        }
        let file = match (file, &source.config) {
            (Some(file), _) => file,
            (None, Some(config)) => {
                let base = BaseModel::open(&model, &Device::cpu(), console)
                    .with_context(|| format!("the base of {} cannot be used", trained.adapter.display()))?;
                let max_length = dataset::max_length(&config.data, &base, console);
                describe(config, dataset::columns(&config.data, console)?, max_length, base.record(console)?)
            }
            (None, None) => unreachable!("refused above"),
        };
        Ok(Self { trained, file, model, is_of_a_run })
    }

    /// Tells bases apart: classifiers with the same key share one in memory.
    pub(super) fn base_key(&self) -> String {
        let fingerprint = match &self.file.base.fingerprint {
            RecordedFingerprint::Whole(whole) => json!([whole.configuration, whole.weights]),
            RecordedFingerprint::Sampled(sample) => json!([sample, self.model.model_name]),
        };
        let model = &self.model;
        let held = json!([model.torch_dtype, model.compute, model.use_4bit, model.random_init, model.init_seed]);
        json!([fingerprint, held]).to_string()
    }
}
