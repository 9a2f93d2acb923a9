//! Columns that make an example, and cells that mean 0 or 1.

use std::collections::HashSet;

use super::formats::Quoting;

/// Columns that make an example.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Columns {
    /// None: the row's number is the id.
    pub id: Option<String>,
    /// True if the row's number is the id where the file has no such column.
    pub id_may_be_absent: bool,
    /// Joined to make the text; none: `text` is the text.
    pub text_fields: Option<Vec<String>>,
    /// The text, if there are no `text_fields`.
    pub text: String,
    /// Empty: labels are not read.
    pub labels: Vec<String>,
    /// The one column that lists a row's labels; none: each label has a column of 0 and 1.
    pub label_list: Option<LabelList>,
    /// True if labels were found among the columns: then other columns of 0 and 1 deserve a warning.
    pub labels_were_found: bool,
    /// Quotes in CSV files.
    pub quoting: Quoting,
}

/// A column that lists a row's labels: a JSON or Python list, or text with a separator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelList {
    pub column: String,
    /// Between labels; none: found over the whole column.
    pub separator: Option<String>,
    /// The labels in the order of multi-hot lists, if it is not that of [`Columns::labels`].
    pub order: Option<Vec<String>>,
}

/// Names of columns that an example is made of, labels left out.
pub(super) fn used_columns(columns: &Columns) -> HashSet<&str> {
    let mut used: HashSet<&str> =
        columns.id.iter().chain(columns.text_fields.iter().flatten()).map(String::as_str).collect();
    if columns.text_fields.is_none() {
        used.insert(&columns.text);
    }
    used
}

/// 0 or 1, as numbers or words that are no language's: `0`, `0.0`, `0,00`, `false`.
pub(super) fn parse_label(cell: &str) -> Option<f32> {
    let cell = cell.trim();
    let number = |rest: &str| {
        rest.is_empty() || rest.strip_prefix(['.', ',']).is_some_and(|zeros| zeros.bytes().all(|b| b == b'0'))
    };
    match cell.as_bytes().first()? {
        b'0' if number(&cell[1..]) => Some(0.0),
        b'1' if number(&cell[1..]) => Some(1.0),
        b'f' | b'F' if cell.eq_ignore_ascii_case("false") => Some(0.0),
        b't' | b'T' if cell.eq_ignore_ascii_case("true") => Some(1.0),
        _ => None,
    }
}
