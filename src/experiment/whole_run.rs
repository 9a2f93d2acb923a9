//! A whole run: each seed that is not finished, then the summary and the report.

use anyhow::Result;

use super::data_issues::DataIssue;
use super::prepared::Experiment;
use super::summary::{summarize, write_environment};
use super::yardstick::Lesson;
use super::{data_issues, resume, run_report, summary, yardstick};
use crate::cluster::{self, Group};
use crate::run::directory::RunDir;
use crate::run::records;
use crate::run::results::{RunSummary, SeedResult, Yardstick};

/// Options of a whole run.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunOptions {
    /// Whether the report shows texts of rows.
    pub shows_texts: bool,
    /// Pause each seed after so many evaluations.
    pub pause_after: Option<usize>,
    /// Whether the run is one of several on the same rows: the linear baseline and what is worth looking at in the
    /// data are left out.
    pub is_part: bool,
}

impl Experiment<'_> {
    /// Trains the seeds that are not finished, and writes the summary, which rank 0 returns; `None` if a seed pauses.
    ///
    /// # Errors
    /// If a training fails, or the user wants to stop.
    pub fn train_run(&mut self, run: &RunDir, group: &Group, options: &RunOptions) -> Result<Option<RunSummary>> {
        self.hides_test = options.is_part;
        if group.is_leader() {
            write_environment(&run.environment(), &self.base.device)?;
        }
        let folds = self.train_folds(run, group)?;
        let seeds = &self.config.exp.seeds;
        let finished: Vec<Option<SeedResult>> =
            group.from_leader(|| seeds.iter().map(|&seed| resume::finished_seed(&run.seed(seed)?)).collect())?;
        let open: Vec<u32> =
            seeds.iter().zip(&finished).filter(|(_, result)| result.is_none()).map(|(&seed, _)| seed).collect();
        let trained = self.train_open(run, &open, group, options.pause_after)?;
        if !group.is_leader() {
            return Ok(None);
        }
        write_environment(&run.environment(), &self.base.device)?;
        let all = finished.into_iter().flatten().chain(trained);
        let mut results: Vec<SeedResult> = all.collect();
        if results.len() < seeds.len() {
            return Ok(None);
        }
        results.sort_by_key(|result| seeds.iter().position(|&seed| seed == result.seed));
        let mut results = summarize(self, results)?;
        let mut issues = Vec::new();
        if !options.is_part {
            results.baseline = self.baseline(run, &results)?;
            issues = self.find_issues(run, &results)?;
        }
        results.folds = folds;
        let best = results.seeds.iter().find(|seed| seed.seed == results.best_seed);
        self.write_fold_predictions(run, best.map_or(&[], |seed| &seed.thresholds))?;
        summary::say(&results, self.console);
        run_report::write(self, run, (&results, &issues), options.shows_texts)?;
        records::write_json(&run.summary(), &serde_json::to_value(&results)?)?;
        Ok(Some(results))
    }

    /// Trains seeds: independent work first, so as many at once as there are ranks, and the ranks that are left share
    /// each seed's steps. Rank 0 gets the results of those that did not pause.
    fn train_open(
        &self,
        run: &RunDir,
        seeds: &[u32],
        group: &Group,
        pause_after: Option<usize>,
    ) -> Result<Vec<SeedResult>> {
        let parts = seeds.len().clamp(1, group.size());
        let (together, part) = group.split(parts);
        self.say_how_work_is_shared(parts, &together);
        let mut results = Vec::new();
        for (index, &seed) in seeds.iter().skip(part).step_by(parts).enumerate() {
            // Of the first one a step is done first, so that there is something to go on from.
            if index > 0 {
                together.check_interrupt()?;
            }
            let directory = together.is_leader().then(|| run.seed(seed)).transpose()?;
            results.extend(self.train_seed(seed, directory.as_ref(), &together, pause_after)?);
        }
        Ok(group.gather(&results)?.into_iter().flatten().collect())
    }

    /// Writes `data_issues.jsonl`.
    fn find_issues(&self, run: &RunDir, results: &RunSummary) -> Result<Vec<DataIssue>> {
        let best = run.seed(results.best_seed)?;
        let mut predictions = Vec::new();
        let splits = [Some("validation"), self.test.as_ref().map(|_| "test")];
        for split in splits.into_iter().flatten() {
            let path = best.predictions(split);
            predictions.push((split, records::read_predictions(&path, &self.file.labels)?));
        }
        predictions.extend(self.out_of_fold.clone().map(|predictions| ("train", predictions)));
        let issues = data_issues::find(self, &predictions);
        data_issues::write(&run.data_issues(), &issues)?;
        data_issues::say(&issues, &run.data_issues(), self.console);
        Ok(issues)
    }

    /// What a linear classifier reaches on the rows that the best seed is scored on.
    fn baseline(&self, run: &RunDir, results: &RunSummary) -> Result<Option<Yardstick>> {
        let console = self.console;
        let lesson = Lesson::of(self);
        if !lesson.is_quick() {
            console.say("the linear baseline would take long here; `llmcls check --baseline` measures it");
            return Ok(None);
        }
        let (split, rows) = self.reported();
        let predictions = run.seed(results.best_seed)?.predictions(split);
        let predictions = records::read_predictions(&predictions, &self.file.labels)?;
        yardstick::measure(lesson, (split, &rows.examples), Some(&predictions), console).map(Some)
    }

    fn say_how_work_is_shared(&self, parts: usize, together: &Group) {
        let Some(member) = cluster::member() else { return };
        let (ranks, leaves) = (member.hosts.len(), self.config.train.gradient_accumulation_steps);
        self.console.say(match parts {
            1 => format!("{ranks} ranks share the {leaves} micro-batches of each step"),
            _ => format!("{ranks} ranks train {parts} seeds at once"),
        });
        if together.size() > leaves {
            self.console.warn(format!(
                "train.gradient_accumulation_steps is {leaves}, so {} of the {} ranks of a seed idle in training; a \
                 larger number with a smaller train.batch_size gives all of them work, with the same rows in a step",
                together.size() - leaves,
                together.size()
            ));
        }
    }
}
