//! The rows of a split: those of a file, or one side of the training file where `data.val_fraction` divides it.

use std::cell::Cell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, ensure};

use crate::config::data::DataConfig;
use crate::console::{Console, counted};
use crate::data::formats::clip;
use crate::data::same_text::TextKey;
use crate::data::split::stratify;
use crate::data::table::{Columns, Example, Examples, check_single_label, read_examples};
use crate::model::classifier::Problem;

/// Of the division: all seeds of a run, and all commands, divide alike.
const SEED: u32 = 42;

/// Which rows of which file.
#[derive(Clone)]
pub struct SplitRows {
    pub path: PathBuf,
    limit: Option<usize>,
    /// One side of a division.
    side: Option<Side>,
}

/// One side of the training rows, which were read to divide them.
#[derive(Clone)]
struct Side {
    rows: Rc<Examples>,
    /// Whether it was told what there is to tell of the rows.
    is_told: Rc<Cell<bool>>,
    /// Of what the rows were read by.
    columns: Columns,
    /// The places of its rows.
    chosen: Vec<usize>,
}

/// The part (an index into `shares`) of each row: each part gets its share of each label, and equal texts stay together.
#[must_use]
pub fn stratified(examples: &[Example], labels: &[String], shares: &[f64]) -> Vec<usize> {
    let mut groups: HashMap<Option<TextKey>, usize> = HashMap::new();
    let groups: Vec<usize> = examples
        .iter()
        .map(|example| {
            let next = groups.len();
            *groups.entry(TextKey::of(&example.text)).or_insert(next)
        })
        .collect();
    // By name: a classifier may know its labels in another order.
    let mut order: Vec<usize> = (0..labels.len()).collect();
    order.sort_by_key(|&label| &labels[label]);
    let has = |example: &Example, label: usize| example.labels[label] > 0.5;
    let labels: Vec<Vec<usize>> =
        examples.iter().map(|example| (0..order.len()).filter(|&rank| has(example, order[rank])).collect()).collect();
    stratify(&labels, &groups, shares, SEED)
}

impl SplitRows {
    /// The first rows of a file.
    pub fn of_file(path: &Path, limit: Option<usize>) -> Self {
        Self { path: path.to_owned(), limit, side: None }
    }

    /// The training rows, and the validation rows. The training file is read here, once, if it holds both.
    pub fn of_training(data: &DataConfig, columns: &Columns) -> Result<[Self; 2]> {
        let train = Self::of_file(&data.train_csv, data.max_train_samples);
        let Some(fraction) = data.val_fraction else {
            let path = data.val_csv.as_ref().context("data.val_csv is missing")?;
            return Ok([train, Self::of_file(path, data.max_val_samples)]);
        };
        let [train, mut validation] = train.divided(fraction, columns)?;
        if let (Some(limit), Some(side)) = (data.max_val_samples, &mut validation.side) {
            side.chosen.truncate(limit);
        }
        Ok([train, validation])
    }

    /// Both sides of a division that gives each its share of each label, and keeps equal texts together.
    fn divided(self, fraction: f64, columns: &Columns) -> Result<[Self; 2]> {
        let rows = Rc::new(read_examples(&self.path, columns, self.limit).map_err(explain_missing)?);
        let parts = stratified(&rows.examples, &columns.labels, &[1.0 - fraction, fraction]);
        let is_told = Rc::new(Cell::new(false));
        let side = |side: usize| -> Result<Self> {
            let chosen: Vec<usize> = (0..parts.len()).filter(|&row| parts[row] == side).collect();
            ensure!(
                !chosen.is_empty(),
                "{}: data.val_fraction is {fraction}, which leaves no row for {}; the file has {} rows",
                self.path.display(),
                ["training", "validation"][side],
                parts.len()
            );
            let side = Side { rows: Rc::clone(&rows), is_told: Rc::clone(&is_told), columns: columns.clone(), chosen };
            Ok(Self { side: Some(side), ..self.clone() })
        };
        Ok([side(0)?, side(1)?])
    }

    /// Reads them.
    pub fn read(&self, columns: &Columns, problem: Problem, console: Console) -> Result<Vec<Example>> {
        let Some(side) = &self.side else {
            let read = read_examples(&self.path, columns, self.limit).map_err(explain_missing)?;
            self.tell(&read, problem, console)?;
            return Ok(read.examples);
        };
        let other = match side.columns == *columns {
            true => None,
            false => Some(read_examples(&self.path, columns, self.limit)?),
        };
        let rows = other.as_ref().unwrap_or(&side.rows);
        if !side.is_told.replace(true) {
            self.tell(rows, problem, console)?;
        }
        Ok(side.chosen.iter().filter_map(|&row| rows.examples.get(row).cloned()).collect())
    }

    /// Where one of them stands.
    pub fn location(&self, row: usize, example: &Example) -> String {
        let place = self.side.as_ref().map_or(row, |side| side.chosen[row]);
        example.location(&self.path, place)
    }

    /// Tells what there is to tell of rows, and refuses those that do not fit the problem.
    fn tell(&self, read: &Examples, problem: Problem, console: Console) -> Result<()> {
        read.notes.iter().for_each(|note| console.say(note));
        read.doubts.iter().for_each(|doubt| console.warn(doubt));
        let unknown = &read.unknown;
        if !unknown.is_empty() {
            let shown: Vec<String> =
                unknown.iter().take(10).map(|(label, rows)| format!("{} ({rows})", clip(label))).collect();
            console.warn(format!(
                "{}: left out are {} that the rows list and the classifier does not have: {}{}",
                self.path.display(),
                counted(unknown.len(), "label"),
                shown.join(", "),
                if unknown.len() > shown.len() { ", …" } else { "" }
            ));
        }
        if problem == Problem::SingleLabel {
            check_single_label(&self.path, &read.examples)?;
        }
        Ok(())
    }
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
