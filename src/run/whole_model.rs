//! A classifier whose every weight was trained, as transformers' `save_pretrained` writes one: `config.json` and
//! `model.safetensors`. Python opens it with `AutoModelForSequenceClassification.from_pretrained`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};

use crate::atomic_file;
use crate::kernels::buffer::elements;
use crate::model::classifier::{Classifier, Problem};
use crate::model::families;
use crate::model::weights::Checkpoint;

/// The file with the tensors.
pub const WEIGHTS: &str = "model.safetensors";
/// The file with the configuration.
pub const CONFIG: &str = "config.json";

/// The `config.json` of a base, to be completed by labels.
pub struct BaseConfig {
    keys: Map<String, Value>,
    labels: Vec<String>,
    problem: Problem,
}

impl BaseConfig {
    /// Reads the configuration of a base that is to become a classifier for these labels.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(path: &Path, labels: &[String], problem: Problem) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
        let keys = serde_json::from_str(&text).with_context(|| format!("{}: not a JSON object", path.display()))?;
        Ok(Self { keys, labels: labels.to_vec(), problem })
    }

    /// The classifier's own configuration.
    fn of_classifier(&self) -> Result<Value> {
        let mut keys = self.keys.clone();
        // Where the base lay, and how its numbers were held, is no longer true.
        for key in ["_name_or_path", "dtype", "num_labels", "quantization_config"] {
            keys.remove(key);
        }
        let model_type = keys.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
        let class = families::classifier_class(&model_type)
            .with_context(|| format!("model_type `{model_type}` has no classifier in transformers"))?;
        let ids: Map<String, Value> =
            self.labels.iter().enumerate().map(|(id, label)| (id.to_string(), json!(label))).collect();
        let labels: Map<String, Value> =
            self.labels.iter().enumerate().map(|(id, label)| (label.clone(), json!(id))).collect();
        keys.insert("architectures".to_owned(), json!([class]));
        keys.insert("id2label".to_owned(), Value::Object(ids));
        keys.insert("label2id".to_owned(), Value::Object(labels));
        let problem = match self.problem {
            Problem::MultiLabel => "multi_label_classification",
            Problem::SingleLabel => "single_label_classification",
        };
        keys.insert("problem_type".to_owned(), json!(problem));
        keys.insert("torch_dtype".to_owned(), json!("float32"));
        Ok(Value::Object(keys))
    }
}

/// Whether this is a directory that holds a whole classifier of llmcls.
#[must_use]
pub fn is_whole_model(directory: &Path) -> bool {
    [WEIGHTS, CONFIG, super::classifier_file::NAME].iter().all(|name| directory.join(name).is_file())
}

/// Writes weights and configuration into a directory.
///
/// # Errors
/// If a file cannot be written.
pub fn save(directory: &Path, classifier: &Classifier, base: &BaseConfig) -> Result<()> {
    let mut data = BTreeMap::new();
    for param in classifier.params() {
        data.insert(param.name(), (param.value().dims().to_vec(), elements(param.value())?));
    }
    let views = data
        .iter()
        .map(|(name, (shape, numbers))| {
            Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice::<f32, u8>(numbers))?))
        })
        .collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(views, Some(metadata))?;
    atomic_file::write_bytes(&directory.join(WEIGHTS), &bytes)?;
    let config = serde_json::to_string_pretty(&base.of_classifier()?)?;
    atomic_file::write_bytes(&directory.join(CONFIG), config.as_bytes())
}

/// Sets a classifier's parameters from a directory: all of them, or its head's if the rest is frozen.
///
/// # Errors
/// If a tensor is missing, of another shape or not finite, or, where all are trained, left over.
pub fn load(directory: &Path, classifier: &Classifier) -> Result<()> {
    let path = directory.join(WEIGHTS);
    let checkpoint = Checkpoint::open(std::slice::from_ref(&path))?;
    let params = classifier.params();
    let values: Vec<Vec<f32>> =
        params.iter().map(|param| checkpoint.floats(param.name(), param.value().dims())).collect::<Result<_>>()?;
    if classifier.base().parameters == 0 {
        let extra = checkpoint.names().find(|name| params.iter().all(|param| param.name() != *name));
        ensure!(
            extra.is_none(),
            "{}: tensor `{}` does not belong to this model",
            path.display(),
            extra.unwrap_or_default()
        );
    }
    classifier.set(&values).with_context(|| format!("{}: does not fit the model", path.display()))
}
