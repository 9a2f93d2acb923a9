//! Streams rows from CSV, JSON and Parquet files; the extension selects the format.
//!
//! Each format is a reader of its own that gives typed [`Cell`]s. A file whose first bytes belong to another
//! format is refused by that format's name.

mod csv;
mod csv_records;
mod json;
mod json_objects;
mod json_values;
mod parquet;
mod piped;
mod shared;
mod signature;
mod surveys;
mod value;

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};

use self::csv::CsvRows;
use self::json::JsonRows;
use self::parquet::ParquetRows;
use self::piped::{Flow, Piped};
pub(crate) use self::shared::clip;
use self::shared::{HEAD, rejoined};
pub use self::value::{Cell, Value};
pub use crate::config::data::Quoting;
use crate::interrupt;

/// A file of rows, and the row that was read last.
pub struct Rows {
    path: String,
    columns: Vec<String>,
    source: Source,
    count: u64,
    absences: Vec<Absence>,
    /// Of a source that may pause.
    flow: Option<Flow>,
}

enum Source {
    Csv(CsvRows),
    Json(JsonRows),
    Parquet(ParquetRows),
}

/// How many rows lack a column, and where the first of them is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Absence {
    /// Rows without the key.
    pub count: usize,
    /// `path:line` of the first of them.
    pub location: String,
}

/// Bytes that are read at a time.
const BUFFER: usize = 1 << 16;
/// Rows between two looks at Ctrl-C.
const ROWS_PER_CHECK: u64 = 1024;

impl Rows {
    /// Opens a file: `.jsonl`, `.ndjson` and `.json` hold one JSON object a row or one array of them, `.parquet`
    /// is Parquet, all others are CSV with a header, separated by commas, tabs or semicolons. `-` is standard
    /// input, CSV or JSON.
    ///
    /// # Errors
    /// If the file cannot be read, is empty or of another format, or a column is named twice.
    pub fn open(path: &Path, quoting: Quoting) -> Result<Self> {
        let name = path.display().to_string();
        if name == "-" {
            static IS_READ: AtomicBool = AtomicBool::new(false);
            ensure!(
                !IS_READ.swap(true, Ordering::Relaxed),
                "-: standard input can be read only once; write the rows to a file and name that file (`train`, \
                 `prepare` and `eval --compare` read rows several times)"
            );
            return Self::stream(name, io::stdin(), quoting);
        }
        ensure!(!path.is_dir(), "{name}: is a directory, expected a file of rows");
        let file = File::open(path).with_context(|| format!("{name}: cannot open"))?;
        let is_regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
        let extension = path.extension().and_then(|ending| ending.to_str()).map(str::to_lowercase);
        match extension.as_deref() {
            _ if !is_regular => Self::stream(name, file, quoting),
            Some("parquet") => {
                let (source, columns) = ParquetRows::open(&name, file)?;
                Ok(Self::new(name, columns, Source::Parquet(source)))
            }
            Some("jsonl" | "ndjson" | "json") => {
                let source = recognised(&name, Box::new(BufReader::with_capacity(BUFFER, file)), "json")?;
                let survey = surveys::survey(path, || json::survey(&name, source))?;
                let columns = survey.keys.clone();
                let again = File::open(path).with_context(|| format!("{name}: cannot open"))?;
                let source = JsonRows::open(&name, Box::new(BufReader::with_capacity(BUFFER, again)), survey);
                Ok(Self::new(name, columns, Source::Json(source)))
            }
            _ => {
                let source = recognised(&name, Box::new(BufReader::with_capacity(BUFFER, file)), "csv")?;
                Self::csv(name, source, quoting)
            }
        }
    }

    /// A source that can be read only once: CSV or JSON, as its first character tells. The columns of JSON
    /// are the keys of its first rows.
    fn stream(name: String, source: impl Read + Send + 'static, quoting: Quoting) -> Result<Self> {
        let mut source = Piped::start(source).with_context(|| format!("{name}: cannot read"))?;
        let flow = source.flow();
        let mut head = source.peek(is_head).with_context(|| format!("{name}: cannot read"))?.to_vec();
        head.truncate(HEAD);
        let is_json = signature::without_mark(&head).trim_ascii_start().starts_with(b"{")
            || signature::is_json(signature::without_mark(&head));
        signature::refuse_other_formats(&name, &head, if is_json { "json" } else { "csv" })?;
        let rows = if is_json {
            let (source, columns) = JsonRows::open_stream(&name, Box::new(source), &flow)?;
            Self::new(name, columns, Source::Json(source))
        } else {
            Self::csv(name, Box::new(source), quoting)?
        };
        Ok(Self { flow: Some(flow), ..rows })
    }

