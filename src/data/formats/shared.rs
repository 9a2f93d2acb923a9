//! Parts that the readers of all formats share.

use std::collections::HashSet;
use std::io::{BufRead, Cursor, Read};

use anyhow::{Result, bail};

/// Bytes that are looked at to recognise a file.
pub(super) const HEAD: usize = 512;

pub(super) fn rejoined(head: Vec<u8>, rest: Box<dyn BufRead>) -> Box<dyn BufRead> {
    Box::new(Cursor::new(head).chain(rest))
}

/// Checks that no two columns have one name.
pub(super) fn refuse_duplicates(location: &str, columns: &[String]) -> Result<()> {
    let mut seen = HashSet::new();
    for column in columns {
        if !seen.insert(column) {
            match column.is_empty() {
                true => bail!("{location}: two columns have no name; name them, or remove them"),
                false => bail!("{location}: two columns are called `{}`; rename or remove one", clip(column)),
            }
        }
    }
    Ok(())
}

/// The start of a cell, for messages.
pub(crate) fn clip(cell: &str) -> String {
    let mut text: String = cell.chars().take(40).collect();
    if text.len() < cell.len() {
        text.push('…');
    }
    text
}
