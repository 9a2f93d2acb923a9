//! A decoder of the Llama, Mistral or Qwen families, over batches without padding.
//!
//! ```text
//! x  = embedding[token]                       (N, D), needs no gradient
//! x += o(attention(rope(q(h)), rope(k(h)), v(h)))   h = rms_norm(x)
//! x += down(silu(gate(h)) ∘ up(h))                  h = rms_norm(x)
//! y  = rms_norm(x[pooled])                    (B, D)
//! ```
//! What differs between families is plain configuration: biases (Qwen2), norms of each head's q and k
//! (Qwen3), windows (Mistral).
//! Only the pooled rows leave the last layer, so its queries, `o_proj` and MLP run on B rows, not
//! N. That is exact: nothing reads the others.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::{Result, ensure};
use candle_core::Tensor;

use super::batch::Batch;
use super::config::DecoderConfig;
use super::lora::LoraOptions;
use super::weights::{BaseStorage, Weights};
use crate::ops::attention::{AttentionKind, Sequences, attention};
use crate::ops::buffer;
use crate::ops::frozen::FrozenMatrix;
use crate::ops::lora_linear::{Adapter, LoraLinear, lora_linear};
use crate::ops::rms_norm::{RmsNorm, rms_norm};
use crate::ops::rope::{RopeTable, rope};
use crate::ops::rows::gather;
use crate::ops::swiglu::swiglu;
use crate::ops::tape::{Param, Tape, Value};

/// A frozen decoder with adapters.
pub struct Decoder {
    embed_tokens: FrozenMatrix,
    layers: Vec<Rc<Layer>>,
    norm: Rc<RmsNorm>,
    frequencies: Vec<f32>,
    rope: RefCell<Rc<RopeTable>>,
    recompute: bool,
}

struct Layer {
    input_layernorm: Rc<RmsNorm>,
    q_norm: Option<Rc<RmsNorm>>,
    k_norm: Option<Rc<RmsNorm>>,
    q_proj: Rc<LoraLinear>,
    k_proj: Rc<LoraLinear>,
    v_proj: Rc<LoraLinear>,
    o_proj: Rc<LoraLinear>,
    post_attention_layernorm: Rc<RmsNorm>,
    gate_proj: Rc<LoraLinear>,
    up_proj: Rc<LoraLinear>,
    down_proj: Rc<LoraLinear>,
    attention: AttentionKind,
}

/// What every layer of one forward pass shares.
struct Pass {
    rope: Rc<RopeTable>,
    positions: Rc<[u32]>,
    sequences: Rc<Sequences>,
}

/// The pooled tokens: the only ones that the last layer computes after its attention.
struct Pooled {
    rows: Rc<[u32]>,
    positions: Rc<[u32]>,
    sequences: Rc<Sequences>,
}

/// Hands out parameters while a model is built, in the order of the state dict.
pub(super) struct Builder<'a> {
    pub(super) weights: &'a Weights,
    pub(super) storage: BaseStorage,
    pub(super) lora: &'a LoraOptions,
    pub(super) params: Vec<Rc<Param>>,
    pub(super) modules: Vec<String>,
}

impl Builder<'_> {
    fn linear(&mut self, module: &str, outputs: usize, inputs: usize, has_bias: bool) -> Result<Rc<LoraLinear>> {
        let (prefix, weights) = (self.weights.prefix(), self.weights);
        let weight = weights.matrix(&format!("{prefix}{module}.weight"), outputs, inputs, self.storage)?;
        let bias = weights.bias(&format!("{prefix}{module}.bias"), outputs, has_bias)?;
        let module = format!("model.{module}");
        let mut adapter = None;
        if self.lora.targets.matches(&module) {
            let rank = self.lora.rank;
            let mut param = |name: &str, shape: (usize, usize)| -> Result<Rc<Param>> {
                let zeros = buffer::tensor(vec![0.0; shape.0 * shape.1], shape)?;
                let param = Param::new(format!("{module}.{name}.weight"), zeros)?;
                self.params.push(Rc::clone(&param));
                Ok(param)
            };
            adapter = Some(Adapter {
                a: param("lora_A", (rank, inputs))?,
                b: param("lora_B", (outputs, rank))?,
                scaling: (self.lora.alpha / rank as f64) as f32,
                dropout: self.lora.dropout as f32,
                site: self.params.len() as u32 - 2,
            });
        }
        self.modules.push(module);
        Ok(Rc::new(LoraLinear { weight, bias, adapter }))
    }

    fn norm(&self, name: &str, width: usize, config: &DecoderConfig) -> Result<Rc<RmsNorm>> {
        let weight = self.weights.norm(&format!("{}{name}.weight", self.weights.prefix()), width)?;
        Ok(Rc::new(RmsNorm { weight, epsilon: config.rms_norm_eps }))
    }
}

