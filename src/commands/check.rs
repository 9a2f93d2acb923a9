//! `llmcls check`: checks a configuration and its data, and estimates memory and time.

use std::fmt::Write;
use std::time::Instant;

use anyhow::Result;

use super::configuration;
use crate::cli::ConfigArgs;
use crate::cluster::Group;
use crate::console::{Console, bytes, duration, print};
use crate::evaluation::{Sample, evaluate};
use crate::exit::Usage;
use crate::experiment::base_model::BaseModel;
use crate::experiment::dataset::Dataset;
use crate::experiment::prepared::Experiment;
use crate::kernels::device::Device;
use crate::metrics::Decision;
use crate::model::batch::Batch;
use crate::ops::tape::DropoutKey;
use crate::training::trainer::forward_backward;

const TIMED: usize = 3;

/// Checks a configuration and prints what was found.
pub fn run(args: &ConfigArgs, device: &Device, console: Console) -> Result<()> {
    let config = configuration::load(args)?.ok_or_else(|| Usage("check needs --config FILE".to_owned()))?;
    BaseModel::refuse_unused_weights(&config.model, console)?;
    let experiment = Experiment::prepare(&config, device, &Group::alone(), console)?;
    let mut report = String::new();
    describe_data(&experiment, &mut report)?;
    describe_model(&experiment, &mut report)?;
    describe_time(&experiment, &mut report)?;
    print(&report)
}

/// Each label's share of each split, and the lengths of the texts.
fn describe_data(experiment: &Experiment<'_>, out: &mut String) -> Result<()> {
    let mut splits = vec![("train", &experiment.train), ("validation", &experiment.validation)];
    splits.extend(experiment.test.as_ref().map(|test| ("test", test)));
    let width = experiment.file.labels.iter().map(|label| label.chars().count()).max().unwrap_or(0).max(12);
    write!(out, "{:width$}", "positive rows")?;
    for (name, _) in &splits {
        write!(out, "  {name:>16}")?;
    }
    for (index, label) in experiment.file.labels.iter().enumerate() {
        write!(out, "\n{label:width$}")?;
        for (_, split) in &splits {
            let count = split.examples.iter().filter(|example| example.labels[index] > 0.5).count();
            write!(out, "  {count:>8} ({:>4.1}%)", 100.0 * count as f64 / split.examples.len() as f64)?;
        }
    }
    write!(out, "\n{:width$}", "rows")?;
    for (_, split) in &splits {
        write!(out, "  {:>16}", split.examples.len())?;
    }
    writeln!(out)?;
    for (name, split) in splits {
        describe_lengths(name, split, experiment.file.max_length, out)?;
    }
    Ok(())
}

fn describe_lengths(name: &str, split: &Dataset, max_length: usize, out: &mut String) -> Result<()> {
    let mut lengths: Vec<usize> = split.samples.iter().map(length).collect();
    lengths.sort_unstable();
    let at = |share: f64| lengths[((lengths.len() - 1) as f64 * share) as usize];
    let cut = split.samples.iter().filter(|sample| sample.tokens.was_cut).count();
    writeln!(
        out,
        "{name}: {} tokens in the median, {} at 95%, {} at most; {cut} texts ({:.1}%) are cut at {max_length}",
        at(0.5),
        at(0.95),
        at(1.0),
        100.0 * cut as f64 / lengths.len() as f64
    )?;
    Ok(())
}

fn describe_model(experiment: &Experiment<'_>, out: &mut String) -> Result<()> {
    let classifier = &experiment.classifier;
    let adapted = classifier.params().iter().filter(|param| param.name().ends_with("lora_A.weight")).count();
    let (frozen, trained) = (classifier.base().parameters, classifier.trained_parameters());
    writeln!(
        out,
        "{}: {frozen} frozen parameters; {trained} trained ({:.2}%) in {adapted} adapted modules and the head",
        experiment.file.base_title(),
        100.0 * trained as f64 / (frozen + trained) as f64
    )?;
    let memory = experiment.memory_estimate();
    writeln!(
        out,
        "memory: about {} at the peak: base {}, adapters and gradients {}, optimizer {}, activations of the largest \
         batch {}",
        bytes(memory.total()),
        bytes(memory.base),
        bytes(memory.trained),
        bytes(memory.optimizer),
        bytes(memory.activations)
    )?;
    Ok(())
}

/// Times a few micro-batches and an evaluation batch.
fn describe_time(experiment: &Experiment<'_>, out: &mut String) -> Result<()> {
    let (samples, seeds) = (&experiment.train.samples, &experiment.config.exp.seeds);
    let options = experiment.options(seeds[0]);
    experiment.classifier.initialize(seeds[0])?;
    let order = options.order(samples, 0);
    let (mut seconds, mut tokens) = (0.0, 0);
    for (index, batch) in order.chunks(options.config.batch_size).take(1 + TIMED).enumerate() {
        let batch =
            Batch::new(batch.iter().map(|&index| (&*samples[index].tokens.token_ids, &*samples[index].labels)))?;
        let begin = Instant::now();
        forward_backward(&experiment.classifier, &batch, DropoutKey { seed: seeds[0], micro_batch: index as u32 })?;
        // The first one also warms up caches and allocator; it counts only where it is alone.
        if index > 0 || order.len() <= options.config.batch_size {
            seconds += begin.elapsed().as_secs_f64();
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
    let evaluating = ((epochs.ceil() + 1.0) * total(validation) + test) / evaluation_rate;
    writeln!(
        out,
        "time: about {} for {} steps of {} seed{}, unless training stops early ({training_rate:.0} tokens/s in training, \
         {evaluation_rate:.0} in evaluation)",
        duration(seeds.len() as f64 * (training + evaluating)),
        options.total_steps,
        seeds.len(),
        if seeds.len() == 1 { "" } else { "s" }
    )?;
    Ok(())
}

fn length(sample: &Sample) -> usize {
    sample.tokens.token_ids.len()
}
