//! A transformer with norms after the sums: BERT and its kin. Batches have no padding.
//!
//! ```text
//! x = embeddings                                              (N, D)
//! x = norm(x + output(attention(q(x), k(x), v(x))))
//! x = norm(x + down(f(up(x))))                                or down(f(gate(x)) ∘ up(x))
//! ```
//! What differs between families is plain configuration: embeddings of another width (ELECTRA, ALBERT), layers that
//! are used again (ALBERT), scores by distance (DeBERTa, MPNet), rotated q and k and a gate (NomicBERT).
//! If one token a sequence is pooled, the last layer computes the others' keys and values only.

use std::ops::Range;
use std::rc::Rc;

use anyhow::Result;

use super::batch::{Batch, Pooled};
use super::builder::Builder;
use super::config::{BackboneConfig, PostNormConfig, RelativeConfig};
use super::embeddings::{Embeddings, NORM};
use super::growing_rope::GrowingRope;
use super::modules::{Embedding, Linear, Norm};
use super::relative::{Reach, Relative};
use crate::kernels::constant::Constant;
use crate::ops::activation::{Activation, activate, gated};
use crate::ops::attention::{AttentionKind, ByDistance, Sequences, attention, relative_attention};
use crate::ops::dropout::{Dropout, dropout};
use crate::ops::rope::{RopeTable, rope};
use crate::ops::rows::gather;
use crate::ops::tape::{Tape, Value};

/// A frozen transformer with adapters.
pub(super) struct PostNorm {
    embeddings: Embeddings,
    relative: Option<Relative>,
    rope: Option<GrowingRope>,
    /// In the order in which they are computed; some may be the same one, with how often it was computed before.
    layers: Vec<(Rc<Layer>, u32)>,
    /// Layers before the first with a trained parameter.
    pub(super) frozen_layers: usize,
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
    gate: Option<Linear>,
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
    rope: Option<Rc<RopeTable>>,
    positions: Rc<Constant<u32>>,
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
        let rope = layers.rope.as_ref().map(|rope| GrowingRope::new(rope, config.head_dim));
        let (stored, frozen) = builder.layers(layers.stored.len(), |builder, index| {
            Layer::new(builder, &layers.stored[index], config, layers).map(Rc::new)
        })?;
        // A layer that is computed several times is one of those that are stored.
        let frozen_layers = layers.order.iter().take_while(|&&index| index < frozen).count();
        let turn = |at: usize| layers.order[..at].iter().filter(|&&index| index == layers.order[at]).count() as u32;
        let layers =
            layers.order.iter().enumerate().map(|(at, &index)| (Rc::clone(&stored[index]), turn(at))).collect();
        Ok(Self { embeddings, relative, rope, layers, frozen_layers, recompute })
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

    /// Embedded tokens through the layers before the first with a trained parameter; see [`super::layers::Layers::frozen`].
    pub(super) fn frozen(
        &self,
        tape: &Tape,
        embedded: &Value,
        batch: &Batch,
        pooled: Option<&Rc<Pooled>>,
    ) -> Result<Value> {
        let x = self.embeddings.forward(tape, embedded)?;
        self.through(0..self.frozen_layers, tape, x, batch, pooled)
    }

    /// The hidden states after the last layer: of the pooled tokens, `(B, D)`, or of all, `(N, D)`.
    pub(super) fn trained(&self, tape: &Tape, x: Value, batch: &Batch, pooled: Option<&Rc<Pooled>>) -> Result<Value> {
        self.through(self.frozen_layers..self.layers.len(), tape, x, batch, pooled)
    }

    fn through(
        &self,
        layers: Range<usize>,
        tape: &Tape,
        mut x: Value,
        batch: &Batch,
        pooled: Option<&Rc<Pooled>>,
    ) -> Result<Value> {
        let reach = self.relative.as_ref().map(|relative| relative.up_to(batch)).transpose()?;
        let pass = Rc::new(Pass {
            sequences: Rc::clone(&batch.sequences),
            reach,
            rope: self.rope.as_ref().map(|rope| rope.up_to(&batch.positions)),
            positions: Rc::clone(&batch.positions),
        });
        for index in layers {
            let (layer, turn) = &self.layers[index];
            tape.take_turn(*turn);
            let pooled = pooled.filter(|_| index + 1 == self.layers.len()).map(Rc::clone);
            // Where nothing below needs a gradient, nothing is kept that computing again could save.
            x = if self.recompute && (index >= self.frozen_layers || x.gradient().is_some()) {
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
        let (d, mlp, has_bias) = (config.hidden_size, config.intermediate_size, layers.has_bias);
        let heads = config.num_attention_heads * config.head_dim;
        let [query, key, value] = names.query_key_value;
        let [query, key, value] = [
            builder.linear(&name(query), heads, d, has_bias)?,
            builder.linear(&name(key), heads, d, has_bias)?,
            builder.linear(&name(value), heads, d, has_bias)?,
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
            output: builder.linear(&name(names.output), d, heads, has_bias)?,
            gate: names.gate.map(|gate| builder.linear(&name(gate), mlp, d, has_bias)).transpose()?,
            up: builder.linear(&name(names.up), mlp, d, has_bias)?,
            down: builder.linear(&name(names.down), d, mlp, has_bias)?,
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
        let [q, k] = match &pass.rope {
            None => [q, k],
            Some(table) => {
                let positions = pooled.map_or(&pass.positions, |pooled| &pooled.positions);
                [rope(tape, q, table, positions)?, rope(tape, k, table, &pass.positions)?]
            }
        };
        let x = picked.as_ref().unwrap_or(x);
        let sequences = pooled.map_or(&pass.sequences, |pooled| &pooled.sequences);
        let o = match &pass.reach {
            None => attention(tape, [&q, &k, &v], self.attention, sequences)?,
            Some(reach) => self.attend_by_distance(tape, [&q, &k, &v], reach, sequences)?,
        };
        let x = self.attention_norm.forward(tape, &self.output.add_to(tape, &o, &self.output_dropout, x)?)?;
        let h = match &self.gate {
            None => activate(tape, &self.up.forward(tape, &x, None)?, self.activation)?,
            Some(gate) => {
                let [gate, up] = Linear::all(tape, &x, [gate, &self.up])?;
                gated(tape, &gate, &up, self.activation)?
            }
        };
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
