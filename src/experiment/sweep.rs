//! A sweep: one run for each cell of a grid, successive halving on the validation metric (Jamieson and Talwalkar,
//! 2016), and the best cell's configuration.
//!
//! All decisions follow from files of the runs, so a sweep that was stopped ends with the same result.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::agreement::ensure_alike;
use super::base_model::settle_compute;
use super::grid::Cell;
use super::materials::Materials;
use super::prepared::{Experiment, metric as metric_of};
use super::resume;
use super::whole_run::RunOptions;
use crate::atomic_file;
use crate::cluster::Group;
use crate::config::Config;
use crate::config::model::Token;
use crate::console::Console;
use crate::evaluation::NotFinite;
use crate::kernels::device::Device;
use crate::metrics::Metric;
use crate::run::directory::{RunDir, SeedDir};
use crate::run::records;
use crate::run::results::OverSeeds;

/// The best cell's configuration; written before the summary.
pub const BEST: &str = "best.yaml";
/// Of fewer epochs a part is too little to judge by.
const FEWEST_EPOCHS: usize = 4;

/// What a sweep is to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub cells: Vec<Cell>,
    /// Whether all train to the end.
    pub keep_all: bool,
}

/// What came of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepSummary {
    /// Chooses the best, on the validation split.
    pub metric: String,
    /// Whether less is better.
    pub lower_is_better: bool,
    /// Epochs after which the better half goes on; the last is the end.
    pub rungs: Vec<Option<usize>>,
    /// In the order of the grid.
    pub cells: Vec<CellResult>,
    /// The best one's place among them.
    pub best: usize,
}

/// What came of a cell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CellResult {
    /// `key=value`
    pub settings: Vec<String>,
    /// Its run, inside the sweep's directory.
    pub run: String,
    /// The metric at each rung that it reached: the best epoch's so far, the mean over seeds.
    pub scores: Vec<Option<f64>>,
    /// The best cell's metric on the test split, over seeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<OverSeeds>,
    /// Why it ended early, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl CellResult {
    /// The score at the last rung that it reached.
    #[must_use]
    pub fn last_score(&self) -> Option<f64> {
        self.scores.last().copied().flatten()
    }
}

/// Where a cell stands.
#[derive(Serialize, Deserialize)]
enum Standing {
    /// It has trained as far as was asked.
    There,
    Diverged(String),
    ToTrain,
}

/// A sweep at work.
pub struct Sweep<'a> {
    directory: &'a RunDir,
    device: &'a Device,
    group: &'a Group,
    console: Console,
    plan: Plan,
    configs: Vec<Config>,
    metric: &'static Metric,
    /// Of the cell before.
    materials: Option<(usize, Materials)>,
}

