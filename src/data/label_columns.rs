//! From lists of labels to columns of 0 and 1: the most frequent labels, and names for their columns.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

/// Counts of labels, in the order in which they first appear.
#[derive(Debug, Default)]
pub struct LabelCounts {
    indices: HashMap<String, usize>,
    labels: Vec<(String, usize)>,
}

/// A label that has become a column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LabelColumn {
    pub column: String,
    /// The label as the rows spell it.
    pub label: String,
    /// Its name, where labels are numbers and a list of names was given; else the label.
    pub name: String,
    /// Rows that have it, of those that were counted.
    pub count: usize,
}

impl LabelCounts {
    /// Counts the labels of a row, each once.
    pub fn add(&mut self, labels: &[&str]) {
        let mut seen = HashSet::new();
        for label in labels.iter().copied().filter(|label| seen.insert(*label)) {
            let index = match self.indices.get(label) {
                Some(&index) => index,
                None => {
                    self.indices.insert(label.to_owned(), self.labels.len());
                    self.labels.push((label.to_owned(), 0));
                    self.labels.len() - 1
                }
            };
            self.labels[index].1 += 1;
        }
    }

    /// The `k` most frequent labels, all if `k` is `None`, and their columns. Of labels that are equally
    /// frequent the lower number comes first, or, where labels are no numbers, the one seen first.
    #[must_use]
    pub fn columns(&self, k: Option<usize>, prefix: &str, names: &[String]) -> Vec<LabelColumn> {
        let number = |label: &str| label.parse::<u64>().ok();
        let mut order: Vec<usize> = (0..self.labels.len()).collect();
        order.sort_by_key(|&index| {
            let (label, count) = &self.labels[index];
            (std::cmp::Reverse(*count), number(label).unwrap_or(u64::MAX), index)
        });
        order.truncate(k.unwrap_or(usize::MAX));
        let mut taken = HashSet::new();
        order
            .into_iter()
            .map(|index| {
                let (label, count) = &self.labels[index];
                let name = number(label).and_then(|index| names.get(usize::try_from(index).ok()?)).unwrap_or(label);
                let column = unique(&format!("{prefix}{name}"), &mut taken);
                LabelColumn { column, label: label.clone(), name: name.clone(), count: *count }
            })
            .collect()
    }
}

/// The name, or with the first number from 2 on that makes it one that is not taken.
fn unique(name: &str, taken: &mut HashSet<String>) -> String {
    let names = std::iter::once(name.to_owned()).chain((2..).map(|number| format!("{name}_{number}")));
    let free = names.into_iter().find(|name| taken.insert(name.clone()));
    free.expect("numbers do not end")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(rows: &[&[&str]]) -> LabelCounts {
        let mut counts = LabelCounts::default();
        for row in rows {
            counts.add(row);
        }
        counts
    }

    #[test]
    fn the_most_frequent_come_first_and_ties_by_number() {
        let counts = counts(&[&["9", "10", "3"], &["10", "10"], &["9", "4"], &["3"]]);
        let columns = counts.columns(Some(3), "", &[]);
        let labels: Vec<(&str, usize)> = columns.iter().map(|column| (&*column.label, column.count)).collect();
        assert_eq!(labels, [("3", 2), ("9", 2), ("10", 2)]);
        assert_eq!(columns[0].column, "3");
    }

    #[test]
    fn columns_have_the_names_of_their_labels() {
        let counts = counts(&[&["home & garden", "feature request", "Bücher", "1", "0"]]);
        let columns = counts.columns(None, "l ", &["Zero".to_owned(), "Bücher".to_owned()]);
        let names: Vec<&str> = columns.iter().map(|column| &*column.column).collect();
        assert_eq!(names, ["l Zero", "l Bücher", "l home & garden", "l feature request", "l Bücher_2"]);
    }
}
