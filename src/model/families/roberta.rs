//! RoBERTa and XLM-RoBERTa: BERT with a classifier of two layers, and positions counted from behind the padding
//! token's.

use anyhow::{Result, ensure};

use super::bert::encoder;
use super::file::ConfigFile;
use crate::model::config::{BackboneConfig, LayersConfig};

pub(super) fn read(file: &ConfigFile) -> Result<BackboneConfig> {
    deviate(file, encoder(file, 50_265)?)
}

pub(super) fn read_xlm(file: &ConfigFile) -> Result<BackboneConfig> {
    deviate(file, encoder(file, 30_522)?)
}

fn deviate(file: &ConfigFile, mut config: BackboneConfig) -> Result<BackboneConfig> {
    config.prefix = "roberta.";
    config.empty_token = file.empty_token([Some(0), Some(2)]);
    config.padding_token = file.token("pad_token_id", Some(1));
    if let LayersConfig::PostNorm(layers) = &mut config.layers {
        layers.first_position = file.size("pad_token_id", 1)? + 1;
        ensure!(
            layers.positions > layers.first_position,
            "max_position_embeddings {} leaves no position",
            layers.positions
        );
        config.max_tokens = Some(layers.positions - layers.first_position);
    }
    let head = &mut config.head;
    head.input_dropout = head.dropout;
    head.classifier = "classifier.out_proj";
    if let Some(dense) = &mut head.dense {
        dense.name = "classifier.dense";
        dense.is_of_base = false;
    }
    Ok(config)
}
