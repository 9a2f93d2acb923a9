//! `data_issues.jsonl`: rows that are worth looking at.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::dataset::Dataset;
use super::prepared::Experiment;
use crate::atomic_file;
use crate::console::Console;
use crate::data::near_duplicates::near_duplicates;
use crate::metrics::Predictions;
use crate::metrics::label_issues::label_issues;
use crate::run::report::IssueTable;

/// Rows that are compared: of more, those at the end are left out.
const MOST_ROWS: usize = 200_000;

/// Rows of a kind that a report shows, and characters of their texts.
const MOST_SHOWN: usize = 30;
const EXCERPT: usize = 240;

/// Titles and columns of a report's tables, and the first column that holds texts of rows.
const KINDS: [(&str, &[&str], usize); 4] = [
    ("Labels that the classifier contradicts with confidence", &["row", "label", "the row", "probability", "text"], 4),
    ("The same text with different labels", &["row", "other row", "labels", "labels of the other", "text"], 4),
    ("Near-duplicates across splits", &["row", "other row", "similarity", "text", "other text"], 3),
    ("Labels that a split lacks", &["label", "split"], 2),
];

/// Something about the data that may be a mistake.
#[derive(Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DataIssue {
    /// Rows with one text and different labels.
    SameTextOtherLabels { rows: [RowName; 2], labels: [Vec<String>; 2] },
    /// Texts of two splits that nearly repeat each other.
    NearDuplicate { rows: [RowName; 2], similarity: f64 },
    /// A label that the best seed's classifier, which was not trained on the row, contradicts with confidence.
    SuspectLabel { row: RowName, label: String, is_given: bool, probability: f32 },
    /// A label that no row of a split has.
    AbsentLabel { split: String, label: String },
}

/// A row of a split.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RowName {
    pub split: String,
    pub id: String,
}

/// Finds issues in the splits; `predictions` are the best seed's, by the name of their split.
pub fn find(experiment: &Experiment<'_>, predictions: &[(&str, Predictions)]) -> Vec<DataIssue> {
    let labels = &experiment.file.labels;
    let mut splits = vec![("train", &experiment.train), ("validation", &experiment.validation)];
    splits.extend(experiment.test.as_ref().map(|test| ("test", test)));
    let mut issues = absent(labels, &splits);
    issues.extend(among_texts(labels, &splits));
    for (split, predictions) in predictions {
        let Some((_, rows)) = splits.iter().find(|(name, _)| name == split) else { continue };
        issues.extend(label_issues(predictions).into_iter().map(|issue| DataIssue::SuspectLabel {
            row: RowName { split: (*split).to_owned(), id: rows.examples[issue.row].id.clone() },
            label: labels[issue.label].clone(),
            is_given: issue.is_given,
            probability: issue.probability,
        }));
    }
    issues
}

fn absent(labels: &[String], splits: &[(&str, &Dataset)]) -> Vec<DataIssue> {
    let is_absent = |label: usize, rows: &Dataset| rows.examples.iter().all(|example| example.labels[label] < 0.5);
    let mut issues = Vec::new();
    for (split, rows) in splits {
        let of_split = labels.iter().enumerate().filter(|(label, _)| is_absent(*label, rows));
        issues.extend(
            of_split.map(|(_, label)| DataIssue::AbsentLabel { split: (*split).to_owned(), label: label.clone() }),
        );
    }
    issues
}

/// Equal texts with other labels, and near duplicates across splits.
fn among_texts(labels: &[String], splits: &[(&str, &Dataset)]) -> Vec<DataIssue> {
    let rows: Vec<(&str, &crate::data::table::Example)> = splits
        .iter()
        .flat_map(|(split, rows)| rows.examples.iter().map(move |example| (*split, example)))
        .take(MOST_ROWS)
        .collect();
    let name = |row: usize| RowName { split: rows[row].0.to_owned(), id: rows[row].1.id.clone() };
    let names = |row: usize| {
        let of_row = labels.iter().zip(&rows[row].1.labels).filter(|(_, value)| **value > 0.5);
        of_row.map(|(label, _)| label.clone()).collect::<Vec<_>>()
    };
    let mut issues = Vec::new();
    let mut first: HashMap<&str, usize> = HashMap::new();
    for (row, (_, example)) in rows.iter().enumerate().filter(|(_, row)| !row.1.text.trim().is_empty()) {
        let earlier = *first.entry(&example.text).or_insert(row);
        if rows[earlier].1.labels != example.labels {
            issues.push(DataIssue::SameTextOtherLabels {
                rows: [name(earlier), name(row)],
                labels: [names(earlier), names(row)],
            });
        }
    }
    let texts: Vec<&str> = rows.iter().map(|(_, example)| example.text.as_str()).collect();
    let across = near_duplicates(&texts).into_iter().filter(|&(a, b, _)| rows[a].0 != rows[b].0);
    issues.extend(across.map(|(a, b, similarity)| DataIssue::NearDuplicate { rows: [name(a), name(b)], similarity }));
    issues
}

