//! Gemma 2: norms on both sides of attention and MLP, bent attention scores, scaled embeddings, and a window in every
//! other layer.

use anyhow::{Result, ensure};
use serde_json::Value;

use super::file::ConfigFile;
use super::llama::{self, Defaults, decoder};
use crate::model::config::{BackboneConfig, NormKind, PreNormConfig, PreNormNames};
use crate::ops::activation::Activation;

static NAMES: PreNormNames = PreNormNames {
    after_attention: Some("post_attention_layernorm"),
    mlp_norm: Some("pre_feedforward_layernorm"),
    after_mlp: Some("post_feedforward_layernorm"),
    ..llama::NAMES
};

static DEFAULTS: Defaults = Defaults {
    hidden_size: 2304,
    intermediate_size: 9216,
    layers: 26,
    heads: 8,
    key_value_heads: Some(4),
    head_dim: Some(256),
    vocab_size: 256_000,
    max_positions: 8192,
    tokens: [Some(2), Some(1)],
    padding: Some(0),
    is_tied: true,
    ..llama::DEFAULTS
};

pub(super) fn read(file: &ConfigFile) -> Result<BackboneConfig> {
    file.refuse_unless("use_bidirectional_attention", &[Value::Bool(false)])?;
    decoder(file, &DEFAULTS, |config, layers| {
        deviate(file, config, layers)?;
        layers.soft_cap = file.nullable_number("attn_logit_softcapping", 50.0)?.map(|cap| cap as f32);
        bend_logits(config, file.nullable_number("final_logit_softcapping", 30.0)?)?;
        let window = file.nullable_size("sliding_window", 4096)?;
        ensure!(window != Some(0), "`sliding_window` is 0");
        let count = layers.windows.len();
        let types = file.layer_types(count)?.unwrap_or_else(|| (0..count).map(|layer| layer % 2 == 0).collect());
        layers.windows = types.into_iter().map(|is_sliding| window.filter(|_| is_sliding)).collect();
        Ok(())
    })
}

/// Bends the logits of words below a cap.
pub(super) fn bend_logits(config: &mut BackboneConfig, cap: Option<f64>) -> Result<()> {
    ensure!(cap.is_none_or(|cap| cap > 0.0), "`final_logit_softcapping` is {cap:?}, expected a positive number");
    if let Some(head) = &mut config.language_head {
        head.soft_cap = cap.map(|cap| cap as f32);
    }
    Ok(())
}

/// All that Gemma 2 and 3 share.
pub(super) fn deviate(file: &ConfigFile, config: &mut BackboneConfig, layers: &mut PreNormConfig) -> Result<()> {
    file.refuse_unless("mlp_bias", &[Value::Bool(false)])?;
    config.activation = file.activation("hidden_activation", Activation::GeluTanh)?;
    layers.names = &NAMES;
    layers.norm = NormKind::RmsFromOne;
    let has_bias = file.flag("attention_bias", false)?;
    layers.query_key_value_bias = has_bias;
    layers.output_bias = has_bias;
    layers.embedding_scale = (config.hidden_size as f32).sqrt();
    let query_scale = file.optional_number("query_pre_attn_scalar")?.unwrap_or(256.0);
    ensure!(query_scale > 0.0, "`query_pre_attn_scalar` is {query_scale}, expected a positive number");
    layers.scale = query_scale.powf(-0.5) as f32;
    Ok(())
}
