//! The objects of a JSON source, each as text.

use std::io::BufRead;

use anyhow::{Context, Result, anyhow, bail, ensure};
use memchr::{memchr, memchr_iter, memchr2, memmem};

use super::json_values::{ReadObject, read_object};
use super::signature;

/// The objects of a source, as text.
pub(super) struct Objects {
    pub(super) path: String,
    source: Box<dyn BufRead>,
    form: Form,
    /// The current object.
    pub(super) text: Vec<u8>,
    /// Where it begins.
    pub(super) start: u64,
    /// Of the next byte.
    line: u64,
    /// Objects of an array so far.
    count: usize,
    /// Whether the text of an object is wanted when it was read.
    pub(super) keeps_text: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Unknown,
    /// One after the other, usually one a line.
    Lines,
    Array,
    /// The array is closed.
    Ended,
}

impl Objects {
    pub(super) fn new(path: &str, source: Box<dyn BufRead>) -> Self {
        Self {
            path: path.to_owned(),
            source,
            form: Form::Unknown,
            text: Vec::new(),
            start: 1,
            line: 1,
            count: 0,
            keeps_text: false,
        }
    }

    /// Reads the next object, and gives the number of its keys; none at the end.
    pub(super) fn read<V: ReadObject>(&mut self, target: &mut V) -> Result<Option<usize>> {
        self.text.clear();
        if self.form == Form::Unknown {
            self.form = match self.next_byte()? {
                Some(b'[') => {
                    self.source.consume(1);
                    Form::Array
                }
                _ => Form::Lines,
            };
        }
        match self.form {
            Form::Array => self.read_in_array(target),
            Form::Ended => self.end(),
            Form::Unknown | Form::Lines => self.read_in_lines(target),
        }
    }

    /// Whether no object follows the current one.
    pub(super) fn is_last(&mut self) -> Result<bool> {
        Ok(match self.next_byte()? {
            None => true,
            Some(byte) => self.form == Form::Array && byte == b']',
        })
    }

