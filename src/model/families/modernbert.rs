//! ModernBERT: a decoder's layers without a causal mask, two of three of them with a window, and rotary embeddings of
//! their own for either kind.

use anyhow::{Result, bail, ensure};

use super::file::{ConfigFile, head_dim};
use super::rope::{RopeDefaults, by_layer_type};
use crate::model::config::{
    BackboneConfig, DenseConfig, Dropouts, HeadConfig, LayersConfig, NormKind, Pooling, PreNormConfig, PreNormNames,
};
use crate::ops::activation::Activation;

static NAMES: PreNormNames = PreNormNames {
    embedding: "embeddings.tok_embeddings",
    embedding_norm: Some("embeddings.norm"),
    layers: "layers",
    attention_norm: Some("attn_norm"),
    query_key_value: &["attn.Wqkv"],
    output: "attn.Wo",
    after_attention: None,
    mlp_norm: Some("mlp_norm"),
    gate_up: &["mlp.Wi"],
    down: "mlp.Wo",
    after_mlp: None,
    last_norm: "final_norm",
};

pub(super) fn read(file: &ConfigFile) -> Result<BackboneConfig> {
    file.refuse_unless("is_decoder", &[false.into()])?;
    let hidden_size = file.size("hidden_size", 768)?;
    let heads = file.size("num_attention_heads", 12)?;
    let head_dim = head_dim(hidden_size, heads)?;
    let num_hidden_layers = file.size("num_hidden_layers", 22)?;
    let has_bias = file.flag("norm_bias", false)?;
    let epsilon = file.float("norm_eps", 1e-5)?;
    let initializer_range = file.float("initializer_range", 0.02)?;
    let cutoff = file.nullable_number("initializer_cutoff_factor", 2.0)?.unwrap_or(3.0) as f32;
    ensure!(cutoff >= 0.1, "initializer_cutoff_factor is {cutoff}, expected at least 0.1");
    let attention_dropout = file.float("attention_dropout", 0.0)?;
    let attention_bias = file.flag("attention_bias", false)?;
    let longest = file.size("max_position_embeddings", 8192)?;
    let global_theta = file.optional_number("global_rope_theta")?.unwrap_or(160_000.0);
    let local_theta = file.nullable_number("local_rope_theta", 10_000.0)?.unwrap_or(global_theta);
    let rope = RopeDefaults { theta: global_theta, head_dim, longest, original: None, may_be_partial: false };
    let layers = PreNormConfig {
        names: &NAMES,
        norm: NormKind::Layer { has_bias },
        epsilon,
        query_key_value_bias: attention_bias,
        output_bias: attention_bias,
        query_key_norm: None,
        mlp_bias: file.flag("mlp_bias", false)?,
        is_causal: false,
        windows: windows(file, num_hidden_layers.min(1 << 12))?,
        scale: (head_dim as f32).powf(-0.5),
        soft_cap: None,
        embedding_scale: 1.0,
        residual_scale: 1.0,
        rotates: vec![true; num_hidden_layers.min(1 << 12)],
        ropes: by_layer_type(file, [global_theta, local_theta], [true; 2], &rope)?,
    };
    Ok(BackboneConfig {
        prefix: "model.",
        hidden_size,
        intermediate_size: file.size("intermediate_size", 1152)?,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        vocab_size: file.size("vocab_size", 50_368)?,
        max_tokens: Some(longest),
        initializer_range,
        empty_token: file.empty_token([Some(50_281), Some(50_282)]),
        padding_token: file.token("pad_token_id", Some(50_283)),
        activation: file.activation("hidden_activation", Activation::Gelu)?,
        dropouts: Dropouts {
            embedding: file.float("embedding_dropout", 0.0)?,
            attention: attention_dropout,
            attention_output: attention_dropout,
            inside_mlp: file.float("mlp_dropout", 0.0)?,
            mlp_output: 0.0,
        },
        default_targets: &[],
        labels: file.labels(),
        layers: LayersConfig::PreNorm(Box::new(layers)),
        head: HeadConfig {
            pooling: pooling(file)?,
            input_dropout: 0.0,
            dense: Some(DenseConfig {
                name: "head.dense",
                is_of_base: false,
                has_bias: file.flag("classifier_bias", false)?,
                std: initializer_range / (2.0 * num_hidden_layers as f32).sqrt(),
                activation: file.activation("classifier_activation", Activation::Gelu)?,
                norm: Some(("head.norm", epsilon, has_bias)),
            }),
            dropout: file.float("classifier_dropout", 0.0)?,
            classifier: "classifier",
            has_bias: true,
            classifier_std: (hidden_size as f32).powf(-0.5),
            cutoff: Some(cutoff),
            modules_to_save: &["head"],
        },
        language_head: None,
    })
}

fn pooling(file: &ConfigFile) -> Result<Pooling> {
    match file.text("classifier_pooling")? {
        None | Some("cls") => Ok(Pooling::First),
        Some("mean") => Ok(Pooling::Mean),
        Some(other) => bail!("classifier_pooling `{other}` is not supported; supported: cls, mean"),
    }
}

/// Every third layer sees all tokens, the others those within half of `local_attention` on either side.
fn windows(file: &ConfigFile, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = file.size("local_attention", 128)? / 2 + 1;
    let every = file.size("global_attn_every_n_layers", 3)?;
    ensure!(every > 0, "global_attn_every_n_layers is 0");
    let types =
        file.layer_types(layers)?.unwrap_or_else(|| (0..layers).map(|layer| !layer.is_multiple_of(every)).collect());
    Ok(types.into_iter().map(|is_sliding| is_sliding.then_some(window)).collect())
}
