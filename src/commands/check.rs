//! `llmcls check`: everything before the first step, and what training will take.

use std::time::Instant;

use anyhow::Result;

use super::configuration;
use crate::cli::CheckArgs;
use crate::cluster::Group;
use crate::console::{Console, print, print_json};
use crate::evaluation::{Sample, evaluate};
use crate::exit::Usage;
use crate::experiment::base_model::BaseModel;
use crate::experiment::checked::{Checked, LabelRows, Lengths, TimeEstimate};
use crate::experiment::dataset::Dataset;
use crate::experiment::folds;
use crate::experiment::prepared::Experiment;
use crate::experiment::yardstick::{self, Lesson};
use crate::kernels::device::Device;
use crate::metrics::Decision;
use crate::ops::tape::DropoutKey;
use crate::run::results::Parameters;
use crate::training::trainer::forward_backward;

/// Micro-batches that are timed.
const TIMED: usize = 3;

/// Checks a configuration and prints what was found.
///
/// # Errors
/// If training could not start with it.
pub fn run(args: &CheckArgs, device: &Device, console: Console) -> Result<()> {
    let config = configuration::load(&args.config)?.ok_or_else(|| Usage("check needs --config FILE".to_owned()))?;
    BaseModel::refuse_unused_weights(&config.model, console)?;
    let experiment = Experiment::prepare(&config, device, &Group::alone(), console)?;
    let checked = check(&experiment, args.baseline, console)?;
    match args.json {
        true => print_json(&serde_json::to_value(&checked)?),
        false => print(&checked.to_text()),
    }
}

fn check(experiment: &Experiment<'_>, with_baseline: bool, console: Console) -> Result<Checked> {
    let splits = splits(experiment);
    let rows = |label: usize, split: &Dataset| split.examples.iter().filter(|row| row.labels[label] > 0.5).count();
    let labels = experiment.file.labels.iter().enumerate().map(|(index, label)| LabelRows {
        label: label.clone(),
        positive: splits.iter().map(|(_, split)| rows(index, split)).collect(),
    });
    let classifier = &experiment.classifier;
    let baseline = match with_baseline {
        true => {
            let (name, rows) = experiment.reported();
            let yardstick = yardstick::measure(Lesson::of(experiment), (name, &rows.examples), None, console)?;
            Some(yardstick)
        }
        false => None,
    };
    let cache = experiment.cache_plan()?;
    Ok(Checked {
        base: experiment.file.base_title(),
        labels: labels.collect(),
        splits: splits.iter().map(|(name, split)| lengths(experiment, name, split)).collect::<Result<_>>()?,
        max_length: experiment.file.max_length,
        limit: experiment.file.limit(),
        longest: experiment.base.config.max_tokens,
        parameters: Parameters { frozen: classifier.base().parameters, trained: classifier.trained_parameters() },
        adapted_modules: classifier.params().iter().filter(|param| param.name().ends_with("lora_A.weight")).count(),
        memory: experiment.memory_estimate().into(),
        time: time(experiment, cache.is_some())?,
        cache,
        baseline,
    })
}

fn splits<'a>(experiment: &'a Experiment<'_>) -> Vec<(&'static str, &'a Dataset)> {
    let mut splits = vec![("train", &experiment.train), ("validation", &experiment.validation)];
    splits.extend(experiment.test.as_ref().map(|test| ("test", test)));
    splits
}

/// Lengths before cutting.
fn lengths(experiment: &Experiment<'_>, name: &str, split: &Dataset) -> Result<Lengths> {
    let cut: Vec<&str> = split
        .examples
        .iter()
        .zip(&split.samples)
        .filter(|(_, sample)| sample.tokens.was_cut)
        .map(|(example, _)| example.text.as_str())
        .collect();
    let whole = split.samples.iter().filter(|sample| !sample.tokens.was_cut).map(length);
    let mut lengths: Vec<usize> = whole.chain(experiment.encoder.lengths(cut.clone())?).collect();
    lengths.sort_unstable();
    Ok(Lengths::new(name, &lengths, cut.len()))
}

/// Times a few micro-batches and an evaluation batch.
fn time(experiment: &Experiment<'_>, is_cached: bool) -> Result<TimeEstimate> {
    let (samples, seeds) = (&experiment.train.samples, &experiment.config.exp.seeds);
    let options = experiment.options(seeds[0]);
    experiment.classifier.initialize(seeds[0])?;
    let order = options.order(samples, 0);
    let (mut seconds, mut tokens, mut frozen_seconds) = (0.0, 0, 0.0);
    for (index, batch) in order.chunks(options.config.batch_size).take(1 + TIMED).enumerate() {
        let mut batch = Sample::batch(batch.iter().map(|&index| &samples[index]), &experiment.classifier)?;
        let begin = Instant::now();
        if is_cached {
            batch.frozen = Some(experiment.classifier.frozen_output(&batch)?);
        }
        let frozen = begin.elapsed().as_secs_f64();
        let begin = Instant::now();
        forward_backward(&experiment.classifier, &batch, DropoutKey { seed: seeds[0], micro_batch: index as u32 })?;
        // The first one also warms up caches and allocator; it counts only where it is alone.
        if index > 0 || order.len() <= options.config.batch_size {
            seconds += begin.elapsed().as_secs_f64();
            frozen_seconds += frozen;
            tokens += batch.token_ids.len();
        }
    }
    let training_rate = tokens as f64 / seconds;
    let validation = &experiment.validation.samples;
    let part = &validation[..validation.len().min(4 * options.config.eval_batch_size())];
    let begin = Instant::now();
    evaluate(
        &experiment.classifier,
        part,
        &Decision::above(&experiment.file.thresholds),
        options.config.eval_batch_size(),
        &Group::alone(),
        |_| (),
    )?;
    let evaluation_rate = part.iter().map(length).sum::<usize>() as f64 / begin.elapsed().as_secs_f64();

    let total = |samples: &[Sample]| samples.iter().map(length).sum::<usize>() as f64;
    let per_epoch = options.config.steps_per_epoch(samples.len());
    let epochs = options.total_steps as f64 / per_epoch as f64;
    let test = experiment.test.as_ref().map_or(0.0, |test| total(&test.samples));
    let training = epochs * total(samples) / training_rate;
    // The frozen layers are computed once, for all seeds.
    let of_frozen = frozen_seconds / tokens as f64;
    let once = of_frozen * (total(samples) + total(validation) + test);
    let evaluating = ((epochs.ceil() + 1.0) * total(validation) + test) * (1.0 / evaluation_rate - of_frozen).max(0.0);
    let of_folds = experiment.config.exp.folds.map_or(0.0, folds::trainings);
    Ok(TimeEstimate {
        seconds: once + (seeds.len() as f64 + of_folds) * (training + evaluating),
        steps: options.total_steps,
        seeds: seeds.len(),
        folds: experiment.config.exp.folds,
        training_tokens_per_second: training_rate,
        evaluation_tokens_per_second: evaluation_rate,
    })
}

fn length(sample: &Sample) -> usize {
    sample.tokens.token_ids.len()
}
