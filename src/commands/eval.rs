//! `llmcls eval`: scores a trained classifier on labelled rows.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::comparison::{Comparison, ComparisonRecord, Own, compared};
use super::eval_int8;
use super::loaded::Loaded;
use super::suggest;
use crate::atomic_file;
use crate::cli::{EvalArgs, PrecisionArgs, RunArgs, Split, TuneScope};
use crate::cluster::Group;
use crate::config::Config;
use crate::console::{Console, print, print_json};
use crate::embedded;
use crate::evaluation::NotFinite;
use crate::exit::Usage;
use crate::experiment::run_report::{self, BOOTSTRAP_SEED};
use crate::experiment::split_rows::SplitRows;
use crate::experiment::tuned::Tuned;
use crate::experiment::{warnings, why};
use crate::kernels::device::Device;
use crate::metrics::Decision;
use crate::metrics::bootstrap::{Intervals, describe};
use crate::model::classifier::Problem;
use crate::predictor::Precision;
use crate::run::adapter;
use crate::run::classifier_file::ClassifierFile;
use crate::run::directory::{self, REPORT};
use crate::run::records::{self, LabelPairs};
use crate::run::report::Report;
use crate::run::results::{EvalMetrics, SplitResult, TunedThresholds};
use crate::run::trained::find_trained;
use crate::thresholds::Scope;
use crate::training::checkpoint;
use crate::training::scored::score;

