//! Arguments of commands about llmcls itself.

use std::path::PathBuf;

use clap::Args;

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
