//! Puts together the facts for `report.html` of a run or an evaluation.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::dataset::Split;
use super::prepared::Experiment;
use super::summary::peak_memory;
use crate::atomic_file;
use crate::console::{bytes, duration};
use crate::device;
use crate::evaluation::Sample;
use crate::kernels::device::Device;
use crate::metrics::Scores;
use crate::metrics::bootstrap::Intervals;
use crate::run::directory::RunDir;
use crate::run::records;
use crate::run::report::Report;

/// Draws of the bootstrap: the same in every report.
pub const BOOTSTRAP_SEED: u32 = 0;

/// Lengths of samples, and how many were cut.
pub fn lengths(samples: &[Sample]) -> (Vec<usize>, usize) {
    let lengths = samples.iter().map(|sample| sample.tokens.token_ids.len()).collect();
    (lengths, samples.iter().filter(|sample| sample.tokens.was_cut).count())
}

/// The lines of a seed's `history.jsonl`; none if there is no such file.
pub fn history(path: &Path) -> Result<Vec<Value>> {
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("{}: not JSON", path.display())))
        .collect()
}

/// The machine, as far as it matters for time and energy.
pub fn machine(device: &Device) -> Vec<(&'static str, String)> {
    let gpu = device.description();
    let mut facts = vec![
        ("llmcls", env!("CARGO_PKG_VERSION").to_owned()),
        match &gpu {
            Some(gpu) => ("device", format!("GPU: {}, CUDA {}", gpu.name, gpu.driver)),
            None => ("device", format!("CPU: {}, {} threads", device::cpu_name(), rayon::current_num_threads())),
        },
    ];
    facts.extend(gpu.map(|gpu| ("peak memory of the GPU", bytes(gpu.peak_bytes))));
    facts.extend(peak_memory().as_u64().map(|peak| ("peak memory", bytes(peak))));
    facts
}

/// Writes a run's report: its best seed on the test rows, or on validation where there are none.
pub fn write(experiment: &Experiment<'_>, run: &RunDir, summary: &Value, shows_texts: bool) -> Result<()> {
    let labels = &experiment.file.labels;
    let seeds = summary["seeds"].as_array().context("the summary has no seeds")?;
    let best = seeds.iter().find(|seed| seed["seed"] == summary["best_seed"]).or(seeds.first());
    let best = best.context("the summary has no seeds")?;
    let number = best["seed"].as_u64().and_then(|seed| u32::try_from(seed).ok()).context("a seed is no number")?;
    let directory = run.seed(number)?;
    let (split, rows): (&str, &Split) = match &experiment.test {
        Some(test) => ("test", test),
        None => ("validation", &experiment.validation),
    };
    let predictions = records::read_predictions(&directory.predictions(split), labels)?;
    let scores = Scores::new(&predictions, labels);
    let thresholds: Vec<f32> = serde_json::from_value(best["thresholds"].clone())?;
    let (lengths, cut) = lengths(&rows.samples);
    let mut curves = Vec::new();
    for seed in &experiment.config.exp.seeds {
        curves.push((seed.to_string(), history(&run.seed(*seed)?.history())?));
    }
    let mut facts = machine(&experiment.base.device);
    let seconds: f64 = seeds.iter().filter_map(|seed| seed["train_runtime"].as_f64()).sum();
    facts.push(("training time, all seeds", duration(seconds)));
    facts.push(("seed of this report", number.to_string()));
    facts.push(("base", experiment.file.base_title()));
    for (name, key) in [("frozen parameters", "frozen"), ("trained parameters", "trained")] {
        facts.push((name, summary["parameters"][key].to_string()));
    }
    let rate = |key: &str| best[key].as_f64().map_or_else(|| "–".to_owned(), |rate| format!("{rate:.1}"));
    facts.push((
        "examples, tokens a second",
        format!("{}, {}", rate("train_samples_per_second"), rate("train_tokens_per_second")),
    ));
    let report = Report {
        title: format!("{} on {}", experiment.file.base_title(), experiment.config.data.dataset_name),
        split,
        labels,
        thresholds: &thresholds,
        examples: &rows.examples,
        lengths: &lengths,
        cut,
        max_length: experiment.file.max_length,
        intervals: Intervals::new(&predictions, BOOTSTRAP_SEED),
        predictions: &predictions,
        scores: &scores,
        loss: best[split]["eval_loss"].as_f64().unwrap_or(f64::NAN),
        history: curves,
        seeds: seeds.clone(),
        comparison: Vec::new(),
        facts,
        config: Some(experiment.config.to_yaml()),
        shows_texts,
    };
    atomic_file::write_bytes(&run.report(), report.to_html().as_bytes())
}
