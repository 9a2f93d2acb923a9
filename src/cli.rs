//! The command line: names, help and paths. No work is done here.

use std::path::PathBuf;
use std::str::FromStr;

use crate::data::formats::Quoting;
use crate::predictor::Precision;
use crate::thresholds::Objective;
use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};

/// Fine-tune a pretrained language model into a text classifier.
#[derive(Debug, Parser)]
#[command(name = "llmcls", version = env!("LLMCLS_VERSION"), about, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub global: Global,
}

impl Cli {
    /// Moves files given without `--config` to where `--config` puts them.
    #[must_use]
    pub fn settled(mut self) -> Self {
        let (files, config) = match &mut self.command {
            Command::Train(args) => (&mut args.files, &mut args.config),
            Command::Sweep(args) => (&mut args.files, &mut args.config),
            Command::Check(args) => (&mut args.files, &mut args.config),
            Command::Zeroshot(args) => (&mut args.files, &mut args.config),
            _ => return self,
        };
        config.config.append(files);
        self
    }
}

const CONFIGURATION: &str = "Configuration";
const CLASSIFIER: &str = "Classifier";
const ACCESS: &str = "Access";
const LIMITS: &str = "Limits and batches";
const LOGS: &str = "Logs";
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

/// Parses a count from 1 to [`MOST`].
fn positive(text: &str) -> Result<usize, String> {
    let count = text.trim().parse().ok().filter(|count| (1..=MOST).contains(count));
    count.ok_or_else(|| format!("expected a whole number from 1 to {MOST}"))
}

/// Options of every command.
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
    /// Print warnings and errors only
    #[arg(long, short, global = true, help_heading = GLOBAL)]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Split one file of labelled texts and write a configuration that is ready to train
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
    /// Train with several values of some keys, and find the best
    ///
    /// Every combination is a run of its own. With four epochs or more, all train for a quarter of them, the better half
    /// goes on to one half, and the better half of those to the end (successive halving by train.metric_for_best_model).
    /// Writes best.yaml, summary.json and report.html under outputs/MODEL/DATASET/sweep_TIME/.
    Sweep(SweepArgs),
    /// Score a trained classifier on labelled rows
    ///
    /// Prints precision, recall and F1 of each label, and writes metrics, predictions, the worst errors and
    /// a report.
    Eval(EvalArgs),
    /// Score a pretrained model as it is: labels by a prompt, without training
    ///
    /// Asks a decoder, such as SmolLM2-135M-Instruct, about the rows of a split, and writes metrics, predictions and a
    /// report as `eval` does, under outputs/MODEL/DATASET/zeroshot_TIME/, beside the linear baseline. The model's
    /// own chat template writes the prompt where it has one; zeroshot.prompt and data.label_descriptions say what is in it.
    Zeroshot(ZeroshotArgs),
    /// Predict the labels of the rows of a file
    ///
    /// Writes one JSON object a line, in input order:
    /// {"id", "probs": [...], "labels": [...], "predicted": [...]}
    Predict(PredictArgs),
    /// Answer over HTTP: `POST /v1/predict`, the forms of other servers, and a page
    ///
    /// Serves one or more classifiers until SIGTERM or Ctrl-C, then lets requests in work finish. Classifiers over the
    /// same base share it in memory and in batches. docs/serve.md shows the routes.
    Serve(ServeArgs),
    /// Write a complete model that transformers reads: the adapter merged into its base
    ///
    /// Python opens the directory with AutoModelForSequenceClassification.from_pretrained or
    /// pipeline("text-classification", top_k=None), without peft and llmcls; llmcls takes it as --run, without the base.
    /// Its predictions are compared with the classifier's before it is there.
    Export(ExportArgs),
    /// Write one program that carries a classifier and needs nothing else
    ///
    /// The file is this program with base, adapter, tokenizer and thresholds appended. It has all commands; `predict`,
    /// `eval` and `serve` use its own classifier unless --run names another. Do not strip it.
    Bundle(BundleArgs),
    /// Upload a classifier to the Hugging Face Hub, in one commit
    ///
    /// Uploads the adapter, or with --merged a complete model, with card, thresholds and the run's report. Paths of this
    /// machine and texts of rows stay here. Needs HF_TOKEN, or a token that `hf auth login` stored.
    Push(PushArgs),
    /// Make training files from rows that list their labels
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
    /// List or clear the outputs of frozen layers, which training keeps
    ///
    /// With `model.lora_layers`, training computes the layers below the first adapter once for each text and keeps
    /// their output in llmcls/activations of the user's cache directory, up to `train.cache_limit`.
    Cache(CacheArgs),
    /// Print a JSON Schema of the configuration file, for editors
    ConfigSchema,
    /// Print the completions of a shell
    ///
    /// For bash: llmcls completions bash > ~/.local/share/bash-completion/completions/llmcls
    Completions(CompletionsArgs),
    /// Print a man page: llmcls man | man -l -
    Man(ManArgs),
}

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
    /// Text between labels that are not in a list [default: the one of , ; | that the rows use]
    #[arg(long = "label_separator", alias = "label-separator", value_name = "TEXT")]
    pub label_separator: Option<String>,
    /// Names of the entries of multi-hot lists: a JSON list, or one a line
    #[arg(long = "label_names", alias = "label-names", value_name = "FILE")]
    pub label_names: Option<PathBuf>,
    /// Labels of a row: any number, or exactly one [default: one if all rows have one]
    #[arg(long = "problem_type", alias = "problem-type", value_enum, value_name = "TYPE")]
    pub problem_type: Option<LabelsOfARow>,
    /// Ready validation rows with the same columns [default: 10% of DATA]
    #[arg(long, value_name = "FILE")]
    pub val: Option<PathBuf>,
    /// Ready test rows with the same columns [default: 10% of DATA]
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
    /// Directory for the files [default: named like DATA, without its extension]
    #[arg(long = "out_dir", alias = "out-dir", value_name = "DIR")]
    pub out_dir: Option<PathBuf>,
    /// Seed of the split
    #[arg(long, default_value_t = 42, value_name = "N")]
    pub seed: u32,
    /// Quotes in CSV files: `standard`, or `none` to take them as characters
    #[arg(long, default_value = "standard", value_name = "QUOTING")]
    pub quoting: Quoting,
}

