//! Resumes a run, and refuses if anything that training reads has changed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::base_model::BaseModel;
use crate::atomic_file::{self, sha256};
use crate::config::Config;
use crate::config::model::ComputeType;
use crate::console::Console;
use crate::kernels::device::Device;
use crate::run::adapter;
use crate::run::classifier_file::{ClassifierFile, RecordedFingerprint};
use crate::run::directory::{self, INPUTS, SeedDir};
use crate::run::results::SeedResult;
use crate::training::checkpoint;

/// The file of a run that records the inputs that determine its result, in addition to its configuration.
/// The key of a fingerprint that holds the digests of single tensors.
const TENSORS: &str = "tensors";
/// Changes that a message lists: another base differs in each of its tensors.
const SHOWN: usize = 12;

/// Keys that may change while a run is stopped: they change nothing that it computes. Of what the last ones
/// name, the contents are compared.
const MAY_CHANGE: [&str; 12] = [
    "exp.output_root",
    "exp.run_name",
    "train.cache_limit",
    "train.eval_batch_size",
    "train.report_to",
    "train.save_steps",
    "train.save_total_limit",
    "data.train_csv",
    "data.val_csv",
    "data.test_csv",
    "model.model_name",
    "model.init_adapter",
];

/// The configuration of a run, with what the flags change of it.
///
/// # Errors
/// If the run has none, or a flag changes a key that decides the result; the error shows each.
pub fn configuration(run: &Path, changed: &[PathBuf], settings: &[String]) -> Result<Config> {
    let path = run.join(directory::CONFIG);
    directory::ensure_run(run)?;
    let mut recorded = Config::of_run(&path)?;
    // Before there was a key for it, every run computed in f32; such runs have no record of inputs beside their
    // configuration. A run on a GPU records `auto`.
    if recorded.model.compute == ComputeType::Auto && !run.join(INPUTS).is_file() {
        recorded.model.compute = ComputeType::Float32;
    }
    let mut files = vec![path];
    files.extend(changed.iter().cloned());
    let mut wanted = Config::load(&files, settings)?;
    if wanted.model.compute == ComputeType::Auto {
        wanted.model.compute = recorded.model.compute;
    }
    refuse_changes(run, &json!(recorded), &json!(wanted))?;
    Ok(wanted)
}

/// The inputs that determine a run's result, for its checkpoints: hashes of every file that training reads, and the
/// device.
pub fn inputs(config: &Config, base: &RecordedFingerprint, device: &Device) -> Result<Value> {
    let data = &config.data;
    let mut hashes = Map::new();
    let files = [
        ("train_csv", Some(&data.train_csv)),
        ("val_csv", data.val_csv.as_ref()),
        ("test_csv", data.test_csv.as_ref()),
    ];
    for (name, path) in files.into_iter().filter_map(|(name, path)| Some((name, path?))) {
        hashes.insert(name.to_owned(), json!(sha256(path)?));
    }
    Ok(json!({
        "config": config,
        "sha256 of data": hashes,
        "base model": base,
        "init adapter": config.model.init_adapter.as_deref().map(adapter_contents).transpose()?,
        "device": if device.is_gpu() { "cuda" } else { "cpu" },
        "bytes of an activation": device.activation_bytes(),
        "llmcls": env!("CARGO_PKG_VERSION"),
    }))
}

/// An adapter's files by their hashes, and its labels, which decide how its head is taken.
fn adapter_contents(directory: &Path) -> Result<Value> {
    let hash = |name: &str| -> Result<Value> {
        let path = directory.join(name);
        if path.is_file() { Ok(json!(sha256(&path)?)) } else { Ok(Value::Null) }
    };
    let labels = ClassifierFile::load(directory)?.map(|file| file.labels);
    Ok(json!({
        adapter::CONFIG: hash(adapter::CONFIG)?,
        adapter::WEIGHTS: hash(adapter::WEIGHTS)?,
        "labels": labels,
    }))
}

/// Writes what decides the result into the run, for the time before its first checkpoint.
pub fn record_inputs(run: &Path, inputs: &Value) -> Result<()> {
    atomic_file::write_bytes(&run.join(INPUTS), serde_json::to_string_pretty(inputs)?.as_bytes())
}

