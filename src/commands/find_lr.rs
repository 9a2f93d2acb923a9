//! `llmcls train --find_lr`: the learning-rate range test in place of a training.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::atomic_file;
use crate::cluster::Group;
use crate::config::Config;
use crate::console::{Console, bold, print, print_json};
use crate::exit::quoted;
use crate::experiment::find_lr::RangeTest;
use crate::experiment::prepared::Experiment;
use crate::kernels::device::Device;
use crate::run::directory::RunDir;
use crate::run::records;
use crate::run::report::rate_page::RatePage;

/// Runs the test, writes its curve, and prints what it suggests.
pub(super) fn run(
    config: &Config,
    files: &[PathBuf],
    device: &Device,
    (group, console): (&Group, Console),
    is_json: bool,
) -> Result<()> {
    ensure!(group.size() == 1, "--find_lr: a range test is for one process; start it without mpirun");
    let found = test(config, device, console)?;
    let exp = &config.exp;
    let directory = RunDir::create_rates(&exp.output_root, &config.model.model_name, &config.data.dataset_name)?;
    atomic_file::write_bytes(&directory.config(), config.to_yaml().as_bytes())?;
    records::write_json(&directory.rates(), &found)?;
    let points: Vec<_> = found.points.iter().map(|point| (point.learning_rate, point.loss, point.smoothed)).collect();
    let page = RatePage {
        title: &format!("Learning rates of {} on {}", config.model.model_name, config.data.dataset_name),
        points: &points,
        suggested: found.suggested,
        lowest_at: found.lowest_at,
    };
    atomic_file::write_bytes(&directory.report(), page.to_html().as_bytes())?;
    let printed = print_found(&directory, &found, files, is_json);
    directory.unlock();
    printed
}

/// The test itself.
pub(super) fn test(config: &Config, device: &Device, console: Console) -> Result<RangeTest> {
    let mut experiment = Experiment::prepare(config, device, &Group::alone(), console)?;
    experiment.fill_cache(&Group::alone())?;
    let found = experiment.find_learning_rate()?;
    if !found.has_diverged {
        console.warn(
            "the loss had not risen at the highest rate that was tried, so the suggestion is of little use: use `llmcls sweep`",
        );
    }
    Ok(found)
}

fn print_found(directory: &RunDir, found: &RangeTest, files: &[PathBuf], is_json: bool) -> Result<()> {
    let report = directory.report().display().to_string();
    if is_json {
        return print_json(&json!({"report": report, "suggested": found.suggested, "lowest_at": found.lowest_at}));
    }
    let rate = found.suggested;
    let mut out = String::new();
    writeln!(out, "{} {rate}; the loss is lowest at {:.1e}", bold("learning rate"), found.lowest_at)?;
    writeln!(out, "{}  {report}", bold("report"))?;
    let files: Vec<String> = files.iter().map(|file| quoted(&file.display().to_string())).collect();
    writeln!(
        out,
        "{}    llmcls sweep --config {} --grid train.learning_rate=[{},{rate},{}]",
        bold("next"),
        files.join(" --config "),
        rate / 2.0,
        2.0 * rate
    )?;
    print(&out)
}
