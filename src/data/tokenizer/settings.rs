//! `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`: what they say of a tokenizer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use super::class::{Class, NAMED};
use crate::embedded;

/// Settings from the files beside `tokenizer.json`.
pub(super) struct Settings {
    pub(super) class: Class,
    /// The class name as the files spell it.
    pub(super) class_name: String,
    /// `tokenizer_config.json`; empty if there is none.
    pub(super) config: Map<String, Value>,
    pub(super) has_config: bool,
    /// transformers 5 wrote the directory: `tokenizer.json` is complete, and its rules hold.
    pub(super) is_of_version_5: bool,
    special_tokens_map: Option<Map<String, Value>>,
    added_tokens: Option<Map<String, Value>>,
}

/// A special token as a file names it.
pub(super) struct Special {
    /// `bos_token`, …; none for additional ones.
    pub(super) name: Option<String>,
    pub(super) token: AddedToken,
    /// Only its text is given: transformers then leaves a token of this text as it is.
    pub(super) is_text: bool,
}

impl Settings {
    /// Reads what is there of the files; the class comes from `tokenizer_config.json`, else from the model's
    /// `config.json`.
    pub(super) fn read(files: &[PathBuf], model_config: &Path) -> Result<Self> {
        let read = |name: &str| file_named(files, name).map(object).transpose();
        let config = read("tokenizer_config.json")?;
        let has_config = config.is_some();
        let config = config.unwrap_or_default();
        let model = object(model_config)?;
        let text = |map: &Map<String, Value>, key: &str| map.get(key).and_then(Value::as_str).map(str::to_owned);
        let class_name = text(&config, "tokenizer_class")
            .or_else(|| text(&model, "tokenizer_class"))
            .or_else(|| text(&model, "model_type").and_then(|of| Class::of_model_type(&of).map(str::to_owned)));
        // A model_type that is not supported is refused where the model is read.
        let class_name = class_name.unwrap_or_else(|| "PreTrainedTokenizerFast".to_owned());
        let class = Class::from_name(&class_name).with_context(|| unknown_class(&class_name))?;
        let is_of_version_5 = config.contains_key("backend") || class_name == "TokenizersBackend";
        let settings = Self {
            class,
            class_name,
            config,
            has_config,
            is_of_version_5,
            special_tokens_map: read("special_tokens_map.json")?,
            added_tokens: read("added_tokens.json")?,
        };
        settings.refuse_what_is_not_computed()?;
        Ok(settings)
    }

    /// The settings of a `tokenizer.json` in which everything is applied: of the `tokenizer_config.json` beside it,
    /// if there is one, only keys count that have no place in `tokenizer.json`.
    pub(super) fn of_finished(path: &Path) -> Result<Self> {
        let mut config = if embedded::is_file(path) { object(path)? } else { Map::new() };
        config.retain(|key, _| ["truncation_side", "split_special_tokens"].contains(&key.as_str()));
        Ok(Self {
            class: Class::Plain,
            class_name: "PreTrainedTokenizerFast".to_owned(),
            config,
            has_config: true,
            is_of_version_5: true,
            special_tokens_map: None,
            added_tokens: None,
        })
    }

    fn refuse_what_is_not_computed(&self) -> Result<()> {
        for (key, why) in [
            ("fix_mistral_regex", "replaces the pre-tokenizer's pattern"),
            ("from_slow", "builds the tokenizer anew, without tokenizer.json"),
        ] {
            ensure!(
                !self.flag(key)?.unwrap_or(false),
                "tokenizer_config.json: `{key}` is true, which {why} and is not supported; {}",
                how_to_make_plain()
            );
        }
        Ok(())
    }

