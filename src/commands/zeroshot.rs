//! `llmcls zeroshot`: scores a pretrained model, asked by prompts, on labelled rows.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::comparison::{Comparison, ComparisonRecord, Own, compared};
use super::configuration;
use crate::atomic_file;
use crate::cli::{ConfigArgs, Method, RunArgs, Split, TuneScope, ZeroshotArgs};
use crate::cluster::Group;
use crate::config::Config;
use crate::console::{Console, print, print_json};
use crate::data::table::{Columns, Example};
use crate::exit::Usage;
use crate::experiment::asked::{AnswerLine, Answers, Asked, Shots, evaluation};
use crate::experiment::base_model::settle_compute;
use crate::experiment::dataset;
use crate::experiment::run_report::{self, BOOTSTRAP_SEED};
use crate::experiment::split_rows::SplitRows;
use crate::experiment::summary::write_environment;
use crate::experiment::tuned::Tuned;
use crate::experiment::yardstick::{self, Lesson};
use crate::kernels::device::Device;
use crate::metrics::bootstrap::{Intervals, describe};
use crate::metrics::platt::Platt;
use crate::metrics::{Decision, Scores};
use crate::model::classifier::Problem;
use crate::run::directory::{self, REPORT};
use crate::run::records::{self, LabelPairs};
use crate::run::report::Report;
use crate::run::results::{CalibrationScores, EvalMetrics, SplitResult, TunedThresholds, Yardstick};
use crate::thresholds::Scope;

