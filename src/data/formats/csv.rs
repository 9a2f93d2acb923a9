//! CSV files: the header, its separator, and rows of its width.

use std::io::{self, BufRead};

use anyhow::{Context, Result, anyhow, ensure};
use memchr::memchr2;

use super::csv_records::{Error, Record, Records, Syntax};
use super::shared::{clip, refuse_duplicates, rejoined};
use super::signature;
use crate::config::data::Quoting;

/// The rows of a CSV file.
pub(super) struct CsvRows {
    path: String,
    records: Records,
    record: Record,
    width: usize,
    /// Columns with a name; those after them have none and must be empty.
    named: usize,
}

impl CsvRows {
    /// Reads the header; also gives the names of the columns.
    pub(super) fn open(path: &str, mut source: Box<dyn BufRead>, quoting: Quoting) -> Result<(Self, Vec<String>)> {
        let head = header(&mut *source, quoting).with_context(|| format!("{path}: cannot read"))?;
        let start = signature::without_mark(&head);
        // A spreadsheet's own way to say the separator.
        let declared = start.strip_prefix(b"sep=").filter(|rest| rest.get(1).is_none_or(|byte| b"\r\n".contains(byte)));
        let (skipped, delimiter) = match declared.and_then(|rest| rest.first()) {
            Some(&delimiter) => (true, delimiter),
            None => (false, delimiter(start, quoting)),
        };
        let syntax = Syntax { delimiter, quoting, breaks: breaks(start) };
        let mut records = Records::new(rejoined(start.to_owned(), source), syntax);
        let mut record = Record::default();
        let mut read = |record: &mut Record| records.read(record).map_err(|error| located(path, error));
        let is_header = (!skipped || read(&mut record)?) && read(&mut record)?;
        ensure!(is_header, "{path}: is empty, expected a header and rows");
        let columns = names(path, &record, records.line())?;
        let (width, named) = (record.len(), columns.len());
        ensure!(named > 0, "{path}: the columns have no names, expected a header");
        Ok((Self { path: path.to_owned(), records, record, width, named }, columns))
    }

    pub(super) fn advance(&mut self) -> Result<bool> {
        let width = self.width;
        if !self.records.read(&mut self.record).map_err(|error| located(&self.path, error))? {
            return Ok(false);
        }
        ensure!(
            self.record.len() == width,
            "{}:{}: the row has {} cells, the header {width}; {}",
            self.path,
            self.line(),
            self.record.len(),
            match width {
                1 => "if lines before the names of the columns hold a title or a comment, remove them",
                _ => "is a quote or separator missing?",
            }
        );
        for column in self.named..width {
            ensure!(
                self.record.cell(column).trim_ascii().is_empty(),
                "{}:{}: column {} has no name in the header, and holds `{}`; name it, or remove it",
                self.path,
                self.line(),
                column + 1,
                clip(&String::from_utf8_lossy(self.record.cell(column)))
            );
        }
        Ok(true)
    }

    /// Where the current row begins.
    pub(super) fn line(&self) -> u64 {
        self.records.line()
    }

    pub(super) fn text(&self, column: usize, name: &str) -> Result<&str> {
        std::str::from_utf8(self.record.cell(column))
            .map_err(|_| anyhow!("{}:{}: column `{name}` {}", self.path, self.line(), signature::NOT_UTF8))
    }
}

/// Follows quotes through a header before its separator is known.
struct HeaderQuotes {
    quoting: Quoting,
    is_quoted: bool,
    is_cell_start: bool,
}

impl HeaderQuotes {
    fn new(quoting: Quoting) -> Self {
        Self { quoting, is_quoted: false, is_cell_start: true }
    }

    /// Whether a byte stands outside of quotes.
    fn is_outside(&mut self, byte: u8) -> bool {
        if byte == b'"' && self.quoting == Quoting::Standard && (self.is_quoted || self.is_cell_start) {
            self.is_quoted = !self.is_quoted;
            // A doubled quote opens the cell again.
            self.is_cell_start = true;
            return false;
        }
        self.is_cell_start = b",\t;\r\n".contains(&byte);
        !self.is_quoted
    }
}

/// The bytes up to the end of the first line that is not blank.
fn header(source: &mut dyn BufRead, quoting: Quoting) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let (mut quotes, mut is_begun) = (HeaderQuotes::new(quoting), false);
    loop {
        let bytes = source.fill_buf()?;
        if bytes.is_empty() {
            return Ok(head);
        }
        // The mark is no part of the first name, which a quote may open.
        let mark = if head.is_empty() { bytes.len() - signature::without_mark(bytes).len() } else { 0 };
        let mut end = None;
        for (index, &byte) in bytes.iter().enumerate().skip(mark) {
            let is_break = quotes.is_outside(byte) && b"\r\n".contains(&byte);
            if is_break && is_begun {
                end = Some(index);
                break;
            }
            is_begun |= !is_break;
        }
        // The byte after the line tells `\r` from `\r\n`, if it has come.
        let count = end.map_or(bytes.len(), |index| (index + 2).min(bytes.len()));
        head.extend_from_slice(&bytes[..count]);
        source.consume(count);
        if end.is_some() {
            return Ok(head);
        }
    }
}

/// What separates the cells of a header: spreadsheets write semicolons in languages with decimal commas.
fn delimiter(head: &[u8], quoting: Quoting) -> u8 {
    let mut quotes = HeaderQuotes::new(quoting);
    let outside: Vec<u8> = head.iter().copied().filter(|&byte| quotes.is_outside(byte)).collect();
    [b',', b'\t', b';'].into_iter().find(|byte| outside.contains(byte)).unwrap_or(b',')
}

/// The byte that ends lines: `\r` only where no `\n` follows it.
fn breaks(head: &[u8]) -> u8 {
    let first = memchr2(b'\r', b'\n', head.trim_ascii_start()).map(|at| &head.trim_ascii_start()[at..]);
    match first {
        Some([b'\r', next, ..]) if *next != b'\n' => b'\r',
        _ => b'\n',
    }
}

/// The names of a header's columns, without those at the end that have none: spreadsheets write cells that
/// were once used.
fn names(path: &str, header: &Record, line: u64) -> Result<Vec<String>> {
    let mut columns = Vec::with_capacity(header.len());
    for index in 0..header.len() {
        let column = std::str::from_utf8(header.cell(index))
            .map_err(|_| anyhow!("{path}:{line}: the name of column {} {}", index + 1, signature::NOT_UTF8))?;
        columns.push(column.to_owned());
    }
    let named = columns.iter().rposition(|column| !column.is_empty()).map_or(0, |last| last + 1);
    columns.truncate(named);
    refuse_duplicates(&format!("{path}:{line}"), &columns)?;
    Ok(columns)
}

fn located(path: &str, error: Error) -> anyhow::Error {
    match error {
        Error::Quote(quote) => anyhow!("{path}:{}: {quote}", quote.opened),
        Error::Source(error) => anyhow::Error::new(error).context(format!("{path}: cannot read")),
    }
}
