//! One cell of a column that lists labels, in each form that files have.

use anyhow::{Result, bail, ensure};
use serde_json::{Map, Value};

use super::formats::{self, Cell, clip};
use super::python_literal;

/// fastText's prefix of a label.
const FASTTEXT: &str = "__label__";

/// The labels of a row, as far as the cell alone tells them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelCell {
    /// The row has no such cell: a key that an object of JSON Lines lacks.
    Missing,
    /// An empty cell, or null.
    Empty,
    /// Items that the cell itself tells apart.
    Items(Vec<String>),
    /// Text: the labels in it, if there are several, have a separator between them.
    Text(String),
    /// Text that starts as a list, and is none that can be read.
    Broken(String),
}

impl LabelCell {
    /// Reads a cell of text.
    ///
    /// # Errors
    /// If it holds lists or objects that are no list of labels.
    pub fn of_text(text: &str) -> Result<Self> {
        let text = text.trim();
        let Some(first) = text.chars().next() else { return Ok(Self::Empty) };
        if text.starts_with(FASTTEXT) {
            let mut words = text.split_whitespace();
            if words.all(|word| word.starts_with(FASTTEXT)) {
                let names =
                    text.split_whitespace().map(|word| word[FASTTEXT.len()..].trim_end_matches([',', ';', '|']));
                let names = names.map(str::to_owned);
                return Ok(Self::Items(names.filter(|name| !name.is_empty()).collect()));
            }
        }
        let is_list = matches!(first, '[' | '{');
        if is_list && let Ok(value) = serde_json::from_str::<Value>(text) {
            return Self::of_value(&value);
        }
        // A label that JSON quotes, as Label Studio writes a single choice.
        if first == '"'
            && let Ok(Value::String(text)) = serde_json::from_str(text)
        {
            return Ok(if text.trim().is_empty() { Self::Empty } else { Self::Text(text.trim().to_owned()) });
        }
        let may_be_python = is_list || first == '(' || text.ends_with(')');
        match may_be_python.then(|| python_literal::parse(text)).flatten() {
            Some(value) => Self::of_value(&value),
            None if python_literal::is_begun(text) => Ok(Self::Broken(text.to_owned())),
            None => Ok(Self::Text(text.to_owned())),
        }
    }

    /// Reads a cell with the type that its format gives it.
    ///
    /// # Errors
    /// If it holds lists or objects that are no list of labels.
    pub fn of_cell(cell: Cell<'_>) -> Result<Self> {
        match cell {
            Cell::Missing => Ok(Self::Missing),
            Cell::Null => Ok(Self::Empty),
            Cell::Text(text) => Self::of_text(text),
            Cell::Bool(_) | Cell::Integer(_) | Cell::Float(_) => {
                Ok(cell.to_text().map_or(Self::Empty, |text| Self::Text(text.into_owned())))
            }
            // The class is one label, whatever signs its name holds.
            Cell::ClassName(name) => Ok(Self::Items(vec![name.to_owned()])),
            Cell::List(items) => items_of(items.iter().map(formats::Value::cell)),
            Cell::Object(json) => match serde_json::from_str::<Value>(json)? {
                Value::Object(entries) => Ok(Self::Items(chosen(&entries)?)),
                _ => bail!("holds no object"),
            },
            Cell::Other(what) => bail!("holds {what}, which cannot be labels"),
        }
    }

    fn of_value(value: &Value) -> Result<Self> {
        match value {
            Value::Array(items) => Ok(Self::Items(names(items)?)),
            Value::Object(entries) => Ok(Self::Items(chosen(entries)?)),
            _ => bail!("holds no list"),
        }
    }
}

const NESTED: &str = "holds lists or objects within a list, as annotation tools export; `llmcls prepare lists --input FILE` \
                      reads exports of Label Studio and Argilla, and writes files for training";

