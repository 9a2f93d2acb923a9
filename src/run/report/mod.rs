//! `report.html`: one file that shows how a classifier was trained and how well it works.
//!
//! It uses no network: style, script and charts are inside, and a content-security policy, with the
//! hashes of the two, lets a browser load nothing else. maud escapes all text from the data.

mod charts;
mod confusion;
mod labels;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

use self::charts::{Axis, Chart, Series};
use super::results::{BaselineScores, Calibrated, HistoryLine, OverSeeds, SeedResult, Yardstick};
use crate::data::table::Example;
use crate::metrics::bootstrap::{Interval, Intervals};
use crate::metrics::curves::reliability;
use crate::metrics::{Predictions, Scores};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");
/// Bars in the charts of probabilities.
const BINS: usize = 15;
/// The most bars in the chart of lengths.
const MAX_BARS: usize = 24;

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
    /// What classifiers without a language model reach on the same rows.
    pub baseline: Option<&'a Yardstick>,
    /// What a temperature changed on the validation split.
    pub calibration: Option<&'a Calibrated>,
    /// True if each row has exactly one label.
    pub is_single: bool,
    /// Which run and seed, and when.
    pub origin: String,
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
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta http-equiv="Content-Security-Policy" content=(policy);
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    title { (self.title) }
                    // The hashes are of these very bytes.
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    h1 { (self.title) }
                    p class="soft" { (self.origin) }
                    (self.headline())
                    (self.baselines())
                    (self.curves())
                    (self.over_seeds())
                    (self.compared())
                    (self.per_label())
                    @if self.is_single { (self.confusion_matrix()) } @else { (self.label_curves()) }
                    (self.calibration_and_lengths())
                    (self.mistakes())
                    (self.pairs())
                    (self.details())
                    script { (PreEscaped(SCRIPT)) }
                }
            }
        };
        page.into_string()
    }

    fn headline(&self) -> Markup {
        let (scores, intervals) = (self.scores, &self.intervals);
        // Of one label a row, micro-F1 is the accuracy.
        let first = match self.is_single {
            true => vec![("accuracy", scores.accuracy, known(intervals.accuracy))],
            false => vec![
                ("micro-F1", scores.f1_micro, known(intervals.f1_micro)),
                ("exact match", scores.accuracy, known(intervals.accuracy)),
            ],
        };
        let rest = [
            ("macro-F1", scores.f1_macro, known(intervals.f1_macro)),
            ("average precision, macro", scores.average_precision_macro, None),
            ("ROC AUC, macro", scores.roc_auc_macro, None),
            ("loss", self.loss, None),
        ];
        let cards: Vec<_> = first.into_iter().chain(rest).collect();
        html! {
            p class="soft" {
                "Scores on " (self.split) ": " (self.predictions.targets.len()) " rows, " (self.labels.len())
                " labels. Intervals by bootstrap over rows."
            }
            div class="cards" {
                @for (name, value, interval) in cards {
                    div class="card" {
                        b { (format_args!("{value:.3}")) }
                        span {
                            (name)
                            @if let Some([low, high]) = interval { (format_args!(" (95%: {low:.3}–{high:.3})")) }
                        }
                    }
                }
            }
        }
    }

    fn baselines(&self) -> Markup {
        let interval = |[low, high]: [Option<f64>; 2]| match (low, high) {
            (Some(low), Some(high)) => format!(" (95%: {low:+.4} to {high:+.4})"),
            _ => String::new(),
        };
        html! {
            @if let Some(baseline) = self.baseline {
                h2 { "Is it worth it?" }
                p class="soft" {
                    "Simple classifiers, trained on the same rows and scored on " (baseline.split) "."
                    @if let Some(difference) = &baseline.difference {
                        " This classifier adds " (format_args!("{:+.4}", difference.f1_micro)) " micro-F1"
                        (interval(difference.f1_micro_ci95)) " and " (format_args!("{:+.4}", difference.f1_macro))
                        " macro-F1" (interval(difference.f1_macro_ci95)) " to the linear one; rows are drawn together."
                    }
                }
                div class="scroll" {
                    table {
                        thead { tr { th { "classifier" } th { "micro-F1" } th { "macro-F1" } th { "exact match" } } }
                        tbody {
                            @if let Some(model) = &baseline.model { (scores_row("this classifier", model)) }
                            (scores_row("TF-IDF and logistic regression", &baseline.linear))
                            (scores_row(
                                &format!("always the {} most frequent labels", baseline.most_frequent_labels.len()),
                                &baseline.most_frequent,
                            ))
                        }
                    }
                }
            }
        }
    }

    /// Loss and F1 over epochs, a thin line for each seed.
    fn curves(&self) -> Markup {
        let series =
            |value: fn(&HistoryLine) -> Option<f64>, of: &str, colour: usize, is_labelled: bool| -> Vec<Series> {
                let lines = self.history.iter().map(|(seed, lines)| {
                    let point = |line: &HistoryLine| Some((line.epoch()?, value(line)?));
                    let name = if self.history.len() > 1 { format!("{of}, seed {seed}") } else { of.to_owned() };
                    Series { name, colour, is_labelled, points: lines.iter().filter_map(point).collect() }
                });
                lines.filter(|line| !line.points.is_empty()).collect()
            };
        let chart = |title: &str, y_name: &str, series: Vec<Series>, is_unit: bool| {
            let xs = series.iter().flat_map(|line| line.points.iter().map(|point| point.0));
            let ys = series.iter().flat_map(|line| line.points.iter().map(|point| point.1));
            let y = if is_unit { Axis::unit(y_name) } else { Axis::around(y_name, ys, false) };
            let best = self.best_epoch();
            Chart { title, x: Axis::around("epoch", xs, true), y }.lines(&series, false, best)
        };
        let loss = [
            series(|line| line.step().map(|step| step.loss), "train", 0, false),
            series(|line| line.evaluation().map(|metrics| metrics.loss), "validation", 1, true),
        ]
        .concat();
        let f1 = [
            series(|line| line.evaluation().map(|metrics| metrics.scores.f1_micro), "micro", 0, true),
            series(|line| line.evaluation().map(|metrics| metrics.scores.f1_macro), "macro", 1, true),
        ]
        .concat();
        let rate = series(|line| line.step().map(|step| step.learning_rate), "rate", 0, false);
        // All seeds have the same schedule.
        let rate: Vec<Series> = rate.into_iter().take(1).collect();
        html! {
            @if !self.history.is_empty() {
                h2 { "Training" }
                @if self.best_epoch().is_some() {
                    p class="soft" { "The dashed line is the best epoch, whose weights are kept." }
                }
                div class="charts" {
                    (chart("Loss", "loss", loss, false))
                    (chart("F1 on validation", "F1", f1, true))
                    (chart("Learning rate", "rate", rate, false))
                }
            }
        }
    }

    /// Of the seed that is reported, where it can be told.
    fn best_epoch(&self) -> Option<f64> {
        match self.seeds {
            [seed] => Some(seed.best_epoch),
            _ => None,
        }
    }

    fn over_seeds(&self) -> Markup {
        const HEADS: [&str; 5] = ["seed", "micro-F1", "macro-F1", "average precision", "exact match"];
        let is_tested = self.seeds.iter().all(|seed| seed.test.is_some());
        let split = if is_tested { "test" } else { "validation" };
        let rows: Vec<(u32, [f64; 4])> = self
            .seeds
            .iter()
            .map(|seed| {
                let result = if is_tested { seed.reported() } else { &seed.validation };
                let scores = &result.metrics.scores;
                (seed.seed, [scores.f1_micro, scores.f1_macro, scores.average_precision_macro, scores.accuracy])
            })
            .collect();
        let over_seeds = |column: usize| {
            let values: Vec<f64> = rows.iter().map(|(_, values)| values[column]).collect();
            let OverSeeds { mean, sd } = OverSeeds::new(&values);
            format!("{mean:.4} ± {:.4}", sd.unwrap_or(f64::NAN))
        };
        html! {
            @if rows.len() > 1 {
                h2 { "Seeds, on " (split) }
                div class="scroll" {
                    table {
                        thead { tr { @for head in HEADS { th { (head) } } } }
                        tbody {
                            @for (seed, values) in &rows {
                                tr { td { (seed) } @for value in values { td { (format_args!("{value:.4}")) } } }
                            }
                            tr { td { "mean ± deviation" } @for column in 0..4 { td { (over_seeds(column)) } } }
                        }
                    }
                }
            }
        }
    }

    fn compared(&self) -> Markup {
        const HEADS: [&str; 4] = ["run", "micro-F1", "difference", "macro-F1, difference"];
        html! {
            @if !self.comparison.is_empty() {
                h2 { "Compared on the same rows" }
                p class="soft" {
                    "Differences are to the run of this report, with their 95% interval over rows drawn together."
                }
                div class="scroll" {
                    table {
                        thead { tr { @for head in HEADS { th { (head) } } } }
                        tbody { @for row in &self.comparison { tr { @for cell in row { td { (cell) } } } } }
                    }
                }
            }
        }
    }

    fn calibration_and_lengths(&self) -> Markup {
        let scores = self.scores;
        html! {
            h2 { "Calibration and lengths" }
            p class="soft" {
                (format_args!(
                    "Expected calibration error {:.3}, Brier score {:.4}, log loss {:.4}. ",
                    scores.calibration_error, scores.brier, scores.log_loss
                ))
                (self.cut) " of " (self.lengths.len()) " texts are cut at " (self.max_length) " tokens."
                @if let Some(calibration) = self.calibration {
                    (format_args!(
                        " The temperature {:.3} changed the calibration error on validation from {:.4} to {:.4}.",
                        calibration.temperature, calibration.before.calibration_error, calibration.after.calibration_error
                    ))
                }
            }
            div class="charts" { (self.calibration()) (self.length_chart()) }
        }
    }

    fn calibration(&self) -> Markup {
        let bins = reliability(self.predictions, BINS);
        let points = bins.iter().filter(|bin| bin.count > 0).map(|bin| (bin.probability, bin.share)).collect();
        let edge = |index: usize| index as f64 / BINS as f64;
        let counts: Vec<(f64, f64, f64)> =
            bins.iter().enumerate().map(|(index, bin)| (edge(index), edge(index + 1), bin.count as f64)).collect();
        let y = Axis::around("label decisions", counts.iter().map(|bar| bar.2), true);
        html! {
            (Chart { title: "Reliability", x: Axis::unit("probability"), y: Axis::unit("observed frequency") }
                .lines(&[Series { name: "bin".to_owned(), colour: 0, is_labelled: true, points }], true, None))
            (Chart { title: "Probabilities", x: Axis::unit("probability"), y }.bars(&counts, None))
        }
    }

    fn length_chart(&self) -> Markup {
        let longest = self.lengths.iter().copied().max().unwrap_or(1).max(1);
        let width = longest.div_ceil(MAX_BARS);
        let mut bars: Vec<(f64, f64, f64)> = (0..longest.div_ceil(width))
            .map(|index| ((index * width) as f64, ((index + 1) * width) as f64, 0.0))
            .collect();
        for &length in self.lengths {
            bars[(length.saturating_sub(1)) / width].2 += 1.0;
        }
        let x = Axis::around("tokens", bars.iter().map(|bar| bar.1), true);
        let y = Axis::around("rows", bars.iter().map(|bar| bar.2), true);
        Chart { title: "Lengths", x, y }.bars(&bars, Some(self.max_length as f64))
    }

    fn details(&self) -> Markup {
        html! {
            h2 { "Run details" }
            div class="scroll" {
                table {
                    tbody { @for (name, value) in &self.facts { tr { td { (name) } td class="text" { (value) } } } }
                }
            }
            @if let Some(config) = &self.config {
                details { summary { "Configuration" } pre { (config) } }
            }
        }
    }
}

fn scores_row(name: &str, scores: &BaselineScores) -> Markup {
    html! {
        tr {
            td { (name) }
            @for value in [scores.f1_micro, scores.f1_macro, scores.accuracy] { td { (format_args!("{value:.4}")) } }
        }
    }
}

/// An interval, if there is one.
fn known(interval: Interval) -> Option<Interval> {
    (!interval[0].is_nan()).then_some(interval)
}