    fn csv(name: String, source: Box<dyn BufRead>, quoting: Quoting) -> Result<Self> {
        let (source, columns) = CsvRows::open(&name, source, quoting)?;
        Ok(Self::new(name, columns, Source::Csv(source)))
    }

    fn new(path: String, columns: Vec<String>, source: Source) -> Self {
        let absences = vec![Absence::default(); columns.len()];
        Self { path, columns, source, count: 0, absences, flow: None }
    }

    /// The same rows with these columns alone, before the first is read. To leave out long texts saves most of the
    /// time; the cells of other columns are [`Cell::Missing`], but in a CSV file.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn only(mut self, columns: &[usize]) -> Result<Self> {
        self.source = match self.source {
            Source::Csv(source) => Source::Csv(source),
            Source::Json(mut source) => {
                source.keep_only(columns);
                Source::Json(source)
            }
            Source::Parquet(source) => Source::Parquet(source.only(columns)?),
        };
        Ok(self)
    }

    /// Names of the columns.
    #[must_use]
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The index of a column.
    ///
    /// # Errors
    /// If there is none of this name; the error lists those that are there.
    pub fn find(&self, wanted: &str) -> Result<usize> {
        self.columns.iter().position(|column| column == wanted).with_context(|| {
            let of = match &self.source {
                Source::Json(source) => source.describe_columns(),
                Source::Csv(_) | Source::Parquet(_) => "the file has",
            };
            format!("{}: no column `{wanted}`; {of} {}{}", self.path, quoted(&self.columns), self.other_separator())
        })
    }

    /// For errors of missing columns: what to do if the names hold a sign that may separate them, or the file is one
    /// object.
    #[must_use]
    pub fn other_separator(&self) -> String {
        match &self.source {
            Source::Csv(_) => {}
            Source::Json(source) => return source.describe_table().unwrap_or_default(),
            Source::Parquet(_) => return String::new(),
        }
        let signs = [(';', "`;`"), ('\t', "tabs"), ('|', "`|`"), ('^', "`^`"), ('~', "`~`")];
        let names = |sign: char| self.columns.iter().map(|name| name.matches(sign).count()).sum::<usize>();
        let found = signs.into_iter().find(|&(sign, _)| names(sign) + 1 > self.columns.len());
        found.map_or_else(String::new, |(_, sign)| {
            format!(
                "; if {sign} separates the cells, write the file with commas, tabs or semicolons, and put names that hold \
                 such a sign in quotes"
            )
        })
    }

    /// Whether the next row may be long in coming: a program on the other end of a pipe may wait for an answer.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        let is_ahead = matches!(&self.source, Source::Json(source) if source.is_ahead());
        !is_ahead && self.flow.as_ref().is_some_and(Flow::is_paused)
    }

    /// Reads the next row; false at the end.
    ///
    /// # Errors
    /// If it is malformed, or the user wants to stop.
    pub fn advance(&mut self) -> Result<bool> {
        self.count += 1;
        if self.count.is_multiple_of(ROWS_PER_CHECK) {
            interrupt::check()?;
        }
        match &mut self.source {
            Source::Csv(source) => source.advance(),
            Source::Parquet(source) => source.advance(),
            Source::Json(source) => {
                let is_row = source.advance()?;
                if is_row && source.lacks_keys() {
                    self.note_absences();
                }
                Ok(is_row)
            }
        }
    }

    fn note_absences(&mut self) {
        for column in 0..self.columns.len() {
            if matches!(self.cell(column), Ok(Cell::Missing)) {
                if self.absences[column].count == 0 {
                    self.absences[column].location = self.location();
                }
                self.absences[column].count += 1;
            }
        }
    }

    /// How many of the rows that were read lack this column, if any does. A null is there.
    #[must_use]
    pub fn absence(&self, column: usize) -> Option<&Absence> {
        self.absences.get(column).filter(|absence| absence.count > 0)
    }

    /// A warning for each of these columns that some of the rows lack, with what becomes of such rows.
    pub fn absence_warnings<'a>(&'a self, columns: &'a [usize], meaning: &'a str) -> impl Iterator<Item = String> + 'a {
        columns.iter().filter_map(move |&column| {
            let Absence { count, location } = self.absence(column)?;
            let (rows, lack) = if *count == 1 { ("row", "lacks") } else { ("rows", "lack") };
            let name = &self.columns[column];
            Some(format!("{}: {count} {rows} {lack} the key `{name}`, first {location}; {meaning}", self.path))
        })
    }

    /// A cell with its type. A CSV holds text alone.
    ///
    /// # Errors
    /// If it is not valid UTF-8.
    pub fn cell(&self, column: usize) -> Result<Cell<'_>> {
        match &self.source {
            Source::Csv(source) => source.text(column, &self.columns[column]).map(Cell::Text),
            Source::Json(source) => Ok(source.cell(column)),
            Source::Parquet(source) => Ok(source.cell(column)),
        }
    }

    /// A cell as text. What is missing or null is empty; [`Rows::absence`] tells one from the other.
    ///
    /// # Errors
    /// If it is not valid UTF-8, or a list or an object.
    pub fn text(&self, column: usize) -> Result<Cow<'_, str>> {
        self.cell(column)?.to_text().map_err(|found| {
            let way_out = match found {
                "a list of objects" if self.is_table() => {
                    "; if they are the rows, write that list alone into the file: it is one object now"
                }
                "an object" | "a list of objects" => {
                    "; `llmcls prepare` writes flat rows of nested exports, or write the field you need into a column \
                     of its own"
                }
                "bytes that are not UTF-8" => "; write the column as UTF-8 text",
                _ => "",
            };
            anyhow::anyhow!(
                "{}: column `{}` holds {found}, expected text{way_out}",
                self.location(),
                self.columns[column]
            )
        })
    }

    fn is_table(&self) -> bool {
        matches!(&self.source, Source::Json(source) if source.describe_table().is_some())
    }

    /// `path:line` of the current row, or its number in a Parquet file.
    #[must_use]
    pub fn location(&self) -> String {
        let line = match &self.source {
            Source::Csv(source) => source.line(),
            Source::Json(source) => source.line(),
            Source::Parquet(source) => source.row_number(),
        };
        format!("{}:{line}", self.path)
    }
}

