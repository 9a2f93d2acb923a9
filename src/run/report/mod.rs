//! `report.html`: one file with its style, its charts and its script inside.
//!
//! A page that nothing from outside can change, or see: a content security policy, which names the script and the style by the
//! hashes of the two, lets a browser load nothing else. maud escapes all text from the data.

mod axes;
mod calibration;
mod charts;
mod compare;
mod comparison;
mod confusion;
mod errors;
mod folds;
mod headline;
mod issues;
mod labels;
mod page;
mod pairs;
pub mod rate_page;
pub mod sweep_page;
mod thresholds;
mod training;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use maud::{Markup, PreEscaped, html};

pub use self::comparison::Compared;
use self::page::Page;
use super::folds::FoldSummary;
use super::records::Why;
use super::results::{Calibrated, HistoryLine, SeedResult, Yardstick};
use crate::console::{counted, grouped};
use crate::data::long_text::Limit;
use crate::data::table::Example;
use crate::metrics::bootstrap::Intervals;
use crate::metrics::errors::{Mistake, worst_mistakes};
use crate::metrics::{Predictions, Scores};

const SCRIPT: &str = include_str!("script.js");
/// Labels that are shown one by one, with their curves and errors: those with the most rows.
const MAX_SHOWN: usize = 60;
/// Marks around a text of a row.
pub(super) const ROW_TEXT: [&str; 2] = ["<!--row text-->", "<!--/row text-->"];
/// The most errors of each kind and label.
const MAX_ERRORS: usize = 3;

/// One kind of rows that may be a mistake.
pub struct IssueTable {
    /// What they are.
    pub title: &'static str,
    /// Names of the columns.
    pub heads: &'static [&'static str],
    /// How many there are in all.
    pub count: usize,
    /// The first column that holds texts of rows; all behind it do.
    pub texts_from: usize,
    /// The first of them: a cell a column.
    pub rows: Vec<Vec<String>>,
}

/// What a report shows.
pub struct Report<'a> {
    /// The page's title.
    pub title: String,
    /// The rows' name.
    pub split: &'a str,
    /// Labels, in the order of the logits.
    pub labels: &'a [String],
    /// One a label.
    pub thresholds: &'a [f32],
    /// True if each row has exactly one label.
    pub is_single: bool,
    /// The rows, in the order of the predictions.
    pub examples: &'a [Example],
    /// Tokens of each row, and of how many a row was cut.
    pub lengths: &'a [usize],
    /// Rows that were cut.
    pub cut: usize,
    /// What is read of a text.
    pub limit: Limit,
    /// Predictions for those rows.
    pub predictions: &'a Predictions,
    /// Scores of the predictions.
    pub scores: &'a Scores,
    /// Mean loss of the predictions; NaN without labels.
    pub loss: f64,
    /// Intervals of the scores.
    pub intervals: Intervals,
    /// `history.jsonl` of each seed, with the seed's name.
    pub history: Vec<(String, Vec<HistoryLine>)>,
    /// The seed whose classifier is scored, where that is known.
    pub seed: Option<u32>,
    /// Passes of training after which that seed was best.
    pub best_epoch: Option<f64>,
    /// Each seed's result, for a table.
    pub seeds: &'a [SeedResult],
    /// Other runs on the same rows.
    pub comparison: Vec<Compared>,
    /// Of `exp.folds`.
    pub folds: Option<&'a FoldSummary>,
    /// What classifiers without a language model reach on the same rows.
    pub baseline: Option<&'a Yardstick>,
    /// What a temperature changed on the validation split.
    pub calibration: Option<&'a Calibrated>,
    /// Rows that are worth looking at, by kind.
    pub issues: Vec<IssueTable>,
    /// Which words weighed, by row and label, for errors that were explained.
    pub why: BTreeMap<(usize, usize), Why>,
    /// Run, machine, time, memory, files.
    pub facts: Vec<(&'static str, String)>,
    /// The run's configuration, as YAML.
    pub config: Option<String>,
    /// True if the report shows texts of rows.
    pub shows_texts: bool,
}

