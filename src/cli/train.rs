//! Arguments of training, and of what comes before it.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::shared::{ConfigArgs, positive};

#[derive(Args, Debug)]
pub struct TrainArgs {
    /// YAML configuration, as with --config
    #[arg(value_name = "CONFIG", conflicts_with_all = ["config", "resume"])]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Continue a stopped run from its last checkpoint, to the same result;
    /// --config and --set may change only what does not change the result
    #[arg(long, value_name = "DIR")]
    pub resume: Option<PathBuf>,
    /// Stop before the first step, as `llmcls check` does
    #[arg(long = "dry_run", alias = "dry-run", conflicts_with = "resume")]
    pub dry_run: bool,
    /// Suggest a learning rate in place of training: one pass in which the rate rises from 1e-6 until the loss does,
    /// written as a curve under outputs/MODEL/DATASET/rates_TIME/
    #[arg(long = "find_lr", alias = "find-lr", conflicts_with_all = ["resume", "dry_run"])]
    pub find_lr: bool,
    /// Leave the rows' texts out of report.html
    #[arg(long = "no_text", alias = "no-text")]
    pub no_text: bool,
    /// Print the results as JSON: the run's directory, and the contents of its summary.json
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct SweepArgs {
    /// YAML configuration, as with --config
    #[arg(value_name = "CONFIG", conflicts_with_all = ["config", "resume"])]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Values to try for one key, such as train.learning_rate=[1e-4,2e-4,5e-4]; may be given several times
    #[arg(long, value_name = "KEY=[VALUE,…]")]
    pub grid: Vec<String>,
    /// Try N combinations, chosen at random by the first seed, in place of all
    #[arg(long, value_name = "N", value_parser = positive)]
    pub trials: Option<usize>,
    /// Suggest a learning rate by a range test first, and try a quarter, half, twice and four times of it, too
    #[arg(long = "find_lr", alias = "find-lr")]
    pub find_lr: bool,
    /// Train all combinations to the end
    #[arg(long = "keep_all", alias = "keep-all")]
    pub keep_all: bool,
    /// Continue a sweep that was stopped, to the same result
    #[arg(long, value_name = "DIR", conflicts_with_all = ["config", "set", "grid", "trials", "keep_all", "find_lr"])]
    pub resume: Option<PathBuf>,
    /// Print the results as JSON: the sweep's directory, best.yaml, and the contents of its summary.json
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug, Default)]
pub struct CheckArgs {
    /// YAML configuration, as with --config
    #[arg(value_name = "CONFIG", conflicts_with = "config")]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Train TF-IDF with logistic regression on the same rows, and score it on the test rows, or on validation
    #[arg(long)]
    pub baseline: bool,
    /// Print what was found as JSON, with all labels
    #[arg(long)]
    pub json: bool,
}

/// A kind of step to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchMode {
    /// Forward, backward, clipping, AdamW
    Train,
    /// Forward only
    Infer,
}

impl BenchMode {
    /// The name in the output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Infer => "infer",
        }
    }
}

#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Kind of step to time
    #[arg(long, value_enum, default_value = "train")]
    pub mode: BenchMode,
    /// Sequences in a batch
    #[arg(long = "batch_size", alias = "batch-size", default_value_t = 4, value_name = "N", value_parser = positive)]
    pub batch_size: usize,
    /// Tokens in a sequence
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = positive)]
    pub length: usize,
    /// Token ids to use instead: a JSON list of batches, each a list of lists
    #[arg(long, value_name = "FILE", conflicts_with_all = ["batch_size", "length"])]
    pub batches: Option<PathBuf>,
    /// Labels of the head
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = positive)]
    pub labels: usize,
    /// Timed steps
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = positive)]
    pub steps: usize,
    /// Warm-up steps, which are not timed
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub warmup: usize,
}
