//! `llmcls zeroshot`: scores a pretrained model, asked by prompts, on labelled rows.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::comparison::{Comparison, Own, compared};
use super::configuration;
use super::eval::EvaluationFile;
use super::zeroshot_outcome::{Asking, Outcome, Splits, method};
use crate::atomic_file;
use crate::cli::{ConfigArgs, Method, RunArgs, Split, ZeroshotArgs};
use crate::cluster::Group;
use crate::config::Config;
use crate::config::model::ProblemType;
use crate::console::{Console, print, print_json};
use crate::data::long_text::Limit;
use crate::exit::Usage;
use crate::experiment::asked::{AnswerLine, Asked, Shots};
use crate::experiment::base_model::settle_compute;
use crate::experiment::run_report::{self, BOOTSTRAP_SEED};
use crate::experiment::summary::write_environment;
use crate::experiment::tuned::Tuned;
use crate::experiment::yardstick::{self, Lesson};
use crate::kernels::device::Device;
use crate::metrics::bootstrap::{Intervals, describe};
use crate::model::classifier::Problem;
use crate::run::directory::{self, REPORT};
use crate::run::records::{self, LabelPairs};
use crate::run::report::Report;
use crate::run::results::{EvalMetrics, SplitResult, Yardstick};

pub fn run(args: &ZeroshotArgs, device: &Device, console: Console) -> Result<()> {
    check_flags(args)?;
    let mut config = configuration::load(&args.config)?
        .ok_or_else(|| Usage("zeroshot needs --config FILE; try configs/smollm2_debtags.yaml".to_owned()))?;
    if !device.is_gpu() {
        settle_compute(&mut config.model, &Group::alone())?;
    }
    let problem = Problem::from(config.model.problem_type);
    ensure!(
        problem == Problem::MultiLabel || !(args.calibrate || args.tuning.tune_thresholds.is_some()),
        "--calibrate and --tune_thresholds do not apply to single_label_classification"
    );
    let rows = Splits::read(args, &config, problem, console)?;
    let seed = args.seed.or(config.exp.seeds.first().copied()).unwrap_or_default();
    let shots = Shots { train: &rows.train, scored: &rows.scored, count: usize::from(args.shots), seed };
    let asked = Asked::open(&config, &rows.columns.labels, &shots, device, console)?;
    let outcome = Outcome::new(args, &config, &asked, &rows, console)?;
    let labels = &rows.columns.labels;
    let own = Own { labels, predictions: &outcome.answers.evaluation.predictions, scores: &outcome.scores };
    let mut comparison = Vec::new();
    for run in &args.compare {
        let run = RunArgs { run: Some(run.clone()), config: ConfigArgs::default(), batch_size: None };
        comparison.push(compared(&run, &own, &rows.source, device, &Group::alone(), console)?);
    }
    let lesson = Lesson { train: &rows.train, labels, problem };
    let baseline = match lesson.is_quick() && args.split != Split::Train {
        true => Some(yardstick::measure(lesson, (args.split.name(), &rows.scored), Some(own.predictions), console)?),
        false => None,
    };
    write(args, &config, (&asked, &rows, seed), (&outcome, &comparison, baseline), console)
}

fn check_flags(args: &ZeroshotArgs) -> Result<()> {
    let usage = |message: &str| Err(Usage(message.to_owned()).into());
    if args.method == Method::Likelihood && args.unconstrained {
        return usage("--unconstrained is for --method generate: a likelihood is of yes and no alone");
    }
    if args.method == Method::Generate && (args.calibrate || args.tuning.tune_thresholds.is_some()) {
        return usage("--calibrate and --tune_thresholds need probabilities, which --method generate does not give");
    }
    if args.unconstrained && args.always_one {
        return usage("--always_one constrains lists, which --unconstrained does not");
    }
    if args.split == Split::Train && args.shots > 0 {
        return usage("--shots takes its examples from the training rows, which --split train scores");
    }
    Ok(())
}

/// `metrics.json`: the keys of `eval`, and what was asked.
#[derive(Serialize)]
struct MetricsFile {
    #[serde(flatten)]
    evaluation: EvaluationFile,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline: Option<Yardstick>,
    zeroshot: Asking,
}