pub fn run(args: &EvalArgs, device: &Device, group: &Group, console: Console) -> Result<()> {
    if let Some(count) = args.suggest {
        return suggest::run(args, count, device, console);
    }
    let is_int8 = args.precision.precision == Some(Precision::Int8);
    if is_int8 && args.tuning.tune_thresholds.is_some() {
        return Err(Usage(
            "--tune_thresholds: thresholds are for every precision, and are tuned without int8; tune them first, then measure \
             what int8 costs with them"
                .to_owned(),
        )
        .into());
    }
    if is_int8 && args.split == Some(Split::Validation) && args.input_csv.is_none() {
        eval_int8::measure(&args.run, device, group, console)?;
    }
    // Whoever measures sees what it costs.
    let precision = PrecisionArgs { accept_loss: true, ..args.precision };
    let loaded = Loaded::open_in(&args.run, precision, device, console)?;
    let (name, rows) = rows(args, &loaded)?;
    let name = precision.precision.map_or_else(|| name.clone(), |precision| format!("{name}_{}", precision.name()));
    let path = &rows.path;
    let directory = group.is_leader().then(|| output_directory(args, &loaded, &name, path)).transpose()?;
    let problem = loaded.predictor.classifier.problem();
    let examples = rows.read(&loaded.columns(true)?, problem, console)?;
    let samples = loaded.predictor.encode(&examples, &path.display().to_string(), 0)?;
    warnings::about(&name, &examples, &samples, loaded.predictor.file.limit(), console);
    let labels = &loaded.predictor.file.labels;
    let batch_size = loaded.batch_size(&args.run);
    let mut said = String::new();
    let tuned = args.tuning.tune_thresholds.map(|scope| tuned(args, scope, &loaded, group, console)).transpose()?;
    let thresholds = match &tuned {
        None => loaded.predictor.file.thresholds.clone(),
        Some(tuned) => {
            said.push_str(&tuned.table("validation"));
            tuned.thresholds()
        }
    };
    let usual = Decision::above(&vec![0.5; labels.len()]);
    let mut scored = score(&loaded.predictor.classifier, &samples, labels, &usual, batch_size, group, console)
        .map_err(|error| NotFinite::named(error, |row| rows.location(row, &examples[row])))?;
    if thresholds.iter().any(|&threshold| threshold != 0.5) && problem == Problem::MultiLabel {
        said.push_str(&format!(
            "with threshold 0.5: f1_micro {:.4}, f1_macro {:.4}; with the classifier's own:\n",
            scored.scores.f1_micro, scored.scores.f1_macro
        ));
        scored.decide(&Decision::above(&thresholds), labels);
    }
    said.push_str(&records::score_table(&scored.scores, scored.evaluation.loss));

    let predictions = &scored.evaluation.predictions;
    let intervals = Intervals::new(predictions, BOOTSTRAP_SEED);
    said.push_str(&format!("f1_micro {:.4}, {}\n", scored.scores.f1_micro, describe(intervals.f1_micro)));
    let mut comparison = Vec::new();
    for run in &args.compare {
        let own = Own { labels, predictions, scores: &scored.scores };
        let run = RunArgs { run: Some(run.clone()), ..args.run.clone() };
        let other = compared(&run, &own, &rows, device, group, console)?;
        said.push_str(&other.to_line());
        comparison.push(other);
    }

    let Some(directory) = directory else { return Ok(()) };
    make(&directory)?;
    let metrics = EvaluationFile {
        result: SplitResult {
            metrics: EvalMetrics { intervals: Some((&intervals).into()), ..scored.metrics },
            per_label: scored.scores.per_label.clone(),
            untuned: None,
        },
        rows: path.display().to_string(),
        labels_together: LabelPairs::new(labels, predictions),
        tuned: tuned.as_ref().map(Tuned::record),
        compared: comparison.iter().map(Comparison::record).collect(),
    };
    let [metrics_file, predictions_file, errors_file, report_file] = OUTPUTS.map(|name| directory.join(name));
    records::write_json(&metrics_file, &serde_json::to_value(&metrics)?)?;
    let ids: Vec<String> = examples.iter().map(|example| example.id.clone()).collect();
    records::write_predictions(&predictions_file, &ids, labels, &scored.evaluation)?;
    let of_classifier = (&loaded.predictor.classifier, &*loaded.predictor.encoder, labels.as_slice());
    let why = match args.explain {
        true => why::errors(of_classifier, (&examples, &samples), predictions, console)?,
        false => BTreeMap::new(),
    };
    records::write_mistakes(&errors_file, (&examples, predictions), labels, !args.no_text, &why)?;
    let (lengths, cut) = run_report::lengths(&samples);
    let history = records::read_history(&loaded.predictor.trained.home.join(directory::HISTORY))?;
    let of_seed = records::read_seed_result(&loaded.predictor.trained.home.join(directory::RESULT))?;
    let report = Report {
        title: format!("{}: {name}", loaded.predictor.file.base_title()),
        split: &name,
        labels,
        thresholds: &thresholds,
        is_single: problem == Problem::SingleLabel,
        examples: &examples,
        lengths: &lengths,
        cut,
        limit: loaded.predictor.file.limit(),
        predictions,
        scores: &scored.scores,
        loss: scored.evaluation.loss,
        intervals,
        history: if history.is_empty() { Vec::new() } else { vec![(String::new(), history)] },
        seed: of_seed.as_ref().map(|result| result.seed),
        best_epoch: of_seed.as_ref().map(|result| result.best_epoch),
        seeds: &[],
        folds: None,
        comparison: comparison.into_iter().map(|comparison| comparison.compared).collect(),
        baseline: None,
        calibration: None,
        issues: Vec::new(),
        why,
        facts: [
            vec![("classifier", loaded.predictor.trained.home.display().to_string())],
            run_report::origin(&[("rows", path)])?,
            run_report::base(&loaded.predictor.file),
            run_report::machine(device),
        ]
        .concat(),
        config: loaded.config.as_ref().map(Config::to_yaml),
        shows_texts: !args.no_text,
    };
    atomic_file::write_bytes(&report_file, report.to_html().as_bytes())?;
    console.say(format!("wrote {}", directory.display()));
    // After the files: a reader that goes away, as `head` does, costs none of them.
    if args.json {
        return print_json(&serde_json::to_value(&metrics)?);
    }
    print(&said)
}

/// `metrics.json` of an evaluation.
#[derive(Serialize)]
pub(super) struct EvaluationFile {
    #[serde(flatten)]
    pub(super) result: SplitResult,
    pub(super) rows: String,
    pub(super) labels_together: LabelPairs,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tuned: Option<TunedThresholds>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) compared: Vec<ComparisonRecord>,
}

/// Names of the files that `eval` writes, in the order in which it writes them.
const OUTPUTS: [&str; 4] = ["metrics.json", "predictions.jsonl", "errors.jsonl", REPORT];

