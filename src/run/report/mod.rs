//! `report.html`: one file that shows how a classifier was trained and what it is worth.
//!
//! It uses no network: style, script and charts are inside, and a content-security policy, with the
//! hashes of the two, lets a browser load nothing else. All text from the data is escaped.

mod charts;
mod html;

use html::escape;
use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use self::charts::{Axis, Chart, Series};
use super::results::{HistoryLine, OverSeeds, SeedResult};
use crate::data::table::Example;
use crate::metrics::bootstrap::{Interval, Intervals};
use crate::metrics::curves::{AtThreshold, over_thresholds, reliability};
use crate::metrics::errors::{confusions, cooccurrences, worst_mistakes};
use crate::metrics::{Predictions, Scores};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

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

/// Contents of a report.
pub struct Report<'a> {
    /// Names the base and the data set.
    pub title: String,
    /// Name of the scored rows.
    pub split: &'a str,
    /// In the order of the logits.
    pub labels: &'a [String],
    /// One a label.
    pub thresholds: &'a [f32],
    /// The rows, in the order of the predictions.
    pub examples: &'a [Example],
    /// Tokens of each row, and of how many a row was cut.
    pub lengths: &'a [usize],
    /// Rows that were cut.
    pub cut: usize,
    /// Tokens after which a text is cut.
    pub max_length: usize,
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
    /// Each seed's result, for a table.
    pub seeds: &'a [SeedResult],
    /// Other runs on the same rows: a table's rows.
    pub comparison: Vec<[String; 4]>,
    /// Machine, time, memory.
    pub facts: Vec<(&'static str, String)>,
    /// The run's configuration, as YAML.
    pub config: Option<String>,
    /// True if the report shows texts of rows.
    pub shows_texts: bool,
}

