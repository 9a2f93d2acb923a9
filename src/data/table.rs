//! CSV files as examples, streamed row by row.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use csv::{ByteRecord, Reader, ReaderBuilder};

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// The id column's cell, or the row's number from 0.
    pub id: String,
    /// What the model reads.
    pub text: String,
    /// 0 or 1 for each label; empty if labels were not asked for.
    pub labels: Vec<f32>,
}

/// Which columns make an example.
#[derive(Clone, Debug, PartialEq)]
pub struct Columns {
    /// None: the row's number is the id.
    pub id: Option<String>,
    /// Joined to make the text; none: `text` is the text.
    pub text_fields: Option<Vec<String>>,
    /// The text, if there are no `text_fields`.
    pub text: String,
    /// Empty: labels are not read.
    pub labels: Vec<String>,
}

/// A CSV file that gives one example a row.
pub struct Table {
    path: String,
    reader: Reader<Box<dyn Read>>,
    header: Vec<String>,
    id: Option<usize>,
    text: TextSource,
    labels: Vec<usize>,
    record: ByteRecord,
    rows: usize,
}

enum TextSource {
    Fields(Vec<usize>),
    Column(usize),
}

impl Table {
    /// Opens a file (`-`: standard input) and finds its columns.
    ///
    /// # Errors
    /// If the file cannot be read, is empty, names a column twice, or lacks one; the error lists
    /// the columns that are there.
    pub fn open(path: &Path, columns: &Columns) -> Result<Self> {
        let (name, mut reader, header) = open(path)?;
        let find = |wanted: &str| {
            header
                .iter()
                .position(|column| column == wanted)
                .with_context(|| format!("{name}: no column `{wanted}`; the file has {}", quoted(&header)))
        };
        let text = match &columns.text_fields {
            Some(fields) => TextSource::Fields(fields.iter().map(|field| find(field)).collect::<Result<_>>()?),
            None => TextSource::Column(find(&columns.text)?),
        };
        let id = columns.id.as_deref().map(find).transpose()?;
        let labels = columns.labels.iter().map(|label| find(label)).collect::<Result<_>>()?;
        reader.set_headers(csv::StringRecord::from(header.clone()));
        Ok(Self { path: name, reader, header, id, text, labels, record: ByteRecord::new(), rows: 0 })
    }

    fn read_row(&mut self) -> Result<Option<Example>> {
        let more = self.reader.read_byte_record(&mut self.record).map_err(|error| row_error(&self.path, error))?;
        if !more {
            return Ok(None);
        }
        let text = match &self.text {
            TextSource::Column(column) => self.cell(*column)?.to_owned(),
            TextSource::Fields(fields) => {
                let mut parts = Vec::with_capacity(fields.len());
                for &field in fields {
                    parts.push(self.cell(field)?);
                }
                join_fields(&parts)
            }
        };
        let text = if text.is_empty() { " ".to_owned() } else { text };
        let id = match self.id {
            Some(column) => self.cell(column)?.to_owned(),
            None => self.rows.to_string(),
        };
        let labels = self.labels.iter().map(|&column| self.label(column)).collect::<Result<_>>()?;
        self.rows += 1;
        Ok(Some(Example { id, text, labels }))
    }

    fn cell(&self, column: usize) -> Result<&str> {
        std::str::from_utf8(&self.record[column]).with_context(|| {
            format!("{}: column `{}` is not valid UTF-8; save the file as UTF-8", self.place(), self.header[column])
        })
    }

    fn label(&self, column: usize) -> Result<f32> {
        let cell = self.cell(column)?;
        parse_label(cell).with_context(|| {
            format!("{}: column `{}` holds `{}`, expected 0 or 1", self.place(), self.header[column], clip(cell))
        })
    }

    /// `path:line` of the current row.
    fn place(&self) -> String {
        format!("{}:{}", self.path, self.record.position().map_or(0, csv::Position::line))
    }
}

impl Iterator for Table {
    type Item = Result<Example>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read_row().transpose()
    }
}

