//! The declaration of a configuration key: type, default, bounds and documentation in one place.
//!
//! `section!` turns declarations into a struct, its reader, and the [`Key`]s from which
//! `docs/configuration.md` and `docs/config.schema.json` are written.

use serde::Serialize;
use serde_json::{Value as Json, json};

use super::reader::Section;
use super::tree::{Node, Tree};
use super::value::{FromNode, Value};

/// A key as the reference and the JSON Schema describe it.
#[derive(Clone, Debug)]
pub struct Key {
    /// The mapping that holds the key.
    pub section: &'static str,
    /// The key's name in its section.
    pub name: &'static str,
    /// Documentation: one or more sentences.
    pub doc: String,
    /// JSON; `None` if the key is required.
    pub default: Option<Json>,
    /// JSON Schema of a value.
    pub schema: Json,
    /// The expected value, for errors: "a whole number".
    pub expected: &'static str,
}

/// The default of a key and what holds for its values.
pub(super) struct Rule<T> {
    pub(super) is_required: bool,
    pub(super) default: T,
    minimum: Option<Bound>,
    maximum: Option<Bound>,
    checks: Vec<(fn(&T) -> bool, &'static str)>,
    normalize: Option<fn(T) -> T>,
}

#[derive(Clone, Copy)]
struct Bound {
    value: f64,
    is_inclusive: bool,
}

/// A key that must be given.
pub(super) fn required<T: Default>() -> Rule<T> {
    Rule { is_required: true, ..or(T::default()) }
}

/// A key with a default.
pub(super) fn or<T>(default: T) -> Rule<T> {
    Rule { is_required: false, default, minimum: None, maximum: None, checks: Vec::new(), normalize: None }
}

impl<T: KeyType> Rule<T> {
    pub(super) fn at_least(self, value: impl Into<f64>) -> Self {
        Self { minimum: Some(Bound { value: value.into(), is_inclusive: true }), ..self }
    }

    pub(super) fn above(self, value: impl Into<f64>) -> Self {
        Self { minimum: Some(Bound { value: value.into(), is_inclusive: false }), ..self }
    }

    pub(super) fn at_most(self, value: impl Into<f64>) -> Self {
        Self { maximum: Some(Bound { value: value.into(), is_inclusive: true }), ..self }
    }

    pub(super) fn below(self, value: impl Into<f64>) -> Self {
        Self { maximum: Some(Bound { value: value.into(), is_inclusive: false }), ..self }
    }

    /// `message` follows the key's name in the error.
    pub(super) fn check(mut self, holds: fn(&T) -> bool, message: &'static str) -> Self {
        self.checks.push((holds, message));
        self
    }

    /// Two spellings of one value become one.
    pub(super) fn normalize(self, to: fn(T) -> T) -> Self {
        Self { normalize: Some(to), ..self }
    }

    /// The problem with a given value, worded to follow the key's name.
    pub(super) fn problem(&self, value: &T) -> Option<String> {
        if let Some(number) = value.number() {
            let is_low = self.minimum.is_some_and(|min| number < min.value || number == min.value && !min.is_inclusive);
            let is_high =
                self.maximum.is_some_and(|max| number > max.value || number == max.value && !max.is_inclusive);
            if is_low || is_high {
                return Some(format!("is {number}, expected {}", self.range()));
            }
        }
        self.checks.iter().find(|(holds, _)| !holds(value)).map(|(_, message)| (*message).to_owned())
    }

    fn range(&self) -> String {
        let low = self
            .minimum
            .map(|min| format!("{} {}", if min.is_inclusive { "at least" } else { "more than" }, min.value));
        let high =
            self.maximum.map(|max| format!("{} {}", if max.is_inclusive { "at most" } else { "less than" }, max.value));
        [low, high].into_iter().flatten().collect::<Vec<_>>().join(" and ")
    }

