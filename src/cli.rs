//! The command line: names, help and paths. No work is done here.

use std::path::PathBuf;

use crate::data::formats::Quoting;
use crate::thresholds::Objective;
use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};

/// Fine-tune a pretrained language model into a text classifier.
#[derive(Debug, Parser)]
#[command(name = "llmcls", version = env!("LLMCLS_VERSION"), about, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Settings of every command.
    #[command(flatten)]
    pub global: Global,
}

impl Cli {
    /// Takes files given without `--config` as if they had been given with it.
    #[must_use]
    pub fn settled(mut self) -> Self {
        let (files, config) = match &mut self.command {
            Command::Train(args) => (&mut args.files, &mut args.config),
            Command::Check(args) => (&mut args.files, &mut args.config),
            _ => return self,
        };
        config.config.append(files);
        self
    }
}

const CONFIGURATION: &str = "Configuration";
const CLASSIFIER: &str = "Classifier";
const GLOBAL: &str = "Global options";

const EXAMPLES: &str = "\
Examples:
  llmcls init tickets.csv
  llmcls train tickets/config.yaml
  llmcls eval --split test
  llmcls predict new.csv -o predictions.csv
  llmcls predict --text \"I was charged twice\"

Names of options can be written with underscores or with hyphens: --input_csv is --input-csv.

Exit codes: 0 success (also when the reader of standard output has gone, as `head` does), 1 failure, 2 wrong usage, \
130 or 143 after Ctrl-C or SIGTERM.";

/// The most rows or tokens that a flag may ask for at once.
const MOST: usize = 1 << 20;

/// A count that is neither 0 nor beyond any use.
fn positive(text: &str) -> Result<usize, String> {
    let count = text.trim().parse().ok().filter(|count| (1..=MOST).contains(count));
    count.ok_or_else(|| format!("expected a whole number from 1 to {MOST}"))
}

/// Settings of every command.
#[derive(Args, Debug)]
pub struct Global {
    /// Where to compute: auto, cpu, cuda or cuda:N in a build with CUDA
    #[arg(long, global = true, default_value = "auto", value_name = "DEVICE", help_heading = GLOBAL)]
    pub device: String,
    /// Worker threads, at most 1024 [default: one a core]
    #[arg(
        long,
        global = true,
        value_name = "N",
        value_parser = value_parser!(u16).range(1..=1024),
        help_heading = GLOBAL
    )]
    pub threads: Option<u16>,
    /// Say only what went wrong
    #[arg(long, short, global = true, help_heading = GLOBAL)]
    pub quiet: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start from one file of labelled texts: splits, and a configuration that trains as it is
    ///
    /// Recognises the columns of a CSV, JSON Lines or Parquet file or an export that `prepare` reads, splits the
    /// rows, and writes train.csv, validation.csv, test.csv and config.yaml into a new directory. The source stays
    /// as it is.
    Init(InitArgs),
    /// Fine-tune a classifier, once for each seed
    ///
    /// Reads the YAML configuration and its CSV files, trains adapters and a classification head,
    /// and writes a self-contained run under outputs/MODEL/DATASET/run_TIME/.
    Train(TrainArgs),
    /// Score a trained classifier on labelled rows
    ///
    /// Prints precision, recall and F1 of each label, and writes metrics, predictions, the worst errors and
    /// a report.
    Eval(EvalArgs),
    /// Predict the labels of the rows of a file
    ///
    /// Writes one JSON object a line, in input order:
    /// {"id", "probs": [...], "labels": [...], "predicted": [...]}
    Predict(PredictArgs),
    /// Make training files of rows that list their labels
    ///
    /// Writes CSV files for training, validation and test with one column of 0 and 1 for each label, and
    /// a JSON file that says which label a column stands for. Rows are streamed.
    Prepare(PrepareArgs),
    /// Check the data and estimate memory and time, without training
    ///
    /// Reads configuration, data, tokenizer and model, reports labels, lengths, duplicates and leaks,
    /// estimates memory, and times a few steps. Writes nothing.
    Check(CheckArgs),
    /// Time training or inference steps of a configuration's model
    ///
    /// Prints one JSON object: seconds a step, tokens a second, bytes, and the share of the rate of
    /// this machine's matrix products that a step reaches. The configuration's data are not read.
    Bench(BenchArgs),
    /// List the runs, newest first: date, model, data, rows, seeds, scores and state
    Runs(RunsArgs),
    /// Print a JSON Schema of the configuration file, for editors
    ConfigSchema,
    /// Print the completions of a shell
    ///
    /// For bash: llmcls completions bash > ~/.local/share/bash-completion/completions/llmcls
    Completions(CompletionsArgs),
    /// Print a man page: llmcls man | man -l -
    Man(ManArgs),
}

