//! A transformer with norms after the sums: BERT and its kin. Batches have no padding.
//!
//! ```text
//! x = embeddings                                              (N, D)
//! x = norm(x + output(attention(q(x), k(x), v(x))))
//! x = norm(x + down(f(up(x))))
//! ```
//! What differs between families is plain configuration: embeddings of another width (ELECTRA, ALBERT), layers that
//! are used again (ALBERT), scores by distance (DeBERTa, MPNet).
//! If one token a sequence is pooled, the last layer computes the others' keys and values only.

use std::rc::Rc;

use anyhow::Result;

use super::batch::{Batch, Pooled};
use super::builder::Builder;
use super::config::{BackboneConfig, PostNormConfig, RelativeConfig};
use super::embeddings::{Embeddings, NORM};
use super::modules::{Embedding, Linear, Norm};
use super::relative::{Reach, Relative};
use crate::ops::activation::{Activation, activate};
use crate::ops::attention::{AttentionKind, ByDistance, Sequences, attention, relative_attention};
use crate::ops::dropout::{Dropout, dropout};
use crate::ops::rows::gather;
use crate::ops::tape::{Tape, Value};

/// A frozen transformer with adapters.
pub(super) struct PostNorm {
    embeddings: Embeddings,
    relative: Option<Relative>,
    /// In the order in which they are computed; some may be the same one, with how often it was computed before.
    layers: Vec<(Rc<Layer>, u32)>,
    recompute: bool,
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    /// What makes a table for queries, and one for keys, of the embeddings of distances.
    by_distance: [Option<Linear>; 2],
    distance_dropout: Dropout,
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

/// What every layer of one forward pass shares.
struct Pass {
    sequences: Rc<Sequences>,
    reach: Option<Reach>,
}

impl PostNorm {
    pub(super) fn new(
        builder: &mut Builder<'_>,
        config: &BackboneConfig,
        layers: &PostNormConfig,
        recompute: bool,
    ) -> Result<Self> {
        let embeddings = Embeddings::new(builder, config, &layers.embeddings, layers.epsilon)?;
        let relative = layers.relative.as_ref();
        let relative = relative.map(|relative| Relative::new(builder, config, relative, layers.epsilon)).transpose()?;
        let stored: Vec<Rc<Layer>> = layers
            .stored
            .iter()
            .map(|path| Layer::new(builder, path, config, layers).map(Rc::new))
            .collect::<Result<_>>()?;
        let turn = |at: usize| layers.order[..at].iter().filter(|&&index| index == layers.order[at]).count() as u32;
        let layers =
            layers.order.iter().enumerate().map(|(at, &index)| (Rc::clone(&stored[index]), turn(at))).collect();
        Ok(Self { embeddings, relative, layers, recompute })
    }

    /// Returns true if no layer projects embeddings of distances, which all rows of a batch share.
    pub(super) fn can_mix(&self) -> bool {
        self.layers.iter().all(|(layer, _)| layer.by_distance.iter().all(Option::is_none))
    }

    /// The table of words, and what its rows are multiplied by.
    pub(super) fn words(&self) -> (&Embedding, f32) {
        self.embeddings.words()
    }

