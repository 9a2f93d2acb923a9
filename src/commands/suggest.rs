//! `llmcls eval --suggest N`: the rows of an unlabelled file that are most useful to label next.
//!
//! Useful are rows that the classifier is unsure of: the entropy of its probabilities is high. A row that nearly repeats
//! one that was taken before it teaches little more, and is passed over.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde::Serialize;

use super::loaded::Loaded;
use crate::atomic_file;
use crate::cli::EvalArgs;
use crate::cluster::Group;
use crate::console::{Console, print, print_json};
use crate::data::formats::clip;
use crate::data::near_duplicates::{SIMILAR, similarity};
use crate::data::table::{Example, read_examples};
use crate::evaluation::NotFinite;
use crate::exit::Usage;
use crate::kernels::device::Device;
use crate::model::classifier::Problem;
use crate::run::records::names;

const FILE: &str = "suggested.jsonl";
/// Rows on the terminal.
const SHOWN: usize = 10;

/// A row to label.
#[derive(Serialize)]
struct Suggestion<'a> {
    id: &'a str,
    text: &'a str,
    /// Entropy of the probabilities in bits, over all labels.
    entropy: f64,
    predicted: Vec<&'a str>,
    probs: &'a [f32],
    labels: &'a [String],
}

/// Writes and prints the suggestions.
///
/// # Errors
/// If the classifier or the rows cannot be used.
pub(super) fn run(args: &EvalArgs, count: usize, device: &Device, console: Console) -> Result<()> {
    let Some(path) = &args.input_csv else {
        return Err(Usage("--suggest needs --input_csv FILE, with rows that have no labels yet".to_owned()).into());
    };
    let loaded = Loaded::open(&args.run, device, console)?;
    let predictor = &loaded.predictor;
    let output = output(args, &loaded, path)?;
    let rows = read_examples(path, &loaded.columns(false)?, None)?;
    rows.notes.iter().for_each(|note| console.say(note));
    let examples = rows.examples;
    ensure!(!examples.is_empty(), "{}: has no rows", path.display());
    let samples = predictor.encode(&examples, &path.display().to_string(), 0)?;
    let mut bar = console.progress("predicting", samples.len(), "rows");
    let evaluation = predictor
        .evaluate(&samples, &predictor.decision(), loaded.batch_size(&args.run), &Group::alone(), |count| {
            bar.advance(count, String::new);
        })
        .map_err(|error| NotFinite::named(error, |row| examples[row].location(path, row)))?;
    bar.finish();
    let predictions = &evaluation.predictions;
    let is_single = predictor.classifier.problem() == Problem::SingleLabel;
    let entropies: Vec<f64> = predictions.probabilities.iter().map(|row| entropy(row, is_single)).collect();
    let labels = &predictor.file.labels;
    let suggestions: Vec<Suggestion<'_>> = choose(&examples, &entropies, count)
        .into_iter()
        .map(|row| Suggestion {
            id: &examples[row].id,
            text: &examples[row].text,
            entropy: entropies[row],
            predicted: names(labels, &predictions.predicted[row]),
            probs: &predictions.probabilities[row],
            labels,
        })
        .collect();
    atomic_file::write_file(&output, |writer| {
        use std::io::Write;
        for suggestion in &suggestions {
            writeln!(writer, "{}", serde_json::to_string(suggestion)?)?;
        }
        Ok(())
    })?;
    console.say(format!("wrote {} rows to label to {}", suggestions.len(), output.display()));
    if args.json {
        return print_json(&serde_json::to_value(&suggestions)?);
    }
    let mut text = "entropy  id: text\n".to_owned();
    for suggestion in suggestions.iter().take(SHOWN) {
        text.push_str(&format!("{:7.3}  {}: {}\n", suggestion.entropy, clip(suggestion.id), clip(suggestion.text)));
    }
    print(&text)
}

fn output(args: &EvalArgs, loaded: &Loaded, rows: &Path) -> Result<PathBuf> {
    let directory = match &args.output_dir {
        Some(directory) => {
            std::fs::create_dir_all(directory)?;
            directory.clone()
        }
        None => PathBuf::new(),
    };
    let output = directory.join(FILE);
    let mut inputs = loaded.predictor.trained.files();
    inputs.push(rows.to_owned());
    atomic_file::refuse_input_as_output(&output, inputs.iter().map(PathBuf::as_path))?;
    Ok(output)
}

/// Rows of the highest entropy, none of which nearly repeats an earlier one.
fn choose(examples: &[Example], entropies: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by(|&a, &b| entropies[b].total_cmp(&entropies[a]).then(a.cmp(&b)));
    let mut chosen: Vec<usize> = Vec::new();
    for row in order {
        let text = &examples[row].text;
        let is_new = chosen
            .iter()
            .all(|&other| *text != examples[other].text && similarity(text, &examples[other].text) < SIMILAR);
        if is_new && !text.trim().is_empty() {
            chosen.push(row);
        }
        if chosen.len() == count {
            break;
        }
    }
    chosen
}

/// Bits.
fn entropy(probabilities: &[f32], is_single: bool) -> f64 {
    let term = |p: f64| if p > 0.0 { -p * p.log2() } else { 0.0 };
    let of_one = |&p: &f32| {
        let p = f64::from(p);
        if is_single { term(p) } else { term(p) + term(1.0 - p) }
    };
    probabilities.iter().map(of_one).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsure_rows_come_first_and_near_repeats_are_passed_over() {
        let texts = ["", "sure of this one", "plays chess on a board", "Plays chess on a board!", "mixes audio"];
        let examples: Vec<Example> = texts
            .iter()
            .map(|text| Example { id: String::new(), text: (*text).to_owned(), labels: Vec::new() })
            .collect();
        assert_eq!(choose(&examples, &[2.0, 0.1, 0.9, 1.0, 0.5], 3), [3, 4, 1]);
        assert_eq!(choose(&examples, &[2.0, 0.1, 0.9, 1.0, 0.5], 1), [3]);
        assert!((entropy(&[0.5, 0.5], true) - 1.0).abs() < 1e-9 && (entropy(&[0.5, 0.5], false) - 2.0).abs() < 1e-9);
        assert_eq!(entropy(&[1.0, 0.0], false), 0.0);
    }
}
