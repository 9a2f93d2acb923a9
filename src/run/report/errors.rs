//! The most confident errors of each label, with the labels that a row has and got, its text, and the words that weighed.

use maud::{Markup, html};

use super::{MAX_ERRORS, Report, counted, row_text, shown_errors};
use crate::metrics::errors::Mistake;
use crate::run::records::{Why, names};

/// Characters of a text that are shown before it is unfolded, and the most that are there at all.
const SHORT: usize = 240;
const LONG: usize = 20_000;

impl Report<'_> {
    /// Folded up by label: of the labels with the most rows, if they are many.
    pub(super) fn mistakes(&self) -> Markup {
        let found = shown_errors(self.predictions);
        let of_label = |label: usize| found.iter().filter(move |mistake| mistake.label == label);
        let folds: Vec<usize> =
            self.by_support().into_iter().filter(|&label| of_label(label).next().is_some()).collect();
        html! {
            p class="soft" {
                @if found.is_empty() {
                    "None."
                } @else {
                    "The most confident errors of each label, at most " (MAX_ERRORS) " of each kind; " code { "llmcls eval" }
                    " writes more of them to errors.jsonl." (self.of_most_frequent())
                    @if !self.why.is_empty() {
                        " In blue are words that speak for the label, in red words that speak against it (integrated gradients)."
                    } @else if self.shows_texts {
                        " " code { "llmcls eval --explain" } " shows which words weighed."
                    }
                }
            }
            div class="folds" {
                @for label in folds {
                    details {
                        summary {
                            (self.labels[label]) " "
                            span class="soft" { (self.error_counts(label)) }
                        }
                        @for mistake in of_label(label) { (self.mistake(mistake)) }
                    }
                }
            }
        }
    }

    fn error_counts(&self, label: usize) -> String {
        let count = |is_false_positive: bool| {
            let rows = self.predictions.predicted.iter().zip(&self.predictions.targets);
            rows.filter(|(predicted, target)| {
                predicted[label] != target[label] && predicted[label] == is_false_positive
            })
            .count()
        };
        format!("{}, {}", counted(count(true), "false positive"), counted(count(false), "false negative"))
    }

    fn mistake(&self, mistake: &Mistake) -> Markup {
        let example = &self.examples[mistake.row];
        let kind = if mistake.is_false_positive { "false positive" } else { "false negative" };
        let why = self.why.get(&(mistake.row, mistake.label));
        let is_long = example.text.chars().count() > SHORT;
        html! {
            div class="error" {
                p {
                    b { (format_args!("{:.3}", mistake.probability)) } " " (kind) " "
                    span class="soft" {
                        "row " (example.id) " · has " b { (self.named(&self.predictions.targets[mistake.row])) }
                        " · predicted " b { (self.named(&self.predictions.predicted[mistake.row])) }
                    }
                }
                @if self.shows_texts {
                    (row_text(&html! {
                        @if is_long {
                            details class="whole" {
                                summary { span class="short" { (weighed(&example.text, why, SHORT)) "…" } }
                                p class="rowtext" { (weighed(&example.text, why, LONG)) }
                            }
                        } @else {
                            p class="rowtext" { (weighed(&example.text, why, SHORT)) }
                        }
                    }))
                }
            }
        }
    }

    /// The names of the labels that are set.
    fn named(&self, flags: &[bool]) -> String {
        let names = names(self.labels, flags);
        if names.is_empty() { "no label".to_owned() } else { names.join(", ") }
    }
}

/// The first characters of a text; its words have a shade by their weight, where that is known.
fn weighed(text: &str, why: Option<&Why>, characters: usize) -> Markup {
    let end = text.char_indices().nth(characters).map_or(text.len(), |(at, _)| at);
    let words = why.map_or(&[][..], |why| &why.words);
    let most = words.iter().map(|word| word.weight.abs()).fold(f64::MIN_POSITIVE, f64::max);
    let mut parts = Vec::new();
    let mut at = 0;
    for word in words.iter().filter(|word| word.end <= end) {
        parts.push((&text[at..word.start], 0, false));
        let shade = (word.weight.abs() / most * 4.0).round() as usize;
        parts.push((&text[word.start..word.end], shade, word.weight > 0.0));
        at = word.end;
    }
    parts.push((&text[at..end], 0, false));
    html! {
        @for (part, shade, speaks_for) in parts {
            @if shade == 0 { (part) } @else {
                mark class={ @if speaks_for { "for" } @else { "against" } (shade) } { (part) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::records::WordWeight;

    #[test]
    fn words_have_shades_and_are_escaped() {
        let text = "a <b> über c";
        let word = |word: &str, weight: f64| {
            let start = text.find(word).unwrap();
            WordWeight { word: word.to_owned(), start, end: start + word.len(), weight }
        };
        let words = vec![word("<b>", -1.0), word("über", 0.5), word("c", 0.01)];
        let why = Why { label: String::new(), logit: 0.0, baseline: 0.0, rest: 0.0, missing: None, words };
        let html = weighed(text, Some(&why), 99).into_string();
        assert_eq!(html, "a <mark class=\"against4\">&lt;b&gt;</mark> <mark class=\"for2\">über</mark> c");
        assert_eq!(weighed(text, Some(&why), 8).into_string(), "a <mark class=\"against4\">&lt;b&gt;</mark> üb");
        assert_eq!(weighed(text, None, 99).into_string(), "a &lt;b&gt; über c");
    }
}
