//! A cell with the type that its format gives it.

use std::borrow::Cow;

use anyhow::{Result, ensure};
use serde_json::value::RawValue;

/// A cell of the current row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell<'a> {
    /// The row has no such key.
    Missing,
    /// The row has the key, without a value; also NaN and infinity.
    Null,
    /// true or false.
    Bool(bool),
    /// An integer, with all its digits.
    Integer(&'a str),
    /// Another number, as JSON writes it, or a decimal with all its digits.
    Float(&'a str),
    /// Text; every cell of a CSV file.
    Text(&'a str),
    /// The name of a class of the data set library's `ClassLabel`; the file holds its number.
    ClassName(&'a str),
    /// A list.
    List(&'a [Value]),
    /// A JSON object, as JSON text.
    Object(&'a str),
    /// Neither text nor label. Named for messages: "bytes that are not UTF-8".
    Other(&'static str),
}

/// A cell that owns what it holds, such as an item of a list.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    #[default]
    Missing,
    Null,
    Bool(bool),
    Integer(String),
    Float(String),
    Text(String),
    ClassName(String),
    List(Vec<Value>),
    Object(String),
    Other(&'static str),
}

impl<'a> Cell<'a> {
    /// The cell as text: numbers as they are written, nothing for null; or what it holds instead.
    ///
    /// # Errors
    /// Names what is no text: a list, an object.
    pub fn to_text(self) -> Result<Cow<'a, str>, &'static str> {
        match self {
            Self::Missing | Self::Null => Ok(Cow::Borrowed("")),
            Self::Bool(value) => Ok(Cow::Borrowed(if value { "true" } else { "false" })),
            Self::Integer(text) | Self::Float(text) | Self::Text(text) | Self::ClassName(text) => {
                Ok(Cow::Borrowed(text))
            }
            Self::List(items) if items.iter().any(|item| matches!(item, Value::Object(_))) => Err("a list of objects"),
            Self::List(_) => Err("a list"),
            Self::Object(_) => Err("an object"),
            Self::Other(what) => Err(what),
        }
    }
}

impl Value {
    /// The value as a borrowed cell.
    #[must_use]
    pub fn cell(&self) -> Cell<'_> {
        match self {
            Self::Missing => Cell::Missing,
            Self::Null => Cell::Null,
            Self::Bool(value) => Cell::Bool(*value),
            Self::Integer(text) => Cell::Integer(text),
            Self::Float(text) => Cell::Float(text),
            Self::Text(text) => Cell::Text(text),
            Self::ClassName(text) => Cell::ClassName(text),
            Self::List(items) => Cell::List(items),
            Self::Object(text) => Cell::Object(text),
            Self::Other(what) => Cell::Other(what),
        }
    }

    /// JSON text of the value.
    #[must_use]
    pub fn to_json(&self) -> String {
        match self {
            Self::Missing | Self::Null => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Integer(text) | Self::Float(text) | Self::Object(text) => text.clone(),
            Self::Text(text) | Self::ClassName(text) => serde_json::Value::from(text.as_str()).to_string(),
            Self::List(items) => format!("[{}]", items.iter().map(Self::to_json).collect::<Vec<_>>().join(", ")),
            Self::Other(what) => serde_json::Value::from(*what).to_string(),
        }
    }

    /// The value of valid JSON text.
    ///
    /// # Errors
    /// If lists are nested deeper than any label needs, or a text holds half of a surrogate pair.
    pub(super) fn of_json(text: &str) -> Result<Self> {
        Self::of_nested_json(text, 0)
    }

    fn of_nested_json(text: &str, depth: usize) -> Result<Self> {
        const DEEPEST: usize = 16;
        ensure!(depth <= DEEPEST, "lists are nested more than {DEEPEST} deep");
        Ok(match text.as_bytes().first() {
            Some(b'"') => Self::Text(serde_json::from_str(text)?),
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(text)?;
                let items = items.into_iter().map(|item| Self::of_nested_json(item.get(), depth + 1));
                Self::List(items.collect::<Result<_>>()?)
            }
            Some(b'{') => Self::Object(text.to_owned()),
            Some(b't') => Self::Bool(true),
            Some(b'f') => Self::Bool(false),
            Some(b'n') | None => Self::Null,
            // Whole numbers keep their digits: an id may have more than any number type holds.
            Some(_) if text.bytes().any(|byte| matches!(byte, b'.' | b'e' | b'E')) => Self::Float(text.to_owned()),
            Some(_) => Self::Integer(text.to_owned()),
        })
    }
}