/// `llmcls init`
#[derive(Args, Debug)]
pub struct InitArgs {
    /// Labelled texts: CSV, JSON Lines, Parquet, or an export of Label Studio, Argilla, Prodigy or fastText
    #[arg(value_name = "DATA")]
    pub data: PathBuf,
    /// The column with the text; several are joined [default: recognised]
    #[arg(long, value_name = "COLUMN,…", value_delimiter = ',')]
    pub text: Vec<String>,
    /// The column with a row's id [default: recognised]
    #[arg(long, value_name = "COLUMN")]
    pub id: Option<String>,
    /// One column that lists labels, or columns of 0 and 1 [default: recognised]
    #[arg(long, value_name = "COLUMN,…", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// Between labels, where they are no list [default: the one of , ; | that the rows use]
    #[arg(long = "label_separator", alias = "label-separator", value_name = "TEXT")]
    pub label_separator: Option<String>,
    /// Names of the places of multi-hot lists: a JSON list, or one a line
    #[arg(long = "label_names", alias = "label-names", value_name = "FILE")]
    pub label_names: Option<PathBuf>,
    /// Whether a row has exactly one label [default: single if all rows do]
    #[arg(long = "problem_type", alias = "problem-type", value_enum, value_name = "TYPE")]
    pub problem_type: Option<LabelsOfARow>,
    /// Validation rows that are ready, of the same form [default: 10% of DATA]
    #[arg(long, value_name = "FILE")]
    pub val: Option<PathBuf>,
    /// Test rows that are ready, of the same form [default: 10% of DATA]
    #[arg(long, value_name = "FILE")]
    pub test: Option<PathBuf>,
    /// The base: a directory, or org/name on the Hub
    #[arg(
        long = "model_name",
        alias = "model-name",
        value_name = "NAME",
        default_value = crate::experiment::choices::DEFAULT_BASE
    )]
    pub model_name: String,
    /// Where the files go [default: a directory with the name of DATA, without its ending]
    #[arg(long = "out_dir", alias = "out-dir", value_name = "DIR")]
    pub out_dir: Option<PathBuf>,
    /// Seed of the split
    #[arg(long, default_value_t = 42, value_name = "N")]
    pub seed: u32,
    /// Quotes in CSV files: `standard`, or `none` to take them as characters
    #[arg(long, default_value = "standard", value_name = "QUOTING")]
    pub quoting: Quoting,
}

/// How many labels a row has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LabelsOfARow {
    /// Any number
    #[value(name = "multi_label_classification", aliases = ["multi", "multi-label", "multi_label"])]
    Multi,
    /// Exactly one
    #[value(name = "single_label_classification", aliases = ["single", "single-label", "single_label"])]
    Single,
}

/// `llmcls runs`
#[derive(Args, Debug)]
pub struct RunsArgs {
    /// Print a JSON list with all of it
    #[arg(long)]
    pub json: bool,
    /// Look for runs under this directory
    #[arg(
        long = "override_output_root",
        aliases = ["override-output-root", "output_root", "output-root"],
        value_name = "DIR",
        default_value = "outputs"
    )]
    pub output_root: PathBuf,
}

/// `llmcls completions`
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

/// `llmcls man`
#[derive(Args, Debug)]
pub struct ManArgs {
    /// The page of this command [default: of llmcls itself]
    #[arg(value_name = "COMMAND")]
    pub of: Option<String>,
}

