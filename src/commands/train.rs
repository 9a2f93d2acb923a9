//! `llmcls train`: one run, one training a seed.

use anyhow::{Context, Result};

use super::{check, configuration, outcome};
use crate::atomic_file;
use crate::cli::TrainArgs;
use crate::console::Console;
use crate::evaluation::NotFinite;
use crate::exit::{Resumable, Usage};
use crate::experiment::base_model::{BaseModel, settle_compute};
use crate::experiment::prepared::Experiment;
use crate::experiment::summary::{summarize, write_environment};
use crate::experiment::{resume, run_report, summary};
use crate::interrupt::{self, Interrupted};
use crate::kernels::device::Device;
use crate::run::directory::RunDir;
use crate::run::records;
use crate::run::results::RunSummary;
use crate::secret;

pub fn run(args: &TrainArgs, device: &Device, console: Console) -> Result<()> {
    if args.dry_run {
        return check::run(&args.config, device, console);
    }
    if args.resume.is_some() && args.config.override_output_root.is_some() {
        return Err(Usage("--override_output_root: a resumed run stays in its directory".to_owned()).into());
    }
    let mut config = match &args.resume {
        Some(run) => resume::configuration(run, &args.config.config, &args.config.set)?,
        None => configuration::load(&args.config)?
            .ok_or_else(|| Usage("train needs --config FILE; try configs/tiny.yaml".to_owned()))?,
    };
    if !device.is_gpu() {
        settle_compute(&mut config.model);
    }
    if args.resume.is_none() {
        BaseModel::refuse_unused_weights(&config.model, console)?;
    }
    let experiment = Experiment::prepare(&config, device, console)?;
    // Until here Ctrl-C ends at once, and leaves nothing.
    interrupt::finish_steps()?;
    let run = match &args.resume {
        Some(run) => {
            let run = RunDir::reopen(run)?;
            resume::check_inputs(run.path(), &experiment.inputs, &experiment.base, console)?;
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
    console.say(format!("run {}", run.path().display()));
    let results = train_all(&experiment, &run, !args.no_text)
        .inspect_err(|error| record_error(error, &run))
        .map_err(|error| explain_unfinished(error, &run))?;
    let printed = outcome::print_results(&run, &results, args.json);
    run.unlock();
    printed
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
    error.context(Resumable { run: run.path().to_owned() })
}

/// Trains the seeds that are not finished, and writes the summary.
fn train_all(experiment: &Experiment<'_>, run: &RunDir, shows_texts: bool) -> Result<RunSummary> {
    write_environment(run, &experiment.base.device)?;
    let mut seeds = Vec::new();
    for &seed in &experiment.config.exp.seeds {
        let directory = run.seed(seed)?;
        seeds.push(match resume::finished_seed(&directory)? {
            Some(result) => result,
            None => {
                // The first seed does a step first, so that there is a checkpoint to resume from.
                if !seeds.is_empty() {
                    interrupt::check()?;
                }
                experiment.train_seed(seed, &directory)?
            }
        });
    }
    write_environment(run, &experiment.base.device)?;
    let results = summarize(experiment, seeds)?;
    summary::say(&results, experiment.console);
    run_report::write(experiment, run, &results, shows_texts)?;
    records::write_json(&run.summary(), &serde_json::to_value(&results)?)?;
    Ok(results)
}
