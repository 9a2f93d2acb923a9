//! `llmcls train`: one run, one training a seed.

use anyhow::{Context, Result};

use super::{check, configuration, outcome};
use crate::atomic_file;
use crate::cli::{CheckArgs, TrainArgs};
use crate::cluster::{self, Group};
use crate::config::model::ComputeType;
use crate::console::Console;
use crate::evaluation::NotFinite;
use crate::exit::{Resumable, Usage};
use crate::experiment::agreement::ensure_alike;
use crate::experiment::base_model::{BaseModel, settle_compute};
use crate::experiment::data_issues::DataIssue;
use crate::experiment::prepared::Experiment;
use crate::experiment::summary::{summarize, write_environment};
use crate::experiment::yardstick::Lesson;
use crate::experiment::{data_issues, resume, run_report, summary, yardstick};
use crate::interrupt::{self, Interrupted};
use crate::kernels::device::Device;
use crate::run::directory::RunDir;
use crate::run::records;
use crate::run::results::{RunSummary, SeedResult, Yardstick};
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
            .ok_or_else(|| Usage("train needs --config FILE; try configs/tiny.yaml".to_owned()))?,
    };
    if !device.is_gpu() {
        settle_compute(&mut config.model);
        // Machines differ; the products of bf16 have the same bits on all of them.
        let is_bfloat16 = group.from_leader(|| Ok(config.model.compute == ComputeType::Bfloat16))?;
        config.model.compute = if is_bfloat16 { ComputeType::Bfloat16 } else { ComputeType::Float32 };
    }
    if args.resume.is_none() {
        BaseModel::refuse_unused_weights(&config.model, console)?;
    }
    let mut experiment = Experiment::prepare(&config, device, group, console)?;
    ensure_alike(&experiment, group)?;
    // Until here Ctrl-C ends at once, and leaves nothing.
    interrupt::finish_steps()?;
    let run = directory(args, &experiment, group)?;
    console.say(format!("run {}", run.path().display()));
    let results = experiment
        .fill_cache(group)
        .and_then(|()| train_all(&experiment, &run, group, !args.no_text))
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
    error.context(Resumable { run: run.path().to_owned() })
}

/// Writes `data_issues.jsonl`.
fn find_issues(experiment: &Experiment<'_>, run: &RunDir, results: &RunSummary) -> Result<Vec<DataIssue>> {
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
    Ok(issues)
}

/// What a linear classifier reaches on the rows that the best seed is scored on.
fn baseline(experiment: &Experiment<'_>, run: &RunDir, results: &RunSummary) -> Result<Option<Yardstick>> {
    let console = experiment.console;
    let lesson = Lesson::of(experiment);
    if !lesson.is_quick() {
        console.say("the linear baseline would take long here; `llmcls check --baseline` measures it");
        return Ok(None);
    }
    let (split, rows) = experiment.reported();
    let predictions = run.seed(results.best_seed)?.predictions(split);
    let predictions = records::read_predictions(&predictions, &experiment.file.labels)?;
    yardstick::measure(lesson, (split, &rows.examples), Some(&predictions), console).map(Some)
}

/// Trains the seeds that are not finished, and writes the summary, which rank 0 returns.
fn train_all(
    experiment: &Experiment<'_>,
    run: &RunDir,
    group: &Group,
    shows_texts: bool,
) -> Result<Option<RunSummary>> {
    if group.is_leader() {
        write_environment(&run.environment(), &experiment.base.device)?;
    }
    let seeds = &experiment.config.exp.seeds;
    let finished: Vec<Option<SeedResult>> =
        group.from_leader(|| seeds.iter().map(|&seed| resume::finished_seed(&run.seed(seed)?)).collect())?;
    let open: Vec<u32> =
        seeds.iter().zip(&finished).filter(|(_, result)| result.is_none()).map(|(&seed, _)| seed).collect();
    let trained = train_open(experiment, run, &open, group)?;
    if !group.is_leader() {
        return Ok(None);
    }
    write_environment(&run.environment(), &experiment.base.device)?;
    let all = finished.into_iter().flatten().chain(trained);
    let mut results: Vec<SeedResult> = all.collect();
    results.sort_by_key(|result| seeds.iter().position(|&seed| seed == result.seed));
    let mut results = summarize(experiment, results)?;
    results.baseline = baseline(experiment, run, &results)?;
    let issues = find_issues(experiment, run, &results)?;
    summary::say(&results, experiment.console);
    run_report::write(experiment, run, (&results, &issues), shows_texts)?;
    records::write_json(&run.summary(), &serde_json::to_value(&results)?)?;
    Ok(Some(results))
}

/// Trains seeds: independent work first, so as many at once as there are ranks, and the ranks that are left share
/// each seed's steps. Rank 0 gets all results.
fn train_open(experiment: &Experiment<'_>, run: &RunDir, seeds: &[u32], group: &Group) -> Result<Vec<SeedResult>> {
    let parts = seeds.len().clamp(1, group.size());
    let (together, part) = group.split(parts);
    say_how_work_is_shared(experiment, parts, &together);
    let mut results = Vec::new();
    for (index, &seed) in seeds.iter().skip(part).step_by(parts).enumerate() {
        // Of the first one a step is done first, so that there is something to go on from.
        if index > 0 {
            together.check_interrupt()?;
        }
        let directory = together.is_leader().then(|| run.seed(seed)).transpose()?;
        results.extend(experiment.train_seed(seed, directory.as_ref(), &together)?);
    }
    Ok(group.gather(&results)?.into_iter().flatten().collect())
}

fn say_how_work_is_shared(experiment: &Experiment<'_>, parts: usize, together: &Group) {
    let Some(member) = cluster::member() else { return };
    let (ranks, leaves) = (member.hosts.len(), experiment.config.train.gradient_accumulation_steps);
    experiment.console.say(match parts {
        1 => format!("{ranks} ranks share the {leaves} micro-batches of each step"),
        _ => format!("{ranks} ranks train {parts} seeds at once"),
    });
    if together.size() > leaves {
        experiment.console.warn(format!(
            "train.gradient_accumulation_steps is {leaves}, so {} of the {} ranks of a seed idle in training; a larger \
             number with a smaller train.batch_size gives all of them work, with the same rows in a step",
            together.size() - leaves,
            together.size()
        ));
    }
}
