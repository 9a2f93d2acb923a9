//! Arguments of what hands a classifier on.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

use super::shared::RunArgs;

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

impl FromStr for ByteCount {
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
