//! `config.json` and `tokenizer_config.json` of a complete classifier, made of the base's.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::classifier_file::ClassifierFile;
use crate::atomic_file;
use crate::model::config::BackboneConfig;
use crate::model::weights::Precision;

/// The model's file.
pub(super) const CONFIG: &str = "config.json";
/// Keys of a base that no longer hold: where it came from, how its weights were stored, code that it brings.
const DROPPED: [&str; 8] = [
    "_name_or_path",
    "auto_map",
    "dtype",
    "finetuning_task",
    "num_labels",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
];

/// Writes `config.json`: the base's, as its family's `…ForSequenceClassification` for these labels.
///
/// # Errors
/// If the base's file cannot be read or the new one not written.
pub(super) fn write(
    directory: &Path,
    base: &Path,
    file: &ClassifierFile,
    dtype: Precision,
    padding: Option<u32>,
) -> Result<()> {
    let config = read(base)?;
    let mut config = BackboneConfig::in_current_keys(&config)?.unwrap_or(config);
    // transformers 5 calls it so; both versions read both.
    let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    DROPPED.iter().for_each(|key| drop(config.remove(*key)));
    let labels = || file.labels.iter().enumerate();
    let id2label: Map<_, _> = labels().map(|(id, label)| (id.to_string(), json!(label))).collect();
    let label2id: Map<_, _> = labels().map(|(id, label)| (label.clone(), json!(id))).collect();
    for (key, value) in [
        ("architectures", json!([BackboneConfig::classifier_class(base)?])),
        ("id2label", Value::Object(id2label)),
        ("label2id", Value::Object(label2id)),
        ("problem_type", json!(file.problem_type)),
        (key, json!(dtype.name())),
    ] {
        config.insert(key.to_owned(), value);
    }
    if let Some(padding) = padding {
        config.insert("pad_token_id".to_owned(), padding.into());
    }
    if let Some(model_type) = config.get("model_type").and_then(Value::as_str).filter(|_| !file.form.is_usual()) {
        // transformers would compute something else, and must not.
        let own = format!("{}{}", BackboneConfig::OWN_FORM, model_type.trim_start_matches(BackboneConfig::OWN_FORM));
        config.insert("model_type".to_owned(), own.into());
    }
    write_map(&directory.join(CONFIG), &config)
}

/// Makes Python's tokenizer cut texts where llmcls does, pad with `padding`, and give the model no token types if it
/// takes none.
///
/// # Errors
/// If a file cannot be read or written.
pub(super) fn settle_tokenizer(
    directory: &Path,
    max_length: usize,
    padding: Option<&str>,
    has_types: bool,
) -> Result<()> {
    const TYPES: &str = "token_type_ids";
    let path = directory.join("tokenizer_config.json");
    let mut config = if path.is_file() { read(&path)? } else { Map::new() };
    config.entry("tokenizer_class").or_insert_with(|| "PreTrainedTokenizerFast".into());
    config.insert("model_max_length".to_owned(), max_length.into());
    if let Some(padding) = padding {
        config.insert("pad_token".to_owned(), padding.into());
    }
    let inputs = config.entry("model_input_names").or_insert_with(|| json!(["input_ids", TYPES, "attention_mask"]));
    if let Some(inputs) = inputs.as_array_mut().filter(|_| !has_types) {
        inputs.retain(|name| name != TYPES);
    }
    write_map(&path, &config)?;
    let path = directory.join("special_tokens_map.json");
    if let Some(padding) = padding.filter(|_| path.is_file()) {
        let mut map = read(&path)?;
        map.insert("pad_token".to_owned(), padding.into());
        write_map(&path, &map)?;
    }
    Ok(())
}

/// The token that a directory's tokenizer pads with, if it names one.
///
/// # Errors
/// If the file is not valid.
pub(super) fn padding_token(directory: &Path) -> Result<Option<String>> {
    let path = directory.join("tokenizer_config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let config = read(&path)?;
    let token = config.get("pad_token").map(|token| token.get("content").unwrap_or(token));
    Ok(token.and_then(Value::as_str).map(str::to_owned))
}

fn read(path: &Path) -> Result<Map<String, Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{}: not a JSON object", path.display()))
}

fn write_map(path: &Path, map: &Map<String, Value>) -> Result<()> {
    atomic_file::write_bytes(path, &serde_json::to_vec_pretty(map)?)
}
