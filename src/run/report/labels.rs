//! The parts of a report that show single labels: scores, curves over thresholds, errors, pairs.

use std::cmp::Reverse;

use maud::{Markup, html};

use super::Report;
use super::charts::{Axis, Chart, Series};
use crate::metrics::curves::{AtThreshold, over_thresholds};
use crate::metrics::errors::{Mistake, Pair, confusions, cooccurrences, worst_mistakes};

/// Labels that are shown one by one, with their curves and errors: those with the most rows.
const MAX_SHOWN: usize = 60;
/// Points of a curve over thresholds.
const POINTS: usize = 101;
/// The most errors of each kind and label.
const MISTAKES: usize = 3;
/// Pairs of labels.
const MAX_PAIRS: usize = 15;
/// Characters of a text that are shown.
const TEXT: usize = 240;

impl Report<'_> {
    /// A table that sorts by each column.
    pub(super) fn per_label(&self) -> Markup {
        const HEADS: [&str; 9] =
            ["label", "rows", "predicted", "threshold", "precision", "recall", "F1", "average precision", "ROC AUC"];
        /// Labels from which on a box to search is of use.
        const MANY: usize = 20;
        let heads: Vec<&str> = HEADS.into_iter().filter(|head| !self.is_single || *head != "threshold").collect();
        let score = |value: f64| format!("{value:.3}");
        let known = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), score);
        html! {
            h2 { "Labels" }
            @if self.labels.len() > MANY {
                p { input class="search" type="search" placeholder="Search labels" aria-label="Search labels"; }
            }
            div class="scroll tall" {
                table class="sorts" {
                    thead { tr { @for head in heads { th { button type="button" { (head) } } } } }
                    tbody {
                        @for (row, threshold) in self.scores.per_label.iter().zip(self.thresholds) {
                            tr {
                                td { (row.label) }
                                td { (row.support) }
                                td { (row.predicted) }
                                @if !self.is_single { td { (format_args!("{threshold:.3}")) } }
                                @for value in [row.precision, row.recall, row.f1] { td { (score(value)) } }
                                @for value in [row.average_precision, row.roc_auc] { td { (known(value)) } }
                            }
                        }
                    }
                }
            }
        }
    }

    /// Precision against recall, and all three over thresholds, of each label.
    pub(super) fn label_curves(&self) -> Markup {
        html! {
            h2 { "Thresholds" }
            @if self.labels.len() > MAX_SHOWN {
                p class="soft" { "Of the " (MAX_SHOWN) " labels with the most rows." }
            }
            @for label in self.by_support() {
                @let row = &self.scores.per_label[label];
                details {
                    summary {
                        (row.label) " "
                        span class="soft" { "F1 " (format_args!("{:.3}", row.f1)) ", " (row.support) " rows" }
                    }
                    div class="charts" { (self.curves_of(label)) }
                }
            }
        }
    }

    fn curves_of(&self, label: usize) -> Markup {
        let curve = over_thresholds(self.predictions, label, POINTS);
        let threshold = f64::from(self.thresholds[label]);
        let line = |name: &str, colour: usize, point: fn(&AtThreshold) -> (f64, f64)| Series {
            name: name.to_owned(),
            colour,
            is_labelled: false,
            points: curve.iter().map(point).collect(),
        };
        let against = Chart { title: "Precision and recall", x: Axis::unit("recall"), y: Axis::unit("precision") };
        let over = Chart { title: "Over thresholds", x: Axis::unit("threshold"), y: Axis::unit("score") };
        html! {
            (against.lines(&[line("", 0, |point| (point.recall(), point.precision())), self.operating_point(label)], false, None))
            (over.lines(
                &[
                    line("precision", 0, |point| (point.threshold, point.precision())),
                    line("recall", 1, |point| (point.threshold, point.recall())),
                    line("F1", 2, |point| (point.threshold, point.f1())),
                ],
                false,
                Some(threshold),
            ))
        }
    }

    /// Precision and recall with the threshold in force.
    fn operating_point(&self, label: usize) -> Series {
        let row = &self.scores.per_label[label];
        Series {
            name: "with the threshold in force".to_owned(),
            colour: 0,
            is_labelled: true,
            points: vec![(row.recall, row.precision)],
        }
    }

    /// The worst errors, folded up by label: of the labels with the most rows, if they are many.
    pub(super) fn mistakes(&self) -> Markup {
        let found = worst_mistakes(self.predictions, MISTAKES);
        let of_label = |label: usize| found.iter().filter(move |mistake| mistake.label == label);
        html! {
            h2 { "Errors" }
            p class="soft" {
                @if found.is_empty() {
                    "None."
                } @else {
                    "The most confident errors of each label. `llmcls eval` writes more of them to errors.jsonl."
                }
            }
            @for label in self.by_support().into_iter().filter(|&label| of_label(label).next().is_some()) {
                details {
                    summary { (self.labels[label]) }
                    @for mistake in of_label(label) { (self.mistake(mistake)) }
                }
            }
        }
    }

    fn mistake(&self, mistake: &Mistake) -> Markup {
        let example = &self.examples[mistake.row];
        let kind = if mistake.is_false_positive { "false positive" } else { "false negative" };
        html! {
            p class="error" {
                b { (format_args!("{:.3}", mistake.probability)) } " " (kind) " "
                span class="soft" {
                    (example.id) "; has " (self.named(&self.predictions.targets[mistake.row])) "; predicted "
                    (self.named(&self.predictions.predicted[mistake.row]))
                }
                @if self.shows_texts {
                    @let text = example.text.chars().take(TEXT).collect::<String>();
                    br; (text)
                    @if text.len() < example.text.len() { "…" }
                }
            }
            @if self.shows_texts && example.text.chars().count() > TEXT {
                details class="whole" { summary { "whole text" } p { (example.text) } }
            }
        }
    }

    /// The names of the labels that are set.
    fn named(&self, flags: &[bool]) -> String {
        let names: Vec<&str> =
            self.labels.iter().zip(flags).filter(|(_, flag)| **flag).map(|(label, _)| label.as_str()).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }

    /// Labels that are predicted in place of each other, and labels that rows have together.
    pub(super) fn pairs(&self) -> Markup {
        let tables = [
            ("Confused labels", ["missed", "predicted instead"], confusions(self.predictions, MAX_PAIRS)),
            ("Co-occurring labels", ["label", "label"], cooccurrences(self.predictions, MAX_PAIRS)),
        ];
        html! {
            @if tables.iter().any(|(.., pairs)| !pairs.is_empty()) {
                h2 { "Pairs of labels" }
                div class="charts" {
                    @for (title, heads, pairs) in tables.iter().filter(|(.., pairs)| !pairs.is_empty()) {
                        (self.pair_table(title, heads, pairs))
                    }
                }
            }
        }
    }

    fn pair_table(&self, title: &str, [first, second]: &[&str; 2], pairs: &[Pair]) -> Markup {
        html! {
            figure {
                figcaption { (title) }
                div class="scroll" {
                    table {
                        thead { tr { th { (first) } th class="text" { (second) } th { "rows" } } }
                        tbody {
                            @for pair in pairs {
                                tr {
                                    td { (self.labels[pair.a]) }
                                    td class="text" { (self.labels[pair.b]) }
                                    td { (pair.rows) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// The labels with the most rows, as many as are shown one by one.
    pub(super) fn by_support(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.labels.len()).collect();
        order.sort_by_key(|&label| Reverse(self.scores.per_label[label].support));
        order.truncate(MAX_SHOWN);
        order
    }
}
