//! Writes rows of a file of labelled texts as CSV: the id, the texts and the labels, as the source has them.

use std::borrow::Cow;
use std::path::Path;

use anyhow::{Context, Result};

use super::formats::Rows;
use super::label_cell::LabelCell;
use super::recognise::{LabelForm, Recognised};
use super::table::label_cell;
use crate::atomic_file;

/// Writes the rows whose number `is_wanted` to `output`, and returns how many there were.
///
/// Flags become 0 and 1. Text that lists labels stays as it is, so that other rows of the source's form can be read
/// by the same configuration; a list that the source types becomes a JSON list.
///
/// # Errors
/// If the source cannot be read or the output cannot be written; then the output is as it was.
pub fn write_rows(
    source: &Path,
    recognised: &Recognised,
    flags: &dyn Fn(usize) -> Vec<bool>,
    is_wanted: &dyn Fn(usize) -> bool,
    output: &Path,
) -> Result<usize> {
    let columns = recognised.columns();
    let mut rows = Rows::open(source, columns.quoting)?;
    let kept: Vec<&String> = recognised.id.iter().chain(&recognised.text).collect();
    let places = kept.iter().map(|name| rows.find(name)).collect::<Result<Vec<_>>>()?;
    let list = columns.label_list.as_ref().map(|list| rows.find(&list.column)).transpose()?;
    let labels: Vec<&String> = match &recognised.form {
        LabelForm::Columns => recognised.labels.iter().collect(),
        LabelForm::List { column, .. } => vec![column],
    };
    let mut written = 0;
    atomic_file::write_file(output, |file| {
        let mut writer = csv::Writer::from_writer(file);
        writer.write_record(kept.iter().chain(&labels)).context("cannot write")?;
        for number in 0.. {
            if !rows.advance()? {
                break;
            }
            if !is_wanted(number) {
                continue;
            }
            let mut cells = places.iter().map(|&place| rows.text(place)).collect::<Result<Vec<_>>>()?;
            match list {
                Some(place) => cells.push(Cow::Owned(list_text(label_cell(&rows, place)?))),
                None => cells.extend(flags(number).iter().map(|&flag| Cow::Borrowed(if flag { "1" } else { "0" }))),
            }
            writer.write_record(cells.iter().map(|cell| cell.as_bytes())).context("cannot write")?;
            written += 1;
        }
        writer.flush().context("cannot write")
    })?;
    Ok(written)
}

/// A cell that is read back as the same labels.
fn list_text(cell: LabelCell) -> String {
    match cell {
        LabelCell::Missing | LabelCell::Empty => String::new(),
        LabelCell::Items(items) => serde_json::Value::from(items).to_string(),
        LabelCell::Text(text) | LabelCell::Broken(text) => text,
    }
}
