//! A transformer with norms before attention and MLP: Llama and the decoders built like it, and
//! ModernBERT. Batches have no padding.
//!
//! ```text
//! x  = embedding[token]                                 (N, D), needs no gradient
//! x += output(attention(rope(q(h)), rope(k(h)), v(h)))  h = norm(x)
//! x += down(f(gate(h)) ∘ up(h))                         h = norm(x)
//! y  = norm(x[pooled])                                  (B, D)
//! ```
//! What differs between families is plain configuration: biases (Qwen 2), norms of each head's q and k
//! (Qwen 3), windows (Mistral), norms before the sums and bent scores (Gemma 2), layers without rotation
//! (SmolLM3), layers that see both sides (`model.attention`), scaled sums (Granite), q, k, v and gate, up stored as one (Phi-3, ModernBERT).
//! If one token a sequence is pooled, only those leave the last layer, so its queries, output and MLP
//! run on B rows, not N. That is exact: nothing reads the others.

use std::ops::Range;
use std::rc::Rc;

use anyhow::Result;

use super::batch::{Batch, Pooled};
use super::builder::Builder;
use super::config::{BackboneConfig, PreNormConfig, QueryKeyNorm};
use super::growing_rope::GrowingRope;
use super::key_values::Extension;
use super::modules::{Embedding, Linear, Norm, embed};
use crate::kernels::constant::Constant;
use crate::kernels::device::Device;
use crate::ops::activation::{Activation, gated};
use crate::ops::attention::{AttentionKind, Sequences, attention};
use crate::ops::dropout::{Dropout, dropout};
use crate::ops::rope::{RopeTable, rope};
use crate::ops::rows::{add_scaled, columns, gather};
use crate::ops::tape::{Tape, Value};

/// A frozen transformer with adapters.
pub(super) struct PreNorm {
    embedding: Embedding,
    embedding_scale: f32,
    embedding_norm: Option<Norm>,
    embedding_dropout: Dropout,
    layers: Vec<Rc<Layer>>,
    /// Layers before the first with a trained parameter.
    pub(super) frozen_layers: usize,
    norm: Norm,
    /// Tables of layers that see all tokens, and of layers with a window.
    ropes: [GrowingRope; 2],
    recompute: bool,
    device: Device,
}

struct Layer {
    attention_norm: Option<Norm>,
    query_key_value: QueryKeyValue,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    output: Linear,
    output_dropout: Dropout,
    after_attention: Option<Norm>,
    mlp_norm: Option<Norm>,
    gate_up: GateUp,
    activation: Activation,
    mlp_dropout: Dropout,
    down: Linear,
    down_dropout: Dropout,
    after_mlp: Option<Norm>,
    attention: AttentionKind,
    /// Multiplies what attention and MLP add.
    residual_scale: f32,
    rotates: bool,
}

enum QueryKeyValue {
    Three([Linear; 3]),
    One(Linear),
}

enum GateUp {
    Two([Linear; 2]),
    One(Linear),
}

/// State shared by the layers of one forward pass.
struct Pass {
    ropes: [Rc<RopeTable>; 2],
    positions: Rc<Constant<u32>>,
    sequences: Rc<Sequences>,
}

impl PreNorm {
    pub(super) fn new(
        builder: &mut Builder<'_>,
        config: &BackboneConfig,
        layers: &PreNormConfig,
        recompute: bool,
    ) -> Result<Self> {
        let (names, d) = (layers.names, config.hidden_size);
        let embedding = builder.embedding(names.embedding, config.vocab_size, d, config.padding_token)?;
        let norm = |builder: &mut Builder<'_>, name: &str| builder.norm(name, d, layers.norm, layers.epsilon);
        let embedding_norm = names.embedding_norm.map(|name| norm(builder, name)).transpose()?;
        let embedding_dropout = builder.dropout(config.dropouts.embedding);
        let (built, frozen_layers) = builder.layers(config.num_hidden_layers, |builder, index| {
            Layer::new(builder, index, config, layers).map(Rc::new)
        })?;
        Ok(Self {
            embedding,
            embedding_scale: layers.embedding_scale,
            embedding_norm,
            embedding_dropout,
            layers: built,
            frozen_layers,
            norm: norm(builder, names.last_norm)?,
            ropes: layers.ropes.each_ref().map(|rope| GrowingRope::new(rope, config.head_dim)),
            recompute,
            device: builder.device.clone(),
        })
    }

