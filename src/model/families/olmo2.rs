//! OLMo 2: Llama with norms after attention and MLP in place of those before them, and norms of all of q and all of k.

use anyhow::Result;

use super::file::ConfigFile;
use super::llama::{self, Defaults, decoder};
use crate::model::config::{BackboneConfig, PreNormNames, QueryKeyNorm};

static NAMES: PreNormNames = PreNormNames {
    attention_norm: None,
    after_attention: Some("post_attention_layernorm"),
    mlp_norm: None,
    after_mlp: Some("post_feedforward_layernorm"),
    ..llama::NAMES
};

static DEFAULTS: Defaults =
    Defaults { vocab_size: 50_304, epsilon: 1e-5, tokens: [None, Some(50_279)], padding: Some(1), ..llama::DEFAULTS };

pub(super) fn read(file: &ConfigFile) -> Result<BackboneConfig> {
    decoder(file, &DEFAULTS, |_, layers| {
        file.refuse_unless("mlp_bias", &[false.into()])?;
        let has_bias = file.flag("attention_bias", false)?;
        layers.names = &NAMES;
        layers.query_key_value_bias = has_bias;
        layers.output_bias = has_bias;
        layers.query_key_norm = Some(QueryKeyNorm::Whole);
        file.check_layer_types(&layers.windows)
    })
}