fn items_of<'a>(items: impl Iterator<Item = Cell<'a>>) -> Result<LabelCell> {
    let mut names = Vec::new();
    for item in items {
        match item {
            Cell::List(_) | Cell::Object(_) => bail!(NESTED),
            Cell::Other(what) => bail!("holds {what}, which cannot be labels"),
            scalar => names.extend(scalar.to_text().map(|text| text.trim().to_owned())),
        }
    }
    names.retain(|name| !name.is_empty());
    Ok(LabelCell::Items(names))
}

/// The items of a list, as text.
fn names(items: &[Value]) -> Result<Vec<String>> {
    let mut names = Vec::with_capacity(items.len());
    for item in items {
        match item {
            Value::Null => {}
            Value::String(text) => names.push(text.trim().to_owned()),
            Value::Bool(_) | Value::Number(_) => names.push(item.to_string()),
            Value::Array(_) | Value::Object(_) => bail!(NESTED),
        }
    }
    names.retain(|name| !name.is_empty());
    Ok(names)
}

/// The labels of an object: Label Studio's `{"choices": [...]}`, or those whose value is 1, as spaCy's `cats`.
fn chosen(entries: &Map<String, Value>) -> Result<Vec<String>> {
    if let (Some((key, value)), 1) = (entries.iter().next(), entries.len())
        && ["choices", "labels", "label"].contains(&key.as_str())
        && (value.is_array() || value.is_string())
    {
        return names(value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice));
    }
    let mut chosen = Vec::new();
    for (name, value) in entries {
        let flag = match value {
            Value::Bool(flag) => Some(*flag),
            Value::Number(number) if number.as_f64() == Some(0.0) => Some(false),
            Value::Number(number) if number.as_f64() == Some(1.0) => Some(true),
            _ => None,
        };
        ensure!(
            flag.is_some(),
            "holds an object whose `{}` is `{}`; expected 0 or 1 for each label, or {{\"choices\": [...]}}",
            clip(name),
            clip(&value.to_string())
        );
        if flag == Some(true) {
            chosen.push(name.trim().to_owned());
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(names: &[&str]) -> LabelCell {
        LabelCell::Items(names.iter().map(|&name| name.to_owned()).collect())
    }

    #[test]
    fn cells_that_tell_their_labels_apart_themselves() {
        for (text, cell) in [
            (r#"["a", "b c"]"#, items(&["a", "b c"])),
            ("['a', 'b']", items(&["a", "b"])),
            ("[0, 1, 1]", items(&["0", "1", "1"])),
            (r#"{"choices": ["Billing", "Login"]}"#, items(&["Billing", "Login"])),
            (r#"{"choices": "Billing"}"#, items(&["Billing"])),
            (r#"{"a": 1, "b": 0, "c": true, "d": 1.0}"#, items(&["a", "c", "d"])),
            ("__label__a __label__b-c", items(&["a", "b-c"])),
            ("__label__a, __label__b;", items(&["a", "b"])),
            ("[]", items(&[])),
            ("set(['a', 'b'])", items(&["a", "b"])),
            ("set()", items(&[])),
            ("(0, 1, 1)", items(&["0", "1", "1"])),
            (r#""a, b""#, LabelCell::Text("a, b".into())),
            (r#""" "#, LabelCell::Empty),
            (r#""a" or "b""#, LabelCell::Text(r#""a" or "b""#.into())),
            ("np.array(['a'", LabelCell::Broken("np.array(['a'".into())),
            (" ", LabelCell::Empty),
            ("a, b", LabelCell::Text("a, b".into())),
            ("(other)", LabelCell::Text("(other)".into())),
            ("[a, b]", LabelCell::Broken("[a, b]".into())),
            (r#"{"choices": ["a"#, LabelCell::Broken(r#"{"choices": ["a"#.into())),
        ] {
            assert_eq!(LabelCell::of_text(text).unwrap(), cell, "{text}");
        }
    }

    #[test]
    fn what_is_no_list_of_labels_is_refused() {
        for (text, part) in [
            (r#"[{"label": "a"}]"#, "llmcls prepare"),
            ("[[0, 5, 'PER']]", "llmcls prepare"),
            (r#"{"a": 0.7}"#, "`a` is `0.7`"),
        ] {
            let error = LabelCell::of_text(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
