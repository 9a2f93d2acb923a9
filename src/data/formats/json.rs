//! JSON: one object a line, objects over several lines, or one array of objects.
//!
//! Columns are the keys of all rows, in the order in which they first appear. Of a source that can be read
//! only once they are the keys of its first rows.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::BufRead;

use anyhow::{Context, Result, anyhow, bail, ensure};
use memchr::{memchr, memchr_iter, memchr2, memmem};
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Deserializer;
use serde_json::value::RawValue;

use super::piped::Flow;
use super::shared::clip;
use super::signature;
use super::value::{Cell, Value};
use crate::interrupt;

/// The rows of a JSON file or stream.
pub(super) struct JsonRows {
    objects: Objects,
    /// Rows of a stream that were read to learn their keys, with their lines.
    ahead: VecDeque<(u64, Vec<u8>)>,
    is_stream: bool,
    /// See [`Survey::table`].
    table: Option<String>,
    keys: Keys,
    values: Values,
    lacks_keys: bool,
    line: u64,
}

/// Rows of a stream that are read ahead.
const ROWS_AHEAD: usize = 1000;
/// Bytes of a stream that are read ahead, and no further row.
const BYTES_AHEAD: usize = 1 << 24;

/// What reading a file through tells of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Survey {
    /// The keys of all rows.
    pub(super) keys: Vec<String>,
    /// Where the file is a single object: its key that may hold the rows.
    pub(super) table: Option<String>,
}

/// Reads a file through.
pub(super) fn survey(path: &str, source: Box<dyn BufRead>) -> Result<Survey> {
    const ROWS_PER_CHECK: u64 = 1024;
    let mut objects = Objects::new(path, source);
    let (mut keys, mut table) = (Keys::default(), None);
    let mut count = 0;
    objects.keeps_text = true;
    while objects.read(&mut CollectKeys(&mut keys))?.is_some() {
        count += 1;
        if count % ROWS_PER_CHECK == 0 {
            interrupt::check()?;
        }
        if count == 1 && objects.is_last()? {
            table = find_table(&objects)?;
        }
        objects.keeps_text = false;
    }
    ensure!(count > 0, "{path}: is empty, expected JSON objects, one a row");
    ensure!(!keys.names.is_empty(), "{path}: the objects have no keys");
    Ok(Survey { keys: keys.names, table })
}

impl JsonRows {
    /// Reads the rows of a file whose survey is at hand.
    pub(super) fn open(path: &str, source: Box<dyn BufRead>, survey: Survey) -> Self {
        let objects = Objects::new(path, source);
        Self { table: survey.table, ..Self::new(objects, Keys::new(survey.keys), VecDeque::new(), false) }
    }

    /// Reads the first rows for their keys, which are the columns: no more than come without a pause.
    pub(super) fn open_stream(path: &str, source: Box<dyn BufRead>, flow: &Flow) -> Result<(Self, Vec<String>)> {
        let mut objects = Objects::new(path, source);
        let (mut keys, mut ahead, mut size, mut table) = (Keys::default(), VecDeque::new(), 0, None);
        objects.keeps_text = true;
        while ahead.len() < ROWS_AHEAD && size < BYTES_AHEAD && objects.read(&mut CollectKeys(&mut keys))?.is_some() {
            let is_paused = flow.is_paused();
            if ahead.is_empty() && !is_paused && objects.is_last()? {
                table = find_table(&objects)?;
            }
            size += objects.text.len();
            ahead.push_back((objects.start, objects.text.clone()));
            if is_paused {
                break;
            }
        }
        ensure!(!ahead.is_empty(), "{path}: is empty, expected JSON objects, one a row");
        ensure!(!keys.names.is_empty(), "{path}: the objects have no keys");
        let columns = keys.names.clone();
        objects.keeps_text = false;
        Ok((Self { table, ..Self::new(objects, keys, ahead, true) }, columns))
    }

    fn new(objects: Objects, keys: Keys, ahead: VecDeque<(u64, Vec<u8>)>, is_stream: bool) -> Self {
        let values = Values::new(keys.names.len());
        Self { objects, ahead, is_stream, table: None, keys, values, lacks_keys: false, line: 0 }
    }

    /// Reads these columns alone from now on.
    pub(super) fn keep_only(&mut self, columns: &[usize]) {
        for (column, slot) in self.values.slots.iter_mut().enumerate() {
            slot.is_wanted = columns.contains(&column);
        }
    }

    /// Whether rows were read that were not asked for yet.
    pub(super) fn is_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// For errors of columns: what to do if the file is one object that holds the rows.
    pub(super) fn describe_table(&self) -> Option<String> {
        let key = clip(self.table.as_ref()?);
        Some(format!(
            "; the file is one object, and its `{key}` holds a list of objects: if they are the rows, write that list alone"
        ))
    }

