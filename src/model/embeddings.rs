//! Embeddings of BERT and its kin: `project(norm(word[token] + position[p] + type[0]))`, or the norm last; where words
//! are as wide as layers, nothing is projected.

use std::rc::Rc;

use anyhow::{Result, ensure};

use super::batch::Batch;
use super::builder::{Builder, Norm, embed};
use super::config::{BackboneConfig, EmbeddingsConfig, NormKind};
use crate::kernels::buffer;
use crate::kernels::device::Device;
use crate::kernels::matrix::FrozenMatrix;
use crate::ops::dropout::{Dropout, dropout};
use crate::ops::lora_linear::{LoraLinear, lora_linear};
use crate::ops::tape::{Tape, Value};

/// The name of the token embeddings.
pub(super) const WORDS: &str = "embeddings.word_embeddings";
/// The norm of BERT and its kin.
pub(super) const NORM: NormKind = NormKind::Layer { has_bias: true };

/// Frozen tables, and what may follow them.
pub(super) struct Embeddings {
    words: FrozenMatrix,
    positions: Option<FrozenMatrix>,
    first_position: usize,
    /// The embedding of the one type of token that there is.
    token_type: Option<Vec<f32>>,
    norm: Norm,
    dropout: Dropout,
    projection: Option<Rc<LoraLinear>>,
    /// Whether the projection comes before the norm and its dropout.
    projects_first: bool,
    device: Device,
}

impl Embeddings {
    pub(super) fn new(
        builder: &mut Builder<'_>,
        config: &BackboneConfig,
        embeddings: &EmbeddingsConfig,
        epsilon: f32,
    ) -> Result<Self> {
        let (d, width) = (config.hidden_size, embeddings.width);
        let words = builder.embedding(WORDS, config.vocab_size, width)?;
        let table = |rows: usize| builder.embedding("embeddings.position_embeddings", rows, width);
        let positions = embeddings.positions.map(table).transpose()?;
        let token_type = match embeddings.token_types {
            None => None,
            Some(types) => {
                let mut first = vec![0.0; width];
                builder.embedding("embeddings.token_type_embeddings", types, width)?.read(0, &mut first);
                Some(first)
            }
        };
        let projects_first = embeddings.projection.is_some_and(|projection| projection.is_before_norm);
        let normed = if projects_first { d } else { width };
        let projection = embeddings.projection.map(|p| builder.linear(p.name, d, width, p.has_bias)).transpose()?;
        Ok(Self {
            words,
            positions,
            first_position: embeddings.first_position,
            token_type,
            norm: builder.norm("embeddings.LayerNorm", normed, NORM, epsilon)?,
            dropout: builder.dropout(config.dropouts.embedding),
            projection,
            projects_first,
            device: builder.device.clone(),
        })
    }

    /// What the first layer gets, `(N, D)`.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary, or a sequence is longer than the model's positions.
    pub(super) fn forward(&self, tape: &Tape, batch: &Batch) -> Result<Value> {
        let mut x = Value::constant(self.device.put(self.embed(batch)?)?);
        if let Some(projection) = self.projection.as_ref().filter(|_| self.projects_first) {
            x = lora_linear(tape, &x, projection, None)?;
        }
        x = dropout(tape, self.norm.forward(tape, &x)?, &self.dropout)?;
        if let Some(projection) = self.projection.as_ref().filter(|_| !self.projects_first) {
            x = lora_linear(tape, &x, projection, None)?;
        }
        Ok(x)
    }

    fn embed(&self, batch: &Batch) -> Result<candle_core::Tensor> {
        let x = embed(&self.words, &batch.token_ids, 1.0)?;
        let width = self.words.columns();
        let mut position = vec![0.0; width];
        if let Some(positions) = &self.positions {
            let longest = batch.positions.iter().max().map_or(0, |&last| last as usize) + self.first_position;
            ensure!(
                longest < positions.rows(),
                "a text of {} tokens is longer than the model's {} positions; lower data.max_length",
                longest + 1 - self.first_position,
                positions.rows() - self.first_position
            );
        }
        buffer::modify(&x, |x| {
            for (x, row) in x.chunks_exact_mut(width).zip(position_rows(batch, self.first_position)) {
                if let Some(positions) = &self.positions {
                    positions.read(row * width, &mut position);
                    x.iter_mut().zip(&position).for_each(|(x, position)| *x += position);
                }
                x.iter_mut().zip(self.token_type.iter().flatten()).for_each(|(x, of_type)| *x += of_type);
            }
        })?;
        Ok(x)
    }
}

/// The row of each token's position. RoBERTa counts from behind the padding token's, does not count padding tokens
/// that stand in a text, and gives them the row of their own id.
fn position_rows(batch: &Batch, first: usize) -> impl Iterator<Item = usize> {
    let padding = first.checked_sub(1);
    let mut next = first;
    batch.token_ids.iter().zip(batch.positions.iter()).map(move |(&token, &at)| {
        if at == 0 {
            next = first;
        }
        match padding {
            Some(padding) if token as usize == padding => padding,
            _ => {
                next += 1;
                next - 1
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `create_position_ids_from_input_ids` of transformers 4.57.6 gives them.
    #[test]
    fn roberta_does_not_count_padding_tokens_of_a_text() {
        let texts: [&[u32]; 3] = [&[0, 7, 1, 8, 2], &[1, 9], &[5, 6]];
        let batch = Batch::new(texts.map(|tokens| (tokens, &[0.0][..]))).unwrap();
        assert_eq!(position_rows(&batch, 2).collect::<Vec<_>>(), [2, 3, 1, 4, 5, 1, 2, 2, 3]);
        assert_eq!(position_rows(&batch, 0).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 0, 1, 0, 1]);
    }
}
