//! Text to token ids, by a model's own tokenizer.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokenizers::models::ModelWrapper;
use tokenizers::{Encoding, PostProcessor, Tokenizer, TruncationDirection, TruncationParams};

use super::long_text::{Limit, Reading};
use super::tokenizer::{self, Resolved, unless_it_panics};
use crate::config::data::LongText;

/// A tokenizer that reads no more than a limit and never gives an empty sequence.
pub struct TextEncoder {
    tokenizer: Resolved,
    fallback: Option<u32>,
    limit: Limit,
    /// Special tokens before and after a text's own, where texts are not simply cut.
    frame: [Vec<u32>; 2],
}

/// The token ids of one text.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Encoded {
    /// Token ids, at least one.
    pub token_ids: Vec<u32>,
    /// True if a part of the text is not read.
    pub was_cut: bool,
    /// Tokens of each window, one after the other in `token_ids`; empty if there is one.
    #[serde(default)]
    pub windows: Vec<usize>,
}

impl Encoded {
    /// A text that is read at once and whole.
    #[must_use]
    pub fn whole(token_ids: Vec<u32>) -> Self {
        Self { token_ids, was_cut: false, windows: Vec::new() }
    }

    /// Windows of the text, at least one.
    #[must_use]
    pub fn window_count(&self) -> usize {
        self.windows.len().max(1)
    }
}

impl TextEncoder {
    /// Loads the tokenizer of a pretrained model as transformers' `AutoTokenizer` does: from those of
    /// `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`, `vocab.txt`,
    /// `vocab.json` and `merges.txt` that are in `files`. `model_config` is the model's `config.json`.
    ///
    /// Texts are read as far as `limit` says, special tokens included. A text without tokens becomes `fallback`.
    ///
    /// # Errors
    /// If the files are not a tokenizer or ask for what is not supported, or special tokens alone exceed
    /// `max_length`.
    pub fn of_model(
        files: &[PathBuf],
        model_config: &Path,
        limit: impl Into<Limit>,
        fallback: Option<u32>,
    ) -> Result<Self> {
        Self::new(tokenizer::load(files, model_config)?, limit.into(), fallback)
    }

    /// Reads a `tokenizer.json` as it stands, such as that of a finished run. Of a `tokenizer_config.json` beside it
    /// only `truncation_side` and `split_special_tokens` count, which have no place in `tokenizer.json`. Its
    /// padding and the length of its truncation are replaced.
    ///
    /// # Errors
    /// If the file is not a tokenizer, or special tokens alone exceed `max_length`.
    pub fn open(path: &Path, limit: impl Into<Limit>, fallback: Option<u32>) -> Result<Self> {
        Self::new(tokenizer::load_finished(path)?, limit.into(), fallback)
    }

    fn new(mut resolved: Resolved, limit: Limit, fallback: Option<u32>) -> Result<Self> {
        let max_length = limit.tokens;
        let tokenizer = &mut resolved.tokenizer;
        let special = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        // A window of special tokens alone would never end.
        let own = usize::from(limit.long_text != LongText::Cut);
        ensure!(
            special + own <= max_length,
            "data.max_length is {max_length}, and the tokenizer puts {special} special tokens into every text; set \
             data.max_length={} or more",
            special + 1
        );
        let direction = if resolved.cuts_left { TruncationDirection::Left } else { TruncationDirection::Right };
        let cut = TruncationParams { max_length, direction, ..TruncationParams::default() };
        tokenizer
            .with_truncation((limit.long_text == LongText::Cut).then_some(cut))
            .map_err(|error| anyhow!("data.max_length is {max_length}: {error}"))?;
        let frame = match limit.long_text {
            LongText::Cut => Default::default(),
            LongText::HeadTail | LongText::Windows => frame(tokenizer)?,
        };
        Ok(Self { tokenizer: resolved, fallback, limit, frame })
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
        if self.limit.long_text != LongText::Cut && encoding.len() > self.limit.tokens {
            let places = self.reading(encoding.len());
            let [before, after] = &self.frame;
            let windows: Vec<Vec<u32>> = (places.windows.iter())
                .map(|places| {
                    let own = places.iter().flat_map(|place| &encoding.get_ids()[self.whole_text(place)]);
                    before.iter().chain(own).chain(after).copied().collect()
                })
                .collect();
            let lengths = windows.iter().map(Vec::len);
            let windows_of = if windows.len() > 1 { lengths.collect() } else { Vec::new() };
            return Ok(Encoded { token_ids: windows.concat(), was_cut: places.was_cut, windows: windows_of });
        }
        let mut token_ids = encoding.get_ids().to_vec();
        if token_ids.is_empty() {
            token_ids.push(self.fallback.context(
                "a text has no tokens, and config.json names neither bos_token_id nor eos_token_id to stand for it",
            )?);
        }
        let may_be_cut = self.limit.long_text == LongText::Cut && encoding.len() >= self.limit.tokens;
        Ok(Encoded { token_ids, was_cut: may_be_cut && !covers(encoding, text), windows: Vec::new() })
    }

