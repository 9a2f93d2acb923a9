//! Arguments of making training files.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::data::formats::Quoting;

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
    /// The training rows that are left once the validation rows are taken out
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
