//! Text to token ids, by a model's own tokenizer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use serde::de::IgnoredAny;
use tokenizers::{Tokenizer, TruncationParams};

/// A tokenizer that cuts at a length and never gives an empty sequence.
pub struct TextEncoder {
    tokenizer: Tokenizer,
    fallback: Option<u32>,
}

/// The token ids of one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// At least one.
    pub token_ids: Vec<u32>,
    /// Whether the text was longer than `max_length`.
    pub was_cut: bool,
}

impl TextEncoder {
    /// Reads `tokenizer.json`. What it says of padding and truncation is replaced: texts are cut to
    /// `max_length` tokens, special ones included. A text without tokens becomes `fallback`.
    ///
    /// # Errors
    /// If the file is not a tokenizer, or special tokens alone exceed `max_length`.
    pub fn open(path: &Path, max_length: usize, fallback: Option<u32>) -> Result<Self> {
        let read = || -> Result<Tokenizer> {
            let bytes = std::fs::read(path)?;
            serde_json::from_slice::<IgnoredAny>(&bytes).context("not valid JSON")?;
            unless_it_panics(|| Tokenizer::from_bytes(&bytes))
        };
        let mut tokenizer = read().with_context(|| format!("{}: not a usable tokenizer", path.display()))?;
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(Some(TruncationParams { max_length, ..TruncationParams::default() }))
            .map_err(|error| anyhow!("data.max_length is {max_length}: {error}"))?;
        Ok(Self { tokenizer, fallback })
    }

    /// Encodes texts, on all cores.
    ///
    /// # Errors
    /// If the tokenizer fails, or a text has no token and the model names neither bos nor eos.
    pub fn encode(&self, texts: Vec<&str>) -> Result<Vec<Encoded>> {
        let encodings = unless_it_panics(|| self.tokenizer.encode_batch(texts, true)).context("cannot tokenize")?;
        encodings
            .iter()
            .map(|encoding| {
                let mut token_ids = encoding.get_ids().to_vec();
                if token_ids.is_empty() {
                    token_ids.push(self.fallback.context(
                        "a text has no tokens, and config.json names neither bos_token_id nor eos_token_id to stand for it",
                    )?);
                }
                Ok(Encoded { token_ids, was_cut: !encoding.get_overflowing().is_empty() })
            })
            .collect()
    }
}

/// The library panics on some files and texts (a decoder of an unknown form, for one): that is an
/// error of the file.
fn unless_it_panics<T>(f: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(result) => result.map_err(|error| anyhow!("{error}")),
        Err(_) => Err(anyhow!("the tokenizers library gave up on it")),
    }
}
