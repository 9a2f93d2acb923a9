//! The table of labels, which can be searched and sorted.

use maud::{Markup, html};

use super::{Report, grouped};

/// Labels from which on a box to search is of use.
const MANY: usize = 12;

impl Report<'_> {
    pub(super) fn per_label(&self) -> Markup {
        const HEADS: [&str; 9] =
            ["label", "rows", "predicted", "threshold", "precision", "recall", "F1", "average precision", "ROC AUC"];
        let heads: Vec<&str> = HEADS.into_iter().filter(|head| !self.is_single || *head != "threshold").collect();
        let score = |value: f64| format!("{value:.3}");
        let known = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), score);
        html! {
            @if self.labels.len() > MANY {
                p class="tools" {
                    input class="search" type="search" placeholder="Search labels" aria-label="Search labels";
                    output class="soft" { (grouped(self.labels.len())) " labels" }
                }
            }
            div class="scroll tall" {
                table class="sorts" {
                    thead { tr { @for head in heads { th scope="col" { button type="button" { (head) } } } } }
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
}
