//! The runs under an output root, as a list.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::directory::{CONFIG, ERROR, RunDir, SUMMARY, runs_below};
use super::results::{RowCounts, RunSummary};
use crate::config::Config;
use crate::console::cell;

/// A run and what is known of it. `llmcls runs --json` prints these fields.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    pub path: String,
    /// When it began, as `2026-01-02T03:04:05Z`.
    pub date: String,
    pub model: String,
    pub dataset: String,
    run_name: Option<String>,
    rows: Option<RowCounts>,
    seeds: Vec<u32>,
    pub state: State,
    error: Option<String>,
    best: Option<BestScores>,
}

/// Scores of the best seed, on the test rows if there are any.
#[derive(Clone, Copy, Debug, Serialize)]
struct BestScores {
    split: &'static str,
    seed: u32,
    f1_micro: f64,
    f1_macro: f64,
    f1_micro_ci95: Option<[Option<f64>; 2]>,
}

impl BestScores {
    fn of(summary: &RunSummary) -> Option<Self> {
        let best = summary.seeds.iter().find(|seed| seed.seed == summary.best_seed)?;
        let (split, result) = best.splits().next()?;
        let (scores, intervals) = (&result.metrics.scores, result.metrics.intervals);
        Some(Self {
            split,
            seed: best.seed,
            f1_micro: scores.f1_micro,
            f1_macro: scores.f1_macro,
            f1_micro_ci95: intervals.map(|intervals| intervals.eval_f1_micro_ci95),
        })
    }
}

/// The state of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It has a summary.
    Finished,
    /// A process trains there.
    Running,
    /// It was stopped, and can go on.
    Resumable,
    /// An error ended it, or its configuration cannot be read.
    Failed,
}

impl State {
    /// The name in lists.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Running => "running",
            Self::Resumable => "resumable",
            Self::Failed => "failed",
        }
    }
}

/// The runs under `root`, newest first.
#[must_use]
pub fn list(root: &Path) -> Vec<Listed> {
    let mut runs = runs_below(root, 2);
    runs.sort();
    runs.into_iter().rev().map(|((time, _), path)| Listed::of(path, &time)).collect()
}

impl Listed {
    fn of(path: PathBuf, time: &str) -> Self {
        // A summary of another version may lack what this one writes: the run is listed without scores.
        let summary: Option<RunSummary> =
            fs::read(path.join(SUMMARY)).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let config = Config::of_run(&path.join(CONFIG)).ok();
        let named = |of: fn(&Config) -> String, up: usize| {
            let directory =
                || path.ancestors().nth(up).and_then(Path::file_name).map(|name| name.to_string_lossy().into());
            config.as_ref().map(of).or_else(directory).unwrap_or_default()
        };
        Self {
            date: date(time),
            model: named(|config| config.model.model_name.clone(), 2),
            dataset: named(|config| config.data.dataset_name.clone(), 1),
            state: state(&path, config.is_some()),
            seeds: config.as_ref().map_or_else(Vec::new, |config| config.exp.seeds.clone()),
            rows: summary.as_ref().map(|summary| summary.rows),
            best: summary.as_ref().and_then(BestScores::of),
            run_name: config.and_then(|config| config.exp.run_name),
            error: fs::read_to_string(path.join(ERROR)).ok().map(|text| text.trim().to_owned()),
            path: path.display().to_string(),
        }
    }

    /// Lines for a terminal: scores and state, then details, then the path.
    #[must_use]
    pub fn lines(&self) -> String {
        let date: String = self.date.chars().take(16).map(|c| if c == 'T' { ' ' } else { c }).collect();
        let score =
            |of: fn(BestScores) -> f64| self.best.map_or_else(|| "–".to_owned(), |best| format!("{:.3}", of(best)));
        let model = self.model.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let rows = self.rows.map_or_else(String::new, |rows| format!("{} rows, ", rows.train));
        let seeds = match self.seeds.len() {
            1 => format!("seed {}", self.seeds[0]),
            count => format!("{count} seeds"),
        };
        let name = self.run_name.as_ref().map_or_else(String::new, |name| format!(", {}", cell(name, 30)));
        let on = self.best.map_or_else(String::new, |best| format!(", scores on {}", best.split));
        format!(
            "{date:<17}{:<22}{:<14}{:<11}{:>9}{:>7}\n  {rows}{seeds}{name}{on}\n  {}\n",
            cell(model, 21),
            cell(&self.dataset, 13),
            self.state.name(),
            score(|best| best.f1_micro),
            score(|best| best.f1_macro),
            self.path
        )
    }
}

fn state(path: &Path, is_readable: bool) -> State {
    if path.join(SUMMARY).is_file() {
        return State::Finished;
    }
    if RunDir::is_locked(path) {
        return State::Running;
    }
    if is_readable && !path.join(ERROR).exists() { State::Resumable } else { State::Failed }
}

/// `20260102-030405` as a date.
fn date(time: &str) -> String {
    let digits: Vec<char> = time.chars().filter(char::is_ascii_digit).collect();
    if digits.len() != 14 {
        return time.to_owned();
    }
    let part = |range: std::ops::Range<usize>| digits[range].iter().collect::<String>();
    let day = format!("{}-{}-{}", part(0..4), part(4..6), part(6..8));
    format!("{day}T{}:{}:{}Z", part(8..10), part(10..12), part(12..14))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_time_is_a_date() {
        assert_eq!(date("20260102-030405"), "2026-01-02T03:04:05Z");
        assert_eq!(date("later"), "later");
    }
}
