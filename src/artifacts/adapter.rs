//! Adapters as Python's peft reads and writes them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::atomic_file;
use crate::kernels::buffer::elements;
use crate::model::classifier::Classifier;
use crate::model::lora::{LoraOptions, Targets};
use crate::model::weights::Checkpoint;

/// The file with the tensors.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// The file that says what they are.
pub const CONFIG: &str = "adapter_config.json";
/// What peft puts before a parameter's name.
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
///
/// # Errors
/// If a file cannot be written.
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
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(views, Some(metadata))?;
    atomic_file::write_bytes(&directory.join(WEIGHTS), &bytes)?;
    let config = serde_json::to_string_pretty(&config(lora, base, classifier.modules_to_save()))?;
    atomic_file::write_bytes(&directory.join(CONFIG), config.as_bytes())
}

/// The fields that peft writes, in its order.
fn config(lora: &LoraOptions, base: BaseName<'_>, modules_to_save: &[String]) -> Value {
    let targets = match &lora.targets {
        Targets::AllLinear => json!("all-linear"),
        Targets::Names(names) => json!(names),
        // Without the anchors that make it match in full.
        Targets::Pattern(regex) => json!(regex.as_str().trim_start_matches("^(?:").trim_end_matches(")$")),
    };
    json!({
        "alpha_pattern": {},
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
        "modules_to_save": modules_to_save,
        "peft_type": "LORA",
        "r": lora.rank,
        "rank_pattern": {},
        "revision": base.revision,
        "target_modules": targets,
        "task_type": "SEQ_CLS",
        "use_dora": false,
        "use_rslora": false,
    })
}

/// The part of `adapter_config.json` that decides what is computed.
#[derive(Deserialize)]
struct AdapterConfig {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    target_modules: Value,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    bias: Option<String>,
    #[serde(default)]
    rank_pattern: BTreeMap<String, Value>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, Value>,
    #[serde(default)]
    base_model_name_or_path: Option<String>,
}

/// Whether this is a directory that peft, or llmcls, saved an adapter to.
#[must_use]
pub fn is_adapter(directory: &Path) -> bool {
    directory.join(CONFIG).is_file()
}

/// Reads `adapter_config.json`: the adapters' shape, and the base's name if there is one.
///
/// # Errors
/// If the file cannot be read, or asks for a kind of adapter that llmcls does not compute.
pub fn read_config(directory: &Path) -> Result<(LoraOptions, Option<String>)> {
    let path = directory.join(CONFIG);
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}: cannot read", path.display()))?;
    let parse = || -> Result<_> {
        let config: AdapterConfig = serde_json::from_str(&text)?;
        ensure!(config.peft_type == "LORA", "peft_type `{}` is not supported; supported: LORA", config.peft_type);
        for (is_set, key) in [
            (config.use_dora, "use_dora"),
            (config.use_rslora, "use_rslora"),
            (config.fan_in_fan_out, "fan_in_fan_out"),
            (!config.rank_pattern.is_empty(), "rank_pattern"),
            (!config.alpha_pattern.is_empty(), "alpha_pattern"),
            (config.bias.is_some_and(|bias| bias != "none"), "bias"),
        ] {
            ensure!(!is_set, "`{key}` is set, which llmcls does not compute");
        }
        ensure!(config.r > 0, "`r` is 0");
        let targets = match config.target_modules {
            Value::String(pattern) => Targets::from_pattern(&pattern)?,
            list => Targets::Names(serde_json::from_value(list).context("`target_modules` is not a list of names")?),
        };
        let lora = LoraOptions { rank: config.r, alpha: config.lora_alpha, dropout: config.lora_dropout, targets };
        Ok((lora, config.base_model_name_or_path))
    };
    parse().with_context(|| format!("{}: not a usable adapter configuration", path.display()))
}

/// Sets a classifier's parameters from a directory.
///
/// # Errors
/// If a tensor is missing, left over, of another shape or not finite.
pub fn load(directory: &Path, classifier: &Classifier) -> Result<()> {
    let path = directory.join(WEIGHTS);
    if !path.is_file() && directory.join("adapter_model.bin").is_file() {
        bail!(
            "{}: only a pickled adapter_model.bin is there, which is not read because loading one can run any code; \
             save it again from peft with safe_serialization=True",
            directory.display()
        );
    }
    let checkpoint = Checkpoint::open(std::slice::from_ref(&path))?;
    classifier.load(&checkpoint, PREFIX).with_context(|| format!("{}: does not fit the model", path.display()))
}