impl Decoder {
    pub(super) fn new(builder: &mut Builder<'_>, config: &DecoderConfig, recompute: bool) -> Result<Self> {
        let embedding = BaseStorage { is_4bit: false, ..builder.storage };
        let name = format!("{}embed_tokens.weight", builder.weights.prefix());
        let embed_tokens = builder.weights.matrix(&name, config.vocab_size, config.hidden_size, embedding)?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::new(builder, index, config).map(Rc::new))
            .collect::<Result<_>>()?;
        let frequencies = config.rope.frequencies(config.head_dim);
        Ok(Self {
            embed_tokens,
            layers,
            norm: builder.norm("norm", config.hidden_size, config)?,
            rope: RefCell::new(Rc::new(RopeTable::new(&frequencies, 1))),
            frequencies,
            recompute,
        })
    }

    /// The hidden states of the pooled tokens after the last norm, `(B, D)`.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary.
    pub fn forward(&self, tape: &Tape, batch: &Batch) -> Result<Value> {
        let pass = Rc::new(Pass {
            rope: self.rope_table(&batch.positions),
            positions: Rc::clone(&batch.positions),
            sequences: Rc::clone(&batch.sequences),
        });
        let pooled = Rc::new(Pooled {
            rows: Rc::clone(&batch.pooled),
            positions: batch.pooled.iter().map(|&row| batch.positions[row as usize]).collect(),
            sequences: Rc::new(Sequences {
                offsets: batch.sequences.offsets.clone(),
                queries: Some(Rc::clone(&batch.pooled)),
            }),
        });
        let mut x = Value::constant(self.embed(&batch.token_ids)?);
        for (index, layer) in self.layers.iter().enumerate() {
            let pooled = (index + 1 == self.layers.len()).then(|| Rc::clone(&pooled));
            x = if self.recompute {
                let (layer, pass) = (Rc::clone(layer), Rc::clone(&pass));
                tape.recompute(&x, move |tape, x| layer.forward(tape, x, &pass, pooled.as_deref()))?
            } else {
                layer.forward(tape, &x, &pass, pooled.as_deref())?
            };
        }
        Ok(rms_norm(tape, &x, &self.norm)?)
    }

    /// Bytes of frozen weights, embeddings included.
    #[must_use]
    pub fn base_bytes(&self) -> usize {
        let norms = |norm: &RmsNorm| 4 * norm.weight.len();
        let layers = self.layers.iter().map(|layer| {
            let linears: usize = layer.linears().iter().map(|linear| linear.weight.bytes()).sum();
            linears + norms(&layer.input_layernorm) + norms(&layer.post_attention_layernorm)
        });
        self.embed_tokens.bytes() + norms(&self.norm) + layers.sum::<usize>()
    }

    /// Bytes of the embedding alone.
    #[must_use]
    pub fn embedding_bytes(&self) -> usize {
        self.embed_tokens.bytes()
    }

    /// The number of frozen weights, embeddings included.
    #[must_use]
    pub fn base_parameters(&self) -> usize {
        let linear = |linear: &Rc<LoraLinear>| linear.weight.rows() * linear.weight.columns();
        let layers = self.layers.iter().map(|layer| layer.linears().iter().map(|l| linear(l)).sum::<usize>());
        let norms = (2 * self.layers.len() + 1) * self.norm.weight.len();
        self.embed_tokens.rows() * self.embed_tokens.columns() + layers.sum::<usize>() + norms
    }

    fn embed(&self, token_ids: &[u32]) -> Result<Tensor> {
        let width = self.embed_tokens.columns();
        let mut x = buffer::scratch(token_ids.len() * width);
        for (row, &token) in x.chunks_exact_mut(width).zip(token_ids) {
            let token = token as usize;
            ensure!(
                token < self.embed_tokens.rows(),
                "token id {token} is outside the model's vocabulary of {}: tokenizer.json and config.json do not belong together",
                self.embed_tokens.rows()
            );
            self.embed_tokens.read(token * width, row);
        }
        Ok(buffer::tensor(x, (token_ids.len(), width))?)
    }

    /// Angles up to the longest sequence seen so far.
    fn rope_table(&self, positions: &[u32]) -> Rc<RopeTable> {
        let needed = positions.iter().max().map_or(1, |&last| last as usize + 1);
        if needed > self.rope.borrow().positions() {
            let table = RopeTable::new(&self.frequencies, needed.next_power_of_two());
            self.rope.replace(Rc::new(table));
        }
        Rc::clone(&self.rope.borrow())
    }
}