    /// What is read of a text of so many tokens with special ones.
    fn reading(&self, tokens: usize) -> Reading {
        let special = self.frame.iter().map(Vec::len).sum::<usize>();
        self.limit.reading(tokens.saturating_sub(special), self.limit.tokens - special)
    }

    /// Places of a text's own tokens in the whole encoding.
    fn whole_text(&self, own: &Range<usize>) -> Range<usize> {
        let before = self.frame[0].len();
        own.start + before..own.end + before
    }

    /// The bytes of a text that each of its tokens stands for; none for special tokens.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn spans(&self, text: &str) -> Result<Vec<Option<Range<usize>>>> {
        let encoding = unless_it_panics(|| self.library().encode(text, true)).context("cannot tokenize")?;
        let special = encoding.get_special_tokens_mask().iter();
        let spans = encoding.get_offsets().iter().zip(special);
        let spans: Vec<_> = spans.map(|(&(start, end), &special)| (special == 0).then_some(start..end)).collect();
        if self.limit.long_text == LongText::Cut || spans.len() <= self.limit.tokens {
            return Ok(spans);
        }
        let [before, after] = self.frame.each_ref().map(|special| vec![None; special.len()]);
        let window = |places: &[Range<usize>; 2]| {
            let own = places.iter().flat_map(|place| spans[self.whole_text(place)].to_vec());
            before.iter().cloned().chain(own).chain(after.iter().cloned()).collect::<Vec<_>>()
        };
        Ok(self.reading(spans.len()).windows.iter().flat_map(window).collect())
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

/// The special tokens that a tokenizer puts before and after a text.
fn frame(tokenizer: &Tokenizer) -> Result<[Vec<u32>; 2]> {
    let encoding = unless_it_panics(|| tokenizer.encode("a", true)).context("cannot tokenize")?;
    let own: Vec<usize> = encoding
        .get_special_tokens_mask()
        .iter()
        .enumerate()
        .filter(|(_, mask)| **mask == 0)
        .map(|(at, _)| at)
        .collect();
    let (Some(first), Some(last)) = (own.first(), own.last()) else { return Ok(Default::default()) };
    let ids = encoding.get_ids();
    Ok([ids[..*first].to_vec(), ids[last + 1..].to_vec()])
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

    /// Windows cover the text's own tokens once, each between the special ones; head and tail are its ends.
    #[test]
    fn long_texts_are_read_in_windows_or_at_their_ends() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let files = [root.join("tests/fixtures/tokenizers/bert.json")];
        let text = "a program that plays chess against you and shows the board in a window, with much more to say";
        let encoder = |long_text, tokens| {
            let limit = Limit { tokens, long_text, max_windows: 4 };
            TextEncoder::open(&files[0], limit, None).unwrap()
        };
        let whole = encoder(LongText::Windows, 512).encode_one(text).unwrap();
        let own = &whole.token_ids[1..whole.token_ids.len() - 1];
        assert!(whole.windows.is_empty() && !whole.was_cut && own.len() > 16, "{}", own.len());
        let room = own.len().div_ceil(3);
        let windows = encoder(LongText::Windows, room + 2);
        let found = windows.encode_one(text).unwrap();
        assert!(!found.was_cut && found.windows.len() == 3, "{found:?}");
        let mut rest = &*found.token_ids;
        let mut joined: Vec<u32> = Vec::new();
        for &length in &found.windows {
            let (window, after) = rest.split_at(length);
            assert_eq!((window[0], window[length - 1]), (whole.token_ids[0], whole.token_ids[own.len() + 1]));
            assert!(length <= room + 2);
            joined.extend(&window[1..length - 1]);
            rest = after;
        }
        assert!(rest.is_empty() && joined == own);
        let spans = windows.spans(text).unwrap();
        assert_eq!(spans.len(), found.token_ids.len());
        assert_eq!(spans[found.windows[0] - 1], None);
        assert_eq!(&text[spans[1].clone().unwrap()], "a");
        let tail = encoder(LongText::HeadTail, 8).encode_one(text).unwrap();
        assert!(tail.was_cut && tail.windows.is_empty() && tail.token_ids.len() == 8);
        assert_eq!((&tail.token_ids[1..4], &tail.token_ids[4..7]), (&own[..3], &own[own.len() - 3..]));
        assert!(encoder(LongText::Windows, 4).encode_one(text).unwrap().was_cut);
        let limit = Limit { tokens: 2, long_text: LongText::Windows, max_windows: 4 };
        assert!(TextEncoder::open(&files[0], limit, None).is_err());
    }

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