    /// The next byte that is no white space, which stays where it is.
    fn next_byte(&mut self) -> Result<Option<u8>> {
        loop {
            let bytes = self.source.fill_buf().with_context(|| format!("{}:{}: cannot read", self.path, self.line))?;
            if bytes.is_empty() {
                return Ok(None);
            }
            // A mark may stand at the start of the file, or of each of several that were joined.
            let blank = bytes.iter().take_while(|byte| byte.is_ascii_whitespace() || b"\xef\xbb\xbf".contains(byte));
            let blank = blank.count();
            self.line += bytes[..blank].iter().filter(|&&byte| byte == b'\n').count() as u64;
            let found = bytes.get(blank).copied();
            self.source.consume(blank);
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    fn read_in_lines<V: ReadObject>(&mut self, target: &mut V) -> Result<Option<usize>> {
        if self.next_byte()?.is_none() {
            return Ok(None);
        }
        self.start = self.line;
        if let Some(found) = self.read_in_place(target, |bytes| memchr(b'\n', bytes).map(|end| end + 1))? {
            return Ok(Some(found));
        }
        let mut nesting = Nesting::default();
        loop {
            let before = self.text.len();
            if !self.read_line()? {
                bail!("{}:{}: not a JSON object: the file ends before it is closed", self.path, self.start);
            }
            if before == 0 && self.text.trim_ascii_end().ends_with(b"}") {
                match read_object(&self.text, target) {
                    Ok(found) => return Ok(Some(found)),
                    Err(error) if error.is_eof() => target.forget(),
                    Err(_) => {
                        target.forget();
                        return self.read_text(target).map(Some);
                    }
                }
            }
            let is_ended = nesting.end(&self.text[before..]).is_some();
            // A string with a line break lacks its closing quote: the error is in this line.
            if is_ended || nesting.depth == 0 || nesting.has_break {
                return self.read_text(target).map(Some);
            }
        }
    }

    /// Adds the rest of the line to the text; false at the end of the file.
    fn read_line(&mut self) -> Result<bool> {
        let before = self.text.len();
        loop {
            let bytes = self.source.fill_buf().with_context(|| format!("{}:{}: cannot read", self.path, self.line))?;
            let end = memchr(b'\n', bytes).map(|end| end + 1);
            let count = end.unwrap_or(bytes.len());
            self.text.extend_from_slice(&bytes[..count]);
            self.source.consume(count);
            self.line += u64::from(end.is_some());
            if end.is_some() || count == 0 {
                return Ok(self.text.len() > before);
            }
        }
    }

    /// Reads an object where it stands, without a copy, if the buffer holds it up to what `end` finds. Gives nothing
    /// and takes nothing away otherwise, or if the object is not as most are.
    fn read_in_place<V: ReadObject>(
        &mut self,
        target: &mut V,
        end: impl FnOnce(&[u8]) -> Option<usize>,
    ) -> Result<Option<usize>> {
        if self.keeps_text {
            return Ok(None);
        }
        let bytes = self.source.fill_buf().with_context(|| format!("{}:{}: cannot read", self.path, self.line))?;
        let Some(end) = end(bytes) else { return Ok(None) };
        let text = &bytes[..end];
        if !text.trim_ascii_end().ends_with(b"}") {
            return Ok(None);
        }
        match read_object(text, target) {
            Ok(found) => {
                self.line += memchr_iter(b'\n', text).count() as u64;
                self.source.consume(end);
                Ok(Some(found))
            }
            Err(_) => {
                target.forget();
                Ok(None)
            }
        }
    }

    fn read_in_array<V: ReadObject>(&mut self, target: &mut V) -> Result<Option<usize>> {
        let mut next = self.next_byte()?;
        if self.count > 0 && next == Some(b',') {
            self.source.consume(1);
            next = self.next_byte()?;
            ensure!(next != Some(b']'), "{}:{}: a comma before the end of the array", self.path, self.line);
        } else {
            let is_due = self.count == 0 || next.is_none() || next == Some(b']');
            ensure!(is_due, "{}:{}: expected a comma or ] after an object of the array", self.path, self.line);
        }
        self.start = self.line;
        match next {
            None => bail!("{}:{}: the file ends before its array is closed with ]", self.path, self.line),
            Some(b']') => {
                self.source.consume(1);
                self.form = Form::Ended;
                return self.end();
            }
            Some(b'{') => {}
            Some(_) => bail!(
                "{}:{}: item {} of the array is not an object, expected a row such as {{\"text\": \"…\"}}; of a pandas \
                 table, to_json(orient=\"records\") writes rows",
                self.path,
                self.line,
                self.count + 1
            ),
        }
        if let Some(found) = self.read_in_place(target, |bytes| Nesting::default().end(bytes))? {
            self.count += 1;
            return Ok(Some(found));
        }
        let mut nesting = Nesting::default();
        loop {
            let bytes = self.source.fill_buf().with_context(|| format!("{}:{}: cannot read", self.path, self.line))?;
            ensure!(
                !bytes.is_empty(),
                "{}:{}: not a JSON object: the file ends before it is closed",
                self.path,
                self.start
            );
            let end = nesting.end(bytes);
            let count = end.unwrap_or(bytes.len());
            self.line += memchr_iter(b'\n', &bytes[..count]).count() as u64;
            self.text.extend_from_slice(&bytes[..count]);
            self.source.consume(count);
            if end.is_some() {
                self.count += 1;
                return self.read_text(target).map(Some);
            }
        }
    }

    fn end(&mut self) -> Result<Option<usize>> {
        ensure!(self.next_byte()?.is_none(), "{}:{}: text after the end of the array", self.path, self.line);
        Ok(None)
    }

    /// Reads the current object.
    pub(super) fn read_text<V: ReadObject>(&mut self, target: &mut V) -> Result<usize> {
        let mut result = read_object(&self.text, target);
        while result.is_err() && target.wants_another_try() {
            target.forget();
            result = read_object(&self.text, target);
        }
        // Python writes numbers that JSON does not have.
        if result.is_err() && spell_null(&mut self.text) {
            target.forget();
            return self.read_text(target);
        }
        result.map_err(|error| self.broken(&error))
    }

    /// What to do about an error of the parser.
    fn way_out(&self, error: &str) -> &'static str {
        match () {
            () if error.contains("hex escape") || error.contains("surrogate") => {
                "; a text holds half of a character (a lone \\ud83d or the like), as cutting it leaves: remove that half"
            }
            () if error.contains("trailing characters") => {
                "; write each object on a line of its own, without commas between, or all in one array [...]"
            }
            () if self.text.trim_ascii_start().starts_with(b"{'") => {
                "; it looks like a dictionary as Python prints it: write it with json.dumps"
            }
            () => "",
        }
    }

    fn broken(&self, error: &serde_json::Error) -> anyhow::Error {
        let Self { path, start, .. } = self;
        let line = *start + (error.line() as u64).max(1) - 1;
        let text = error.to_string();
        let text = match text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text) {
            "expected ident" => "expected true, false or null",
            text => text,
        };
        let opened = if line == *start { String::new() } else { format!(" that begins in line {start}") };
        let location = format!("{path}:{line}");
        if std::str::from_utf8(&self.text).is_err() {
            return anyhow!("{location}: the row {}", signature::NOT_UTF8);
        }
        match error.classify() {
            serde_json::error::Category::Eof => {
                anyhow!("{path}:{start}: not a JSON object: {text}")
            }
            _ => {
                let (column, way_out) = (error.column(), self.way_out(text));
                anyhow!("{location}: not a JSON object{opened}: {text} (column {column}){way_out}")
            }
        }
    }
}