/// Writes all files, `metrics.json` last, and prints the scores.
fn write(
    args: &ZeroshotArgs,
    config: &Config,
    (asked, rows, seed): (&Asked<'_>, &Splits, u32),
    (outcome, comparison, baseline): (&Outcome, &[Comparison], Option<Yardstick>),
    console: Console,
) -> Result<()> {
    let labels = &rows.columns.labels;
    let (answers, scores) = (&outcome.answers, &outcome.scores);
    let predictions = &answers.evaluation.predictions;
    let intervals = Intervals::new(predictions, BOOTSTRAP_SEED);
    let metrics = EvalMetrics::new(&answers.evaluation, scores, answers.seconds, rows.scored.len());
    let asking = Asking::new(args, (asked, seed), outcome);
    let mut said = outcome.tuned.as_ref().map(|tuned| tuned.table("validation")).unwrap_or_default();
    said.push_str(&records::score_table(scores, answers.evaluation.loss));
    said.push_str(&format!("f1_micro {:.4}, {}\n", scores.f1_micro, describe(intervals.f1_micro)));
    said.push_str(&asking.to_text());
    comparison.iter().for_each(|other| said.push_str(&other.to_line()));
    if let Some(baseline) = &baseline {
        said.push_str(&format!("\n{}\n", baseline.to_text().trim_end()));
    }
    let model = &config.model.model_name;
    let directory = directory::create(&config.exp.output_root, model, &config.data.dataset_name, "zeroshot")?;
    let path = |name: &str| directory.join(name);
    atomic_file::write_bytes(&path(directory::CONFIG), config.to_yaml().as_bytes())?;
    write_environment(&path("environment.json"), &asked.base.device)?;
    if let Some(first) = rows.scored.first().filter(|_| !args.no_text) {
        let prompt = asked.prompt(first, args.method == Method::Generate)?;
        atomic_file::write_bytes(&path("prompt.txt"), prompt.as_bytes())?;
    }
    let ids: Vec<String> = rows.scored.iter().map(|example| example.id.clone()).collect();
    records::write_predictions(&path("predictions.jsonl"), &ids, labels, &answers.evaluation)?;
    records::write_mistakes(
        &path("errors.jsonl"),
        (&rows.scored, predictions),
        labels,
        !args.no_text,
        &BTreeMap::new(),
    )?;
    if args.method == Method::Generate {
        write_answers(&path("answers.jsonl"), &answers.lines)?;
    }
    let report = report(args, config, (asked, rows, outcome), (comparison, baseline.as_ref(), intervals))?;
    atomic_file::write_bytes(&path(REPORT), report.as_bytes())?;
    let metrics = MetricsFile {
        evaluation: EvaluationFile {
            result: SplitResult {
                metrics: EvalMetrics { intervals: Some((&intervals).into()), ..metrics },
                per_label: scores.per_label.clone(),
                untuned: outcome.untuned.clone(),
            },
            rows: rows.source.path.display().to_string(),
            labels_together: LabelPairs::new(labels, predictions),
            tuned: outcome.tuned.as_ref().map(Tuned::record),
            compared: comparison.iter().map(Comparison::record).collect(),
        },
        baseline,
        zeroshot: asking,
    };
    let metrics = serde_json::to_value(&metrics)?;
    records::write_json(&path("metrics.json"), &metrics)?;
    console.say(format!("wrote {}", directory.display()));
    if args.json { print_json(&metrics) } else { print(&said) }
}

fn write_answers(path: &Path, lines: &[AnswerLine]) -> Result<()> {
    atomic_file::write_file(path, |writer| {
        for line in lines {
            writeln!(writer, "{}", serde_json::to_string(line)?)?;
        }
        Ok(())
    })
}

fn report(
    args: &ZeroshotArgs,
    config: &Config,
    (asked, rows, outcome): (&Asked<'_>, &Splits, &Outcome),
    (comparison, baseline, intervals): (&[Comparison], Option<&Yardstick>, Intervals),
) -> Result<String> {
    let (lengths, cut) = asked.lengths(&rows.scored)?;
    let mut facts = vec![
        ("model", asked.base.files.name.clone()),
        ("method", method(args).to_owned()),
        ("training rows in the prompt", asked.shot_ids.len().to_string()),
    ];
    facts.extend(run_report::machine(&asked.base.device));
    let report = Report {
        title: format!("{} without training on {}", asked.base.files.name, config.data.dataset_name),
        split: args.split.name(),
        labels: &rows.columns.labels,
        thresholds: &outcome.thresholds,
        examples: &rows.scored,
        lengths: &lengths,
        cut,
        limit: Limit::from(asked.max_length),
        predictions: &outcome.answers.evaluation.predictions,
        scores: &outcome.scores,
        loss: outcome.answers.evaluation.loss,
        intervals,
        is_single: config.model.problem_type == ProblemType::SingleLabel,
        history: Vec::new(),
        seed: None,
        best_epoch: None,
        seeds: &[],
        folds: None,
        comparison: comparison.iter().map(|other| other.compared.clone()).collect(),
        baseline,
        calibration: None,
        issues: Vec::new(),
        why: BTreeMap::new(),
        facts,
        config: Some(config.to_yaml()),
        shows_texts: !args.no_text,
    };
    Ok(report.to_html())
}
