//! Lists as Python prints them, which pandas writes into CSV cells: `['a', "b"]`, `('a',)`, `{'a', 'b'}`,
//! `{'a': 1}`, `[u'a']`, numpy's `['a' 'b']`, `array([...])` and `[np.str_('a')]`, pandas' `Index([...])`; and R's
//! `c("a", "b")`.

use serde_json::{Map, Number, Value};

/// Nesting that a list of labels never has.
const DEEPEST: usize = 8;

/// The value that a text prints, if it is a list, tuple, set or dictionary and nothing else.
pub(super) fn parse(text: &str) -> Option<Value> {
    let mut reader = Reader { rest: text.trim() };
    let value = reader.container(0)?;
    reader.skip_space();
    reader.rest.is_empty().then_some(value)
}

/// Returns true if a text starts like such a list: with a bracket, or with a call on a list.
pub(super) fn is_begun(text: &str) -> bool {
    let rest = text.get(called(text).unwrap_or(0)..).unwrap_or_default().trim_start();
    let has_quote = rest.get(1..).is_some_and(|rest| rest.trim_start().starts_with(['\'', '"']));
    rest.starts_with(['[', '{']) && (rest.len() < text.len() || text.starts_with(['[', '{']))
        || rest.starts_with('(') && has_quote
        || rest.starts_with(['\'', '"']) && text.starts_with("c(")
}

