//! Settings for someone who has rows and no experience, from the rows, the base and the machine.
//!
//! The numbers are those that `docs/benchmarks.md` measured on small bases and a few hundred to a few thousand rows.

use crate::config::model::PoolingMode;
use crate::kernels::Compute;
use crate::kernels::device::Device;
use crate::model::config::BackboneConfig;
use crate::model::weights::{BaseStorage, Precision};
use crate::training::estimate::{MemoryEstimate, StepShape, base_bytes};

/// The base that `init` names: free (Apache-2.0), not gated, and better than a linear model after minutes on a CPU.
pub const DEFAULT_BASE: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";

/// Facts from which the settings are chosen.
pub struct Facts<'a> {
    /// Numbers of training and validation rows.
    pub rows: (usize, usize),
    /// Tokens of texts before cutting, sorted; an estimate if the base is not at hand.
    pub lengths: &'a [usize],
    /// The base's configuration, if it is at hand.
    pub base: Option<&'a BackboneConfig>,
    /// The pooling that the base was trained with, if it is not its family's.
    pub pooling: Option<PoolingMode>,
    /// The device that will train.
    pub device: &'a Device,
    /// True if labels are independent, so that thresholds apply.
    pub is_multi_label: bool,
}

/// Settings for a configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Choices {
    /// `data.max_length`
    pub max_length: usize,
    /// The share of texts that are cut there.
    pub cut: f64,
    /// `model.torch_dtype`
    pub torch_dtype: &'static str,
    /// `model.use_4bit`
    pub use_4bit: bool,
    /// `model.pooling`; none: the family's.
    pub pooling: Option<PoolingMode>,
    /// `model.lora_r`
    pub lora_r: usize,
    /// `model.lora_layers`; none: all.
    pub lora_layers: Option<usize>,
    /// `train.batch_size`
    pub batch_size: usize,
    /// `train.gradient_accumulation_steps`
    pub accumulation: usize,
    /// `train.gradient_checkpointing`
    pub recomputes: bool,
    /// `train.num_train_epochs`
    pub epochs: usize,
    /// `train.min_steps`
    pub min_steps: usize,
    /// `train.early_stopping_patience`
    pub patience: usize,
    /// `train.learning_rate`
    pub learning_rate: f64,
    /// `train.head_learning_rate`; none: the same.
    pub head_learning_rate: Option<f64>,
    /// `train.tune_thresholds: global`
    pub tunes_threshold: bool,
    /// Estimated peak memory, if the base is at hand.
    pub memory: Option<u64>,
}

/// Rows of a step, over all its micro-batches.
const ROWS_PER_STEP: usize = 8;
/// Fewer steps seldom learn anything: see `train.min_steps` in docs/configuration.md.
pub const FEWEST_STEPS: usize = 300;

impl Choices {
    /// Chooses settings for these facts.
    #[must_use]
    pub fn new(facts: &Facts<'_>) -> Self {
        let (training, validation) = facts.rows;
        let max_length = max_length(facts);
        let longer = facts.lengths.iter().filter(|&&length| length > max_length).count();
        let steps_per_epoch = training.div_ceil(ROWS_PER_STEP).max(1);
        let parameters = facts.base.map_or(135_000_000, |base| base.linear_weights() + base.embedding_weights());
        let is_encoder = facts.base.is_some_and(BackboneConfig::is_encoder);
        // Measured with SmolLM2-135M, see docs/recipes.md; where the base is not at hand, a rate that suits most.
        let is_small_decoder = facts.base.is_some() && !is_encoder && parameters < 200_000_000;
        let learning_rate = match parameters {
            _ if is_small_decoder => 2e-3,
            0..600_000_000 => 5e-4,
            _ => 2e-4,
        };
        let mut choices = Self {
            max_length,
            cut: longer as f64 / facts.lengths.len().max(1) as f64,
            torch_dtype: "float32",
            use_4bit: false,
            pooling: facts.pooling,
            lora_r: if is_encoder { 16 } else { 8 },
            lora_layers: facts.base.filter(|_| !is_encoder && !facts.device.is_gpu()).and_then(upper_layers),
            batch_size: ROWS_PER_STEP,
            accumulation: 1,
            recomputes: false,
            // Small encoders know less of the task: all-MiniLM-L6-v2 needs ten passes over 2,000 rows.
            epochs: if is_encoder { 5 * epochs(training) } else { epochs(training) },
            min_steps: FEWEST_STEPS,
            // Of few rows an epoch is a few steps, in which a metric may well stand still.
            patience: 120usize.div_ceil(steps_per_epoch).max(3),
            learning_rate,
            // At the adapters' rate a new head on an encoder predicts nothing for so long that early stopping ends it: 0.32
            // micro-F1 of 300 rows with all-MiniLM-L6-v2, in place of 0.75.
            head_learning_rate: is_encoder.then_some(10.0 * learning_rate),
            // Of fewer rows a threshold would be learned by heart.
            tunes_threshold: facts.is_multi_label && validation >= 100,
            memory: None,
        };
        choices.choose_precision(facts);
        choices.fit_memory(facts);
        choices
    }

