//! `checkpoint-<step>/`: everything that training needs to resume bit for bit.
//!
//! A checkpoint is written beside its place and renamed when it is whole and on disk; a manifest with
//! sizes and checksums is its last file. Randomness is a function of counters, so the counters are
//! all of it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::early_stopping::EarlyStopping;
use super::optimizer::{AdamW, Moments};
use crate::atomic_file;
use crate::kernels::cpu::blockwise::BlockwiseMoments;
use crate::model::classifier::Classifier;
use crate::model::lora::LoraOptions;
use crate::run::adapter::BaseName;
use crate::run::results::EvalMetrics;
use crate::run::{manifest, records, trained_weights};

/// Written in every checkpoint.
pub const STATE: &str = "state.json";
const OPTIMIZER: &str = "optimizer.safetensors";
const METRICS: &str = "metrics.json";
const FORMAT_VERSION: u32 = 1;

/// Progress of a training: everything that changes from step to step, except parameters and moments.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Optimizer steps done.
    pub step: usize,
    /// Passes that were evaluated.
    pub evaluations: usize,
    /// Micro-batches done: the counter of randomness.
    pub micro_batch: u32,
    /// Examples seen.
    pub examples: usize,
    /// Tokens seen.
    pub tokens: usize,
    /// Sum of the micro-batches' mean losses.
    pub loss_sum: f64,
    /// The losses since the last line of the history.
    pub logged: Window,
    /// The losses since the last evaluation.
    #[serde(default)]
    pub of_epoch: Window,
    /// Lines of the history.
    pub history_lines: usize,
    /// Seconds spent.
    pub elapsed: f64,
    /// No step follows.
    pub is_finished: bool,
    /// Evaluations without improvement.
    pub stopping: EarlyStopping,
    /// The best epoch so far.
    pub best: Option<Best>,
}

/// The losses of some steps.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Window {
    /// Sum of the micro-batches' mean losses.
    pub loss: f64,
    /// Number of micro-batches.
    pub micro_batches: usize,
}

/// The best epoch so far.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Best {
    /// The checkpoint's step.
    pub step: usize,
    /// Passes done.
    pub epoch: f64,
}

/// The file beside the weights.
#[derive(Serialize, Deserialize)]
struct State {
    format_version: u32,
    /// Inputs of the run: the configuration, and hashes of data and base.
    inputs: Value,
    optimizer_steps: i32,
    progress: Progress,
}

/// Contents of a checkpoint to be saved.
pub struct TrainingState<'a> {
    /// Adapters and head.
    pub classifier: &'a Classifier,
    /// For `adapter_config.json`.
    pub lora: &'a LoraOptions,
    /// The base's name.
    pub base: BaseName<'a>,
    /// Moments.
    pub optimizer: &'a AdamW,
    /// Counters.
    pub progress: &'a Progress,
    /// Inputs of the run.
    pub inputs: &'a Value,
    /// The evaluation that came with it, if one did.
    pub metrics: Option<&'a EvalMetrics>,
}

impl TrainingState<'_> {
    /// Writes the directory `path`, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        // A run that was killed while it replaced this very checkpoint.
        if path.exists() {
            fs::remove_dir_all(path).with_context(|| format!("{}: cannot replace", path.display()))?;
        }
        atomic_file::write_directory(path, |inside| {
            trained_weights::save(inside, self.classifier, self.lora, self.base)?;
            atomic_file::write_bytes(&inside.join(OPTIMIZER), &serialize_moments(self.classifier, self.optimizer)?)?;
            let state = State {
                format_version: FORMAT_VERSION,
                inputs: self.inputs.clone(),
                optimizer_steps: self.optimizer.steps(),
                progress: self.progress.clone(),
            };
            records::write_json(&inside.join(STATE), &state)?;
            if let Some(metrics) = self.metrics {
                records::write_json(&inside.join(METRICS), &serde_json::to_value(metrics)?)?;
            }
            manifest::write(inside)
        })
    }
}

/// The checkpoints of a seed's directory, oldest first.
pub fn list(directory: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("{}: cannot read", directory.display()))? {
        let entry = entry?;
        let step = entry.file_name().to_str().and_then(|name| name.strip_prefix("checkpoint-")?.parse().ok());
        found.extend(step.map(|step| (step, entry.path())));
    }
    found.sort_unstable();
    Ok(found)
}

