//! Trains one seed: accumulate, clip, step; evaluate and save each epoch; stop early.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;

use super::checkpoint::{self, Best, Progress, TrainingState, Window};
use super::data_parallel::{self, TreeSum};
use super::early_stopping::EarlyStopping;
use super::log::Log;
use super::optimizer::{AdamW, MomentStorage, clip_factor, gradient_norm};
use super::schedule::Schedule;
use super::scored::{Scored, score};
use crate::cluster::Group;
use crate::config::train::{Reduction, TrainConfig};
use crate::console::{Console, ProgressMeter};
use crate::data::sampler::{epoch_order, group_by_length};
use crate::evaluation::{NotFinite, Sample};
use crate::failpoint::{self, Site};
use crate::kernels::buffer::tensor;
use crate::metrics::{Decision, Metric};
use crate::model::batch::Batch;
use crate::model::classifier::Classifier;
use crate::model::lora::LoraOptions;
use crate::ops::tape::{DropoutKey, Tape};
use crate::run::adapter::BaseName;
use crate::run::directory::SeedDir;
use crate::run::records::History;
use crate::run::results::{EvalMetrics, StepRecord};
use crate::run::tensorboard::Hyperparameter;
use crate::run::trained_weights;

/// The configuration of one seed's training, and what follows from it and the number of rows.
#[derive(Clone, Debug)]
pub struct TrainOptions<'a> {
    /// Seed of everything random.
    pub seed: u32,
    pub config: &'a TrainConfig,
    /// Most steps.
    pub total_steps: usize,
    pub schedule: Schedule,
    /// The head's, where it has one of its own.
    pub head_schedule: Option<Schedule>,
    /// Storage of AdamW's moments.
    pub moments: MomentStorage,
    /// The metric that chooses the best epoch.
    pub metric: &'static Metric,
}

impl TrainOptions<'_> {
    /// The order of the examples in an epoch.
    #[must_use]
    pub fn order(&self, samples: &[Sample], epoch: usize) -> Vec<usize> {
        let order = epoch_order(samples.len(), self.seed, epoch, self.config.shuffle);
        if !self.config.group_by_length {
            return order;
        }
        let lengths: Vec<usize> = samples.iter().map(|sample| sample.tokens.token_ids.len()).collect();
        group_by_length(order, &lengths, self.config.batch_size)
    }
}

/// A training with its model, rows and options.
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
    pub base: BaseName<'a>,
    /// The processes that train together.
    pub group: &'a Group,
    /// Where results go; `None` on a rank that does not write.
    pub directory: Option<&'a SeedDir>,
    /// True if TensorBoard's event files are written.
    pub writes_events: bool,
    /// A checkpoint to go on from; rank 0 reads it for all.
    pub resume_from: Option<PathBuf>,
    /// Inputs of the run, recorded in checkpoints.
    pub inputs: Value,
    pub options: TrainOptions<'a>,
    /// Where progress goes.
    pub console: Console,
}

/// The result of a training.
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
    /// Scores on the validation split by the parameters that are left in the classifier, if they were the last thing
    /// computed.
    pub validation: Option<Scored>,
}