    fn choose_precision(&mut self, facts: &Facts<'_>) {
        let is_fast = facts.device.is_gpu() || Compute::Bfloat16.is_fast();
        let memory = facts.device.memory().map_or(u64::MAX, |limits| limits.total);
        let takes = |precision| {
            facts.base.map_or(0, |base| base_bytes(base, BaseStorage { precision, is_4bit: false }, facts.device))
        };
        // The base may take this part of the memory.
        let room = memory / 5 * 2;
        if is_fast || takes(Precision::Float32) > room {
            self.torch_dtype = "bfloat16";
            self.use_4bit = takes(Precision::Bfloat16) > room;
        }
    }

    /// Makes micro-batches smaller until a step fits into what is free, with a margin.
    fn fit_memory(&mut self, facts: &Facts<'_>) {
        let Some(base) = facts.base else { return };
        let room = facts.device.memory().map_or(u64::MAX, |limits| limits.available / 4 * 3);
        let smaller = |size: usize| size > 1;
        while self.estimate(base, facts.device) > room {
            if smaller(self.batch_size) {
                self.batch_size /= 2;
                self.accumulation *= 2;
            } else if !self.recomputes {
                (self.batch_size, self.accumulation, self.recomputes) = (ROWS_PER_STEP, 1, true);
            } else {
                break;
            }
        }
        self.memory = Some(self.estimate(base, facts.device));
    }

    fn adapted_layers(&self, base: &BackboneConfig) -> usize {
        self.lora_layers.unwrap_or(base.num_hidden_layers)
    }

    fn estimate(&self, base: &BackboneConfig, device: &Device) -> u64 {
        let (d, mlp) = (base.hidden_size, base.intermediate_size);
        let queries = base.num_attention_heads * base.head_dim;
        let keys = base.num_key_value_heads * base.head_dim;
        // Inputs and outputs of query, key, value, output, gate, up and down.
        let sides = 2 * (d + queries) + 2 * (d + keys) + 3 * (d + mlp);
        let trained = self.adapted_layers(base) * sides * self.lora_r;
        let precision = if self.torch_dtype == "float32" { Precision::Float32 } else { Precision::Bfloat16 };
        MemoryEstimate::new(&StepShape {
            config: base,
            storage: BaseStorage { precision, is_4bit: self.use_4bit },
            frozen_layers: base.num_hidden_layers - self.adapted_layers(base),
            trained,
            accumulation: self.accumulation,
            trains_base: false,
            optimizer_bytes: 8 * trained,
            recompute: self.recomputes,
            tokens: self.batch_size * self.max_length,
            device,
        })
        .total()
    }
}

/// The upper three fifths of a decoder's layers: on a CPU they train in about two thirds of the time of all, and F1 did
/// not suffer (docs/recipes.md). None for models of a few layers.
fn upper_layers(base: &BackboneConfig) -> Option<usize> {
    const FEW: usize = 12;
    (base.num_hidden_layers >= FEW).then(|| (base.num_hidden_layers * 3).div_ceil(5))
}

/// Passes over the rows: few rows need many, and get them by `min_steps`, too.
fn epochs(rows: usize) -> usize {
    match rows {
        0..1_500 => 4,
        1_500..20_000 => 2,
        _ => 1,
    }
}

/// A length that cuts at most one text in twenty, a multiple of 32, and no more than the base can take.
fn max_length(facts: &Facts<'_>) -> usize {
    const STEP: usize = 32;
    const LONGEST: usize = 512;
    let at = (facts.lengths.len().saturating_sub(1) as f64 * 0.95).ceil() as usize;
    let length = facts.lengths.get(at).copied().unwrap_or(STEP);
    let most = facts.base.and_then(|base| base.max_tokens).unwrap_or(usize::MAX).min(LONGEST);
    length.div_ceil(STEP).max(1).saturating_mul(STEP).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choices(rows: usize, lengths: &[usize]) -> Choices {
        Choices::new(&Facts {
            rows: (rows, rows / 8),
            lengths,
            base: None,
            pooling: None,
            device: &Device::cpu(),
            is_multi_label: true,
        })
    }

    #[test]
    fn few_rows_get_many_passes_and_patience() {
        let few = choices(240, &[10; 240]);
        // 30 steps an epoch: four epochs without a better score are 120 steps.
        assert_eq!((few.patience, few.min_steps, few.tunes_threshold), (4, 300, false));
        let many = choices(40_000, &[10; 400]);
        assert_eq!((many.epochs, many.patience, many.tunes_threshold), (1, 3, true));
        assert!(choices(2_000, &[10]).epochs * 2_000 / ROWS_PER_STEP >= FEWEST_STEPS);
    }

    #[test]
    fn the_length_cuts_the_longest_texts_alone() {
        let lengths: Vec<usize> = (1..=1000).map(|length| if length > 995 { 100_000 } else { length / 5 }).collect();
        let chosen = choices(1000, &lengths);
        assert_eq!(chosen.max_length, 192);
        assert!((chosen.cut - 0.036).abs() < 1e-9, "{}", chosen.cut);
        assert_eq!(choices(10, &[1]).max_length, 32);
        assert_eq!(choices(10, &[]).max_length, 32);
        assert_eq!(choices(10, &[9000; 10]).max_length, 512);
    }
}
