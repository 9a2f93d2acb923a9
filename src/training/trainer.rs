//! Trains one seed: accumulate, clip, step; evaluate and save each epoch; stop early.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::early_stopping::EarlyStopping;
use super::optimizer::{AdamW, MomentStorage, clip_factor, gradient_norm};
use super::schedule::Schedule;
use crate::artifacts::records::{History, evaluation_record};
use crate::artifacts::run_dir::SeedDir;
use crate::artifacts::{adapter, records};
use crate::atomic_file;
use crate::config::train::TrainConfig;
use crate::console::Console;
use crate::data::sampler::epoch_order;
use crate::evaluation::{Evaluation, Sample, evaluate};
use crate::metrics::Scores;
use crate::model::batch::Batch;
use crate::model::classifier::Classifier;
use crate::model::lora::LoraOptions;
use crate::ops::buffer::tensor;
use crate::ops::memory;
use crate::ops::tape::{DropoutKey, Tape};

/// What training does, in plain values.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// Of everything random.
    pub seed: u32,
    /// Examples in a micro-batch.
    pub batch_size: usize,
    /// Micro-batches in a step.
    pub accumulation: usize,
    /// Divide the summed gradient by the micro-batches of its window.
    pub averages_window: bool,
    /// Most passes over the examples.
    pub epochs: usize,
    /// Most steps.
    pub total_steps: usize,
    /// The learning rate.
    pub schedule: Schedule,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// How AdamW's moments are held.
    pub moments: MomentStorage,
    /// Clip at this norm; 0: off.
    pub max_grad_norm: f64,
    /// Permute the examples each epoch.
    pub shuffle: bool,
    /// Steps between two log lines.
    pub logging_steps: usize,
    /// Examples in a batch of evaluation.
    pub eval_batch_size: usize,
    /// The metric that chooses the best epoch, without `eval_`.
    pub metric: String,
    /// Epochs without improvement before stopping.
    pub patience: Option<usize>,
    /// Checkpoints kept beside the best.
    pub save_total_limit: Option<usize>,
}

impl TrainOptions {
    /// Optimizer steps of one pass over `examples`.
    #[must_use]
    pub fn steps_per_epoch(examples: usize, batch_size: usize, accumulation: usize) -> usize {
        examples.div_ceil(batch_size).div_ceil(accumulation)
    }
}

/// What training had to work with.
pub struct Trainer<'a> {
    /// The model; its parameters are initialized.
    pub classifier: &'a Classifier,
    /// In the order of the file.
    pub train: &'a [Sample],
    /// Scored after each epoch.
    pub validation: &'a [Sample],
    /// In the order of the logits.
    pub labels: &'a [String],
    /// One a label.
    pub thresholds: &'a [f32],
    /// For `adapter_config.json`.
    pub lora: &'a LoraOptions,
    /// The base's name.
    pub base: &'a str,
    /// Where results go.
    pub directory: &'a SeedDir,
    /// What to do.
    pub options: TrainOptions,
    /// Where progress goes.
    pub console: Console,
}

/// Where training stands.
#[derive(Clone, Debug, Default)]
struct Progress {
    step: usize,
    micro_batch: u32,
    examples: usize,
    tokens: usize,
    loss_sum: f64,
}

