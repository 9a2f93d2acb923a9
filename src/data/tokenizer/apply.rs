//! Changes to a loaded `tokenizer.json` that the constructors of transformers' fast tokenizers make.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use tokenizers::{
    AddedToken, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer, TruncationDirection,
};

use super::class::Class;
use super::resolved::{Resolved, unless_it_panics};
use super::settings::{Settings, Special};

/// Applies everything; `is_built` if the tokenizer comes from a bare vocabulary.
pub(super) fn apply(mut tokenizer: Tokenizer, mut settings: Settings, is_built: bool) -> Result<Resolved> {
    if !settings.has_config && !is_built && lacks_default_bos(&settings, &tokenizer) {
        // No file says which class it is, and it cannot be the one that belongs to the model's family: transformers
        // would put that class's `<s>` before every text, with an id that the model does not have.
        settings.class = Class::Plain;
        settings.class_name = "PreTrainedTokenizerFast".to_owned();
    }
    let cuts_left = settings.cuts_left()?.unwrap_or_else(|| {
        tokenizer.get_truncation().is_some_and(|built_in| built_in.direction == TruncationDirection::Left)
    });
    let added = settings.added_tokens(&tokenizer)?;
    let special = settings.special_tokens(&tokenizer, &added)?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|error| anyhow!("{error}"))?;
    let tokens = tokens_to_add(&settings, &tokenizer, added.into_values(), &special);
    unless_it_panics(|| tokenizer.add_tokens(tokens)).context("cannot add the special tokens")?;

    apply_prefix_space(&mut tokenizer, &settings)?;
    apply_normalizer(&mut tokenizer, &settings)?;
    apply_post_processor(&mut tokenizer, &settings, &special, is_built)?;
    // Special tokens that stand in a text are then split like any other.
    tokenizer.set_encode_special_tokens(settings.flag("split_special_tokens")?.unwrap_or(false));
    Ok(Resolved { tokenizer, cuts_left, settings, special, source: None, has_special_tokens_map: false })
}

fn lacks_default_bos(settings: &Settings, tokenizer: &Tokenizer) -> bool {
    let default = settings.class.default_tokens().iter().find(|(name, _)| *name == "bos_token");
    settings.class.adds_bos_by_default() == Some(true)
        && default.is_some_and(|(_, text)| tokenizer.token_to_id(text).is_none())
}

/// Tokens that are new, or whose flags change.
fn tokens_to_add(
    settings: &Settings,
    tokenizer: &Tokenizer,
    added: impl Iterator<Item = AddedToken>,
    special: &[Special],
) -> Vec<AddedToken> {
    // Thousands of them in some tokenizers.
    let present: HashMap<String, AddedToken> =
        tokenizer.get_added_tokens_decoder().into_values().map(|token| (token.content.clone(), token)).collect();
    let is_named = |text: &str| special.iter().any(|special| special.token.content == text);
    let mut tokens: Vec<AddedToken> = added.filter(|token| present.get(&token.content) != Some(token)).collect();
    let mut known: HashSet<String> = present.keys().cloned().collect();
    known.extend(tokens.iter().map(|token| token.content.clone()));
    let mut seen: Vec<&str> = Vec::new();
    for Special { token, is_text, .. } in special {
        if seen.contains(&token.content.as_str()) {
            continue;
        }
        seen.push(&token.content);
        // Version 4 sets the flags of a token anew if it is given with flags.
        let stays = (*is_text || settings.is_of_version_5) && known.contains(&token.content);
        if stays || tokens.contains(token) {
            continue;
        }
        known.insert(token.content.clone());
        tokens.push(if *is_text { AddedToken::from(token.content.clone(), true) } else { token.clone() });
    }
    for token in &mut tokens {
        token.special = token.special || is_named(&token.content);
        // The library of version 4 goes on to match a special token as it was first told to, whatever `normalized`
        // says later.
        let first = present.get(&token.content).filter(|first| first.special);
        if let (Some(first), false) = (first, settings.is_of_version_5) {
            token.normalized = first.normalized;
        }
    }
    tokens
}

/// `add_prefix_space`: a blank before a text, where the pre-tokenizer is byte-level BPE's alone or Llama's.
fn apply_prefix_space(tokenizer: &mut Tokenizer, settings: &Settings) -> Result<()> {
    let mut state = serde_json::to_value(tokenizer.get_pre_tokenizer())?;
    let is_llama = settings.class == Class::Llama;
    let wanted = match settings.config.get("add_prefix_space") {
        // Given as null, it is nothing that the pre-tokenizer can be set to.
        None | Some(Value::Null) if is_llama => settings.is_of_version_5.then_some(true),
        Some(Value::Null) => None,
        _ => Some(settings.flag("add_prefix_space")?.unwrap_or(false)),
    };
    if is_llama {
        return match wanted {
            Some(wanted) if !has_byte_level(&state) => apply_metaspace(tokenizer, settings, wanted),
            _ => Ok(()),
        };
    }
    let is_changed = !settings.is_of_version_5 || matches!(settings.class, Class::Roberta | Class::Gpt2);
    if let (Some(wanted), true, Some(Value::Bool(_))) = (wanted, is_changed, state.get("add_prefix_space")) {
        state["add_prefix_space"] = wanted.into();
        tokenizer.with_pre_tokenizer(Some(serde_json::from_value::<PreTokenizerWrapper>(state)?));
    }
    Ok(())
}

fn has_byte_level(pre_tokenizer: &Value) -> bool {
    let parts = pre_tokenizer["pretokenizers"].as_array();
    pre_tokenizer["type"] == "ByteLevel" || parts.into_iter().flatten().any(has_byte_level)
}

