//! DistilBERT: BERT without token types and pooler, with names of its own.

use anyhow::Result;

use super::file::{ConfigFile, head_dim};
use crate::model::config::{
    BackboneConfig, DenseConfig, Dropouts, EmbeddingsConfig, HeadConfig, LayersConfig, Pooling, PostNormConfig,
    PostNormNames,
};
use crate::ops::activation::Activation;

static NAMES: PostNormNames = PostNormNames {
    query_key_value: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    gate: None,
    up: "ffn.lin1",
    down: "ffn.lin2",
    mlp_norm: "output_layer_norm",
};

pub(super) fn read(file: &ConfigFile) -> Result<BackboneConfig> {
    // transformers takes the usual names of its sizes, too.
    let size = |key: &str, usual: &str, default: usize| file.size(usual, default).and_then(|size| file.size(key, size));
    let hidden_size = size("dim", "hidden_size", 768)?;
    let heads = size("n_heads", "num_attention_heads", 12)?;
    let head_dim = head_dim(hidden_size, heads)?;
    let num_hidden_layers = size("n_layers", "num_hidden_layers", 6)?;
    let count = num_hidden_layers.min(1 << 12);
    let positions = file.size("max_position_embeddings", 512)?;
    let hidden = file.float("dropout", 0.1)?;
    let initializer_range = file.float("initializer_range", 0.02)?;
    Ok(BackboneConfig {
        prefix: "distilbert.",
        hidden_size,
        intermediate_size: file.size("hidden_dim", 3072)?,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        vocab_size: file.size("vocab_size", 30_522)?,
        max_tokens: Some(positions),
        initializer_range,
        empty_token: file.empty_token([None, None]),
        padding_token: file.token("pad_token_id", Some(0)),
        activation: file.activation("activation", Activation::Gelu)?,
        dropouts: Dropouts {
            embedding: hidden,
            attention: file.float("attention_dropout", 0.1)?,
            mlp_output: hidden,
            ..Dropouts::default()
        },
        default_targets: &[],
        labels: file.labels(),
        layers: LayersConfig::PostNorm(PostNormConfig {
            names: &NAMES,
            epsilon: 1e-12,
            scale: (head_dim as f32).powf(-0.5),
            embeddings: EmbeddingsConfig {
                width: hidden_size,
                positions: Some(positions),
                first_position: 0,
                token_types: None,
                projection: None,
            },
            has_bias: true,
            rope: None,
            relative: None,
            stored: (0..count).map(|layer| format!("transformer.layer.{layer}")).collect(),
            order: (0..count).collect(),
        }),
        head: HeadConfig {
            pooling: Pooling::First,
            input_dropout: 0.0,
            dense: Some(DenseConfig {
                name: "pre_classifier",
                is_of_base: false,
                has_bias: true,
                std: initializer_range,
                activation: Activation::Relu,
                norm: None,
            }),
            dropout: file.float("seq_classif_dropout", 0.2)?,
            classifier: "classifier",
            has_bias: true,
            classifier_std: initializer_range,
            cutoff: None,
            modules_to_save: &["pre_classifier"],
        },
        language_head: None,
    })
}