/// The issues as a report shows them; texts are left out where they are not to be seen.
#[must_use]
pub fn tables(experiment: &Experiment<'_>, issues: &[DataIssue], shows_texts: bool) -> Vec<IssueTable> {
    let splits = [
        ("train", Some(&experiment.train)),
        ("validation", Some(&experiment.validation)),
        ("test", experiment.test.as_ref()),
    ];
    let mut texts: HashMap<(&str, &str), &str> = HashMap::new();
    for (split, rows) in splits.iter().filter(|_| shows_texts) {
        for example in rows.iter().flat_map(|rows| &rows.examples) {
            texts.entry((split, &example.id)).or_insert(&example.text);
        }
    }
    let text = |row: &RowName| {
        let text = texts.get(&(row.split.as_str(), row.id.as_str())).copied().unwrap_or_default();
        let short: String = text.chars().take(EXCERPT).collect();
        if short.len() < text.len() { format!("{short}…") } else { short }
    };
    let name = |row: &RowName| format!("{}, {}", row.split, row.id);
    let named = |labels: &[String]| if labels.is_empty() { "none".to_owned() } else { labels.join(", ") };
    let table = |(title, heads, texts_from)| IssueTable { title, heads, count: 0, texts_from, rows: Vec::new() };
    let mut tables = KINDS.map(table);
    for issue in issues {
        let (kind, row) = match issue {
            DataIssue::SuspectLabel { row, label, is_given, probability } => {
                let given = if *is_given { "has it" } else { "has it not" };
                (0, vec![name(row), label.clone(), given.to_owned(), format!("{probability:.3}"), text(row)])
            }
            DataIssue::SameTextOtherLabels { rows: [a, b], labels: [of_a, of_b] } => {
                (1, vec![name(a), name(b), named(of_a), named(of_b), text(a)])
            }
            DataIssue::NearDuplicate { rows: [a, b], similarity } => {
                (2, vec![name(a), name(b), format!("{similarity:.2}"), text(a), text(b)])
            }
            DataIssue::AbsentLabel { split, label } => (3, vec![label.clone(), split.clone()]),
        };
        tables[kind].count += 1;
        if tables[kind].rows.len() < MOST_SHOWN {
            tables[kind].rows.push(row);
        }
    }
    tables.into_iter().filter(|table| table.count > 0).collect()
}

/// Writes the issues, a line each.
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path, issues: &[DataIssue]) -> Result<()> {
    atomic_file::write_file(path, |writer| {
        use std::io::Write;
        for issue in issues {
            writeln!(writer, "{}", serde_json::to_string(issue)?)?;
        }
        Ok(())
    })
}

/// Says how many there are of each kind that training has not warned of.
pub fn say(issues: &[DataIssue], path: &Path, console: Console) {
    let count = |is_kind: fn(&DataIssue) -> bool| issues.iter().filter(|issue| is_kind(issue)).count();
    let suspect = count(|issue| matches!(issue, DataIssue::SuspectLabel { .. }));
    let near = count(|issue| matches!(issue, DataIssue::NearDuplicate { .. }));
    let same = count(|issue| matches!(issue, DataIssue::SameTextOtherLabels { .. }));
    let mut parts = Vec::new();
    for (count, what) in [
        (suspect, "labels that the classifier contradicts with confidence"),
        (near, "texts that nearly repeat one of another split"),
        (same, "texts with different labels"),
    ] {
        parts.extend((count > 0).then(|| format!("{count} {what}")));
    }
    if !parts.is_empty() {
        console.say(format!("worth looking at: {}: {}", parts.join(", "), path.display()));
    }
}