/// Reads at most `limit` rows.
///
/// # Errors
/// As [`Table::open`], or if a row is malformed, or if there is no row.
pub fn read_examples(path: &Path, columns: &Columns, limit: Option<usize>) -> Result<Vec<Example>> {
    let table = Table::open(path, columns)?;
    let examples = table.take(limit.unwrap_or(usize::MAX)).collect::<Result<Vec<_>>>()?;
    ensure!(!examples.is_empty(), "{}: has a header but no rows", path.display());
    Ok(examples)
}

/// The columns that `columns` does not use and that hold only 0 and 1.
///
/// # Errors
/// As [`Table::open`], or if there is none.
pub fn find_label_columns(path: &Path, columns: &Columns) -> Result<Vec<String>> {
    let (name, mut reader, header) = open(path)?;
    let mut is_used: HashSet<&String> = columns.id.iter().chain(columns.text_fields.iter().flatten()).collect();
    if columns.text_fields.is_none() {
        is_used.insert(&columns.text);
    }
    let mut candidates: Vec<usize> = (0..header.len()).filter(|&column| !is_used.contains(&header[column])).collect();
    let mut record = ByteRecord::new();
    while reader.read_byte_record(&mut record).map_err(|error| row_error(&name, error))? {
        candidates.retain(|&column| std::str::from_utf8(&record[column]).ok().and_then(parse_label).is_some());
    }
    ensure!(
        !candidates.is_empty(),
        "{name}: no column holds only 0 and 1 beside the id and the text; name them in data.label_columns. The file has {}",
        quoted(&header)
    );
    Ok(candidates.into_iter().map(|column| header[column].clone()).collect())
}

fn open(path: &Path) -> Result<(String, Reader<Box<dyn Read>>, Vec<String>)> {
    let name = path.display().to_string();
    let source: Box<dyn Read> = if name == "-" {
        Box::new(io::stdin())
    } else {
        ensure!(!path.is_dir(), "{name}: is a directory, expected a CSV file");
        Box::new(File::open(path).with_context(|| format!("{name}: cannot open"))?)
    };
    let mut reader = ReaderBuilder::new().from_reader(source);
    let header = reader.byte_headers().map_err(|error| row_error(&name, error))?;
    ensure!(!header.is_empty(), "{name}: is empty, expected a header and rows");
    let mut columns = Vec::with_capacity(header.len());
    for (index, column) in header.iter().enumerate() {
        let column = std::str::from_utf8(column)
            .with_context(|| format!("{name}:1: the name of column {} is not valid UTF-8", index + 1))?;
        let column = if index == 0 { column.trim_start_matches('\u{feff}') } else { column };
        ensure!(!columns.iter().any(|other| other == column), "{name}:1: two columns are called `{column}`");
        columns.push(column.to_owned());
    }
    Ok((name, reader, columns))
}

fn row_error(path: &str, error: csv::Error) -> anyhow::Error {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let line = pos.as_ref().map_or(0, csv::Position::line);
            anyhow::anyhow!(
                "{path}:{line}: the row has {len} cells, the header {expected_len}; is a quote or comma missing?"
            )
        }
        _ => anyhow::Error::new(error).context(format!("{path}: cannot read")),
    }
}

/// Each field trimmed, empty ones skipped, joined with ". ", and a "." at the end.
fn join_fields(fields: &[&str]) -> String {
    let mut text =
        fields.iter().map(|field| field.trim()).filter(|field| !field.is_empty()).collect::<Vec<_>>().join(". ");
    if !text.is_empty() && !text.ends_with('.') {
        text.push('.');
    }
    text
}

fn parse_label(cell: &str) -> Option<f32> {
    match cell.trim() {
        "0" | "0.0" => Some(0.0),
        "1" | "1.0" => Some(1.0),
        other if other.eq_ignore_ascii_case("false") => Some(0.0),
        other if other.eq_ignore_ascii_case("true") => Some(1.0),
        _ => None,
    }
}