/// Whether these bytes are enough to recognise a source by: [`HEAD`], or a line of text. A pipe may give a file in pieces of
/// any size, and may never give more than a line.
fn is_head(bytes: &[u8]) -> bool {
    const ENOUGH: usize = 64;
    bytes.len() >= HEAD || bytes.contains(&b'\n') && (bytes.len() >= ENOUGH || is_plain_text(bytes))
}

/// The first bytes of a file, [`HEAD`] at most.
fn head(source: &mut dyn BufRead) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !is_head(&head) {
        let bytes = source.fill_buf()?;
        let count = bytes.len().min(HEAD - head.len());
        if count == 0 {
            break;
        }
        head.extend_from_slice(&bytes[..count]);
        source.consume(count);
    }
    Ok(head)
}

/// Whether nothing here can belong to a format that is no text.
fn is_plain_text(bytes: &[u8]) -> bool {
    str::from_utf8(bytes).is_ok_and(|text| text.chars().all(|c| !c.is_control() || "\t\r\n".contains(c)))
}

/// The source, unless it begins as a file of another format than `expected`.
fn recognised(name: &str, mut source: Box<dyn BufRead>, expected: &str) -> Result<Box<dyn BufRead>> {
    let head = head(&mut *source).with_context(|| format!("{name}: cannot read"))?;
    signature::refuse_other_formats(name, &head, expected)?;
    Ok(rejoined(head, source))
}

fn quoted(names: &[String]) -> String {
    const SHOWN: usize = 30;
    let shown = |name: &String| format!("`{}`", clip(&visible(name)));
    let mut text = names.iter().take(SHOWN).map(shown).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

/// A name with signs that cannot be seen spelled out: `text` and `text` with a zero-width space look the same.
fn visible(name: &str) -> String {
    let is_hidden = |sign: char| {
        sign.is_control()
            || sign.is_whitespace() && sign != ' '
            || matches!(sign, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}' | '\u{feff}')
    };
    let mut text = String::new();
    for sign in name.chars() {
        match is_hidden(sign) {
            true => text.extend(sign.escape_default()),
            false => text.push(sign),
        }
    }
    text
}
