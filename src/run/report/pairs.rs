//! Pairs of labels: confused ones, and those that occur together.

use maud::{Markup, html};

use super::Report;
use crate::metrics::errors::{Pair, confusions, cooccurrences};

/// Pairs of a table.
const MAX_PAIRS: usize = 15;

impl Report<'_> {
    /// None if there is no pair.
    pub(super) fn pairs(&self) -> Option<Markup> {
        let mut tables =
            vec![("Confused labels", ["missed", "predicted instead"], confusions(self.predictions, MAX_PAIRS))];
        if !self.is_single {
            let together = cooccurrences(self.predictions, MAX_PAIRS);
            tables.push(("Co-occurring labels", ["label", "label"], together));
        }
        tables.retain(|(.., pairs)| !pairs.is_empty());
        let markup = html! {
            div class="tables" {
                @for (title, heads, pairs) in &tables { (self.pair_table(title, heads, pairs)) }
            }
        };
        (!tables.is_empty()).then_some(markup)
    }

    fn pair_table(&self, title: &str, [first, second]: &[&str; 2], pairs: &[Pair]) -> Markup {
        html! {
            figure {
                figcaption { (title) }
                div class="scroll" {
                    table {
                        thead { tr { th { (first) } th class="text" { (second) } th { "rows" } } }
                        tbody {
                            @for pair in pairs {
                                tr {
                                    td { (self.labels[pair.a]) }
                                    td class="text" { (self.labels[pair.b]) }
                                    td { (pair.rows) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