    /// Begins the list of columns in an error.
    pub(super) fn describe_columns(&self) -> &'static str {
        if self.is_stream { "its first rows have" } else { "the file has" }
    }

    pub(super) fn advance(&mut self) -> Result<bool> {
        self.values.begin();
        let mut target = ReadValues { keys: &self.keys, values: &mut self.values, has_found_raw: false };
        let found = match self.ahead.pop_front() {
            Some((line, text)) => {
                self.objects.start = line;
                self.objects.text = text;
                Some(self.objects.read_text(&mut target)?)
            }
            None => self.objects.read(&mut target)?,
        };
        let Some(found) = found else { return Ok(false) };
        self.line = self.objects.start;
        self.lacks_keys = found < self.keys.names.len();
        Ok(true)
    }

    /// Whether the current row lacks a key that others have.
    pub(super) fn lacks_keys(&self) -> bool {
        self.lacks_keys
    }

    pub(super) fn cell(&self, column: usize) -> Cell<'_> {
        self.values.cell(column)
    }

    /// Where the current row begins.
    pub(super) fn line(&self) -> u64 {
        self.line
    }
}

/// The objects of a source, as text.
struct Objects {
    path: String,
    source: Box<dyn BufRead>,
    form: Form,
    /// The current object.
    text: Vec<u8>,
    /// Where it begins.
    start: u64,
    /// Of the next byte.
    line: u64,
    /// Objects of an array so far.
    count: usize,
    /// Whether the text of an object is wanted when it was read.
    keeps_text: bool,
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
    fn new(path: &str, source: Box<dyn BufRead>) -> Self {
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
    fn read<V: ReadObject>(&mut self, target: &mut V) -> Result<Option<usize>> {
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
    fn is_last(&mut self) -> Result<bool> {
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
    fn read_text<V: ReadObject>(&mut self, target: &mut V) -> Result<usize> {
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
        let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
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

/// The columns, and their indices.
#[derive(Debug, Default)]
struct Keys {
    names: Vec<String>,
    indices: HashMap<String, usize>,
}

impl Keys {
    fn new(names: Vec<String>) -> Self {
        let indices = names.iter().cloned().zip(0..).collect();
        Self { names, indices }
    }

    /// Rows mostly have the same keys in the same order.
    fn find(&self, key: &str, guess: usize) -> Option<usize> {
        match self.names.get(guess) {
            Some(name) if name == key => Some(guess),
            _ => self.indices.get(key).copied(),
        }
    }
}

/// What is made of an object.
trait ReadObject {
    /// Takes a key, the `index`-th of its object, and the value that follows.
    fn entry<'de, A: MapAccess<'de>>(&mut self, key: &str, index: usize, map: &mut A) -> Result<(), A::Error>;

    /// Forgets what was read of a broken object.
    fn forget(&mut self);

    /// Whether it failed only because a value has to be read as text. Asked once a failure.
    fn wants_another_try(&mut self) -> bool {
        false
    }
}

struct CollectKeys<'a>(&'a mut Keys);

impl ReadObject for CollectKeys<'_> {
    fn entry<'de, A: MapAccess<'de>>(&mut self, key: &str, index: usize, map: &mut A) -> Result<(), A::Error> {
        if self.0.find(key, index).is_none() {
            self.0.indices.insert(key.to_owned(), self.0.names.len());
            self.0.names.push(key.to_owned());
        }
        map.next_value::<IgnoredAny>().map(drop)
    }

    fn forget(&mut self) {}
}

/// The values of a row, in memory that the rows before it have used.
struct Values {
    slots: Vec<Slot>,
    /// Counts the objects that were begun.
    object: u64,
}

struct Slot {
    value: Value,
    /// The object that the value is of.
    object: u64,
    is_wanted: bool,
    /// Whether its values are taken as text first, which is slower and keeps large numbers and objects as they are.
    is_raw: bool,
}

impl Values {
    fn new(count: usize) -> Self {
        let slot = || Slot { value: Value::Missing, object: 0, is_wanted: true, is_raw: false };
        Self { slots: std::iter::repeat_with(slot).take(count).collect(), object: 0 }
    }

    fn begin(&mut self) {
        self.object += 1;
    }

    fn cell(&self, column: usize) -> Cell<'_> {
        let slot = &self.slots[column];
        if slot.object == self.object { slot.value.cell() } else { Cell::Missing }
    }
}

struct ReadValues<'a> {
    keys: &'a Keys,
    values: &'a mut Values,
    /// Whether a column was just found to need its text.
    has_found_raw: bool,
}

impl ReadObject for ReadValues<'_> {
    fn entry<'de, A: MapAccess<'de>>(&mut self, key: &str, index: usize, map: &mut A) -> Result<(), A::Error> {
        let Some(column) = self.keys.find(key, index) else { return map.next_value::<IgnoredAny>().map(drop) };
        let object = self.values.object;
        let slot = &mut self.values.slots[column];
        if slot.object == object {
            return Err(A::Error::custom(format!("the key `{}` occurs twice", clip(key))));
        }
        slot.object = object;
        if !slot.is_wanted {
            return map.next_value::<IgnoredAny>().map(drop);
        }
        if slot.is_raw {
            slot.value = Value::of_json(map.next_value::<&RawValue>()?.get())
                .map_err(|error| A::Error::custom(format!("`{}`: {error}", clip(key))))?;
            return Ok(());
        }
        let read = map.next_value_seed(PlainValue { value: &mut slot.value, is_raw: &mut slot.is_raw });
        self.has_found_raw |= slot.is_raw;
        read
    }

