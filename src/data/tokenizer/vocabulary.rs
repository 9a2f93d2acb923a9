//! `tokenizer.json` made from a vocabulary of WordPiece or byte-level BPE, as transformers' converters make it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::class::Class;
use super::settings::{Settings, file_named};
use crate::embedded;

/// Qwen2's pattern: transformers' `PRETOKENIZE_REGEX`.
const QWEN2_PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The contents of a `tokenizer.json`, without special tokens and without a post-processor that needs their ids.
///
/// # Errors
/// If the directory has no vocabulary of its class, or a malformed one.
pub(super) fn build(settings: &Settings, files: &[PathBuf]) -> Result<Value> {
    let words = file_named(files, "vocab.txt");
    let pairs = file_named(files, "vocab.json").zip(file_named(files, "merges.txt"));
    match (settings.class, words, pairs) {
        (Class::Bert | Class::MpNet, Some(words), _) => word_piece(settings, words),
        (Class::Gpt2 | Class::Roberta | Class::Qwen2, _, Some((vocabulary, merges))) => {
            byte_level(settings, vocabulary, merges)
        }
        (class, ..) => {
            let also = match class {
                Class::Bert | Class::MpNet => ", nor `vocab.txt`",
                Class::Gpt2 | Class::Roberta | Class::Qwen2 => ", nor `vocab.json` with `merges.txt`",
                _ => "",
            };
            bail!(
                "`tokenizer.json` is missing{also} ({}). Make one in Python, with transformers and sentencepiece \
                 installed: `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)`, where DIR is the model's directory",
                settings.class_name
            )
        }
    }
}

fn word_piece(settings: &Settings, path: &Path) -> Result<Value> {
    let text = read(path)?;
    // The last of equal lines counts, as in Python's dictionary.
    let vocabulary: Map<String, Value> =
        text.split_terminator('\n').enumerate().map(|(id, word)| (word.to_owned(), id.into())).collect();
    let flag = |key: &str| settings.flag(key);
    let normalizer = json!({
        "type": "BertNormalizer",
        "clean_text": true,
        "handle_chinese_chars": flag("tokenize_chinese_chars")?.unwrap_or(true),
        "strip_accents": flag("strip_accents")?,
        "lowercase": flag("do_lower_case")?.unwrap_or(true),
    });
    let unknown = settings.config.get("unk_token");
    let unknown = unknown.and_then(|value| value.as_str().or_else(|| value["content"].as_str())).unwrap_or("[UNK]");
    Ok(json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": null,
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": {
            "type": "WordPiece", "unk_token": unknown, "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary,
        },
    }))
}

fn byte_level(settings: &Settings, vocabulary: &Path, merges: &Path) -> Result<Value> {
    let words: Map<String, Value> = serde_json::from_str(&read(vocabulary)?)
        .with_context(|| format!("{}: not a vocabulary", vocabulary.display()))?;
    let prefix = settings.flag("add_prefix_space")?.unwrap_or(false);
    let bytes = |prefix: bool, use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": use_regex });
    let (normalizer, pre_tokenizer) = match settings.class {
        Class::Qwen2 => (
            json!({ "type": "NFC" }),
            json!({ "type": "Sequence", "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": QWEN2_PATTERN }, "behavior": "Isolated", "invert": false },
                bytes(false, false),
            ] }),
        ),
        _ => (Value::Null, bytes(prefix, true)),
    };
    Ok(json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true },
        "decoder": bytes(true, true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": words, "merges": pairs(settings.class, &read(merges)?, merges)?,
        },
    }))
}

/// The merges in the order in which each first stands; their order is their rank.
fn pairs(class: Class, text: &str, path: &Path) -> Result<Vec<[String; 2]>> {
    let lines: Vec<(usize, &str)> = text.split('\n').enumerate().collect();
    let lines: Vec<(usize, &str)> = match class {
        Class::Qwen2 => lines
            .into_iter()
            .map(|(number, line)| (number, line.trim()))
            .filter(|(number, line)| !(line.is_empty() || *number == 0 && line.starts_with("#version:")))
            .collect(),
        // GPT-2 and RoBERTa take all between the first line and the last end of line.
        _ => lines.get(1..lines.len().saturating_sub(1).max(1)).unwrap_or_default().to_vec(),
    };
    let mut ranks: HashMap<[String; 2], usize> = HashMap::new();
    let mut pairs = Vec::new();
    for (number, line) in lines {
        let parts: Vec<&str> = line.split_whitespace().collect();
        let [left, right] = parts[..] else {
            bail!("{}:{}: expected two words, not `{line}`", path.display(), number + 1);
        };
        let pair = [left.to_owned(), right.to_owned()];
        if ranks.insert(pair.clone(), pairs.len()).is_none() {
            pairs.push(pair);
        }
    }
    Ok(pairs)
}

/// A text file, with the ends of lines as Python reads them.
fn read(path: &Path) -> Result<String> {
    let text = embedded::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
    Ok(text.replace("\r\n", "\n").replace('\r', "\n"))
}
