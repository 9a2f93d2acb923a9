//! The trained weights of a directory: an adapter in peft's format, or every weight.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::adapter::{self, BaseName};
use super::{manifest, model_weights, whole_model};
use crate::kernels::buffer::elements;
use crate::model::classifier::Classifier;
use crate::model::lora::LoraOptions;

/// Writes what was trained into a directory.
pub fn save(directory: &Path, classifier: &Classifier, lora: &LoraOptions, base: BaseName<'_>) -> Result<()> {
    match lora.trains_base {
        true => whole_model::save(directory, classifier),
        false => adapter::save(directory, classifier, lora, base),
    }
}

/// Sets a classifier's parameters from a directory.
///
/// # Errors
/// If a tensor is missing, left over, of another shape or not finite.
pub fn load(directory: &Path, classifier: &Classifier) -> Result<()> {
    match directory.join(model_weights::WEIGHTS).is_file() {
        true => whole_model::load(directory, classifier),
        false => adapter::load(directory, classifier),
    }
}

/// Sets a classifier's parameters to the mean of those in several directories.
///
/// # Errors
/// As [`load`], of any of them.
pub fn load_mean(directories: &[PathBuf], classifier: &Classifier) -> Result<()> {
    let params = classifier.params();
    let mut sums: Vec<Vec<f64>> = params.iter().map(|param| vec![0.0; param.value().elem_count()]).collect();
    for directory in directories {
        manifest::verify(directory)
            .and_then(|()| load(directory, classifier))
            .context("train.average_last needs the checkpoint of each of the last epochs")?;
        for (sum, param) in sums.iter_mut().zip(params) {
            sum.iter_mut().zip(elements(param.value())?.iter()).for_each(|(sum, x)| *sum += f64::from(*x));
        }
    }
    let count = directories.len() as f64;
    let means: Vec<Vec<f32>> =
        sums.into_iter().map(|sum| sum.into_iter().map(|sum| (sum / count) as f32).collect()).collect();
    classifier.set(&means)
}
