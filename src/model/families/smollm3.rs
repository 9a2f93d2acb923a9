//! SmolLM3: Llama in which every fourth layer does not rotate q and k.

use anyhow::{Context, Result, ensure};

use super::file::ConfigFile;
use super::llama::{self, Defaults, decoder};
use super::qwen::sliding;
use crate::model::config::BackboneConfig;

static DEFAULTS: Defaults = Defaults {
    hidden_size: 2048,
    layers: 36,
    heads: 16,
    key_value_heads: Some(4),
    vocab_size: 128_256,
    max_positions: 32_768,
    theta: 2_000_000.0,
    tokens: [Some(128_000), Some(128_001)],
    padding: Some(128_004),
    is_tied: true,
    ..llama::DEFAULTS
};

pub(super) fn read(file: &ConfigFile) -> Result<BackboneConfig> {
    decoder(file, &DEFAULTS, |_, layers| {
        let has_bias = file.flag("attention_bias", false)?;
        layers.query_key_value_bias = has_bias;
        layers.output_bias = has_bias;
        layers.mlp_bias = file.flag("mlp_bias", false)?;
        layers.rotates = rotates(file, layers.rotates.len())?;
        let window = file.optional_size("sliding_window")?;
        let is_used = file.flag("use_sliding_window", false)?;
        let usual = layers.rotates.iter().map(|rotates| !rotates && is_used && window.is_some()).collect();
        let types = file.layer_types(layers.windows.len())?.unwrap_or(usual);
        layers.windows = sliding(types, window.filter(|_| is_used))?;
        Ok(())
    })
}

/// Which layers rotate: those with a 1 in `no_rope_layers`, for all its name.
fn rotates(file: &ConfigFile, layers: usize) -> Result<Vec<bool>> {
    let Some(value) = file.value("no_rope_layers") else {
        let every = file.size("no_rope_layer_interval", 4)?;
        ensure!(every > 0, "`no_rope_layer_interval` is 0");
        return Ok((1..=layers).map(|layer| !layer.is_multiple_of(every)).collect());
    };
    let list = value.as_array().with_context(|| format!("`no_rope_layers` is {value}, expected a list"))?;
    ensure!(list.len() >= layers, "`no_rope_layers` has {} entries for {layers} layers", list.len());
    let flags = list.iter().take(layers).map(|flag| {
        let flag = flag.as_i64().or(flag.as_bool().map(i64::from));
        flag.map(|flag| flag != 0).with_context(|| format!("`no_rope_layers` is {value}, expected numbers 0 and 1"))
    });
    flags.collect()
}
