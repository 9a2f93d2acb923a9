//! Records of a CSV file, with the line in which each begins.
//!
//! The cells are those that the csv crate gives for a file whose quotes are in order, and a test compares the two.
//! The crate reads whatever it is given: a quote that is never closed takes the rest of the file into one cell, and
//! text after a closing quote is joined to it. Both would lose rows without a word, so both are errors here. To
//! check the quotes before the crate reads them would take half as long again as to read the cells in the same pass.

use std::fmt;
use std::io::{self, BufRead};

use memchr::{memchr, memchr_iter, memchr2, memchr3};

use super::shared::clip;
use crate::config::data::Quoting;

/// How a file separates its cells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Syntax {
    pub(super) delimiter: u8,
    pub(super) quoting: Quoting,
    /// The byte that ends lines, for their numbers: `\r` or `\n`. Either ends a record.
    pub(super) breaks: u8,
}

/// The cells of a record, end to end.
#[derive(Debug, Default)]
pub(super) struct Record {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Record {
    /// How many cells there are.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn cell(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start..self.ends[index]]
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    fn end_cell(&mut self) {
        self.ends.push(self.bytes.len());
    }
}

/// Why a record cannot be read.
#[derive(Debug)]
pub(super) enum Error {
    Source(io::Error),
    Quote(QuoteError),
}

/// The records of a source.
pub(super) struct Records {
    source: Box<dyn BufRead>,
    scanner: Scanner,
}

impl Records {
    pub(super) fn new(source: Box<dyn BufRead>, syntax: Syntax) -> Self {
        let state = State::RecordStart;
        Self { source, scanner: Scanner { syntax, state, line: 1, record_line: 1, opened: 0, has_quotes: false } }
    }

    /// Reads the next record; false at the end. Blank lines are none.
    pub(super) fn read(&mut self, record: &mut Record) -> Result<bool, Error> {
        record.clear();
        self.scanner.state = State::RecordStart;
        loop {
            let bytes = match self.source.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                bytes => bytes.map_err(Error::Source)?,
            };
            if bytes.is_empty() {
                return self.scanner.end_source(record).map_err(Error::Quote);
            }
            let (count, is_end) = self.scanner.take(bytes, record).map_err(Error::Quote)?;
            self.source.consume(count);
            if is_end {
                return Ok(true);
            }
        }
    }

    /// Where the record that was read last begins.
    #[expect(clippy::misnamed_getters, reason = "the line where the record begins")]
    pub(super) fn line(&self) -> u64 {
        self.scanner.record_line
    }
}

