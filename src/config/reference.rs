//! The reference of all keys, from their declarations: Markdown for `docs/`, JSON Schema for editors.

use std::fmt::Write as _;

use serde_json::{Map, Value as Json, json};

use super::data::DataConfig;
use super::exp::ExpConfig;
use super::keys::Key;
use super::model::ModelConfig;
use super::train::TrainConfig;
use super::zeroshot::ZeroshotConfig;

/// A section's name, what it is for, and its keys.
fn sections() -> [(&'static str, &'static str, Vec<Key>); 5] {
    [
        ("data", "Where examples come from.", DataConfig::keys()),
        ("model", "The base model and its adapters.", ModelConfig::keys()),
        ("train", "Training of the adapters.", TrainConfig::keys()),
        ("exp", "Where results go, and the seeds.", ExpConfig::keys()),
        ("zeroshot", "What `llmcls zeroshot` asks the model.", ZeroshotConfig::keys()),
    ]
}

/// The tables of `docs/configuration.md`.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::new();
    for (section, about, keys) in sections() {
        let _ = writeln!(out, "## `{section}`\n\n{about}\n\n| key | values | default | meaning |\n|---|---|---|---|");
        for key in keys {
            let default = match &key.default {
                None => "required".to_owned(),
                Some(Json::Null) => "none".to_owned(),
                Some(Json::String(text)) => format!("`{}`", text.replace('\n', "\\n")),
                Some(value) => format!("`{value}`"),
            };
            let doc = key.doc.replace('|', "\\|");
            let _ = writeln!(out, "| `{section}.{}` | {} | {default} | {doc} |", key.name, values(&key));
        }
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

/// Describes the values of a key in a few words.
fn values(key: &Key) -> String {
    let choices = |schema: &Json| -> Option<String> {
        let choices = schema["oneOf"].as_array()?;
        let names: Vec<String> =
            choices.iter().filter_map(|choice| Some(format!("`{}`", choice["const"].as_str()?))).collect();
        Some(names.join(", "))
    };
    let nested = key.schema["anyOf"].as_array().and_then(|any| any.first()).and_then(choices);
    let mut text = choices(&key.schema).or(nested).unwrap_or_else(|| key.expected.to_owned());
    for (name, words) in
        [("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"), ("exclusiveMaximum", "below")]
    {
        if let Some(bound) = key.schema.get(name).filter(|bound| bound.as_u64() != Some(u64::from(u32::MAX)))
            && !(name == "minimum" && bound == 0 && key.schema["type"].to_string().contains("integer"))
        {
            let _ = write!(text, ", {words} {bound}");
        }
    }
    text.replace('|', "\\|")
}

/// The JSON Schema of a configuration file.
#[must_use]
pub fn json_schema() -> Json {
    let mut properties = Map::new();
    for (name, about, keys) in sections() {
        let mut section = Map::new();
        for key in keys {
            let mut schema = key.schema;
            schema["description"] = Json::String(key.doc);
            if let Some(default) = key.default {
                schema["default"] = default;
            }
            section.insert(key.name.to_owned(), schema);
        }
        // A file may hold a part of a section: several files merge.
        let schema = json!({ "type": ["object", "null"], "description": about, "additionalProperties": false, "properties": section });
        properties.insert(name.to_owned(), schema);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "llmcls configuration",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    })
}