/// The directory for the files. Refuses one of a run, and one where a file would replace an input.
fn output_directory(args: &EvalArgs, loaded: &Loaded, name: &str, rows: &Path) -> Result<PathBuf> {
    let directory = match &args.output_dir {
        Some(directory) => directory.clone(),
        // A program that carries its classifier has no place in it.
        None if embedded::contains(&loaded.predictor.trained.adapter) => PathBuf::from(format!("eval_{name}")),
        None => loaded.predictor.trained.home.join(format!("eval_{name}")),
    };
    for own in [directory::CONFIG, directory::HISTORY, checkpoint::STATE, adapter::CONFIG] {
        ensure!(
            !directory.join(own).is_file(),
            "--output_dir {}: is a directory of a run or classifier (it has {own}); name another one",
            directory.display()
        );
    }
    let data = loaded.config.as_ref().map(|config| &config.data);
    let splits =
        data.into_iter().flat_map(|data| [Some(&data.train_csv), data.val_csv.as_ref(), data.test_csv.as_ref()]);
    let mut inputs: Vec<PathBuf> = splits.flatten().cloned().collect();
    inputs.push(rows.to_owned());
    inputs.extend(loaded.predictor.files());
    for run in &args.compare {
        inputs.extend(find_trained(run).map(|trained| trained.files()).unwrap_or_default());
    }
    for output in OUTPUTS {
        atomic_file::refuse_input_as_output(&directory.join(output), inputs.iter().map(PathBuf::as_path))?;
    }
    // Before the work: it would be for nothing.
    let is_new = !directory.is_dir();
    make(&directory)?;
    if is_new {
        fs::remove_dir(&directory).with_context(|| format!("{}: cannot remove", directory.display()))?;
    }
    Ok(directory)
}

fn make(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| {
        format!("{}: cannot create; --output_dir names another directory for the evaluation", directory.display())
    })
}

/// Finds thresholds on the run's validation split, and stores them in `classifier.json`.
fn tuned(args: &EvalArgs, scope: TuneScope, loaded: &Loaded, group: &Group, console: Console) -> Result<Tuned> {
    let problem = loaded.predictor.classifier.problem();
    ensure!(
        problem == Problem::MultiLabel,
        "--tune_thresholds: thresholds do not apply to single_label_classification"
    );
    let data = &loaded.config.as_ref().context("--tune_thresholds needs a run, whose validation split it uses")?.data;
    // `--set` describes the rows of --input_csv, if they are given; the validation split is as it was.
    let columns = if args.input_csv.is_some() { loaded.training_columns(true) } else { loaded.columns(true)? };
    // Which rows are validation rows depends on the columns of training alone.
    let [_, rows] = SplitRows::of_training(data, &loaded.training_columns(true))?;
    let examples = rows.read(&columns, problem, console)?;
    let samples = loaded.predictor.encode(&examples, &rows.path.display().to_string(), 0)?;
    let labels = &loaded.predictor.file.labels;
    let usual = loaded.predictor.decision();
    let scored =
        score(&loaded.predictor.classifier, &samples, labels, &usual, loaded.batch_size(&args.run), group, console)
            .map_err(|error| NotFinite::named(error, |row| rows.location(row, &examples[row])))?;
    let scope = match scope {
        TuneScope::Global => Scope::Global,
        TuneScope::PerLabel => Scope::PerLabel,
    };
    let tuned = Tuned::find(&scored.evaluation.predictions, labels, scope, args.tuning.objective);
    tuned.warn(console);
    if group.is_leader() {
        ClassifierFile { thresholds: tuned.thresholds(), ..loaded.predictor.file.clone() }
            .save(&loaded.predictor.trained.adapter)?;
    }
    console.say(format!("stored thresholds in {}", loaded.predictor.trained.adapter.display()));
    Ok(tuned)
}

/// The rows to score, and their name.
fn rows(args: &EvalArgs, loaded: &Loaded) -> Result<(String, SplitRows)> {
    if let Some(path) = &args.input_csv {
        let name = path.file_stem().map_or_else(|| "input".into(), |stem| stem.to_string_lossy().into_owned());
        return Ok((name, SplitRows::of_file(path, None)));
    }
    let split = args.split.unwrap_or(Split::Test);
    let data = &loaded
        .config
        .as_ref()
        .context("this directory does not belong to a run, so it has no splits; name rows with --input_csv")?
        .data;
    let of_training = || SplitRows::of_training(data, &loaded.training_columns(true));
    let rows = match split {
        Split::Train => of_training()?[0].clone(),
        Split::Validation => of_training()?[1].clone(),
        Split::Test => {
            let path = data.test_csv.as_ref();
            let path =
                path.context("the run has no data.test_csv; name rows with --input_csv, or --split validation")?;
            SplitRows::of_file(path, data.max_test_samples)
        }
    };
    Ok((split.name().to_owned(), rows))
}
