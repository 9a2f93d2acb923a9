//! Exports of annotation tools that nest their rows, made flat: Label Studio's JSON, Argilla's records,
//! Prodigy's JSON Lines, and fastText's lines.
//!
//! Each record becomes one JSON object a line: its id, its fields, and one list of labels.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::de::IgnoredAny;
use serde_json::{Deserializer, Map, Value, json};

use super::formats::clip;

/// A tool whose exports are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// `data`, and `annotations` with `result` and `choices`.
    LabelStudio,
    /// `fields`, `responses` and `suggestions`; or `inputs` and `annotation`.
    Argilla,
    /// Rows with `accept` and `answer`.
    Prodigy,
    /// Lines of `__label__a __label__b text`.
    FastText,
}

/// The result of reading an export.
#[derive(Debug, Default)]
pub struct Flattened {
    /// The key of the labels in the rows that were written.
    pub labels_column: String,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// Warnings for the user.
    pub doubts: Vec<String>,
}

/// A record made flat. Labels are by question, one list an annotator.
#[derive(Debug, Default)]
struct Record {
    id: Option<Value>,
    fields: Map<String, Value>,
    answers: BTreeMap<String, Vec<BTreeSet<String>>>,
    suggested: BTreeMap<String, BTreeSet<String>>,
    is_answered: bool,
}

impl Tool {
    /// The tool that writes files with these columns. The first column of a file of fastText's is its first row.
    #[must_use]
    pub fn of_columns(columns: &[String]) -> Option<Self> {
        let has = |name: &str| columns.iter().any(|column| column == name);
        match () {
            () if columns.first().is_some_and(|name| name.starts_with("__label__")) => Some(Self::FastText),
            () if has("data") && (has("annotations") || has("completions")) => Some(Self::LabelStudio),
            () if has("fields") && (has("responses") || has("suggestions")) => Some(Self::Argilla),
            () if has("inputs") && has("annotation") => Some(Self::Argilla),
            () if has("accept") && has("answer") => Some(Self::Prodigy),
            () if columns == ["records"] => Some(Self::Argilla),
            () => None,
        }
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LabelStudio => "Label Studio",
            Self::Argilla => "Argilla",
            Self::Prodigy => "Prodigy",
            Self::FastText => "fastText",
        }
    }

    fn record(self, value: &Value) -> Result<Record> {
        match self {
            Self::LabelStudio => label_studio(value),
            Self::Argilla => argilla(value),
            Self::Prodigy => Ok(prodigy(value)),
            Self::FastText => bail!("lines of fastText are no JSON"),
        }
    }
}

/// Refuses a file that an annotation tool exported, and names the command that reads it.
pub fn refuse(path: &Path, columns: &[String]) -> Result<()> {
    // Prodigy's lists are in a column of their own: the rows are flat enough, if all were accepted.
    if let Some(tool) = Tool::of_columns(columns).filter(|tool| *tool != Tool::Prodigy) {
        bail!(
            "{0}: is an export of {1}, whose rows are not columns; `llmcls prepare lists --input {0} --out_dir DIR` makes \
             files for training of it",
            path.display(),
            tool.name()
        );
    }
    Ok(())
}

/// Recognises an export by its content.
#[must_use]
pub fn recognise(path: &Path) -> Option<Tool> {
    let mut source = BufReader::new(File::open(path).ok()?);
    let head = source.fill_buf().ok()?;
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    if head.starts_with(b"__label__") {
        return Some(Tool::FastText);
    }
    if !head.starts_with(b"[") && !head.starts_with(b"{") {
        return None;
    }
    Tool::of_columns(&first_keys(path)?)
}

/// The keys of the first record, whose values are not kept. No more of the file is read.
fn first_keys(path: &Path) -> Option<Vec<String>> {
    let mut source = opened(path).ok()?;
    let mut is_array = false;
    loop {
        let &byte = source.fill_buf().ok()?.first()?;
        match byte {
            b'{' => break,
            b'[' if !is_array => is_array = true,
            byte if byte.is_ascii_whitespace() => {}
            _ => return None,
        }
        source.consume(1);
    }
    let first: IgnoredMap = Deserializer::from_reader(source).into_iter().next()?.ok()?;
    Some(first.into_keys().collect())
}

/// An object of which the keys count.
type IgnoredMap = BTreeMap<String, IgnoredAny>;

