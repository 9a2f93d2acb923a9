//! Rows of a file whose columns were recognised: which of them can be used, how they split, and what looks wrong.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::formats::clip;
use super::recognise::Recognised;
use super::same_text::TextKey;
use super::split::stratify;
use super::split_files;
use super::table::{Example, abridged, read_examples};

/// The rows of one file.
pub struct LabelledRows {
    /// The file that holds the rows.
    pub source: PathBuf,
    /// All of them, in the order of the file.
    pub examples: Vec<Example>,
    /// For each row: true if it has a text and as many labels as required.
    pub is_kept: Vec<bool>,
    /// Warnings about suspicious rows.
    pub doubts: Vec<String>,
}

/// Numbers of labels in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelCounts {
    /// Labels of the row with the fewest.
    pub fewest: usize,
    /// Labels of the row with the most.
    pub most: usize,
    /// Rows without a label.
    pub without: usize,
}

impl LabelledRows {
    /// Reads the rows. Those without a text are not kept.
    pub fn read(source: &Path, recognised: &Recognised) -> Result<Self> {
        let read = read_examples(source, &recognised.columns(), None)?;
        let mut rows =
            Self { source: source.to_owned(), is_kept: Vec::new(), doubts: Vec::new(), examples: read.examples };
        rows.is_kept = rows.examples.iter().map(|example| !example.text.trim().is_empty()).collect();
        let empty = rows.examples.len() - rows.count();
        if empty > 0 {
            rows.doubt(format!("rows without a text, which are left out: {empty} of {}", rows.examples.len()));
        }
        if !read.unknown.is_empty() {
            let unknown: Vec<&String> = read.unknown.keys().collect();
            rows.doubt(format!("labels that no training row has are left out: {}", abridged(&unknown)));
        }
        Ok(rows)
    }

    fn doubt(&mut self, what: impl AsRef<str>) {
        self.doubts.push(format!("{}: {}", self.source.display(), what.as_ref()));
    }

    /// The rows that are kept, with their indices.
    pub fn kept(&self) -> impl Iterator<Item = (usize, &Example)> {
        self.examples.iter().enumerate().filter(|(row, _)| self.is_kept[*row])
    }

    /// The number of rows that are kept.
    #[must_use]
    pub fn count(&self) -> usize {
        self.is_kept.iter().filter(|&&is_kept| is_kept).count()
    }

    /// Numbers of labels in the rows that are kept.
    #[must_use]
    pub fn label_counts(&self) -> LabelCounts {
        let counts: Vec<usize> = self.kept().map(|(_, example)| labels_of(example).count()).collect();
        LabelCounts {
            fewest: counts.iter().min().copied().unwrap_or(0),
            most: counts.iter().max().copied().unwrap_or(0),
            without: counts.iter().filter(|&&count| count == 0).count(),
        }
    }

    /// Keeps rows with exactly one label alone.
    ///
    /// # Errors
    /// If a row has several.
    pub fn keep_single_labels(&mut self) -> Result<()> {
        let mut dropped = 0;
        for (row, example) in self.examples.iter().enumerate().filter(|(row, _)| self.is_kept[*row]) {
            let count = labels_of(example).count();
            ensure!(
                count < 2,
                "{}: row {} (id `{}`) has {count} labels, and single_label_classification means one; leave out \
                 --problem_type, or name another column with --labels",
                self.source.display(),
                row + 1,
                clip(&example.id)
            );
            dropped += usize::from(count == 0);
        }
        if dropped > 0 {
            let kept =
                self.examples.iter().zip(&self.is_kept).map(|(example, &kept)| kept && labels_of(example).count() == 1);
            self.is_kept = kept.collect();
            self.doubt(format!(
                "{dropped} rows have no label, and are left out; with --problem_type multi_label_classification they stay, \
                 as texts that no label fits"
            ));
        }
        Ok(())
    }

    /// The part of each row that is kept, by `shares`. Rows with the same text are in the same part.
    #[must_use]
    pub fn split(&self, shares: &[f64], seed: u32) -> Vec<Option<usize>> {
        let mut groups: HashMap<Option<TextKey>, usize> = HashMap::new();
        let mut group = |example: &Example| {
            let next = groups.len();
            *groups.entry(TextKey::of(&example.text)).or_insert(next)
        };
        let (labels, groups): (Vec<Vec<usize>>, Vec<usize>) =
            self.kept().map(|(_, example)| (labels_of(example).collect(), group(example))).unzip();
        let mut parts = stratify(&labels, &groups, shares, seed).into_iter();
        self.is_kept.iter().map(|&is_kept| if is_kept { parts.next() } else { None }).collect()
    }

    /// Finds texts that repeat, and those that repeat with other labels.
    pub fn look_for_repetitions(&mut self) {
        let mut first: HashMap<Option<TextKey>, &Example> = HashMap::new();
        let mut contradicted: BTreeSet<&str> = BTreeSet::new();
        let (mut repeated, mut sample) = (0, None);
        for (_, example) in self.kept() {
            let earlier = *first.entry(TextKey::of(&example.text)).or_insert(example);
            repeated += usize::from(!std::ptr::eq(earlier, example));
            if earlier.labels != example.labels {
                contradicted.insert(&earlier.text);
                sample.get_or_insert((clip(&earlier.id), clip(&example.id)));
            }
        }
        let contradicted = contradicted.len();
        if repeated > 0 {
            self.doubt(format!("{repeated} rows repeat the text of an earlier row; equal texts stay in one split"));
        }
        if let Some((one, other)) = sample {
            self.doubt(format!(
                "{contradicted} texts occur in several rows with different labels, such as rows `{one}` and `{other}`"
            ));
        }
    }

    /// Counts the rows whose text is also in `others`.
    #[must_use]
    pub fn shared_with(&self, others: &Self) -> usize {
        let texts: HashSet<Option<TextKey>> = others.kept().map(|(_, example)| TextKey::of(&example.text)).collect();
        self.kept().filter(|(_, example)| texts.contains(&TextKey::of(&example.text))).count()
    }

    /// Writes the rows that are wanted.
    pub fn write(&self, recognised: &Recognised, is_wanted: &dyn Fn(usize) -> bool, output: &Path) -> Result<usize> {
        let flags = |row: usize| self.examples[row].labels.iter().map(|&label| label > 0.5).collect();
        split_files::write_rows(&self.source, recognised, &flags, &|row| self.is_kept[row] && is_wanted(row), output)
    }
}

/// The places of an example's labels.
fn labels_of(example: &Example) -> impl Iterator<Item = usize> + '_ {
    example.labels.iter().enumerate().filter(|(_, label)| **label > 0.5).map(|(place, _)| place)
}
