//! Rows of CSV, JSON-lines and Parquet files, streamed; which of them a file is, its ending tells.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use csv::{ByteRecord, Reader, ReaderBuilder};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

/// A file of rows, and the row that was read last.
pub struct Rows {
    path: String,
    columns: Vec<String>,
    source: Source,
    row: Current,
}

enum Source {
    Csv(Reader<Box<dyn BufRead>>),
    Jsonl { lines: Box<dyn BufRead>, next: Option<Map<String, Value>>, line: u64 },
    Parquet(Box<RowIter<'static>>, u64),
}

enum Current {
    Cells(ByteRecord),
    Values { values: Map<String, Value>, line: u64 },
}

impl Rows {
    /// Opens a file: `.jsonl`, `.ndjson` and `.json` hold one object a line, `.parquet` is Parquet, all
    /// others are CSV with a header; one without commas may have tabs or semicolons instead. `-` is standard
    /// input, CSV or one object a line.
    ///
    /// # Errors
    /// If the file cannot be read or is empty, or a column is named twice.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        if name == "-" {
            let mut input = BufReader::new(io::stdin());
            let is_json = input.fill_buf().is_ok_and(|bytes| bytes.trim_ascii_start().starts_with(b"{"));
            return if is_json { Self::jsonl(name, Box::new(input)) } else { Self::csv(name, Box::new(input)) };
        }
        ensure!(!path.is_dir(), "{name}: is a directory, expected a file of rows");
        let file = File::open(path).with_context(|| format!("{name}: cannot open"))?;
        match path.extension().and_then(|ending| ending.to_str()).map(str::to_lowercase).as_deref() {
            Some("jsonl" | "ndjson" | "json") => Self::jsonl(name, Box::new(BufReader::new(file))),
            Some("parquet") => Self::parquet(name, file),
            _ => Self::csv(name, Box::new(BufReader::new(file))),
        }
    }

    fn csv(path: String, mut source: Box<dyn BufRead>) -> Result<Self> {
        let start = source.fill_buf().with_context(|| format!("{path}: cannot read"))?;
        let mut reader = ReaderBuilder::new().delimiter(delimiter(start)).from_reader(source);
        let header = reader.byte_headers().map_err(|error| csv_error(&path, error))?;
        ensure!(!header.is_empty(), "{path}: is empty, expected a header and rows");
        let mut columns = Vec::with_capacity(header.len());
        for (index, column) in header.iter().enumerate() {
            let column = std::str::from_utf8(column)
                .with_context(|| format!("{path}:1: the name of column {} is not valid UTF-8", index + 1))?;
            let column = if index == 0 { column.trim_start_matches('\u{feff}') } else { column };
            ensure!(!columns.iter().any(|other| other == column), "{path}:1: two columns are called `{column}`");
            columns.push(column.to_owned());
        }
        // So that the header is not read again as a row.
        reader.set_headers(csv::StringRecord::from(columns.clone()));
        Ok(Self { path, columns, source: Source::Csv(reader), row: Current::Cells(ByteRecord::new()) })
    }

    /// The columns are the keys of the first object.
    fn jsonl(path: String, mut lines: Box<dyn BufRead>) -> Result<Self> {
        let mut line = 0;
        let next = read_object(&mut *lines, &mut line, &path)?;
        let columns = next.as_ref().map_or_else(Vec::new, |object| object.keys().cloned().collect());
        ensure!(!columns.is_empty(), "{path}: is empty, expected one JSON object a line");
        let row = Current::Values { values: Map::new(), line: 0 };
        Ok(Self { path, columns, source: Source::Jsonl { lines, next, line }, row })
    }

    fn parquet(path: String, file: File) -> Result<Self> {
        let reader = SerializedFileReader::new(file).with_context(|| format!("{path}: not a Parquet file"))?;
        let schema = reader.metadata().file_metadata().schema();
        let columns = schema.get_fields().iter().map(|field| field.name().to_owned()).collect();
        let rows = RowIter::from_file_into(Box::new(reader));
        let row = Current::Values { values: Map::new(), line: 0 };
        Ok(Self { path, columns, source: Source::Parquet(Box::new(rows), 0), row })
    }

    /// Names of the columns.
    #[must_use]
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The place of a column.
    ///
    /// # Errors
    /// If there is none of this name; the error lists those that are there.
    pub fn find(&self, wanted: &str) -> Result<usize> {
        self.columns
            .iter()
            .position(|column| column == wanted)
            .with_context(|| format!("{}: no column `{wanted}`; the file has {}", self.path, quoted(&self.columns)))
    }

    /// Reads the next row; false at the end.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn advance(&mut self) -> Result<bool> {
        match (&mut self.source, &mut self.row) {
            (Source::Csv(reader), Current::Cells(record)) => {
                reader.read_byte_record(record).map_err(|error| csv_error(&self.path, error))
            }
            (Source::Jsonl { lines, next, line }, Current::Values { values, line: current }) => {
                let object = match next.take() {
                    Some(object) => Some(object),
                    None => read_object(&mut **lines, line, &self.path)?,
                };
                *current = *line;
                Ok(object.map(|object| *values = object).is_some())
            }
            (Source::Parquet(rows, number), Current::Values { values, line }) => {
                let Some(row) = rows.next() else { return Ok(false) };
                *number += 1;
                *line = *number;
                *values = object_of(&row.with_context(|| format!("{}: cannot read row {number}", self.path))?);
                Ok(true)
            }
            _ => unreachable!("a source has rows of its own kind"),
        }
    }

    /// A cell as text. What is missing or null is empty.
    ///
    /// # Errors
    /// If it is not valid UTF-8, or a list or an object.
    pub fn text(&self, column: usize) -> Result<Cow<'_, str>> {
        match &self.row {
            Current::Cells(record) => Ok(Cow::Borrowed(self.cell(record, column)?)),
            Current::Values { values, .. } => scalar(values.get(&self.columns[column]).unwrap_or(&Value::Null))
                .with_context(|| {
                    format!("{}: `{}` holds a list or an object, expected text", self.place(), self.columns[column])
                }),
        }
    }

    /// A cell as a list: a JSON list, or text with a separator. Empty parts are left out.
    ///
    /// # Errors
    /// If it is not valid UTF-8, or starts as a JSON list and is none.
    pub fn list(&self, column: usize, separator: &str) -> Result<Vec<String>> {
        let broken = || format!("{}: column `{}` holds no list of labels", self.place(), self.columns[column]);
        if let Current::Values { values, .. } = &self.row
            && let Some(Value::Array(items)) = values.get(&self.columns[column])
        {
            return strings(items).with_context(broken);
        }
        let text = self.text(column)?;
        if text.trim_start().starts_with('[') {
            let items: Vec<Value> = serde_json::from_str(&text).with_context(broken)?;
            return strings(&items).with_context(broken);
        }
        let parts = text.split(separator).map(str::trim).filter(|part| !part.is_empty());
        Ok(parts.map(str::to_owned).collect())
    }

    /// A cell of a column that lists labels.
    pub(super) fn label_cell(&self, column: usize) -> Result<super::label_cell::LabelCell> {
        use super::label_cell::LabelCell;
        match &self.row {
            Current::Cells(record) => LabelCell::of_text(self.cell(record, column)?),
            Current::Values { values, .. } => match values.get(&self.columns[column]) {
                Some(value) => LabelCell::of_value(value),
                None => Ok(LabelCell::Missing),
            },
        }
    }

    /// `path:line` of the current row, or its number in a Parquet file.
    #[must_use]
    pub fn place(&self) -> String {
        match &self.row {
            Current::Cells(record) => format!("{}:{}", self.path, record.position().map_or(0, csv::Position::line)),
            Current::Values { line, .. } => format!("{}:{line}", self.path),
        }
    }

    fn cell<'a>(&self, record: &'a ByteRecord, column: usize) -> Result<&'a str> {
        std::str::from_utf8(&record[column]).with_context(|| {
            format!("{}: column `{}` is not valid UTF-8; save the file as UTF-8", self.place(), self.columns[column])
        })
    }
}

