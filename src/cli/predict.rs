//! Arguments of `llmcls predict`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use super::shared::{PrecisionArgs, RunArgs, positive};

#[derive(Args, Debug)]
pub struct PredictArgs {
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    pub precision: PrecisionArgs,
    /// Rows to predict, with the run's text columns: .csv, .tsv, .jsonl or .parquet; - reads
    /// standard input and answers row by row on standard output
    #[arg(value_name = "INPUT", conflicts_with_all = ["input_csv", "text"])]
    pub input: Option<PathBuf>,
    /// A text to predict, in place of a file; may be given several times. Prints to standard output
    #[arg(long, value_name = "TEXT", conflicts_with = "input_csv", allow_hyphen_values = true)]
    pub text: Vec<String>,
    /// File for predictions: .jsonl, .csv, .tsv or .parquet; - is standard output
    /// [default: preds.jsonl]
    #[arg(long, short, value_name = "FILE", conflicts_with = "output_jsonl")]
    pub output: Option<PathBuf>,
    /// Continue the output of a killed job; needs the same arguments
    #[arg(long)]
    pub resume: bool,
    /// Predict part I of N of a file's rows, for job arrays; the outputs of all parts, one after another, are the
    /// output of the whole
    #[arg(long, value_name = "I/N", conflicts_with = "text")]
    pub shard: Option<Shard>,
    /// Say which words weighed for each predicted label, or for the most likely one if none is predicted, by integrated
    /// gradients; about fifty times the time
    #[arg(long)]
    pub explain: bool,
    /// Same as INPUT
    #[arg(long = "input_csv", alias = "input-csv", value_name = "FILE")]
    pub input_csv: Option<PathBuf>,
    /// Same as --output
    #[arg(long = "output_jsonl", alias = "output-jsonl", value_name = "FILE")]
    pub output_jsonl: Option<PathBuf>,
    /// Predict labels above this probability, in place of the classifier's own thresholds: a number for
    /// all, or LABEL=NUMBER for one; may be given several times
    #[arg(long, value_name = "[LABEL=]P")]
    pub threshold: Vec<String>,
    /// Predict the most likely label if none is above its threshold
    #[arg(long = "always_one", alias = "always-one")]
    pub always_one: bool,
    /// Predict the N most likely labels, whatever their probability
    #[arg(
        long = "top_k",
        alias = "top-k",
        value_name = "N",
        value_parser = positive,
        conflicts_with_all = ["threshold", "always_one"]
    )]
    pub top_k: Option<usize>,
}

/// A part of a file's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub index: usize,
    /// Number of parts.
    pub count: usize,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        match numbers {
            Some((index, count)) if (1..=count).contains(&index) => Ok(Self { index: index - 1, count }),
            _ => Err("expected I/N with I from 1 to N, such as 1/4".to_owned()),
        }
    }
}
