//! Arguments that several commands have.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::predictor::Precision;

pub(super) const CONFIGURATION: &str = "Configuration";
pub(super) const CLASSIFIER: &str = "Classifier";
pub(super) const ACCESS: &str = "Access";
pub(super) const LIMITS: &str = "Limits and batches";
pub(super) const LOGS: &str = "Logs";

/// The most rows or tokens that a flag may ask for at once.
const MOST: usize = 1 << 20;

/// Parses a count from 1 to [`MOST`].
pub(super) fn positive(text: &str) -> Result<usize, String> {
    let count = text.trim().parse().ok().filter(|count| (1..=MOST).contains(count));
    count.ok_or_else(|| format!("expected a whole number from 1 to {MOST}"))
}

/// Where a configuration comes from.
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigArgs {
    /// YAML configuration; if given several times, later files override earlier ones
    #[arg(long, short, value_name = "FILE", help_heading = CONFIGURATION)]
    pub config: Vec<PathBuf>,
    /// Override one key, such as train.learning_rate=1e-4; may be given several times
    #[arg(long, value_name = "KEY=VALUE", help_heading = CONFIGURATION)]
    pub set: Vec<String>,
    /// Write and look for runs under this directory, in place of exp.output_root
    #[arg(
        long = "override_output_root",
        alias = "override-output-root",
        value_name = "DIR",
        help_heading = CONFIGURATION
    )]
    pub override_output_root: Option<PathBuf>,
}

/// Selects a trained classifier.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// A run, one of its seed directories, a directory that peft saved, or one that `export` wrote
    /// [default: the newest finished run, of --config's model and data set if given]
    #[arg(long, value_name = "DIR", help_heading = CLASSIFIER)]
    pub run: Option<PathBuf>,
    /// Selects the newest run of its model and data set; names base and labels of a peft directory.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Rows in a batch [default: train.eval_batch_size of the run]
    #[arg(
        long = "batch_size",
        alias = "batch-size",
        value_name = "N",
        value_parser = positive,
        help_heading = CLASSIFIER
    )]
    pub batch_size: Option<usize>,
}

/// Chooses how a trained classifier computes.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct PrecisionArgs {
    /// Number type in which the CPU multiplies by the base's weights [default: as in training]
    #[arg(long, value_enum, value_name = "TYPE", help_heading = CLASSIFIER)]
    pub precision: Option<Precision>,
    /// Use int8 even if it costs more than half a point of F1
    #[arg(long = "accept_loss", alias = "accept-loss", requires = "precision", help_heading = CLASSIFIER)]
    pub accept_loss: bool,
}

/// A split of the run's own data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Split {
    /// data.train_csv
    Train,
    /// data.val_csv
    Validation,
    /// data.test_csv
    Test,
}

impl Split {
    /// The name in file names.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

/// The number of thresholds that `eval` finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TuneScope {
    /// One for all labels
    Global,
    /// One for each label; labels with few positive rows get one near the global threshold
    #[value(name = "per_label", alias = "per-label")]
    PerLabel,
}