/// The best epoch so far.
#[derive(Clone, Debug)]
struct Best {
    checkpoint: PathBuf,
    step: usize,
    epoch: f64,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct TrainOutcome {
    /// Mean loss over all micro-batches.
    pub train_loss: f64,
    /// Seconds, evaluation included.
    pub runtime: f64,
    /// Optimizer steps done.
    pub steps: usize,
    /// Examples seen.
    pub examples: usize,
    /// Tokens seen.
    pub tokens: usize,
    /// Passes done.
    pub epoch: f64,
    /// The pass with the best metric.
    pub best_epoch: f64,
    /// Bytes of the optimizer's state.
    pub optimizer_bytes: usize,
}

/// The losses and the gradient's norm of some steps.
#[derive(Default)]
struct Window {
    loss: f64,
    micro_batches: usize,
}

impl Trainer<'_> {
    /// Trains, and leaves the parameters of the best epoch in the classifier.
    ///
    /// # Errors
    /// If a loss or gradient is not finite, or a file cannot be written. The last checkpoint stands.
    pub fn run(&self) -> Result<TrainOutcome> {
        let options = &self.options;
        let started = Instant::now();
        let mut optimizer = AdamW::new(self.classifier.params(), options.weight_decay, options.moments);
        let mut stopping = EarlyStopping::new(options.patience, options.metric.ends_with("loss"));
        let mut history = History::create(&self.directory.history())?;
        let mut progress = Progress::default();
        let mut logged = Window::default();
        let mut best: Option<Best> = None;
        let mut bar = self.console.progress(format!("seed {}", options.seed), options.total_steps, "steps");
        for epoch in 0..options.epochs {
            let order = epoch_order(self.train.len(), options.seed, epoch, options.shuffle);
            let batches: Vec<&[usize]> = order.chunks(options.batch_size).collect();
            for window in batches.chunks(options.accumulation) {
                let loss = self.accumulate(window, &mut progress)?;
                logged.loss += loss;
                logged.micro_batches += window.len();
                let rate = options.schedule.rate(progress.step);
                let norm = self.update(&mut optimizer, window.len(), rate, &progress)?;
                progress.step += 1;
                let passes = self.epoch_of(&progress);
                if progress.step.is_multiple_of(options.logging_steps) {
                    let loss = logged.loss / logged.micro_batches as f64;
                    history.push(&json!({
                        "loss": loss, "grad_norm": norm, "learning_rate": rate, "epoch": passes, "step": progress.step,
                    }))?;
                    logged = Window::default();
                }
                bar.advance(1, || {
                    let rate = progress.examples as f64 / started.elapsed().as_secs_f64();
                    format!("epoch {passes:.2} loss {:.4} {rate:.1} examples/s", loss / window.len() as f64)
                });
                if progress.step == options.total_steps {
                    break;
                }
            }
            let record = self.evaluate(&progress)?;
            let metric = record[&format!("eval_{}", options.metric)].as_f64().context("the metric is not a number")?;
            history.push(&Value::Object(record.clone()))?;
            let verdict = stopping.observe(metric);
            self.console.say(format!(
                "seed {} epoch {:.2}: loss {:.4}, validation loss {:.4}, f1_micro {:.4}, f1_macro {:.4}{}",
                options.seed,
                self.epoch_of(&progress),
                progress.loss_sum / f64::from(progress.micro_batch),
                record["eval_loss"].as_f64().unwrap_or(f64::NAN),
                record["eval_f1_micro"].as_f64().unwrap_or(f64::NAN),
                record["eval_f1_macro"].as_f64().unwrap_or(f64::NAN),
                if verdict.is_best { " (best)" } else { "" }
            ));
            let checkpoint = self.save(&progress, &record)?;
            if verdict.is_best {
                best = Some(Best { checkpoint, step: progress.step, epoch: self.epoch_of(&progress) });
            }
            self.remove_old_checkpoints(best.as_ref())?;
            if verdict.should_stop || progress.step == options.total_steps {
                break;
            }
        }
        bar.finish();
        let best = best.context("no epoch was evaluated")?;
        adapter::load(&best.checkpoint, self.classifier)?;
        Ok(TrainOutcome {
            train_loss: progress.loss_sum / f64::from(progress.micro_batch),
            runtime: started.elapsed().as_secs_f64(),
            steps: progress.step,
            examples: progress.examples,
            tokens: progress.tokens,
            epoch: self.epoch_of(&progress),
            best_epoch: best.epoch,
            optimizer_bytes: optimizer.bytes(),
        })
    }

    /// Adds up the gradients of a window's micro-batches; returns the sum of their mean losses.
    fn accumulate(&self, window: &[&[usize]], progress: &mut Progress) -> Result<f64> {
        let mut sum = 0.0;
        for param in self.classifier.params() {
            param.clear_gradient()?;
        }
        for indices in window {
            let samples = indices.iter().map(|&index| &self.train[index]);
            let batch = Batch::new(samples.map(|sample| (&*sample.tokens.token_ids, &*sample.labels)))?;
            let key = DropoutKey { seed: self.options.seed, micro_batch: progress.micro_batch };
            let value = forward_backward(self.classifier, &batch, key)
                .with_context(|| format!("step {} of seed {}", progress.step + 1, self.options.seed))?;
            sum += value;
            progress.micro_batch += 1;
            progress.examples += batch.len();
            progress.tokens += batch.token_ids.len();
        }
        progress.loss_sum += sum;
        Ok(sum)
    }

    /// Clips and steps; returns the gradient's norm before clipping.
    fn update(&self, optimizer: &mut AdamW, micro_batches: usize, rate: f64, progress: &Progress) -> Result<f64> {
        if let Some(param) = self.classifier.params().iter().find(|param| !param.has_gradient()) {
            anyhow::bail!("`{}` is trained but received no gradient; this is a defect of llmcls", param.name());
        }
        // Divide by the micro-batches in this window: the last one may be short.
        let scale = if self.options.averages_window { 1.0 / micro_batches as f64 } else { 1.0 };
        let norm = scale * gradient_norm(self.classifier.params())?;
        ensure!(
            norm.is_finite(),
            "the gradient's norm is {norm} at step {}; lower train.learning_rate, or set train.max_grad_norm",
            progress.step + 1
        );
        optimizer.step(rate, scale * clip_factor(norm, self.options.max_grad_norm))?;
        Ok(norm)
    }

