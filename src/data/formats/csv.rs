//! CSV: the csv crate reads the cells; [`Records`] before it checks the quotes and counts the lines.
//!
//! The crate reads whatever it is given: a quote that is never closed takes the rest of the file into one cell,
//! and text after a closing quote is joined to it. Both would lose rows without a word.

use std::fmt;
use std::io::{self, BufRead, Read};

use anyhow::{Context, Result, anyhow, ensure};
use csv::{ByteRecord, Reader, ReaderBuilder};
use memchr::{memchr_iter, memchr2, memchr3};

use super::shared::{clip, refuse_duplicates, rejoined};
use super::signature;
use crate::config::data::Quoting;

/// The rows of a CSV file.
pub(super) struct CsvRows {
    path: String,
    reader: Reader<Records>,
    record: ByteRecord,
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
        let records = Records::new(rejoined(start.to_owned(), source), delimiter, quoting, breaks(start));
        let mut reader = ReaderBuilder::new()
            .delimiter(delimiter)
            .quoting(quoting == Quoting::Standard)
            .buffer_capacity(1 << 16)
            .has_headers(false)
            .flexible(true)
            .from_reader(records);
        let mut record = ByteRecord::new();
        let mut read =
            |record: &mut ByteRecord| reader.read_byte_record(record).map_err(|error| csv_error(path, error));
        let is_header = (!skipped || read(&mut record)?) && read(&mut record)?;
        ensure!(is_header, "{path}: is empty, expected a header and rows");
        let columns = names(path, &record, reader.get_ref().record_line)?;
        let (width, named) = (record.len(), columns.len());
        ensure!(named > 0, "{path}: the columns have no names, expected a header");
        Ok((Self { path: path.to_owned(), reader, record, width, named }, columns))
    }

    pub(super) fn advance(&mut self) -> Result<bool> {
        let width = self.width;
        if !self.reader.read_byte_record(&mut self.record).map_err(|error| csv_error(&self.path, error))? {
            return Ok(false);
        }
        ensure!(
            self.record.len() == width,
            "{}:{}: the row has {} cells, the header {width}; is a quote or separator missing?",
            self.path,
            self.line(),
            self.record.len()
        );
        for column in self.named..width {
            ensure!(
                self.record[column].trim_ascii().is_empty(),
                "{}:{}: column {} has no name in the header, and holds `{}`; name it, or remove it",
                self.path,
                self.line(),
                column + 1,
                clip(&String::from_utf8_lossy(&self.record[column]))
            );
        }
        Ok(true)
    }

    /// Where the current row begins.
    #[expect(clippy::misnamed_getters, reason = "`line` of the reader is where it has come to")]
    pub(super) fn line(&self) -> u64 {
        self.reader.get_ref().record_line
    }

    pub(super) fn text(&self, column: usize, name: &str) -> Result<&str> {
        std::str::from_utf8(&self.record[column])
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

    /// Returns true if a byte is outside quotes.
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

/// Finds the delimiter of a header: spreadsheets write semicolons in languages with decimal commas.
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
fn names(path: &str, header: &ByteRecord, line: u64) -> Result<Vec<String>> {
    let mut columns = Vec::with_capacity(header.len());
    for (index, column) in header.iter().enumerate() {
        let column = std::str::from_utf8(column)
            .map_err(|_| anyhow!("{path}:{line}: the name of column {} {}", index + 1, signature::NOT_UTF8))?;
        columns.push(column.to_owned());
    }
    let named = columns.iter().rposition(|column| !column.is_empty()).map_or(0, |last| last + 1);
    columns.truncate(named);
    refuse_duplicates(&format!("{path}:{line}"), &columns)?;
    Ok(columns)
}

/// Hands out one record at a time, so that the line of the record that the reader has is known, and only
/// records whose quotes are in order.
struct Records {
    source: Box<dyn BufRead>,
    delimiter: u8,
    quoting: Quoting,
    breaks: u8,
    state: State,
    /// Line of the next byte.
    line: u64,
    record_line: u64,
    /// Where the last quote opened.
    opened: u64,
    after_return: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    RecordStart,
    CellStart,
    Unquoted,
    Quoted,
    /// After a quote within a quoted cell: the cell ends, or the next quote makes the two one.
    AfterQuote,
}

impl Records {
    fn new(source: Box<dyn BufRead>, delimiter: u8, quoting: Quoting, breaks: u8) -> Self {
        Self {
            source,
            delimiter,
            quoting,
            breaks,
            state: State::RecordStart,
            line: 1,
            record_line: 1,
            opened: 0,
            after_return: false,
        }
    }

    fn count_lines(&mut self, bytes: &[u8], counted: &mut usize, end: usize) {
        self.line += memchr_iter(self.breaks, &bytes[*counted..end]).count() as u64;
        *counted = end;
    }

    /// Counts the leading bytes, at least one, that belong to the current record.
    fn scan(&mut self, bytes: &[u8]) -> Result<usize, QuoteError> {
        let mut at = 0;
        // Lines are counted where a number is needed, not at each quote.
        let mut counted = 0;
        if self.state == State::RecordStart {
            if std::mem::take(&mut self.after_return) && bytes[0] == b'\n' {
                at = 1;
                self.count_lines(bytes, &mut counted, at);
            }
            self.record_line = self.line;
            self.state = State::CellStart;
        }
        while at < bytes.len() {
            match self.state {
                State::RecordStart => break,
                State::CellStart if bytes[at] == b'"' && self.quoting == Quoting::Standard => {
                    self.count_lines(bytes, &mut counted, at);
                    self.opened = self.line;
                    self.state = State::Quoted;
                    at += 1;
                }
                State::CellStart | State::Unquoted => at = self.scan_unquoted(bytes, at),
                State::Quoted => at = self.scan_quoted(bytes, at),
                State::AfterQuote => match bytes[at] {
                    // The second of two quotes, at the start of these bytes.
                    b'"' => {
                        self.state = State::Quoted;
                        at += 1;
                    }
                    byte if byte == self.delimiter => {
                        self.state = State::CellStart;
                        at += 1;
                    }
                    b'\r' | b'\n' => at = self.end_record(bytes, at),
                    _ => {
                        self.count_lines(bytes, &mut counted, at);
                        return Err(self.text_after_quote(bytes, at));
                    }
                },
            }
        }
        self.count_lines(bytes, &mut counted, at);
        Ok(at)
    }

    /// Goes on after the quote that closes a cell, or to the end of the bytes.
    fn scan_quoted(&mut self, bytes: &[u8], start: usize) -> usize {
        let mut quotes = memchr_iter(b'"', &bytes[start..]);
        while let Some(offset) = quotes.next() {
            let after = start + offset + 1;
            if bytes.get(after) == Some(&b'"') {
                // Two quotes are one in the text.
                quotes.next();
                continue;
            }
            self.state = State::AfterQuote;
            return after;
        }
        bytes.len()
    }

    /// Goes on to a quote that opens a cell, or to the end of the record or of the bytes.
    fn scan_unquoted(&mut self, bytes: &[u8], start: usize) -> usize {
        let mut at = start;
        loop {
            let rest = &bytes[at..];
            let offset = match self.quoting {
                Quoting::Standard => memchr3(b'\n', b'\r', b'"', rest),
                Quoting::None => memchr2(b'\n', b'\r', rest),
            };
            let Some(offset) = offset else {
                self.state = match bytes.last() {
                    Some(&byte) if byte == self.delimiter => State::CellStart,
                    _ => State::Unquoted,
                };
                return bytes.len();
            };
            let found = at + offset;
            if bytes[found] != b'"' {
                return self.end_record(bytes, found);
            }
            // Elsewhere in a cell a quote is a character: 5" disk.
            if found > start && bytes[found - 1] == self.delimiter {
                self.state = State::CellStart;
                return found;
            }
            at = found + 1;
        }
    }

    fn end_record(&mut self, bytes: &[u8], at: usize) -> usize {
        self.after_return = bytes[at] == b'\r';
        self.state = State::RecordStart;
        at + 1
    }

    fn text_after_quote(&self, bytes: &[u8], at: usize) -> QuoteError {
        let (before, rest) = bytes.split_at(at);
        let end = memchr2(b'\n', b'\r', rest).unwrap_or(rest.len()).min(100);
        let text = clip(&String::from_utf8_lossy(&rest[..end]));
        QuoteError { opened: self.opened, closed: Some((self.line, text)), is_escaped: before.ends_with(b"\\\"") }
    }
}

impl Read for Records {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        // The scan needs all of self, and the buffer is part of it.
        let mut source = std::mem::replace(&mut self.source, Box::new(io::empty()));
        let result = self.read_from(&mut *source, out);
        self.source = source;
        result
    }
}

