//! What a training step will take of memory, told before it is taken.
//!
//! Counted from what the ops save for their backward; held to measured peaks in README.md.

use crate::model::config::DecoderConfig;
use crate::model::weights::{BaseStorage, Precision};
use crate::ops::nf4;

/// Bytes of program, tokenizer and worker buffers, measured on small models.
const PROGRAM: u64 = 30 << 20;

/// What decides how much memory a step takes.
#[derive(Clone, Debug)]
pub struct StepShape<'a> {
    /// The decoder.
    pub config: &'a DecoderConfig,
    /// How it is held.
    pub storage: BaseStorage,
    /// Trained numbers.
    pub trained: usize,
    /// Bytes of the optimizer's state.
    pub optimizer_bytes: usize,
    /// Whether a layer is computed again in the backward.
    pub recompute: bool,
    /// Tokens of the largest batch.
    pub tokens: usize,
}

/// Bytes that a step takes, part by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Frozen weights.
    pub base: u64,
    /// Adapters and head, and their gradients.
    pub trained: u64,
    /// The optimizer's state.
    pub optimizer: u64,
    /// What the forward saves for the backward, and what the backward holds at once.
    pub activations: u64,
}

impl MemoryEstimate {
    /// Estimates a step.
    #[must_use]
    pub fn new(shape: &StepShape<'_>) -> Self {
        let config = shape.config;
        let (d, mlp) = (config.hidden_size, config.intermediate_size);
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        // x, norm, q, k, v, attended, x after attention, norm, gate, up, their product.
        let layer = 4 * d + 2 * queries + 2 * keys + 3 * mlp;
        // The last layer goes on with the pooled tokens alone.
        let last = 2 * d + 2 * keys;
        let layers = config.num_hidden_layers;
        let saved = if shape.recompute { layers * d + layer } else { (layers - 1) * layer + last };
        // Gradients of gate, up and their product, and of the residual stream.
        let in_backward = 3 * mlp + 2 * d;
        // Dropout's masks.
        let bits = if shape.recompute { 1 } else { layers } * (6 * d + mlp) / 8;
        Self {
            base: base_bytes(config, shape.storage),
            trained: 8 * shape.trained as u64,
            optimizer: shape.optimizer_bytes as u64,
            activations: (shape.tokens * (4 * (saved + in_backward) + bits)) as u64,
        }
    }

    /// All of it, with the program itself.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.base + self.trained + self.optimizer + self.activations + PROGRAM
    }
}

/// Bytes of the frozen weights.
#[must_use]
pub fn base_bytes(config: &DecoderConfig, storage: BaseStorage) -> u64 {
    let (d, mlp) = (config.hidden_size, config.intermediate_size);
    let queries = config.num_attention_heads * config.head_dim;
    let keys = config.num_key_value_heads * config.head_dim;
    let linear = config.num_hidden_layers * (2 * d * queries + 2 * d * keys + 3 * d * mlp);
    let dense = match storage.precision {
        Precision::Float32 => 4,
        Precision::Bfloat16 | Precision::Float16 => 2,
    };
    let linear = if storage.is_4bit {
        // Codes, scales, and the scales of scales.
        linear / 2 + linear / nf4::BLOCK + 4 * linear / (nf4::BLOCK * nf4::NESTED_BLOCK)
    } else {
        dense * linear
    };
    (linear + dense * config.vocab_size * d + 4 * d * (2 * config.num_hidden_layers + 1)) as u64
}
