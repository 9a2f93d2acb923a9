//! Rows that are worth looking at, from `data_issues.jsonl`.

use maud::{Markup, html};

use super::{Report, counted, row_text};

impl Report<'_> {
    pub(super) fn data_issues(&self) -> Markup {
        html! {
            p class="soft" { "What may be a mistake in the data. data_issues.jsonl of the run has all of them." }
            div class="folds wide" {
                @for issue in &self.issues {
                    details {
                        summary { (issue.title) " " span class="soft" { (counted(issue.count, "case")) } }
                        div class="scroll" {
                            table class="texts" {
                                thead { tr { @for head in issue.heads { th { (head) } } } }
                                tbody {
                                    @for row in &issue.rows {
                                        tr {
                                            @for (column, cell) in row.iter().enumerate() {
                                                td {
                                                    @if column < issue.texts_from { (cell) } @else {
                                                        (row_text(&html! { (cell) }))
                                                    }
                                                }
                                            }
                                        }
                                    }
                                }
                            }
                        }
                        @if issue.rows.len() < issue.count {
                            p class="soft" { "The first " (issue.rows.len()) "." }
                        }
                    }
                }
            }
        }
    }
}
