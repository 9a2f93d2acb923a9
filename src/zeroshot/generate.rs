//! Greedy answers of a model, token by token, with keys and values kept, for several texts at once.
//!
//! What all prompts begin with is computed once. In a step each text gets one token; texts whose answer is complete
//! leave. Logits do not depend on the batch, so neither do answers.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::label_list::{Answer, LabelLists};
use crate::interrupt;
use crate::model::key_values::{KeyValues, Next};
use crate::model::language_model::LanguageModel;

/// How an answer may go on, and where it ends.
pub enum Rule<'a> {
    /// A list over the labels.
    Lists(&'a LabelLists),
    /// Any token, up to one of these or so many.
    Free {
        /// True for tokens that end an answer.
        ends: &'a [bool],
        /// The most tokens.
        most: usize,
    },
}

/// The tokens of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// Without the token that ends it.
    pub tokens: Vec<u32>,
    /// True for each label that is listed, if lists were asked for.
    pub labels: Option<Vec<bool>>,
}

/// What generating took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Of them those that were computed: the others were shared.
    pub computed_tokens: usize,
    /// Tokens of all answers.
    pub answer_tokens: usize,
    /// Time spent on finding the tokens that may come next.
    pub constraint: Duration,
}

/// How many tokens all prompts share, at least one less than the shortest has.
#[must_use]
pub fn shared_tokens<'a>(prompts: impl IntoIterator<Item = &'a [u32]>) -> usize {
    let mut prompts = prompts.into_iter();
    let Some(first) = prompts.next() else { return 0 };
    let mut shared = first.len().saturating_sub(1);
    for prompt in prompts {
        let same = first.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        shared = shared.min(same).min(prompt.len().saturating_sub(1));
    }
    shared
}

/// The keys and values of a text's first tokens, none if there are none.
///
/// # Errors
/// If the model fails.
pub fn past(model: &LanguageModel, tokens: &[u32]) -> Result<KeyValues> {
    let none = KeyValues::default();
    if tokens.is_empty() {
        return Ok(none);
    }
    let (_, mut kept) = model.extend(&[Next { past: &none, token_ids: tokens }])?;
    kept.pop().context("a text that is kept")
}

/// Answers prompts, `batch_size` at once; `on_answers` hears how many were answered.
///
/// # Errors
/// If the model fails, no token may come next, or the user wants to stop.
pub fn generate(
    model: &LanguageModel,
    prompts: &[Vec<u32>],
    rule: &Rule<'_>,
    batch_size: usize,
    mut on_answers: impl FnMut(usize),
) -> Result<(Vec<Generated>, Work)> {
    let shared = shared_tokens(prompts.iter().map(Vec::as_slice));
    let mut work = Work { computed_tokens: shared, ..Work::default() };
    let Some(first) = prompts.first() else { return Ok((Vec::new(), work)) };
    let past = past(model, &first[..shared])?;
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(prompts[index].len()));
    let mut answers = vec![Generated { tokens: Vec::new(), labels: None }; prompts.len()];
    for indices in order.chunks(batch_size.max(1)) {
        let own: Vec<&[u32]> = indices.iter().map(|&index| &prompts[index][shared..]).collect();
        work.prompt_tokens += indices.iter().map(|&index| prompts[index].len()).sum::<usize>();
        work.computed_tokens += own.iter().map(|tokens| tokens.len()).sum::<usize>();
        let mut texts: Vec<Text> = (indices.iter().zip(&own))
            .map(|(&index, tokens)| Text::new(index, past.clone(), tokens.to_vec(), rule))
            .collect();
        while !texts.is_empty() {
            interrupt::check()?;
            let next: Vec<Next<'_>> =
                texts.iter().map(|text| Next { past: &text.past, token_ids: &text.next }).collect();
            let (logits, kept) = model.extend(&next)?;
            for ((text, logits), past) in texts.iter_mut().zip(logits.rows()).zip(kept) {
                text.past = past;
                text.take(logits, rule, &mut work.constraint)?;
            }
            for text in texts.iter().filter(|text| text.is_complete) {
                work.answer_tokens += text.tokens.len();
                let labels = text.answer.as_ref().map(|answer| answer.labels().to_vec());
                answers[text.index] = Generated { tokens: text.tokens.clone(), labels };
            }
            let before = texts.len();
            texts.retain(|text| !text.is_complete);
            on_answers(before - texts.len());
        }
    }
    Ok((answers, work))
}

