//! Other runs on the same rows, beside the run of the report: in all, and by label.

use maud::{Markup, html};

use super::comparison::Compared;
use super::{Report, difference};
use crate::run::results::BaselineScores;

impl Report<'_> {
    pub(super) fn compared(&self) -> Markup {
        let own = BaselineScores::of(self.scores);
        let number = |value: f64| format!("{value:.4}");
        html! {
            p class="soft" {
                "Differences are to the run of this report, with their 95% interval over rows that are drawn together: one that \
                 holds 0 may be chance."
            }
            div class="scroll" {
                table {
                    thead {
                        tr {
                            th { "run" }
                            @for score in ["micro-F1", "macro-F1", "exact match"] { th { (score) } th { "difference" } }
                        }
                    }
                    tbody {
                        tr class="own" {
                            td { "this run" }
                            @for value in [own.f1_micro, own.f1_macro, own.accuracy] { td { (number(value)) } td { "–" } }
                        }
                        @for other in &self.comparison {
                            @let (scores, change) = (&other.scores, &other.difference);
                            tr {
                                td { (other.run) }
                                td { (number(scores.f1_micro)) }
                                td { (difference(change.f1_micro, change.f1_micro_ci95)) }
                                td { (number(scores.f1_macro)) }
                                td { (difference(change.f1_macro, change.f1_macro_ci95)) }
                                td { (number(scores.accuracy)) }
                                td { (difference(change.accuracy, change.accuracy_ci95)) }
                            }
                        }
                    }
                }
            }
            h3 { "By label" }
            @for other in &self.comparison { (self.by_label(other)) }
        }
    }

    fn by_label(&self, other: &Compared) -> Markup {
        const HEADS: [&str; 7] =
            ["label", "rows", "F1, this run", "F1, other run", "difference", "only other right", "only this right"];
        html! {
            details open[self.comparison.len() == 1] {
                summary { (other.run) }
                p class="soft" {
                    "The last columns count rows whose label only one of the two runs has right: where they are few or equal, the \
                     difference is chance."
                }
                div class="scroll tall" {
                    table class="sorts" {
                        thead { tr { @for head in HEADS { th scope="col" { button type="button" { (head) } } } } }
                        tbody {
                            @for (row, change) in self.scores.per_label.iter().zip(&other.per_label) {
                                tr {
                                    td { (row.label) }
                                    td { (row.support) }
                                    td { (format_args!("{:.3}", row.f1)) }
                                    td { (format_args!("{:.3}", change.f1)) }
                                    td { (format_args!("{:+.3}", change.difference)) }
                                    td { (change.only_other) }
                                    td { (change.only_own) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