pub fn run(args: &ZeroshotArgs, device: &Device, console: Console) -> Result<()> {
    check_flags(args)?;
    let mut config = configuration::load(&args.config)?
        .ok_or_else(|| Usage("zeroshot needs --config FILE; try configs/smollm2_debtags.yaml".to_owned()))?;
    if !device.is_gpu() {
        settle_compute(&mut config.model);
    }
    let problem = Problem::from(config.model.problem_type);
    ensure!(
        problem == Problem::MultiLabel || !(args.calibrate || args.tune_thresholds.is_some()),
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
    if args.method == Method::Generate && (args.calibrate || args.tune_thresholds.is_some()) {
        return usage("--calibrate and --tune_thresholds need probabilities, which --method generate does not give");
    }
    if args.split == Split::Train && args.shots > 0 {
        return usage("--shots takes its examples from the training rows, which --split train scores");
    }
    Ok(())
}

/// The rows that a command needs.
struct Splits {
    columns: Columns,
    /// Where the scored rows are.
    source: SplitRows,
    scored: Vec<Example>,
    train: Vec<Example>,
    /// Read only where something is fitted to it.
    validation: Vec<Example>,
}

impl Splits {
    fn read(args: &ZeroshotArgs, config: &Config, problem: Problem, console: Console) -> Result<Self> {
        let columns = dataset::columns(&config.data, console)?;
        let [train, validation] = SplitRows::of_training(&config.data, &columns)?;
        let source = match args.split {
            Split::Train => train.clone(),
            Split::Validation => validation.clone(),
            Split::Test => {
                let path = config.data.test_csv.as_ref().context("data.test_csv is not set; use --split validation")?;
                SplitRows::of_file(path, config.data.max_test_samples)
            }
        };
        let read = |rows: &SplitRows| rows.read(&columns, problem, console);
        let scored = read(&source)?;
        ensure!(!scored.is_empty(), "{}: there are no rows to score", source.path.display());
        let fits = args.calibrate || args.tune_thresholds.is_some();
        let train = if args.split == Split::Train { scored.clone() } else { read(&train)? };
        let validation = match (fits, args.split) {
            (false, _) => Vec::new(),
            (true, Split::Validation) => scored.clone(),
            (true, _) => read(&validation)?,
        };
        Ok(Self { columns, source, scored, train, validation })
    }
}

/// What the model said, and its scores.
struct Outcome {
    answers: Answers,
    scores: Scores,
    thresholds: Vec<f32>,
    /// What was fitted, and the validation rows' scores before and after.
    calibration: Option<(Platt, CalibrationScores, CalibrationScores)>,
    tuned: Option<Tuned>,
    untuned: Option<Scores>,
}

impl Outcome {
    fn new(args: &ZeroshotArgs, config: &Config, asked: &Asked<'_>, rows: &Splits, console: Console) -> Result<Self> {
        let labels = &rows.columns.labels;
        let problem = Problem::from(config.model.problem_type);
        let name = args.split.name();
        let mut answers = match args.method {
            Method::Likelihood => asked.likelihood(name, &rows.scored)?,
            Method::Generate => {
                let batch = args.batch_size.unwrap_or_else(|| config.train.eval_batch_size());
                asked.generate(name, &rows.scored, args.unconstrained, batch)?
            }
        };
        let (mut calibration, mut tuned) = (None, None);
        if args.calibrate || args.tune_thresholds.is_some() {
            let mut logits = match args.split {
                Split::Validation => answers.logits.clone(),
                _ => asked.likelihood("validation", &rows.validation)?.logits,
            };
            if args.calibrate {
                let platt = Platt::fit(&logits, &targets(&rows.validation), labels.len());
                let scores = |logits: &[Vec<f32>]| -> Result<CalibrationScores> {
                    let predictions = evaluation(logits, &rows.validation, problem)?.predictions;
                    Ok(CalibrationScores::of(&Scores::new(&predictions, labels)))
                };
                let before = scores(&logits)?;
                apply(&platt, &mut logits);
                apply(&platt, &mut answers.logits);
                answers.evaluation = evaluation(&answers.logits, &rows.scored, problem)?;
                calibration = Some((platt, before, scores(&logits)?));
            }
            if let Some(scope) = args.tune_thresholds {
                let scope = match scope {
                    TuneScope::Global => Scope::Global,
                    TuneScope::PerLabel => Scope::PerLabel,
                };
                let predictions = evaluation(&logits, &rows.validation, problem)?.predictions;
                let found = Tuned::find(&predictions, labels, scope, args.objective);
                found.warn(console);
                tuned = Some(found);
            }
        }
        let mut scores = Scores::new(&answers.evaluation.predictions, labels);
        let mut untuned = None;
        let thresholds = tuned.as_ref().map_or_else(|| vec![0.5; labels.len()], Tuned::thresholds);
        if tuned.is_some() {
            let predictions = &mut answers.evaluation.predictions;
            *predictions = predictions.decided(&Decision::above(&thresholds));
            untuned = Some(std::mem::replace(&mut scores, Scores::new(predictions, labels)));
        }
        Ok(Self { answers, scores, thresholds, calibration, tuned, untuned })
    }
}

fn targets(rows: &[Example]) -> Vec<Vec<bool>> {
    rows.iter().map(|row| row.labels.iter().map(|&label| label > 0.5).collect()).collect()
}

fn apply(platt: &Platt, logits: &mut [Vec<f32>]) {
    for row in logits {
        row.iter_mut().enumerate().for_each(|(label, logit)| *logit = platt.logit(*logit, label));
    }
}

/// `metrics.json`: the keys of `eval`, and what was asked.
#[derive(Serialize)]
struct MetricsFile {
    #[serde(flatten)]
    result: SplitResult,
    rows: String,
    labels_together: LabelPairs,
    #[serde(skip_serializing_if = "Option::is_none")]
    tuned: Option<TunedThresholds>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    compared: Vec<ComparisonRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline: Option<Yardstick>,
    zeroshot: Asking,
}

#[derive(Serialize)]
struct Asking {
    model: String,
    method: &'static str,
    has_chat_template: bool,
    shots: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shots_seed: Option<u32>,
    prompt_tokens: usize,
    /// Of them those that were computed: rows and questions share the others.
    computed_prompt_tokens: usize,
    answer_tokens: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer_tokens_per_second: Option<f64>,
    /// Of the search for tokens that may come next.
    #[serde(skip_serializing_if = "Option::is_none")]
    constraint_microseconds_per_token: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answers: Option<AnswerCounts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    calibration: Option<CalibrationRecord>,
}

/// How answers were.
#[derive(Serialize)]
struct AnswerCounts {
    /// Rows whose answer is no JSON list of texts.
    broken: usize,
    /// Rows that list what is no label.
    with_invented_labels: usize,
    /// Names that are listed and are no label, counted as often as they are listed.
    invented_labels: usize,
}

#[derive(Serialize)]
struct CalibrationRecord {
    slope: f64,
    shifts: Vec<f64>,
    before: CalibrationScores,
    after: CalibrationScores,
}

impl Asking {
    fn new(args: &ZeroshotArgs, (asked, seed): (&Asked<'_>, u32), outcome: &Outcome) -> Self {
        let work = &outcome.answers.work;
        let per_token = |value: f64| (work.answer_tokens > 0).then(|| value / work.answer_tokens as f64);
        let lines = &outcome.answers.lines;
        let count = |is: &dyn Fn(&AnswerLine) -> bool| lines.iter().filter(|line| is(line)).count();
        let counts = (args.method == Method::Generate).then(|| AnswerCounts {
            broken: count(&|line| line.is_broken),
            with_invented_labels: count(&|line| !line.invented.is_empty()),
            invented_labels: lines.iter().map(|line| line.invented.len()).sum(),
        });
        let calibration = outcome.calibration.as_ref().map(|(platt, before, after)| CalibrationRecord {
            slope: platt.slope,
            shifts: platt.shifts.clone(),
            before: *before,
            after: *after,
        });
        Self {
            model: asked.base.files.name.clone(),
            method: method(args),
            has_chat_template: asked.is_chat(),
            shots: asked.shot_ids.clone(),
            shots_seed: (args.shots > 0).then_some(seed),
            prompt_tokens: work.prompt_tokens,
            computed_prompt_tokens: work.computed_tokens,
            answer_tokens: work.answer_tokens,
            answer_tokens_per_second: (work.answer_tokens > 0)
                .then(|| work.answer_tokens as f64 / outcome.answers.seconds),
            constraint_microseconds_per_token: per_token(work.constraint.as_secs_f64() * 1e6)
                .filter(|_| !args.unconstrained),
            answers: counts,
            calibration,
        }
    }

    /// For the terminal.
    fn to_text(&self) -> String {
        let mut out =
            format!("{} tokens of prompts, {} of them computed", self.prompt_tokens, self.computed_prompt_tokens);
        if let (Some(rate), Some(answers)) = (self.answer_tokens_per_second, &self.answers) {
            out.push_str(&format!(
                "; {} tokens of answers, {rate:.1} a second; {} broken lists, {} invented labels in {} rows",
                self.answer_tokens, answers.broken, answers.invented_labels, answers.with_invented_labels
            ));
        }
        if let Some(CalibrationRecord { slope, before, after, .. }) = &self.calibration {
            out.push_str(&format!(
                "\ncalibrated with slope {slope:.3}: calibration error on validation {:.4}, before {:.4}",
                after.calibration_error, before.calibration_error
            ));
        }
        out.push('\n');
        out
    }
}

fn method(args: &ZeroshotArgs) -> &'static str {
    match (args.method, args.unconstrained) {
        (Method::Likelihood, _) => "likelihood",
        (Method::Generate, false) => "generate",
        (Method::Generate, true) => "generate, unconstrained",
    }
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
    let mut said = outcome.tuned.as_ref().map(Tuned::table).unwrap_or_default();
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
    records::write_mistakes(&path("errors.jsonl"), &rows.scored, labels, predictions, !args.no_text)?;
    if args.method == Method::Generate {
        write_answers(&path("answers.jsonl"), &answers.lines)?;
    }
    let report = report(args, config, (asked, rows, outcome), (comparison, baseline.as_ref(), intervals))?;
    atomic_file::write_bytes(&path(REPORT), report.as_bytes())?;
    let metrics = MetricsFile {
        result: SplitResult {
            metrics: EvalMetrics { intervals: Some((&intervals).into()), ..metrics },
            per_label: scores.per_label.clone(),
            untuned: outcome.untuned.clone(),
        },
        rows: rows.source.path.display().to_string(),
        labels_together: LabelPairs::new(labels, predictions),
        tuned: outcome.tuned.as_ref().map(Tuned::record),
        compared: comparison.iter().map(Comparison::record).collect(),
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
    let mut table: Vec<[String; 4]> = comparison.iter().map(Comparison::to_row).collect();
    if let Some((linear, model)) = baseline.and_then(|baseline| Some((baseline.linear, baseline.model?))) {
        let row = [
            "TF-IDF and logistic regression".to_owned(),
            format!("{:.4}", linear.f1_micro),
            format!("{:+.4}", linear.f1_micro - model.f1_micro),
            format!("{:.4}, {:+.4}", linear.f1_macro, linear.f1_macro - model.f1_macro),
        ];
        table.push(row);
    }
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
        max_length: asked.max_length,
        predictions: &outcome.answers.evaluation.predictions,
        scores: &outcome.scores,
        loss: outcome.answers.evaluation.loss,
        intervals,
        history: Vec::new(),
        seeds: &[],
        comparison: table,
        facts,
        config: Some(config.to_yaml()),
        shows_texts: !args.no_text,
    };
    Ok(report.to_html())
}
