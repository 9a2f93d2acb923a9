//! `tokenizer.json` of a GGUF file's metadata.

use std::cmp::Reverse;
use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::header::Header;
use super::names::Architecture;

const PREFIX: &str = "tokenizer.ggml";
/// Kinds of tokens, as llama.cpp numbers them.
const UNKNOWN: usize = 2;
const CONTROL: usize = 3;
const USER_DEFINED: usize = 4;

pub(super) fn of(file: &Header, architecture: Architecture) -> Result<Vec<(&'static str, Value)>> {
    let mut words = file.texts(&format!("{PREFIX}.tokens"))?;
    if architecture == Architecture::Gemma3 {
        as_transformers_has_them(&mut words);
    }
    let kind = file.text(&format!("{PREFIX}.model"))?.unwrap_or("none");
    let tokenizer = match kind {
        "gpt2" => byte_level(file, architecture, &words)?,
        "llama" => sentence_piece(file, architecture, &words)?,
        other => bail!("`{PREFIX}.model` is {other}; read are gpt2 and llama; {}", beside(file)),
    };
    let mut config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false});
    for (key, name) in [("bos", "bos_token"), ("eos", "eos_token"), ("padding", "pad_token"), ("unknown", "unk_token")]
    {
        if let Some(word) = special(file, key, &words)? {
            config[name] = word.into();
        }
    }
    if let Some(template) = file.text("tokenizer.chat_template")? {
        config["chat_template"] = template.into();
    }
    Ok(vec![("tokenizer.json", tokenizer), ("tokenizer_config.json", config)])
}

/// Gemma's words for a tab and for spaces, which llama.cpp's converter wrote out. Gemma 3 has a tab beside the byte: then
/// transformers finds the tab, and the byte stays what it is.
fn as_transformers_has_them(words: &mut [String]) {
    let has_tab = words.iter().any(|word| word == "\t");
    for word in words {
        if word == "<0x09>" && !has_tab {
            *word = "\t".to_owned();
        } else if !word.is_empty() && word.chars().all(|c| c == ' ') {
            *word = word.replace(' ', "\u{2581}");
        }
    }
}

/// What to do where the file's tokenizer is not read.
fn beside(file: &Header) -> String {
    format!("put the model's tokenizer.json beside {}", file.path.display())
}

fn special(file: &Header, key: &str, words: &[String]) -> Result<Option<String>> {
    let Some(id) = file.count(&format!("{PREFIX}.{key}_token_id"))? else { return Ok(None) };
    Ok(Some(words.get(id).with_context(|| format!("`{PREFIX}.{key}_token_id` is {id}"))?.clone()))
}

/// Tokens that texts are searched for before anything else.
fn added(file: &Header, architecture: Architecture, words: &[String]) -> Result<Vec<Value>> {
    let key = format!("{PREFIX}.token_type");
    let Some(kinds) = file.value(&key) else { return Ok(Vec::new()) };
    let kinds = kinds.to_vec().with_context(|| format!("`{key}` is no list"))?;
    let mut added = Vec::new();
    for (id, (word, kind)) in words.iter().zip(kinds).enumerate() {
        let kind = kind.to_i32().map(|kind| kind as usize).or_else(|_| kind.to_u32().map(|kind| kind as usize))?;
        if [UNKNOWN, CONTROL, USER_DEFINED].contains(&kind) {
            added.push(json!({
                "id": id, "content": word, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": kind == USER_DEFINED && architecture == Architecture::Gemma3,
                "special": kind != USER_DEFINED,
            }));
        }
    }
    Ok(added)
}

/// What stands around every text.
fn template(file: &Header, words: &[String], adds_bos: bool) -> Result<Option<Value>> {
    let is_added =
        |key: &str, usual: bool| file.flag(&format!("{PREFIX}.add_{key}_token")).map(|flag| flag.unwrap_or(usual));
    let (mut single, mut pair, mut tokens) = (Vec::new(), Vec::new(), serde_json::Map::new());
    let mut add = |key: &str, parts: &mut [&mut Vec<Value>; 2], at: usize| -> Result<()> {
        let id = file.count(&format!("{PREFIX}.{key}_token_id"))?;
        let id = id.with_context(|| format!("`{PREFIX}.add_{key}_token` without `{PREFIX}.{key}_token_id`"))?;
        let word = words.get(id).with_context(|| format!("`{PREFIX}.{key}_token_id` is {id}"))?;
        tokens.insert(word.clone(), json!({"id": word, "ids": [id], "tokens": [word]}));
        parts[at].push(json!({"SpecialToken": {"id": word, "type_id": at}}));
        Ok(())
    };
    let (bos, eos) = (is_added("bos", adds_bos)?, is_added("eos", false)?);
    if !bos && !eos {
        return Ok(None);
    }
    let mut parts = [&mut single, &mut pair];
    for (at, text) in ["A", "B"].into_iter().enumerate() {
        if bos {
            add("bos", &mut parts, at)?;
        }
        parts[at].push(json!({"Sequence": {"id": text, "type_id": at}}));
        if eos {
            add("eos", &mut parts, at)?;
        }
    }
    let both: Vec<Value> = single.iter().chain(&pair).cloned().collect();
    Ok(Some(json!({"type": "TemplateProcessing", "single": single, "pair": both, "special_tokens": tokens})))
}

