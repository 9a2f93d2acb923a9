//! Folds: each part of the training rows is predicted by a model that was trained on the others.
//!
//! The validation rows choose the epoch in every training, so a fold's own rows play no part in the model that predicts
//! them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::dataset::{self, Dataset};
use super::prepared::Experiment;
use super::resume;
use super::split_rows::stratified;
use crate::atomic_file;
use crate::cluster::Group;
use crate::metrics::{Decision, METRICS, Predictions};
use crate::model::classifier::Problem;
use crate::run::directory::{RunDir, SeedDir};
use crate::run::folds::{CurvePoint, FoldSummary, Gain, Gains};
use crate::run::records::{self, PredictionLine};
use crate::run::results::{OverSeeds, SeedResult};
use crate::thresholds::Scope;
use crate::training::checkpoint;

/// Trainings on a part of the other folds' rows: names, and quarters of the rows.
const PARTS: [(&str, usize); 2] = [("quarter", 1), ("half", 2)];
const QUARTERS: usize = 4;

/// Work of `folds` folds and their learning curve, in trainings on all rows.
#[must_use]
pub fn trainings(folds: usize) -> f64 {
    let shares: f64 = 1.0 + PARTS.iter().map(|(_, quarters)| *quarters as f64 / QUARTERS as f64).sum::<f64>();
    (folds as f64 - 1.0) * shares
}

/// The results of one fold: of the trainings on parts of the rows, then on all.
struct Fold {
    rows: Vec<usize>,
    results: Vec<SeedResult>,
}

