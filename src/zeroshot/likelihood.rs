//! A probability for each label: that the model answers yes rather than no to whether the label applies.
//!
//! ```text
//! logit = ln Σ p(yes tokens) − ln Σ p(no tokens), given prompt, text and question
//! ```
//! What all rows share is computed once, then of each row what its questions share, and of each question only the end.

use anyhow::{Context, Result, ensure};

use super::generate::{Work, check_lengths, past, shared_tokens};
use super::prompt::Prompts;
use crate::data::token_texts::PromptEncoder;
use crate::interrupt;
use crate::model::key_values::{KeyValues, Next};
use crate::model::language_model::LanguageModel;

/// Keys of a pass over the questions of a row: more questions go in parts.
const MOST_KEYS: usize = 16_384;

/// The tokens with which an answer yes, or no, begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct YesNo {
    yes: Vec<u32>,
    no: Vec<u32>,
}

impl YesNo {
    /// Every token of the model's `rows` that is yes or no, whatever its case and the space before it; where there is
    /// none, the first token of each.
    ///
    /// # Errors
    /// If both answers begin with the same token.
    pub fn new(token_bytes: &[Option<Vec<u8>>], rows: usize, encoder: &PromptEncoder) -> Result<Self> {
        let all = |word: &str| -> Vec<u32> {
            let tokens = token_bytes.iter().take(rows).enumerate();
            let is_word = |bytes: &[u8]| {
                std::str::from_utf8(bytes).is_ok_and(|text| text.trim_start_matches(' ').eq_ignore_ascii_case(word))
            };
            let found = tokens.filter(|(_, bytes)| bytes.as_ref().is_some_and(|bytes| is_word(bytes)));
            found.map(|(id, _)| id as u32).collect()
        };
        let (yes, no) = (all("yes"), all("no"));
        if !yes.is_empty() && !no.is_empty() {
            return Ok(Self { yes, no });
        }
        let first = |word: &str| encoder.rendered(word)?.first().copied().context("a word without a token");
        let (yes, no) = (first("yes")?, first("no")?);
        ensure!(yes != no, "the tokenizer writes yes and no with the same first token; use --method generate");
        Ok(Self { yes: vec![yes], no: vec![no] })
    }

    /// The logit of yes against no.
    #[must_use]
    pub fn logit(&self, logits: &[f32]) -> f32 {
        let sum = |tokens: &[u32]| {
            let largest = tokens.iter().map(|&token| logits[token as usize]).fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = tokens.iter().map(|&token| f64::from(logits[token as usize] - largest).exp()).sum();
            f64::from(largest) + sum.ln()
        };
        (sum(&self.yes) - sum(&self.no)) as f32
    }
}

/// Asks about every label of every text: logits, one row a text. Prompts have `most` tokens at most. `on_text` hears of
/// each text.
///
/// # Errors
/// If the model fails, a prompt is too long for it, or the user wants to stop.
pub fn logits(
    (model, most): (&LanguageModel, Option<usize>),
    (prompts, encoder, words): (&Prompts, &PromptEncoder, &YesNo),
    texts: &[&str],
    labels: usize,
    mut on_text: impl FnMut(),
) -> Result<(Vec<Vec<f32>>, Work)> {
    let tokens = |text: &str, label: usize| {
        let prompt = prompts.question(text, label)?;
        if prompts.is_chat() { encoder.rendered(&prompt) } else { encoder.plain(&prompt) }
    };
    let firsts: Vec<Vec<u32>> = texts.iter().map(|text| tokens(text, 0)).collect::<Result<_>>()?;
    let shared = shared_tokens(firsts.iter().map(Vec::as_slice));
    let instruction = past(model, firsts.first().map_or(&[][..], |first| &first[..shared]))?;
    let mut work = Work { computed_tokens: shared, ..Work::default() };
    let mut rows = Vec::with_capacity(texts.len());
    for (text, first) in texts.iter().zip(firsts) {
        interrupt::check()?;
        let mut questions = vec![first];
        questions.extend((1..labels).map(|label| tokens(text, label)).collect::<Result<Vec<_>>>()?);
        check_lengths(most, &questions, 0)?;
        rows.push(of_text(model, words, (&instruction, shared), &questions, &mut work)?);
        on_text();
    }
    Ok((rows, work))
}

/// The logits of one text's questions.
fn of_text(
    model: &LanguageModel,
    words: &YesNo,
    (instruction, shared): (&KeyValues, usize),
    questions: &[Vec<u32>],
    work: &mut Work,
) -> Result<Vec<f32>> {
    let known = shared_tokens(questions.iter().map(Vec::as_slice));
    let first = &questions[0];
    // The questions of a text part behind what all texts share, unless a tokenizer joins what stands at the border.
    let (own, start) = match known > shared {
        true => {
            let next = Next { past: instruction, token_ids: &first[shared..known] };
            (model.extend(&[next])?.1.pop().context("a text that is kept")?, shared)
        }
        false if known == shared => (instruction.clone(), shared),
        false => (past(model, &first[..known])?, 0),
    };
    work.computed_tokens += known - start;
    let mut logits = Vec::with_capacity(questions.len());
    let longest = questions.iter().map(Vec::len).max().unwrap_or(1);
    for part in questions.chunks((MOST_KEYS / longest).max(1)) {
        let next: Vec<Next<'_>> =
            part.iter().map(|question| Next { past: &own, token_ids: &question[known..] }).collect();
        logits.extend(model.next(&next)?.rows().map(|row| words.logit(row)));
    }
    work.prompt_tokens += questions.iter().map(Vec::len).sum::<usize>();
    work.computed_tokens += questions.iter().map(|question| question.len() - known).sum::<usize>();
    Ok(logits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logit_is_of_all_tokens_of_either_answer() {
        let words = YesNo { yes: vec![1, 3], no: vec![0] };
        let logits = [0.5f32, 1.0, 9.0, -2.0];
        let expected = (1f64.exp() + (-2f64).exp()).ln() - 0.5;
        assert!((f64::from(words.logit(&logits)) - expected).abs() < 1e-6);
        // So large that their exponentials are no numbers.
        assert!((words.logit(&[800.0, 801.0, 0.0, 799.0]) - 1.1269).abs() < 1e-3);
    }
}