/// How deep in an object the bytes so far end.
#[derive(Debug, Default)]
struct Nesting {
    depth: usize,
    is_string: bool,
    is_escaped: bool,
    /// Whether a string holds a line break, which JSON does not allow.
    has_break: bool,
}

impl Nesting {
    /// How many of the bytes belong to the object, if it ends among them.
    fn end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            let byte = bytes[at];
            if self.is_string {
                if self.is_escaped {
                    self.is_escaped = false;
                    at += 1;
                    continue;
                }
                let Some(offset) = memchr2(b'"', b'\\', &bytes[at..]) else {
                    self.has_break |= bytes[at..].contains(&b'\n');
                    return None;
                };
                self.has_break |= bytes[at..at + offset].contains(&b'\n');
                at += offset;
                match bytes[at] {
                    b'"' => self.is_string = false,
                    _ => self.is_escaped = true,
                }
            } else {
                match byte {
                    b'"' => self.is_string = true,
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' => {
                        self.depth = self.depth.saturating_sub(1);
                        if self.depth == 0 {
                            return Some(at + 1);
                        }
                    }
                    _ => {}
                }
            }
            at += 1;
        }
        None
    }
}

/// Replaces NaN and infinity by null; false if there are none.
fn spell_null(text: &mut Vec<u8>) -> bool {
    const WORDS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    if memmem::find(text, b"NaN").is_none() && memmem::find(text, b"Infinity").is_none() {
        return false;
    }
    let mut out = Vec::with_capacity(text.len());
    let (mut is_string, mut at) = (false, 0);
    while at < text.len() {
        let rest = &text[at..];
        if !is_string && let Some(word) = WORDS.iter().find(|word| rest.starts_with(word)) {
            out.extend_from_slice(b"null");
            at += word.len();
            continue;
        }
        match rest[0] {
            b'\\' if is_string && rest.len() > 1 => {
                out.push(rest[0]);
                at += 1;
            }
            b'"' => is_string = !is_string,
            _ => {}
        }
        out.push(text[at]);
        at += 1;
    }
    let is_changed = out != *text;
    *text = out;
    is_changed
}
