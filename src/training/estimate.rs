//! Estimates the peak memory of a training step before it runs.
//!
//! Counted from what the ops save for their backward; held to measured peaks in README.md.

use super::data_parallel::sets_held;
use crate::kernels::Compute;
use crate::kernels::cpu::nf4;
use crate::kernels::device::Device;
use crate::model::config::{BackboneConfig, LayersConfig, Pooling};
use crate::model::weights::{BaseStorage, Precision};

/// Bytes of program, tokenizer and worker buffers, measured on small models.
const PROGRAM: u64 = 30 << 20;

/// Facts that determine the memory of a step.
#[derive(Clone, Debug)]
pub struct StepShape<'a> {
    pub config: &'a BackboneConfig,
    /// Storage of the base.
    pub storage: BaseStorage,
    /// Layers that save nothing for the backward: those before the first adapter.
    pub frozen_layers: usize,
    /// Trained numbers.
    pub trained: usize,
    /// Micro-batches in a step.
    pub accumulation: usize,
    /// Every weight is trained: none is frozen.
    pub trains_base: bool,
    /// Bytes of the optimizer's state.
    pub optimizer_bytes: usize,
    /// True if layers are computed again in the backward.
    pub recompute: bool,
    /// Tokens of the largest batch.
    pub tokens: usize,
    pub device: &'a Device,
}

/// Bytes that a step takes, part by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Frozen weights.
    pub base: u64,
    /// Their packed copies.
    pub packed: u64,
    /// Adapters and head, and the gradients that a step's sum holds at once.
    pub trained: u64,
    /// The optimizer's state.
    pub optimizer: u64,
    /// Tensors that the forward saves for the backward, and buffers of the backward.
    pub activations: u64,
}

impl MemoryEstimate {
    #[must_use]
    pub fn new(shape: &StepShape<'_>) -> Self {
        let config = shape.config;
        let (d, mlp) = (config.hidden_size, config.intermediate_size);
        let size = shape.device.activation_bytes();
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        // The outputs of frozen norms are computed again.
        let norms = if shape.trains_base { 2 * d } else { 0 };
        let (layer, inputs) = match &config.layers {
            LayersConfig::PreNorm(layers) => {
                // x, q, k, v, attended, x after attention, gate, up, their product.
                let plain = norms + 2 * d + 2 * queries + 2 * keys + 3 * mlp;
                let names = layers.names;
                let sandwich = [names.after_attention, names.after_mlp].iter().flatten().count() * 2 * d;
                let fused = if names.query_key_value.len() == 1 { queries + 2 * keys } else { 0 };
                let fused_mlp = if names.gate_up.len() == 1 { 2 * mlp } else { 0 };
                (plain + sandwich + fused + fused_mlp, 6 * d + mlp)
            }
            // Both sums, q, k, v, attended, up and its activation.
            // With a gate, their product too.
            LayersConfig::PostNorm(layers) => {
                let inside = 2 + usize::from(layers.names.gate.is_some());
                (norms + 2 * d + 2 * queries + 2 * keys + inside * mlp, 5 * d + mlp)
            }
        };
        // Each layer projects the embeddings of distances for queries and for keys.
        let of_distances = 2 * config.distance_rows().min(2 * shape.tokens) * queries;
        // The last layer continues with the pooled tokens only.
        let last = if config.head.pooling.takes_all() { layer } else { 2 * d + 2 * keys };
        let layers = config.computed_layers() - shape.frozen_layers;
        let saved_beside = of_distances * if shape.recompute { 1 } else { layers } * size;
        let saved = match layers {
            // The head's rows alone are saved; a layer's own are there while it computes.
            0 => layer,
            _ if shape.recompute => layers * d + layer,
            _ => (layers - 1) * layer + last,
        };
        // Gradients of gate, up and their product, and of the residual stream.
        let in_backward = 3 * mlp + 2 * d;
        // Dropout's masks, a bit for each input of an adapter. A GPU that computes in f32 draws them again instead.
        let draws_again = shape.device.is_gpu() && size == size_of::<f32>();
        let with_masks = if shape.recompute { 1 } else { layers };
        let masks = if shape.trains_base || draws_again { 0 } else { shape.tokens * with_masks * inputs / 8 };
        // What each token makes of the head's layer, and that layer's input, on the CPU.
        let late = if config.head.pooling == Pooling::Late { 2 * shape.tokens * d * size_of::<f32>() } else { 0 };
        let beside = if shape.device.is_gpu() {
            // A weight that is widened for a product; an input that is computed again, and its gradient.
            let widened = if shape.storage.is_4bit { d * mlp * size } else { 0 };
            masks + widened + shape.tokens * (mlp + 2 * d) * size
        } else {
            masks
        };
        Self {
            base: if shape.trains_base { 0 } else { base_bytes(config, shape.storage, shape.device) },
            packed: 0,
            trained: 4 * shape.trained as u64 * u64::from(2 + sets_held(shape.accumulation)),
            optimizer: shape.optimizer_bytes as u64,
            activations: (shape.tokens * size * (saved + in_backward) + beside + saved_beside + late) as u64,
        }
    }