impl Records {
    fn read_from(&mut self, source: &mut dyn BufRead, out: &mut [u8]) -> io::Result<usize> {
        let bytes = source.fill_buf()?;
        let bytes = &bytes[..bytes.len().min(out.len())];
        if bytes.is_empty() {
            return match self.state {
                State::Quoted => {
                    let error = QuoteError { opened: self.opened, closed: None, is_escaped: false };
                    Err(io::Error::new(io::ErrorKind::InvalidData, error))
                }
                _ => Ok(0),
            };
        }
        let count = self.scan(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        out[..count].copy_from_slice(&bytes[..count]);
        source.consume(count);
        Ok(count)
    }
}

/// A quote that opens a cell and does not close it.
#[derive(Debug)]
struct QuoteError {
    opened: u64,
    /// Line and text of what follows the closing quote; none: the file ends first.
    closed: Option<(u64, String)>,
    is_escaped: bool,
}

impl fmt::Display for QuoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.closed {
            None => f.write_str("the quote that opens a cell in this line is never closed")?,
            Some((line, text)) if *line == self.opened => {
                write!(f, "text follows the quote that closes a cell: `{text}`")?;
            }
            Some((line, text)) => write!(
                f,
                "the quote that opens a cell in this line is closed in line {line}, where text follows it: `{text}`"
            )?,
        }
        match self.is_escaped {
            true => f.write_str(
                "; a quote within a quoted cell is written twice (\"\"), not with a backslash (\\\"): write the file \
                 again so, or",
            )?,
            false => {
                f.write_str("; close it, and write quotes within the cell twice (\"\"). If the file has no quoting,")?;
            }
        }
        f.write_str(" set data.quoting=none (`prepare`: --quoting none) to take quotes as characters")
    }
}

impl std::error::Error for QuoteError {}

fn csv_error(path: &str, error: csv::Error) -> anyhow::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<QuoteError>()) {
            Some(quote) => anyhow!("{path}:{}: {quote}", quote.opened),
            None => anyhow::Error::new(error).context(format!("{path}: cannot read")),
        },
        kind => anyhow!("{path}: cannot read: {kind:?}"),
    }
}
