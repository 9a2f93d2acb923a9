//! YAML as a tree whose nodes know where they were written.

use anyhow::{Result, bail};
use saphyr::{LoadableYamlNode, MarkedYamlOwned, ScalarOwned, YamlDataOwned};

/// A node, and where it stands: `path:line`, or the `--set` that made it.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    pub(super) node: Node,
    pub(super) location: String,
    pub(super) typed: Option<Typed>,
}

/// A value as it was typed after `--set KEY=`: a key that holds text takes it as it is.
#[derive(Clone, Debug)]
pub(super) struct Typed {
    pub(super) text: String,
    /// Why it is not YAML, if it is not.
    pub(super) fault: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Tree>),
    /// Keys, each with the location of the key itself.
    Map(Vec<(String, String, Tree)>),
}

impl Tree {
    pub(super) fn empty() -> Self {
        Self { node: Node::Null, location: String::new(), typed: None }
    }

    /// The value of a `--set`. What is not YAML may still be the text of a key that holds text.
    pub(super) fn of_setting(value: &str, location: &str) -> Self {
        let (node, fault) = match Self::parse(value, location) {
            Ok(tree) => (tree.node, None),
            Err(error) => (Node::Text(value.to_owned()), Some(format!("{error:#}"))),
        };
        let typed = Some(Typed { text: value.to_owned(), fault });
        Self { node, location: location.to_owned(), typed }
    }

    /// Parses one document. `source` names it in errors.
    pub(super) fn parse(text: &str, source: &str) -> Result<Self> {
        // A command line has one line: its number says nothing.
        let location =
            |line: usize| if source.starts_with("--") { source.to_owned() } else { format!("{source}:{line}") };
        let mut documents = match MarkedYamlOwned::load_from_str(text) {
            Ok(documents) => documents,
            Err(error) => bail!("{}: not valid YAML: {}", location(error.marker().line()), error.info()),
        };
        if documents.len() > 1 {
            bail!("{source}: holds {} YAML documents, expected one", documents.len());
        }
        match documents.pop() {
            Some(document) => Self::from_yaml(document, &location),
            None => Ok(Self { node: Node::Null, location: location(1), typed: None }),
        }
    }

    fn from_yaml(yaml: MarkedYamlOwned, location: &dyn Fn(usize) -> String) -> Result<Self> {
        let here = location(yaml.span.start.line());
        let node = match yaml.data {
            YamlDataOwned::Value(ScalarOwned::Null) => Node::Null,
            YamlDataOwned::Value(ScalarOwned::Boolean(value)) => Node::Bool(value),
            YamlDataOwned::Value(ScalarOwned::Integer(value)) => Node::Int(value),
            YamlDataOwned::Value(ScalarOwned::FloatingPoint(value)) => Node::Float(*value),
            YamlDataOwned::Value(ScalarOwned::String(value)) => Node::Text(value),
            YamlDataOwned::Sequence(items) => {
                Node::List(items.into_iter().map(|item| Self::from_yaml(item, location)).collect::<Result<_>>()?)
            }
            YamlDataOwned::Mapping(entries) => {
                let mut map = Vec::with_capacity(entries.len());
                for (key, value) in entries {
                    let at = location(key.span.start.line());
                    let YamlDataOwned::Value(ScalarOwned::String(key)) = key.data else {
                        bail!("{at}: a key must be a plain string");
                    };
                    map.push((key, at, Self::from_yaml(value, location)?));
                }
                Node::Map(map)
            }
            YamlDataOwned::Tagged(..) => bail!("{here}: YAML tags are not used here"),
            _ => bail!("{here}: not a value that can be read"),
        };
        Ok(Self { node, location: here, typed: None })
    }

    /// Wraps the tree in a mapping for each part of a dotted key.
    pub(super) fn under(self, key: &str) -> Self {
        key.rsplit('.').fold(self, |tree, part| {
            let location = tree.location.clone();
            Self { node: Node::Map(vec![(part.to_owned(), location.clone(), tree)]), location, typed: None }
        })
    }

    /// Lays `other` over this tree: mappings merge, everything else replaces.
    pub(super) fn merge(&mut self, other: Self) {
        match (&mut self.node, other.node) {
            (Node::Map(mine), Node::Map(theirs)) => {
                for (key, location, tree) in theirs {
                    match mine.iter_mut().find(|(name, ..)| *name == key) {
                        Some((_, at, existing)) => {
                            *at = location;
                            existing.merge(tree);
                        }
                        None => mine.push((key, location, tree)),
                    }
                }
            }
            // A section that a later file leaves empty keeps what earlier ones said.
            (Node::Map(_), Node::Null) => {}
            (mine, theirs) => {
                *mine = theirs;
                self.location = other.location;
                self.typed = other.typed;
            }
        }
    }
}

impl Typed {
    /// The value of a key that holds text; `parsed` is the same as YAML. Quotes around all of it are YAML's,
    /// and `null` or nothing is no value.
    pub(super) fn as_text(&self, parsed: &Node) -> Node {
        let trimmed = self.text.trim();
        let is_quoted = self.fault.is_none() && trimmed.starts_with(['"', '\'']);
        match parsed {
            Node::Text(text) if is_quoted => Node::Text(text.clone()),
            _ if self.text.is_empty() || trimmed == "null" => Node::Null,
            _ => Node::Text(self.text.clone()),
        }
    }
}

impl Node {
    /// The node as the value of a `--set`.
    pub(super) fn as_setting(&self) -> String {
        let is_plain = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_alphabetic())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c))
        };
        match self {
            Self::Text(text) if !is_plain(text) => serde_json::json!(text).to_string(),
            Self::List(items) => {
                format!("[{}]", items.iter().map(|item| item.node.as_setting()).collect::<Vec<_>>().join(", "))
            }
            Self::Map(entries) => {
                let entry = |(key, _, tree): &(String, String, Tree)| {
                    format!("{}: {}", serde_json::json!(key), tree.node.as_setting())
                };
                format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(", "))
            }
            other => other.describe(),
        }
    }

    /// For messages: the value as it was meant.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Null => "null".into(),
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Text(value) => value.clone(),
            Self::List(_) => "a list".into(),
            Self::Map(_) => "a mapping".into(),
        }
    }
}
