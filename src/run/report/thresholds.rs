//! Precision, recall and F1 over thresholds: of all label decisions together, and of each label.

use maud::{Markup, html};

use super::axes::Axis;
use super::charts::{Chart, Extras, Series, Spot};
use super::{Report, counted};
use crate::metrics::curves::{AtThreshold, micro_over_thresholds, over_thresholds};

/// Points of a curve over thresholds.
const POINTS: usize = 101;

impl Report<'_> {
    /// The micro-average, and below it each label, folded up.
    pub(super) fn label_curves(&self) -> Markup {
        let micro = micro_over_thresholds(self.predictions, POINTS);
        let own = (self.scores.recall_micro, self.scores.precision_micro);
        // Thresholds that differ from label to label are no point of the threshold axis.
        let common = self.thresholds.first().filter(|first| self.thresholds.iter().all(|other| other == *first));
        html! {
            p class="soft" {
                "The dot is the operating point: precision and recall with the "
                @if common.is_some() { "threshold" } @else { "thresholds" } " in force."
                @if common.is_none() {
                    " Each label has its own threshold, so that the micro-average's dot need not lie on the curve, which is for \
                     one threshold for all labels."
                }
            }
            @if self.labels.len() > 1 { h3 { "Micro-average over all labels" } }
            div class="charts" { (charts(&micro, own, common.copied())) }
            @if self.labels.len() > 1 {
                h3 { "Each label" }
                p class="soft" { "Unfold a label for its curves." (self.of_most_frequent()) }
                div class="folds" {
                    @for label in self.by_support() {
                        @let row = &self.scores.per_label[label];
                        details {
                            summary {
                                (row.label) " "
                                span class="soft" {
                                    "F1 " (format_args!("{:.3}", row.f1)) ", " (counted(row.support, "row"))
                                }
                            }
                            div class="charts" {
                                (charts(
                                    &over_thresholds(self.predictions, label, POINTS),
                                    (row.recall, row.precision),
                                    Some(self.thresholds[label]),
                                ))
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Precision against recall with the operating point, and all scores over thresholds with the one in force.
fn charts(curve: &[AtThreshold], (recall, precision): (f64, f64), threshold: Option<f32>) -> Markup {
    // Where nothing is predicted there is no precision: the curve ends before.
    let is_predicted = |point: &&AtThreshold| point.true_positives + point.false_positives > 0;
    let line = |name: &str, colour: usize, point: fn(&AtThreshold) -> (f64, f64)| {
        Series::new(name, colour, curve.iter().map(point).collect())
    };
    let with_precision = |name: &str, point: fn(&AtThreshold) -> (f64, f64)| {
        Series::new(name, 0, curve.iter().filter(is_predicted).map(point).collect())
    };
    let against = Chart { title: "Precision and recall", x: Axis::unit("recall"), y: Axis::unit("precision") };
    let over = Chart { title: "Scores over thresholds", x: Axis::unit("threshold"), y: Axis::unit("score") };
    let text = match threshold {
        Some(threshold) => format!("threshold {threshold:.3}: recall {recall:.3}, precision {precision:.3}"),
        None => format!("recall {recall:.3}, precision {precision:.3}"),
    };
    let spots = vec![Spot { at: (recall, precision), range: None, text }];
    let mark = threshold.map(|threshold| (f64::from(threshold), format!("in force: {threshold:.3}")));
    let pairs = [with_precision("", |point| (point.recall(), point.precision()))];
    let scores = [
        with_precision("precision", |point| (point.threshold, point.precision())),
        line("recall", 1, |point| (point.threshold, point.recall())),
        line("F1", 2, |point| (point.threshold, point.f1())),
    ];
    html! {
        (against.lines(&pairs, &Extras { spots, steps: Some(("threshold", 1.0 / (POINTS - 1) as f64)), ..Extras::default() }))
        (over.lines(&scores, &Extras { mark, ..Extras::default() }))
    }
}
