//! A tokenizer's files for a trained classifier: what Python needs to give the same token ids.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::{Resolved, read};
use crate::atomic_file;
use crate::embedded;

/// Keys of `tokenizer_config.json` that are applied in the `tokenizer.json` beside it, or that speak of the place
/// it came from.
const APPLIED: [&str; 27] = [
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "auto_map",
    "backend",
    "do_basic_tokenize",
    "do_lower_case",
    "errors",
    "extra_special_tokens",
    "fix_mistral_regex",
    "from_slow",
    "init_inputs",
    "is_local",
    "legacy",
    "local_files_only",
    "merges_file",
    "name_or_path",
    "never_split",
    "sp_model_kwargs",
    "special_tokens_map_file",
    "strip_accents",
    "tokenize_chinese_chars",
    "tokenizer_file",
    "trim_offsets",
    "truncation_side",
    "use_default_system_prompt",
    "vocab_file",
];

impl Resolved {
    /// Writes `tokenizer.json` and `tokenizer_config.json`, and `special_tokens_map.json` if the base has one.
    ///
    /// The class is always `PreTrainedTokenizerFast`: for it, and for no other, transformers 4 and 5 both take
    /// `tokenizer.json` as it stands.
    pub(in crate::data) fn save(&self, directory: &Path) -> Result<()> {
        let bytes = match &self.source {
            // Nothing was changed: the base's own bytes.
            Some(path) if state(&read(path)?)? == state(&self.tokenizer)? => {
                embedded::read(path).with_context(|| format!("{}: cannot read", path.display()))?
            }
            _ => {
                let mut whole = self.tokenizer.clone();
                whole.with_truncation(None).map_err(|error| anyhow::anyhow!("{error}"))?;
                serde_json::to_vec_pretty(&whole)?
            }
        };
        atomic_file::write_bytes(&directory.join("tokenizer.json"), &bytes)?;
        let write = |name: &str, map: &Map<String, Value>| {
            atomic_file::write_bytes(&directory.join(name), &serde_json::to_vec_pretty(map)?)
        };
        write("tokenizer_config.json", &self.config()?)?;
        if self.has_special_tokens_map {
            write("special_tokens_map.json", &self.special_tokens_map())?;
        }
        Ok(())
    }

    fn special_tokens_map(&self) -> Map<String, Value> {
        let mut map = Map::new();
        let mut additional = Vec::new();
        for special in &self.special {
            let text = Value::from(special.token.content.clone());
            match &special.name {
                Some(name) => drop(map.insert(name.clone(), text)),
                None => additional.push(text),
            }
        }
        if !additional.is_empty() {
            map.insert("additional_special_tokens".to_owned(), additional.into());
        }
        // A batch needs a token to pad with. As in training, it is never read, so any will do.
        if !map.contains_key("pad_token")
            && let Some(end) = map.get("eos_token").cloned()
        {
            map.insert("pad_token".to_owned(), end);
        }
        map
    }

    fn config(&self) -> Result<Map<String, Value>> {
        let settings = &self.settings;
        let mut config = settings.config.clone();
        config.retain(|key, _| !APPLIED.contains(&key.as_str()));
        let mut set = |key: &str, value: Value| drop(config.insert(key.to_owned(), value));
        set("tokenizer_class", "PreTrainedTokenizerFast".into());
        set("truncation_side", if self.cuts_left { "left" } else { "right" }.into());
        let pre_tokenizer = serde_json::to_value(self.tokenizer.get_pre_tokenizer())?;
        if let Some(prefix) = pre_tokenizer.get("add_prefix_space") {
            set("add_prefix_space", prefix.clone());
        }
        let mut tokens: Vec<_> = self.tokenizer.get_added_tokens_decoder().into_iter().collect();
        tokens.sort_by_key(|(id, _)| *id);
        let tokens = tokens.into_iter().map(|(id, token)| Ok((id.to_string(), serde_json::to_value(token)?)));
        set("added_tokens_decoder", Value::Object(tokens.collect::<Result<_>>()?));
        let has_standard = |name: &str| super::class::NAMED.contains(&name) || name == "additional_special_tokens";
        let (named, own): (Map<_, _>, Map<_, _>) =
            self.special_tokens_map().into_iter().partition(|(name, _)| has_standard(name));
        named.into_iter().for_each(|(name, value)| set(&name, value));
        if !own.is_empty() {
            set("extra_special_tokens", own.into());
        }
        let defaults = [
            ("model_input_names", json!(settings.class.model_inputs(&settings.class_name))),
            ("padding_side", settings.class.padding_side().into()),
            ("clean_up_tokenization_spaces", false.into()),
        ];
        for (key, value) in defaults {
            config.entry(key).or_insert(value);
        }
        Ok(config)
    }
}

/// Everything in a tokenizer that determines token ids, except truncation.
fn state(tokenizer: &Tokenizer) -> Result<Value> {
    let mut state = serde_json::to_value(tokenizer)?;
    state["truncation"] = Value::Null;
    state["padding"] = Value::Null;
    Ok(state)
}