/// Checks that a run and its checkpoints were made of the same.
pub fn check_inputs(run: &Path, now: &Value, base: &BaseModel, console: Console) -> Result<()> {
    let mut recorded = Vec::new();
    let path = run.join(INPUTS);
    if path.is_file() {
        let text = fs::read(&path).with_context(|| format!("{}: cannot read", path.display()))?;
        recorded.push(serde_json::from_slice(&text).with_context(|| format!("{}: not valid JSON", path.display()))?);
    }
    for entry in fs::read_dir(run).with_context(|| format!("{}: cannot read", run.display()))? {
        let seed = entry?.path();
        if !seed.is_dir() {
            continue;
        }
        // A damaged checkpoint says nothing; it is not resumed from.
        recorded.extend(checkpoint::list(&seed)?.iter().filter_map(|(_, path)| checkpoint::inputs(path).ok()));
    }
    let now = Inputs::read(run, now.clone())?;
    let mut has_warned = false;
    for then in recorded {
        let then = Inputs::read(run, then)?;
        // Read as a configuration is: keys that have come since take their defaults.
        let config = Config::recorded(&then.config).with_context(|| format!("{}: its inputs", run.display()))?;
        refuse_changes(run, &json!(config), &now.config)?;
        let now = match &then.base {
            Value::String(_) => {
                if !has_warned {
                    console.warn(
                        "an older llmcls started this run and recorded only a sample of its base: changes of the base \
                         elsewhere, of the tokenizer, the initial adapter or the device would not be seen",
                    );
                    has_warned = true;
                }
                now.as_older(&then, base.sampled_fingerprint()?)
            }
            _ => now.with_tensors_as_in(&then),
        };
        refuse_changes(run, &then.without_config(), &now.without_config())?;
    }
    Ok(())
}

/// The inputs of a run as it recorded them. Versions differ in which others there are.
#[derive(Clone, Deserialize)]
struct Inputs {
    config: Value,
    /// A fingerprint, or text in the records of older versions.
    #[serde(rename = "base model", default)]
    base: Value,
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl Inputs {
    fn read(run: &Path, value: Value) -> Result<Self> {
        serde_json::from_value(value).with_context(|| format!("{}: its inputs", run.display()))
    }

    fn without_config(&self) -> Value {
        let mut inputs = self.others.clone();
        inputs.insert("base model".to_owned(), self.base.clone());
        inputs.into()
    }

    /// These inputs without the digests of single tensors, if `then` lacks them: a digest over all is in both.
    fn with_tensors_as_in(&self, then: &Self) -> Self {
        let mut now = self.clone();
        if then.base.get(TENSORS).is_none()
            && let Some(base) = now.base.as_object_mut()
        {
            base.remove(TENSORS);
        }
        now
    }

    /// These inputs as the older version that wrote `then` would have recorded them.
    fn as_older(&self, then: &Self, sampled: String) -> Self {
        let mut now = Self { base: Value::String(sampled), ..self.clone() };
        now.others.retain(|key, _| then.others.contains_key(key));
        now
    }
}

/// The result of a seed, if it is finished.
pub fn finished_seed(directory: &SeedDir) -> Result<Option<SeedResult>> {
    let path = directory.result();
    if !path.is_file() {
        return Ok(None);
    }
    let text = fs::read_to_string(&path).with_context(|| format!("{}: cannot read", path.display()))?;
    Ok(Some(serde_json::from_str(&text).with_context(|| format!("{}: not the result of a seed", path.display()))?))
}

/// The newest checkpoint of a seed that verifies, if it has any.
pub fn newest_checkpoint(directory: &SeedDir, console: Console) -> Result<Option<PathBuf>> {
    atomic_file::sweep(directory.path(), "");
    let checkpoints = checkpoint::list(directory.path())?;
    for (_, path) in checkpoints.iter().rev() {
        match checkpoint::verify(path) {
            Ok(()) => {
                console.say(format!("resuming from {}", path.display()));
                return Ok(Some(path.clone()));
            }
            Err(error) => console.warn(format!("{} cannot be resumed from: {error:#}", path.display())),
        }
    }
    ensure!(
        checkpoints.is_empty(),
        "{}: every checkpoint is damaged; remove its checkpoint-* directories to train this seed from the start",
        directory.path().display()
    );
    Ok(None)
}

fn refuse_changes(run: &Path, then: &Value, now: &Value) -> Result<()> {
    let mut changes = Vec::new();
    differences("", then, now, &mut changes);
    // Before there was a key for it, every run computed in f32.
    let is_older = |key: &str, then: &Value, now: &Value| {
        let is_unsaid = then.is_null() || then == &json!(ComputeType::Auto);
        key == "model.compute" && is_unsaid && now == &json!(ComputeType::Float32)
    };
    changes.retain(|(key, then, now)| !MAY_CHANGE.contains(&key.as_str()) && !is_older(key, then, now));
    if changes.is_empty() {
        return Ok(());
    }
    let mut shown: Vec<String> =
        changes.iter().take(SHOWN).map(|(key, then, now)| format!("{key}: was {then}, is {now}")).collect();
    if changes.len() > SHOWN {
        shown.push(format!("… and {} more", changes.len() - SHOWN));
    }
    bail!(
        "{}: cannot resume, because the run's inputs have changed:\n  {}\nRestore them, or start a new run",
        run.display(),
        shown.join("\n  ")
    )
}

/// The leaves in which two trees differ, by their dotted names.
fn differences(name: &str, then: &Value, now: &Value, out: &mut Vec<(String, Value, Value)>) {
    if let (Value::Object(then), Value::Object(now)) = (then, now) {
        let mut keys: Vec<&String> = then.keys().chain(now.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
            differences(&name, then.get(key).unwrap_or(&Value::Null), now.get(key).unwrap_or(&Value::Null), out);
        }
    } else if then != now {
        out.push((name.to_owned(), then.clone(), now.clone()));
    }
}
