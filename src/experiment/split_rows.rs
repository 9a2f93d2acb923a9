//! The rows of a split: those of a file, or one side of the training file where `data.val_fraction` divides it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, ensure};

use crate::config::data::DataConfig;
use crate::console::Console;
use crate::data::formats::clip;
use crate::data::split::stratify;
use crate::data::table::{Columns, Example, Examples, check_single_label, read_examples};
use crate::model::classifier::Problem;

/// Seed of the division. It is fixed, so that all seeds of a run and all commands divide alike.
const SEED: u32 = 42;

/// Some rows of a file.
#[derive(Clone)]
pub struct SplitRows {
    pub path: PathBuf,
    limit: Option<usize>,
    /// Their places, if they are not all.
    chosen: Option<Rc<Vec<usize>>>,
}

impl SplitRows {
    /// The first rows of a file.
    pub fn of_file(path: &Path, limit: Option<usize>) -> Self {
        Self { path: path.to_owned(), limit, chosen: None }
    }

    pub fn train(data: &DataConfig, columns: &Columns) -> Result<Self> {
        let whole = Self::of_file(&data.train_csv, data.max_train_samples);
        match data.val_fraction {
            None => Ok(whole),
            Some(fraction) => whole.side(fraction, columns, 0),
        }
    }

    pub fn validation(data: &DataConfig, columns: &Columns) -> Result<Self> {
        if let Some(path) = &data.val_csv {
            return Ok(Self::of_file(path, data.max_val_samples));
        }
        let fraction = data.val_fraction.context("data.val_csv is missing")?;
        let mut rows = Self::of_file(&data.train_csv, data.max_train_samples).side(fraction, columns, 1)?;
        if let (Some(limit), Some(chosen)) = (data.max_val_samples, &mut rows.chosen) {
            Rc::make_mut(chosen).truncate(limit);
        }
        Ok(rows)
    }

    /// One side of a division that gives each side its share of each label, and keeps equal texts together.
    fn side(self, fraction: f64, columns: &Columns, side: usize) -> Result<Self> {
        let examples = read_examples(&self.path, columns, self.limit)?.examples;
        let mut groups: HashMap<&str, usize> = HashMap::new();
        let groups: Vec<usize> = examples
            .iter()
            .map(|example| {
                let next = groups.len();
                *groups.entry(example.text.trim()).or_insert(next)
            })
            .collect();
        // By name: a classifier may know its labels in another order.
        let mut order: Vec<usize> = (0..columns.labels.len()).collect();
        order.sort_by_key(|&label| &columns.labels[label]);
        let has = |example: &Example, label: usize| example.labels[label] > 0.5;
        let labels: Vec<Vec<usize>> = examples
            .iter()
            .map(|example| (0..order.len()).filter(|&rank| has(example, order[rank])).collect())
            .collect();
        let parts = stratify(&labels, &groups, &[1.0 - fraction, fraction], SEED);
        let chosen: Vec<usize> = (0..parts.len()).filter(|&row| parts[row] == side).collect();
        ensure!(
            !chosen.is_empty(),
            "{}: data.val_fraction is {fraction}, which leaves no row for {}; the file has {} rows",
            self.path.display(),
            ["training", "validation"][side],
            parts.len()
        );
        Ok(Self { chosen: Some(Rc::new(chosen)), ..self })
    }

    pub fn read(&self, columns: &Columns, problem: Problem, console: Console) -> Result<Vec<Example>> {
        let examples = read_split(&self.path, columns, self.limit, problem, console)?;
        let Some(chosen) = &self.chosen else { return Ok(examples) };
        let mut examples: Vec<Option<Example>> = examples.into_iter().map(Some).collect();
        Ok(chosen.iter().filter_map(|&row| examples.get_mut(row)?.take()).collect())
    }

    /// Where one of them stands.
    pub fn location(&self, row: usize, example: &Example) -> String {
        let place = self.chosen.as_ref().map_or(row, |chosen| chosen[row]);
        example.location(&self.path, place)
    }
}

/// Reads a split.
///
/// # Errors
/// If a row is malformed, there is none, or a single-label row has not exactly one label.
pub fn read_split(
    path: &Path,
    columns: &Columns,
    limit: Option<usize>,
    problem: Problem,
    console: Console,
) -> Result<Vec<Example>> {
    let Examples { examples, unknown, notes, doubts } = read_examples(path, columns, limit).map_err(explain_missing)?;
    notes.iter().for_each(|note| console.say(note));
    doubts.iter().for_each(|doubt| console.warn(doubt));
    if !unknown.is_empty() {
        let shown: Vec<String> =
            unknown.iter().take(10).map(|(label, rows)| format!("{} ({rows})", clip(label))).collect();
        console.warn(format!(
            "{}: {} labels are listed that are not among the classifier's, and left out: {}{}",
            path.display(),
            unknown.len(),
            shown.join(", "),
            if unknown.len() > shown.len() { ", …" } else { "" }
        ));
    }
    if problem == Problem::SingleLabel {
        check_single_label(path, &examples)?;
    }
    Ok(examples)
}

/// Says how the files of the published run are made, where they are what is missing.
pub fn explain_missing(error: anyhow::Error) -> anyhow::Error {
    let is_amazon = error.to_string().contains("amazon_13k") && error.to_string().contains("cannot open");
    if is_amazon {
        error.context(
            "AmazonCat-13K does not come with llmcls: `llmcls prepare amazoncat` makes these files of the Hub's data set \
             pietrolesci/amazoncat-13k",
        )
    } else {
        error
    }
}