/// Writes the rows of an export, one JSON object a line. `question` chooses one of several.
///
/// # Errors
/// If the file is malformed, or asks several questions and none is chosen.
pub fn flatten(path: &Path, tool: Tool, question: Option<&str>, out: &mut impl Write) -> Result<Flattened> {
    if tool == Tool::FastText {
        return flatten_fasttext(path, out);
    }
    let mut read = Vec::new();
    for (number, value) in (1..).zip(records(path)?) {
        let context = || format!("{}: record {number}", path.display());
        read.push(tool.record(&value.with_context(context)?).with_context(context)?);
    }
    let questions: BTreeSet<&String> =
        read.iter().flat_map(|record| record.answers.keys().chain(record.suggested.keys())).collect();
    let question = match (question, questions.len()) {
        (Some(question), _) => {
            let named = questions.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            ensure!(
                questions.iter().any(|name| *name == question),
                "{}: --labels_column {question}: no such question; the export has {named}",
                path.display()
            );
            question.to_owned()
        }
        (None, 1) => questions.first().map(|name| (*name).clone()).unwrap_or_default(),
        (None, 0) => bail!("{}: no record of this export of {} has a label", path.display(), tool.name()),
        (None, _) => bail!(
            "{}: the export asks several questions; choose one with --labels_column: {}",
            path.display(),
            questions.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ")
        ),
    };
    write_records(path, tool, &read, &question, out)
}

fn write_records(path: &Path, tool: Tool, read: &[Record], question: &str, out: &mut impl Write) -> Result<Flattened> {
    let fields: BTreeSet<&String> = read.iter().flat_map(|record| record.fields.keys()).collect();
    let free = |wanted: &str| {
        let names = std::iter::once(wanted.to_owned()).chain((2..).map(|number| format!("{wanted}_{number}")));
        names.into_iter().find(|name| !fields.contains(name)).unwrap_or_default()
    };
    let (id, labels_column) = (free("id"), free("labels"));
    let (mut unlabelled, mut suggested, mut divided) = (0, 0, 0);
    for record in read {
        let none = Vec::new();
        let answers = record.answers.get(question).unwrap_or(&none);
        let labels = match (answers.first(), record.suggested.get(question)) {
            (Some(first), _) => {
                divided += usize::from(answers.iter().any(|answer| answer != first));
                first.clone()
            }
            (None, _) if record.is_answered => BTreeSet::new(),
            (None, Some(labels)) => {
                suggested += 1;
                labels.clone()
            }
            (None, None) => {
                unlabelled += 1;
                continue;
            }
        };
        let mut row = Map::new();
        row.insert(id.clone(), record.id.clone().unwrap_or(Value::Null));
        row.extend(record.fields.clone());
        row.insert(labels_column.clone(), json!(labels));
        serde_json::to_writer(&mut *out, &row)?;
        out.write_all(b"\n")?;
    }
    let mut flattened = Flattened { labels_column, ..Flattened::default() };
    let total = read.len();
    flattened.notes.push(format!("{}: an export of {}; labels are those of `{question}`", path.display(), tool.name()));
    for (count, what) in [
        (unlabelled, "have no annotation and are left out"),
        (suggested, "have only suggestions, which become their labels"),
        (divided, "have annotations that differ; the first one is taken"),
    ] {
        if count > 0 {
            flattened.doubts.push(format!("{}: {count} of {total} records {what}", path.display()));
        }
    }
    Ok(flattened)
}

/// The objects of a JSON array, of `{"records": [...]}`, or one a line.
fn records(path: &Path) -> Result<impl Iterator<Item = Result<Value>>> {
    let values = Deserializer::from_reader(opened(path)?).into_iter::<Value>();
    Ok(values.flat_map(|value| match value {
        Err(error) => vec![Err(error.into())],
        Ok(Value::Array(items)) => items.into_iter().map(Ok).collect(),
        Ok(Value::Object(mut object)) => match (object.len(), object.get_mut("records").map(Value::take)) {
            (1, Some(Value::Array(items))) => items.into_iter().map(Ok).collect(),
            (_, Some(records)) => {
                object.insert("records".to_owned(), records);
                vec![Ok(Value::Object(object))]
            }
            (_, None) => vec![Ok(Value::Object(object))],
        },
        Ok(other) => vec![Ok(other)],
    }))
}

/// The file, after its byte-order mark.
fn opened(path: &Path) -> Result<BufReader<File>> {
    let file = File::open(path).with_context(|| format!("{}: cannot open", path.display()))?;
    let mut source = BufReader::new(file);
    if source.fill_buf().is_ok_and(|head| head.starts_with(b"\xef\xbb\xbf")) {
        source.consume(3);
    }
    Ok(source)
}

