//! `llmcls train`: one run, one training a seed.

use anyhow::{Context, Result};

use super::{check, configuration, outcome};
use crate::atomic_file;
use crate::cli::{CheckArgs, TrainArgs};
use crate::console::Console;
use crate::evaluation::NotFinite;
use crate::exit::{Resumable, Usage};
use crate::experiment::base_model::{BaseModel, settle_compute};
use crate::experiment::prepared::Experiment;
use crate::experiment::summary::{summarize, write_environment};
use crate::experiment::{data_issues, resume, run_report, summary, yardstick};
use crate::interrupt::{self, Interrupted};
use crate::kernels::device::Device;
use crate::run::directory::RunDir;
use crate::run::records;
use crate::run::results::{RunSummary, Yardstick};
use crate::secret;

/// Trains.
///
/// # Errors
/// If the configuration, the data or the model cannot be used, or training fails.
pub fn run(args: &TrainArgs, device: &Device, console: Console) -> Result<()> {
    if args.dry_run {
        let args = CheckArgs { config: args.config.clone(), json: args.json, ..CheckArgs::default() };
        return check::run(&args, device, console);
    }
    if args.resume.is_some() && args.config.override_output_root.is_some() {
        return Err(Usage("--override_output_root: a run that is resumed stays in its directory".to_owned()).into());
    }
    let mut config = match &args.resume {
        Some(run) => resume::configuration(run, &args.config.config, &args.config.set)?,
        None => configuration::load(&args.config)?.ok_or_else(|| {
            Usage("train needs --config FILE; configs/tiny.yaml is one that works as it is".to_owned())
        })?,
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

/// Leaves the reason in the run, for `llmcls runs`. What Ctrl-C stops has not failed.
fn record_error(error: &anyhow::Error, run: &RunDir) {
    if !error.is::<Interrupted>() {
        // The error itself is told in any case.
        let _ =
            atomic_file::write_bytes(&run.error(), format!("{}\n", secret::masked(&format!("{error:#}"))).as_bytes());
    }
}

/// Adds how to go on, where going on can help: a number that is not finite comes again.
fn explain_unfinished(error: anyhow::Error, run: &RunDir) -> anyhow::Error {
    if error.is::<NotFinite>() {
        let stands = run.newest_checkpoint().map_or_else(String::new, |path| format!("; {} stands", path.display()));
        return error.context(format!("{}: not finished{stands}", run.path().display()));
    }
    error.context(Resumable { run: run.path().to_owned() })
}

/// Writes `data_issues.jsonl`.
fn find_issues(experiment: &Experiment<'_>, run: &RunDir, results: &RunSummary) -> Result<()> {
    let best = run.seed(results.best_seed)?;
    let mut predictions = Vec::new();
    let splits = [Some("validation"), experiment.test.as_ref().map(|_| "test")];
    for split in splits.into_iter().flatten() {
        let path = best.predictions(split);
        predictions.push((split, records::read_predictions(&path, &experiment.file.labels)?));
    }
    let issues = data_issues::find(experiment, &predictions);
    data_issues::write(&run.data_issues(), &issues)?;
    data_issues::say(&issues, &run.data_issues(), experiment.console);
    Ok(())
}

/// What a linear classifier reaches on the rows that the best seed is scored on.
fn baseline(experiment: &Experiment<'_>, run: &RunDir, results: &RunSummary) -> Result<Option<Yardstick>> {
    let console = experiment.console;
    if !yardstick::is_quick(experiment) {
        console.say("the linear baseline would take long here; `llmcls check --baseline` measures it");
        return Ok(None);
    }
    let (split, rows) = experiment.reported();
    let predictions = run.seed(results.best_seed)?.predictions(split);
    let predictions = records::read_predictions(&predictions, &experiment.file.labels)?;
    yardstick::measure(experiment, (split, &rows.examples), Some(&predictions), console).map(Some)
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
                // Of the first one a step is done first, so that there is something to go on from.
                if !seeds.is_empty() {
                    interrupt::check()?;
                }
                experiment.train_seed(seed, &directory)?
            }
        });
    }
    write_environment(run, &experiment.base.device)?;
    let mut results = summarize(experiment, seeds)?;
    results.baseline = baseline(experiment, run, &results)?;
    find_issues(experiment, run, &results)?;
    summary::say(&results, experiment.console);
    run_report::write(experiment, run, &results, shows_texts)?;
    records::write_json(&run.summary(), &serde_json::to_value(&results)?)?;
    Ok(results)
}