impl Trainer<'_> {
    /// Trains, from the start or from a checkpoint, and leaves the parameters of the best epoch in
    /// the classifier; `None` if training pauses after `pause_after` evaluations.
    ///
    /// # Errors
    /// If a loss or gradient is not finite, a file cannot be written, or with
    /// [`crate::interrupt::Interrupted`] after a signal. The last checkpoint stands.
    pub fn run(&self, pause_after: Option<usize>) -> Result<Option<TrainOutcome>> {
        let options = &self.options;
        let optimizer = AdamW::new(self.classifier.params(), options.config.weight_decay, options.moments)?;
        let mut optimizer = optimizer.with_head(self.classifier.first_of_head());
        let mut progress = self.start(&mut optimizer)?;
        let started = Instant::now();
        let before = progress.elapsed;
        let mut log = Log::default();
        if let Some(directory) = self.directory {
            log.history = Some(History::open(&directory.history(), progress.history_lines)?);
            if self.writes_events {
                log.start_events(&directory.logs(), &self.hyperparameters())?;
            }
        }
        let mut bar = self.console.progress(format!("seed {}", options.seed), options.total_steps, "steps");
        bar.start_at(progress.step);
        let mut last = None;
        while !progress.is_finished {
            if pause_after.is_some_and(|count| progress.evaluations >= count) {
                bar.finish();
                return Ok(None);
            }
            let order = options.order(self.train, progress.evaluations);
            let batches: Vec<&[usize]> = order.chunks(options.config.batch_size).collect();
            let first = self.first_step(progress.evaluations);
            let (steps, done) = (self.first_step(progress.evaluations + 1) - first, progress.step - first);
            for window in batches.chunks(options.config.gradient_accumulation_steps).take(steps).skip(done) {
                let loss = self.step(window, &mut optimizer, &mut progress, &mut log, &mut bar)?;
                progress.elapsed = before + started.elapsed().as_secs_f64();
                bar.advance(1, || self.describe_step(loss, &progress));
                self.save_if_due_or_stopped(&optimizer, &mut progress, &log)?;
            }
            let (metrics, scored) = self.evaluate(&mut progress)?;
            log.evaluation(&metrics, &scored, self.labels, progress.step)?;
            // An earlier one would only take memory beside the next.
            last = progress.is_finished.then_some(scored);
            progress.elapsed = before + started.elapsed().as_secs_f64();
            self.save(&optimizer, &mut progress, &log, Some(&metrics))?;
            self.group.check_interrupt()?;
        }
        bar.finish();
        let best = progress.best.as_ref().context("no epoch was evaluated")?;
        let averaged = self.averaged(progress.evaluations);
        match self.directory {
            Some(directory) if averaged.is_empty() => {
                trained_weights::load(&directory.checkpoint(best.step), self.classifier)?;
            }
            Some(directory) => {
                let checkpoints = averaged.iter().map(|&step| directory.checkpoint(step));
                trained_weights::load_mean(&checkpoints.collect::<Vec<_>>(), self.classifier)?;
                self.console.say(format!("seed {}: took the mean of the last {} epochs", options.seed, averaged.len()));
            }
            None => {}
        }
        data_parallel::share_values(self.group, self.classifier.params())?;
        Ok(Some(TrainOutcome {
            train_loss: progress.loss_sum / f64::from(progress.micro_batch),
            runtime: progress.elapsed,
            steps: progress.step,
            examples: progress.examples,
            tokens: progress.tokens,
            epoch: self.epoch_of(&progress),
            best_epoch: best.epoch,
            optimizer_bytes: optimizer.bytes(),
            validation: last.filter(|_| best.step == progress.step && averaged.is_empty()),
        }))
    }

    /// The state with which training begins, on all ranks.
    fn start(&self, optimizer: &mut AdamW) -> Result<Progress> {
        let new = || Progress {
            stopping: EarlyStopping::new(
                self.options.config.early_stopping_patience,
                self.options.metric.lower_is_better,
            ),
            ..Progress::default()
        };
        let progress = self.group.from_leader(|| {
            self.resume_from.as_ref().map(|path| checkpoint::restore(path, self.classifier, optimizer)).transpose()
        })?;
        if progress.is_some() {
            data_parallel::share_values(self.group, self.classifier.params())?;
            data_parallel::share_moments(self.group, optimizer)?;
        }
        Ok(progress.unwrap_or_else(new))
    }

    /// The steps after which the epochs end whose mean is taken, if so many were evaluated; none without
    /// `train.average_last`.
    fn averaged(&self, evaluations: usize) -> Vec<usize> {
        let count = self.options.config.average_last.unwrap_or(0).min(evaluations);
        (evaluations - count..evaluations).map(|epoch| self.first_step(epoch + 1)).collect()
    }

    fn describe_step(&self, loss: f64, progress: &Progress) -> String {
        let rate = progress.examples as f64 / progress.elapsed;
        format!("epoch {:.2} loss {loss:.4} {rate:.1} examples/s", self.epoch_of(progress))
    }

    /// Saves a checkpoint within an epoch: every `save_steps`, and before the program stops.
    fn save_if_due_or_stopped(&self, optimizer: &AdamW, progress: &mut Progress, log: &Log) -> Result<()> {
        // At an epoch's end its evaluation comes first: it decides which epoch is the best.
        if progress.step == self.first_step(progress.evaluations + 1) {
            return Ok(());
        }
        let is_due = self.options.config.save_steps.is_some_and(|steps| progress.step.is_multiple_of(steps));
        let stop = self.group.check_interrupt();
        if is_due || stop.is_err() {
            self.save(optimizer, progress, log, None)?;
        }
        Ok(stop?)
    }

    /// The step with which a pass starts, or with which training ends.
    fn first_step(&self, epoch: usize) -> usize {
        (epoch * self.options.config.steps_per_epoch(self.train.len())).min(self.options.total_steps)
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
        let of_head = self.options.head_schedule.as_ref().map_or(rate, |schedule| schedule.rate(progress.step));
        let norm = self.update(optimizer, window.len(), [rate, of_head], progress)?;
        progress.step += 1;
        failpoint::reached(Site::Step)?;
        if progress.step.is_multiple_of(self.options.config.logging_steps) {
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

    /// Sums the gradients of a window's micro-batches; returns the sum of their mean losses.
    fn accumulate(&self, window: &[&[usize]], progress: &mut Progress, bar: &mut ProgressMeter) -> Result<f64> {
        // Each rank fills in its own.
        let mut losses = vec![0.0; window.len()];
        TreeSum::new(self.group, self.classifier.params(), window.len()).run(|index| {
            bar.part(index, window.len(), "micro-batch");
            let samples = window[index].iter().map(|&index| &self.train[index]);
            let batch = Sample::batch(samples, self.classifier)?;
            let key = DropoutKey { seed: self.options.seed, micro_batch: progress.micro_batch + u32::try_from(index)? };
            losses[index] = forward_backward(self.classifier, &batch, key)
                .map_err(|error| self.explain(error, &batch, progress))?;
            Ok(())
        })?;
        let own = losses[self.group.share(window.len())].to_vec();
        let losses = self.group.gather_bytes(bytemuck::cast_slice(&own).to_vec());
        let losses: Vec<f64> = losses.iter().flat_map(|own| bytemuck::pod_collect_to_vec(own)).collect();
        let rows = window.iter().copied().flatten();
        progress.micro_batch += u32::try_from(window.len())?;
        progress.examples += rows.clone().count();
        progress.tokens += rows.map(|&row| self.train[row].tokens.token_ids.len()).sum::<usize>();
        let sum: f64 = losses.iter().sum();
        progress.loss_sum += sum;
        progress.of_epoch.loss += sum;
        progress.of_epoch.micro_batches += window.len();
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
            let clip = if options.config.max_grad_norm > 0.0 { "" } else { ", or set train.max_grad_norm=1" };
            format!(
                "{at}: the training diverged; train.learning_rate is {}: start again with a lower one{clip}, or with \
                 model.torch_dtype=bfloat16 if it is float16",
                options.schedule.learning_rate
            )
        };
        NotFinite { message, sample: None }.into()
    }

    /// Describes the batch of a failed step: memory, above all, depends on it.
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
    fn update(&self, optimizer: &mut AdamW, micro_batches: usize, rates: [f64; 2], progress: &Progress) -> Result<f64> {
        if let Some(param) = self.classifier.params().iter().find(|param| !param.has_gradient()) {
            anyhow::bail!(
                "`{}` is trained but received no gradient; this is a bug in llmcls, please report it",
                param.name()
            );
        }
        let scale = window_scale(self.options.config.accumulation_reduction, micro_batches);
        let norm = scale * gradient_norm(self.classifier.params())?;
        if !norm.is_finite() {
            return Err(self.not_finite(&format!("the gradient's norm is {norm}"), progress));
        }
        optimizer.step_groups(rates, scale * clip_factor(norm, self.options.config.max_grad_norm))?;
        Ok(norm)
    }

    /// Scores the validation split after a pass, and notes what that means.
    fn evaluate(&self, progress: &mut Progress) -> Result<(EvalMetrics, Scored)> {
        let scored = score(
            self.classifier,
            self.validation,
            self.labels,
            &Decision::above(self.thresholds),
            self.options.config.eval_batch_size(),
            self.group,
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
        let of_epoch = std::mem::take(&mut progress.of_epoch);
        self.console.say(format!(
            "seed {} epoch {epoch:.2}: loss {:.4}, validation loss {:.4}, f1_micro {:.4}, f1_macro {:.4}{}",
            self.options.seed,
            of_epoch.loss / of_epoch.micro_batches as f64,
            evaluation.loss,
            scored.scores.f1_micro,
            scored.scores.f1_macro,
            if verdict.is_best { " (best)" } else { "" }
        ));
        metrics.epoch = Some(epoch);
        metrics.step = Some(progress.step);
        Ok((metrics, scored))
    }

    fn save(&self, optimizer: &AdamW, progress: &mut Progress, log: &Log, metrics: Option<&EvalMetrics>) -> Result<()> {
        let (Some(directory), Some(history)) = (self.directory, &log.history) else { return Ok(()) };
        progress.history_lines = history.sync()?;
        let checkpoint = TrainingState {
            classifier: self.classifier,
            lora: self.lora,
            base: self.base,
            optimizer,
            progress,
            inputs: &self.inputs,
            metrics,
        };
        checkpoint.save(&directory.checkpoint(progress.step))?;
        self.remove_old_checkpoints(directory, progress)
    }

    /// Keeps the newest checkpoints within the limit, and the best, as transformers does: a limit
    /// of 1 keeps both the best and the newest.
    fn remove_old_checkpoints(&self, directory: &SeedDir, progress: &Progress) -> Result<()> {
        let Some(limit) = self.options.config.save_total_limit else { return Ok(()) };
        let (best, averaged) = (progress.best.as_ref(), self.averaged(progress.evaluations));
        let mut others = checkpoint::list(directory.path())?;
        others.retain(|(step, _)| best.is_none_or(|best| best.step != *step));
        let is_newest_best = best.is_some_and(|best| others.iter().all(|&(step, _)| step < best.step));
        let kept = match best {
            Some(_) if is_newest_best => limit - 1,
            Some(_) => limit.max(2) - 1,
            None => limit,
        };
        let old = &others[..others.len().saturating_sub(kept)];
        for (_, path) in old.iter().filter(|(step, _)| !averaged.contains(step)) {
            fs::remove_dir_all(path).with_context(|| format!("{}: cannot remove", path.display()))?;
        }
        Ok(())
    }

    /// Settings for TensorBoard's table of runs.
    fn hyperparameters(&self) -> Vec<(&'static str, Hyperparameter)> {
        let options = &self.options;
        let number = |value: f64| Hyperparameter::Number(value);
        let mut chosen = vec![
            ("base", Hyperparameter::Text(self.base.name.to_owned())),
            ("seed", number(f64::from(options.seed))),
            ("batch_size", number(options.config.batch_size as f64)),
            ("gradient_accumulation_steps", number(options.config.gradient_accumulation_steps as f64)),
            ("learning_rate", number(options.schedule.learning_rate)),
            ("warmup_steps", number(options.schedule.warmup_steps as f64)),
            ("weight_decay", number(options.config.weight_decay)),
            ("max_grad_norm", number(options.config.max_grad_norm)),
            ("steps", number(options.total_steps as f64)),
        ];
        if !self.lora.trains_base {
            chosen.extend([
                ("lora_r", number(self.lora.rank as f64)),
                ("lora_alpha", number(self.lora.alpha)),
                ("lora_dropout", number(self.lora.dropout)),
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

/// The factor of the sum of a window's gradients.
#[must_use]
pub fn window_scale(reduction: Reduction, micro_batches: usize) -> f64 {
    match reduction {
        // Divide by the micro-batches in this window: the last one may be short.
        Reduction::Mean => 1.0 / micro_batches as f64,
        Reduction::Sum => 1.0,
    }
}

/// Storage of AdamW's moments: 8 bits if the base is in 4 bits, unless that is switched off.
#[must_use]
pub fn moment_storage(use_4bit: bool, train: &TrainConfig) -> MomentStorage {
    if use_4bit && train.optim_8bit_when_4bit { MomentStorage::EightBit } else { MomentStorage::Float32 }
}
