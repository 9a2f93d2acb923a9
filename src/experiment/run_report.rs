//! Puts together the facts for `report.html` of a run or an evaluation.

use anyhow::{Context, Result};

use super::prepared::Experiment;
use crate::atomic_file;
use crate::console::{bytes, duration};
use crate::device;
use crate::evaluation::Sample;
use crate::kernels::cpu::memory;
use crate::kernels::device::Device;
use crate::metrics::bootstrap::Intervals;
use crate::model::classifier::Problem;
use crate::run::directory::RunDir;
use crate::run::records;
use crate::run::report::Report;
use crate::run::results::RunSummary;

/// Draws of the bootstrap: the same in every report.
pub const BOOTSTRAP_SEED: u32 = 0;

/// Lengths of samples, and how many were cut.
pub fn lengths(samples: &[Sample]) -> (Vec<usize>, usize) {
    let lengths = samples.iter().map(|sample| sample.tokens.token_ids.len()).collect();
    (lengths, samples.iter().filter(|sample| sample.tokens.was_cut).count())
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
    facts.extend(memory::peak_bytes().map(|peak| ("peak memory", bytes(peak))));
    facts
}

/// Says which run and seed a report is of, and when and by what it was made.
fn origin(run: &RunDir, summary: &RunSummary, seed: u32) -> String {
    let of_seeds = match summary.seeds.len() {
        1 => String::new(),
        count => format!(", the best of {count} on validation: all scores but the table of seeds are its own"),
    };
    let name = summary.run_name.as_ref().map_or_else(String::new, |name| format!("{name}, "));
    let directory = run.path().file_name().unwrap_or_default().to_string_lossy();
    format!(
        "{name}{directory}, seed {seed}{of_seeds}. {} by llmcls {}.",
        jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC"),
        env!("LLMCLS_VERSION")
    )
}

/// Writes a run's report: its best seed on the test rows, or on validation where there are none.
pub fn write(experiment: &Experiment<'_>, run: &RunDir, summary: &RunSummary, shows_texts: bool) -> Result<()> {
    let labels = &experiment.file.labels;
    let best =
        summary.seeds.iter().find(|seed| seed.seed == summary.best_seed).context("the best seed has no result")?;
    let directory = run.seed(best.seed)?;
    let (split, rows) = experiment.reported();
    let predictions = records::read_predictions(&directory.predictions(split), labels)?;
    let result = best.reported();
    let scores = result.scores();
    let (lengths, cut) = lengths(&rows.samples);
    let mut curves = Vec::new();
    for seed in &experiment.config.exp.seeds {
        curves.push((seed.to_string(), records::read_history(&run.seed(*seed)?.history())?));
    }
    let mut facts = machine(&experiment.base.device);
    let seconds: f64 = summary.seeds.iter().map(|seed| seed.train_runtime).sum();
    facts.push(("training time, all seeds", duration(seconds)));
    facts.push(("seed of this report", best.seed.to_string()));
    facts.push(("base", experiment.file.base_title()));
    facts.push(("frozen parameters", summary.parameters.frozen.to_string()));
    facts.push(("trained parameters", summary.parameters.trained.to_string()));
    facts.push((
        "examples, tokens a second",
        format!("{:.1}, {:.1}", best.train_samples_per_second, best.train_tokens_per_second),
    ));
    let report = Report {
        title: format!("{} on {}", experiment.file.base_title(), experiment.config.data.dataset_name),
        split,
        labels,
        thresholds: &best.thresholds,
        examples: &rows.examples,
        lengths: &lengths,
        cut,
        max_length: experiment.file.max_length,
        intervals: result.metrics.intervals.as_ref().map_or(Intervals::NONE, Intervals::from),
        predictions: &predictions,
        scores: &scores,
        loss: result.metrics.loss,
        history: curves,
        seeds: &summary.seeds,
        comparison: Vec::new(),
        baseline: summary.baseline.as_ref(),
        calibration: best.calibration.as_ref(),
        is_single: experiment.classifier.problem() == Problem::SingleLabel,
        origin: origin(run, summary, best.seed),
        facts,
        config: Some(experiment.config.to_yaml()),
        shows_texts,
    };
    atomic_file::write_bytes(&run.report(), report.to_html().as_bytes())
}
