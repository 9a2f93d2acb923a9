//! Adapters as Python's peft reads and writes them.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};

use super::adapter_config::AdapterConfig;
pub use super::adapter_config::CONFIG;
use crate::atomic_file;
use crate::embedded;
use crate::kernels::buffer::elements;
use crate::model::classifier::Classifier;
use crate::model::lora::{LoraOptions, ModulePattern, Targets};
use crate::model::weights::Checkpoint;
use crate::ops::tape::Param;

/// The file with the tensors.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// Prefix of a parameter's name in peft's files.
const PREFIX: &str = "base_model.model.";

/// A base as an adapter's configuration names it.
#[derive(Clone, Copy, Debug)]
pub struct BaseName<'a> {
    /// A directory or a name on the Hub.
    pub name: &'a str,
    /// On the Hub, if one was asked for: without it, Python would load `main` under the adapter.
    pub revision: Option<&'a str>,
}

/// Writes adapters and head into a directory.
pub fn save(directory: &Path, classifier: &Classifier, lora: &LoraOptions, base: BaseName<'_>) -> Result<()> {
    let mut data = BTreeMap::new();
    for param in classifier.params() {
        let bytes = bytemuck::cast_slice::<f32, u8>(&elements(param.value())?).to_vec();
        data.insert(format!("{PREFIX}{}", param.name()), (param.value().dims().to_vec(), bytes));
    }
    let views = data
        .iter()
        .map(|(name, (shape, bytes))| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(views, Some(metadata))?;
    atomic_file::write_bytes(&directory.join(WEIGHTS), &bytes)?;
    let config = serde_json::to_string_pretty(&config(lora, base, classifier))?;
    atomic_file::write_bytes(&directory.join(CONFIG), config.as_bytes())
}

/// The fields that peft writes, in its order. A choice of layers and exclusions is written as the modules it leaves.
fn config(lora: &LoraOptions, base: BaseName<'_>, classifier: &Classifier) -> Value {
    let adapted = || classifier.modules().iter().filter(|module| lora.shape_of(module).is_some()).collect::<Vec<_>>();
    let targets = match &lora.targets {
        _ if lora.layers.is_some() || lora.exclude.is_some() => json!(adapted()),
        Targets::Nothing => json!([]),
        Targets::AllLinear => json!("all-linear"),
        Targets::Names(names) => json!(names),
        Targets::Pattern(full) => json!(full.pattern),
    };
    json!({
        "alpha_pattern": mapping(&lora.alpha_pattern),
        "auto_mapping": null,
        "base_model_name_or_path": base.name,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layer_replication": null,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "megatron_config": null,
        "megatron_core": "megatron.core",
        "modules_to_save": classifier.modules_to_save(),
        "peft_type": "LORA",
        "r": lora.rank,
        "rank_pattern": mapping(&lora.rank_pattern),
        "revision": base.revision,
        "target_modules": targets,
        "task_type": "SEQ_CLS",
        "use_dora": false,
        "use_rslora": lora.use_rslora,
    })
}

fn mapping<T: Copy + Into<Value>>(patterns: &[ModulePattern<T>]) -> Map<String, Value> {
    patterns.iter().map(|pattern| (pattern.pattern.clone(), pattern.value.into())).collect()
}

/// Returns true if peft or llmcls saved an adapter in this directory.
#[must_use]
pub fn is_adapter(directory: &Path) -> bool {
    embedded::is_file(&directory.join(CONFIG))
}

/// Reads `adapter_config.json`: the adapters' shape, and the base's name if there is one.
///
/// # Errors
/// If the file cannot be read, or asks for a kind of adapter that llmcls does not compute.
pub fn read_config(directory: &Path) -> Result<(LoraOptions, Option<String>)> {
    let path = directory.join(CONFIG);
    let text = embedded::read_to_string(&path).with_context(|| format!("{}: cannot read", path.display()))?;
    let parse = || AdapterConfig::parse(&text)?.resolve();
    parse().with_context(|| format!("{}: not a usable adapter configuration", path.display()))
}

/// Sets a classifier's parameters from a directory. Modules of the head that the adapter leaves out are the base's.
///
/// # Errors
/// If a tensor is missing, left over, of another shape or not finite.
pub fn load(directory: &Path, classifier: &Classifier) -> Result<()> {
    Stored::open(directory)?.set(classifier, None)
}

/// The tensors of an adapter, by the names that a classifier's parameters have.
pub struct Stored {
    checkpoint: Checkpoint,
    /// The name in the file of each tensor.
    names: BTreeMap<String, String>,
    path: PathBuf,
}

impl Stored {
    /// Opens the tensors of a directory.
    ///
    /// # Errors
    /// If there are none, or two have the same name.
    pub fn open(directory: &Path) -> Result<Self> {
        let path = directory.join(WEIGHTS);
        if !embedded::is_file(&path) && directory.join("adapter_model.bin").is_file() {
            bail!(
                "{}: only a pickled adapter_model.bin is there, which is not read because loading one can run any code; \
                 save it again from peft with safe_serialization=True",
                directory.display()
            );
        }
        let checkpoint = Checkpoint::open(std::slice::from_ref(&path))?;
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        for name in checkpoint.names() {
            let Some(usual) = usual_name(name) else { continue };
            if let Some(other) = names.insert(usual, name.to_owned()) {
                bail!("{}: tensors `{other}` and `{name}` are the same parameter", path.display());
            }
        }
        Ok(Self { checkpoint, names, path })
    }

    /// Rows of the classifier's last layer, one a label, if the adapter has that layer.
    #[must_use]
    pub fn labels(&self, classifier: &Classifier) -> Option<usize> {
        let name = self.names.get(&format!("{}.weight", classifier.classifier_name()))?;
        self.checkpoint.shape(name)?.first().copied()
    }

    /// Sets a classifier's parameters. `rows` gives for each label the row of the stored head, or none to keep the
    /// label's present numbers; without it the head must have a row for each label.
    ///
    /// # Errors
    /// If a tensor is missing, left over, of another shape or not finite.
    pub fn set(&self, classifier: &Classifier, rows: Option<&[Option<usize>]>) -> Result<()> {
        self.read(classifier, rows)
            .and_then(|values| classifier.set(&values))
            .with_context(|| format!("{}: does not fit the model", self.path.display()))
    }

    fn read(&self, classifier: &Classifier, rows: Option<&[Option<usize>]>) -> Result<Vec<Vec<f32>>> {
        let params = classifier.params();
        let mut unused: BTreeMap<&str, &str> =
            self.names.iter().map(|(usual, name)| (usual.as_str(), name.as_str())).collect();
        let mut values = Vec::with_capacity(params.len());
        for (index, param) in params.iter().enumerate() {
            let is_of_label = is_of(param, classifier.classifier_name());
            values.push(match (unused.remove(param.name()), classifier.base_values(index)) {
                (Some(name), _) => match rows.filter(|_| is_of_label) {
                    Some(rows) => self.rows(name, param, rows)?,
                    None => self.checkpoint.floats(name, param.value().dims())?,
                },
                (None, Some(base)) => base.to_vec(),
                (None, None) => bail!(missing(param, &self.names)),
            });
        }
        if let Some(extra) = unused.values().next() {
            bail!(
                "tensor `{extra}` does not belong to this model: another base, other target modules, or a module of the base \
                 in `modules_to_save`, which llmcls keeps frozen; supported there are classifier, score and the modules \
                 of the head ({})",
                classifier.modules_to_save().join(", ")
            );
        }
        Ok(values)
    }

    /// The rows of a stored weight or bias that belong to the labels.
    fn rows(&self, name: &str, param: &Param, rows: &[Option<usize>]) -> Result<Vec<f32>> {
        let mut values = elements(param.value())?.to_vec();
        let mut shape = param.value().dims().to_vec();
        shape[0] = self.checkpoint.shape(name).and_then(|shape| shape.first().copied()).unwrap_or_default();
        let stored = self.checkpoint.floats(name, &shape)?;
        let width = shape[1..].iter().product();
        for (values, row) in values.chunks_exact_mut(width).zip(rows) {
            let Some(row) = *row else { continue };
            let of_row = stored.get(row * width..(row + 1) * width).with_context(|| format!("no row {row}"))?;
            values.copy_from_slice(of_row);
        }
        Ok(values)
    }
}

fn is_of(param: &Param, module: &str) -> bool {
    param.name().strip_prefix(module).is_some_and(|rest| rest.starts_with('.'))
}

/// The message about a parameter that the adapter has no tensor for.
fn missing(param: &Param, names: &BTreeMap<String, String>) -> String {
    let name = param.name();
    if name.contains(".lora_") {
        return format!(
            "no tensor `{PREFIX}{name}` among {}: another base, other target modules, or a file that is cut short",
            names.len()
        );
    }
    // The head's module: behind the backbone's name, which BERT's pooler has before it.
    let mut segments = name.split('.').filter(|segment| *segment != "bert");
    let module = segments.next().unwrap_or(name);
    format!(
        "it has no classification head: no tensor `{name}`, and the base brings none for these labels; train it with \
         `modules_to_save` naming `{module}` (peft's task_type SEQ_CLS does so for `score` and `classifier`) and save it \
         again"
    )
}

/// The name of a parameter whatever version or tool saved it; `None` for a copy of the base's own numbers.
fn usual_name(name: &str) -> Option<String> {
    const WRAPPERS: [&str; 5] = [PREFIX, "base_model.", "module.", "_orig_mod.", "_fsdp_wrapped_module."];
    let mut name = name;
    while let Some(inner) = WRAPPERS.iter().find_map(|wrapper| name.strip_prefix(wrapper)) {
        name = inner;
    }
    let mut segments: Vec<&str> = name.split('.').collect();
    if segments.contains(&"original_module") {
        return None;
    }
    if let Some(at) = segments.iter().position(|segment| *segment == "modules_to_save") {
        segments.remove(at);
        // Then the adapter's name, or at once the parameter's.
        if segments.get(at).is_some_and(|segment| *segment == "default") {
            segments.remove(at);
        }
    }
    // `lora_A.weight`, or with the adapter's name between.
    if let Some(at) = segments.iter().position(|segment| segment.starts_with("lora_"))
        && segments.len() == at + 3
    {
        segments.remove(at + 1);
    }
    Some(segments.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_older_versions_and_other_tools_are_mapped() {
        for (name, usual) in [
            ("base_model.model.score.weight", "score.weight"),
            ("score.weight", "score.weight"),
            ("base_model.model.score.modules_to_save.weight", "score.weight"),
            ("base_model.model.score.modules_to_save.default.weight", "score.weight"),
            ("base_model.model.classifier.modules_to_save.default.dense.bias", "classifier.dense.bias"),
            ("base_model.model.base_model.model.score.weight", "score.weight"),
            ("module.base_model.model.head.norm.weight", "head.norm.weight"),
            ("base_model.model.model.layers.0.q_proj.lora_A.default.weight", "model.layers.0.q_proj.lora_A.weight"),
            ("base_model.model.model.layers.0.q_proj.lora_B.weight", "model.layers.0.q_proj.lora_B.weight"),
        ] {
            assert_eq!(usual_name(name).as_deref(), Some(usual), "{name}");
        }
        assert_eq!(usual_name("base_model.model.score.original_module.weight"), None);
    }
}