    /// The same with copies of the frozen weights, packed once for both products of training, where that pays and memory
    /// allows; without them steps pack the weights tile by tile, for the same numbers.
    ///
    /// Packing takes the same time for every batch, so copies pay where batches are short. On two cores with AVX2, in f32,
    /// they make a step of SmolLM2's last 18 layers 1.18 times as fast on 32 tokens, 1.06 times on 128, 1.05 times on 256
    /// and 1.03 times on 480. In bf16 the products take half of the time, but packing does not get faster, so copies should
    /// pay for longer batches; on a busy machine with AVX512_BF16 no gain stood out of the noise (0.95 to 1.09).
    ///
    /// `mean_tokens`: tokens of a batch, on average. `available`: bytes that the whole program may take.
    #[must_use]
    pub fn with_copies(self, shape: &StepShape<'_>, mean_tokens: usize, available: Option<u64>) -> Self {
        let short = match shape.device.compute() {
            Compute::Float32 => 256,
            Compute::Bfloat16 => 512,
        };
        // Whoever quantizes or computes layers again wants little memory.
        let wants_less = shape.storage.is_4bit || shape.recompute;
        if mean_tokens > short || wants_less || shape.trains_base || !shape.device.compute().is_native() {
            return self;
        }
        let layers = shape.config.computed_layers() as u64;
        let both_ways = 2 * packed_bytes(shape.config, shape.device);
        let packed = both_ways * (layers - shape.frozen_layers as u64) / layers.max(1);
        let has_room = available.is_none_or(|available| packed <= available.saturating_sub(self.total()) / 4);
        Self { packed: if has_room { packed } else { 0 }, ..self }
    }

    /// All of it, with the program itself.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.base + self.packed + self.trained + self.optimizer + self.activations + PROGRAM
    }
}

/// Bytes of the linear layers' weights, packed for predicting; 0 on a GPU.
#[must_use]
pub fn packed_bytes(config: &BackboneConfig, device: &Device) -> u64 {
    let bytes = match device.compute() {
        _ if device.is_gpu() => 0,
        Compute::Float32 => 4,
        Compute::Bfloat16 => 2,
    };
    (bytes * config.linear_weights()) as u64
}

/// Bytes of the frozen weights that are where the model computes: embeddings stay on the CPU.
#[must_use]
pub fn base_bytes(config: &BackboneConfig, storage: BaseStorage, device: &Device) -> u64 {
    let (linear, embedding) = (config.linear_weights(), config.embedding_weights());
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
    let embedding = if device.is_gpu() { 0 } else { embedding };
    (linear + dense * embedding + 4 * config.hidden_size * (2 * config.num_hidden_layers + 1)) as u64
}