impl Experiment<'_> {
    /// Trains what `exp.folds` asks for, and keeps the out-of-fold predictions for thresholds; rank 0 returns the summary.
    ///
    /// # Errors
    /// If a training fails, or the user wants to stop.
    pub fn train_folds(&mut self, run: &RunDir, group: &Group) -> Result<Option<FoldSummary>> {
        let Some(count) = self.config.exp.folds else { return Ok(None) };
        let parts = stratified(&self.train.examples, &self.file.labels, &vec![1.0; count]);
        let rows_of = |fold: usize| (0..parts.len()).filter(|&row| parts[row] == fold).collect::<Vec<usize>>();
        for fold in 0..count {
            ensure!(
                !rows_of(fold).is_empty(),
                "exp.folds is {count}, and fold {} would have none of the {} training rows; use fewer folds",
                fold + 1,
                parts.len()
            );
        }
        let mut folds = Vec::new();
        for fold in 0..count {
            self.console.say(format!("fold {} of {count}: {} rows held out", fold + 1, rows_of(fold).len()));
            folds.extend(self.train_fold(run, (fold, &parts), group)?);
        }
        self.out_of_fold = Some(self.gather(run, &parts, group)?);
        if !group.is_leader() {
            return Ok(None);
        }
        let summary = self.summarize_folds(&folds)?;
        self.console.say(summary.scores());
        self.console.say(summary.answer());
        Ok(Some(summary))
    }

    /// Trains in place of one fold.
    fn train_fold(&mut self, run: &RunDir, (fold, parts): (usize, &[usize]), group: &Group) -> Result<Option<Fold>> {
        let all: Vec<usize> = (0..parts.len()).filter(|&row| parts[row] != fold).collect();
        let held_out: Vec<usize> = (0..parts.len()).filter(|&row| parts[row] == fold).collect();
        let quarters = stratified(&self.train.part(&all).examples, &self.file.labels, &[1.0; QUARTERS]);
        let first = |count: usize| -> Vec<usize> {
            all.iter().zip(&quarters).filter(|(_, quarter)| **quarter < count).map(|(&row, _)| row).collect()
        };
        let mut trainings: Vec<(Option<&str>, Vec<usize>)> =
            PARTS.iter().map(|&(name, count)| (Some(name), first(count))).collect();
        trainings.push((None, all));
        let (mut rows, mut results) = (Vec::new(), Vec::new());
        for (part, chosen) in trainings {
            group.check_interrupt()?;
            let directory = group.is_leader().then(|| run.fold(fold + 1, part)).transpose()?;
            rows.push(chosen.len());
            results.extend(self.train_on(&chosen, &held_out, directory.as_ref(), group)?);
            if let Some(directory) = &directory {
                tidy(directory, part.is_some())?;
            }
        }
        Ok(group.is_leader().then_some(Fold { rows, results }))
    }

    /// Trains on some of the training rows, and scores others in place of the test rows.
    fn train_on(
        &mut self,
        rows: &[usize],
        held_out: &[usize],
        directory: Option<&SeedDir>,
        group: &Group,
    ) -> Result<Option<SeedResult>> {
        let finished = group.from_leader(|| directory.map_or(Ok(None), resume::finished_seed))?;
        if finished.is_some() {
            return Ok(finished.filter(|_| group.is_leader()));
        }
        let (train, test) = (self.train.part(rows), self.train.part(held_out));
        let all = std::mem::replace(&mut self.train, train);
        let tested = self.test.replace(test);
        self.is_fold = true;
        let result = self.set_loss().and_then(|()| self.train_seed(self.config.exp.seeds[0], directory, group, None));
        self.is_fold = false;
        self.train = all;
        self.test = tested;
        self.set_loss()?;
        result
    }

    /// Weights that follow from the training rows.
    fn set_loss(&mut self) -> Result<()> {
        let weights = dataset::loss_weights(self.config, &self.file.labels, &self.train.examples)?;
        self.classifier.set_loss_weights(weights);
        Ok(())
    }

    /// The predictions of all folds, in the order of the training rows, on all ranks.
    fn gather(&self, run: &RunDir, parts: &[usize], group: &Group) -> Result<Predictions> {
        let (probabilities, predicted, targets) = group.from_leader(|| {
            let count = self.config.exp.folds.unwrap_or(0);
            let mut folds = Vec::new();
            for fold in 0..count {
                let path = run.fold(fold + 1, None)?.predictions("test");
                let Predictions { probabilities, predicted, targets } =
                    records::read_predictions(&path, &self.file.labels)?;
                folds.push(probabilities.into_iter().zip(predicted).zip(targets));
            }
            let mut all = (Vec::new(), Vec::new(), Vec::new());
            for &fold in parts {
                let ((probabilities, predicted), targets) = folds[fold].next().context("a fold lacks predictions")?;
                all.0.push(probabilities);
                all.1.push(predicted);
                all.2.push(targets);
            }
            Ok(all)
        })?;
        Ok(Predictions { probabilities, predicted, targets })
    }

    fn summarize_folds(&self, folds: &[Fold]) -> Result<FoldSummary> {
        let of = |part: usize, metric: &str| -> Result<Vec<f64>> {
            let metric = METRICS.iter().find(|known| known.name == metric).context("a metric without a name")?;
            folds
                .iter()
                .map(|fold| Ok(fold.results[part].test.as_ref().context("a fold without scores")?.metrics.get(metric)))
                .collect()
        };
        let whole = PARTS.len();
        let mut over_folds = BTreeMap::new();
        for metric in &METRICS {
            let values = of(whole, metric.name)?;
            // JSON has no NaN.
            if values.iter().all(|value| value.is_finite()) {
                over_folds.insert(metric.name.to_owned(), OverSeeds::new(&values));
            }
        }
        let mut learning_curve = Vec::new();
        for part in 0..=whole {
            let rows: Vec<f64> = folds.iter().map(|fold| fold.rows[part] as f64).collect();
            learning_curve.push(CurvePoint {
                share: PARTS.get(part).map_or(1.0, |(_, quarters)| *quarters as f64 / QUARTERS as f64),
                rows: rows.iter().sum::<f64>() / rows.len() as f64,
                f1_micro: OverSeeds::new(&of(part, "f1_micro")?),
                f1_macro: OverSeeds::new(&of(part, "f1_macro")?),
            });
        }
        let gain = |metric: &str| -> Result<Gain> {
            let (half, all) = (of(whole - 1, metric)?, of(whole, metric)?);
            Ok(Gain::new(&half.iter().zip(&all).map(|(half, all)| all - half).collect::<Vec<_>>()))
        };
        Ok(FoldSummary {
            folds: folds.len(),
            seed: self.config.exp.seeds[0],
            over_folds,
            learning_curve,
            from_half: Gains { f1_micro: gain("f1_micro")?, f1_macro: gain("f1_macro")? },
            tuned_thresholds: Scope::of(self.config.train.tune_thresholds).is_some(),
        })
    }

    /// Writes `predictions_folds.jsonl`: every training row once, decided by the run's thresholds.
    pub fn write_fold_predictions(&self, run: &RunDir, thresholds: &[f32]) -> Result<()> {
        #[derive(Serialize)]
        struct Line<'a> {
            #[serde(flatten)]
            line: PredictionLine<'a>,
            fold: usize,
        }
        let (Some(found), Some(count)) = (&self.out_of_fold, self.config.exp.folds) else { return Ok(()) };
        let labels = &self.file.labels;
        let parts = stratified(&self.train.examples, labels, &vec![1.0; count]);
        let decided = found.clone().decided(&self.decision(thresholds));
        atomic_file::write_file(&run.fold_predictions(), |writer| {
            for (row, example) in self.train.examples.iter().enumerate() {
                let line = PredictionLine {
                    id: &example.id,
                    probs: &decided.probabilities[row],
                    labels,
                    predicted: records::names(labels, &decided.predicted[row]),
                    targets: Some(records::names(labels, &decided.targets[row])),
                    why: None,
                };
                serde_json::to_writer(&mut *writer, &Line { line, fold: parts[row] + 1 })?;
                writer.write_all(b"\n")?;
            }
            Ok(())
        })
    }

    fn decision(&self, thresholds: &[f32]) -> Decision {
        match self.classifier.problem() {
            Problem::SingleLabel => Decision::Top(1),
            Problem::MultiLabel => Decision::above(thresholds),
        }
    }
}

impl Dataset {
    /// Some of the rows.
    #[must_use]
    pub fn part(&self, rows: &[usize]) -> Self {
        Self {
            examples: rows.iter().map(|&row| self.examples[row].clone()).collect(),
            samples: rows.iter().map(|&row| self.samples[row].clone()).collect(),
        }
    }
}

/// Removes what a finished training in place of a fold leaves that nothing reads: checkpoints, and the model of a part.
fn tidy(directory: &SeedDir, is_part: bool) -> Result<()> {
    for (_, path) in checkpoint::list(directory.path())? {
        fs::remove_dir_all(&path).with_context(|| format!("{}: cannot remove", path.display()))?;
    }
    let best = directory.best();
    if is_part && best.is_dir() {
        fs::remove_dir_all(&best).with_context(|| format!("{}: cannot remove", best.display()))?;
    }
    Ok(())
}
