//! Which words of a text weighed for a label: token weights of integrated gradients, summed by word.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::Result;

use crate::console::Console;
use crate::data::table::Example;
use crate::data::tokenize::{Encoded, TextEncoder};
use crate::evaluation::Sample;
use crate::interrupt;
use crate::metrics::{Decision, Predictions};
use crate::model::attributions::{Attribution, Explainer};
use crate::model::classifier::Classifier;
use crate::run::records::{Why, WordWeight};
use crate::run::report::shown_errors;

/// Explains labels of a text, whose tokens are those that the classifier predicted from.
///
/// # Errors
/// If the tokenizer or the model fails.
pub fn why(
    explainer: &Explainer<'_>,
    encoder: &TextEncoder,
    (text, tokens): (&str, &Encoded),
    (labels, indices): (&[String], &[usize]),
) -> Result<Vec<Why>> {
    let found = explainer.attributions(tokens, indices)?;
    Ok(of_words(text, &encoder.spans(text)?, labels, &found))
}

/// The weights of tokens, summed by word; `spans` are the tokens' bytes in the text.
#[must_use]
pub fn of_words(
    text: &str,
    spans: &[Option<Range<usize>>],
    labels: &[String],
    attributions: &[Attribution],
) -> Vec<Why> {
    let words = words(text);
    let of_label = |attribution: &Attribution| {
        let mut weights = vec![0.0; words.len()];
        let mut rest = 0.0;
        for (index, weight) in attribution.weights.iter().enumerate() {
            let word = spans.get(index).and_then(|span| word_at(text, &words, span.clone()?));
            match word {
                Some(word) => weights[word] += weight,
                // Special tokens, and what a text without tokens is read as.
                None => rest += weight,
            }
        }
        let words = words.iter().zip(weights).map(|(range, weight)| WordWeight {
            word: text[range.clone()].to_owned(),
            start: range.start,
            end: range.end,
            weight,
        });
        Why {
            label: labels[attribution.label].clone(),
            logit: attribution.logit,
            baseline: attribution.baseline,
            rest,
            missing: (!attribution.is_complete()).then(|| attribution.error()),
            words: words.filter(|word| word.weight != 0.0).collect(),
        }
    };
    attributions.iter().map(of_label).collect()
}

/// The labels that are explained: those that are predicted, or the most likely one.
#[must_use]
pub fn explained(predicted: &[bool], probabilities: &[f32]) -> Vec<usize> {
    let chosen = if predicted.contains(&true) { predicted.to_vec() } else { Decision::Top(1).decide(probabilities) };
    chosen.iter().enumerate().filter(|(_, is_chosen)| **is_chosen).map(|(label, _)| label).collect()
}

/// Explains the errors that a report shows, by row and label.
///
/// # Errors
/// If the tokenizer or the model fails, or the user stops it.
pub fn errors(
    (classifier, encoder, labels): (&Classifier, &TextEncoder, &[String]),
    (examples, samples): (&[Example], &[Sample]),
    predictions: &Predictions,
    console: Console,
) -> Result<BTreeMap<(usize, usize), Why>> {
    let mut of_rows: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for mistake in shown_errors(predictions) {
        of_rows.entry(mistake.row).or_default().push(mistake.label);
    }
    let explainer = Explainer::new(classifier)?;
    let mut bar = console.progress("explaining", of_rows.len(), "rows with errors");
    let mut found = BTreeMap::new();
    for (row, of_row) in of_rows {
        interrupt::check()?;
        let text = (examples[row].text.as_str(), &samples[row].tokens);
        let explained = why(&explainer, encoder, text, (labels, &of_row))?;
        found.extend(of_row.iter().map(|&label| (row, label)).zip(explained));
        let rate = bar.rate(1);
        bar.advance(1, || format!("{rate:.1} rows/s"));
    }
    bar.finish();
    Ok(found)
}

/// The word in which a token begins.
fn word_at(text: &str, words: &[Range<usize>], span: Range<usize>) -> Option<usize> {
    let token = text.get(span.clone())?;
    let start = span.start + (token.len() - token.trim_start().len());
    let index = words.partition_point(|word| word.end <= start);
    words.get(index).filter(|word| word.start <= start).map(|_| index)
}

/// Byte ranges of words: letters, digits and what joins them; each character of a script without spaces; and runs of
/// other signs.
fn words(text: &str) -> Vec<Range<usize>> {
    #[derive(PartialEq)]
    enum Kind {
        Space,
        Word,
        Sign,
        Alone,
    }
    let kind = |c: char| match c {
        _ if c.is_whitespace() => Kind::Space,
        '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' => Kind::Alone,
        '_' | '-' | '\'' | '’' => Kind::Word,
        _ if c.is_alphanumeric() => Kind::Word,
        _ => Kind::Sign,
    };
    let mut words: Vec<Range<usize>> = Vec::new();
    let mut last = Kind::Space;
    for (at, c) in text.char_indices() {
        let (end, this) = (at + c.len_utf8(), kind(c));
        match words.last_mut() {
            _ if this == Kind::Space => {}
            Some(word) if this == last && this != Kind::Alone => word.end = end,
            _ => words.push(at..end),
        }
        last = this;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_fall_into_words_and_tokens_belong_to_the_one_they_begin_in() {
        let text = "It's a command-line tool (v2): 日本 é!";
        let words = words(text);
        let shown: Vec<&str> = words.iter().map(|word| &text[word.clone()]).collect();
        assert_eq!(shown, ["It's", "a", "command-line", "tool", "(", "v2", "):", "日", "本", "é", "!"]);
        let at = |part: &str| {
            let start = text.find(part).unwrap();
            word_at(text, &words, start..start + part.len()).map(|index| shown[index])
        };
        assert_eq!((at(" command"), at("-line"), at("2)")), (Some("command-line"), Some("command-line"), Some("v2")));
        // A space alone goes with the word behind it.
        assert_eq!(word_at(text, &words, 4..5), Some(1));
        assert_eq!(word_at("", &[], 0..0), None);
    }
}
