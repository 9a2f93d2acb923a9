//! Warnings about data and results that are likely mistakes.

use std::collections::{HashMap, HashSet};

use crate::console::Console;
use crate::data::table::Example;
use crate::evaluation::Sample;
use crate::metrics::Scores;

/// Warns of what is likely a mistake in a split.
pub(super) fn about(name: &str, examples: &[Example], samples: &[Sample], max_length: usize, console: Console) {
    let empty = examples.iter().filter(|example| example.text.trim().is_empty()).count();
    if empty > 0 {
        console.warn(format!("{name}: {empty} of {} texts are empty", examples.len()));
    }
    let cut = samples.iter().filter(|sample| sample.tokens.was_cut).count();
    if cut > 0 {
        console.warn(format!(
            "{name}: {cut} of {} texts ({:.1}%) are cut at data.max_length = {max_length} tokens",
            samples.len(),
            100.0 * cut as f64 / samples.len() as f64
        ));
    }
    let mut seen = HashSet::new();
    let duplicates = examples.iter().filter(|example| !seen.insert(&example.id)).count();
    if duplicates > 0 {
        console.warn(format!("{name}: {duplicates} rows repeat the id of an earlier row"));
    }
}

/// Warns of labels that training cannot learn.
pub(super) fn about_labels(labels: &[String], train: &[Example], console: Console) {
    let absent: Vec<&str> = labels
        .iter()
        .enumerate()
        .filter(|(index, _)| train.iter().all(|example| example.labels[*index] < 0.5))
        .map(|(_, label)| label.as_str())
        .collect();
    if !absent.is_empty() {
        console.warn(format!("train: {} labels have no positive row: {}", absent.len(), absent.join(", ")));
    }
}

/// Warns of labels that hold and are never predicted.
pub(super) fn about_unpredicted(scores: &Scores, console: Console) {
    let missing = scores.per_label.iter().filter(|label| label.support > 0 && label.predicted == 0);
    let missing: Vec<&str> = missing.map(|label| label.label.as_str()).collect();
    if !missing.is_empty() {
        console.warn(format!(
            "never predicted on validation: {}; train.class_weights=balanced or train.tune_thresholds may help",
            missing.join(", ")
        ));
    }
}

/// Warns of texts that stand in two splits: scores on them say little.
pub(super) fn about_leaks(splits: &[(&str, &[Example])], console: Console) {
    let mut first: HashMap<&str, &str> = HashMap::new();
    let mut leaks: Vec<((&str, &str), usize)> = Vec::new();
    for (split, examples) in splits {
        for example in examples.iter().filter(|example| !example.text.trim().is_empty()) {
            let home = *first.entry(&example.text).or_insert(split);
            if home != *split {
                match leaks.iter_mut().find(|(pair, _)| *pair == (home, split)) {
                    Some((_, count)) => *count += 1,
                    None => leaks.push(((home, split), 1)),
                }
            }
        }
    }
    for ((a, b), count) in leaks {
        console.warn(format!("{count} texts of {b} stand in {a} too"));
    }
}
