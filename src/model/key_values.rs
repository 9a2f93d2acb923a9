//! Keys and values of texts that a language model goes on with, so that no token is computed twice.
//!
//! A text's keys and values are kept by layer, `(tokens, K·d)`, rotated. Texts may share them: to copy a
//! [`KeyValues`] copies no numbers. Attention gets the kept rows and the new ones end to end, as it gets a batch's
//! sequences, so sums come in the same order and logits are those of the whole text computed at once.

use std::rc::Rc;

use candle_core::{Result, Tensor};

use super::batch::Pooled;
use crate::kernels::constant::Constant;
use crate::ops::attention::Sequences;

/// Keys and values of a text's tokens so far.
#[derive(Clone, Debug, Default)]
pub struct KeyValues {
    layers: Vec<[Tensor; 2]>,
    tokens: usize,
}

impl KeyValues {
    /// How many tokens of the text are computed.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    fn of_layer(&self, layer: usize, part: usize) -> Option<&Tensor> {
        self.layers.get(layer).map(|pair| &pair[part])
    }
}

/// A text so far, and the tokens that come next: at least one.
#[derive(Clone, Copy, Debug)]
pub struct Next<'a> {
    /// What is computed.
    pub past: &'a KeyValues,
    /// What follows.
    pub token_ids: &'a [u32],
}

/// One pass over the next tokens of several texts.
pub(super) struct Extension<'a> {
    texts: &'a [Next<'a>],
    /// The texts with their next tokens, if they are to be kept.
    kept: Option<Vec<KeyValues>>,
    token_ids: Rc<[u32]>,
    positions: Rc<Constant<u32>>,
    sequences: Rc<Sequences>,
    /// Where each text's rows end among all keys, and its new ones among the new.
    ends: Vec<[usize; 2]>,
}

impl<'a> Extension<'a> {
    /// A pass over `texts`; `keeps` keys and values of what is new.
    pub(super) fn new(texts: &'a [Next<'a>], keeps: bool) -> Self {
        let (mut token_ids, mut positions) = (Vec::new(), Vec::<u32>::new());
        let (mut all, mut new) = (vec![0], vec![0]);
        for text in texts {
            let (past, next) = (text.past.tokens, text.token_ids.len());
            token_ids.extend_from_slice(text.token_ids);
            positions.extend(past as u32..(past + next) as u32);
            all.push(all[all.len() - 1] + past + next);
            new.push(token_ids.len());
        }
        Self {
            texts,
            kept: keeps.then(|| vec![KeyValues::default(); texts.len()]),
            token_ids: token_ids.into(),
            positions: Rc::new(positions.into()),
            ends: all.iter().copied().zip(new.iter().copied()).map(|(all, new)| [all, new]).skip(1).collect(),
            sequences: Rc::new(Sequences::with_past(all, new)),
        }
    }

    /// All new tokens, text after text.
    pub(super) fn token_ids(&self) -> Rc<[u32]> {
        Rc::clone(&self.token_ids)
    }

    /// Their positions in their texts.
    pub(super) fn positions(&self) -> &Rc<Constant<u32>> {
        &self.positions
    }

    /// The texts among all keys, with the new tokens asking.
    pub(super) fn sequences(&self) -> &Rc<Sequences> {
        &self.sequences
    }

    /// Each text's last token.
    pub(super) fn last(&self) -> Rc<Pooled> {
        let rows: Vec<u32> = self.ends.iter().map(|[_, new]| *new as u32 - 1).collect();
        let asking: Vec<u32> = self.ends.iter().map(|[all, _]| *all as u32 - 1).collect();
        let offsets = std::iter::once(0).chain(self.ends.iter().map(|[all, _]| *all)).collect();
        Rc::new(Pooled {
            positions: Rc::new(rows.iter().map(|&row| self.positions[row as usize]).collect::<Vec<_>>().into()),
            sequences: Rc::new(Sequences::new(offsets, Some(asking.into()))),
            rows: Rc::new(rows.into()),
        })
    }

    /// The keys and values of all tokens of all texts in a layer, from those of the new ones.
    pub(super) fn join(&mut self, layer: usize, new: [&Tensor; 2]) -> Result<[Tensor; 2]> {
        let [keys, values] = new;
        let joined = [self.join_part(layer, 0, keys)?, self.join_part(layer, 1, values)?];
        if let Some(kept) = &mut self.kept {
            let mut start = 0;
            for (text, [end, _]) in kept.iter_mut().zip(&self.ends) {
                let [keys, values] = joined.each_ref().map(|part| part.narrow(0, start, end - start));
                text.layers.push([keys?, values?]);
                text.tokens = end - start;
                start = *end;
            }
        }
        Ok(joined)
    }

    fn join_part(&self, layer: usize, part: usize, new: &Tensor) -> Result<Tensor> {
        if self.texts.iter().all(|text| text.past.tokens == 0) {
            return Ok(new.clone());
        }
        let (mut parts, mut start) = (Vec::with_capacity(2 * self.texts.len()), 0);
        for (text, [_, end]) in self.texts.iter().zip(&self.ends) {
            parts.extend(text.past.of_layer(layer, part).cloned());
            parts.push(new.narrow(0, start, end - start)?);
            start = *end;
        }
        Tensor::cat(&parts, 0)
    }

    /// The texts with their new tokens; none if they were not to be kept.
    pub(super) fn into_kept(self) -> Vec<KeyValues> {
        self.kept.unwrap_or_default()
    }
}