/// What separates the cells of a CSV that starts so: spreadsheets write semicolons in languages with decimal
/// commas.
fn delimiter(start: &[u8]) -> u8 {
    let header = start.split(|&byte| byte == b'\n').next().unwrap_or_default();
    [b',', b'\t', b';'].into_iter().find(|byte| header.contains(byte)).unwrap_or(b',')
}

/// The next line that is not blank.
fn read_object(lines: &mut dyn BufRead, line: &mut u64, path: &str) -> Result<Option<Map<String, Value>>> {
    let mut text = String::new();
    loop {
        text.clear();
        let count = lines.read_line(&mut text).with_context(|| format!("{path}:{}: cannot read", *line + 1))?;
        if count == 0 {
            return Ok(None);
        }
        *line += 1;
        let object = text.trim_start_matches('\u{feff}').trim();
        if !object.is_empty() {
            return serde_json::from_str(object)
                .map(Some)
                .map_err(|error| anyhow!("{path}:{line}: not a JSON object: {error}"));
        }
    }
}

fn object_of(row: &Row) -> Map<String, Value> {
    row.get_column_iter().map(|(name, field)| (name.clone(), value_of(field))).collect()
}

fn value_of(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => (*value).into(),
        Field::Byte(value) => (*value).into(),
        Field::Short(value) => (*value).into(),
        Field::Int(value) => (*value).into(),
        Field::Long(value) => (*value).into(),
        Field::UByte(value) => (*value).into(),
        Field::UShort(value) => (*value).into(),
        Field::UInt(value) => (*value).into(),
        Field::ULong(value) => (*value).into(),
        Field::Float(value) => (*value).into(),
        Field::Double(value) => (*value).into(),
        Field::Str(text) => text.clone().into(),
        Field::ListInternal(list) => list.elements().iter().map(value_of).collect(),
        Field::Group(row) => object_of(row).into(),
        other => other.to_string().into(),
    }
}

/// A value that is no list and no object, as text.
fn scalar(value: &Value) -> Option<Cow<'_, str>> {
    Some(match value {
        Value::Null => Cow::Borrowed(""),
        Value::String(text) => Cow::Borrowed(text),
        Value::Bool(_) | Value::Number(_) => Cow::Owned(value.to_string()),
        Value::Array(_) | Value::Object(_) => return None,
    })
}

fn strings(items: &[Value]) -> Result<Vec<String>> {
    let texts = items.iter().map(|item| scalar(item).context("a list within a list"));
    let texts = texts.collect::<Result<Vec<_>>>()?;
    Ok(texts.iter().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()).collect())
}

fn csv_error(path: &str, error: csv::Error) -> anyhow::Error {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let line = pos.as_ref().map_or(0, csv::Position::line);
            anyhow!("{path}:{line}: the row has {len} cells, the header {expected_len}; is a quote or comma missing?")
        }
        _ => anyhow::Error::new(error).context(format!("{path}: cannot read")),
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
pub(crate) fn clip(cell: &str) -> String {
    let mut text: String = cell.chars().take(40).collect();
    if text.len() < cell.len() {
        text.push('…');
    }
    text
}