/// Llama with `add_prefix_space`: transformers converts the sentencepiece model again, by `legacy`.
fn apply_metaspace(tokenizer: &mut Tokenizer, settings: &Settings, prefix: bool) -> Result<()> {
    let is_legacy = settings.flag("legacy")?.unwrap_or(!settings.is_of_version_5);
    let (normalizer, pre_tokenizer) = match (is_legacy, settings.is_of_version_5) {
        (true, false) => {
            let mut parts = vec![json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" })];
            if prefix {
                parts.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
            }
            (Some(json!({ "type": "Sequence", "normalizers": parts })), None)
        }
        (is_legacy, _) => {
            let scheme = match (prefix, is_legacy) {
                (false, _) => "never",
                (true, true) => "always",
                (true, false) => "first",
            };
            let state = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false });
            (None, Some(state))
        }
    };
    set_normalizer(tokenizer, normalizer)?;
    let pre_tokenizer = pre_tokenizer.map(serde_json::from_value::<PreTokenizerWrapper>).transpose()?;
    tokenizer.with_pre_tokenizer(pre_tokenizer);
    Ok(())
}

/// BERT's `do_lower_case`, `strip_accents` and `tokenize_chinese_chars`, whose defaults count too. MPNet's class of
/// version 4 leaves the last as it is.
fn apply_normalizer(tokenizer: &mut Tokenizer, settings: &Settings) -> Result<()> {
    if !matches!(settings.class, Class::Bert | Class::MpNet) {
        return Ok(());
    }
    let leaves_chinese = settings.class == Class::MpNet && !settings.is_of_version_5;
    let mut state = serde_json::to_value(tokenizer.get_normalizer())?;
    let wanted = [
        ("lowercase", Value::from(settings.flag("do_lower_case")?.unwrap_or(true))),
        ("strip_accents", settings.flag("strip_accents")?.map_or(Value::Null, Value::from)),
        ("handle_chinese_chars", settings.flag("tokenize_chinese_chars")?.unwrap_or(true).into()),
    ];
    // A normalizer of another kind has none of these, and stays.
    if state["type"] == "BertNormalizer" {
        for (key, value) in wanted.into_iter().filter(|(key, _)| *key != "handle_chinese_chars" || !leaves_chinese) {
            state[key] = value;
        }
        set_normalizer(tokenizer, Some(state))?;
    }
    Ok(())
}

fn set_normalizer(tokenizer: &mut Tokenizer, state: Option<Value>) -> Result<()> {
    let normalizer = state.map(serde_json::from_value::<NormalizerWrapper>).transpose()?;
    tokenizer.with_normalizer(normalizer).map(drop).map_err(|error| anyhow!("{error}"))
}

/// Sets the special tokens around a text.
fn apply_post_processor(
    tokenizer: &mut Tokenizer,
    settings: &Settings,
    special: &[Special],
    is_built: bool,
) -> Result<()> {
    let token = |name: &str, key: &str| -> Result<(String, u32)> {
        let found = special.iter().find(|special| special.name.as_deref() == Some(name));
        let text = found.map(|special| special.token.content.clone());
        let text = text.with_context(|| format!("tokenizer_config.json: {key} needs `{name}`, which no file names"))?;
        let id = tokenizer.token_to_id(&text).with_context(|| format!("`{name}` is empty"))?;
        Ok((text, id))
    };
    let rebuilds = is_built || settings.is_of_version_5;
    let state = match (settings.class, settings.class.adds_bos_by_default()) {
        (_, Some(by_default)) if !settings.is_of_version_5 => {
            let (bos, eos) = ("add_bos_token", "add_eos_token");
            let adds_bos = settings.flag(bos)?.unwrap_or(by_default);
            let adds_eos = settings.flag(eos)?.unwrap_or(false);
            let first = adds_bos.then(|| token("bos_token", bos)).transpose()?;
            let last = adds_eos.then(|| token("eos_token", eos)).transpose()?;
            template(first, last)
        }
        (Class::Gpt2, _) if is_built && settings.flag("add_bos_token")?.unwrap_or(false) => {
            template(Some(token("bos_token", "add_bos_token")?), None)
        }
        (Class::Bert | Class::MpNet, _) if rebuilds => {
            let name = "the tokenizer's class";
            template(Some(token("cls_token", name)?), Some(token("sep_token", name)?))
        }
        (Class::Roberta, _) if rebuilds => {
            let name = "the class RobertaTokenizer";
            json!({
                "type": "RobertaProcessing", "trim_offsets": true, "add_prefix_space": false,
                "cls": token("cls_token", name)?, "sep": token("sep_token", name)?,
            })
        }
        (Class::XlmRoberta, _) if rebuilds => {
            let name = "the class XLMRobertaTokenizer";
            template(Some(token("bos_token", name)?), Some(token("eos_token", name)?))
        }
        _ => return Ok(()),
    };
    tokenizer.with_post_processor(Some(serde_json::from_value::<PostProcessorWrapper>(state)?));
    Ok(())
}

/// A text between two tokens, each if there is one.
fn template(first: Option<(String, u32)>, last: Option<(String, u32)>) -> Value {
    let piece = |text: &str| json!({ "SpecialToken": { "id": text, "type_id": 0 } });
    let mut single: Vec<Value> = first.iter().map(|(text, _)| piece(text)).collect();
    single.push(json!({ "Sequence": { "id": "A", "type_id": 0 } }));
    single.extend(last.iter().map(|(text, _)| piece(text)));
    let mut pair = single.clone();
    pair.push(json!({ "Sequence": { "id": "B", "type_id": 1 } }));
    let tokens: serde_json::Map<String, Value> = first
        .into_iter()
        .chain(last)
        .map(|(text, id)| (text.clone(), json!({ "id": text, "ids": [id], "tokens": [text] })))
        .collect();
    json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens })
}
