//! What a run says of itself: `summary.json`, `environment.json`, and the last lines on the terminal.

use anyhow::Result;
use serde_json::{Value, json};

use super::prepared::Experiment;
use crate::console::{Console, bytes};
use crate::device;
use crate::kernels::cpu::memory;
use crate::kernels::device::Device;
use crate::metrics::{METRICS, lower_is_better};
use crate::run::directory::RunDir;
use crate::run::records;
use crate::secret;
use crate::training::trainer::TrainOutcome;

/// What training one seed took.
pub fn seed_record(seed: u32, outcome: &TrainOutcome) -> Value {
    json!({
        "seed": seed,
        "train_loss": outcome.train_loss,
        "train_runtime": outcome.runtime,
        "train_samples_per_second": outcome.examples as f64 / outcome.runtime,
        "train_steps_per_second": outcome.steps as f64 / outcome.runtime,
        "train_tokens_per_second": outcome.tokens as f64 / outcome.runtime,
        "steps": outcome.steps,
        "epoch": outcome.epoch,
        "best_epoch": outcome.best_epoch,
    })
}

/// The run's results: each seed's, the best seed, and mean and deviation over seeds.
pub fn summarize(experiment: &Experiment<'_>, seeds: Vec<Value>) -> Value {
    let key = format!("eval_{}", experiment.metric());
    let sign = if lower_is_better(&key) { -1.0 } else { 1.0 };
    let metric = |seed: &Value| sign * seed["validation"][&key].as_f64().unwrap_or(f64::NEG_INFINITY);
    // The first of equals: `max_by` would take the last.
    let best = seeds.iter().rev().max_by(|a, b| metric(a).total_cmp(&metric(b)));
    let best_seed = best.map_or(Value::Null, |seed| seed["seed"].clone());
    let mut over_seeds = serde_json::Map::new();
    for split in ["validation", "test"] {
        for name in METRICS {
            let values: Option<Vec<f64>> =
                seeds.iter().map(|seed| seed[split][format!("eval_{name}")].as_f64()).collect();
            if let Some(values) = values.filter(|values| !values.is_empty()) {
                let (mean, sd) = mean_and_deviation(&values);
                over_seeds.insert(format!("{split}_{name}"), json!({"mean": mean, "sd": sd}));
            }
        }
    }
    let optimizer_bytes = seeds.first().map_or(Value::Null, |seed| seed["optimizer_bytes"].clone());
    json!({
        "run_name": experiment.config.exp.run_name,
        "metric_for_best_model": experiment.config.train.metric_for_best_model,
        "best_seed": best_seed,
        "labels": experiment.file.labels,
        "rows": {
            "train": experiment.train.examples.len(),
            "validation": experiment.validation.examples.len(),
            "test": experiment.test.as_ref().map(|test| test.examples.len()),
        },
        "memory": {
            "base_bytes": experiment.classifier.base().bytes,
            "adapter_bytes": 4 * experiment.classifier.trained_parameters(),
            "optimizer_bytes": optimizer_bytes,
            "peak_bytes": peak_memory(),
        },
        "parameters": {
            "frozen": experiment.classifier.base().parameters,
            "trained": experiment.classifier.trained_parameters(),
        },
        "over_seeds": over_seeds,
        "seeds": seeds,
    })
}

/// Mean, and deviation with n − 1; null for one value.
fn mean_and_deviation(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt()))
}

/// Says the run's results.
pub fn say(summary: &Value, console: Console) {
    for split in ["validation", "test"] {
        for name in ["f1_micro", "f1_macro"] {
            let entry = &summary["over_seeds"][format!("{split}_{name}")];
            let Some(mean) = entry["mean"].as_f64() else { continue };
            let deviation = entry["sd"].as_f64().map_or_else(String::new, |sd| format!(" ± {sd:.4}"));
            console.say(format!("{split} {name} {mean:.4}{deviation}"));
        }
    }
    let memory = |key: &str| summary["memory"][key].as_u64().map_or_else(|| "?".to_owned(), bytes);
    console.say(format!(
        "memory: base {}, adapters {}, optimizer {}, peak {}",
        memory("base_bytes"),
        memory("adapter_bytes"),
        memory("optimizer_bytes"),
        memory("peak_bytes")
    ));
}

/// Writes `environment.json`: what ran where. Written again at the end, for the peak.
pub fn write_environment(run: &RunDir, device: &Device) -> Result<()> {
    let gpu = device.description();
    records::write_json(
        &run.environment(),
        &json!({
            "version": env!("CARGO_PKG_VERSION"),
            "commit": option_env!("LLMCLS_COMMIT"),
            "device": if gpu.is_some() { "cuda" } else { "cpu" },
            "gpu": gpu.as_ref().map(|gpu| json!({ "name": gpu.name, "driver_cuda": gpu.driver, "peak_memory_bytes": gpu.peak_bytes })),
            "cpu": device::cpu_name(),
            "compute": if gpu.is_some() { "gpu" } else { device.compute().name() },
            "instructions": device.compute().instructions(),
            "threads": rayon::current_num_threads(),
            "os": std::env::consts::OS,
            "command_line": redacted_command_line(),
            "peak_memory_bytes": peak_memory(),
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

/// Peak memory so far, for records.
pub fn peak_memory() -> Value {
    memory::peak_bytes().map_or(Value::Null, |bytes| json!(bytes))
}
