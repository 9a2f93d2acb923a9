//! Reads typed keys out of a tree and collects everything that is wrong with it.

use std::cell::RefCell;
use std::rc::Rc;

use super::tree::{Node, Tree};

/// A mapping whose keys are taken one by one; what is left over is unknown.
pub struct Section {
    name: String,
    entries: Vec<(String, String, Tree)>,
    known: Vec<&'static str>,
    problems: Rc<RefCell<Vec<String>>>,
}

/// A type that a YAML value can become.
pub trait FromNode: Sized {
    /// What the error says was expected.
    const EXPECTED: &'static str;

    /// Whether `--set` gives the value as it is typed, whatever it would mean in YAML.
    const IS_TEXT: bool = false;

    /// The value, or `None` if the node has another type.
    fn from_node(node: Value<'_>) -> Option<Self>;

    /// What is wrong inside a node that `from_node` refused, if a part of it is to blame.
    fn fault(_: Value<'_>) -> Option<String> {
        None
    }
}

/// A YAML value, as a type that wants to be read from one sees it.
#[derive(Clone, Copy)]
pub struct Value<'a>(&'a Node);

impl Section {
    pub(super) fn root(tree: Tree) -> Self {
        let problems = Rc::default();
        Self::open(String::new(), Some(tree), problems)
    }

    fn open(name: String, tree: Option<Tree>, problems: Rc<RefCell<Vec<String>>>) -> Self {
        let entries = match tree.map(|tree| (tree.node, tree.place)) {
            None | Some((Node::Null, _)) => Vec::new(),
            Some((Node::Map(entries), _)) => entries,
            Some((other, place)) => {
                let what = if name.is_empty() { "the file".to_owned() } else { format!("`{name}`") };
                problems.borrow_mut().push(format!("{place}: {what} is `{}`, expected a mapping", other.describe()));
                Vec::new()
            }
        };
        Self { name, entries, known: Vec::new(), problems }
    }

    /// A mapping inside this one.
    pub(super) fn section(&mut self, name: &'static str) -> Self {
        let tree = self.take(name).map(|(_, tree)| tree);
        Self::open(self.full_name(name), tree, Rc::clone(&self.problems))
    }

    /// A key with a default. `null` means the default.
    pub fn key<T: FromNode>(&mut self, name: &'static str, default: T) -> T {
        self.optional(name).unwrap_or(default)
    }

    /// A key that may be absent or null.
    pub fn optional<T: FromNode>(&mut self, name: &'static str) -> Option<T> {
        let (_, mut tree) = self.take(name)?;
        let typed = tree.typed.take();
        if let Some(typed) = typed.as_ref().filter(|_| T::IS_TEXT) {
            tree.node = typed.as_text(&tree.node);
        }
        if matches!(tree.node, Node::Null) {
            return None;
        }
        let value = T::from_node(Value(&tree.node));
        if value.is_none() {
            let (key, found) = (self.full_name(name), tree.node.describe());
            let not_yaml = typed.and_then(|typed| typed.fault);
            self.push(match (not_yaml, T::fault(Value(&tree.node))) {
                (Some(fault), _) => fault,
                (None, Some(fault)) => format!("{}: `{key}`: {fault}", tree.place),
                (None, None) => format!("{}: `{key}` is `{found}`, expected {}", tree.place, T::EXPECTED),
            });
        }
        value
    }

    /// As [`Section::optional`], and tells a key that is null (`Some(None)`) from one that is absent.
    pub(super) fn given<T: FromNode>(&mut self, name: &'static str) -> Option<Option<T>> {
        let is_present = self.entries.iter().any(|(key, ..)| key == name);
        let value = self.optional(name);
        is_present.then_some(value)
    }