/// Byte-level BPE: GPT-2's and its kin's, by what cuts texts into words.
fn byte_level(file: &Header, architecture: Architecture, words: &[String]) -> Result<Value> {
    let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let split = |digits: &str| {
        let regex = format!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        );
        let split = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]})
    };
    let key = format!("{PREFIX}.pre");
    let (cut, normalizer, adds_bos, ignores_merges) = match file.text(&key)? {
        None | Some("gpt-2" | "gpt2") => (bytes(true), Value::Null, false, false),
        Some("smollm") => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            (json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]}), Value::Null, false, false)
        }
        Some("llama-bpe" | "llama3" | "llama-v3") => (split(r"\p{N}{1,3}"), Value::Null, true, true),
        Some("qwen2") => (split(r"\p{N}"), json!({"type": "NFC"}), false, false),
        Some(other) => {
            bail!("`{key}` is {other}; read are gpt-2, smollm, llama-bpe and qwen2; {}", beside(file))
        }
    };
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added(file, architecture, words)?,
        "normalizer": normalizer, "pre_tokenizer": cut,
        "post_processor": template(file, words, adds_bos)?,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignores_merges,
            "vocab": vocabulary(words)?, "merges": file.texts(&format!("{PREFIX}.merges"))?,
        },
    }))
}

fn vocabulary(words: &[String]) -> Result<serde_json::Map<String, Value>> {
    let map: serde_json::Map<String, Value> =
        words.iter().enumerate().map(|(id, word)| (word.clone(), id.into())).collect();
    ensure!(map.len() == words.len(), "`{PREFIX}.tokens` has a word twice");
    Ok(map)
}

/// SentencePiece's BPE: merges are told by the scores of words, as transformers tells them.
fn sentence_piece(file: &Header, architecture: Architecture, words: &[String]) -> Result<Value> {
    let key = format!("{PREFIX}.scores");
    let scores = file.value(&key).with_context(|| format!("it has no `{key}`"))?;
    let scores = scores.to_vec().with_context(|| format!("`{key}` is no list"))?;
    let scores = scores.iter().map(|score| Ok(score.to_f32()?)).collect::<Result<Vec<f32>>>()?;
    ensure!(scores.len() == words.len(), "`{key}` has {} numbers for {} words", scores.len(), words.len());
    let prefix = file.flag(&format!("{PREFIX}.add_space_prefix"))?.unwrap_or(true);
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let is_gemma = architecture == Architecture::Gemma3;
    let normalizer = match prefix && !is_gemma {
        true => json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"}, replace]}),
        false => replace,
    };
    let cut = if is_gemma {
        json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false})
    } else {
        Value::Null
    };
    let unknown = special(file, "unknown", words)?.or_else(|| words.iter().find(|word| *word == "<unk>").cloned());
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added(file, architecture, words)?,
        "normalizer": normalizer, "pre_tokenizer": cut, "post_processor": template(file, words, true)?,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary(words)?, "merges": merges(words, &scores),
        },
    }))
}

/// Every cut of a word into two words, the highest score first (`generate_merges` of transformers 4.57.6).
fn merges<'a>(words: &'a [String], scores: &[f32]) -> Vec<[&'a str; 2]> {
    let ids: HashMap<&str, usize> = words.iter().enumerate().map(|(id, word)| (word.as_str(), id)).collect();
    let mut found = Vec::new();
    for (word, &score) in words.iter().zip(scores) {
        let mut cuts: Vec<(usize, usize, [&str; 2])> = Vec::new();
        for (at, _) in word.char_indices().skip(1) {
            let (left, right) = word.split_at(at);
            if let (Some(&a), Some(&b)) = (ids.get(left), ids.get(right)) {
                cuts.push((a, b, [left, right]));
            }
        }
        cuts.sort_unstable();
        found.extend(cuts.into_iter().map(|(_, _, pair)| (score, pair)));
    }
    // Stable, as Python's.
    let length = |text: &str| text.chars().count();
    found.sort_by(|(a, left), (b, right)| {
        let key = |pair: &[&str; 2]| (Reverse(length(pair[0])), Reverse(length(pair[1])));
        b.total_cmp(a).then_with(|| key(left).cmp(&key(right)))
    });
    found.into_iter().map(|(_, pair)| pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in Google's files of Gemma 2 and of Gemma 3.
    #[test]
    fn a_byte_becomes_the_tab_where_there_is_no_other() {
        let read = |words: &[&str]| {
            let mut words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            as_transformers_has_them(&mut words);
            vocabulary(&words).map(|_| words)
        };
        assert_eq!(read(&["<0x09>", "  ", "a"]).unwrap(), ["\t", "\u{2581}\u{2581}", "a"]);
        assert_eq!(read(&["<0x09>", " ", "\t"]).unwrap(), ["<0x09>", "\u{2581}", "\t"]);
    }

    #[test]
    fn merges_come_by_score_then_by_length() {
        let words: Vec<String> = ["a", "b", "c", "ab", "bc", "abc"].map(str::to_owned).into();
        let scores = [-9.0, -9.0, -9.0, -1.0, -2.0, -1.0];
        assert_eq!(merges(&words, &scores), [["ab", "c"], ["a", "bc"], ["a", "b"], ["b", "c"]]);
    }
}