    /// Embedded tokens through the layers before the first with a trained parameter; see [`super::layers::Layers::frozen`].
    pub(super) fn frozen(
        &self,
        tape: &Tape,
        embedded: &Value,
        batch: &Batch,
        pooled: Option<&Rc<Pooled>>,
    ) -> Result<Value> {
        let normed = self.embedding_norm.as_ref().map(|norm| norm.forward(tape, embedded)).transpose()?;
        let x = dropout(tape, normed.unwrap_or_else(|| embedded.clone()), &self.embedding_dropout)?;
        self.through(0..self.frozen_layers, tape, x, batch, pooled)
    }

    /// The hidden states after the last norm: of the pooled tokens, `(B, D)`, or of all, `(N, D)`.
    pub(super) fn trained(&self, tape: &Tape, x: Value, batch: &Batch, pooled: Option<&Rc<Pooled>>) -> Result<Value> {
        let x = self.through(self.frozen_layers..self.layers.len(), tape, x, batch, pooled)?;
        Ok(self.norm.forward(tape, &x)?)
    }

    fn through(
        &self,
        layers: Range<usize>,
        tape: &Tape,
        mut x: Value,
        batch: &Batch,
        pooled: Option<&Rc<Pooled>>,
    ) -> Result<Value> {
        let pass = Rc::new(Pass {
            ropes: self.ropes.each_ref().map(|rope| rope.up_to(&batch.positions)),
            positions: Rc::clone(&batch.positions),
            sequences: Rc::clone(&batch.sequences),
        });
        for index in layers {
            let layer = Rc::clone(&self.layers[index]);
            let pooled = pooled.filter(|_| index + 1 == self.layers.len()).map(Rc::clone);
            // Where nothing below needs a gradient, nothing is kept that computing again could save.
            x = if self.recompute && (index >= self.frozen_layers || x.gradient().is_some()) {
                let pass = Rc::clone(&pass);
                tape.recompute(&x, move |tape, x| layer.forward(tape, x, &pass, pooled.as_deref(), None))?
            } else {
                layer.forward(tape, &x, &pass, pooled.as_deref(), None)?
            };
        }
        Ok(x)
    }

    /// Goes on with texts whose keys and values are known: the hidden states of their last tokens after the last norm,
    /// `(B, D)`. Only for predicting.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary.
    pub(super) fn extend(&self, extension: &mut Extension<'_>) -> Result<Value> {
        let tape = &Tape::off();
        let tokens = (&self.embedding, extension.token_ids());
        let mut x = embed(tape, &self.device, self.embedding_scale, &[tokens])?;
        if let Some(norm) = &self.embedding_norm {
            x = norm.forward(tape, &x)?;
        }
        let pass = Pass {
            ropes: self.ropes.each_ref().map(|rope| rope.up_to(extension.positions())),
            positions: Rc::clone(extension.positions()),
            sequences: Rc::clone(extension.sequences()),
        };
        let last = extension.last();
        for (index, layer) in self.layers.iter().enumerate() {
            let pooled = Some(&*last).filter(|_| index + 1 == self.layers.len());
            x = layer.forward(tape, &x, &pass, pooled, Some((&mut *extension, index)))?;
        }
        Ok(self.norm.forward(tape, &x)?)
    }
}

impl PreNorm {
    /// The table of words, and what its rows are multiplied by.
    pub(super) fn words(&self) -> (&Embedding, f32) {
        (&self.embedding, self.embedding_scale)
    }

    /// What goes into the first layer, or the norm before it, `(N, D)`.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary.
    pub(super) fn embed(&self, tape: &Tape, batch: &Batch) -> Result<Value> {
        let tokens = (&self.embedding, Rc::clone(&batch.token_ids));
        embed(tape, &self.device, self.embedding_scale, &[tokens])
    }
}

