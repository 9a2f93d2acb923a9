//! Warnings about data and results that are likely mistakes.

use std::collections::{BTreeSet, HashMap, HashSet};

use anyhow::{Result, ensure};

use crate::console::Console;
use crate::data::formats::clip;
use crate::data::long_text::Limit;
use crate::data::same_text::TextKey;
use crate::data::table::{Example, abridged};
use crate::evaluation::Sample;
use crate::metrics::Scores;
use crate::model::classifier::Problem;

/// Warns of what is likely a mistake in a split.
pub fn about(name: &str, examples: &[Example], samples: &[Sample], limit: Limit, console: Console) {
    let empty = examples.iter().filter(|example| example.text.trim().is_empty()).count();
    let cut = samples.iter().filter(|sample| sample.tokens.was_cut).count();
    about_texts(name, [examples.len(), empty, cut], limit, console);
    let mut seen = HashSet::new();
    let duplicates = examples.iter().filter(|example| !seen.insert(&example.id)).count();
    if duplicates > 0 {
        console.warn(format!("{name}: rows with the id of an earlier row: {duplicates}"));
    }
}

/// Warns of texts that are empty or cut, of so many.
pub fn about_texts(name: &str, [texts, empty, cut]: [usize; 3], limit: Limit, console: Console) {
    /// A few long texts are to be expected: `init` cuts up to one in twenty.
    const MANY: f64 = 0.1;
    if empty > 0 {
        console.warn(format!("{name}: empty texts: {empty} of {texts}"));
    }
    if cut > 0 {
        let share = cut as f64 / texts as f64;
        let message = format!("{name}: {cut} of {texts} texts ({:.1}%) {}", 100.0 * share, limit.of_longer_texts());
        if share > MANY {
            console.warn(message);
        } else {
            console.say(message);
        }
    }
}

/// Warns of labels that training cannot learn, or a split cannot score, and of rows that contradict each other.
///
/// # Errors
/// If no training row has any of the labels.
pub fn about_labels(
    labels: &[String],
    splits: &[(&str, &[Example])],
    problem: Problem,
    console: Console,
) -> Result<()> {
    for (split, examples) in splits {
        let with = |holds: &dyn Fn(f32) -> bool| -> Vec<&String> {
            let is_so = |index: usize| examples.iter().all(|example| holds(example.labels[index]));
            labels.iter().enumerate().filter(|(index, _)| is_so(*index)).map(|(_, label)| label).collect()
        };
        let absent = with(&|label| label < 0.5);
        ensure!(
            absent.len() < labels.len() || *split != "train",
            "train: no row has any of the labels, which are {}; data.label_columns names the columns of 0 and 1, or \
             data.labels_column the one that lists labels",
            abridged(&absent)
        );
        let everywhere = with(&|label| label > 0.5);
        if !everywhere.is_empty() && *split == "train" {
            console.warn(format!(
                "train: every row has {}: training cannot learn when a row has not",
                abridged(&everywhere)
            ));
        }
        if !absent.is_empty() {
            let (count, names) = (absent.len(), abridged(&absent));
            let labels = if count == 1 { "1 label has" } else { &format!("{count} labels have") };
            let effect = if *split == "train" { "" } else { "; F1 there is always 0" };
            console.warn(format!("{split}: {labels} no positive row{effect}: {names}"));
        }
        about_contradictions(split, examples, console);
    }
    let is_single = |example: &Example| example.labels.iter().filter(|&&label| label > 0.5).count() == 1;
    if problem == Problem::MultiLabel
        && labels.len() > 1
        && splits.iter().all(|(_, examples)| examples.iter().all(is_single))
    {
        console.say(
            "hint: every row has exactly one label; if no row can have two, set \
             model.problem_type: single_label_classification",
        );
    }
    Ok(())
}

/// Examples that have a text.
fn with_keys(examples: &[Example]) -> impl Iterator<Item = (TextKey, &Example)> {
    examples.iter().filter_map(|example| Some((TextKey::of(&example.text)?, example)))
}

/// Warns of texts that stand in a split more than once with different labels.
fn about_contradictions(split: &str, examples: &[Example], console: Console) {
    let mut first: HashMap<TextKey, &Example> = HashMap::new();
    let mut contradicted: BTreeSet<TextKey> = BTreeSet::new();
    let mut sample = None;
    for (key, example) in with_keys(examples) {
        let earlier = *first.entry(key).or_insert(example);
        if earlier.labels != example.labels {
            contradicted.insert(key);
            sample.get_or_insert((&earlier.id, &example.id));
        }
    }
    if let Some((one, other)) = sample {
        console.warn(format!(
            "{split}: {} texts occur in several rows with different labels, such as rows `{}` and `{}`",
            contradicted.len(),
            clip(one),
            clip(other)
        ));
    }
}

/// Warns of labels that hold and are never predicted.
pub fn about_unpredicted(scores: &Scores, console: Console) {
    let missing = scores.per_label.iter().filter(|label| label.support > 0 && label.predicted == 0);
    let missing: Vec<&str> = missing.map(|label| label.label.as_str()).collect();
    if !missing.is_empty() {
        console.warn(format!(
            "never predicted on validation: {}; train.class_weights=balanced or train.tune_thresholds may help",
            abridged(&missing)
        ));
    }
}

/// Warns of texts that stand in two splits: scores on them say little.
pub fn about_leaks(splits: &[(&str, &[Example])], console: Console) {
    let mut first: HashMap<TextKey, &str> = HashMap::new();
    let mut leaks: Vec<((&str, &str), usize)> = Vec::new();
    for (split, examples) in splits {
        for (key, _) in with_keys(examples) {
            let home = *first.entry(key).or_insert(split);
            if home != *split {
                match leaks.iter_mut().find(|(pair, _)| *pair == (home, split)) {
                    Some((_, count)) => *count += 1,
                    None => leaks.push(((home, split), 1)),
                }
            }
        }
    }
    for ((a, b), count) in leaks {
        console.warn(format!("{count} texts of {b} are also in {a}"));
    }
}
