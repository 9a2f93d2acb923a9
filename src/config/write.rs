//! Writes a configuration as YAML. Scalars and lists are written as JSON, which YAML contains.

use serde_json::Value;

/// Block style for mappings, flow style for everything inside them.
pub(super) fn yaml(value: &Value) -> String {
    let mut out = String::new();
    write(value, 0, &mut out);
    out
}

fn write(value: &Value, indent: usize, out: &mut String) {
    let Value::Object(entries) = value else {
        unreachable!("a configuration is a mapping of mappings");
    };
    for (key, value) in entries {
        out.push_str(&" ".repeat(indent));
        // Section and key names are plain; label names may be anything, which JSON quotes.
        if key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !key.starts_with(|c: char| c.is_ascii_digit())
        {
            out.push_str(key);
        } else {
            out.push_str(&Value::from(key.as_str()).to_string());
        }
        if value.is_object() {
            out.push_str(":\n");
            write(value, indent + 2, out);
        } else {
            out.push_str(": ");
            out.push_str(&value.to_string());
            out.push('\n');
        }
    }
}