impl Report<'_> {
    #[must_use]
    pub fn to_html(&self) -> String {
        let sections = self.sections();
        let body = html! {
            (self.headline())
            nav aria-label="Sections" {
                @for (id, name, _) in &sections { a href={ "#" (id) } { (name) } " " }
            }
            @for (id, name, inside) in &sections {
                section id=(id) { h2 { (name) } (inside) }
            }
        };
        Page { title: &self.title, script: Some(SCRIPT), marks_row_texts: true, body }.to_html()
    }

    /// Anchor, heading and content of the sections that have something to say.
    fn sections(&self) -> Vec<(&'static str, &'static str, Markup)> {
        let has_pairs = self.labels.len() > 1;
        let all = [
            ("baselines", "Baselines", self.baseline.map(|baseline| self.baselines(baseline))),
            ("compared", "Compared runs", (!self.comparison.is_empty()).then(|| self.compared())),
            ("labels", "Labels", Some(self.per_label())),
            ("confusion", "Confusion matrix", self.is_single.then(|| self.confusion_matrix())),
            ("thresholds", "Thresholds", (!self.is_single).then(|| self.label_curves())),
            ("errors", "Errors", Some(self.mistakes())),
            ("pairs", "Pairs of labels", if has_pairs { self.pairs() } else { None }),
            ("data", "Data worth looking at", (!self.issues.is_empty()).then(|| self.data_issues())),
            ("calibration", "Calibration", Some(self.calibration_charts())),
            ("lengths", "Text lengths", Some(self.length_chart())),
            ("training", "Training", (!self.history.is_empty()).then(|| self.curves())),
            ("folds", "Would more rows help?", self.folds.map(folds::section)),
            ("seeds", "Seeds", (self.seeds.len() > 1).then(|| self.over_seeds())),
            // What differs between two runs of one configuration comes last.
            ("details", "Run details", Some(self.details())),
        ];
        all.into_iter().filter_map(|(id, name, inside)| Some((id, name, inside?))).collect()
    }

    fn details(&self) -> Markup {
        html! {
            div class="scroll" {
                table class="facts" {
                    tbody { @for (name, value) in &self.facts { tr { td { (name) } td class="text" { (value) } } } }
                }
            }
            @if let Some(config) = &self.config {
                details { summary { "Configuration" } pre { (config) } }
            }
        }
    }

    /// The labels with the most rows, as many as are shown one by one.
    fn by_support(&self) -> Vec<usize> {
        by_support(self.predictions)
    }

    /// Says that not all labels follow, where that is so.
    fn of_most_frequent(&self) -> Markup {
        html! { @if self.labels.len() > MAX_SHOWN { " Of the " (MAX_SHOWN) " labels with the most rows." } }
    }
}

/// The labels with the most rows, as many as are shown one by one.
fn by_support(predictions: &Predictions) -> Vec<usize> {
    let labels = predictions.targets.first().map_or(0, Vec::len);
    let support = |label: usize| predictions.targets.iter().filter(|targets| targets[label]).count();
    let mut order: Vec<usize> = (0..labels).collect();
    order.sort_by_cached_key(|&label| Reverse(support(label)));
    order.truncate(MAX_SHOWN);
    order
}

/// The errors that a report shows: the most confident ones of each label.
#[must_use]
pub fn shown_errors(predictions: &Predictions) -> Vec<Mistake> {
    let shown = by_support(predictions);
    worst_mistakes(predictions, MAX_ERRORS).into_iter().filter(|mistake| shown.contains(&mistake.label)).collect()
}

/// Marks a text of a row: [`super::publication`] takes it out. Nothing from the data can hold the marks.
fn row_text(text: &Markup) -> Markup {
    html! { (PreEscaped(ROW_TEXT[0])) (text) (PreEscaped(ROW_TEXT[1])) }
}

/// A difference with its 95% interval.
fn difference(value: f64, interval: [Option<f64>; 2]) -> String {
    match interval {
        [Some(low), Some(high)] => format!("{} ({} to {})", signed(value), signed(low), signed(high)),
        _ => signed(value),
    }
}

/// With a sign as wide as a plus.
fn signed(value: f64) -> String {
    format!("{value:+.4}").replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!([7, 999, 1000, 2_229_504].map(grouped), ["7", "999", "1,000", "2,229,504"]);
        assert_eq!([counted(1, "row"), counted(1200, "row")], ["1 row", "1,200 rows"]);
    }
}
