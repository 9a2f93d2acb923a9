//! The confusion matrix of a problem with one label a row.

use std::collections::HashMap;

use maud::{Markup, html};

use super::{Report, counted};

/// Labels of the matrix: those with the most rows.
const MOST: usize = 25;

impl Report<'_> {
    /// Rows by the label that they have and the one that is predicted.
    pub(super) fn confusion_matrix(&self) -> Markup {
        let shown: Vec<usize> = self.by_support().into_iter().take(MOST).collect();
        let has_rest = shown.len() < self.labels.len();
        let cells = self.confusion_counts(&shown);
        let names: Vec<&str> =
            shown.iter().map(|&label| self.labels[label].as_str()).chain(has_rest.then_some("other labels")).collect();
        let of_row = |row: usize| (0..names.len()).map(|column| cells.get(&(row, column)).copied().unwrap_or(0)).sum();
        html! {
            p class="soft" {
                "A row of the matrix is the label that the texts have, a column the predicted one. Shades are shares of the row."
                @if has_rest { " The " (MOST) " labels with the most rows; the rest is put together." }
            }
            div class="scroll" {
                table class="matrix" {
                    thead { tr { th {} @for name in &names { th scope="col" { span { (name) } } } } }
                    tbody {
                        @for (row, name) in names.iter().enumerate() {
                            @let total: usize = of_row(row);
                            tr {
                                th scope="row" { (name) }
                                @for (column, other) in names.iter().enumerate() {
                                    @let rows = cells.get(&(row, column)).copied().unwrap_or(0);
                                    // Five shades, by the share of the label's rows.
                                    @let shade = (5 * rows).div_ceil(total.max(1)).min(5);
                                    @let says = format!("{name}, predicted {other}: {}", counted(rows, "row"));
                                    td class={ "shade" (shade) @if row == column { " right" } } title=(says) {
                                        @if rows > 0 { (rows) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// Rows by places in `shown`; what is not there has the place behind the last.
    fn confusion_counts(&self, shown: &[usize]) -> HashMap<(usize, usize), usize> {
        let place = |flags: &Vec<bool>| {
            let label = flags.iter().position(|flag| *flag)?;
            Some(shown.iter().position(|&other| other == label).unwrap_or(shown.len()))
        };
        let mut cells = HashMap::new();
        for (target, predicted) in self.predictions.targets.iter().zip(&self.predictions.predicted) {
            if let (Some(target), Some(predicted)) = (place(target), place(predicted)) {
                *cells.entry((target, predicted)).or_default() += 1;
            }
        }
        cells
    }
}
