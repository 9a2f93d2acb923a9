//! A tokenizer that is ready to use, and a guard around the library.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use tokenizers::Tokenizer;

use super::settings::{Settings, Special};
use crate::library_panic::caught;

/// A tokenizer with everything applied that the files beside `tokenizer.json` say.
pub(in crate::data) struct Resolved {
    pub(in crate::data) tokenizer: Tokenizer,
    /// Texts that are too long lose their beginning.
    pub(in crate::data) cuts_left: bool,
    pub(super) settings: Settings,
    pub(super) special: Vec<Special>,
    /// The `tokenizer.json` it was read from, if there is one.
    pub(super) source: Option<PathBuf>,
    pub(super) has_special_tokens_map: bool,
}

/// The library panics on some files and texts (a decoder of an unknown form, for one): that is an
/// error of the file.
pub(in crate::data) fn unless_it_panics<T>(f: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match caught(f) {
        Some(result) => result.map_err(|error| anyhow!("{error}")),
        None => Err(anyhow!("the tokenizers library gave up on it")),
    }
}