/// A text whose answer is being written.
struct Text {
    index: usize,
    past: KeyValues,
    /// The tokens that the model sees next.
    next: Vec<u32>,
    tokens: Vec<u32>,
    answer: Option<Answer>,
    is_complete: bool,
}

impl Text {
    fn new(index: usize, past: KeyValues, next: Vec<u32>, rule: &Rule<'_>) -> Self {
        let answer = match rule {
            Rule::Lists(lists) => Some(lists.start()),
            Rule::Free { .. } => None,
        };
        Self { index, past, next, tokens: Vec::new(), answer, is_complete: false }
    }

    /// Goes on with the best token of those that may come next.
    fn take(&mut self, logits: &[f32], rule: &Rule<'_>, constraint: &mut Duration) -> Result<()> {
        let token = match (rule, &mut self.answer) {
            (Rule::Lists(lists), Some(answer)) => {
                let started = Instant::now();
                let mut allowed = lists.allowed(answer);
                // Of equal ones the first token, whatever the order in which they were found.
                let key = |(token, _): &(u32, Answer)| (logits[*token as usize], std::cmp::Reverse(*token));
                let best = (0..allowed.len()).max_by(|&a, &b| {
                    let (a, b) = (key(&allowed[a]), key(&allowed[b]));
                    a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))
                });
                let best = best.context("the tokenizer has no token that goes on with a JSON list of the labels")?;
                let (token, next) = allowed.swap_remove(best);
                *answer = next;
                self.is_complete = answer.is_complete();
                *constraint += started.elapsed();
                token
            }
            (Rule::Free { ends, most }, _) => {
                let token = best(logits);
                if ends.get(token as usize).copied().unwrap_or(false) {
                    self.is_complete = true;
                    return Ok(());
                }
                self.is_complete = self.tokens.len() + 1 >= *most;
                token
            }
            (Rule::Lists(_), None) => unreachable!("an answer of lists is followed"),
        };
        self.tokens.push(token);
        self.next = vec![token];
        Ok(())
    }
}

/// The token with the largest logit, of equal ones the first.
#[must_use]
pub fn best(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = index;
        }
    }
    best as u32
}

/// Refuses prompts that take more than `most` tokens with an answer of `answer` tokens.
///
/// # Errors
/// Says what the longest takes.
pub fn check_lengths(most: Option<usize>, prompts: &[Vec<u32>], answer: usize) -> Result<()> {
    let Some(most) = most else { return Ok(()) };
    if let Some(longest) = prompts.iter().map(Vec::len).max() {
        let tokens = longest + answer;
        ensure!(
            tokens <= most,
            "a prompt and its answer take {tokens} tokens, and the model can take {most}; lower data.max_length or --shots"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shared_beginning_leaves_every_prompt_a_token() {
        let shared = |prompts: &[&[u32]]| shared_tokens(prompts.iter().copied());
        assert_eq!(shared(&[&[1, 2, 3], &[1, 2, 4, 5]]), 2);
        assert_eq!(shared(&[&[1, 2], &[1, 2, 4]]), 1);
        assert_eq!(shared(&[&[1, 2, 4], &[1, 2]]), 1);
        assert_eq!(shared(&[&[1, 2, 3]]), 2);
        assert_eq!(shared(&[&[1], &[2]]), 0);
        assert_eq!(shared(&[]), 0);
    }

    #[test]
    fn of_equal_logits_the_first_is_best() {
        assert_eq!(best(&[0.0, 2.0, 2.0, -1.0]), 1);
        assert_eq!(best(&[f32::NEG_INFINITY, -5.0]), 1);
    }
}
