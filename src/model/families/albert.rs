//! ALBERT: BERT with narrow embeddings, and layers that are used again and again.

use anyhow::{Result, ensure};

use super::bert::{self, Defaults, encoder};
use super::file::ConfigFile;
use crate::model::config::{BackboneConfig, PostNormNames, Projection};
use crate::ops::activation::Activation;

static NAMES: PostNormNames = PostNormNames {
    query_key_value: ["attention.query", "attention.key", "attention.value"],
    output: "attention.dense",
    attention_norm: "attention.LayerNorm",
    gate: None,
    up: "ffn",
    down: "ffn_output",
    mlp_norm: "full_layer_layer_norm",
};

static DEFAULTS: Defaults = Defaults {
    vocab_size: 30_000,
    hidden_size: 4096,
    intermediate_size: 16_384,
    heads: 64,
    dropout: 0.0,
    activation: Activation::GeluTanh,
    tokens: [Some(2), Some(3)],
    ..bert::DEFAULTS
};

pub(super) fn read(file: &ConfigFile) -> Result<BackboneConfig> {
    encoder(file, &DEFAULTS, |config, layers| {
        config.prefix = "albert.";
        // transformers has this dropout and does not call it.
        config.dropouts.mlp_output = 0.0;
        layers.names = &NAMES;
        layers.embeddings.width = file.size("embedding_size", 128)?;
        layers.embeddings.projection =
            Some(Projection { name: "encoder.embedding_hidden_mapping_in", has_bias: true, is_before_norm: false });
        let (groups, inner) = (file.size("num_hidden_groups", 1)?, file.size("inner_group_num", 1)?);
        let count = layers.order.len();
        ensure!(
            (1..=count).contains(&groups) && (1..=1 << 12).contains(&inner),
            "num_hidden_groups {groups} and inner_group_num {inner} for {count} layers"
        );
        let path = |group, layer| format!("encoder.albert_layer_groups.{group}.albert_layers.{layer}");
        layers.stored = (0..groups).flat_map(|group| (0..inner).map(move |layer| path(group, layer))).collect();
        // As transformers computes it, in f64.
        let group = |layer: usize| (layer as f64 / (count as f64 / groups as f64)) as usize;
        layers.order =
            (0..count).flat_map(|layer| (0..inner).map(move |within| group(layer) * inner + within)).collect();
        let head = &mut config.head;
        head.dropout = file.float("classifier_dropout_prob", 0.1)?;
        if let Some(dense) = &mut head.dense {
            dense.name = "pooler";
        }
        Ok(())
    })
}
