//! Text to token ids, by a model's own tokenizer.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokenizers::models::ModelWrapper;
use tokenizers::{Encoding, PostProcessor, Tokenizer, TruncationDirection, TruncationParams};

use super::tokenizer::{self, Resolved, unless_it_panics};

/// A tokenizer that cuts at a length and never gives an empty sequence.
pub struct TextEncoder {
    tokenizer: Resolved,
    fallback: Option<u32>,
}

/// The token ids of one text.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Encoded {
    /// Token ids, at least one.
    pub token_ids: Vec<u32>,
    /// True if the text was longer than `max_length`.
    pub was_cut: bool,
}

impl TextEncoder {
    /// Loads the tokenizer of a pretrained model as transformers' `AutoTokenizer` does: from those of
    /// `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`, `vocab.txt`,
    /// `vocab.json` and `merges.txt` that are in `files`. `model_config` is the model's `config.json`.
    ///
    /// Texts are cut to `max_length` tokens, special ones included. A text without tokens becomes `fallback`.
    ///
    /// # Errors
    /// If the files are not a tokenizer or ask for what is not supported, or special tokens alone exceed
    /// `max_length`.
    pub fn of_model(files: &[PathBuf], model_config: &Path, max_length: usize, fallback: Option<u32>) -> Result<Self> {
        Self::new(tokenizer::load(files, model_config)?, max_length, fallback)
    }

    /// Reads a `tokenizer.json` as it stands, such as that of a finished run. Of a `tokenizer_config.json` beside it
    /// only `truncation_side` and `split_special_tokens` count, which have no place in `tokenizer.json`. Its
    /// padding and the length of its truncation are replaced.
    ///
    /// # Errors
    /// If the file is not a tokenizer, or special tokens alone exceed `max_length`.
    pub fn open(path: &Path, max_length: usize, fallback: Option<u32>) -> Result<Self> {
        Self::new(tokenizer::load_finished(path)?, max_length, fallback)
    }

    fn new(mut resolved: Resolved, max_length: usize, fallback: Option<u32>) -> Result<Self> {
        let tokenizer = &mut resolved.tokenizer;
        let special = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        ensure!(
            special <= max_length,
            "data.max_length is {max_length}, and the tokenizer puts {special} special tokens into every text; set \
             data.max_length={} or more",
            special + 1
        );
        let direction = if resolved.cuts_left { TruncationDirection::Left } else { TruncationDirection::Right };
        tokenizer
            .with_truncation(Some(TruncationParams { max_length, direction, ..TruncationParams::default() }))
            .map_err(|error| anyhow!("data.max_length is {max_length}: {error}"))?;
        Ok(Self { tokenizer: resolved, fallback })
    }

    /// Lets the tokenizer keep nothing of the texts that it has seen; the tokens are the same. The library holds a cache
    /// for each BPE tokenizer on every thread that used it, and leaves it there when the tokenizer is dropped: more and
    /// more memory where tokenizers come and go.
    pub fn keep_nothing(&mut self) {
        let tokenizer = &mut self.tokenizer.tokenizer;
        if let ModelWrapper::BPE(_) = tokenizer.get_model() {
            let mut model = tokenizer.get_model().clone();
            model.resize_cache(0);
            tokenizer.with_model(model);
        }
    }

    /// Encodes texts, on all cores.
    ///
    /// # Errors
    /// If the tokenizer fails, or a text has no token and the model names neither bos nor eos.
    pub fn encode(&self, texts: Vec<&str>) -> Result<Vec<Encoded>> {
        let encodings =
            unless_it_panics(|| self.library().encode_batch(texts.clone(), true)).context("cannot tokenize")?;
        encodings.iter().zip(texts).map(|(encoding, text)| self.encoded(encoding, text)).collect()
    }

    /// Encodes a text on this thread.
    ///
    /// # Errors
    /// As [`TextEncoder::encode`].
    pub fn encode_one(&self, text: &str) -> Result<Encoded> {
        let encoding = unless_it_panics(|| self.library().encode(text, true)).context("cannot tokenize")?;
        self.encoded(&encoding, text)
    }

    fn encoded(&self, encoding: &Encoding, text: &str) -> Result<Encoded> {
        let longest = self.library().get_truncation().map_or(usize::MAX, |truncation| truncation.max_length);
        let mut token_ids = encoding.get_ids().to_vec();
        if token_ids.is_empty() {
            token_ids.push(self.fallback.context(
                "a text has no tokens, and config.json names neither bos_token_id nor eos_token_id to stand for it",
            )?);
        }
        let was_cut = encoding.len() >= longest && !covers(encoding, text);
        Ok(Encoded { token_ids, was_cut })
    }

