//! One file a subcommand: they wire parts together and do no maths.

pub mod bench;
pub mod check;
mod configuration;
pub mod eval;
pub mod init;
pub mod loaded;
mod outcome;
pub mod predict;
mod predict_input;
mod predict_parquet;
pub mod prepare;
pub mod runs;
mod suggest;
pub mod train;

use anyhow::Result;
use clap::CommandFactory;

use crate::cli::{Cli, Command};
use crate::console::{Console, print, print_json};
use crate::device::{self, Choice};
use crate::exit::Usage;
use crate::kernels::device::{Device, HAS_CUDA};

/// Runs a command.
///
/// # Errors
/// If it fails; the message is for the user.
pub fn run(cli: &Cli) -> Result<()> {
    let choice = Choice::parse(&cli.global.device)?;
    device::start_threads(cli.global.threads.map_or(0, usize::from))?;
    let console = Console::new(cli.global.quiet);
    if let Command::Prepare(args) = &cli.command {
        return prepare::run(&args.source, console);
    }
    if let Command::ConfigSchema = &cli.command {
        return print_json(&crate::config::reference::json_schema());
    }
    if let Command::Completions(args) = &cli.command {
        let mut out = Vec::new();
        clap_complete::generate(args.shell, &mut Cli::command(), "llmcls", &mut out);
        return print(&String::from_utf8_lossy(&out));
    }
    if let Command::Man(args) = &cli.command {
        return print(&man_page(args.of.as_deref())?);
    }
    if let Command::Runs(args) = &cli.command {
        return runs::run(args);
    }
    let device = open(choice, console)?;
    match &cli.command {
        Command::Init(args) => init::run(args, &device, console),
        Command::Train(args) => train::run(args, &device, console),
        Command::Eval(args) => eval::run(args, &device, console),
        Command::Predict(args) => predict::run(args, &device, console),
        Command::Prepare(_) | Command::Runs(_) | Command::ConfigSchema | Command::Completions(_) | Command::Man(_) => {
            unreachable!("returned above")
        }
        Command::Check(args) => check::run(args, &device, console),
        Command::Bench(args) => bench::run(args, &device, console),
    }
}

/// The man page of the program or of a command, in roff.
fn man_page(of: Option<&str>) -> Result<String> {
    let mut whole = Cli::command();
    whole.build();
    let command = match of {
        None => whole,
        Some(name) => whole
            .find_subcommand(name)
            .cloned()
            .ok_or_else(|| Usage(format!("man: there is no command `{name}`; `llmcls help` lists them")))?,
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

/// Opens the device. With `auto`, a GPU that cannot be used is said, and the CPU taken.
fn open(choice: Choice, console: Console) -> Result<Device> {
    match choice {
        Choice::Cuda(ordinal) => Ok(Device::gpu(ordinal)?),
        Choice::Auto if HAS_CUDA => Ok(Device::gpu(0).unwrap_or_else(|error| {
            console.warn(format!("computing on the CPU: {error}"));
            Device::cpu()
        })),
        Choice::Auto | Choice::Cpu => Ok(Device::cpu()),
    }
}
