//! Arguments of scoring labelled rows.

use std::path::PathBuf;

use clap::{Args, ValueEnum, value_parser};

use super::shared::{ConfigArgs, PrecisionArgs, RunArgs, Split, TuneScope, positive};
use crate::thresholds::Objective;

#[derive(Args, Debug)]
pub struct TuningArgs {
    /// First choose thresholds on the validation split; `eval` stores them in the classifier
    #[arg(long = "tune_thresholds", alias = "tune-thresholds", value_enum, value_name = "SCOPE")]
    pub tune_thresholds: Option<TuneScope>,
    /// The goal of each threshold: f1, precision>=P or recall>=R
    #[arg(long, default_value = "f1", requires = "tune_thresholds")]
    pub objective: Objective,
}

#[derive(Args, Debug)]
pub struct EvalArgs {
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    pub precision: PrecisionArgs,
    /// A split of the run's data [default: test]
    #[arg(long, value_enum, conflicts_with = "input_csv")]
    pub split: Option<Split>,
    /// Labelled rows of your own, with the run's columns
    #[arg(long = "input_csv", alias = "input-csv", value_name = "FILE")]
    pub input_csv: Option<PathBuf>,
    #[command(flatten)]
    pub tuning: TuningArgs,
    /// Also score these runs on the same rows, and print the differences
    #[arg(long, num_args = 1.., value_name = "RUN")]
    pub compare: Vec<PathBuf>,
    /// Show in report.html and errors.jsonl which words weighed in the errors (integrated gradients); takes about as long as
    /// training on 50 rows for each error
    #[arg(long, conflicts_with_all = ["no_text", "suggest"])]
    pub explain: bool,
    /// Score nothing: write the N most useful rows of --input_csv, which need no labels, to label next, to
    /// suggested.jsonl
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with_all = ["tune_thresholds", "compare", "split"])]
    pub suggest: Option<usize>,
    /// Print the scores as JSON, as in metrics.json
    #[arg(long)]
    pub json: bool,
    /// Leave the rows' texts out of report.html and errors.jsonl
    #[arg(long = "no_text", alias = "no-text")]
    pub no_text: bool,
    /// Directory for metrics.json, predictions.jsonl, errors.jsonl and report.html [default: eval_NAME/ in the
    /// seed's directory]
    #[arg(long = "output_dir", alias = "output-dir", value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
}

/// The kind of question that the model answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// A yes or no for each label, whose probabilities count
    #[default]
    Likelihood,
    /// A JSON list of labels, word by word
    Generate,
}

#[derive(Args, Debug)]
pub struct ZeroshotArgs {
    /// YAML configuration, as with --config
    #[arg(value_name = "CONFIG", conflicts_with = "config")]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub config: ConfigArgs,
    /// The rows to score
    #[arg(long, value_enum, default_value = "test")]
    pub split: Split,
    /// The kind of answer
    #[arg(long, value_enum, default_value = "likelihood")]
    pub method: Method,
    /// Show the model N training rows, chosen so that every label occurs once where it can
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = value_parser!(u16).range(0..=1000))]
    pub shots: u16,
    /// Chooses the rows of --shots [default: the first of exp.seeds]
    #[arg(long, value_name = "SEED")]
    pub seed: Option<u32>,
    /// Let the model answer with any words, and count the labels that it invents and the lists that are broken; with
    /// --method generate
    #[arg(long)]
    pub unconstrained: bool,
    /// Predict a label for every row: the most likely one if none is above its threshold; with --method generate,
    /// lists are never empty
    #[arg(long = "always_one", alias = "always-one")]
    pub always_one: bool,
    /// Fit probabilities to the validation split (Platt scaling with a shift for each label)
    #[arg(long)]
    pub calibrate: bool,
    #[command(flatten)]
    pub tuning: TuningArgs,
    /// Also score these runs on the same rows, and print the differences
    #[arg(long, num_args = 1.., value_name = "RUN")]
    pub compare: Vec<PathBuf>,
    /// Prompts answered at once with --method generate [default: train.eval_batch_size]
    #[arg(long = "batch_size", alias = "batch-size", value_name = "N", value_parser = positive)]
    pub batch_size: Option<usize>,
    /// Print the scores as JSON, as in metrics.json
    #[arg(long)]
    pub json: bool,
    /// Leave the rows' texts out of report.html and errors.jsonl, and write no prompt.txt
    #[arg(long = "no_text", alias = "no-text")]
    pub no_text: bool,
}
