//! What probabilities are worth, and how long the texts are.

use maud::{Markup, html};

use super::axes::Axis;
use super::charts::{Bar, Chart, Extras, Series, Spot};
use super::{Report, counted, grouped};
use crate::config::data::LongText;
use crate::metrics::curves::reliability;
use crate::run::results::CalibrationScores;

/// Bins of the reliability chart.
const BINS: usize = 20;
/// The most bars in the chart of lengths.
const MAX_BARS: usize = 48;

impl Report<'_> {
    pub(super) fn calibration_charts(&self) -> Markup {
        let bins = reliability(self.predictions, BINS);
        let filled = || bins.iter().filter(|bin| bin.count > 0);
        let spots = filled().map(|bin| {
            let (low, high) = bin.interval();
            let text = format!(
                "mean probability {:.3}: observed {:.3} (95%: {low:.3}–{high:.3}), {}",
                bin.probability,
                bin.share,
                counted(bin.count, "label decision")
            );
            Spot { at: (bin.probability, bin.share), range: Some((low, high)), text }
        });
        let extras = Extras { has_diagonal: true, spots: spots.collect(), ..Extras::default() };
        let line = Series::new("bins", 0, filled().map(|bin| (bin.probability, bin.share)).collect());
        let edge = |index: usize| index as f64 / BINS as f64;
        let bars: Vec<Bar> = (bins.iter().enumerate())
            .map(|(index, bin)| Bar {
                from: edge(index),
                to: edge(index + 1),
                height: bin.count as f64,
                text: format!("{:.2} to {:.2}: {}", edge(index), edge(index + 1), counted(bin.count, "label decision")),
            })
            .collect();
        let counts = Axis::counts("label decisions", bins.iter().map(|bin| bin.count as f64));
        let observed = Axis::unit("observed frequency");
        let x = Axis::unit("predicted probability");
        html! {
            (self.calibration_scores())
            div class="charts" {
                (Chart { title: "Reliability", x, y: observed }.lines(&[line], &extras))
                (Chart { title: "Distribution of probabilities", x, y: counts }.bars(&bars, None))
            }
        }
    }

    /// The scores, and what a temperature changed.
    fn calibration_scores(&self) -> Markup {
        let row = |name: &str, scores: &CalibrationScores| {
            html! {
                tr {
                    td { (name) }
                    @for value in [scores.calibration_error, scores.brier, scores.log_loss] {
                        td { (format_args!("{value:.4}")) }
                    }
                }
            }
        };
        html! {
            p class="soft" {
                "A point of the reliability chart is a bin of probabilities of all labels; its bar is the 95% interval of the \
                 observed frequency (Wilson), which is wide where a bin has few label decisions. On the diagonal \
                 probabilities mean what they say."
            }
            div class="scroll" {
                table class="narrow" {
                    thead { tr { th { "" } th { "calibration error" } th { "Brier score" } th { "log loss" } } }
                    tbody {
                        @if let Some(fitted) = self.calibration {
                            (row("validation, before calibration", &fitted.before))
                            (row(&format!("validation, with temperature {:.3}", fitted.temperature), &fitted.after))
                        }
                        (row(self.split, &CalibrationScores::of(self.scores)))
                    }
                }
            }
        }
    }

    pub(super) fn length_chart(&self) -> Markup {
        let longest = self.lengths.iter().copied().max().unwrap_or(1).max(1);
        let width = longest.div_ceil(MAX_BARS);
        let mut counts = vec![0usize; longest.div_ceil(width)];
        for &length in self.lengths {
            counts[length.saturating_sub(1) / width] += 1;
        }
        let bar = |(index, &count): (usize, &usize)| {
            let (first, last) = (index * width + 1, (index + 1) * width);
            let tokens = if first == last { first.to_string() } else { format!("{first} to {last}") };
            Bar {
                from: (index * width) as f64,
                to: last as f64,
                height: count as f64,
                text: format!("{tokens} tokens: {}", counted(count, "row")),
            }
        };
        let bars: Vec<Bar> = counts.iter().enumerate().map(bar).collect();
        let has_limit = self.cut > 0 && self.limit.long_text != LongText::Windows;
        let ends = bars.iter().map(|bar| bar.to).chain(has_limit.then_some(self.limit.tokens as f64));
        let x = Axis::around("tokens", ends, true);
        let y = Axis::around("rows", bars.iter().map(|bar| bar.height), true);
        let mark = has_limit.then(|| (self.limit.tokens as f64, "max_length".to_owned()));
        html! {
            p class="soft" {
                (grouped(self.cut)) " of " (counted(self.lengths.len(), "text")) " " (self.limit.of_longer_texts()) "."
            }
            div class="charts" { (Chart { title: "Tokens that are read of a text", x, y }.bars(&bars, mark)) }
        }
    }
}