    fn forget(&mut self) {
        self.values.begin();
    }

    fn wants_another_try(&mut self) -> bool {
        std::mem::take(&mut self.has_found_raw)
    }
}

/// Reads all values but objects and large numbers; those set the flag and fail.
struct PlainValue<'a> {
    value: &'a mut Value,
    is_raw: &'a mut bool,
}

impl PlainValue<'_> {
    fn number(self, number: impl fmt::Display) {
        *self.value = Value::Integer(number.to_string());
    }
}

impl<'de> DeserializeSeed<'de> for PlainValue<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for PlainValue<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        *self.value = Value::Null;
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        *self.value = Value::Bool(value);
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.number(value);
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.number(value);
        Ok(())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        // Larger ones may be integers whose digits do not fit.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        if value.abs() < EXACT {
            *self.value = Value::Float(serde_json::Value::from(value).to_string());
            return Ok(());
        }
        *self.is_raw = true;
        Err(E::custom("a large number"))
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        match self.value {
            Value::Text(before) => {
                before.clear();
                before.push_str(text);
            }
            other => *other = Value::Text(text.to_owned()),
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        if !matches!(self.value, Value::List(_)) {
            *self.value = Value::List(Vec::new());
        }
        let Value::List(list) = self.value else { return Ok(()) };
        let mut count = 0;
        loop {
            if count == list.len() {
                list.push(Value::Missing);
            }
            let item = PlainValue { value: &mut list[count], is_raw: &mut *self.is_raw };
            if items.next_element_seed(item)?.is_none() {
                list.truncate(count);
                return Ok(());
            }
            count += 1;
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        *self.is_raw = true;
        Err(A::Error::custom("an object"))
    }
}

/// Reads an object, and gives the number of its keys.
fn read_object<V: ReadObject>(text: &[u8], target: &mut V) -> serde_json::Result<usize> {
    let mut deserializer = Deserializer::from_slice(text);
    let count = serde::Deserializer::deserialize_map(&mut deserializer, Object(target))?;
    deserializer.end()?;
    Ok(count)
}

struct Object<'a, V>(&'a mut V);

impl<'de, V: ReadObject> Visitor<'de> for Object<'_, V> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object such as {\"text\": \"…\"}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<usize, A::Error> {
        let mut count = 0;
        let mut key = String::new();
        while map.next_key_seed(Key(&mut key))?.is_some() {
            self.0.entry(&key, count, &mut map)?;
            count += 1;
        }
        Ok(count)
    }
}

/// A key, in memory that is used again.
struct Key<'a>(&'a mut String);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<(), E> {
        self.0.clear();
        self.0.push_str(key);
        Ok(())
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

/// Refuses a single object that holds a whole table rather than a row. Gives the key of one that may do so.
fn find_table(objects: &Objects) -> Result<Option<String>> {
    let text = signature::without_mark(&objects.text);
    let Ok(entries) = serde_json::from_slice::<HashMap<String, &RawValue>>(text) else { return Ok(None) };
    let begins =
        |value: &RawValue, start: &str| value.get().split_ascii_whitespace().collect::<String>().starts_with(start);
    let lists = entries.iter().filter(|(_, value)| begins(value, "[{"));
    let rows = lists.max_by_key(|(key, value)| (value.get().len(), *key)).map(|(key, _)| key);
    let all = |byte: u8| !entries.is_empty() && entries.values().all(|value| value.get().as_bytes()[0] == byte);
    let path = &objects.path;
    let way_out = "write one object a row: pandas' to_json(\"rows.jsonl\", orient=\"records\", lines=True)";
    let holds = |key: &str, start: &str| entries.get(key).is_some_and(|value| value.get().starts_with(start));
    if holds("columns", "[") && holds("data", "[") {
        bail!("{path}: is a table in pandas' orient \"split\", expected rows; {way_out}");
    }
    if holds("schema", "{") && holds("data", "[") {
        bail!("{path}: is a table in pandas' orient \"table\", expected rows; {way_out}");
    }
    if all(b'{') {
        bail!("{path}: is one object of objects (pandas' orient \"columns\" or \"index\"), expected rows; {way_out}");
    }
    if all(b'[') && rows.is_none() && entries.len() > 1 {
        bail!("{path}: is one object of columns, expected rows; {way_out}");
    }
    if rows.is_some_and(|key| key == "records") {
        bail!(
            "{path}: is one object whose `records` holds the rows; of an export of Argilla, `llmcls prepare lists --input \
             {path} --out_dir DIR` makes files for training; of other rows, write that list alone"
        );
    }
    if let (1, Some(key)) = (entries.len(), rows) {
        bail!("{path}: is one object whose `{}` holds the rows; write that list alone", clip(key));
    }
    // What has a second list is a row of an annotation tool rather than rows with a note on them.
    let lists = entries.values().filter(|value| value.get().starts_with('[')).count();
    Ok(rows.filter(|_| lists == 1).cloned())
}
