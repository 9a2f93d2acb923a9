//! The types that a YAML value can become, each with its JSON Schema.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value as Json, json};

use super::tree::Node;

/// A type that a YAML value can become.
pub trait FromNode: Sized {
    /// The expected value, for errors.
    const EXPECTED: &'static str;

    /// True if `--set` takes the text as you type it, even where YAML would read it as a number or a boolean.
    const IS_TEXT: bool = false;

    /// The value, or `None` if the node has another type.
    fn from_node(node: Value<'_>) -> Option<Self>;

    /// The problem inside a node that `from_node` refused, if one part of it is to blame.
    fn fault(_: Value<'_>) -> Option<String> {
        None
    }

    /// JSON Schema of its values.
    fn schema() -> Json;

    /// The value as a number, for bounds.
    fn number(&self) -> Option<f64> {
        None
    }
}

/// A YAML value, as a type that wants to be read from one sees it.
#[derive(Clone, Copy)]
pub struct Value<'a>(pub(super) &'a Node);

impl<'a> Value<'a> {
    /// The text of a string.
    #[must_use]
    pub fn text(self) -> Option<&'a str> {
        match self.0 {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The entries of a mapping.
    #[must_use]
    pub fn entries(self) -> Option<impl Iterator<Item = (&'a str, Self)>> {
        match self.0 {
            Node::Map(entries) => Some(entries.iter().map(|(key, _, tree)| (key.as_str(), Self(&tree.node)))),
            _ => None,
        }
    }
}

impl FromNode for String {
    const EXPECTED: &'static str = "a string";
    const IS_TEXT: bool = true;

    /// Numbers count as text: a data set may be called `2024`.
    fn from_node(node: Value<'_>) -> Option<Self> {
        match node.0 {
            Node::Text(_) | Node::Int(_) | Node::Float(_) => Some(node.0.describe()),
            _ => None,
        }
    }

    fn schema() -> Json {
        json!({ "type": "string" })
    }
}

impl FromNode for PathBuf {
    const EXPECTED: &'static str = "a path";
    const IS_TEXT: bool = true;

    fn from_node(node: Value<'_>) -> Option<Self> {
        String::from_node(node).map(Self::from)
    }

    fn schema() -> Json {
        json!({ "type": "string" })
    }
}

impl FromNode for bool {
    const EXPECTED: &'static str = "true or false";

    fn from_node(node: Value<'_>) -> Option<Self> {
        match node.0 {
            Node::Bool(value) => Some(*value),
            _ => None,
        }
    }

    fn schema() -> Json {
        json!({ "type": "boolean" })
    }
}

impl FromNode for f64 {
    const EXPECTED: &'static str = "a number";

    fn from_node(node: Value<'_>) -> Option<Self> {
        match node.0 {
            Node::Int(value) => Some(*value as Self),
            Node::Float(value) => Some(*value),
            // YAML 1.1, which Python reads, takes `2e-4` for text.
            Node::Text(text) => text.parse().ok(),
            _ => None,
        }
        .filter(|value: &Self| value.is_finite())
    }

    fn schema() -> Json {
        json!({ "type": "number" })
    }

    fn number(&self) -> Option<f64> {
        Some(*self)
    }
}

impl FromNode for u32 {
    const EXPECTED: &'static str = "a whole number below 4294967296";

    fn from_node(node: Value<'_>) -> Option<Self> {
        match node.0 {
            Node::Int(value) => Self::try_from(*value).ok(),
            _ => None,
        }
    }

    fn schema() -> Json {
        json!({ "type": "integer", "minimum": 0, "maximum": Self::MAX })
    }

    fn number(&self) -> Option<f64> {
        Some(f64::from(*self))
    }
}

impl FromNode for usize {
    const EXPECTED: &'static str = "a whole number";

    fn from_node(node: Value<'_>) -> Option<Self> {
        match node.0 {
            Node::Int(value) => Self::try_from(*value).ok(),
            _ => None,
        }
    }

    fn schema() -> Json {
        json!({ "type": "integer", "minimum": 0 })
    }

    fn number(&self) -> Option<f64> {
        Some(*self as f64)
    }
}

impl<T: FromNode> FromNode for Vec<T> {
    const EXPECTED: &'static str = "a list";

    fn from_node(node: Value<'_>) -> Option<Self> {
        match node.0 {
            Node::List(items) => items.iter().map(|item| T::from_node(Value(&item.node))).collect(),
            _ => None,
        }
    }

    fn fault(node: Value<'_>) -> Option<String> {
        let Node::List(items) = node.0 else { return None };
        let (number, item) = (1..).zip(items).find(|(_, item)| T::from_node(Value(&item.node)).is_none())?;
        Some(format!("item {number} of the list is `{}`, expected {}", item.node.describe(), T::EXPECTED))
    }

    fn schema() -> Json {
        json!({ "type": "array", "items": T::schema() })
    }
}

impl FromNode for BTreeMap<String, String> {
    const EXPECTED: &'static str = "a mapping of names to texts";

    fn from_node(node: Value<'_>) -> Option<Self> {
        node.entries()?.map(|(name, value)| Some((name.to_owned(), String::from_node(value)?))).collect()
    }

    fn fault(node: Value<'_>) -> Option<String> {
        let (name, value) = node.entries()?.find(|(_, value)| String::from_node(*value).is_none())?;
        Some(format!("`{name}` is `{}`, expected {}", value.0.describe(), String::EXPECTED))
    }

    fn schema() -> Json {
        json!({ "type": "object", "additionalProperties": String::schema() })
    }
}

/// Declares an enum whose variants are YAML strings, to and from.
macro_rules! yaml_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
        pub enum $name {
            $($(#[doc = $doc])+ #[serde(rename = $text)] $variant,)+
        }

        impl crate::config::value::FromNode for $name {
            const EXPECTED: &'static str = concat!("one of", $(" ", $text,)+);

            fn from_node(node: crate::config::value::Value<'_>) -> Option<Self> {
                match node.text()? {
                    $($text => Some(Self::$variant),)+
                    _ => None,
                }
            }

            fn schema() -> serde_json::Value {
                let choices = [$(serde_json::json!({ "const": $text, "description": concat!($($doc),+).trim() }),)+];
                serde_json::json!({ "oneOf": choices })
            }
        }
    };
}
pub(crate) use yaml_enum;
