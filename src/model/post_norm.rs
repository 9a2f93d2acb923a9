//! A transformer with norms after the sums: BERT, RoBERTa, DistilBERT. Batches have no padding.
//!
//! ```text
//! x = norm(word[token] + position[p] + type[0])               (N, D), needs no gradient
//! x = norm(x + output(attention(q(x), k(x), v(x))))
//! x = norm(x + down(f(up(x))))
//! ```
//! If one token a sequence is pooled, the last layer computes the others' keys and values only.

use std::rc::Rc;

use anyhow::{Result, ensure};

use super::batch::{Batch, Pooled};
use super::builder::Builder;
use super::config::{BackboneConfig, NormKind, PostNormConfig};
use super::modules::{Embedding, Linear, Norm, embed};
use crate::kernels::device::Device;
use crate::ops::activation::{Activation, activate};
use crate::ops::attention::{AttentionKind, Sequences, attention};
use crate::ops::dropout::{Dropout, dropout};
use crate::ops::rows::gather;
use crate::ops::tape::{Tape, Value};

/// A frozen transformer with adapters.
pub(super) struct PostNorm {
    words: Embedding,
    positions: Embedding,
    first_position: usize,
    /// The types of tokens: all are of the first.
    token_types: Option<Embedding>,
    embedding_norm: Norm,
    embedding_dropout: Dropout,
    layers: Vec<Rc<Layer>>,
    recompute: bool,
    device: Device,
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention: AttentionKind,
    output: Linear,
    output_dropout: Dropout,
    attention_norm: Norm,
    up: Linear,
    activation: Activation,
    down: Linear,
    down_dropout: Dropout,
    mlp_norm: Norm,
}

impl PostNorm {
    pub(super) fn new(
        builder: &mut Builder<'_>,
        config: &BackboneConfig,
        layers: &PostNormConfig,
        recompute: bool,
    ) -> Result<Self> {
        let d = config.hidden_size;
        let words = builder.embedding(WORDS, config.vocab_size, d, config.padding_token)?;
        // RoBERTa counts from behind its padding row.
        let padding = layers.first_position.checked_sub(1).map(|row| row as u32);
        let positions = builder.embedding("embeddings.position_embeddings", layers.positions, d, padding)?;
        let token_types = layers
            .token_types
            .map(|types| builder.embedding("embeddings.token_type_embeddings", types, d, None))
            .transpose()?;
        Ok(Self {
            words,
            positions,
            first_position: layers.first_position,
            token_types,
            embedding_norm: builder.norm("embeddings.LayerNorm", d, NORM, layers.epsilon)?,
            embedding_dropout: builder.dropout(config.dropouts.embedding),
            layers: (0..config.num_hidden_layers)
                .map(|index| Layer::new(builder, index, config, layers).map(Rc::new))
                .collect::<Result<_>>()?,
            recompute,
            device: builder.device.clone(),
        })
    }