impl Layer {
    fn new(builder: &mut Builder<'_>, index: usize, config: &BackboneConfig, layers: &PreNormConfig) -> Result<Self> {
        let names = layers.names;
        let layer = format!("{}.{index}", names.layers);
        let name = |module: &str| format!("{layer}.{module}");
        let (d, mlp) = (config.hidden_size, config.intermediate_size);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let bias = layers.query_key_value_bias;
        let query_key_value = match names.query_key_value {
            [fused] => QueryKeyValue::One(builder.linear(&name(fused), q + 2 * kv, d, bias)?),
            [of_q, of_k, of_v] => QueryKeyValue::Three([
                builder.linear(&name(of_q), q, d, bias)?,
                builder.linear(&name(of_k), kv, d, bias)?,
                builder.linear(&name(of_v), kv, d, bias)?,
            ]),
            other => unreachable!("q, k and v in {} modules", other.len()),
        };
        let output = builder.linear(&name(names.output), d, q, layers.output_bias)?;
        let gate_up = match names.gate_up {
            [fused] => GateUp::One(builder.linear(&name(fused), 2 * mlp, d, layers.mlp_bias)?),
            [gate, up] => GateUp::Two([
                builder.linear(&name(gate), mlp, d, layers.mlp_bias)?,
                builder.linear(&name(up), mlp, d, layers.mlp_bias)?,
            ]),
            other => unreachable!("gate and up in {} modules", other.len()),
        };
        let down = builder.linear(&name(names.down), d, mlp, layers.mlp_bias)?;
        let mut norm = |module: &str, width: usize| builder.norm(&name(module), width, layers.norm, layers.epsilon);
        let first_norm = names.attention_norm.filter(|_| index > 0 || names.embedding_norm.is_none());
        let of_heads = |norm: &mut dyn FnMut(&str, usize) -> Result<Norm>, module: &str, heads: usize| {
            let heads = match layers.query_key_norm {
                None => return Ok(None),
                Some(QueryKeyNorm::Heads) => 1,
                Some(QueryKeyNorm::Whole) => heads,
            };
            norm(module, heads * config.head_dim).map(Some)
        };
        Ok(Self {
            query_key_value,
            output,
            gate_up,
            down,
            q_norm: of_heads(&mut norm, "self_attn.q_norm", config.num_attention_heads)?,
            k_norm: of_heads(&mut norm, "self_attn.k_norm", config.num_key_value_heads)?,
            attention_norm: first_norm.map(|module| norm(module, d)).transpose()?,
            after_attention: names.after_attention.map(|module| norm(module, d)).transpose()?,
            mlp_norm: names.mlp_norm.map(|module| norm(module, d)).transpose()?,
            after_mlp: names.after_mlp.map(|module| norm(module, d)).transpose()?,
            activation: config.activation,
            output_dropout: builder.dropout(config.dropouts.attention_output),
            mlp_dropout: builder.dropout(config.dropouts.inside_mlp),
            down_dropout: builder.dropout(config.dropouts.mlp_output),
            attention: AttentionKind {
                heads: config.num_attention_heads,
                key_value_heads: config.num_key_value_heads,
                head_size: config.head_dim,
                is_causal: layers.is_causal && layers.bidirectional_from.is_none_or(|first| index < first),
                window: layers.windows[index],
                scale: layers.scale,
                soft_cap: layers.soft_cap,
                dropout: builder.dropout(config.dropouts.attention),
            },
            residual_scale: layers.residual_scale,
            rotates: layers.rotates[index],
        })
    }