    /// What [`PostNorm::forward`] takes, `(N, width)`.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary, or a sequence is longer than the model's positions.
    pub(super) fn embed(&self, tape: &Tape, batch: &Batch) -> Result<Value> {
        self.embeddings.embed(tape, batch)
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
        let mut x = self.embeddings.forward(tape, embedded)?;
        let reach = self.relative.as_ref().map(|relative| relative.up_to(batch)).transpose()?;
        let pass = Rc::new(Pass { sequences: Rc::clone(&batch.sequences), reach });
        for (index, (layer, turn)) in self.layers.iter().enumerate() {
            tape.take_turn(*turn);
            let pooled = pooled.filter(|_| index + 1 == self.layers.len()).map(Rc::clone);
            x = if self.recompute {
                let (layer, pass) = (Rc::clone(layer), Rc::clone(&pass));
                tape.recompute(&x, move |tape, x| layer.forward(tape, x, &pass, pooled.as_deref()))?
            } else {
                layer.forward(tape, &x, &pass, pooled.as_deref())?
            };
        }
        tape.take_turn(0);
        Ok(x)
    }
}

impl Layer {
    fn new(builder: &mut Builder<'_>, path: &str, config: &BackboneConfig, layers: &PostNormConfig) -> Result<Self> {
        let names = layers.names;
        let name = |module: &str| format!("{path}.{module}");
        let (d, mlp) = (config.hidden_size, config.intermediate_size);
        let [query, key, value] = names.query_key_value;
        let [query, key, value] = [
            builder.linear(&name(query), d, d, true)?,
            builder.linear(&name(key), d, d, true)?,
            builder.linear(&name(value), d, d, true)?,
        ];
        let by_distance = match &layers.relative {
            Some(RelativeConfig::Disentangled(tables)) => {
                let mut projection = |module: Option<&str>, shared: &Linear| match module {
                    Some(_) if tables.is_shared => Ok(Some(shared.clone())),
                    Some(module) => builder.linear(&name(module), d, d, true).map(Some),
                    None => Ok(None),
                };
                [projection(tables.keys, &key)?, projection(tables.queries, &query)?]
            }
            _ => [None, None],
        };
        let distance_dropout = match by_distance {
            [None, None] => Dropout { p: 0.0, site: 0 },
            _ => builder.dropout(config.dropouts.embedding),
        };
        Ok(Self {
            query,
            key,
            value,
            by_distance,
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
                scale: layers.scale,
                soft_cap: None,
                dropout: builder.dropout(config.dropouts.attention),
            },
            distance_dropout,
        })
    }

    /// `(N, D)` to `(N, D)`, or to `(B, D)` if only the pooled tokens are wanted.
    fn forward(&self, tape: &Tape, x: &Value, pass: &Pass, pooled: Option<&Pooled>) -> candle_core::Result<Value> {
        let picked = pooled.map(|pooled| gather(tape, x, &pooled.rows)).transpose()?;
        let [q, k, v] = match &picked {
            None => Linear::all(tape, x, [&self.query, &self.key, &self.value])?,
            Some(picked) => {
                let [k, v] = Linear::all(tape, x, [&self.key, &self.value])?;
                [self.query.forward(tape, picked, None)?, k, v]
            }
        };
        let x = picked.as_ref().unwrap_or(x);
        let sequences = pooled.map_or(&pass.sequences, |pooled| &pooled.sequences);
        let o = match &pass.reach {
            None => attention(tape, [&q, &k, &v], self.attention, sequences)?,
            Some(reach) => self.attend_by_distance(tape, [&q, &k, &v], reach, sequences)?,
        };
        let x = self.attention_norm.forward(tape, &self.output.add_to(tape, &o, &self.output_dropout, x)?)?;
        let h = activate(tape, &self.up.forward(tape, &x, None)?, self.activation)?;
        self.mlp_norm.forward(tape, &self.down.add_to(tape, &h, &self.down_dropout, &x)?)
    }

    fn attend_by_distance(
        &self,
        tape: &Tape,
        qkv: [&Value; 3],
        reach: &Reach,
        sequences: &Rc<Sequences>,
    ) -> candle_core::Result<Value> {
        let mut tables = [None, None];
        if let Some(table) = &reach.table {
            let table = dropout(tape, Value::constant(table.clone()), &self.distance_dropout)?;
            for (projected, layer) in tables.iter_mut().zip(&self.by_distance) {
                *projected = layer.as_ref().map(|layer| layer.forward(tape, &table, None)).transpose()?;
            }
        }
        let by_distance = ByDistance {
            distances: &reach.distances,
            keys: tables[0].as_ref(),
            queries: tables[1].as_ref(),
            bias: reach.bias.as_ref(),
        };
        relative_attention(tape, qkv, self.attention, &by_distance, sequences)
    }
}