/// Checks that training can resume from a checkpoint: it is whole, and so is the best one that it names.
pub fn verify(path: &Path) -> Result<()> {
    manifest::verify(path)?;
    let progress = read_state(path)?.progress;
    let Some(best) = progress.best.filter(|best| best.step != progress.step) else { return Ok(()) };
    let best = path.with_file_name(format!("checkpoint-{}", best.step));
    manifest::verify(&best).context("its best checkpoint is damaged")
}

/// Inputs of the checkpoint's run.
pub fn inputs(path: &Path) -> Result<Value> {
    Ok(read_state(path)?.inputs)
}

/// Sets classifier and optimizer as they were, and returns where training stood.
///
/// # Errors
/// If the checkpoint is damaged, or does not fit the model.
pub fn restore(path: &Path, classifier: &Classifier, optimizer: &mut AdamW) -> Result<Progress> {
    manifest::verify(path)?;
    let state = read_state(path)?;
    trained_weights::load(path, classifier)?;
    let file = path.join(OPTIMIZER);
    let mut read = || -> Result<()> {
        let bytes = fs::read(&file)?;
        let tensors = SafeTensors::deserialize(&bytes)?;
        optimizer.restore(|param, moments| {
            load_moments(&tensors, param.name(), moments).with_context(|| format!("moments of `{}`", param.name()))
        })
    };
    read().with_context(|| format!("{}: not the state of this optimizer", file.display()))?;
    optimizer.set_steps(state.optimizer_steps);
    Ok(state.progress)
}

fn read_state(path: &Path) -> Result<State> {
    let path = path.join(STATE);
    let text = fs::read_to_string(&path).with_context(|| format!("{}: cannot read", path.display()))?;
    let state: State =
        serde_json::from_str(&text).with_context(|| format!("{}: not a valid state of training", path.display()))?;
    ensure!(
        state.format_version == FORMAT_VERSION,
        "{}: format_version {} is not {FORMAT_VERSION}: another version of llmcls wrote it",
        path.display(),
        state.format_version
    );
    Ok(state)
}

/// A parameter's moments as named byte ranges.
fn parts(moments: &Moments) -> Vec<(&'static str, Dtype, usize, &[u8])> {
    match moments {
        Moments::Float32 { first, second } => vec![
            ("first", Dtype::F32, first.len(), bytemuck::cast_slice(first)),
            ("second", Dtype::F32, second.len(), bytemuck::cast_slice(second)),
        ],
        Moments::Blockwise(BlockwiseMoments { first, second, first_scales, second_scales }) => vec![
            ("first", Dtype::U8, first.len(), first),
            ("second", Dtype::U8, second.len(), second),
            ("first_scales", Dtype::F32, first_scales.len(), bytemuck::cast_slice(first_scales)),
            ("second_scales", Dtype::F32, second_scales.len(), bytemuck::cast_slice(second_scales)),
        ],
    }
}

fn serialize_moments(classifier: &Classifier, optimizer: &AdamW) -> Result<Vec<u8>> {
    let moments = optimizer.moments().collect::<Result<Vec<_>, _>>()?;
    let mut views = Vec::new();
    for (param, moments) in classifier.params().iter().zip(&moments) {
        for (part, dtype, len, bytes) in parts(moments) {
            views.push((format!("{}.{part}", param.name()), TensorView::new(dtype, vec![len], bytes)?));
        }
    }
    Ok(safetensors::serialize(views, None::<HashMap<String, String>>)?)
}

fn load_moments(tensors: &SafeTensors<'_>, name: &str, moments: &mut Moments) -> Result<()> {
    let read = |part: &str, into: &mut [u8]| -> Result<()> {
        let tensor = tensors.tensor(&format!("{name}.{part}"))?;
        ensure!(tensor.data().len() == into.len(), "`{part}` has {} bytes, not {}", tensor.data().len(), into.len());
        into.copy_from_slice(tensor.data());
        Ok(())
    };
    match moments {
        Moments::Float32 { first, second } => {
            read("first", bytemuck::cast_slice_mut(first))?;
            read("second", bytemuck::cast_slice_mut(second))
        }
        Moments::Blockwise(BlockwiseMoments { first, second, first_scales, second_scales }) => {
            read("first", first)?;
            read("second", second)?;
            read("first_scales", bytemuck::cast_slice_mut(first_scales))?;
            read("second_scales", bytemuck::cast_slice_mut(second_scales))
        }
    }
}
