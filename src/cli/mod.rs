//! The command line: names, help and paths. No work is done here.

mod data;
mod export;
mod predict;
mod score;
mod serve;
mod shared;
mod tools;
mod train;

use clap::{Args, Parser, Subcommand, value_parser};

pub use self::data::{
    AmazoncatArgs, DeriveFrom, InitArgs, LabelsOfARow, ListsArgs, PrepareArgs, PrepareCommon, PrepareSource,
};
pub use self::export::{BundleArgs, ByteCount, ExportArgs, PushArgs, StoredType};
pub use self::predict::{PredictArgs, Shard};
pub use self::score::{EvalArgs, Method, ZeroshotArgs};
pub use self::serve::{LogFormat, ServeArgs};
pub use self::shared::{ConfigArgs, PrecisionArgs, RunArgs, Split, TuneScope};
pub use self::tools::{CacheArgs, CompletionsArgs, ManArgs, RunsArgs};
pub use self::train::{BenchArgs, BenchMode, CheckArgs, SweepArgs, TrainArgs};

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
    /// Print results, warnings and errors only
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
    /// Every combination is a run of its own. With four epochs or more, all combinations train for a quarter of the epochs.
    /// The better half of them trains on until half of the epochs, and the better half of those to the end (successive
    /// halving by train.metric_for_best_model).
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
    /// Writes CSV files for training, validation and test with one column of 0 and 1 for each label. A JSON file names
    /// the label of each column. Files may be larger than the memory.
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