impl Layer {
    fn new(builder: &mut Builder<'_>, index: usize, config: &DecoderConfig) -> Result<Self> {
        let name = &format!("layers.{index}");
        let (d, mlp) = (config.hidden_size, config.intermediate_size);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let (attention, bias) = (format!("{name}.self_attn"), config.query_key_value_bias);
        let head_norm = |builder: &Builder<'_>, norm: &str| {
            let norm = || builder.norm(&format!("{attention}.{norm}"), config.head_dim, config);
            config.has_query_key_norm.then(norm).transpose()
        };
        Ok(Self {
            q_proj: builder.linear(&format!("{attention}.q_proj"), q, d, bias)?,
            k_proj: builder.linear(&format!("{attention}.k_proj"), kv, d, bias)?,
            v_proj: builder.linear(&format!("{attention}.v_proj"), kv, d, bias)?,
            o_proj: builder.linear(&format!("{attention}.o_proj"), d, q, config.output_bias)?,
            gate_proj: builder.linear(&format!("{name}.mlp.gate_proj"), mlp, d, config.mlp_bias)?,
            up_proj: builder.linear(&format!("{name}.mlp.up_proj"), mlp, d, config.mlp_bias)?,
            down_proj: builder.linear(&format!("{name}.mlp.down_proj"), d, mlp, config.mlp_bias)?,
            q_norm: head_norm(builder, "q_norm")?,
            k_norm: head_norm(builder, "k_norm")?,
            input_layernorm: builder.norm(&format!("{name}.input_layernorm"), d, config)?,
            post_attention_layernorm: builder.norm(&format!("{name}.post_attention_layernorm"), d, config)?,
            attention: AttentionKind {
                heads: config.num_attention_heads,
                key_value_heads: config.num_key_value_heads,
                head_size: config.head_dim,
                is_causal: true,
                window: config.windows[index],
                scale: 1.0 / (config.head_dim as f32).sqrt(),
            },
        })
    }

    fn linears(&self) -> [&Rc<LoraLinear>; 7] {
        [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj, &self.gate_proj, &self.up_proj, &self.down_proj]
    }

    /// `(N, D)` to `(N, D)`, or to `(B, D)` if only the pooled tokens are wanted.
    fn forward(&self, tape: &Tape, x: &Value, pass: &Pass, pooled: Option<&Pooled>) -> candle_core::Result<Value> {
        let h = rms_norm(tape, x, &self.input_layernorm)?;
        let k = self.rotated(tape, &h, (&self.k_proj, &self.k_norm), &pass.rope, &pass.positions)?;
        let v = lora_linear(tape, &h, &self.v_proj, None)?;
        let Some(pooled) = pooled else {
            let q = self.rotated(tape, &h, (&self.q_proj, &self.q_norm), &pass.rope, &pass.positions)?;
            let o = attention(tape, [&q, &k, &v], self.attention, &pass.sequences)?;
            return self.after_attention(tape, &o, x);
        };
        let (h, x) = (gather(tape, &h, &pooled.rows)?, gather(tape, x, &pooled.rows)?);
        let q = self.rotated(tape, &h, (&self.q_proj, &self.q_norm), &pass.rope, &pooled.positions)?;
        let o = attention(tape, [&q, &k, &v], self.attention, &pooled.sequences)?;
        self.after_attention(tape, &o, &x)
    }

    /// Queries or keys: projected, normalised where the model does that, rotated.
    fn rotated(
        &self,
        tape: &Tape,
        h: &Value,
        (projection, norm): (&Rc<LoraLinear>, &Option<Rc<RmsNorm>>),
        table: &Rc<RopeTable>,
        positions: &Rc<[u32]>,
    ) -> candle_core::Result<Value> {
        let mut x = lora_linear(tape, h, projection, None)?;
        if let Some(norm) = norm {
            x = rms_norm(tape, &x, norm)?;
        }
        rope(tape, x, table, positions)
    }

    fn after_attention(&self, tape: &Tape, attended: &Value, x: &Value) -> candle_core::Result<Value> {
        let x = lora_linear(tape, attended, &self.o_proj, Some(x))?;
        let h = rms_norm(tape, &x, &self.post_attention_layernorm)?;
        let gate = lora_linear(tape, &h, &self.gate_proj, None)?;
        let up = lora_linear(tape, &h, &self.up_proj, None)?;
        let y = swiglu(tape, &gate, &up)?;
        lora_linear(tape, &y, &self.down_proj, Some(&x))
    }
}
