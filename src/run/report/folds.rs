//! The section on folds: scores of held-out rows, and the curve over the number of training rows.

use maud::{Markup, html};

use super::axes::Axis;
use super::charts::{Chart, Extras, Series};
use crate::run::folds::{CurvePoint, FoldSummary};
use crate::run::results::OverSeeds;

pub(super) fn section(summary: &FoldSummary) -> Markup {
    let points = |of: fn(&CurvePoint) -> OverSeeds| -> Vec<(f64, f64)> {
        summary.learning_curve.iter().map(|point| (point.rows, of(point).mean)).collect()
    };
    let series = [
        Series::new("micro", 0, points(|point| point.f1_micro)),
        Series::new("macro", 1, points(|point| point.f1_macro)),
    ];
    let rows = summary.learning_curve.iter().map(|point| point.rows);
    let scores = series.iter().flat_map(|line| line.points.iter().map(|point| point.1));
    let chart = Chart {
        title: "F1 over training rows",
        x: Axis::around("training rows", rows, true),
        y: Axis::around("F1 on held-out rows", scores, false),
    };
    let shown = |over: &OverSeeds| format!("{:.4} ± {:.4}", over.mean, over.sd.unwrap_or(f64::NAN));
    html! {
        p { (summary.answer()) }
        p class="soft" {
            (summary.folds) " folds: each part of the training rows was predicted by a model that was trained on the others"
            @if summary.tuned_thresholds { "; the thresholds were tuned on these predictions" }
            ". predictions_folds.jsonl has them."
        }
        div class="charts" { (chart.lines(&series, &Extras::default())) }
        div class="scroll" {
            table {
                thead {
                    tr { th { "share of the rows" } th { "rows" } th { "micro-F1" } th { "macro-F1" } }
                }
                tbody {
                    @for point in &summary.learning_curve {
                        tr {
                            td { (point.share) }
                            td { (format_args!("{:.0}", point.rows)) }
                            td { (shown(&point.f1_micro)) }
                            td { (shown(&point.f1_macro)) }
                        }
                    }
                }
            }
        }
    }
}
