//! Puts together the facts for `report.html` of a run or an evaluation.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

use super::data_issues::{self, DataIssue};
use super::prepared::Experiment;
use crate::atomic_file;
use crate::console::{bytes, duration, grouped};
use crate::device;
use crate::evaluation::Sample;
use crate::kernels::cpu::memory;
use crate::kernels::device::Device;
use crate::metrics::bootstrap::Intervals;
use crate::model::classifier::Problem;
use crate::run::classifier_file::{ClassifierFile, RecordedFingerprint};
use crate::run::directory::RunDir;
use crate::run::records;
use crate::run::report::Report;
use crate::run::results::{RunSummary, SeedResult};

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
    let mut facts = vec![match &gpu {
        Some(gpu) => ("device", format!("GPU: {}, CUDA {}", gpu.name, gpu.driver)),
        None => ("device", format!("CPU: {}, {} threads", device::cpu_name(), rayon::current_num_threads())),
    }];
    facts.extend(gpu.map(|gpu| ("peak memory of the GPU", bytes(gpu.peak_bytes))));
    facts.extend(memory::peak_bytes().map(|peak| ("peak memory", bytes(peak))));
    facts
}

/// Who made a report, when, and from which files: what differs from one machine and day to another.
pub fn origin(files: &[(&'static str, &Path)]) -> Result<Vec<(&'static str, String)>> {
    let mut facts = vec![
        ("made", jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string()),
        ("llmcls", env!("LLMCLS_VERSION").to_owned()),
    ];
    for (name, path) in files {
        // A pipe cannot be read again.
        if path.is_file() {
            facts.push((name, format!("{}, SHA-256 {}", path.display(), atomic_file::sha256(path)?)));
        }
    }
    Ok(facts)
}

/// The base and the fingerprint of its weights.
pub fn base(file: &ClassifierFile) -> Vec<(&'static str, String)> {
    let mut facts = vec![("base", file.base_title())];
    if let RecordedFingerprint::Whole(fingerprint) = &file.base.fingerprint {
        facts.push(("weights of the base", format!("SHA-256 {}", fingerprint.weights)));
    }
    facts
}

/// Writes a run's report: its best seed on the test rows, or on validation where there are none.
pub fn write(
    experiment: &Experiment<'_>,
    run: &RunDir,
    (summary, issues): (&RunSummary, &[DataIssue]),
    shows_texts: bool,
) -> Result<()> {
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
    let title = format!("{} on {}", experiment.file.base_title(), experiment.config.data.dataset_name);
    let report = Report {
        title: summary.run_name.as_ref().map_or_else(|| title.clone(), |name| format!("{name}: {title}")),
        split,
        labels,
        thresholds: &best.thresholds,
        is_single: experiment.classifier.problem() == Problem::SingleLabel,
        examples: &rows.examples,
        lengths: &lengths,
        cut,
        limit: experiment.file.limit(),
        intervals: result.metrics.intervals.as_ref().map_or(Intervals::NONE, Intervals::from),
        predictions: &predictions,
        scores: &scores,
        loss: result.metrics.loss,
        history: curves,
        seed: Some(best.seed),
        best_epoch: Some(best.best_epoch),
        seeds: &summary.seeds,
        comparison: Vec::new(),
        folds: summary.folds.as_ref(),
        baseline: summary.baseline.as_ref(),
        calibration: best.calibration.as_ref(),
        issues: data_issues::tables(experiment, issues, shows_texts),
        why: BTreeMap::new(),
        facts: facts(experiment, run, (summary, best))?,
        config: Some(experiment.config.to_yaml()),
        shows_texts,
    };
    atomic_file::write_bytes(&run.report(), report.to_html().as_bytes())
}

fn facts(
    experiment: &Experiment<'_>,
    run: &RunDir,
    (summary, best): (&RunSummary, &SeedResult),
) -> Result<Vec<(&'static str, String)>> {
    let data = &experiment.config.data;
    let files = [("train rows", Some(&data.train_csv)), ("validation rows", data.val_csv.as_ref())];
    let files = files.into_iter().chain([("test rows", data.test_csv.as_ref())]);
    let files: Vec<(&'static str, &Path)> = files.filter_map(|(name, path)| Some((name, path?.as_path()))).collect();
    let mut facts = vec![("run", run.path().file_name().unwrap_or_default().to_string_lossy().into_owned())];
    facts.extend(summary.run_name.iter().map(|name| ("name", name.clone())));
    facts.extend(origin(&files)?);
    facts.extend(base(&experiment.file));
    facts.push(("frozen parameters", grouped(summary.parameters.frozen)));
    facts.push(("trained parameters", grouped(summary.parameters.trained)));
    facts.extend(machine(&experiment.base.device));
    let seconds: f64 = summary.seeds.iter().map(|seed| seed.train_runtime).sum();
    facts.push(("training time, all seeds", duration(seconds)));
    facts.push(("examples a second", format!("{:.1}", best.train_samples_per_second)));
    facts.push(("tokens a second", grouped(best.train_tokens_per_second.round() as usize)));
    Ok(facts)
}