    /// `(N, D)` to `(N, D)`, or to `(B, D)` if only the pooled tokens are wanted.
    /// With an extension, keys and values of the texts so far come before those of `x`, which is layer `usize`.
    fn forward(
        &self,
        tape: &Tape,
        x: &Value,
        pass: &Pass,
        pooled: Option<&Pooled>,
        extension: Option<(&mut Extension<'_>, usize)>,
    ) -> candle_core::Result<Value> {
        let normed = self.attention_norm.as_ref().map(|norm| norm.forward(tape, x)).transpose()?;
        let h = normed.as_ref().unwrap_or(x);
        let table = self.rotates.then(|| &pass.ropes[usize::from(self.attention.window.is_some())]);
        let [q, k, v] = self.query_key_value(tape, h, pooled)?;
        let k = rotated(tape, k, self.k_norm.as_ref(), table, &pass.positions)?;
        let [k, v] = match extension {
            Some((extension, layer)) => extension.join(layer, [k.tensor(), v.tensor()])?.map(Value::constant),
            None => [k, v],
        };
        let Some(pooled) = pooled else {
            let q = rotated(tape, q, self.q_norm.as_ref(), table, &pass.positions)?;
            let o = attention(tape, [&q, &k, &v], self.attention, &pass.sequences)?;
            return self.after_attention(tape, &o, x);
        };
        let q = rotated(tape, q, self.q_norm.as_ref(), table, &pooled.positions)?;
        let o = attention(tape, [&q, &k, &v], self.attention, &pooled.sequences)?;
        self.after_attention(tape, &o, &gather(tape, x, &pooled.rows)?)
    }

    /// Queries of all tokens or of the pooled ones, keys and values of all.
    fn query_key_value(&self, tape: &Tape, h: &Value, pooled: Option<&Pooled>) -> candle_core::Result<[Value; 3]> {
        let pick = |x: &Value| pooled.map(|pooled| gather(tape, x, &pooled.rows)).transpose();
        match &self.query_key_value {
            QueryKeyValue::Three([of_q, of_k, of_v]) => {
                let Some(picked) = pick(h)? else { return Linear::all(tape, h, [of_q, of_k, of_v]) };
                let [k, v] = Linear::all(tape, h, [of_k, of_v])?;
                Ok([of_q.forward(tape, &picked, None)?, k, v])
            }
            QueryKeyValue::One(fused) => {
                let kv = self.attention.key_value_heads * self.attention.head_size;
                let q = self.attention.heads * self.attention.head_size;
                let all = fused.forward(tape, h, None)?;
                let queries = columns(tape, &all, 0..q)?;
                let picked = pick(&queries)?;
                let [k, v] = [q, q + kv].map(|start| columns(tape, &all, start..start + kv));
                Ok([picked.unwrap_or(queries), k?, v?])
            }
        }
    }

    fn after_attention(&self, tape: &Tape, attended: &Value, x: &Value) -> candle_core::Result<Value> {
        let x =
            &self.add_block(tape, attended, (&self.output, &self.output_dropout), self.after_attention.as_ref(), x)?;
        let normed = self.mlp_norm.as_ref().map(|norm| norm.forward(tape, x)).transpose()?;
        let h = normed.as_ref().unwrap_or(x);
        let (gate, up) = match &self.gate_up {
            GateUp::Two([gate, up]) => Linear::all(tape, h, [gate, up])?.into(),
            GateUp::One(fused) => {
                let both = fused.forward(tape, h, None)?;
                let width = both.tensor().dim(1)? / 2;
                (columns(tape, &both, 0..width)?, columns(tape, &both, width..2 * width)?)
            }
        };
        let y = dropout(tape, gated(tape, &gate, &up, self.activation)?, &self.mlp_dropout)?;
        self.add_block(tape, &y, (&self.down, &self.down_dropout), self.after_mlp.as_ref(), x)
    }

    /// `x + scale · norm(drop(linear(h)))`: one op where neither scale, norm nor dropout does anything.
    fn add_block(
        &self,
        tape: &Tape,
        h: &Value,
        (linear, site): (&Linear, &Dropout),
        norm: Option<&Norm>,
        x: &Value,
    ) -> candle_core::Result<Value> {
        if norm.is_none() && self.residual_scale == 1.0 {
            return linear.add_to(tape, h, site, x);
        }
        let mut y = dropout(tape, linear.forward(tape, h, None)?, site)?;
        if let Some(norm) = norm {
            y = norm.forward(tape, &y)?;
        }
        add_scaled(tape, x, &y, self.residual_scale)
    }
}

/// Queries or keys: normalised and rotated where the model does that.
fn rotated(
    tape: &Tape,
    x: Value,
    norm: Option<&Norm>,
    table: Option<&Rc<RopeTable>>,
    positions: &Rc<Constant<u32>>,
) -> candle_core::Result<Value> {
    let x = match norm {
        Some(norm) => norm.forward(tape, &x)?,
        None => x,
    };
    match table {
        Some(table) => rope(tape, x, table, positions),
        None => Ok(x),
    }
}
