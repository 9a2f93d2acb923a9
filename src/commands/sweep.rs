//! `llmcls sweep`: trains a configuration with several values of some keys, and finds the best.

use std::fmt::Write;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{configuration, find_lr};
use crate::atomic_file;
use crate::cli::SweepArgs;
use crate::cluster::Group;
use crate::config::Config;
use crate::console::{Console, bold, print, print_json};
use crate::exit::{Resumable, Usage, quoted};
use crate::experiment::base_model::BaseModel;
use crate::experiment::grid;
use crate::experiment::sweep::{self, CellResult, Plan, Sweep, SweepSummary};
use crate::interrupt;
use crate::kernels::device::Device;
use crate::run::directory::RunDir;
use crate::run::records;
use crate::run::report::sweep_page::{SweepPage, SweepRow};

pub fn run(args: &SweepArgs, device: &Device, group: &Group, console: Console) -> Result<()> {
    let mut own = None;
    let path = group.from_leader(|| {
        let directory = match &args.resume {
            Some(path) => RunDir::reopen_sweep(path)?,
            None => create(args, device, console)?,
        };
        let path = directory.path().to_owned();
        own = Some(directory);
        Ok(path)
    })?;
    let directory = own.map_or_else(|| RunDir::of_leader(path), Ok)?;
    interrupt::finish_steps()?;
    console.say(format!("sweep {}", directory.path().display()));
    let unfinished = || Resumable { run: directory.path().to_owned(), command: "sweep" };
    let token = configuration::load(&args.config)?.and_then(|config| config.model.hf_token);
    let summary = Sweep::open(&directory, token, device, (group, console))
        .and_then(|mut sweep| sweep.run())
        .map_err(|error| error.context(unfinished()))?;
    if !group.is_leader() {
        return Ok(());
    }
    write_page(&directory, &summary)?;
    records::write_json(&directory.summary(), &summary)?;
    let printed = print_results(&directory, &summary, args.json);
    directory.unlock();
    printed
}

/// Checks all combinations, then makes the directory.
fn create(args: &SweepArgs, device: &Device, console: Console) -> Result<RunDir> {
    let config = configuration::load(&args.config)?
        .ok_or_else(|| Usage("sweep needs --config FILE and --grid KEY=[VALUE,…]".to_owned()))?;
    BaseModel::refuse_unused_weights(&config.model, console)?;
    let mut lists = args.grid.clone();
    if args.find_lr {
        lists.push(rates(&config, args, device, console)?);
    }
    let cells = grid::cells(&lists, args.trials, config.exp.seeds[0])?;
    // Values that are not valid are refused before there is a directory.
    sweep::configurations(&cells, &config, device, &Group::alone())?;
    let directory = RunDir::create_sweep(&config.exp.output_root, &config.model.model_name, &config.data.dataset_name)?;
    sweep::begin(&directory, &config, &Plan { cells, keep_all: args.keep_all })?;
    Ok(directory)
}

/// Rates around the one that a range test suggests.
fn rates(config: &Config, args: &SweepArgs, device: &Device, console: Console) -> Result<String> {
    const KEY: &str = "train.learning_rate";
    ensure!(
        !args.grid.iter().any(|list| list.split('=').next().is_some_and(|key| key.trim() == KEY)),
        "--find_lr chooses the values of {KEY}; leave its --grid out"
    );
    let found = find_lr::test(config, device, console)?;
    let values: Vec<String> = [0.25, 0.5, 1.0, 2.0, 4.0].map(|factor| (factor * found.suggested).to_string()).into();
    console.say(format!("the range test suggests {KEY}={}; trying {}", found.suggested, values.join(", ")));
    Ok(format!("{KEY}=[{}]", values.join(", ")))
}

/// Writes the page: a table of all, and a curve for each number that was tried.
fn write_page(directory: &RunDir, summary: &SweepSummary) -> Result<()> {
    let page = SweepPage {
        name: directory.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
        metric: &summary.metric,
        lower_is_better: summary.lower_is_better,
        rungs: &summary.rungs,
        rows: summary.cells.iter().enumerate().map(|(index, cell)| row(cell, index == summary.best)).collect(),
    };
    atomic_file::write_bytes(&directory.report(), page.to_html().as_bytes())
}

fn row(cell: &CellResult, is_best: bool) -> SweepRow<'_> {
    SweepRow {
        settings: &cell.settings,
        run: &cell.run,
        scores: &cell.scores,
        test: cell.test,
        error: cell.error.as_deref(),
        is_best,
    }
}

/// Prints the table: the combinations that went furthest first, of those the best first.
fn print_results(directory: &RunDir, summary: &SweepSummary, is_json: bool) -> Result<()> {
    let path = directory.path().display().to_string();
    let best = directory.path().join(sweep::BEST).display().to_string();
    if is_json {
        return print_json(&json!({"sweep": path, "best": best, "summary": summary}));
    }
    let sign = if summary.lower_is_better { 1.0 } else { -1.0 };
    let worth = |cell: &CellResult| cell.last_score().map_or(f64::INFINITY, |score| sign * score);
    let mut order: Vec<(usize, &CellResult)> = summary.cells.iter().enumerate().collect();
    order.sort_by(|(_, a), (_, b)| b.scores.len().cmp(&a.scores.len()).then(worth(a).total_cmp(&worth(b))));
    let mut out = String::new();
    writeln!(out, "{}  {}", bold(&format!("{:<12}{:<10}", summary.metric, "epochs")), bold("combination"))?;
    for (index, cell) in order {
        let epochs = cell.scores.len().checked_sub(1).and_then(|rung| summary.rungs[rung]);
        let epochs = epochs.map_or("all".to_owned(), |epochs| epochs.to_string());
        let score = cell.last_score().map_or("diverged".to_owned(), |score| format!("{score:.4}"));
        let mark = if index == summary.best { "  <- best" } else { "" };
        writeln!(out, "{score:<12}{epochs:<10}  {}{mark}", cell.settings.join(", "))?;
    }
    if let Some(test) = summary.cells[summary.best].test {
        writeln!(out, "\nthe best one on test: {} {:.4}", summary.metric, test.mean)?;
    }
    writeln!(out, "\n{}   {path}", bold("sweep"))?;
    writeln!(out, "{}    {best}", bold("best"))?;
    writeln!(out, "{}  {}", bold("report"), directory.report().display())?;
    writeln!(out, "{}    llmcls predict --run {} --text \"…\"", bold("next"), quoted(&path))?;
    print(&out)
}