    fn evaluate(&self, progress: &Progress) -> Result<Map<String, Value>> {
        let (evaluation, mut record) = score(
            self.classifier,
            self.validation,
            self.labels,
            self.thresholds,
            self.options.eval_batch_size,
            self.console,
        )
        .map(|scored| (scored.evaluation, scored.record))?;
        ensure!(evaluation.loss.is_finite(), "the validation loss is {}", evaluation.loss);
        record.insert("epoch".into(), json!(self.epoch_of(progress)));
        record.insert("step".into(), json!(progress.step));
        Ok(record)
    }

    fn save(&self, progress: &Progress, record: &Map<String, Value>) -> Result<PathBuf> {
        let path = self.directory.checkpoint(progress.step);
        atomic_file::write_directory(&path, |inside| {
            adapter::save(inside, self.classifier, self.lora, self.base)?;
            records::write_json(&inside.join("metrics.json"), record)
        })?;
        Ok(path)
    }

    /// Keeps the newest checkpoints within the limit, and the best, as transformers does: a limit
    /// of 1 keeps both the best and the newest.
    fn remove_old_checkpoints(&self, best: Option<&Best>) -> Result<()> {
        let Some(limit) = self.options.save_total_limit else { return Ok(()) };
        let mut others: Vec<(usize, PathBuf)> = fs::read_dir(self.directory.path())?
            .flatten()
            .filter(|entry| best.is_none_or(|best| best.checkpoint != entry.path()))
            .filter_map(|entry| {
                let step = entry.file_name().to_str()?.strip_prefix("checkpoint-")?.parse().ok()?;
                Some((step, entry.path()))
            })
            .collect();
        others.sort_unstable();
        let is_newest_best = best.is_some_and(|best| others.iter().all(|&(step, _)| step < best.step));
        let kept = if is_newest_best { limit - 1 } else { limit.max(2) - 1 };
        for (_, path) in &others[..others.len().saturating_sub(kept)] {
            fs::remove_dir_all(path).with_context(|| format!("{}: cannot remove", path.display()))?;
        }
        Ok(())
    }

    fn epoch_of(&self, progress: &Progress) -> f64 {
        progress.examples as f64 / self.train.len() as f64
    }
}

/// Adds one micro-batch's gradients to the parameters'; returns its mean loss.
///
/// # Errors
/// If the loss is not finite, or an op fails.
pub fn forward_backward(classifier: &Classifier, batch: &Batch, key: DropoutKey) -> Result<f64> {
    let tape = Tape::recording(Some(key));
    let logits = classifier.logits(&tape, batch)?;
    let loss = classifier.loss(&tape, &logits, &batch.labels)?;
    let value = f64::from(loss.tensor().to_scalar::<f32>()?);
    ensure!(value.is_finite(), "the loss is {value}; lower train.learning_rate, or check the base's weights");
    drop(logits);
    tape.backward(&loss, tensor(vec![1.0], ())?)?;
    Ok(value)
}

/// How AdamW's moments are held: in 8 bits if the base is in 4, unless that is switched off.
#[must_use]
pub fn moment_storage(use_4bit: bool, train: &TrainConfig) -> MomentStorage {
    if use_4bit && train.optim_8bit_when_4bit { MomentStorage::EightBit } else { MomentStorage::Float32 }
}

/// An evaluation, its scores, and the record of both.
pub struct Scored {
    /// Predictions and loss.
    pub evaluation: Evaluation,
    /// The metrics.
    pub scores: Scores,
    /// The metrics under transformers' names, with times.
    pub record: Map<String, Value>,
}

/// Evaluates samples and scores them.
///
/// # Errors
/// If the model fails.
pub fn score(
    classifier: &Classifier,
    samples: &[Sample],
    labels: &[String],
    thresholds: &[f32],
    batch_size: usize,
    console: Console,
) -> Result<Scored> {
    let started = Instant::now();
    let mut bar = console.progress("evaluating", samples.len(), "examples");
    let evaluation = evaluate(classifier, samples, thresholds, batch_size, |count| bar.advance(count, String::new))?;
    bar.finish();
    let scores = Scores::new(&evaluation.predictions, labels);
    let seconds = started.elapsed().as_secs_f64();
    let record = evaluation_record(&evaluation, &scores, seconds, samples.len().div_ceil(batch_size));
    Ok(Scored { evaluation, scores, record })
}

/// Peak memory so far, for records.
#[must_use]
pub fn peak_memory() -> Value {
    memory::peak_bytes().map_or(Value::Null, |bytes| json!(bytes))
}
