//! Prompts as tokens, uncut, and the bytes that each token of a vocabulary stands for.

use std::collections::HashMap;

use anyhow::{Context, Result, anyhow, bail};
use tokenizers::Tokenizer;

use super::tokenize::TextEncoder;
use super::tokenizer::unless_it_panics;

/// A tokenizer for prompts: it cuts nothing.
pub struct PromptEncoder {
    tokenizer: Tokenizer,
    /// Special tokens that the tokenizer puts before a text, such as bos.
    before: Vec<u32>,
}

impl PromptEncoder {
    /// The same tokenizer, for prompts.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn new(encoder: &TextEncoder) -> Result<Self> {
        let mut tokenizer = encoder.library().clone();
        tokenizer.with_truncation(None).map_err(|error| anyhow!("{error}"))?;
        let encoding = unless_it_panics(|| tokenizer.encode("a", true)).context("cannot tokenize")?;
        let special = encoding.get_ids().iter().zip(encoding.get_special_tokens_mask());
        let before = special.take_while(|(_, special)| **special == 1).map(|(id, _)| *id).collect();
        Ok(Self { tokenizer, before })
    }

    /// The tokens of a text that a chat template wrote, special tokens and all.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn rendered(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = unless_it_panics(|| self.tokenizer.encode(text, false)).context("cannot tokenize")?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens of a plain text that is to be continued: with what the tokenizer puts before a text, not behind it.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn plain(&self, text: &str) -> Result<Vec<u32>> {
        Ok([&self.before[..], &self.rendered(text)?].concat())
    }

    /// The bytes of each token's text, by id; none for special tokens and for ids without a token.
    ///
    /// # Errors
    /// If the tokenizer does not write text as byte-level BPE or SentencePiece do.
    pub fn token_bytes(&self) -> Result<Vec<Option<Vec<u8>>>> {
        let form = Form::of(&self.tokenizer)?;
        let vocabulary = self.tokenizer.get_vocab(true);
        let added = self.tokenizer.get_added_tokens_decoder();
        let mut bytes = vec![None; vocabulary.values().max().map_or(0, |&last| last as usize + 1)];
        for (token, id) in vocabulary {
            bytes[id as usize] = match added.get(&id) {
                Some(added) if added.special => None,
                Some(added) => Some(added.content.clone().into_bytes()),
                None => form.bytes(&token),
            };
        }
        Ok(bytes)
    }
}

/// The way in which a vocabulary writes bytes.
enum Form {
    /// A character for each byte, as GPT-2 has them.
    ByteLevel(HashMap<char, u8>),
    /// `▁` for a space, `<0xAB>` for a byte.
    SentencePiece,
}

impl Form {
    fn of(tokenizer: &Tokenizer) -> Result<Self> {
        let decoder = serde_json::to_string(&tokenizer.get_decoder()).context("the tokenizer's decoder")?;
        if decoder.contains("ByteLevel") {
            return Ok(Self::ByteLevel(byte_level()));
        }
        if decoder.contains("Metaspace") || decoder.contains("ByteFallback") || decoder.contains('\u{2581}') {
            return Ok(Self::SentencePiece);
        }
        bail!("the tokenizer writes text neither as byte-level BPE nor as SentencePiece does");
    }

    fn bytes(&self, token: &str) -> Option<Vec<u8>> {
        match self {
            Self::ByteLevel(map) => token.chars().map(|letter| map.get(&letter).copied()).collect(),
            Self::SentencePiece => {
                let byte = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                let byte = byte.filter(|hex| hex.len() == 2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
                Some(byte.map_or_else(|| token.replace('\u{2581}', " ").into_bytes(), |byte| vec![byte]))
            }
        }
    }
}

/// GPT-2's characters for bytes: printable ones stand for themselves, the others for those from 256 on.
fn byte_level() -> HashMap<char, u8> {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=255u8).filter(|&byte| !is_printable(byte)).zip(256u32..);
    let others = others.filter_map(|(byte, code)| Some((char::from_u32(code)?, byte)));
    (0..=255u8).filter(|&byte| is_printable(byte)).map(|byte| (char::from(byte), byte)).chain(others).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_bytes_of_tokens_make_the_text_again() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny-llama/tokenizer.json");
        let encoder = PromptEncoder::new(&TextEncoder::open(&path, 8, None).unwrap()).unwrap();
        let bytes = encoder.token_bytes().unwrap();
        let text = "[\"naïve café — 日本語\", \"works-with::text\"]\n  and a rather long text that is not cut";
        let tokens = encoder.rendered(text).unwrap();
        assert!(tokens.len() > 8);
        let again: Vec<u8> = tokens.iter().flat_map(|&token| bytes[token as usize].clone().unwrap()).collect();
        assert_eq!(String::from_utf8(again).unwrap(), text);
        let plain = encoder.plain("a").unwrap();
        assert!(plain.ends_with(&encoder.rendered("a").unwrap()) && plain.len() == encoder.before.len() + 1);
        assert!(encoder.before.iter().all(|&token| bytes[token as usize].is_none()));
    }

    #[test]
    fn sentencepiece_writes_spaces_and_bytes_in_its_own_way() {
        let bytes = |token: &str| Form::SentencePiece.bytes(token).unwrap();
        assert_eq!(bytes("\u{2581}the"), b" the");
        assert_eq!(bytes("<0x0A>"), b"\n");
        assert_eq!(bytes("<0x>"), b"<0x>");
    }
}