/// Where a configuration comes from.
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigArgs {
    /// YAML configuration; may be given several times, later files over earlier ones
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

/// `llmcls train`
#[derive(Args, Debug)]
pub struct TrainArgs {
    /// YAML configuration, as with --config
    #[arg(value_name = "CONFIG", conflicts_with_all = ["config", "resume"])]
    pub files: Vec<PathBuf>,
    /// The configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Go on with a run that was stopped, from its last checkpoint, as if it had not been;
    /// --config and --set may change only what does not change the result
    #[arg(long, value_name = "DIR")]
    pub resume: Option<PathBuf>,
    /// Stop before the first step, as `llmcls check` does
    #[arg(long = "dry_run", alias = "dry-run", conflicts_with = "resume")]
    pub dry_run: bool,
    /// Leave texts of rows out of report.html
    #[arg(long = "no_text", alias = "no-text")]
    pub no_text: bool,
    /// Print the results as JSON: the run's directory, and what its summary.json holds
    #[arg(long)]
    pub json: bool,
}

/// `llmcls check`
#[derive(Args, Debug, Default)]
pub struct CheckArgs {
    /// YAML configuration, as with --config
    #[arg(value_name = "CONFIG", conflicts_with = "config")]
    pub files: Vec<PathBuf>,
    /// The configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Train TF-IDF with logistic regression on the same rows, and score it on the test rows, or on validation
    #[arg(long)]
    pub baseline: bool,
    /// Print what was found as JSON, with all labels
    #[arg(long)]
    pub json: bool,
}

/// Which trained classifier.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// A run, one of its seed directories, or a directory that peft saved
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

/// How many thresholds `eval` finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TuneScope {
    /// One for all labels
    Global,
    /// One a label; those with few positive rows are drawn to the global one
    #[value(name = "per_label", alias = "per-label")]
    PerLabel,
}

/// `llmcls eval`
#[derive(Args, Debug)]
pub struct EvalArgs {
    /// The classifier.
    #[command(flatten)]
    pub run: RunArgs,
    /// A split of the run's data [default: test]
    #[arg(long, value_enum, conflicts_with = "input_csv")]
    pub split: Option<Split>,
    /// Labelled rows of your own, with the run's columns
    #[arg(long = "input_csv", alias = "input-csv", value_name = "FILE")]
    pub input_csv: Option<PathBuf>,
    /// First find thresholds on the run's validation split, and store them in the classifier
    #[arg(long = "tune_thresholds", alias = "tune-thresholds", value_enum, value_name = "SCOPE")]
    pub tune_thresholds: Option<TuneScope>,
    /// What thresholds are found for: f1, precision>=P or recall>=R
    #[arg(long, default_value = "f1", requires = "tune_thresholds")]
    pub objective: Objective,
    /// Score these runs, too, on the same rows, and say by how much they differ
    #[arg(long, num_args = 1.., value_name = "RUN")]
    pub compare: Vec<PathBuf>,
    /// Score nothing: write the N most useful rows of --input_csv, which need no labels, to label next, to
    /// suggested.jsonl
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with_all = ["tune_thresholds", "compare", "split"])]
    pub suggest: Option<usize>,
    /// Print the scores as JSON, as metrics.json holds them
    #[arg(long)]
    pub json: bool,
    /// Leave texts of rows out of report.html and errors.jsonl
    #[arg(long = "no_text", alias = "no-text")]
    pub no_text: bool,
    /// Where metrics.json, predictions.jsonl, errors.jsonl and report.html go [default: eval_NAME/ in the
    /// seed's directory]
    #[arg(long = "output_dir", alias = "output-dir", value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
}

