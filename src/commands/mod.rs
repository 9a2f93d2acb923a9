//! One file a subcommand: they wire parts together and do no maths.

pub mod bench;
pub mod bundle;
pub mod cache;
pub mod check;
mod comparison;
mod configuration;
pub mod eval;
mod eval_int8;
pub mod export;
pub mod init;
pub mod loaded;
mod outcome;
pub mod predict;
mod predict_input;
mod predict_parquet;
pub mod prepare;
mod probes;
pub mod push;
pub mod runs;
pub mod serve;
mod suggest;
pub mod train;
pub mod zeroshot;
mod zeroshot_outcome;

use std::sync::Arc;

use anyhow::Result;
use clap::CommandFactory;

use crate::cli::{Cli, Command};
use crate::cluster::{self, Group};
use crate::console::{Console, print, print_json};
use crate::device::{self, Choice};
use crate::embedded;
use crate::exit::Usage;
use crate::kernels::device::{Device, HAS_CUDA};

pub fn run(cli: &Cli) -> Result<()> {
    let choice = Choice::parse(&cli.global.device)?;
    let group = group(&cli.command)?;
    device::start_threads(cli.global.threads.map_or_else(usual_threads, usize::from))?;
    let console = if group.is_leader() { Console::new(cli.global.quiet) } else { Console::silent() };
    embedded::open()?;
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
    if let Command::Cache(args) = &cli.command {
        return cache::run(args);
    }
    if let Command::Serve(args) = &cli.command {
        return serve::run(args, Arc::new(move || open(choice, console)), console, cli.global.quiet);
    }
    if let Command::Bundle(args) = &cli.command {
        return bundle::run(args, console);
    }
    if let Command::Export(args) = &cli.command {
        return export::run(args, console);
    }
    if let Command::Push(args) = &cli.command {
        return push::run(args, console);
    }
    let device = open(choice, console)?;
    match &cli.command {
        Command::Init(args) => init::run(args, &device, console),
        Command::Train(args) => train::run(args, &device, &group, console),
        Command::Eval(args) => eval::run(args, &device, &group, console),
        Command::Predict(args) => predict::run(args, &device, &group, console),
        Command::Prepare(_)
        | Command::Serve(_)
        | Command::Runs(_)
        | Command::Cache(_)
        | Command::Bundle(_)
        | Command::Export(_)
        | Command::Push(_)
        | Command::ConfigSchema
        | Command::Completions(_)
        | Command::Man(_) => unreachable!("returned above"),
        Command::Check(args) => check::run(args, &device, console),
        Command::Zeroshot(args) => zeroshot::run(args, &device, console),
        Command::Bench(args) => bench::run(args, &device, console),
    }
}

/// The processes that share a command's work: those that `mpirun` started, if the command can share it.
fn group(command: &Command) -> Result<Group> {
    match command {
        Command::Train(args) if !args.dry_run => Group::open(),
        Command::Eval(_) => Group::open(),
        Command::Predict(args) if args.shard.is_none() => Group::open(),
        _ => Ok(Group::alone()),
    }
}

/// Threads without `--threads`: 0, one a core, or a rank's share of the machine's cores.
fn usual_threads() -> usize {
    let Some(member) = cluster::member() else { return 0 };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // mpirun may have bound the rank to its cores already.
    let (ranks, _) = member.on_this_host();
    let share = device::cores().div_ceil(ranks).max(1);
    cores.min(share)
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

/// Opens the device. `auto` falls back to the CPU with a warning if the GPU cannot be used.
fn open(choice: Choice, console: Console) -> Result<Device> {
    // Each rank of a machine takes a GPU of its own.
    let (_, local) = cluster::member().map_or((1, 0), cluster::Member::on_this_host);
    match choice {
        Choice::Cuda(ordinal) => Ok(Device::gpu(ordinal + local)?),
        Choice::Auto if HAS_CUDA => Ok(Device::gpu(local).unwrap_or_else(|error| {
            console.warn(format!("computing on the CPU: {error}"));
            Device::cpu()
        })),
        Choice::Auto | Choice::Cpu => Ok(Device::cpu()),
    }
}
