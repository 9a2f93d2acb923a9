//! MPNet: RoBERTa whose attention has a number for each head and distance.

use anyhow::{Result, ensure};

use super::bert::{self, Defaults, encoder, two_layers};
use super::file::ConfigFile;
use super::roberta::count_from_padding;
use crate::model::config::{BackboneConfig, PostNormNames, RelativeConfig};
use crate::ops::activation::Activation;

static NAMES: PostNormNames = PostNormNames {
    query_key_value: ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
    output: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
    ..bert::NAMES
};

static DEFAULTS: Defaults =
    Defaults { vocab_size: 30_527, token_types: 0, tokens: [Some(0), Some(2)], padding: Some(1), ..bert::DEFAULTS };

/// transformers asks for this many buckets, whatever the configuration says.
const BUCKETS: usize = 32;

pub(super) fn read(file: &ConfigFile) -> Result<BackboneConfig> {
    encoder(file, &DEFAULTS, |config, layers| {
        config.prefix = "mpnet.";
        config.padding_token = Some(1);
        layers.names = &NAMES;
        layers.embeddings.token_types = None;
        // The padding token's position, whatever its id.
        count_from_padding(config, layers, 1)?;
        let rows = file.size("relative_attention_num_buckets", BUCKETS)?;
        ensure!(rows >= BUCKETS, "relative_attention_num_buckets is {rows}, expected at least {BUCKETS}");
        layers.relative = Some(RelativeConfig::Bias { table: "encoder.relative_attention_bias", rows });
        config.head.dropout = config.dropouts.embedding;
        two_layers(&mut config.head, Activation::Tanh);
        Ok(())
    })
}
