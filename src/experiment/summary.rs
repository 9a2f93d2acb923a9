//! A run's account of itself: `summary.json`, `environment.json`, and the last lines on the terminal.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use super::dataset::Dataset;
use super::prepared::Experiment;
use crate::cluster;
use crate::console::{Console, bytes};
use crate::device;
use crate::kernels::cpu::memory;
use crate::kernels::device::Device;
use crate::metrics::METRICS;

use crate::run::records;
use crate::run::results::{Memory, OverSeeds, Parameters, RowCounts, RunSummary, SeedResult, SplitResult};
use crate::secret;

/// The run's results: each seed's, the best seed, and mean and deviation over seeds.
pub fn summarize(experiment: &Experiment<'_>, seeds: Vec<SeedResult>) -> Result<RunSummary> {
    let Experiment { metric, classifier, .. } = experiment;
    let sign = if metric.lower_is_better { -1.0 } else { 1.0 };
    let worth = |seed: &SeedResult| sign * seed.validation.metrics.get(metric);
    // The first of equals: `max_by` would take the last.
    let best = seeds.iter().rev().max_by(|a, b| worth(a).total_cmp(&worth(b)));
    let best = best.context("no seed was trained")?;
    let rows = |split: &Dataset| split.examples.len();
    Ok(RunSummary {
        run_name: experiment.config.exp.run_name.clone(),
        metric_for_best_model: experiment.config.train.metric_for_best_model.clone(),
        best_seed: best.seed,
        labels: experiment.file.labels.clone(),
        rows: RowCounts {
            train: rows(&experiment.train),
            validation: rows(&experiment.validation),
            test: experiment.test.as_ref().map(rows),
        },
        memory: Memory {
            base_bytes: classifier.base().bytes,
            adapter_bytes: 4 * classifier.trained_parameters(),
            optimizer_bytes: seeds[0].optimizer_bytes,
            peak_bytes: memory::peak_bytes(),
        },
        parameters: Parameters { frozen: classifier.base().parameters, trained: classifier.trained_parameters() },
        over_seeds: over_seeds(&seeds),
        baseline: None,
        seeds,
    })
}

/// Mean and deviation of the metrics that all seeds have.
fn over_seeds(seeds: &[SeedResult]) -> BTreeMap<String, OverSeeds> {
    let validation: Vec<&SplitResult> = seeds.iter().map(|seed| &seed.validation).collect();
    let test: Vec<&SplitResult> = seeds.iter().filter_map(|seed| seed.test.as_ref()).collect();
    let mut found = BTreeMap::new();
    for (split, results) in [("validation", validation), ("test", test)] {
        for metric in METRICS.iter().filter(|_| results.len() == seeds.len()) {
            let values: Vec<f64> = results.iter().map(|result| result.metrics.get(metric)).collect();
            // JSON has no NaN.
            if values.iter().all(|value| value.is_finite()) {
                found.insert(format!("{split}_{}", metric.name), OverSeeds::new(&values));
            }
        }
    }
    found
}

/// Says how much memory the run took.
pub fn say(summary: &RunSummary, console: Console) {
    let Memory { base_bytes, adapter_bytes, optimizer_bytes, peak_bytes } = summary.memory;
    console.say(format!(
        "memory: base {}, adapters {}, optimizer {}, peak {}",
        bytes(base_bytes as u64),
        bytes(adapter_bytes as u64),
        bytes(optimizer_bytes as u64),
        peak_bytes.map_or_else(|| "?".to_owned(), bytes)
    ));
}

/// Writes `environment.json`: what ran where. Written again at the end, for the peak.
pub fn write_environment(path: &Path, device: &Device) -> Result<()> {
    let gpu = device.description();
    records::write_json(
        path,
        &json!({
            "version": env!("CARGO_PKG_VERSION"),
            "commit": option_env!("LLMCLS_COMMIT"),
            "device": if gpu.is_some() { "cuda" } else { "cpu" },
            "gpu": gpu.as_ref().map(|gpu| json!({ "name": gpu.name, "driver_cuda": gpu.driver, "peak_memory_bytes": gpu.peak_bytes })),
            "cpu": device::cpu_name(),
            "compute": if gpu.is_some() { "gpu" } else { device.compute().name() },
            "instructions": device.compute().instructions(),
            "ranks": cluster::member().map_or(1, |member| member.hosts.len()),
            "hosts": cluster::member().map(|member| &member.hosts),
            "threads": rayon::current_num_threads(),
            "os": std::env::consts::OS,
            "command_line": redacted_command_line(),
            "peak_memory_bytes": memory::peak_bytes(),
        }),
    )
}

/// The command line, without the value of a token.
fn redacted_command_line() -> Vec<String> {
    std::env::args()
        .map(|argument| {
            let (flag, setting) = match argument.strip_prefix("--set=") {
                Some(setting) => ("--set=", setting),
                None => ("", argument.as_str()),
            };
            let shown = setting.split_once('=').map_or(argument.clone(), |(key, value)| {
                // A path may hold a word that is like one for a token, and an `=`.
                if key.contains('/') { argument.clone() } else { format!("{flag}{}", secret::setting(key, value)) }
            });
            secret::masked(&shown)
        })
        .collect()
}