#[derive(Debug)]
struct Scanner {
    syntax: Syntax,
    state: State,
    /// Of the next record.
    line: u64,
    record_line: u64,
    /// Where in the record the last quoted cell begins.
    opened: usize,
    /// Whether a cell of the record is quoted: only such a cell holds line breaks.
    has_quotes: bool,
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

impl Scanner {
    /// Takes in bytes up to the end of the record; how many, and whether the record is complete.
    fn take(&mut self, bytes: &[u8], record: &mut Record) -> Result<(usize, bool), QuoteError> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            match self.state {
                // A blank line, or the second half of \r\n.
                State::RecordStart if matches!(byte, b'\r' | b'\n') => {
                    self.line += u64::from(byte == self.syntax.breaks);
                    at += 1;
                }
                State::RecordStart => {
                    self.record_line = self.line;
                    self.has_quotes = false;
                    self.state = State::CellStart;
                }
                State::CellStart if byte == b'"' && self.syntax.quoting == Quoting::Standard => {
                    self.opened = record.bytes.len();
                    self.has_quotes = true;
                    self.state = State::Quoted;
                    at += 1;
                }
                State::CellStart => self.state = State::Unquoted,
                State::Unquoted => {
                    let end = self.end_of_unquoted(&bytes[at..]).map(|offset| at + offset);
                    record.bytes.extend_from_slice(&bytes[at..end.unwrap_or(bytes.len())]);
                    let Some(end) = end else { return Ok((bytes.len(), false)) };
                    at = end + 1;
                    if self.end_cell(bytes[end], record) {
                        return Ok((at, true));
                    }
                }
                State::Quoted => {
                    let quote = memchr(b'"', &bytes[at..]).map(|offset| at + offset);
                    record.bytes.extend_from_slice(&bytes[at..quote.unwrap_or(bytes.len())]);
                    let Some(quote) = quote else { return Ok((bytes.len(), false)) };
                    at = quote + 1;
                    self.state = State::AfterQuote;
                }
                State::AfterQuote if byte == b'"' => {
                    record.bytes.push(byte);
                    at += 1;
                    self.state = State::Quoted;
                }
                State::AfterQuote if byte == self.syntax.delimiter || matches!(byte, b'\r' | b'\n') => {
                    at += 1;
                    if self.end_cell(byte, record) {
                        return Ok((at, true));
                    }
                }
                State::AfterQuote => return Err(self.text_after_quote(&bytes[at..], record)),
            }
        }
        Ok((at, false))
    }

    /// The next byte that ends a cell. A quote elsewhere than at a cell's start is a character: 5" disk.
    fn end_of_unquoted(&self, bytes: &[u8]) -> Option<usize> {
        /// Most cells are shorter than the search takes to start.
        const SHORT: usize = 16;
        let delimiter = self.syntax.delimiter;
        let is_end = |byte: &u8| *byte == delimiter || matches!(byte, b'\r' | b'\n');
        let short = bytes.iter().take(SHORT).position(is_end);
        let long = || memchr3(delimiter, b'\r', b'\n', bytes.get(SHORT..)?).map(|offset| SHORT + offset);
        short.or_else(long)
    }

    /// Ends a cell before this byte, and the record if the byte is a line break; whether it does.
    fn end_cell(&mut self, byte: u8, record: &mut Record) -> bool {
        record.end_cell();
        if byte == self.syntax.delimiter {
            self.state = State::CellStart;
            return false;
        }
        self.state = State::RecordStart;
        if self.has_quotes {
            self.line += self.count_lines(&record.bytes);
        }
        self.line += u64::from(byte == self.syntax.breaks);
        true
    }

    /// Whether a record ends with the source.
    fn end_source(&mut self, record: &mut Record) -> Result<bool, QuoteError> {
        match self.state {
            State::RecordStart => return Ok(false),
            State::CellStart | State::Unquoted | State::AfterQuote => record.end_cell(),
            State::Quoted => {
                return Err(QuoteError { opened: self.opened_line(record), closed: None, is_escaped: false });
            }
        }
        self.state = State::RecordStart;
        Ok(true)
    }

    fn text_after_quote(&self, rest: &[u8], record: &Record) -> QuoteError {
        let end = memchr2(b'\n', b'\r', rest).unwrap_or(rest.len()).min(100);
        let text = clip(&String::from_utf8_lossy(&rest[..end]));
        let line = self.record_line + self.count_lines(&record.bytes);
        let is_escaped = record.bytes[self.opened..].ends_with(b"\\");
        QuoteError { opened: self.opened_line(record), closed: Some((line, text)), is_escaped }
    }

    /// The line in which the last quote opened.
    fn opened_line(&self, record: &Record) -> u64 {
        self.record_line + self.count_lines(&record.bytes[..self.opened])
    }

    fn count_lines(&self, bytes: &[u8]) -> u64 {
        memchr_iter(self.syntax.breaks, bytes).count() as u64
    }
}

/// A quote that opens a cell and does not close it.
#[derive(Debug)]
pub(super) struct QuoteError {
    /// The line in which the quote opens.
    pub(super) opened: u64,
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
        f.write_str(" set data.quoting=none (`init` and `prepare`: --quoting none) to take quotes as characters")
    }
}

impl std::error::Error for QuoteError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::philox;

    fn read(bytes: &[u8], chunk: usize, syntax: Syntax) -> Result<Vec<Vec<Vec<u8>>>, Error> {
        let source = io::BufReader::with_capacity(chunk, io::Cursor::new(bytes.to_vec()));
        let mut records = Records::new(Box::new(source), syntax);
        let (mut record, mut all) = (Record::default(), Vec::new());
        while records.read(&mut record)? {
            all.push((0..record.len()).map(|index| record.cell(index).to_vec()).collect());
        }
        Ok(all)
    }

    fn read_by_crate(bytes: &[u8], syntax: Syntax) -> Vec<Vec<Vec<u8>>> {
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(syntax.delimiter)
            .quoting(syntax.quoting == Quoting::Standard)
            .has_headers(false)
            .flexible(true)
            .from_reader(bytes);
        reader.byte_records().map(|record| record.unwrap().iter().map(<[u8]>::to_vec).collect()).collect()
    }

    #[test]
    fn records_are_those_of_the_csv_crate_wherever_a_buffer_ends() {
        let mut read_in_all = 0;
        for number in 0..40_000 {
            let words: Vec<u32> = (0..6).flat_map(|block| philox([number, block, 0, 0], [7, 11])).collect();
            let bytes: Vec<u8> =
                words.iter().take(number as usize % 24).map(|word| b"aab,,;\"\"\n\r"[*word as usize % 10]).collect();
            let delimiter = [b',', b';'][number as usize % 2];
            let quoting = [Quoting::Standard, Quoting::Standard, Quoting::None][number as usize % 3];
            let syntax = Syntax { delimiter, quoting, breaks: b'\n' };
            let chunk = 1 + number as usize % 5;
            let Ok(records) = read(&bytes, chunk, syntax) else { continue };
            read_in_all += 1;
            assert_eq!(records, read_by_crate(&bytes, syntax), "{:?}", String::from_utf8_lossy(&bytes));
        }
        // Most of the others leave a quote open or have text after one.
        assert!(read_in_all > 10_000, "{read_in_all}");
    }
}