impl<'a> Sweep<'a> {
    /// Opens a sweep that [`begin`] wrote. All cells' configurations are checked before any trains. A token is in no file:
    /// it comes from the command line.
    ///
    /// # Errors
    /// If a cell's configuration is not valid, or the cells differ in the metric that chooses.
    pub fn open(
        directory: &'a RunDir,
        token: Option<Token>,
        device: &'a Device,
        (group, console): (&'a Group, Console),
    ) -> Result<Self> {
        let (plan, config) = group.from_leader(|| {
            let path = directory.sweep_plan();
            let text = fs::read(&path).with_context(|| format!("{}: cannot read", path.display()))?;
            let plan: Plan = serde_json::from_slice(&text)
                .with_context(|| format!("{}: not the plan of a sweep", path.display()))?;
            Ok((plan, json!(Config::of_run(&directory.config())?)))
        })?;
        let mut config = Config::recorded(&config)?;
        config.model.hf_token = token;
        let configs = configurations(&plan.cells, &config, device, group)?;
        let metric = metric(&configs)?;
        Ok(Self { directory, device, group, console, plan, configs, metric, materials: None })
    }

    /// Trains, and writes the best configuration.
    ///
    /// # Errors
    /// If a training fails other than by diverging, or the user wants to stop.
    pub fn run(&mut self) -> Result<SweepSummary> {
        let rungs = self.rungs()?;
        let mut cells: Vec<CellResult> = (0..self.plan.cells.len()).map(|index| self.empty(index)).collect();
        let mut alive: Vec<usize> = (0..cells.len()).collect();
        for (number, &rung) in rungs.iter().enumerate() {
            for &index in &alive {
                let cell = &mut cells[index];
                self.console.say(format!(
                    "combination {} of {}, {}: {}",
                    index + 1,
                    self.configs.len(),
                    rung.map_or("to the end".to_owned(), |epochs| format!("to epoch {epochs}")),
                    cell.settings.join(", ")
                ));
                cell.error = self.train(index, rung)?;
                cell.scores.push(self.score(index, rung, cell.error.is_some())?);
            }
            alive = self.ordered(&alive, &cells);
            if number + 1 < rungs.len() {
                alive.truncate(alive.len().div_ceil(2));
                alive.sort_unstable();
            }
        }
        let best = *alive.first().context("a sweep without combinations")?;
        ensure!(
            cells[best].error.is_none(),
            "every combination diverged; the first one: {}",
            cells[0].error.as_deref().unwrap_or_default()
        );
        cells[best].test = self.test(best)?;
        let Metric { name, lower_is_better, .. } = *self.metric;
        let summary = SweepSummary { metric: name.to_owned(), lower_is_better, rungs, cells, best };
        if self.group.is_leader() {
            self.write_best(&summary)?;
        }
        Ok(summary)
    }

    fn write_best(&self, summary: &SweepSummary) -> Result<()> {
        let best = &summary.cells[summary.best];
        let comment = format!(
            "# The best of {} combinations by {} on validation ({:.4}): {}\n",
            summary.cells.len(),
            summary.metric,
            best.last_score().unwrap_or(f64::NAN),
            best.settings.join(", ").replace('\n', " ")
        );
        let yaml = format!("{comment}{}", self.configs[summary.best].to_yaml());
        atomic_file::write_bytes(&self.directory.path().join(BEST), yaml.as_bytes())
    }

    fn empty(&self, index: usize) -> CellResult {
        let settings = self.plan.cells[index].settings.clone();
        CellResult { settings, run: name(index), ..CellResult::default() }
    }

    fn read(&self, index: usize) -> Result<Materials> {
        Ok(Materials::read(&self.configs[index], self.device, self.group, self.console)?.kept())
    }

    /// Epochs after which the better half goes on, then the end. The first cell's count for all.
    fn rungs(&mut self) -> Result<Vec<Option<usize>>> {
        let materials = self.read(0)?;
        let train = &self.configs[0].train;
        let per_epoch = train.steps_per_epoch(materials.rows());
        let epochs = train.total_steps(per_epoch).map_or(0, |steps| steps.div_ceil(per_epoch));
        self.materials = Some((0, materials));
        let is_halved = !self.plan.keep_all && self.configs.len() > 1 && epochs >= FEWEST_EPOCHS;
        Ok(match is_halved {
            true => vec![Some(epochs.div_ceil(4)), Some(epochs.div_ceil(2)), None],
            false => vec![None],
        })
    }

    /// Trains a cell up to a rung; returns why it diverged, if it did.
    fn train(&mut self, index: usize, rung: Option<usize>) -> Result<Option<String>> {
        let standing = self.group.from_leader(|| self.standing(index, rung))?;
        match standing {
            Standing::There => return Ok(None),
            Standing::Diverged(message) => return Ok(Some(message)),
            Standing::ToTrain => self.group.check_interrupt()?,
        }
        let materials = match self.materials.take() {
            Some((of, materials)) if Materials::are_same(&self.configs[of], &self.configs[index]) => materials,
            // What was read before makes room first.
            before => {
                drop(before);
                self.read(index)?
            }
        };
        let mut experiment = Experiment::assemble(&self.configs[index], materials, self.console)?;
        ensure_alike(&experiment, self.group)?;
        let run = self.open_cell(index, &experiment)?;
        let options = RunOptions { shows_texts: true, pause_after: rung, is_part: true };
        let trained = experiment.fill_cache(self.group).and_then(|()| experiment.train_run(&run, self.group, &options));
        self.materials = Some((index, experiment.into_materials()));
        match trained {
            Ok(Some(_)) => run.unlock(),
            Ok(None) => {}
            // What diverges once does so again: the sweep goes on without it.
            Err(error) if error.is::<NotFinite>() => {
                let message = format!("{error:#}");
                atomic_file::write_bytes(&run.error(), format!("{message}\n").as_bytes())?;
                // Other ranks may not know of it, and wait.
                ensure!(self.group.size() == 1, "{message}");
                self.console.warn(&message);
                return Ok(Some(message));
            }
            Err(error) => return Err(error),
        }
        Ok(None)
    }

    /// The directory of a cell's run, with its configuration and inputs recorded or compared, by rank 0.
    fn open_cell(&self, index: usize, experiment: &Experiment<'_>) -> Result<RunDir> {
        let mut own = None;
        let path = self.group.from_leader(|| {
            let run = self.directory.inside(&name(index))?;
            match run.config().is_file() {
                true => resume::check_inputs(run.path(), &experiment.inputs, &experiment.base, self.console)?,
                false => resume::record_inputs(run.path(), &experiment.inputs)?,
            }
            atomic_file::write_bytes(&run.config(), self.configs[index].to_yaml().as_bytes())?;
            let path = run.path().to_owned();
            own = Some(run);
            Ok(path)
        })?;
        own.map_or_else(|| RunDir::of_leader(path), Ok)
    }

    fn standing(&self, index: usize, rung: Option<usize>) -> Result<Standing> {
        let path = self.directory.path().join(name(index));
        let error = path.join("error.txt");
        if error.is_file() {
            return Ok(Standing::Diverged(fs::read_to_string(&error)?.trim().to_owned()));
        }
        let is_there = path.join("summary.json").is_file() || rung.is_some_and(|rung| self.has_reached(index, rung));
        Ok(if is_there { Standing::There } else { Standing::ToTrain })
    }

    /// Whether each seed of a cell was evaluated so often, or is finished.
    fn has_reached(&self, index: usize, rung: usize) -> bool {
        self.configs[index].exp.seeds.iter().all(|&seed| {
            let directory = self.seed(index, seed);
            directory.result().is_file()
                || self.evaluations(&directory.history()).is_ok_and(|values| values.len() >= rung)
        })
    }

    fn seed(&self, index: usize, seed: u32) -> SeedDir {
        SeedDir::of(&self.directory.path().join(name(index)), seed)
    }

    /// The metric's values in the evaluations of a seed.
    fn evaluations(&self, history: &Path) -> Result<Vec<f64>> {
        let lines = records::read_history(history)?;
        Ok(lines.iter().filter_map(|line| line.evaluation()).map(|metrics| metrics.get(self.metric)).collect())
    }

    /// The best epoch's metric up to a rung, the mean over seeds; none of a cell that diverged.
    fn score(&self, index: usize, rung: Option<usize>, has_diverged: bool) -> Result<Option<f64>> {
        if has_diverged {
            return Ok(None);
        }
        self.group.from_leader(|| {
            let seeds = &self.configs[index].exp.seeds;
            let mut sum = 0.0;
            for &seed in seeds {
                let history = self.seed(index, seed).history();
                let values = self.evaluations(&history)?;
                let until = rung.unwrap_or(values.len()).min(values.len());
                let better = |a: f64, b: f64| if self.is_better(b, a) { b } else { a };
                let best = values[..until].iter().copied().reduce(better);
                sum += best.with_context(|| format!("{}: no evaluation", history.display()))?;
            }
            Ok(Some(sum / seeds.len() as f64).filter(|score| score.is_finite()))
        })
    }

    fn is_better(&self, a: f64, b: f64) -> bool {
        if self.metric.lower_is_better { a < b } else { a > b }
    }

    /// Cells from the best to the worst by their last score; of equals the earlier first.
    fn ordered(&self, cells: &[usize], results: &[CellResult]) -> Vec<usize> {
        let sign = if self.metric.lower_is_better { 1.0 } else { -1.0 };
        let worth = |index: &usize| results[*index].last_score().map_or(f64::INFINITY, |score| sign * score);
        let mut ordered = cells.to_vec();
        ordered.sort_by(|a, b| worth(a).total_cmp(&worth(b)));
        ordered
    }

    /// The metric on the test split, of a cell that is finished.
    fn test(&self, index: usize) -> Result<Option<OverSeeds>> {
        self.group.from_leader(|| {
            let path = self.directory.path().join(name(index)).join("summary.json");
            let text = fs::read(&path).with_context(|| format!("{}: cannot read", path.display()))?;
            let summary: Value = serde_json::from_slice(&text).with_context(|| format!("{}", path.display()))?;
            let value = &summary["over_seeds"][format!("test_{}", self.metric.name)];
            Ok(serde_json::from_value(value.clone()).ok())
        })
    }
}

/// Writes what a sweep is to do into its new directory.
pub fn begin(directory: &RunDir, config: &Config, plan: &Plan) -> Result<()> {
    // The plan comes last: with it the sweep can go on.
    atomic_file::write_bytes(&directory.config(), config.to_yaml().as_bytes())?;
    records::write_json(&directory.sweep_plan(), plan)
}

/// The cells' configurations, checked.
///
/// # Errors
/// If a value is not valid for its key, or the cells differ in the metric that chooses.
pub fn configurations(cells: &[Cell], base: &Config, device: &Device, group: &Group) -> Result<Vec<Config>> {
    ensure!(
        base.exp.folds.is_none(),
        "exp.folds: a sweep chooses on the validation split; leave the key out with --set exp.folds=null, and train \
         best.yaml with folds"
    );
    let configs = cells
        .iter()
        .map(|cell| {
            let mut config =
                base.with(&cell.settings).with_context(|| format!("--grid: {}", cell.settings.join(", ")))?;
            if !device.is_gpu() {
                settle_compute(&mut config.model, group)?;
            }
            Ok(config)
        })
        .collect::<Result<Vec<_>>>()?;
    metric(&configs)?;
    Ok(configs)
}

fn metric(configs: &[Config]) -> Result<&'static Metric> {
    let name = &configs[0].train.metric_for_best_model;
    ensure!(
        configs.iter().all(|config| config.train.metric_for_best_model == *name),
        "--grid train.metric_for_best_model: one metric must choose among all combinations"
    );
    metric_of(&configs[0])
}

/// The directory of a cell's run.
fn name(index: usize) -> String {
    format!("cell_{:03}", index + 1)
}