/// `llmcls predict`
#[derive(Args, Debug)]
pub struct PredictArgs {
    /// The classifier.
    #[command(flatten)]
    pub run: RunArgs,
    /// Rows to predict, with the run's text columns: CSV, or by its ending .tsv, .jsonl or .parquet; - reads
    /// standard input and answers row by row on standard output
    #[arg(value_name = "INPUT", conflicts_with_all = ["input_csv", "text"])]
    pub input: Option<PathBuf>,
    /// A text to predict, in place of a file; may be given several times. Prints to standard output
    #[arg(long, value_name = "TEXT", conflicts_with = "input_csv", allow_hyphen_values = true)]
    pub text: Vec<String>,
    /// Where predictions go: JSON lines, or by its ending .csv, .tsv or .parquet; - is standard output
    /// [default: preds.jsonl]
    #[arg(long, short, value_name = "FILE", conflicts_with = "output_jsonl")]
    pub output: Option<PathBuf>,
    /// Go on with the output of a job that was killed, given the same arguments
    #[arg(long)]
    pub resume: bool,
    /// Say which words weighed for each predicted label, or for the most likely one if none is predicted, by integrated
    /// gradients; about fifty times the time
    #[arg(long)]
    pub explain: bool,
    /// The same as INPUT
    #[arg(long = "input_csv", alias = "input-csv", value_name = "FILE")]
    pub input_csv: Option<PathBuf>,
    /// The same as --output
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

/// `llmcls prepare`
#[derive(Args, Debug)]
pub struct PrepareArgs {
    /// Where rows come from.
    #[command(subcommand)]
    pub source: PrepareSource,
}

/// Where rows come from.
#[derive(Debug, Subcommand)]
pub enum PrepareSource {
    /// AmazonCat-13K with its most frequent labels, as configs/default.yaml reads it
    Amazoncat(AmazoncatArgs),
    /// A CSV, JSON Lines or Parquet file with a column that lists labels, or an export of Label Studio, Argilla,
    /// Prodigy or fastText
    Lists(ListsArgs),
}

/// What both kinds of preparation take.
#[derive(Args, Debug)]
pub struct PrepareCommon {
    /// Part of the training rows that becomes the validation split
    #[arg(long = "val_size", alias = "val-size", default_value_t = 0.1, value_name = "PART")]
    pub val_size: f64,
    /// Seed of the split
    #[arg(long, default_value_t = 42, value_name = "N")]
    pub seed: u32,
    /// Quotes in CSV files: `standard`, or `none` to take them as characters
    #[arg(long, default_value = "standard", value_name = "QUOTING")]
    pub quoting: Quoting,
    /// Keep rows that have none of the chosen labels
    #[arg(long = "keep_all_rows", alias = "keep-all-rows")]
    pub keep_all_rows: bool,
    /// Replace files that exist
    #[arg(long)]
    pub overwrite: bool,
    /// What label columns' names start with
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub prefix: String,
    /// Names of labels that are numbers from 0, or of the places in multi-hot lists: a JSON list, or one a line
    #[arg(long = "label_names", alias = "label-names", value_name = "FILE")]
    pub label_names: Option<PathBuf>,
}

/// `llmcls prepare amazoncat`
#[derive(Args, Debug)]
pub struct AmazoncatArgs {
    /// Local files of the data set's form (train*.parquet, test*.jsonl, …), in place of a download
    #[arg(long = "input_dir", alias = "input-dir", value_name = "DIR")]
    pub input_dir: Option<PathBuf>,
    /// The data set on the Hub
    #[arg(long, default_value = "pietrolesci/amazoncat-13k", value_name = "NAME", conflicts_with = "input_dir")]
    pub dataset: String,
    /// How many labels, the most frequent ones
    #[arg(long = "top_k", alias = "top-k", default_value_t = 10, value_name = "N")]
    pub top_k: usize,
    /// Which rows decide what is frequent
    #[arg(long = "derive_topk_from", alias = "derive-topk-from", value_enum, default_value = "train")]
    pub derive_topk_from: DeriveFrom,
    /// Write one column `text` in place of `title` and `content`
    #[arg(long = "no_title_content", alias = "no-title-content")]
    pub no_title_content: bool,
    /// The column that lists labels [default: the first of labels, target_ind, label, targets]
    #[arg(long = "labels_column", alias = "labels-column", value_name = "NAME")]
    pub labels_column: Option<String>,
    /// Where the files go
    #[arg(long = "out_dir", alias = "out-dir", default_value = "data/amazon_13k", value_name = "DIR")]
    pub out_dir: PathBuf,
    /// The rest.
    #[command(flatten)]
    pub common: PrepareCommon,
}

/// Which rows decide what is frequent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeriveFrom {
    /// Training rows without those of the validation split
    Train,
    /// Those and the test rows
    #[value(name = "train+test")]
    TrainAndTest,
    /// All rows
    All,
}

/// `llmcls prepare lists`
#[derive(Args, Debug)]
pub struct ListsArgs {
    /// Rows; the ending tells their form
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// The column that lists labels, or the question of an export [default: the only one]
    #[arg(long = "labels_column", alias = "labels-column", value_name = "NAME")]
    pub labels_column: Option<String>,
    /// Between labels, where they are no list [default: the one of , ; | that the rows use]
    #[arg(long = "label_separator", alias = "label-separator", value_name = "TEXT")]
    pub label_separator: Option<String>,
    /// How many labels, the most frequent ones [default: all]
    #[arg(long = "top_k", alias = "top-k", value_name = "N")]
    pub top_k: Option<usize>,
    /// Part of the rows that becomes the test split
    #[arg(long = "test_size", alias = "test-size", default_value_t = 0.1, value_name = "PART")]
    pub test_size: f64,
    /// Where the files go
    #[arg(long = "out_dir", alias = "out-dir", value_name = "DIR")]
    pub out_dir: PathBuf,
    /// The rest.
    #[command(flatten)]
    pub common: PrepareCommon,
}

/// What a benchmark times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchMode {
    /// Forward, backward, clipping, AdamW
    Train,
    /// Forward only
    Infer,
}

impl BenchMode {
    /// The name in records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Infer => "infer",
        }
    }
}

/// `llmcls bench`
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// The configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// What to time
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
    /// Steps before that
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub warmup: usize,
}
