//! BERT, and all that encoders with its layers share.

use anyhow::Result;

use super::file::{ConfigFile, head_dim};
use crate::model::config::{
    BackboneConfig, DenseConfig, Dropouts, EmbeddingsConfig, HeadConfig, LayersConfig, Pooling, PostNormConfig,
    PostNormNames,
};
use crate::ops::activation::Activation;

pub(super) static NAMES: PostNormNames = PostNormNames {
    query_key_value: ["attention.self.query", "attention.self.key", "attention.self.value"],
    output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    gate: None,
    up: "intermediate.dense",
    down: "output.dense",
    mlp_norm: "output.LayerNorm",
};

/// Values that transformers gives to absent keys.
pub(super) struct Defaults {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    /// `type_vocab_size`; 0: no table.
    pub(super) token_types: usize,
    /// Of hidden states and of attention's probabilities.
    pub(super) dropout: f64,
    pub(super) epsilon: f64,
    pub(super) activation: Activation,
    /// `bos_token_id` and `eos_token_id`.
    pub(super) tokens: [Option<u32>; 2],
    /// `pad_token_id`
    pub(super) padding: Option<u32>,
}

pub(super) static DEFAULTS: Defaults = Defaults {
    vocab_size: 30_522,
    hidden_size: 768,
    intermediate_size: 3072,
    layers: 12,
    heads: 12,
    token_types: 2,
    dropout: 0.1,
    epsilon: 1e-12,
    activation: Activation::Gelu,
    tokens: [None, None],
    padding: Some(0),
};

pub(super) fn read(file: &ConfigFile) -> Result<BackboneConfig> {
    encoder(file, &DEFAULTS, |_, _| Ok(()))
}

/// An encoder with BERT's head; `deviate` changes what its family has differently.
pub(super) fn encoder(
    file: &ConfigFile,
    defaults: &Defaults,
    deviate: impl FnOnce(&mut BackboneConfig, &mut PostNormConfig) -> Result<()>,
) -> Result<BackboneConfig> {
    file.refuse_unless("position_embedding_type", &["absolute".into()])?;
    file.refuse_unless("is_decoder", &[false.into()])?;
    let hidden_size = file.size("hidden_size", defaults.hidden_size)?;
    let heads = file.size("num_attention_heads", defaults.heads)?;
    let head_dim = head_dim(hidden_size, heads)?;
    let num_hidden_layers = file.size("num_hidden_layers", defaults.layers)?;
    let positions = file.size("max_position_embeddings", 512)?;
    let hidden = file.float("hidden_dropout_prob", defaults.dropout)?;
    let initializer_range = file.float("initializer_range", 0.02)?;
    let count = num_hidden_layers.min(1 << 12);
    let mut layers = PostNormConfig {
        names: &NAMES,
        epsilon: file.float("layer_norm_eps", defaults.epsilon)?,
        scale: (head_dim as f32).powf(-0.5),
        embeddings: EmbeddingsConfig {
            width: hidden_size,
            positions: Some(positions),
            first_position: 0,
            token_types: Some(file.size("type_vocab_size", defaults.token_types)?).filter(|&types| types > 0),
            projection: None,
        },
        has_bias: true,
        rope: None,
        relative: None,
        stored: (0..count).map(|layer| format!("encoder.layer.{layer}")).collect(),
        order: (0..count).collect(),
    };
    let mut config = BackboneConfig {
        prefix: "bert.",
        hidden_size,
        intermediate_size: file.size("intermediate_size", defaults.intermediate_size)?,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        vocab_size: file.size("vocab_size", defaults.vocab_size)?,
        max_tokens: Some(positions),
        initializer_range,
        empty_token: file.empty_token(defaults.tokens),
        padding_token: file.token("pad_token_id", defaults.padding),
        activation: file.activation("hidden_act", defaults.activation)?,
        dropouts: Dropouts {
            embedding: hidden,
            attention: file.float("attention_probs_dropout_prob", defaults.dropout)?,
            attention_output: hidden,
            inside_mlp: 0.0,
            mlp_output: hidden,
        },
        default_targets: &[],
        labels: file.labels(),
        layers: LayersConfig::PostNorm(layers.clone()),
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
        language_head: None,
    };
    deviate(&mut config, &mut layers)?;
    config.layers = LayersConfig::PostNorm(layers);
    Ok(config)
}

/// RoBERTa's head: a dense layer and the classifier, both trained, with the same dropout before each.
pub(super) fn two_layers(head: &mut HeadConfig, activation: Activation) {
    head.input_dropout = head.dropout;
    head.classifier = "classifier.out_proj";
    if let Some(dense) = &mut head.dense {
        dense.name = "classifier.dense";
        dense.is_of_base = false;
        dense.activation = activation;
    }
}
