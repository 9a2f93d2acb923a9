//! Trains one seed: accumulate, clip, step; evaluate and save each epoch; stop early.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;

use super::checkpoint::{self, Best, Progress, TrainingState, Window};
use super::early_stopping::EarlyStopping;
use super::log::Log;
use super::optimizer::{AdamW, MomentStorage, clip_factor, gradient_norm};
use super::schedule::Schedule;
use super::scored::{Scored, score};
use crate::config::train::TrainConfig;
use crate::console::{Console, ProgressMeter};
use crate::data::sampler::{epoch_order, group_by_length};
use crate::evaluation::{NotFinite, Sample};
use crate::failpoint::{self, Site};
use crate::interrupt;
use crate::kernels::buffer::tensor;
use crate::metrics::{Decision, Metric};
use crate::model::batch::Batch;
use crate::model::classifier::Classifier;
use crate::ops::tape::{DropoutKey, Tape};
use crate::run::directory::SeedDir;
use crate::run::records::History;
use crate::run::results::{EvalMetrics, StepRecord};
use crate::run::tensorboard::Hyperparameter;
use crate::run::trained_weights::SavedAs;

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
    /// Sort them by length within groups of batches.
    pub group_by_length: bool,
    /// Steps between two log lines.
    pub logging_steps: usize,
    /// Examples in a batch of evaluation.
    pub eval_batch_size: usize,
    /// The metric that chooses the best epoch.
    pub metric: &'static Metric,
    /// Epochs without improvement before stopping.
    pub patience: Option<usize>,
    /// Steps between two checkpoints, beside those of each epoch.
    pub save_steps: Option<usize>,
    /// Checkpoints kept beside the best.
    pub save_total_limit: Option<usize>,
}

impl TrainOptions {
    /// The order of the examples in an epoch.
    #[must_use]
    pub fn order(&self, samples: &[Sample], epoch: usize) -> Vec<usize> {
        let order = epoch_order(samples.len(), self.seed, epoch, self.shuffle);
        if !self.group_by_length {
            return order;
        }
        let lengths: Vec<usize> = samples.iter().map(|sample| sample.tokens.token_ids.len()).collect();
        group_by_length(order, &lengths, self.batch_size)
    }

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
    /// The form of the weights' files.
    pub saved_as: SavedAs<'a>,
    /// The base's name.
    pub base_name: &'a str,
    /// Where results go.
    pub directory: &'a SeedDir,
    /// Whether to write TensorBoard's event files.
    pub writes_events: bool,
    /// A checkpoint to go on from.
    pub resume_from: Option<PathBuf>,
    /// What the run was given: recorded in checkpoints.
    pub inputs: Value,
    /// What to do.
    pub options: TrainOptions,
    /// Where progress goes.
    pub console: Console,
}

/// What came of it.
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
    /// What the parameters that are left in the classifier give on the validation split, if that was the
    /// last thing computed.
    pub validation: Option<Scored>,
}