/// The number of labels that a row may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LabelsOfARow {
    /// Any number of labels
    #[value(name = "multi_label_classification", aliases = ["multi", "multi-label", "multi_label"])]
    Multi,
    /// Exactly one label
    #[value(name = "single_label_classification", aliases = ["single", "single-label", "single_label"])]
    Single,
}

#[derive(Args, Debug)]
pub struct CacheArgs {
    /// Remove all of it
    #[arg(long, conflicts_with = "json")]
    pub clear: bool,
    /// Print a JSON list
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct RunsArgs {
    /// Print everything as a JSON list
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

#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
pub struct ManArgs {
    /// Command to describe [default: llmcls itself]
    #[arg(value_name = "COMMAND")]
    pub of: Option<String>,
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
    /// What products with the base's weights are computed in on the CPU [default: as in training]
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
    /// First choose thresholds on the run's validation split, and store them in the classifier
    #[arg(long = "tune_thresholds", alias = "tune-thresholds", value_enum, value_name = "SCOPE")]
    pub tune_thresholds: Option<TuneScope>,
    /// The goal of each threshold: f1, precision>=P or recall>=R
    #[arg(long, default_value = "f1", requires = "tune_thresholds")]
    pub objective: Objective,
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

/// How the model is asked.
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
    /// Choose thresholds on the validation split
    #[arg(long = "tune_thresholds", alias = "tune-thresholds", value_enum, value_name = "SCOPE")]
    pub tune_thresholds: Option<TuneScope>,
    /// The goal of each threshold: f1, precision>=P or recall>=R
    #[arg(long, default_value = "f1", requires = "tune_thresholds")]
    pub objective: Objective,
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

/// `llmcls serve`
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// A run, one of its seed directories, or a directory that peft saved, and the name that requests give it; may be
    /// given several times, and the first answers requests that name none
    /// [default: the newest finished run, unless --models is given]
    #[arg(long, value_name = "[NAME=]RUN", help_heading = CLASSIFIER)]
    pub run: Vec<String>,
    /// Serve every run in this directory under the name of its subdirectory, as they come and go
    #[arg(long, value_name = "DIR", help_heading = CLASSIFIER)]
    pub models: Option<PathBuf>,
    /// Selects the newest run of its model and data set; names base and labels of a peft directory. `--set` takes
    /// model.model_name.
    #[command(flatten)]
    pub config: ConfigArgs,
    #[command(flatten)]
    pub precision: PrecisionArgs,
    /// Listen on this name or address; 0.0.0.0 takes requests from other machines
    #[arg(long, default_value = "127.0.0.1", value_name = "HOST")]
    pub host: String,
    /// Listen on this port; 0 takes a free one
    #[arg(long, default_value_t = 8080, value_name = "PORT")]
    pub port: u16,
    /// Load and drop models by requests to this address, such as 127.0.0.1:8081
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub admin: Option<std::net::SocketAddr>,
    /// Ask requests for a key of this file, one a line, or of the environment variable LLMCLS_API_KEY
    #[arg(long = "api_key_file", alias = "api-key-file", value_name = "FILE", help_heading = ACCESS)]
    pub api_key_file: Option<PathBuf>,
    /// Ask for a key at /health, /ping and /v2/health, too
    #[arg(long = "protect_health", alias = "protect-health", help_heading = ACCESS)]
    pub protect_health: bool,
    /// Ask for no key at /metrics
    #[arg(long = "open_metrics", alias = "open-metrics", help_heading = ACCESS)]
    pub open_metrics: bool,
    /// Take requests for this host name, beside localhost; may be given several times
    #[arg(long = "allow_host", alias = "allow-host", value_name = "NAME", help_heading = ACCESS)]
    pub allow_host: Vec<String>,
    /// Let web pages of this origin read answers (CORS), such as `https://example.org`; may be given several times
    #[arg(long = "allow_origin", alias = "allow-origin", value_name = "ORIGIN", help_heading = ACCESS)]
    pub allow_origin: Vec<String>,
    /// Texts in a request; more are refused with 413
    #[arg(long = "max_texts", alias = "max-texts", value_name = "N", default_value_t = 256, value_parser = positive, help_heading = LIMITS)]
    pub max_texts: usize,
    /// Tokens in a request; more are refused with 413
    #[arg(long = "max_tokens", alias = "max-tokens", value_name = "N", default_value_t = 131_072, value_parser = positive, help_heading = LIMITS)]
    pub max_tokens: usize,
    /// Kibibytes of a request; more are refused with 413
    #[arg(long = "max_kib", alias = "max-kib", value_name = "N", default_value_t = 2048, value_parser = positive, help_heading = LIMITS)]
    pub max_kib: usize,
    /// Texts that wait or are in work; further requests are refused with 429
    #[arg(long = "max_queue", alias = "max-queue", value_name = "N", default_value_t = 1024, value_parser = positive, help_heading = LIMITS)]
    pub max_queue: usize,
    /// Open connections; further ones wait
    #[arg(long = "max_connections", alias = "max-connections", value_name = "N", default_value_t = 512, value_parser = positive, help_heading = LIMITS)]
    pub max_connections: usize,
    /// Seconds in which the head of a request must come, and then its body
    #[arg(long = "read_timeout", alias = "read-timeout", value_name = "SECONDS", default_value_t = 20, value_parser = value_parser!(u16).range(1..=600), help_heading = LIMITS)]
    pub read_timeout: u16,
    /// Seconds that requests in work have after SIGTERM
    #[arg(long = "drain", value_name = "SECONDS", default_value_t = 25, value_parser = value_parser!(u16).range(0..=3600), help_heading = LIMITS)]
    pub drain: u16,
    /// Tokens in a batch
    #[arg(long = "batch_tokens", alias = "batch-tokens", value_name = "N", default_value_t = 1024, value_parser = positive, help_heading = LIMITS)]
    pub batch_tokens: usize,
    /// Milliseconds that a batch waits for more texts; without it, a batch has what came during the last one
    #[arg(long = "batch_wait", alias = "batch-wait", value_name = "MS", default_value_t = 0, value_parser = value_parser!(u16).range(0..=1000), help_heading = LIMITS)]
    pub batch_wait: u16,
    /// Cut texts that are too long at every route; without it, /predict and /classify refuse them unless the request
    /// asks for it
    #[arg(long = "auto_truncate", alias = "auto-truncate", help_heading = LIMITS)]
    pub auto_truncate: bool,
    /// Log lines for people, or JSON
    #[arg(long = "log_format", alias = "log-format", value_enum, default_value = "lines", value_name = "FORMAT", help_heading = LOGS)]
    pub log_format: LogFormat,
    /// Write the texts of requests into the log
    #[arg(long = "log_texts", alias = "log-texts", help_heading = LOGS)]
    pub log_texts: bool,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Plain lines
    Lines,
    /// An object a line
    Json,
}

/// `llmcls export`
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// The classifier.
    #[command(flatten)]
    pub run: RunArgs,
    /// The directory to write, which must not be there yet
    #[arg(long, short, value_name = "DIR")]
    pub out: PathBuf,
    /// Storage of the weights [default: as the base was stored in training; float32 if that was 4 bits]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub dtype: Option<StoredType>,
    /// The largest file of weights, such as 500MB; a larger model is written in shards
    #[arg(long = "max_shard_size", alias = "max-shard-size", value_name = "SIZE", default_value = "5GB")]
    pub max_shard_size: ByteCount,
}

/// `llmcls bundle`
#[derive(Args, Debug)]
pub struct BundleArgs {
    /// The classifier.
    #[command(flatten)]
    pub run: RunArgs,
    /// The program to write
    #[arg(long, short, value_name = "FILE")]
    pub out: PathBuf,
    /// Store the matrices of the base in 8 bits: a smaller file, and probabilities that differ a little
    #[arg(long)]
    pub int8: bool,
}

/// `llmcls push`
#[derive(Args, Debug)]
pub struct PushArgs {
    /// The classifier.
    #[command(flatten)]
    pub run: RunArgs,
    /// The repository, which is made if it is not there
    #[arg(long, value_name = "OWNER/NAME")]
    pub repo: String,
    /// Make it private; a public repository is refused
    #[arg(long)]
    pub private: bool,
    /// Upload a complete model, as `export` writes it, in place of the adapter
    #[arg(long)]
    pub merged: bool,
    /// Storage of a complete model's weights [default: as `export`]
    #[arg(long, value_enum, value_name = "TYPE", requires = "merged")]
    pub dtype: Option<StoredType>,
    /// Leave out the run's report.html, which otherwise is uploaded without the texts of rows
    #[arg(long = "no_report", alias = "no-report")]
    pub no_report: bool,
    /// List files and sizes, and upload nothing
    #[arg(long = "dry_run", alias = "dry-run")]
    pub dry_run: bool,
}

/// Storage of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StoredType {
    /// 4 bytes a weight
    Float32,
    /// 2 bytes a weight, float32's range
    Bfloat16,
    /// 2 bytes a weight
    Float16,
}

