//! A model's tokenizer as transformers' `AutoTokenizer` loads it: `tokenizer.json`, and what `tokenizer_config.json`,
//! `special_tokens_map.json` and `added_tokens.json` change in it.
//!
//! The rules are those of transformers 4.57. They differ from those of transformers 5, which takes the post-processor
//! of `tokenizer.json` whatever `add_bos_token` and `add_eos_token` say; version 5's hold for a directory that it
//! wrote (its `tokenizer_config.json` has the key `backend`).

mod apply;
mod class;
mod resolved;
mod save;
mod settings;
mod vocabulary;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::de::IgnoredAny;
use tokenizers::Tokenizer;

pub(super) use resolved::{Resolved, unless_it_panics};
use settings::{Settings, file_named};

use crate::embedded;

/// Loads the tokenizer that consists of `files`; `model_config` is the model's `config.json`.
///
/// # Errors
/// If a file is malformed, a key asks for something that is not supported, or there is no vocabulary to build
/// a tokenizer from.
pub(super) fn load(files: &[PathBuf], model_config: &Path) -> Result<Resolved> {
    let settings = Settings::read(files, model_config)?;
    let source = file_named(files, "tokenizer.json");
    let tokenizer = match source {
        Some(path) => read(path)?,
        None => {
            let built = serde_json::to_vec(&vocabulary::build(&settings, files)?)?;
            unless_it_panics(|| Tokenizer::from_bytes(&built))
                .context("cannot build a tokenizer from the vocabulary")?
        }
    };
    let mut resolved = apply::apply(tokenizer, settings, source.is_none())?;
    resolved.source = source.map(Path::to_owned);
    resolved.has_special_tokens_map = file_named(files, "special_tokens_map.json").is_some();
    Ok(resolved)
}

/// Loads a `tokenizer.json` in which everything is applied already.
///
/// # Errors
/// If it, or the `tokenizer_config.json` beside it, is malformed.
pub(super) fn load_finished(path: &Path) -> Result<Resolved> {
    let settings = Settings::of_finished(&path.with_file_name("tokenizer_config.json"))?;
    let mut resolved = apply::apply(read(path)?, settings, false)?;
    resolved.source = Some(path.to_owned());
    Ok(resolved)
}

/// Reads a `tokenizer.json`.
fn read(path: &Path) -> Result<Tokenizer> {
    let read = || -> Result<Tokenizer> {
        let bytes = embedded::read(path)?;
        serde_json::from_slice::<IgnoredAny>(&bytes).context("not valid JSON")?;
        unless_it_panics(|| Tokenizer::from_bytes(&bytes))
    };
    read().with_context(|| format!("{}: not a usable tokenizer", path.display()))
}