fn quoted(names: &[String]) -> String {
    const SHOWN: usize = 30;
    let mut text = names.iter().take(SHOWN).map(|name| format!("`{}`", clip(name))).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

/// The start of a cell, for messages.
fn clip(cell: &str) -> String {
    let mut text: String = cell.chars().take(40).collect();
    if text.len() < cell.len() {
        text.push('…');
    }
    text
}

/// Checks that each row has exactly one label.
///
/// # Errors
/// Names the first row that has not.
pub fn check_single_label(path: &Path, examples: &[Example]) -> Result<()> {
    for example in examples {
        let count = example.labels.iter().filter(|&&label| label > 0.5).count();
        if count != 1 {
            bail!(
                "{}: row `{}` has {count} labels set; single_label_classification needs exactly one",
                path.display(),
                clip(&example.id)
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Columns {
        Columns { id: Some("id".into()), text_fields: None, text: "text".into(), labels: vec!["a".into(), "b".into()] }
    }

    fn read(bytes: &[u8], columns: &Columns) -> Result<Vec<Example>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.csv");
        std::fs::write(&path, bytes).unwrap();
        read_examples(&path, columns, None)
    }

    #[test]
    fn rows_become_examples_with_a_byte_order_mark_and_every_spelling_of_labels() {
        let csv = "\u{feff}id,text,a,b\n7,\"one, \"\"two\"\"\nthree\",1,0.0\n,,true,False\n";
        let examples = read(csv.as_bytes(), &columns()).unwrap();
        assert_eq!(examples[0].text, "one, \"two\"\nthree");
        assert_eq!((examples[0].id.as_str(), &examples[0].labels), ("7", &vec![1.0, 0.0]));
        assert_eq!((examples[1].text.as_str(), &examples[1].labels), (" ", &vec![1.0, 0.0]));
    }

    #[test]
    fn text_fields_join_trimmed_and_end_with_one_full_stop() {
        assert_eq!(join_fields(&[" a ", "", "b."]), "a. b.");
        assert_eq!(join_fields(&["12", "x"]), "12. x.");
        assert_eq!(join_fields(&["", " "]), "");
        let columns = Columns { id: None, text_fields: Some(vec!["id".into(), "text".into()]), ..columns() };
        let examples = read(b"id,text,a,b\n,,0,1\nx,y,0,1\n", &columns).unwrap();
        assert_eq!((examples[0].text.as_str(), examples[1].text.as_str()), (" ", "x. y."));
        assert_eq!((examples[0].id.as_str(), examples[1].id.as_str()), ("0", "1"));
    }

    #[test]
    fn bad_files_name_line_and_column() {
        for (csv, parts) in [
            (&b"id,text,a,b\n1,x,0,1\n2,y,2,0\n"[..], &["t.csv:3", "column `a` holds `2`, expected 0 or 1"][..]),
            (b"id,text,a,b\n1,\"x\ny\",0,1\n2,y,0\n", &["t.csv:4", "3 cells, the header 4"]),
            (b"id,text,a\n1,x,0\n", &["no column `b`", "`id`, `text`, `a`"]),
            (b"id,text,a,a\n", &["two columns are called `a`"]),
            (b"id,text,a,b\n1,\xff\xfe,0,1\n", &["t.csv:2", "column `text` is not valid UTF-8"]),
            (b"", &["is empty"]),
            (b"id,text,a,b\n", &["no rows"]),
        ] {
            let error = format!("{:#}", read(csv, &columns()).unwrap_err());
            for part in parts {
                assert!(error.contains(part), "{part} is not in: {error}");
            }
        }
    }

    #[test]
    fn labels_are_found_among_the_columns_that_are_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.csv");
        std::fs::write(&path, "id,text,a,year,b\n0,1,1,1999,0\n1,0,0,2000,1.0\n").unwrap();
        let unlabelled = Columns { labels: vec![], ..columns() };
        assert_eq!(find_label_columns(&path, &unlabelled).unwrap(), ["a", "b"]);
    }
}