    fn schema(&self) -> Json {
        let mut schema = T::schema();
        let bounds = [(self.minimum, "minimum", "exclusiveMinimum"), (self.maximum, "maximum", "exclusiveMaximum")];
        for (bound, inclusive, exclusive) in bounds {
            if let (Some(bound), Some(schema)) = (bound, schema.as_object_mut()) {
                schema.insert(if bound.is_inclusive { inclusive } else { exclusive }.to_owned(), number(bound.value));
            }
        }
        schema
    }
}

/// Whole numbers are written without a fraction.
fn number(value: f64) -> Json {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

/// For a list where an empty one means the same as none.
pub(super) fn empty_is_none<T>(list: Option<Vec<T>>) -> Option<Vec<T>> {
    list.filter(|list| !list.is_empty())
}

/// For a count where 0 means the same as none.
pub(super) fn zero_is_none(count: Option<usize>) -> Option<usize> {
    count.filter(|&count| count > 0)
}

/// The type of a key: any type that YAML can become, or an `Option` of one, where null means none.
pub(super) trait KeyType: Sized + Serialize {
    const EXPECTED: &'static str;
    const IS_TEXT: bool;

    fn fault(node: Value<'_>) -> Option<String>;

    /// The value of `null`; `None` stands for the default.
    fn of_null() -> Option<Self>;

    /// The value, or `None` if the node has another type.
    fn of_node(node: Value<'_>) -> Option<Self>;

    /// JSON Schema of its values.
    fn schema() -> Json;

    /// The value as a number, for bounds.
    fn number(&self) -> Option<f64>;
}

impl<T: FromNode + Serialize> KeyType for T {
    const EXPECTED: &'static str = <T as FromNode>::EXPECTED;
    const IS_TEXT: bool = <T as FromNode>::IS_TEXT;

    fn fault(node: Value<'_>) -> Option<String> {
        <T as FromNode>::fault(node)
    }

    fn of_null() -> Option<Self> {
        None
    }

    fn of_node(node: Value<'_>) -> Option<Self> {
        T::from_node(node)
    }

    fn schema() -> Json {
        <T as FromNode>::schema()
    }

    fn number(&self) -> Option<f64> {
        <T as FromNode>::number(self)
    }
}

impl<T: FromNode + Serialize> KeyType for Option<T> {
    const EXPECTED: &'static str = <T as FromNode>::EXPECTED;
    const IS_TEXT: bool = <T as FromNode>::IS_TEXT;

    fn fault(node: Value<'_>) -> Option<String> {
        <T as FromNode>::fault(node)
    }

    fn of_null() -> Option<Self> {
        Some(None)
    }

    fn of_node(node: Value<'_>) -> Option<Self> {
        T::from_node(node).map(Some)
    }

    /// The bounds of a number go beside its type, so null is added there and not in an `anyOf`.
    fn schema() -> Json {
        let mut schema = T::schema();
        match schema.get("type") {
            Some(Json::String(name)) => schema["type"] = json!([name, "null"]),
            _ => schema = json!({ "anyOf": [schema, { "type": "null" }] }),
        }
        schema
    }

    fn number(&self) -> Option<f64> {
        self.as_ref().and_then(FromNode::number)
    }
}

impl Key {
    pub(super) fn new<T: KeyType>(section: &'static str, name: &'static str, doc: &[&str], rule: &Rule<T>) -> Self {
        let default =
            (!rule.is_required).then(|| serde_json::to_value(&rule.default).expect("a default is plain data"));
        let doc = doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ").trim().to_owned();
        Self { section, name, doc, default, schema: rule.schema(), expected: T::EXPECTED }
    }
}

/// Gives a key that holds text the value of a `--set` as it was typed. Returns why the value is not YAML, if it
/// is not.
fn settle<T: KeyType>(tree: &mut Tree) -> Option<String> {
    let typed = tree.typed.take()?;
    if T::IS_TEXT {
        tree.node = typed.as_text(&tree.node);
    }
    typed.fault
}

fn wrong_type<T: KeyType>(key: &str, tree: &Tree) -> String {
    match T::fault(Value(&tree.node)) {
        Some(fault) => format!("{}: `{key}`: {fault}", tree.location),
        None => format!("{}: `{key}` is `{}`, expected {}", tree.location, tree.node.describe(), T::EXPECTED),
    }
}

impl Section {
    /// A key without a default: absent is none, null is `Some(None)`.
    pub(super) fn given<T: KeyType>(&mut self, name: &'static str) -> Option<Option<T>> {
        let (_, mut tree) = self.take(name)?;
        let not_yaml = settle::<T>(&mut tree);
        if matches!(tree.node, Node::Null) {
            return Some(None);
        }
        let value = T::of_node(Value(&tree.node));
        if value.is_none() {
            let key = self.full_name(name);
            self.push(not_yaml.unwrap_or_else(|| wrong_type::<T>(&key, &tree)));
        }
        Some(value)
    }

    /// Takes a key. Absent means the default; so does null, unless the type has a value for it.
    pub(super) fn key<T: KeyType>(&mut self, name: &'static str, rule: Rule<T>) -> T {
        let Some((_, mut tree)) = self.take(name) else {
            if rule.is_required {
                self.push(format!("`{}` is missing", self.full_name(name)));
            }
            return rule.default;
        };
        let not_yaml = settle::<T>(&mut tree);
        if matches!(tree.node, Node::Null) {
            if rule.is_required {
                self.push(format!("{}: `{}` is missing", tree.location, self.full_name(name)));
            }
            return T::of_null().unwrap_or(rule.default);
        }
        let key = self.full_name(name);
        let Some(value) = T::of_node(Value(&tree.node)) else {
            self.push(not_yaml.unwrap_or_else(|| wrong_type::<T>(&key, &tree)));
            return rule.default;
        };
        match rule.problem(&value) {
            Some(problem) => {
                self.push(format!("{}: `{key}` {problem}", tree.location));
                rule.default
            }
            None => match rule.normalize {
                Some(normalize) => normalize(value),
                None => value,
            },
        }
    }
}

/// Declares a section: documentation and `name: type = rule;` for each key. `checked by` names a method
/// `(&self, &Section)`, or `(&mut self, &Section)`, with the rules that concern several keys.
macro_rules! section {
    (
        $(#[$meta:meta])*
        pub struct $struct:ident in $section:literal $(checked by $check:ident)? {
            $($(#[doc = $doc:literal])+ $(#[serde($($serde:tt)*)])? $name:ident: $type:ty = $rule:expr;)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, serde::Serialize)]
        pub struct $struct {
            $($(#[doc = $doc])+ $(#[serde($($serde)*)])? pub $name: $type,)+
        }

        impl $struct {
            pub(super) fn read(section: &mut $crate::config::reader::Section) -> Self {
                #[allow(unused_mut, reason = "some sections settle keys that depend on others")]
                let mut config = Self { $($name: section.key(stringify!($name), $rule),)+ };
                $(config.$check(section);)?
                config
            }

            /// The keys, in the order of their declaration.
            #[must_use]
            pub fn keys() -> Vec<$crate::config::keys::Key> {
                vec![$($crate::config::keys::Key::new::<$type>($section, stringify!($name), &[$($doc),+], &$rule),)+]
            }
        }
    };
}
pub(super) use section;
