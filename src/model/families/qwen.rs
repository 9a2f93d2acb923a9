//! Qwen 2: Llama with biases on q, k and v. Qwen 3: Llama with norms of each head's q and k. Both may have a window
//! in some layers.

use anyhow::{Result, ensure};

use super::file::ConfigFile;
use super::llama::{self, Defaults, decoder};
use crate::model::config::{BackboneConfig, QueryKeyNorm};

static DEFAULTS: Defaults = Defaults {
    intermediate_size: 22_016,
    key_value_heads: Some(32),
    vocab_size: 151_936,
    max_positions: 32_768,
    tokens: [None, None],
    ..llama::DEFAULTS
};

static DEFAULTS_3: Defaults = Defaults { head_dim: Some(128), ..DEFAULTS };

pub(super) fn read_2(file: &ConfigFile) -> Result<BackboneConfig> {
    decoder(file, &DEFAULTS, |_, layers| {
        file.refuse_unless("mlp_bias", &[false.into()])?;
        layers.query_key_value_bias = true;
        layers.windows = windows(file, layers.windows.len())?;
        Ok(())
    })
}

pub(super) fn read_3(file: &ConfigFile) -> Result<BackboneConfig> {
    decoder(file, &DEFAULTS_3, |_, layers| {
        file.refuse_unless("mlp_bias", &[false.into()])?;
        let has_bias = file.flag("attention_bias", false)?;
        layers.query_key_value_bias = has_bias;
        layers.output_bias = has_bias;
        layers.query_key_norm = Some(QueryKeyNorm::Heads);
        layers.windows = windows(file, layers.windows.len())?;
        Ok(())
    })
}

/// A window in the layers that `layer_types` names, else from `max_window_layers` on, if it is switched on.
fn windows(file: &ConfigFile, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = file.nullable_size("sliding_window", 4096)?;
    let is_used = file.flag("use_sliding_window", false)?;
    let window = window.filter(|_| is_used);
    ensure!(window != Some(0), "`sliding_window` is 0");
    if let Some(types) = file.layer_types(layers)? {
        return sliding(types, window);
    }
    let first = file.size("max_window_layers", 28)?;
    Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect())
}

/// The window in the layers that `layer_types` gives one.
pub(super) fn sliding(types: Vec<bool>, window: Option<usize>) -> Result<Vec<Option<usize>>> {
    ensure!(
        window.is_some() || !types.contains(&true),
        "`layer_types` names sliding_attention, and `use_sliding_window` or `sliding_window` is off"
    );
    Ok(types.into_iter().map(|is_sliding| window.filter(|_| is_sliding)).collect())
}
