//! What a pretrained model said of the rows of a split: fitted to validation where that is asked for, scored, recorded.

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::cli::{Method, Split, TuneScope, ZeroshotArgs};
use crate::config::Config;
use crate::console::Console;
use crate::data::table::{Columns, Example};
use crate::experiment::asked::{AnswerLine, Answers, Asked, Form, evaluation};
use crate::experiment::dataset;
use crate::experiment::split_rows::SplitRows;
use crate::experiment::tuned::Tuned;
use crate::metrics::platt::Platt;
use crate::metrics::{Decision, Scores};
use crate::model::classifier::Problem;
use crate::run::results::CalibrationScores;
use crate::thresholds::Scope;

/// The rows that a command needs.
pub(super) struct Splits {
    pub(super) columns: Columns,
    /// Where the scored rows are.
    pub(super) source: SplitRows,
    pub(super) scored: Vec<Example>,
    pub(super) train: Vec<Example>,
    /// Read only where something is fitted to it.
    pub(super) validation: Vec<Example>,
}

impl Splits {
    pub(super) fn read(args: &ZeroshotArgs, config: &Config, problem: Problem, console: Console) -> Result<Self> {
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
        let fits = args.calibrate || args.tuning.tune_thresholds.is_some();
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
pub(super) struct Outcome {
    pub(super) answers: Answers,
    pub(super) scores: Scores,
    pub(super) thresholds: Vec<f32>,
    /// What was fitted, and the validation rows' scores before and after.
    calibration: Option<(Platt, CalibrationScores, CalibrationScores)>,
    pub(super) tuned: Option<Tuned>,
    pub(super) untuned: Option<Scores>,
}

impl Outcome {
    pub(super) fn new(
        args: &ZeroshotArgs,
        config: &Config,
        asked: &Asked<'_>,
        rows: &Splits,
        console: Console,
    ) -> Result<Self> {
        let labels = &rows.columns.labels;
        let problem = Problem::from(config.model.problem_type);
        let name = args.split.name();
        let decision =
            |thresholds: &[f32]| Decision::Above { thresholds: thresholds.to_vec(), always_one: args.always_one };
        let usual = decision(&vec![0.5; labels.len()]);
        let mut answers = match args.method {
            Method::Likelihood => asked.likelihood(name, &rows.scored, &usual)?,
            Method::Generate => {
                let form = match (args.unconstrained, args.always_one) {
                    (true, _) => Form::Free,
                    (false, is_filled) => Form::Lists { is_filled },
                };
                let batch = args.batch_size.unwrap_or_else(|| config.train.eval_batch_size());
                asked.generate(name, &rows.scored, form, batch)?
            }
        };
        let (mut calibration, mut tuned) = (None, None);
        if args.calibrate || args.tuning.tune_thresholds.is_some() {
            let mut logits = match args.split {
                Split::Validation => answers.logits.clone(),
                _ => asked.likelihood("validation", &rows.validation, &usual)?.logits,
            };
            if args.calibrate {
                let platt = Platt::fit(&logits, &targets(&rows.validation), labels.len());
                let scores = |logits: &[Vec<f32>]| -> Result<CalibrationScores> {
                    let predictions = evaluation(logits, &rows.validation, problem, &usual)?.predictions;
                    Ok(CalibrationScores::of(&Scores::new(&predictions, labels)))
                };
                let before = scores(&logits)?;
                apply(&platt, &mut logits);
                apply(&platt, &mut answers.logits);
                answers.evaluation = evaluation(&answers.logits, &rows.scored, problem, &usual)?;
                calibration = Some((platt, before, scores(&logits)?));
            }
            if let Some(scope) = args.tuning.tune_thresholds {
                let scope = match scope {
                    TuneScope::Global => Scope::Global,
                    TuneScope::PerLabel => Scope::PerLabel,
                };
                let predictions = evaluation(&logits, &rows.validation, problem, &usual)?.predictions;
                let found = Tuned::find(&predictions, labels, scope, args.tuning.objective);
                found.warn(console);
                tuned = Some(found);
            }
        }
        let mut scores = Scores::new(&answers.evaluation.predictions, labels);
        let mut untuned = None;
        let thresholds = tuned.as_ref().map_or_else(|| vec![0.5; labels.len()], Tuned::thresholds);
        if tuned.is_some() {
            let predictions = &mut answers.evaluation.predictions;
            *predictions = predictions.decided(&decision(&thresholds));
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
        *row = platt.logits(row);
    }
}

#[derive(Serialize)]
pub(super) struct Asking {
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
    mean_slope: f64,
    shifts: Vec<f64>,
    before: CalibrationScores,
    after: CalibrationScores,
}

impl Asking {
    pub(super) fn new(args: &ZeroshotArgs, (asked, seed): (&Asked<'_>, u32), outcome: &Outcome) -> Self {
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
            mean_slope: platt.mean_slope,
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
    pub(super) fn to_text(&self) -> String {
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

pub(super) fn method(args: &ZeroshotArgs) -> &'static str {
    match (args.method, args.unconstrained) {
        (Method::Likelihood, _) => "likelihood",
        (Method::Generate, false) => "generate",
        (Method::Generate, true) => "generate, unconstrained",
    }
}
