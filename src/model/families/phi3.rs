//! Phi-3: Llama with q, k, v and gate, up stored as one, a window in every layer, and a part of each head rotated.

use anyhow::{Result, ensure};

use super::file::ConfigFile;
use super::llama::{self, Defaults, decoder, refuse_biases};
use crate::model::config::{BackboneConfig, PreNormNames};

static NAMES: PreNormNames =
    PreNormNames { query_key_value: &["self_attn.qkv_proj"], gate_up: &["mlp.gate_up_proj"], ..llama::NAMES };

static DEFAULTS: Defaults = Defaults {
    hidden_size: 3072,
    intermediate_size: 8192,
    vocab_size: 32_064,
    max_positions: 4096,
    epsilon: 1e-5,
    tokens: [Some(1), Some(32_000)],
    padding: Some(32_000),
    original_max_positions: Some(4096),
    may_rotate_partly: true,
    ..llama::DEFAULTS
};

pub(super) fn read(file: &ConfigFile) -> Result<BackboneConfig> {
    decoder(file, &DEFAULTS, |config, layers| {
        refuse_biases(file)?;
        config.default_targets = &[];
        layers.names = &NAMES;
        let residual = file.float("resid_pdrop", 0.0)?;
        config.dropouts.embedding = file.float("embd_pdrop", 0.0)?;
        config.dropouts.attention_output = residual;
        config.dropouts.mlp_output = residual;
        let window = file.optional_size("sliding_window")?;
        ensure!(window != Some(0), "`sliding_window` is 0");
        layers.windows.fill(window);
        file.check_layer_types(&layers.windows)
    })
}
