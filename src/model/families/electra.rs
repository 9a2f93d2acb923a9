//! ELECTRA: BERT with embeddings of another width, and a classifier of two layers.

use anyhow::Result;

use super::bert::{self, Defaults, encoder, two_layers};
use super::file::ConfigFile;
use crate::model::config::{BackboneConfig, Projection};
use crate::ops::activation::Activation;

static DEFAULTS: Defaults = Defaults { hidden_size: 256, intermediate_size: 1024, heads: 4, ..bert::DEFAULTS };

pub(super) fn read(file: &ConfigFile) -> Result<BackboneConfig> {
    encoder(file, &DEFAULTS, |config, layers| {
        config.prefix = "electra.";
        let width = file.size("embedding_size", 128)?;
        layers.embeddings.width = width;
        if width != config.hidden_size {
            let projection = Projection { name: "embeddings_project", has_bias: true, is_before_norm: false };
            layers.embeddings.projection = Some(projection);
        }
        two_layers(&mut config.head, Activation::Gelu);
        Ok(())
    })
}
