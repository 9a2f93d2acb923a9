//! JSON: one object a line, objects over several lines, or one array of objects.
//!
//! Columns are the keys of all rows, in the order in which they first appear. Of a source that can be read
//! only once they are the keys of its first rows.

use std::collections::{HashMap, VecDeque};
use std::io::BufRead;

use anyhow::{Result, bail, ensure};
use serde_json::value::RawValue;

use super::json_objects::Objects;
use super::json_values::{CollectKeys, Keys, ReadValues, Values};
use super::piped::Flow;
use super::shared::clip;
use super::signature;
use super::value::Cell;
use crate::interrupt;

/// The rows of a JSON file or stream.
pub(super) struct JsonRows {
    objects: Objects,
    /// Rows of a stream that were read to learn their keys, with their lines.
    ahead: VecDeque<(u64, Vec<u8>)>,
    /// What is wrong with the row behind those.
    failure: Option<anyhow::Error>,
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
        let mut failure = None;
        while ahead.len() < ROWS_AHEAD && size < BYTES_AHEAD {
            match objects.read(&mut CollectKeys(&mut keys)) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) if ahead.is_empty() => return Err(error),
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
            let is_paused = flow.stays_paused();
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
        Ok((Self { table, failure, ..Self::new(objects, keys, ahead, true) }, columns))
    }

    fn new(objects: Objects, keys: Keys, ahead: VecDeque<(u64, Vec<u8>)>, is_stream: bool) -> Self {
        let values = Values::new(keys.names.len());
        Self { objects, ahead, failure: None, is_stream, table: None, keys, values, lacks_keys: false, line: 0 }
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
            None if let Some(failure) = self.failure.take() => return Err(failure),
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