    /// A key that must be there.
    pub fn required(&mut self, name: &'static str) -> String {
        let is_given = |tree: &Tree| match &tree.typed {
            Some(typed) => !matches!(typed.as_text(&tree.node), Node::Null),
            None => !matches!(tree.node, Node::Null),
        };
        let is_present = self.entries.iter().any(|(key, _, tree)| key == name && is_given(tree));
        let value = self.optional(name);
        if !is_present {
            self.push(format!("`{}` is missing", self.full_name(name)));
        }
        value.unwrap_or_default()
    }

    /// A key with a default, whose null means none.
    pub fn nullable<T: FromNode>(&mut self, name: &'static str, default: T) -> Option<T> {
        let is_absent = self.entries.iter().all(|(key, ..)| key != name);
        let value = self.optional(name);
        if is_absent { Some(default) } else { value }
    }

    /// Records a problem of one key: `message` follows the place and the key's name.
    pub fn problem(&self, name: &str, message: &str) {
        self.push(format!("`{}` {message}", self.full_name(name)));
    }

    /// Records a problem unless `holds`.
    pub fn check(&self, holds: bool, name: &str, message: &str) {
        if !holds {
            self.problem(name, message);
        }
    }

    /// All problems found in this mapping and those inside it.
    pub(super) fn finish(self) -> Vec<String> {
        let problems = Rc::clone(&self.problems);
        drop(self);
        problems.take()
    }

    fn push(&self, problem: String) {
        self.problems.borrow_mut().push(problem);
    }

    fn full_name(&self, name: &str) -> String {
        if self.name.is_empty() { name.to_owned() } else { format!("{}.{name}", self.name) }
    }

    fn take(&mut self, name: &'static str) -> Option<(String, Tree)> {
        self.known.push(name);
        let index = self.entries.iter().position(|(key, ..)| key == name)?;
        let (_, place, tree) = self.entries.remove(index);
        Some((place, tree))
    }
}

impl Drop for Section {
    /// What was not taken is unknown.
    fn drop(&mut self) {
        for (key, place, _) in std::mem::take(&mut self.entries) {
            let nearest = self
                .known
                .iter()
                .max_by(|a, b| strsim::jaro_winkler(a, &key).total_cmp(&strsim::jaro_winkler(b, &key)));
            let hint = match nearest {
                Some(name) if strsim::jaro_winkler(name, &key) > 0.8 => format!("; did you mean `{name}`?"),
                _ => format!("; known here: {}", self.known.join(", ")),
            };
            self.push(format!("{place}: unknown key `{}`{hint}", self.full_name(&key)));
        }
    }
}

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
}

impl FromNode for bool {
    const EXPECTED: &'static str = "true or false";

    fn from_node(node: Value<'_>) -> Option<Self> {
        match node.0 {
            Node::Bool(value) => Some(*value),
            _ => None,
        }
    }
}

impl FromNode for f64 {
    const EXPECTED: &'static str = "a finite number";

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
}

impl FromNode for u32 {
    const EXPECTED: &'static str = "an integer from 0 to 4294967295";

    fn from_node(node: Value<'_>) -> Option<Self> {
        match node.0 {
            Node::Int(value) => Self::try_from(*value).ok(),
            _ => None,
        }
    }
}

impl FromNode for usize {
    const EXPECTED: &'static str = "a positive integer, or 0 where that means off";

    fn from_node(node: Value<'_>) -> Option<Self> {
        match node.0 {
            Node::Int(value) => Self::try_from(*value).ok(),
            _ => None,
        }
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
}

/// Declares an enum whose variants are YAML strings, to and from.
macro_rules! yaml_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
        pub enum $name {
            $($(#[$variant_meta])* #[serde(rename = $text)] $variant,)+
        }

        impl crate::config::reader::FromNode for $name {
            const EXPECTED: &'static str = concat!("one of", $(" ", $text,)+);

            fn from_node(node: crate::config::reader::Value<'_>) -> Option<Self> {
                match node.text()? {
                    $($text => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}
pub(crate) use yaml_enum;
