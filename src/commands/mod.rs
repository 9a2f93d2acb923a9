//! One file a subcommand: they wire parts together and do no maths.

pub mod bench;
pub mod check;
pub mod eval;
pub mod predict;
pub mod prepare;
mod report;
mod resume;
pub mod setup;
mod summary;
pub mod train;
mod warnings;

use anyhow::Result;

use crate::cli::{Cli, Command, ConfigArgs};
use crate::config::Config;
use crate::console::Console;
use crate::device;

/// Runs a command.
///
/// # Errors
/// If it fails; the message is for the user.
pub fn run(cli: &Cli) -> Result<()> {
    device::choose(&cli.global.device)?;
    device::start_threads(cli.global.threads)?;
    let console = Console::new(cli.global.quiet);
    match &cli.command {
        Command::Train(args) => train::run(args, console),
        Command::Eval(args) => eval::run(args, console),
        Command::Predict(args) => predict::run(args, console),
        Command::Prepare(args) => prepare::run(&args.source, console),
        Command::Check(args) => check::run(&args.config, console),
        Command::Bench(args) => bench::run(args, console),
    }
}

/// The configuration that the flags name; `None` if they name none.
fn load_config(args: &ConfigArgs) -> Result<Option<Config>> {
    if args.config.is_empty() {
        anyhow::ensure!(args.set.is_empty(), "--set needs --config: it changes a key of a configuration");
        return Ok(None);
    }
    let mut config = Config::load(&args.config, &args.set)?;
    if let Some(root) = &args.override_output_root {
        config.exp.output_root.clone_from(root);
    }
    Ok(Some(config))
}
