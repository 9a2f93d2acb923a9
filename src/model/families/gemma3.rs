//! Gemma 3, text: Gemma 2 with norms of each head's q and k, five layers with a window to one without, and rotary
//! embeddings of their own for either kind. EmbeddingGemma sees tokens on both sides.

use anyhow::{Result, ensure};

use super::file::ConfigFile;
use super::gemma2;
use super::llama::{self, Defaults, decoder};
use super::qwen::sliding;
use crate::model::config::{BackboneConfig, QueryKeyNorm};

static DEFAULTS: Defaults = Defaults {
    hidden_size: 2304,
    intermediate_size: 9216,
    layers: 26,
    heads: 8,
    key_value_heads: Some(4),
    head_dim: Some(256),
    vocab_size: 262_208,
    max_positions: 131_072,
    tokens: [Some(2), Some(1)],
    padding: Some(0),
    theta: 1_000_000.0,
    local_theta: Some(("rope_local_base_freq", 10_000.0)),
    is_tied: true,
    ..llama::DEFAULTS
};

pub(super) fn read(file: &ConfigFile) -> Result<BackboneConfig> {
    decoder(file, &DEFAULTS, |config, layers| {
        gemma2::deviate(file, config, layers)?;
        // transformers has the key and never bends the scores of this family.
        layers.soft_cap = None;
        gemma2::bend_logits(config, file.optional_number("final_logit_softcapping")?)?;
        layers.query_key_norm = Some(QueryKeyNorm::Heads);
        layers.is_causal = !file.flag("use_bidirectional_attention", false)?;
        let given = file.nullable_size("sliding_window", 4096)?;
        ensure!(given != Some(0), "`sliding_window` is 0");
        let window = if layers.is_causal { given } else { given.map(|window| window / 2 + 1) };
        let every = file.size("sliding_window_pattern", 6)?;
        ensure!(every > 0, "`sliding_window_pattern` is 0");
        let count = layers.windows.len();
        let types =
            file.layer_types(count)?.unwrap_or_else(|| (1..=count).map(|layer| !layer.is_multiple_of(every)).collect());
        layers.windows = sliding(types, window)?;
        Ok(())
    })
}
