//! Finds a classifier and tells which base it needs, before the base is loaded.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::settings::Source;
use crate::atomic_file::sha256;
use crate::config::model::ModelConfig;
use crate::console::Console;
use crate::experiment::base_model::BaseModel;
use crate::experiment::dataset;
use crate::experiment::prepared::describe;
use crate::kernels::device::Device;
use crate::model::quantization::Maxima;
use crate::predictor::{self, Precision};
use crate::run::classifier_file::{ClassifierFile, RecordedFingerprint};
use crate::run::trained::{Trained, find_verified};
use crate::run::{adapter, int8_file, manifest};

/// A classifier on disk, and the base that it needs.
pub(super) struct Located {
    pub(super) trained: Trained,
    pub(super) file: ClassifierFile,
    pub(super) model: ModelConfig,
    pub(super) is_of_a_run: bool,
    precision: Option<Precision>,
    /// If it computes in int8.
    pub(super) maxima: Option<Maxima>,
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
        predictor::place_base(&trained, &mut model, source.base.as_deref())?;
        if let Some(precision) = source.precision {
            // Where it is a GPU that computes, the thread of the base refuses this.
            precision.overrule(&mut model, &Device::cpu())?;
        }
        let maxima = match source.precision {
            Some(Precision::Int8) => Some(predictor::int8_maxima(&trained, file.as_ref(), source.accepts_loss)?),
            _ => None,
        };
        let file = match (file, &source.config) {
            (Some(file), _) => file,
            (None, Some(config)) => {
                let base = BaseModel::open(&model, &Device::cpu(), console)
                    .with_context(|| format!("the base of {} cannot be used", trained.adapter.display()))?;
                let max_length = dataset::max_length(&config.data, &base, console);
                let columns = dataset::columns(&config.data, console)?;
                let mut file = describe(config, columns, max_length, base.record(console)?);
                file.set_form(base.form);
                file
            }
            (None, None) => unreachable!("refused above"),
        };
        Ok(Self { trained, file, model, is_of_a_run, precision: source.precision, maxima })
    }

    /// Tells bases apart: classifiers with the same key share one in memory.
    pub(super) fn base_key(&self) -> String {
        let fingerprint = match &self.file.base.fingerprint {
            // Its weights are its own, whatever it was trained on. Another model may lie there by the time it is loaded again.
            _ if self.trained.is_complete() => {
                let files = sha256(&self.trained.adapter.join(manifest::NAME)).unwrap_or_default();
                json!([self.model.model_name, files])
            }
            RecordedFingerprint::Whole(whole) => json!([whole.configuration, whole.weights]),
            RecordedFingerprint::Sampled(sample) => json!([sample, self.model.model_name]),
        };
        let model = &self.model;
        let held = json!([
            model.torch_dtype,
            model.compute,
            model.use_4bit,
            model.random_init,
            model.init_seed,
            self.file.form
        ]);
        // In int8 its adapters are merged into a base of its own.
        let own = self.maxima.as_ref().map(|_| {
            let digest = |name| sha256(&self.trained.adapter.join(name)).unwrap_or_default();
            json!([self.trained.adapter, digest(manifest::NAME), digest(adapter::WEIGHTS), digest(int8_file::NAME)])
        });
        let precision = self.precision.map(|precision| format!("{precision:?}"));
        json!([fingerprint, held, precision, own]).to_string()
    }

    /// What products with the base's weights are computed in.
    pub(super) fn compute(&self) -> String {
        match self.maxima {
            Some(_) => Precision::Int8.name().to_owned(),
            None => json!(self.model.compute).as_str().unwrap_or_default().to_owned(),
        }
    }
}