/// A number of bytes, written with the units of transformers: KB, MB and GB are powers of 1000, KiB, MiB and GiB of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteCount(pub u64);

impl std::str::FromStr for ByteCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let unit = match text[digits..].trim() {
            "" | "B" => 1,
            "KB" => 1000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err("expected a number of bytes such as 500MB or 5GB".to_owned()),
        };
        let count = text[..digits].parse::<u64>().ok().and_then(|count| count.checked_mul(unit));
        count.filter(|count| *count > 0).map(Self).ok_or_else(|| "expected a number of bytes such as 5GB".to_owned())
    }
}

/// A part of a file's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub index: usize,
    /// How many parts there are.
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

#[derive(Args, Debug)]
pub struct PrepareArgs {
    #[command(subcommand)]
    pub source: PrepareSource,
}

/// A source of rows.
#[derive(Debug, Subcommand)]
pub enum PrepareSource {
    /// AmazonCat-13K with its most frequent labels, as configs/default.yaml reads it
    Amazoncat(AmazoncatArgs),
    /// A CSV, JSON Lines or Parquet file with a column that lists labels, or an export of Label Studio, Argilla,
    /// Prodigy or fastText
    Lists(ListsArgs),
}

/// Options of every source.
#[derive(Args, Debug)]
pub struct PrepareCommon {
    /// Share of the training rows that becomes the validation split
    #[arg(long = "val_size", alias = "val-size", default_value_t = 0.1, value_name = "PART")]
    pub val_size: f64,
    /// Seed of the split
    #[arg(long, default_value_t = 42, value_name = "N")]
    pub seed: u32,
    /// Quotes in CSV files: `standard`, or `none` to take them as characters
    #[arg(long, default_value = "standard", value_name = "QUOTING")]
    pub quoting: Quoting,
    /// Also keep rows that have none of the kept labels
    #[arg(long = "keep_all_rows", alias = "keep-all-rows")]
    pub keep_all_rows: bool,
    /// Replace existing files
    #[arg(long)]
    pub overwrite: bool,
    /// Prefix of the names of label columns
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub prefix: String,
    /// Names of labels that are numbers from 0, or of the entries of multi-hot lists: a JSON list, or one a line
    #[arg(long = "label_names", alias = "label-names", value_name = "FILE")]
    pub label_names: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct AmazoncatArgs {
    /// Directory with local files (train*.parquet, test*.jsonl, …), in place of a download
    #[arg(long = "input_dir", alias = "input-dir", value_name = "DIR")]
    pub input_dir: Option<PathBuf>,
    /// The data set on the Hub
    #[arg(long, default_value = "pietrolesci/amazoncat-13k", value_name = "NAME", conflicts_with = "input_dir")]
    pub dataset: String,
    /// Keep the N most frequent labels
    #[arg(long = "top_k", alias = "top-k", default_value_t = 10, value_name = "N")]
    pub top_k: usize,
    /// Rows in which labels are counted to find the most frequent ones
    #[arg(long = "derive_topk_from", alias = "derive-topk-from", value_enum, default_value = "train")]
    pub derive_topk_from: DeriveFrom,
    /// Write one column `text` in place of `title` and `content`
    #[arg(long = "no_title_content", alias = "no-title-content")]
    pub no_title_content: bool,
    /// The column that lists labels [default: the first of labels, target_ind, label, targets]
    #[arg(long = "labels_column", alias = "labels-column", value_name = "NAME")]
    pub labels_column: Option<String>,
    /// Directory for the files
    #[arg(long = "out_dir", alias = "out-dir", default_value = "data/amazon_13k", value_name = "DIR")]
    pub out_dir: PathBuf,
    #[command(flatten)]
    pub common: PrepareCommon,
}

/// Rows in which labels are counted.
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

#[derive(Args, Debug)]
pub struct ListsArgs {
    /// Rows: .csv, .tsv, .json, .jsonl or .parquet
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// The column that lists labels, or the question of an export [default: the only one]
    #[arg(long = "labels_column", alias = "labels-column", value_name = "NAME")]
    pub labels_column: Option<String>,
    /// Text between labels that are not in a list [default: the one of , ; | that the rows use]
    #[arg(long = "label_separator", alias = "label-separator", value_name = "TEXT")]
    pub label_separator: Option<String>,
    /// Keep the N most frequent labels [default: all]
    #[arg(long = "top_k", alias = "top-k", value_name = "N")]
    pub top_k: Option<usize>,
    /// Share of the rows that becomes the test split
    #[arg(long = "test_size", alias = "test-size", default_value_t = 0.1, value_name = "PART")]
    pub test_size: f64,
    /// Directory for the files
    #[arg(long = "out_dir", alias = "out-dir", value_name = "DIR")]
    pub out_dir: PathBuf,
    #[command(flatten)]
    pub common: PrepareCommon,
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