    /// The hidden states after the last layer: of the pooled tokens, `(B, D)`, or of all, `(N, D)`.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary, or a sequence is longer than the model's positions.
    pub(super) fn forward(
        &self,
        tape: &Tape,
        embedded: &Value,
        batch: &Batch,
        pooled: Option<&Rc<Pooled>>,
    ) -> Result<Value> {
        let mut x = self.embedding_norm.forward(tape, embedded)?;
        x = dropout(tape, x, &self.embedding_dropout)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let pooled = pooled.filter(|_| index + 1 == self.layers.len()).map(Rc::clone);
            let sequences = Rc::clone(&batch.sequences);
            x = if self.recompute {
                let layer = Rc::clone(layer);
                tape.recompute(&x, move |tape, x| layer.forward(tape, x, &sequences, pooled.as_deref()))?
            } else {
                layer.forward(tape, &x, &sequences, pooled.as_deref())?
            };
        }
        Ok(x)
    }

    /// The table of words.
    pub(super) fn words(&self) -> (&Embedding, f32) {
        (&self.words, 1.0)
    }

    /// What goes into the first norm, `(N, D)`.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary, or a sequence is longer than the model's positions.
    pub(super) fn embed(&self, tape: &Tape, batch: &Batch) -> Result<Value> {
        let longest = batch.positions.iter().max().map_or(0, |&last| last as usize) + self.first_position;
        ensure!(
            longest < self.positions.rows(),
            "a text of {} tokens is longer than the model's {} positions; lower data.max_length",
            longest + 1 - self.first_position,
            self.positions.rows() - self.first_position
        );
        let positions = position_rows(batch, self.first_position).map(|row| row as u32).collect();
        let mut parts = vec![(&self.words, Rc::clone(&batch.token_ids)), (&self.positions, positions)];
        parts.extend(self.token_types.as_ref().map(|types| (types, vec![0; batch.token_ids.len()].into())));
        embed(tape, &self.device, 1.0, &parts)
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

/// The name of the token embeddings.
pub(super) const WORDS: &str = "embeddings.word_embeddings";
const NORM: NormKind = NormKind::Layer { has_bias: true };

impl Layer {
    fn new(builder: &mut Builder<'_>, index: usize, config: &BackboneConfig, layers: &PostNormConfig) -> Result<Self> {
        let names = layers.names;
        let name = |module: &str| format!("{}.{index}.{module}", names.layers);
        let (d, mlp) = (config.hidden_size, config.intermediate_size);
        let [query, key, value] = names.query_key_value;
        Ok(Self {
            query: builder.linear(&name(query), d, d, true)?,
            key: builder.linear(&name(key), d, d, true)?,
            value: builder.linear(&name(value), d, d, true)?,
            output: builder.linear(&name(names.output), d, d, true)?,
            up: builder.linear(&name(names.up), mlp, d, true)?,
            down: builder.linear(&name(names.down), d, mlp, true)?,
            attention_norm: builder.norm(&name(names.attention_norm), d, NORM, layers.epsilon)?,
            mlp_norm: builder.norm(&name(names.mlp_norm), d, NORM, layers.epsilon)?,
            activation: config.activation,
            output_dropout: builder.dropout(config.dropouts.attention_output),
            down_dropout: builder.dropout(config.dropouts.mlp_output),
            attention: AttentionKind {
                heads: config.num_attention_heads,
                key_value_heads: config.num_attention_heads,
                head_size: config.head_dim,
                is_causal: false,
                window: None,
                scale: (config.head_dim as f32).powf(-0.5),
                soft_cap: None,
                dropout: builder.dropout(config.dropouts.attention),
            },
        })
    }

    /// `(N, D)` to `(N, D)`, or to `(B, D)` if only the pooled tokens are wanted.
    fn forward(
        &self,
        tape: &Tape,
        x: &Value,
        sequences: &Rc<Sequences>,
        pooled: Option<&Pooled>,
    ) -> candle_core::Result<Value> {
        let picked = pooled.map(|pooled| gather(tape, x, &pooled.rows)).transpose()?;
        let [q, k, v] = match &picked {
            None => Linear::all(tape, x, [&self.query, &self.key, &self.value])?,
            Some(picked) => {
                let [k, v] = Linear::all(tape, x, [&self.key, &self.value])?;
                [self.query.forward(tape, picked, None)?, k, v]
            }
        };
        let x = picked.as_ref().unwrap_or(x);
        let o = attention(tape, [&q, &k, &v], self.attention, pooled.map_or(sequences, |pooled| &pooled.sequences))?;
        let x = self.attention_norm.forward(tape, &self.output.add_to(tape, &o, &self.output_dropout, x)?)?;
        let h = activate(tape, &self.up.forward(tape, &x, None)?, self.activation)?;
        self.mlp_norm.forward(tape, &self.down.add_to(tape, &h, &self.down_dropout, &x)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Matches `create_position_ids_from_input_ids` of transformers 4.57.6.
    #[test]
    fn roberta_does_not_count_padding_tokens_of_a_text() {
        let texts: [&[u32]; 3] = [&[0, 7, 1, 8, 2], &[1, 9], &[5, 6]];
        let batch = Batch::new(texts.map(|tokens| (tokens, &[0.0][..]))).unwrap();
        assert_eq!(position_rows(&batch, 2).collect::<Vec<_>>(), [2, 3, 1, 4, 5, 1, 2, 2, 3]);
        assert_eq!(position_rows(&batch, 0).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 0, 1, 0, 1]);
    }
}