/// Text and numbers of an object; lists and objects are no columns.
fn scalars(value: &Value) -> Map<String, Value> {
    let entries = value.as_object().into_iter().flatten();
    let is_scalar = |value: &Value| !value.is_array() && !value.is_object();
    entries.filter(|(_, value)| is_scalar(value)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// A label or a list of labels.
fn labels_of(value: &Value) -> Option<BTreeSet<String>> {
    match value {
        Value::String(label) => Some(BTreeSet::from([label.clone()])),
        Value::Array(items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn label_studio(value: &Value) -> Result<Record> {
    let mut record = Record { id: value.get("id").cloned(), fields: scalars(&value["data"]), ..Record::default() };
    let annotations = if value["annotations"].is_array() { &value["annotations"] } else { &value["completions"] };
    for annotation in items(annotations) {
        if annotation["was_cancelled"].as_bool() == Some(true) {
            continue;
        }
        record.is_answered = true;
        let mut chosen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for result in items(&annotation["result"]) {
            if result["value"]["taxonomy"].is_array() {
                bail!("holds a taxonomy, whose labels are paths; export the last level as choices");
            }
            let Some(choices) = labels_of(&result["value"]["choices"]) else { continue };
            let question = result["from_name"].as_str().unwrap_or("choices");
            chosen.entry(question.to_owned()).or_default().extend(choices);
        }
        for (question, labels) in chosen {
            record.answers.entry(question).or_default().push(labels);
        }
    }
    Ok(record)
}

fn argilla(value: &Value) -> Result<Record> {
    let mut record = Record { id: value.get("id").cloned(), ..Record::default() };
    if value.get("fields").is_none() {
        // Before version 1.8: one question, with the texts under `inputs` or `text`.
        record.fields = match value["inputs"].is_object() {
            true => scalars(&value["inputs"]),
            false => scalars(&json!({"text": value["text"]})),
        };
        if let Some(labels) = labels_of(&value["annotation"]) {
            record.answers.insert("annotation".to_owned(), vec![labels]);
        }
        return Ok(record);
    }
    record.fields = scalars(&value["fields"]);
    let is_submitted = |answer: &Value| answer["status"].as_str().is_none_or(|status| status == "submitted");
    match &value["responses"] {
        Value::Array(responses) => {
            for response in responses.iter().filter(|response| is_submitted(response)) {
                for (question, answer) in response["values"].as_object().into_iter().flatten() {
                    record.answer(question, &answer["value"]);
                }
            }
        }
        Value::Object(questions) => {
            for (question, answers) in questions {
                items(answers).iter().filter(|a| is_submitted(a)).for_each(|a| record.answer(question, &a["value"]));
            }
        }
        Value::Null => {}
        other => bail!("`responses` holds `{}`, expected a list or an object", clip(&other.to_string())),
    }
    match &value["suggestions"] {
        Value::Array(suggestions) => {
            for suggestion in suggestions {
                record.suggest(suggestion["question_name"].as_str().unwrap_or_default(), &suggestion["value"]);
            }
        }
        Value::Object(questions) => {
            questions.iter().for_each(|(question, suggestion)| record.suggest(question, &suggestion["value"]));
        }
        _ => {}
    }
    Ok(record)
}

fn prodigy(value: &Value) -> Record {
    let is_accepted = value["answer"] == "accept";
    let mut fields = scalars(value);
    fields.retain(|name, _| !name.starts_with('_') && name != "answer");
    let mut record = Record { id: value.get("_task_hash").cloned(), fields, ..Record::default() };
    if is_accepted && let Some(labels) = labels_of(&value["accept"]) {
        record.answers.insert("accept".to_owned(), vec![labels]);
    }
    record
}

impl Record {
    fn answer(&mut self, question: &str, value: &Value) {
        if let Some(labels) = labels_of(value) {
            self.answers.entry(question.to_owned()).or_default().push(labels);
        }
    }

    fn suggest(&mut self, question: &str, value: &Value) {
        if let Some(labels) = labels_of(value) {
            self.suggested.insert(question.to_owned(), labels);
        }
    }
}

/// `__label__a __label__b text`: labels are the words at the start, the rest is the text.
fn flatten_fasttext(path: &Path, out: &mut impl Write) -> Result<Flattened> {
    let file = File::open(path).with_context(|| format!("{}: cannot open", path.display()))?;
    for (number, line) in (1..).zip(BufReader::new(file).lines()) {
        let line = line.with_context(|| format!("{}:{number}: cannot read", path.display()))?;
        let mut rest = line.trim_start_matches('\u{feff}').trim();
        if rest.is_empty() {
            continue;
        }
        let mut labels = Vec::new();
        while let Some(after) = rest.strip_prefix("__label__") {
            let end = after.find(char::is_whitespace).unwrap_or(after.len());
            labels.push(&after[..end]);
            rest = after[end..].trim_start();
        }
        serde_json::to_writer(&mut *out, &json!({"text": rest, "labels": labels}))?;
        out.write_all(b"\n")?;
    }
    let notes = vec![format!("{}: lines of fastText", path.display())];
    Ok(Flattened { labels_column: "labels".to_owned(), notes, ..Flattened::default() })
}
