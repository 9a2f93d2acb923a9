//! The weights of a classifier whose every weight was trained, as transformers' `save_pretrained` writes them.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::model_weights;
use crate::kernels::buffer::elements;
use crate::model::classifier::Classifier;
use crate::model::merged::NamedTensor;
use crate::model::weights::{Checkpoint, Precision};

/// All tensors, by their names in transformers.
#[must_use]
pub fn tensors(classifier: &Classifier) -> Vec<NamedTensor<'_>> {
    let named = |param: &'_ std::rc::Rc<crate::ops::tape::Param>| (param.name().to_owned(), param.value().clone());
    let all = classifier.params().iter().map(named);
    all.map(|(name, value)| NamedTensor::new(name, value.dims().to_vec(), move || Ok(elements(&value)?.to_vec())))
        .collect()
}

/// Writes `model.safetensors` into a directory.
///
/// # Errors
/// If it cannot be written.
pub fn save(directory: &Path, classifier: &Classifier) -> Result<()> {
    model_weights::write(directory, &tensors(classifier), Precision::Float32, u64::MAX)
}

/// Sets a classifier's parameters, which are all weights, from a directory.
///
/// # Errors
/// If a tensor is missing, left over, of another shape or not finite.
pub fn load(directory: &Path, classifier: &Classifier) -> Result<()> {
    let path = directory.join(model_weights::WEIGHTS);
    let checkpoint = Checkpoint::open(std::slice::from_ref(&path))?;
    let params = classifier.params();
    let values: Vec<Vec<f32>> =
        params.iter().map(|param| checkpoint.floats(param.name(), param.value().dims())).collect::<Result<_>>()?;
    let extra = checkpoint.names().find(|name| params.iter().all(|param| param.name() != *name));
    ensure!(
        extra.is_none(),
        "{}: tensor `{}` does not belong to this model",
        path.display(),
        extra.unwrap_or_default()
    );
    classifier.set(&values).with_context(|| format!("{}: does not fit the model", path.display()))
}