    /// The bytes of a text that each of its tokens stands for; none for special tokens.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn spans(&self, text: &str) -> Result<Vec<Option<Range<usize>>>> {
        let encoding = unless_it_panics(|| self.library().encode(text, true)).context("cannot tokenize")?;
        let special = encoding.get_special_tokens_mask().iter();
        let spans = encoding.get_offsets().iter().zip(special);
        Ok(spans.map(|(&(start, end), &special)| (special == 0).then_some(start..end)).collect())
    }

    /// Tokens of texts before cutting.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn lengths(&self, texts: Vec<&str>) -> Result<Vec<usize>> {
        let mut uncut = self.library().clone();
        uncut.with_truncation(None).map_err(|error| anyhow!("{error}"))?;
        let encodings = unless_it_panics(|| uncut.encode_batch(texts, true)).context("cannot tokenize")?;
        Ok(encodings.iter().map(|encoding| encoding.len().max(1)).collect())
    }

    /// Checks that the model has an embedding for every token. `source` names the rows and `id` one of them, whose
    /// number counts from `first_row`.
    ///
    /// # Errors
    /// Names the first row with such a token, the token, and how many rows there are.
    pub fn check_vocabulary<'a>(
        &self,
        encoded: &[Encoded],
        vocab_size: usize,
        source: &str,
        first_row: usize,
        id: impl Fn(usize) -> &'a str,
    ) -> Result<()> {
        let outside = |row: &Encoded| row.token_ids.iter().copied().find(|&token| token as usize >= vocab_size);
        let mut rows = encoded.iter().enumerate().filter_map(|(row, tokens)| outside(tokens).map(|token| (row, token)));
        let Some((row, token)) = rows.next() else { return Ok(()) };
        let text = self.library().id_to_token(token).unwrap_or_default();
        bail!(
            "{source}: row {} (id `{}`) has the token `{text}` (id {token}), which is outside the model's vocabulary of \
             {vocab_size}; {} of {} rows have such tokens. The tokenizer has tokens without an embedding: take them out \
             of the tokenizer's files, or enlarge the model in Python with \
             `model.resize_token_embeddings(len(tokenizer))` and save it",
            first_row + row + 1,
            id(row),
            1 + rows.count(),
            encoded.len(),
        )
    }

    /// Writes the tokenizer for a trained classifier: `TextEncoder::open` and transformers' `AutoTokenizer`, of
    /// version 4 or 5, read the same tokenizer from it.
    pub fn save(&self, directory: &Path) -> Result<()> {
        self.tokenizer.save(directory)
    }

    /// The id of a token, if the tokenizer has it.
    #[must_use]
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.library().token_to_id(token)
    }

    /// The token of an id, if the tokenizer has it.
    #[must_use]
    pub fn token_of(&self, id: u32) -> Option<String> {
        self.library().id_to_token(id)
    }

    pub(super) fn library(&self) -> &Tokenizer {
        &self.tokenizer.tokenizer
    }
}

/// Returns true if the tokens reach from the start of the text to its end. The overflow of a cut text does not tell:
/// the library stops tokenizing once it has enough tokens.
fn covers(encoding: &Encoding, text: &str) -> bool {
    if !encoding.get_overflowing().is_empty() {
        return false;
    }
    let special = encoding.get_special_tokens_mask();
    let own = || encoding.get_offsets().iter().zip(special).filter(|(_, special)| **special == 0).map(|(at, _)| at);
    let (start, end) = (own().map(|at| at.0).min().unwrap_or(0), own().map(|at| at.1).max().unwrap_or(0));
    let is_blank = |part: Option<&str>| part.is_none_or(|part| part.trim().is_empty());
    is_blank(text.get(..start)) && is_blank(text.get(end..))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The library stops early, and then reports no overflow for most texts.
    #[test]
    fn a_text_that_is_longer_was_cut_and_one_that_just_fits_was_not() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny-llama/tokenizer.json");
        let text = "a program that plays chess against you and shows the board in a window";
        let encode = |text: &str, max_length| {
            let encoder = TextEncoder::open(&path, max_length, None).unwrap();
            encoder.encode(vec![text]).unwrap().remove(0)
        };
        let length = encode(text, 512).token_ids.len();
        assert!(length > 8 && !encode(text, 512).was_cut);
        for shorter in 4..length {
            let encoded = encode(text, shorter);
            assert_eq!((encoded.token_ids.len(), encoded.was_cut), (shorter, true), "{shorter} of {length}");
        }
        assert!(!encode(text, length).was_cut);
        assert!(encode(&format!("{text} {text} {text}"), length).was_cut);
    }
}