impl Trainer<'_> {
    /// Trains, from the start or from a checkpoint, and leaves the parameters of the best epoch in
    /// the classifier.
    ///
    /// # Errors
    /// If a loss or gradient is not finite, a file cannot be written, or with
    /// [`interrupt::Interrupted`] after a signal. The last checkpoint stands.
    pub fn run(&self) -> Result<TrainOutcome> {
        let options = &self.options;
        let mut optimizer = AdamW::new(self.classifier.params(), options.weight_decay, options.moments)?;
        let mut progress = match &self.resume_from {
            Some(path) => checkpoint::restore(path, self.classifier, &self.saved_as, &mut optimizer)?,
            None => Progress {
                stopping: EarlyStopping::new(options.patience, options.metric.lower_is_better),
                ..Progress::default()
            },
        };
        let started = Instant::now();
        let before = progress.elapsed;
        let history = History::open(&self.directory.history(), progress.history_lines)?;
        let mut log = Log { history, events: None };
        if self.writes_events {
            log.start_events(&self.directory.logs(), &self.hyperparameters())?;
        }
        let mut bar = self.console.progress(format!("seed {}", options.seed), options.total_steps, "steps");
        bar.start_at(progress.step);
        let mut last = None;
        while !progress.is_finished {
            let order = options.order(self.train, progress.evaluations);
            let batches: Vec<&[usize]> = order.chunks(options.batch_size).collect();
            let first = self.first_step(progress.evaluations);
            let (steps, done) = (self.first_step(progress.evaluations + 1) - first, progress.step - first);
            for window in batches.chunks(options.accumulation).take(steps).skip(done) {
                let loss = self.step(window, &mut optimizer, &mut progress, &mut log, &mut bar)?;
                progress.elapsed = before + started.elapsed().as_secs_f64();
                bar.advance(1, || self.describe_step(loss, &progress));
                self.save_if_due_or_stopped(&optimizer, &mut progress, &log.history)?;
            }
            let (metrics, scored) = self.evaluate(&mut progress)?;
            log.evaluation(&metrics, &scored, self.labels, progress.step)?;
            // An earlier one would only take memory beside the next.
            last = progress.is_finished.then_some(scored);
            progress.elapsed = before + started.elapsed().as_secs_f64();
            self.save(&optimizer, &mut progress, &log.history, Some(&metrics))?;
            interrupt::check()?;
        }
        bar.finish();
        let best = progress.best.as_ref().context("no epoch was evaluated")?;
        self.saved_as.load(&self.directory.checkpoint(best.step), self.classifier)?;
        Ok(TrainOutcome {
            train_loss: progress.loss_sum / f64::from(progress.micro_batch),
            runtime: progress.elapsed,
            steps: progress.step,
            examples: progress.examples,
            tokens: progress.tokens,
            epoch: self.epoch_of(&progress),
            best_epoch: best.epoch,
            optimizer_bytes: optimizer.bytes(),
            validation: last.filter(|_| best.step == progress.step),
        })
    }

    fn describe_step(&self, loss: f64, progress: &Progress) -> String {
        let rate = progress.examples as f64 / progress.elapsed;
        format!("epoch {:.2} loss {loss:.4} {rate:.1} examples/s", self.epoch_of(progress))
    }

    /// Saves a checkpoint within an epoch: every `save_steps`, and before the program stops.
    fn save_if_due_or_stopped(&self, optimizer: &AdamW, progress: &mut Progress, history: &History) -> Result<()> {
        // At an epoch's end its evaluation comes first: it decides which epoch is the best.
        if progress.step == self.first_step(progress.evaluations + 1) {
            return Ok(());
        }
        let is_due = self.options.save_steps.is_some_and(|steps| progress.step.is_multiple_of(steps));
        let stop = interrupt::check();
        if is_due || stop.is_err() {
            self.save(optimizer, progress, history, None)?;
        }
        Ok(stop?)
    }

    /// The step with which a pass starts, or with which training ends.
    fn first_step(&self, epoch: usize) -> usize {
        let TrainOptions { batch_size, accumulation, total_steps, .. } = self.options;
        (epoch * TrainOptions::steps_per_epoch(self.train.len(), batch_size, accumulation)).min(total_steps)
    }

    /// One optimizer step over a window's micro-batches; returns their mean loss.
    fn step(
        &self,
        window: &[&[usize]],
        optimizer: &mut AdamW,
        progress: &mut Progress,
        log: &mut Log,
        bar: &mut ProgressMeter,
    ) -> Result<f64> {
        let loss = self.accumulate(window, progress, bar)?;
        progress.logged.loss += loss;
        progress.logged.micro_batches += window.len();
        let rate = self.options.schedule.rate(progress.step);
        let norm = self.update(optimizer, window.len(), rate, progress)?;
        progress.step += 1;
        failpoint::reached(Site::Step)?;
        if progress.step.is_multiple_of(self.options.logging_steps) {
            let Window { loss, micro_batches } = std::mem::take(&mut progress.logged);
            let record = StepRecord {
                loss: loss / micro_batches as f64,
                grad_norm: norm,
                learning_rate: rate,
                epoch: self.epoch_of(progress),
                step: progress.step,
            };
            log.step(record, progress)?;
        }
        Ok(loss / window.len() as f64)
    }

    /// Adds up the gradients of a window's micro-batches; returns the sum of their mean losses.
    fn accumulate(&self, window: &[&[usize]], progress: &mut Progress, bar: &mut ProgressMeter) -> Result<f64> {
        let mut sum = 0.0;
        for param in self.classifier.params() {
            param.clear_gradient();
        }
        for (index, indices) in window.iter().enumerate() {
            bar.part(index, window.len(), "micro-batch");
            let samples = indices.iter().map(|&index| &self.train[index]);
            let batch = Batch::new(samples.map(|sample| (&*sample.tokens.token_ids, &*sample.labels)))?;
            let key = DropoutKey { seed: self.options.seed, micro_batch: progress.micro_batch };
            let value = forward_backward(self.classifier, &batch, key)
                .map_err(|error| self.explain(error, &batch, progress))?;
            sum += value;
            progress.micro_batch += 1;
            progress.examples += batch.len();
            progress.tokens += batch.token_ids.len();
        }
        progress.loss_sum += sum;
        Ok(sum)
    }

    fn explain(&self, error: anyhow::Error, batch: &Batch, progress: &Progress) -> anyhow::Error {
        match error.downcast_ref::<NotFinite>() {
            Some(cause) => self.not_finite(&cause.message, progress),
            None => error.context(self.describe_batch(batch, progress)),
        }
    }

    /// The error of a number that is not finite, with its likely cause.
    fn not_finite(&self, what: &str, progress: &Progress) -> anyhow::Error {
        let options = &self.options;
        let at = format!("{what} in step {} of seed {}", progress.step + 1, options.seed);
        let message = if progress.step == 0 {
            format!(
                "{at}, before anything was learned: the base's weights, or how they are stored, are the cause; try \
                 model.torch_dtype=float32 and model.use_4bit=false"
            )
        } else {
            let clip = if options.max_grad_norm > 0.0 { "" } else { ", or set train.max_grad_norm=1" };
            format!(
                "{at}: the training diverged; train.learning_rate is {}: start again with a lower one{clip}, or with \
                 model.torch_dtype=bfloat16 if it is float16",
                options.schedule.learning_rate
            )
        };
        NotFinite { message, sample: None }.into()
    }

    /// What was being computed when a step failed: memory, above all, is a matter of the batch.
    fn describe_batch(&self, batch: &Batch, progress: &Progress) -> String {
        let longest = batch.sequences.offsets.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
        format!(
            "step {} of seed {}, a batch of {} rows and {} tokens, the longest of {longest}; if memory ran out, lower \
             train.batch_size or data.max_length, or set train.gradient_checkpointing=true",
            progress.step + 1,
            self.options.seed,
            batch.len(),
            batch.token_ids.len()
        )
    }

    /// Clips and steps; returns the gradient's norm before clipping.
    fn update(&self, optimizer: &mut AdamW, micro_batches: usize, rate: f64, progress: &Progress) -> Result<f64> {
        if let Some(param) = self.classifier.params().iter().find(|param| !param.has_gradient()) {
            anyhow::bail!("`{}` is trained but received no gradient; this is a defect of llmcls", param.name());
        }
        // Divide by the micro-batches in this window: the last one may be short.
        let scale = if self.options.averages_window { 1.0 / micro_batches as f64 } else { 1.0 };
        let norm = scale * gradient_norm(self.classifier.params())?;
        if !norm.is_finite() {
            return Err(self.not_finite(&format!("the gradient's norm is {norm}"), progress));
        }
        optimizer.step(rate, scale * clip_factor(norm, self.options.max_grad_norm))?;
        Ok(norm)
    }

    /// Scores the validation split after a pass, and notes what that means.
    fn evaluate(&self, progress: &mut Progress) -> Result<(EvalMetrics, Scored)> {
        let scored = score(
            self.classifier,
            self.validation,
            self.labels,
            &Decision::above(self.thresholds),
            self.options.eval_batch_size,
            self.console,
        )
        .map_err(|error| match error.is::<NotFinite>() {
            true => self.not_finite("an output on the validation rows is not a finite number", progress),
            false => error,
        })?;
        let (mut metrics, evaluation) = (scored.metrics.clone(), &scored.evaluation);
        if !evaluation.loss.is_finite() {
            return Err(self.not_finite(&format!("the validation loss is {}", evaluation.loss), progress));
        }
        let verdict = progress.stopping.observe(metrics.get(self.options.metric));
        let epoch = self.epoch_of(progress);
        if verdict.is_best {
            progress.best = Some(Best { step: progress.step, epoch });
        }
        progress.evaluations += 1;
        progress.is_finished = verdict.should_stop || progress.step == self.options.total_steps;
        self.console.say(format!(
            "seed {} epoch {epoch:.2}: loss {:.4}, validation loss {:.4}, f1_micro {:.4}, f1_macro {:.4}{}",
            self.options.seed,
            progress.loss_sum / f64::from(progress.micro_batch),
            evaluation.loss,
            scored.scores.f1_micro,
            scored.scores.f1_macro,
            if verdict.is_best { " (best)" } else { "" }
        ));
        metrics.epoch = Some(epoch);
        metrics.step = Some(progress.step);
        Ok((metrics, scored))
    }

    fn save(
        &self,
        optimizer: &AdamW,
        progress: &mut Progress,
        history: &History,
        metrics: Option<&EvalMetrics>,
    ) -> Result<()> {
        progress.history_lines = history.sync()?;
        let checkpoint = TrainingState {
            classifier: self.classifier,
            saved_as: &self.saved_as,
            optimizer,
            progress,
            inputs: &self.inputs,
            metrics,
        };
        checkpoint.save(&self.directory.checkpoint(progress.step))?;
        self.remove_old_checkpoints(progress.best.as_ref())
    }

    /// Keeps the newest checkpoints within the limit, and the best, as transformers does: a limit
    /// of 1 keeps both the best and the newest.
    fn remove_old_checkpoints(&self, best: Option<&Best>) -> Result<()> {
        let Some(limit) = self.options.save_total_limit else { return Ok(()) };
        let mut others = checkpoint::list(self.directory.path())?;
        others.retain(|&(step, _)| best.is_none_or(|best| best.step != step));
        let is_newest_best = best.is_some_and(|best| others.iter().all(|&(step, _)| step < best.step));
        let kept = match best {
            Some(_) if is_newest_best => limit - 1,
            Some(_) => limit.max(2) - 1,
            None => limit,
        };
        for (_, path) in &others[..others.len().saturating_sub(kept)] {
            fs::remove_dir_all(path).with_context(|| format!("{}: cannot remove", path.display()))?;
        }
        Ok(())
    }

    /// What was chosen before training, for TensorBoard's table of runs.
    fn hyperparameters(&self) -> Vec<(&'static str, Hyperparameter)> {
        let options = &self.options;
        let number = |value: f64| Hyperparameter::Number(value);
        let mut chosen = vec![
            ("base", Hyperparameter::Text(self.base_name.to_owned())),
            ("seed", number(f64::from(options.seed))),
            ("batch_size", number(options.batch_size as f64)),
            ("gradient_accumulation_steps", number(options.accumulation as f64)),
            ("learning_rate", number(options.schedule.learning_rate)),
            ("warmup_steps", number(options.schedule.warmup_steps as f64)),
            ("weight_decay", number(options.weight_decay)),
            ("max_grad_norm", number(options.max_grad_norm)),
            ("steps", number(options.total_steps as f64)),
        ];
        if let SavedAs::Adapter { lora, .. } = &self.saved_as {
            chosen.extend([
                ("lora_r", number(lora.rank as f64)),
                ("lora_alpha", number(lora.alpha)),
                ("lora_dropout", number(lora.dropout)),
            ]);
        }
        chosen
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
    let loss = classifier.training_loss(&tape, &logits, &batch.labels)?;
    let value = f64::from(loss.tensor().to_scalar::<f32>()?);
    if !value.is_finite() {
        return Err(NotFinite { message: format!("the loss is {value}"), sample: None }.into());
    }
    drop(logits);
    tape.backward(&loss, tensor(vec![1.0], ())?)?;
    Ok(value)
}

/// How AdamW's moments are held: in 8 bits if the base is in 4, unless that is switched off.
#[must_use]
pub fn moment_storage(use_4bit: bool, train: &TrainConfig) -> MomentStorage {
    if use_4bit && train.optim_8bit_when_4bit { MomentStorage::EightBit } else { MomentStorage::Float32 }
}