/// Where the arguments begin, if a text starts with the call of a name, such as `np.array(`.
fn called(text: &str) -> Option<usize> {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "._".contains(c)))?;
    (end > 0 && !text.starts_with(|c: char| c.is_ascii_digit()) && text[end..].starts_with('(')).then_some(end + 1)
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn container(&mut self, depth: usize) -> Option<Value> {
        if depth > DEEPEST {
            return None;
        }
        if ["set()", "frozenset()", "character(0)", "list()"].iter().any(|empty| self.take(empty)) {
            return Some(Value::Array(Vec::new()));
        }
        if !self.rest.starts_with("c(")
            && let Some(start) = called(self.rest)
        {
            self.rest = self.rest[start..].trim_start();
            let value = self.container(depth + 1)?;
            self.arguments()?;
            return Some(value);
        }
        let close = match () {
            () if self.take("[") => ']',
            () if self.take("(") || self.take("c(") => ')',
            () if self.take("{") => return self.braces(depth),
            () => return None,
        };
        let mut items = Vec::new();
        while !self.closes(close) {
            items.push(self.item(depth)?);
            self.comma();
        }
        Some(Value::Array(items))
    }

    /// A set, or a dictionary.
    fn braces(&mut self, depth: usize) -> Option<Value> {
        let (mut items, mut entries) = (Vec::new(), Map::new());
        while !self.closes('}') {
            let item = self.item(depth)?;
            self.skip_space();
            if self.take(":") {
                let Value::String(key) = item else { return None };
                self.skip_space();
                entries.insert(key, self.item(depth)?);
            } else {
                items.push(item);
            }
            self.comma();
        }
        match (items.is_empty(), entries.is_empty()) {
            (true, _) => Some(Value::Object(entries)),
            (false, true) => Some(Value::Array(items)),
            (false, false) => None,
        }
    }

    fn item(&mut self, depth: usize) -> Option<Value> {
        self.skip_space();
        match self.rest.chars().next()? {
            quote @ ('\'' | '"') => self.quoted(quote).map(Value::String),
            '[' | '(' | '{' => self.container(depth + 1),
            // Python 2's text, and bytes.
            'u' | 'b' if self.rest[1..].starts_with(['\'', '"']) => {
                self.rest = &self.rest[1..];
                self.item(depth)
            }
            _ if depth < DEEPEST
                && let Some(start) = called(self.rest) =>
            {
                self.rest = &self.rest[start..];
                let value = self.item(depth + 1)?;
                self.arguments()?;
                Some(value)
            }
            _ => self.word(),
        }
    }

    fn quoted(&mut self, quote: char) -> Option<String> {
        let mut text = String::new();
        let mut chars = self.rest[1..].char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                _ if c == quote => {
                    self.rest = &self.rest[1 + at + 1..];
                    return Some(text);
                }
                '\\' => match chars.next()?.1 {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    kind @ ('x' | 'u' | 'U') => {
                        let digits = match kind {
                            'x' => 2,
                            'u' => 4,
                            _ => 8,
                        };
                        let code: String = chars.by_ref().take(digits).map(|(_, digit)| digit).collect();
                        text.push(char::from_u32(u32::from_str_radix(&code, 16).ok()?)?);
                    }
                    other => text.push(other),
                },
                _ => text.push(c),
            }
        }
        None
    }

    /// A number or a constant; other words are not Python's.
    fn word(&mut self) -> Option<Value> {
        let end = self.rest.find(|c: char| c.is_whitespace() || ",:[](){}'\"".contains(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        match word {
            "True" => Some(Value::Bool(true)),
            "False" => Some(Value::Bool(false)),
            "None" | "nan" | "NaN" => Some(Value::Null),
            _ => match word.parse::<i64>() {
                Ok(number) => Some(number.into()),
                Err(_) => word.parse::<f64>().ok().and_then(Number::from_f64).map(Value::Number),
            },
        }
    }

    /// Skips what follows the first argument of a call: numpy adds `, dtype=object`.
    fn arguments(&mut self) -> Option<()> {
        while !self.closes(')') {
            self.skip_space();
            let found = self.rest.find([',', ')', '\'', '"', '[', '{'])?;
            match self.rest.as_bytes()[found] {
                b')' => self.rest = &self.rest[found..],
                b',' => self.rest = &self.rest[found + 1..],
                quote @ (b'\'' | b'"') => {
                    self.rest = &self.rest[found..];
                    self.quoted(char::from(quote))?;
                }
                _ => return None,
            }
        }
        Some(())
    }

    fn closes(&mut self, close: char) -> bool {
        self.skip_space();
        match self.rest.strip_prefix(close) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Skips a comma if there is one: numpy leaves them out.
    fn comma(&mut self) {
        self.skip_space();
        self.take(",");
    }

    fn take(&mut self, start: &str) -> bool {
        let rest = self.rest.strip_prefix(start);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_python_prints_is_read() {
        for (text, value) in [
            (r#"['a', "it's", 'b\'c\\']"#, json!(["a", "it's", "b'c\\"])),
            ("['feature request', 'x,y']", json!(["feature request", "x,y"])),
            ("('a',)", json!(["a"])),
            ("{'a', 'b'}", json!(["a", "b"])),
            ("['a' 'b'\n 'c']", json!(["a", "b", "c"])),
            ("array(['a', 'b'], dtype=object)", json!(["a", "b"])),
            ("[0. 1. 1.]", json!([0.0, 1.0, 1.0])),
            ("[0 1 1]", json!([0, 1, 1])),
            ("{'a': 1, 'b': False}", json!({"a": 1, "b": false})),
            ("{'choices': ['a', 'b']}", json!({"choices": ["a", "b"]})),
            (r"['B\xfccher', None]", json!(["Bücher", null])),
            (r#"c("a", "b")"#, json!(["a", "b"])),
            ("[u'a', u\"b\"]", json!(["a", "b"])),
            ("[np.str_('a'), np.str_('b c')]", json!(["a", "b c"])),
            ("[np.int64(1), np.float64(0.5)]", json!([1, 0.5])),
            ("np.array(['a', 'b'], dtype='<U1')", json!(["a", "b"])),
            ("Index(['a', 'b'], dtype='object', name='x)')", json!(["a", "b"])),
            ("set(['a', 'b'])", json!(["a", "b"])),
            ("frozenset({'a'})", json!(["a"])),
            ("set()", json!([])),
            ("{}", json!({})),
            ("[]", json!([])),
        ] {
            assert_eq!(parse(text), Some(value), "{text}");
        }
    }

    #[test]
    fn other_texts_are_not() {
        let (deep, calls) = ("[".repeat(100_000), "[f(".repeat(100_000));
        for text in [
            "",
            "a",
            "[a, b]",
            "['a'",
            "['a'] x",
            "(other)",
            "{a}",
            "{'a': 1, 'b'}",
            "'a'",
            "[,]x",
            &deep,
            "[é",
            "f(['a']",
            "f(g(['a'])",
            "1(['a'])",
            &calls,
            "[u'a]",
            "f(['a'], [)",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn starts_of_lists_are_told_from_names() {
        for text in ["['a'", "{", "(\"a\"", "np.array([1", "Index(['a'", "set(['a'", "c(\"a\"", "f( ['"] {
            assert!(is_begun(text), "{text}");
        }
        for text in ["", "a", "(other)", "Sales (EU)", "f(x)", "a, b", "x(", "C#", "é(['a'])", "'a'"] {
            assert!(!is_begun(text), "{text}");
        }
    }
}
