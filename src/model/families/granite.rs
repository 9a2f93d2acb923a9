//! Granite: Llama whose embeddings, attention scores and sums are multiplied by numbers of its configuration. Its
//! `logits_scaling` is for the logits of words, not for those of a classifier.

use anyhow::{Result, ensure};

use super::file::ConfigFile;
use super::llama::{self, decoder};
use crate::model::config::BackboneConfig;

pub(super) fn read(file: &ConfigFile) -> Result<BackboneConfig> {
    decoder(file, &llama::DEFAULTS, |config, layers| {
        let has_bias = file.flag("attention_bias", false)?;
        layers.query_key_value_bias = has_bias;
        layers.output_bias = has_bias;
        layers.mlp_bias = file.flag("mlp_bias", false)?;
        layers.embedding_scale = file.float("embedding_multiplier", 1.0)?;
        layers.residual_scale = file.float("residual_multiplier", 1.0)?;
        layers.scale = file.float("attention_multiplier", 1.0)?;
        let divisor = file.float("logits_scaling", 1.0)?;
        ensure!(divisor > 0.0, "`logits_scaling` is {divisor}, expected a positive number");
        if let Some(head) = &mut config.language_head {
            head.divisor = divisor;
        }
        file.check_layer_types(&layers.windows)
    })
}
