//! The confusion matrix of a problem with one label a row.

use maud::{Markup, html};

use super::Report;

/// Labels of the matrix: those with the most rows.
const MOST: usize = 25;

impl Report<'_> {
    /// Rows by the label that they have and the one that is predicted.
    pub(super) fn confusion_matrix(&self) -> Markup {
        let shown: Vec<usize> = self.by_support().into_iter().take(MOST).collect();
        let label_of = |flags: &Vec<bool>| flags.iter().position(|flag| *flag);
        let predictions = self.predictions;
        let count = |target: usize, predicted: usize| {
            let pairs = predictions.targets.iter().zip(&predictions.predicted);
            pairs.filter(|(t, p)| label_of(t) == Some(target) && label_of(p) == Some(predicted)).count()
        };
        html! {
            h2 { "Confusion matrix" }
            p class="soft" {
                "Rows by the label that they have (down) and the predicted one (across)."
                @if shown.len() < self.labels.len() { " Of the " (MOST) " labels with the most rows." }
            }
            div class="scroll" {
                table class="matrix" {
                    thead { tr { th { "has \\ predicted" } @for &label in &shown { th { (self.labels[label]) } } } }
                    tbody {
                        @for &target in &shown {
                            @let support = self.scores.per_label[target].support.max(1);
                            tr {
                                td { (self.labels[target]) }
                                @for &predicted in &shown {
                                    @let rows = count(target, predicted);
                                    // Five shades, by the share of the label's rows.
                                    @let shade = (5 * rows).div_ceil(support).min(5);
                                    td class={ "shade" (shade) } { (rows) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