    /// A key that is true or false; none if it is absent or null.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => bail!("tokenizer_config.json: `{key}` is {other}, expected true or false"),
        }
    }

    /// True if texts that are too long lose their beginning; `None` if the file does not say.
    pub(super) fn cuts_left(&self) -> Result<Option<bool>> {
        match self.config.get("truncation_side") {
            None => Ok(None),
            Some(Value::String(side)) if side == "left" => Ok(Some(true)),
            Some(Value::String(side)) if side == "right" => Ok(Some(false)),
            Some(other) => bail!("tokenizer_config.json: `truncation_side` is {other}, expected \"left\" or \"right\""),
        }
    }

    /// Tokens that the files beside `tokenizer.json` add to it, by their id.
    pub(super) fn added_tokens(&self, tokenizer: &Tokenizer) -> Result<BTreeMap<u32, AddedToken>> {
        let mut added = BTreeMap::new();
        if let Some(listed) = self.config.get("added_tokens_decoder") {
            let context = "tokenizer_config.json: `added_tokens_decoder` is not a list of tokens by their ids";
            for (id, token) in listed.as_object().context(context)? {
                added.insert(id.parse().context(context)?, token_of(token, false).context(context)?);
            }
            return Ok(added);
        }
        let special: Vec<String> = self.special_texts()?;
        for (text, id) in self.added_tokens.iter().flatten() {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.with_context(|| format!("added_tokens.json: the id of `{text}` is not a number"))?;
            added.insert(id, AddedToken::from(text.clone(), special.contains(text)));
        }
        added.extend(tokenizer.get_added_tokens_decoder());
        Ok(added)
    }

    fn special_texts(&self) -> Result<Vec<String>> {
        let mut texts = Vec::new();
        for name in NAMED {
            if let Some((value, _)) = self.attribute(name).filter(|(value, _)| !value.is_null()) {
                texts.push(named(name, token_of(value, true))?.content);
            }
        }
        for value in self.additional_values() {
            texts.push(token_of(value, true)?.content);
        }
        Ok(texts)
    }

    /// The value of a named token, and whether `special_tokens_map.json` has it: that file goes before
    /// `tokenizer_config.json`, unless the latter lists the added tokens.
    fn attribute(&self, name: &str) -> Option<(&Value, bool)> {
        let is_listed = self.config.contains_key("added_tokens_decoder");
        let of_map = self.special_tokens_map.as_ref().filter(|_| !is_listed).and_then(|map| map.get(name));
        of_map.map(|value| (value, true)).or_else(|| self.config.get(name).map(|value| (value, false)))
    }

    fn additional_values(&self) -> Vec<&Value> {
        let is_listed = self.config.contains_key("added_tokens_decoder");
        let mut found: Vec<&Value> = Vec::new();
        let map = self.special_tokens_map.as_ref().filter(|_| !is_listed);
        for source in [Some(&self.config), map].into_iter().flatten() {
            for key in ["additional_special_tokens", "extra_special_tokens"] {
                for value in source.get(key).and_then(Value::as_array).into_iter().flatten() {
                    if !found.contains(&value) {
                        found.push(value);
                    }
                }
            }
        }
        found
    }

    /// The special tokens, named ones first. `added` has those whose spaces and normalization are known.
    pub(super) fn special_tokens(
        &self,
        tokenizer: &Tokenizer,
        added: &BTreeMap<u32, AddedToken>,
    ) -> Result<Vec<Special>> {
        let by_text: BTreeMap<&str, &AddedToken> =
            added.values().map(|token| (token.content.as_str(), token)).collect();
        let mut tokens = Vec::new();
        let padding = tokenizer.get_padding().map(|padding| Value::from(padding.pad_token.clone()));
        for name in NAMED {
            let default = self.class.default_tokens().iter().find(|(of, _)| *of == name).map(|(_, text)| *text);
            let token = match self.attribute(name) {
                Some((Value::Null, _)) => continue,
                Some((value, is_of_map)) => {
                    let token = named(name, token_of(value, is_of_map))?;
                    match by_text.get(token.content.as_str()) {
                        Some(known) => ((*known).clone(), false),
                        None => (token, value.is_string()),
                    }
                }
                None => match (default, &padding) {
                    (Some(text), _) => (AddedToken::from(text, false), true),
                    // GPT-NeoX's constructor passes a pad_token of its own, which is none.
                    (None, Some(padding)) if name == "pad_token" && self.class != Class::GptNeoX => {
                        (token_of(padding, false)?, true)
                    }
                    _ => continue,
                },
            };
            tokens.push(self.as_the_class_makes_it(name, token));
        }
        let mut additional: Vec<(Option<String>, &Value)> =
            self.additional_values().into_iter().map(|value| (None, value)).collect();
        if let Some(named) = self.config.get("extra_special_tokens").and_then(Value::as_object) {
            additional.extend(named.iter().map(|(name, value)| (Some(name.clone()), value)));
        }
        for (name, value) in additional {
            let token = token_of(value, false).context("tokenizer_config.json: additional special tokens")?;
            tokens.push(Special { name, is_text: value.is_string(), token });
        }
        Ok(tokens)
    }

    /// Constructors turn plain texts into tokens with flags of their own.
    fn as_the_class_makes_it(&self, name: &str, (token, is_text): (AddedToken, bool)) -> Special {
        let name = Some(name.to_owned());
        if !is_text {
            return Special { name, token, is_text };
        }
        let is_mask = name.as_deref() == Some("mask_token");
        let text = token.content;
        let (token, is_text) = match self.class {
            Class::Qwen2 => (AddedToken::from(text, true), false),
            Class::Roberta if is_mask => (AddedToken::from(text, false).normalized(false).lstrip(true), false),
            Class::Albert if is_mask => (AddedToken::from(text, false).normalized(false).lstrip(true), false),
            Class::MpNet => (AddedToken::from(text, false).lstrip(is_mask), false),
            Class::XlmRoberta if is_mask => (AddedToken::from(text, false).lstrip(true), false),
            _ => (AddedToken::from(text, true), true),
        };
        Special { name, token, is_text }
    }
}

