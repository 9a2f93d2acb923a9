//! RoBERTa and XLM-RoBERTa: BERT with a classifier of two layers, and positions counted from behind the padding
//! token's.

use anyhow::{Result, ensure};

use super::bert::{self, Defaults, encoder, two_layers};
use super::file::ConfigFile;
use crate::model::config::{BackboneConfig, PostNormConfig};
use crate::ops::activation::Activation;

static DEFAULTS: Defaults = Defaults { vocab_size: 50_265, ..DEFAULTS_XLM };
static DEFAULTS_XLM: Defaults = Defaults { tokens: [Some(0), Some(2)], padding: Some(1), ..bert::DEFAULTS };

pub(super) fn read(file: &ConfigFile) -> Result<BackboneConfig> {
    encoder(file, &DEFAULTS, |config, layers| deviate(file, config, layers))
}

pub(super) fn read_xlm(file: &ConfigFile) -> Result<BackboneConfig> {
    encoder(file, &DEFAULTS_XLM, |config, layers| deviate(file, config, layers))
}

fn deviate(file: &ConfigFile, config: &mut BackboneConfig, layers: &mut PostNormConfig) -> Result<()> {
    config.prefix = "roberta.";
    count_from_padding(config, layers, file.size("pad_token_id", 1)?)?;
    two_layers(&mut config.head, Activation::Tanh);
    Ok(())
}

/// Counts positions from behind that of the padding token.
pub(super) fn count_from_padding(
    config: &mut BackboneConfig,
    layers: &mut PostNormConfig,
    padding: usize,
) -> Result<()> {
    let embeddings = &mut layers.embeddings;
    embeddings.first_position = padding + 1;
    let positions = embeddings.positions.unwrap_or(0);
    ensure!(positions > padding + 1, "max_position_embeddings {positions} leaves no position");
    config.max_tokens = Some(positions - padding - 1);
    Ok(())
}
