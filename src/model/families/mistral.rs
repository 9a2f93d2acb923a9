//! Mistral: Llama with a window in every layer.

use anyhow::{Result, ensure};

use super::file::ConfigFile;
use super::llama::{self, Defaults, decoder, refuse_biases};
use crate::model::config::BackboneConfig;

static DEFAULTS: Defaults =
    Defaults { intermediate_size: 14_336, key_value_heads: Some(8), max_positions: 131_072, ..llama::DEFAULTS };

pub(super) fn read(file: &ConfigFile) -> Result<BackboneConfig> {
    decoder(file, &DEFAULTS, |_, layers| {
        refuse_biases(file)?;
        let window = file.nullable_size("sliding_window", 4096)?;
        ensure!(window != Some(0), "`sliding_window` is 0");
        layers.windows.fill(window);
        file.check_layer_types(&layers.windows)
    })
}