/// The file of this name, if it is there.
pub(super) fn file_named<'a>(files: &'a [PathBuf], name: &str) -> Option<&'a Path> {
    files.iter().map(PathBuf::as_path).find(|path| path.file_name().is_some_and(|file| file == name))
}

fn object(path: &Path) -> Result<Map<String, Value>> {
    let text = embedded::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{}: not a JSON object", path.display()))
}

fn named(name: &str, token: Result<AddedToken>) -> Result<AddedToken> {
    token.with_context(|| format!("`{name}` in tokenizer_config.json or special_tokens_map.json"))
}

/// A token as a text, or as an object with its flags. Absent flags are those of transformers' `AddedToken`.
fn token_of(value: &Value, is_special: bool) -> Result<AddedToken> {
    if let Some(text) = value.as_str() {
        return Ok(AddedToken::from(text, is_special));
    }
    let content = value.get("content").and_then(Value::as_str);
    let content = content.with_context(|| format!("expected a token, not {value}"))?;
    let flag = |key: &str, default: bool| value.get(key).and_then(Value::as_bool).unwrap_or(default);
    let special = flag("special", is_special);
    Ok(AddedToken {
        content: content.to_owned(),
        single_word: flag("single_word", false),
        lstrip: flag("lstrip", false),
        rstrip: flag("rstrip", false),
        normalized: flag("normalized", !special),
        special,
    })
}

fn unknown_class(name: &str) -> String {
    format!(
        "the tokenizer's class, `tokenizer_class` in tokenizer_config.json, is `{name}`, which is not supported: it may \
         change what tokenizer.json says. If tokenizer.json alone is right, set `tokenizer_class` to \
         `PreTrainedTokenizerFast`; or {}",
        how_to_make_plain()
    )
}

/// Instructions to make a directory with a complete `tokenizer.json`.
fn how_to_make_plain() -> &'static str {
    "write one in Python: `PreTrainedTokenizerFast(tokenizer_object=AutoTokenizer.from_pretrained(DIR)\
     .backend_tokenizer).save_pretrained(DIR)`"
}
