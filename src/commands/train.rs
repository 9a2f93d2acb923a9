//! `llmcls train`: one run, one training a seed.

use anyhow::{Context, Result};

use super::{check, configuration, find_lr, outcome};
use crate::atomic_file;
use crate::cli::{CheckArgs, TrainArgs};
use crate::cluster::Group;
use crate::console::Console;
use crate::evaluation::NotFinite;
use crate::exit::{Resumable, Usage};
use crate::experiment::agreement::ensure_alike;
use crate::experiment::base_model::{BaseModel, settle_compute};
use crate::experiment::prepared::Experiment;
use crate::experiment::resume;
use crate::experiment::whole_run::RunOptions;
use crate::interrupt::{self, Interrupted};
use crate::kernels::device::Device;
use crate::run::directory::RunDir;
use crate::secret;

pub fn run(args: &TrainArgs, device: &Device, group: &Group, console: Console) -> Result<()> {
    if args.dry_run {
        let args = CheckArgs { config: args.config.clone(), json: args.json, ..CheckArgs::default() };
        return check::run(&args, device, console);
    }
    if args.resume.is_some() && args.config.override_output_root.is_some() {
        return Err(Usage("--override_output_root: a resumed run stays in its directory".to_owned()).into());
    }
    let mut config = match &args.resume {
        Some(run) => resume::configuration(run, &args.config.config, &args.config.set)?,
        None => configuration::load(&args.config)?
            .ok_or_else(|| Usage("train needs --config FILE; `llmcls init DATA` writes one".to_owned()))?,
    };
    if !device.is_gpu() {
        settle_compute(&mut config.model, group)?;
    }
    if args.resume.is_none() {
        BaseModel::refuse_unused_weights(&config.model, console)?;
    }
    if args.find_lr {
        return find_lr::run(&config, &args.config.config, device, (group, console), args.json);
    }
    let mut experiment = Experiment::prepare(&config, device, group, console)?;
    ensure_alike(&experiment, group)?;
    // Until here Ctrl-C ends at once, and leaves nothing.
    interrupt::finish_steps()?;
    let run = directory(args, &experiment, group)?;
    console.say(format!("run {}", run.path().display()));
    interrupt::advise(format!("to resume it:\n  {}", resumable(&run).command()));
    let results = experiment
        .fill_cache(group)
        .and_then(|()| {
            experiment.train_run(&run, group, &RunOptions { shows_texts: !args.no_text, ..RunOptions::default() })
        })
        .inspect_err(|error| record_error(error, &run))
        .map_err(|error| explain_unfinished(error, &run))?;
    let Some(results) = results else { return Ok(()) };
    let printed = outcome::print_results(&run, &results, args.json);
    run.unlock();
    printed
}

/// The run's directory: made, or reopened, by rank 0.
fn directory(args: &TrainArgs, experiment: &Experiment<'_>, group: &Group) -> Result<RunDir> {
    let mut own = None;
    let path = group.from_leader(|| {
        let config = experiment.config;
        let run = match &args.resume {
            Some(run) => {
                let run = RunDir::reopen(run)?;
                resume::check_inputs(run.path(), &experiment.inputs, &experiment.base, experiment.console)?;
                if run.error().exists() {
                    std::fs::remove_file(run.error())
                        .with_context(|| format!("{}: cannot remove", run.error().display()))?;
                }
                run
            }
            None => RunDir::create(&config.exp.output_root, &config.model.model_name, &config.data.dataset_name)?,
        };
        // Again on a resumed run: where its base and data lie may have changed.
        atomic_file::write_bytes(&run.config(), config.to_yaml().as_bytes())?;
        resume::record_inputs(run.path(), &experiment.inputs)?;
        let path = run.path().to_owned();
        own = Some(run);
        Ok(path)
    })?;
    own.map_or_else(|| RunDir::of_leader(path), Ok)
}

/// Records the reason in the run for `llmcls runs`. A run that Ctrl-C stops has not failed.
fn record_error(error: &anyhow::Error, run: &RunDir) {
    if !error.is::<Interrupted>() {
        // The error itself is printed in any case.
        let _ =
            atomic_file::write_bytes(&run.error(), format!("{}\n", secret::masked(&format!("{error:#}"))).as_bytes());
    }
}

/// Adds the command to resume, unless resuming cannot help: a number that is not finite occurs again.
fn explain_unfinished(error: anyhow::Error, run: &RunDir) -> anyhow::Error {
    if error.is::<NotFinite>() {
        let stands = run.newest_checkpoint().map_or_else(String::new, |path| format!("; {} stands", path.display()));
        return error.context(format!("{}: not finished{stands}", run.path().display()));
    }
    error.context(resumable(run))
}

fn resumable(run: &RunDir) -> Resumable {
    Resumable { run: run.path().to_owned(), command: "train" }
}