impl Report<'_> {
    #[must_use]
    pub fn to_html(&self) -> String {
        let hash = |text: &str| STANDARD.encode(Sha256::digest(text.as_bytes()));
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
            hash(STYLE),
            hash(SCRIPT)
        );
        let title = escape(&self.title);
        let mut html = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <title>{title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n"
        );
        let parts = [
            self.headline(),
            self.curves(),
            self.over_seeds(),
            self.compared(),
            self.per_label(),
            self.label_curves(),
            self.calibration_and_lengths(),
            self.mistakes(),
            self.pairs(),
            self.how(),
        ];
        parts.iter().for_each(|part| html.push_str(part));
        html.push_str(&format!("<script>{SCRIPT}</script></body></html>\n"));
        html
    }

    fn headline(&self) -> String {
        let card = |name: &str, value: f64, interval: Option<[f64; 2]>| {
            let interval = interval.map_or_else(String::new, |[low, high]| format!(" (95%: {low:.3}–{high:.3})"));
            format!("<div class=\"card\"><b>{value:.3}</b><span>{name}{interval}</span></div>")
        };
        let scores = self.scores;
        format!(
            "<p class=\"soft\">Scores on {}: {} rows, {} labels. Intervals by bootstrap over rows.</p><div class=\"cards\">{}{}{}{}{}{}</div>\n",
            escape(self.split),
            self.predictions.targets.len(),
            self.labels.len(),
            card("micro-F1", scores.f1_micro, known(self.intervals.f1_micro)),
            card("macro-F1", scores.f1_macro, known(self.intervals.f1_macro)),
            card("exact match", scores.accuracy, known(self.intervals.accuracy)),
            card("average precision, macro", scores.average_precision_macro, None),
            card("ROC AUC, macro", scores.roc_auc_macro, None),
            card("loss", self.loss, None)
        )
    }

    /// Loss and F1 over epochs, a line for each seed.
    fn curves(&self) -> String {
        if self.history.is_empty() {
            return String::new();
        }
        let series = |value: fn(&HistoryLine) -> Option<f64>, of: &str| -> Vec<Series> {
            let lines = self.history.iter().map(|(seed, lines)| {
                let point = |line: &HistoryLine| Some((line.epoch()?, value(line)?));
                let name = if self.history.len() > 1 { format!("{of} {seed}") } else { of.to_owned() };
                Series { name, points: lines.iter().filter_map(point).collect() }
            });
            lines.filter(|line| !line.points.is_empty()).collect()
        };
        let chart = |title: &str, y_name: &str, series: Vec<Series>, is_unit: bool| {
            let xs = series.iter().flat_map(|line| line.points.iter().map(|point| point.0));
            let ys = series.iter().flat_map(|line| line.points.iter().map(|point| point.1));
            let y = if is_unit { Axis::unit(y_name) } else { Axis::around(y_name, ys, true) };
            Chart { title, x: Axis::around("epoch", xs, true), y }.lines(&series, false)
        };
        let loss = [
            series(|line| line.step().map(|step| step.loss), "train"),
            series(|line| line.evaluation().map(|metrics| metrics.loss), "validation"),
        ]
        .concat();
        let f1 = [
            series(|line| line.evaluation().map(|metrics| metrics.scores.f1_micro), "micro"),
            series(|line| line.evaluation().map(|metrics| metrics.scores.f1_macro), "macro"),
        ]
        .concat();
        let rate = series(|line| line.step().map(|step| step.learning_rate), "rate");
        format!(
            "<h2>Training</h2><div class=\"charts\">{}{}{}</div>\n",
            chart("Loss", "loss", loss, false),
            chart("F1 on validation", "F1", f1, true),
            chart("Learning rate", "rate", rate, false)
        )
    }

    fn over_seeds(&self) -> String {
        if self.seeds.len() < 2 {
            return String::new();
        }
        let values =
            |scores: &Scores| [scores.f1_micro, scores.f1_macro, scores.average_precision_macro, scores.accuracy];
        let is_tested = self.seeds.iter().all(|seed| seed.test.is_some());
        let split = if is_tested { "test" } else { "validation" };
        let mut rows = String::new();
        let mut columns: [Vec<f64>; 4] = Default::default();
        for seed in self.seeds {
            rows.push_str(&format!("<tr><td>{}</td>", seed.seed));
            let result = if is_tested { seed.reported() } else { &seed.validation };
            for (value, column) in values(&result.metrics.scores).into_iter().zip(&mut columns) {
                column.push(value);
                rows.push_str(&format!("<td>{value:.4}</td>"));
            }
            rows.push_str("</tr>");
        }
        rows.push_str("<tr><td>mean ± deviation</td>");
        for column in columns {
            let OverSeeds { mean, sd } = OverSeeds::new(&column);
            rows.push_str(&format!("<td>{mean:.4} ± {:.4}</td>", sd.unwrap_or(f64::NAN)));
        }
        format!(
            "<h2>Seeds, on {split}</h2><div class=\"scroll\"><table><thead><tr><th>seed</th><th>micro-F1</th><th>macro-F1</th>\
             <th>average precision</th><th>all right</th></tr></thead><tbody>{rows}</tr></tbody></table></div>\n"
        )
    }

    fn compared(&self) -> String {
        if self.comparison.is_empty() {
            return String::new();
        }
        let rows: String = self
            .comparison
            .iter()
            .map(|row| format!("<tr>{}</tr>", row.each_ref().map(|cell| format!("<td>{}</td>", escape(cell))).concat()))
            .collect();
        format!(
            "<h2>Compared on the same rows</h2><p class=\"soft\">Differences are to the run of this report, with their 95% \
             interval over rows drawn together.</p><div class=\"scroll\"><table><thead><tr><th>run</th><th>micro-F1</th>\
             <th>difference</th><th>macro-F1, difference</th></tr></thead><tbody>{rows}</tbody></table></div>\n"
        )
    }

    fn per_label(&self) -> String {
        const HEADS: [&str; 9] =
            ["label", "rows", "predicted", "threshold", "precision", "recall", "F1", "average precision", "ROC AUC"];
        let heads: String =
            HEADS.iter().map(|head| format!("<th><button type=\"button\">{head}</button></th>")).collect();
        let known = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.3}"));
        let mut rows = String::new();
        for (row, threshold) in self.scores.per_label.iter().zip(self.thresholds) {
            rows.push_str(&format!(
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{threshold:.3}</td><td>{:.3}</td><td>{:.3}</td><td>{:.3}</td>\
                 <td>{}</td><td>{}</td></tr>",
                escape(&row.label),
                row.support,
                row.predicted,
                row.precision,
                row.recall,
                row.f1,
                known(row.average_precision),
                known(row.roc_auc)
            ));
        }
        format!(
            "<h2>Labels</h2><div class=\"scroll\"><table class=\"sorts\"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>\
             </table></div>\n"
        )
    }

    /// Precision against recall, and all three over thresholds, of each label.
    fn label_curves(&self) -> String {
        let mut html = "<h2>Thresholds</h2>".to_owned();
        if self.labels.len() > MAX_SHOWN {
            html.push_str(&format!("<p class=\"soft\">Of the {MAX_SHOWN} labels with the most rows.</p>"));
        }
        for label in self.by_support() {
            let row = &self.scores.per_label[label];
            let curve = over_thresholds(self.predictions, label, POINTS);
            let line = |name: &str, point: &dyn Fn(&AtThreshold) -> (f64, f64)| Series {
                name: name.to_owned(),
                points: curve.iter().map(point).collect(),
            };
            let (recall, precision) = (Axis::unit("recall"), Axis::unit("precision"));
            let against = Chart { title: "Precision and recall", x: recall, y: precision }
                .lines(&[line("", &|point| (point.recall(), point.precision()))], false);
            let over = Chart { title: "Over thresholds", x: Axis::unit("threshold"), y: Axis::unit("score") }.lines(
                &[
                    line("precision", &|point| (point.threshold, point.precision())),
                    line("recall", &|point| (point.threshold, point.recall())),
                    line("F1", &|point| (point.threshold, point.f1())),
                ],
                false,
            );
            html.push_str(&format!(
                "<details><summary>{} <span class=\"soft\">F1 {:.3}, {} rows</span></summary><div class=\"charts\">{against}{over}</div></details>",
                escape(&row.label),
                row.f1,
                row.support
            ));
        }
        html.push('\n');
        html
    }

    fn calibration_and_lengths(&self) -> String {
        let bins = reliability(self.predictions, 15);
        let points = bins.iter().filter(|bin| bin.count > 0).map(|bin| (bin.probability, bin.share)).collect();
        let diagram = Chart { title: "Reliability", x: Axis::unit("probability"), y: Axis::unit("share that holds") }
            .lines(&[Series { name: String::new(), points }], true);
        let counts: Vec<(f64, f64, f64)> = bins
            .iter()
            .enumerate()
            .map(|(index, bin)| (index as f64 / 15.0, (index + 1) as f64 / 15.0, bin.count as f64))
            .collect();
        let y = Axis::around("label decisions", counts.iter().map(|bar| bar.2), true);
        let spread = Chart { title: "Probabilities", x: Axis::unit("probability"), y }.bars(&counts, None);
        let longest = self.lengths.iter().copied().max().unwrap_or(1).max(1);
        let width = longest.div_ceil(24);
        let mut bars: Vec<(f64, f64, f64)> = (0..longest.div_ceil(width))
            .map(|index| ((index * width) as f64, ((index + 1) * width) as f64, 0.0))
            .collect();
        for &length in self.lengths {
            bars[(length.saturating_sub(1)) / width].2 += 1.0;
        }
        let x = Axis::around("tokens", bars.iter().map(|bar| bar.1), true);
        let y = Axis::around("rows", bars.iter().map(|bar| bar.2), true);
        let lengths = Chart { title: "Lengths", x, y }.bars(&bars, Some(self.max_length as f64));
        format!(
            "<h2>Calibration and lengths</h2><p class=\"soft\">Expected calibration error {:.3}, Brier score {:.4}, log loss {:.4}. \
             {} of {} texts are cut at {} tokens.</p><div class=\"charts\">{diagram}{spread}{lengths}</div>\n",
            self.scores.calibration_error,
            self.scores.brier,
            self.scores.log_loss,
            self.cut,
            self.lengths.len(),
            self.max_length
        )
    }

    /// The worst errors, folded up by label: of the labels with the most rows, if they are many.
    fn mistakes(&self) -> String {
        let found = worst_mistakes(self.predictions, MISTAKES);
        if found.is_empty() {
            return "<h2>Errors</h2><p class=\"soft\">None.</p>\n".to_owned();
        }
        let mut html =
            "<h2>Errors</h2><p class=\"soft\">The most confident ones of each label; errors.jsonl of an evaluation \
                        has more.</p>"
                .to_owned();
        for &label in &self.by_support() {
            let of_label: Vec<_> = found.iter().filter(|mistake| mistake.label == label).collect();
            if of_label.is_empty() {
                continue;
            }
            let name = escape(&self.labels[label]);
            write!(html, "<details><summary>{name}</summary>").expect("a string takes all that is written");
            for mistake in of_label {
                let example = &self.examples[mistake.row];
                let kind = if mistake.is_false_positive { "predicted, not there" } else { "there, not predicted" };
                write!(
                    html,
                    "<p class=\"error\"><b>{:.3}</b> {kind} <span class=\"soft\">{}</span>",
                    mistake.probability,
                    escape(&example.id)
                )
                .expect("a string takes all that is written");
                if self.shows_texts {
                    let mut text: String = example.text.chars().take(TEXT).collect();
                    if text.len() < example.text.len() {
                        text.push('…');
                    }
                    write!(html, "<br>{}", escape(&text)).expect("a string takes all that is written");
                }
                html.push_str("</p>");
            }
            html.push_str("</details>");
        }
        html.push('\n');
        html
    }

    /// The labels with the most rows, as many as are shown one by one.
    fn by_support(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.labels.len()).collect();
        order.sort_by_key(|&label| std::cmp::Reverse(self.scores.per_label[label].support));
        order.truncate(MAX_SHOWN);
        order
    }

    fn pairs(&self) -> String {
        let table = |title: &str, heads: [&str; 2], pairs: Vec<crate::metrics::errors::Pair>| {
            if pairs.is_empty() {
                return String::new();
            }
            let mut rows = String::new();
            for pair in pairs {
                let (a, b) = (escape(&self.labels[pair.a]), escape(&self.labels[pair.b]));
                rows.push_str(&format!("<tr><td>{a}</td><td class=\"text\">{b}</td><td>{}</td></tr>", pair.rows));
            }
            let [a, b] = heads;
            format!(
                "<figure><figcaption>{title}</figcaption><div class=\"scroll\"><table><thead><tr><th>{a}</th><th class=\"text\">{b}</th><th>rows</th></tr>\
                 </thead><tbody>{rows}</tbody></table></div></figure>"
            )
        };
        let tables = [
            table("Taken for one another", ["missed", "predicted instead"], confusions(self.predictions, MAX_PAIRS)),
            table("Hold together", ["label", "label"], cooccurrences(self.predictions, MAX_PAIRS)),
        ]
        .concat();
        if tables.is_empty() {
            return tables;
        }
        format!("<h2>Labels together</h2><div class=\"charts\">{tables}</div>\n")
    }

    fn how(&self) -> String {
        let mut html = "<h2>How</h2><div class=\"scroll\"><table><tbody>".to_owned();
        for (name, value) in &self.facts {
            write!(html, "<tr><td>{name}</td><td class=\"text\">{}</td></tr>", escape(value))
                .expect("a string takes all that is written");
        }
        html.push_str("</tbody></table></div>");
        if let Some(config) = &self.config {
            html.push_str(&format!("<details><summary>Configuration</summary><pre>{}</pre></details>", escape(config)));
        }
        html.push('\n');
        html
    }
}
/// An interval, if there is one.
fn known(interval: Interval) -> Option<Interval> {
    (!interval[0].is_nan()).then_some(interval)
}
