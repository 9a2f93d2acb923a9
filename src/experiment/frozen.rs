//! Computes the frozen layers once: whether that is possible, what it takes, and doing it.

use anyhow::{Result, bail};
use sha2::{Digest, Sha256};

use super::cache_plan::CachePlan;
use super::prepared::Experiment;
use crate::atomic_file::hex;
use crate::cluster::Group;
use crate::console::bytes;
use crate::evaluation::Sample;
use crate::run::classifier_file::RecordedFingerprint;
use crate::training::activation_cache::directory::{self, About};
use crate::training::activation_cache::{ActivationCache, bytes_of};

/// Rises when kernels come to give other numbers.
const NUMBERS: u32 = 1;
/// Without `train.cache_limit`.
const USUAL_LIMIT: u64 = 10_000_000_000;

impl Experiment<'_> {
    /// Whether the frozen layers are computed once, and in what space. It says why not where they could be.
    ///
    /// # Errors
    /// If `train.cache_limit` asks for a cache, and the base drops elements below the first adapter.
    pub fn cache_plan(&self) -> Result<Option<CachePlan>> {
        let (classifier, given) = (&self.classifier, self.config.train.cache_limit);
        let frozen_layers = classifier.frozen_layers();
        let limit = given.map_or(USUAL_LIMIT, |given| given.0);
        if frozen_layers == 0 || limit == 0 {
            return Ok(None);
        }
        if classifier.drops_in_frozen() {
            let message = format!(
                "the base drops elements in the {frozen_layers} layers below the first adapter, so what they give cannot be \
                 kept: model.base_dropout=0 switches that off, train.cache_limit=0 computes them in every pass"
            );
            if given.is_some() {
                bail!("train.cache_limit: {message}");
            }
            self.console.warn(message);
            return Ok(None);
        }
        if self.base.device.is_gpu() {
            self.console.say(format!(
                "the {frozen_layers} frozen layers are computed in every pass: their output is kept on the CPU alone"
            ));
            return Ok(None);
        }
        let mut splits = vec![&*self.train.samples, &*self.validation.samples];
        splits.extend(self.test.as_ref().map(|test| &*test.samples));
        let bytes_needed = splits.iter().map(|samples| bytes_of(classifier, samples)).sum();
        if bytes_needed > limit {
            self.console.warn(format!(
                "the output of the {frozen_layers} frozen layers takes {}, and train.cache_limit is {}: they are computed \
                 in every pass",
                bytes(bytes_needed),
                bytes(limit)
            ));
            return Ok(None);
        }
        let root = directory::root();
        let directory = root.map(|root| root.join(&hex(&Sha256::digest(self.cache_key()))[..16]));
        Ok(Some(CachePlan { frozen_layers, bytes: bytes_needed, limit, directory }))
    }

    /// Gives every row what the frozen layers make of it, where a plan says so.
    ///
    /// # Errors
    /// As [`Experiment::cache_plan`]; or if the model fails, or the user wants to stop.
    pub fn fill_cache(&mut self, group: &Group) -> Result<()> {
        let Some(plan) = self.cache_plan()? else { return Ok(()) };
        let key = self.cache_key();
        if let Some(directory) = &plan.directory {
            directory::describe(directory, &self.about());
        }
        self.console.say(format!(
            "the output of the {} frozen layers is computed once: {} in {}",
            plan.frozen_layers,
            bytes(plan.bytes),
            plan.directory.as_ref().map_or("memory".to_owned(), |directory| directory.display().to_string())
        ));
        let cache = ActivationCache {
            classifier: &self.classifier,
            key: &key,
            directory: plan.directory,
            limit: plan.limit,
            memory: self.base.device.memory(),
            console: self.console,
        };
        let mut splits: Vec<&mut [Sample]> = vec![&mut self.train.samples, &mut self.validation.samples];
        splits.extend(self.test.as_mut().map(|test| &mut *test.samples));
        cache.fill(&mut splits, group)
    }

    /// All that decides what the frozen layers make of token ids.
    fn cache_key(&self) -> String {
        let weights = match &self.file.base.fingerprint {
            RecordedFingerprint::Whole(fingerprint) => &fingerprint.weights,
            RecordedFingerprint::Sampled(sample) => sample,
        };
        format!(
            "{NUMBERS} {} {:?}\n{:?}\n{weights}\n{:?} {:?}\n{} of {}",
            env!("CARGO_PKG_VERSION"),
            option_env!("LLMCLS_COMMIT"),
            self.base.config,
            self.base.storage,
            self.base.device.compute(),
            self.classifier.frozen_layers(),
            self.classifier.layer_count(),
        )
    }

    fn about(&self) -> About {
        About {
            base: self.file.base_title(),
            frozen_layers: self.classifier.frozen_layers(),
            layers: self.classifier.layer_count(),
            compute: self.base.device.compute().name().to_owned(),
        }
    }
}
