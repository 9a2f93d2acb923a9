//! BERT, and all that encoders with its layers share.

use anyhow::Result;

use super::file::{ConfigFile, head_dim};
use crate::model::config::{
    BackboneConfig, DenseConfig, Dropouts, HeadConfig, LayersConfig, Pooling, PostNormConfig, PostNormNames,
};
use crate::ops::activation::Activation;

static NAMES: PostNormNames = PostNormNames {
    layers: "encoder.layer",
    query_key_value: ["attention.self.query", "attention.self.key", "attention.self.value"],
    output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    mlp_norm: "output.LayerNorm",
};

pub(super) fn read(file: &ConfigFile) -> Result<BackboneConfig> {
    encoder(file, 30_522)
}

/// An encoder with BERT's head.
pub(super) fn encoder(file: &ConfigFile, vocab_size: usize) -> Result<BackboneConfig> {
    file.refuse_unless("position_embedding_type", &["absolute".into()])?;
    file.refuse_unless("is_decoder", &[false.into()])?;
    let hidden_size = file.size("hidden_size", 768)?;
    let heads = file.size("num_attention_heads", 12)?;
    let positions = file.size("max_position_embeddings", 512)?;
    let hidden = file.float("hidden_dropout_prob", 0.1)?;
    let initializer_range = file.float("initializer_range", 0.02)?;
    Ok(BackboneConfig {
        prefix: "bert.",
        hidden_size,
        intermediate_size: file.size("intermediate_size", 3072)?,
        num_hidden_layers: file.size("num_hidden_layers", 12)?,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: head_dim(hidden_size, heads)?,
        vocab_size: file.size("vocab_size", vocab_size)?,
        max_tokens: Some(positions),
        initializer_range,
        empty_token: file.empty_token([None, None]),
        padding_token: file.token("pad_token_id", Some(0)),
        activation: file.activation("hidden_act", Activation::Gelu)?,
        dropouts: Dropouts {
            embedding: hidden,
            attention: file.float("attention_probs_dropout_prob", 0.1)?,
            attention_output: hidden,
            inside_mlp: 0.0,
            mlp_output: hidden,
        },
        default_targets: &[],
        labels: file.labels(),
        layers: LayersConfig::PostNorm(PostNormConfig {
            names: &NAMES,
            epsilon: file.float("layer_norm_eps", 1e-12)?,
            positions,
            first_position: 0,
            token_types: Some(file.size("type_vocab_size", 2)?),
        }),
        head: HeadConfig {
            pooling: Pooling::First,
            input_dropout: 0.0,
            dense: Some(DenseConfig {
                name: "pooler.dense",
                is_of_base: true,
                has_bias: true,
                std: initializer_range,
                activation: Activation::Tanh,
                norm: None,
            }),
            dropout: file.float("classifier_dropout", hidden.into())?,
            classifier: "classifier",
            has_bias: true,
            classifier_std: initializer_range,
            cutoff: None,
            modules_to_save: &[],
        },
    })
}
