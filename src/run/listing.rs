//! The runs under an output root, as a list.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::directory::{ERROR, RunDir, runs_below};
use crate::config::Config;

/// A run and what is known of it.
#[derive(Clone, Debug)]
pub struct Listed {
    pub path: PathBuf,
    /// When it began, as `2026-01-02T03:04:05Z`.
    pub date: String,
    pub model: String,
    pub dataset: String,
    pub state: State,
    seeds: Vec<u32>,
    rows: Value,
    scores: Value,
    run_name: Option<String>,
    error: Option<String>,
}

/// The state of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
        let read = |name: &str| -> Value {
            let text = fs::read(path.join(name)).unwrap_or_default();
            serde_json::from_slice(&text).unwrap_or_default()
        };
        let summary = read("summary.json");
        let best = summary["best_seed"].as_u64();
        let seeds = summary["seeds"].as_array().into_iter().flatten();
        let best = seeds.into_iter().find(|seed| seed["seed"].as_u64() == best).cloned().unwrap_or_default();
        let split = if best["test"].is_object() { "test" } else { "validation" };
        let number = |name: &str| best[split][format!("eval_{name}")].clone();
        let mut scores = Value::Null;
        if best[split].is_object() {
            scores = json!({
                "split": split,
                "seed": best["seed"],
                "f1_micro": number("f1_micro"),
                "f1_macro": number("f1_macro"),
                "f1_micro_ci95": number("f1_micro_ci95"),
            });
        }
        let config = Config::of_run(&path.join("config.yaml")).ok();
        let named = |of: fn(&Config) -> String, up: usize| {
            let directory =
                || path.ancestors().nth(up).and_then(Path::file_name).map(|name| name.to_string_lossy().into());
            config.as_ref().map(of).or_else(directory).unwrap_or_default()
        };
        Self {
            date: date(time),
            model: named(|config| config.model.model_name.clone(), 2),
            dataset: named(|config| config.data.dataset_name.clone(), 1),
            state: state(&path, summary.is_object(), config.is_some()),
            seeds: config.as_ref().map_or_else(Vec::new, |config| config.exp.seeds.clone()),
            rows: summary["rows"].clone(),
            scores,
            run_name: config.and_then(|config| config.exp.run_name),
            error: fs::read_to_string(path.join(ERROR)).ok().map(|text| text.trim().to_owned()),
            path,
        }
    }

    /// All fields as JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "path": self.path.display().to_string(),
            "date": self.date,
            "model": self.model,
            "dataset": self.dataset,
            "run_name": self.run_name,
            "rows": self.rows,
            "seeds": self.seeds,
            "state": self.state.name(),
            "error": self.error,
            "best": self.scores,
        })
    }

    /// A line for the eye, and its path and size on another.
    #[must_use]
    pub fn lines(&self) -> String {
        let date: String = self.date.chars().take(16).map(|c| if c == 'T' { ' ' } else { c }).collect();
        let score = |name: &str| self.scores[name].as_f64().map_or_else(|| "–".to_owned(), |f1| format!("{f1:.3}"));
        let model = self.model.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let rows = match self.rows["train"].as_u64() {
            Some(train) => format!("{train} rows, "),
            None => String::new(),
        };
        let seeds = match self.seeds.len() {
            1 => format!("seed {}", self.seeds[0]),
            count => format!("{count} seeds"),
        };
        let name = self.run_name.as_ref().map_or_else(String::new, |name| format!(", {}", cell(name, 30)));
        let on = self.scores["split"].as_str().map_or_else(String::new, |split| format!(", scores on {split}"));
        format!(
            "{date:<17}{:<22}{:<14}{:<11}{:>9}{:>7}\n  {rows}{seeds}{name}{on}\n  {}\n",
            cell(model, 21),
            cell(&self.dataset, 13),
            self.state.name(),
            score("f1_micro"),
            score("f1_macro"),
            self.path.display()
        )
    }
}

fn state(path: &Path, has_summary: bool, is_readable: bool) -> State {
    if has_summary {
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

/// Text in a cell of this width.
fn cell(text: &str, width: usize) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().count() <= width {
        return text;
    }
    text.chars().take(width - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_time_is_a_date() {
        assert_eq!(date("20260102-030405"), "2026-01-02T03:04:05Z");
        assert_eq!(date("later"), "later");
        assert_eq!(cell("a long name", 6), "a lon…");
    }
}
