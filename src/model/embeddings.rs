//! Embeddings of BERT and its kin: `project(norm(word[token] + position[p] + type[0]))`, or the norm last; where words
//! are as wide as layers, nothing is projected.

use std::rc::Rc;

use anyhow::{Result, ensure};

use super::batch::Batch;
use super::builder::Builder;
use super::config::{BackboneConfig, EmbeddingsConfig, NormKind};
use super::modules::{Embedding, Linear, Norm, embed};
use crate::kernels::device::Device;
use crate::ops::dropout::{Dropout, dropout};
use crate::ops::tape::{Tape, Value};

/// The name of the token embeddings.
pub(super) const WORDS: &str = "embeddings.word_embeddings";
/// The norm of BERT and its kin.
pub(super) const NORM: NormKind = NormKind::Layer { has_bias: true };

/// Tables, and the modules that may follow them.
pub(super) struct Embeddings {
    words: Embedding,
    positions: Option<Embedding>,
    first_position: usize,
    /// The types of tokens: all are of the first.
    token_types: Option<Embedding>,
    norm: Norm,
    dropout: Dropout,
    projection: Option<Linear>,
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
        let words = builder.embedding(WORDS, config.vocab_size, width, config.padding_token)?;
        // RoBERTa counts from behind its padding row.
        let padding = embeddings.first_position.checked_sub(1).map(|row| row as u32);
        let table = |rows: usize| builder.embedding("embeddings.position_embeddings", rows, width, padding);
        let positions = embeddings.positions.map(table).transpose()?;
        let table = |types: usize| builder.embedding("embeddings.token_type_embeddings", types, width, None);
        let token_types = embeddings.token_types.map(table).transpose()?;
        let projects_first = embeddings.projection.is_some_and(|projection| projection.is_before_norm);
        let normed = if projects_first { d } else { width };
        let projection = embeddings.projection.map(|p| builder.linear(p.name, d, width, p.has_bias)).transpose()?;
        Ok(Self {
            words,
            positions,
            first_position: embeddings.first_position,
            token_types,
            norm: builder.norm("embeddings.LayerNorm", normed, NORM, epsilon)?,
            dropout: builder.dropout(config.dropouts.embedding),
            projection,
            projects_first,
            device: builder.device.clone(),
        })
    }

    /// The table of words, and what its rows are multiplied by.
    pub(super) fn words(&self) -> (&Embedding, f32) {
        (&self.words, 1.0)
    }

    /// The sum of the tables' rows, `(N, width)`.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary, or a sequence is longer than the model's positions.
    pub(super) fn embed(&self, tape: &Tape, batch: &Batch) -> Result<Value> {
        let mut parts = vec![(&self.words, Rc::clone(&batch.token_ids))];
        if let Some(positions) = &self.positions {
            let longest = batch.positions.iter().max().map_or(0, |&last| last as usize) + self.first_position;
            ensure!(
                longest < positions.rows(),
                "a text of {} tokens is longer than the model's {} positions; lower data.max_length",
                longest + 1 - self.first_position,
                positions.rows() - self.first_position
            );
            parts.push((positions, position_rows(batch, self.first_position).map(|row| row as u32).collect()));
        }
        parts.extend(self.token_types.as_ref().map(|types| (types, vec![0; batch.token_ids.len()].into())));
        embed(tape, &self.device, 1.0, &parts)
    }

    /// The first layer's input, `(N, D)`, of that sum.
    pub(super) fn forward(&self, tape: &Tape, embedded: &Value) -> candle_core::Result<Value> {
        let project = |x: &Value, is_first: bool| match &self.projection {
            Some(projection) if is_first == self.projects_first => projection.forward(tape, x, None).map(Some),
            _ => Ok(None),
        };
        let projected = project(embedded, true)?;
        let x = self.norm.forward(tape, projected.as_ref().unwrap_or(embedded))?;
        let x = dropout(tape, x, &self.dropout)?;
        Ok(project(&x, false)?.unwrap_or(x))
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
