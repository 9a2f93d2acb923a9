//! Llama, and all that decoders built like it share.

use anyhow::Result;

use super::file::{ConfigFile, head_dim};
use super::rope::{RopeDefaults, by_layer_type, shared};
use crate::model::config::{
    BackboneConfig, Dropouts, HeadConfig, LanguageHeadConfig, LayersConfig, NormKind, Pooling, PreNormConfig,
    PreNormNames,
};
use crate::model::rope::RopeScaling;
use crate::ops::activation::Activation;

pub(super) static NAMES: PreNormNames = PreNormNames {
    embedding: "embed_tokens",
    embedding_norm: None,
    layers: "layers",
    attention_norm: Some("input_layernorm"),
    query_key_value: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    output: "self_attn.o_proj",
    after_attention: None,
    mlp_norm: Some("post_attention_layernorm"),
    gate_up: &["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
    after_mlp: None,
    last_norm: "norm",
};

/// The linear modules of a layer, which get adapters by default.
pub(super) const LINEAR: &[&str] = &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Values that transformers gives to absent keys.
pub(super) struct Defaults {
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    /// None: as many as heads. A null always means that.
    pub(super) key_value_heads: Option<usize>,
    /// None: `hidden_size / heads`.
    pub(super) head_dim: Option<usize>,
    pub(super) vocab_size: usize,
    pub(super) max_positions: usize,
    pub(super) epsilon: f64,
    /// `bos_token_id` and `eos_token_id`.
    pub(super) tokens: [Option<u32>; 2],
    /// `pad_token_id`.
    pub(super) padding: Option<u32>,
    /// Context of pretraining of a LongRoPE, where the family has a key for it.
    pub(super) original_max_positions: Option<usize>,
    /// `tie_word_embeddings`
    pub(super) is_tied: bool,
    /// True if a part of each head may be rotated.
    pub(super) may_rotate_partly: bool,
    /// `rope_theta`.
    pub(super) theta: f64,
    /// The same for layers with a window, where they have a rotary embedding of their own: its key and value.
    pub(super) local_theta: Option<(&'static str, f64)>,
}

pub(super) static DEFAULTS: Defaults = Defaults {
    hidden_size: 4096,
    intermediate_size: 11_008,
    layers: 32,
    heads: 32,
    key_value_heads: None,
    head_dim: None,
    vocab_size: 32_000,
    max_positions: 2048,
    epsilon: 1e-6,
    tokens: [Some(1), Some(2)],
    padding: None,
    original_max_positions: None,
    is_tied: false,
    may_rotate_partly: false,
    theta: 10_000.0,
    local_theta: None,
};

pub(super) fn read(file: &ConfigFile) -> Result<BackboneConfig> {
    decoder(file, &DEFAULTS, |_, layers| {
        let has_bias = file.flag("attention_bias", false)?;
        layers.query_key_value_bias = has_bias;
        layers.output_bias = has_bias;
        layers.mlp_bias = file.flag("mlp_bias", false)?;
        file.check_layer_types(&layers.windows)
    })
}

/// A decoder without biases and windows; `deviate` changes what its family has differently.
pub(super) fn decoder(
    file: &ConfigFile,
    defaults: &Defaults,
    deviate: impl FnOnce(&mut BackboneConfig, &mut PreNormConfig) -> Result<()>,
) -> Result<BackboneConfig> {
    let hidden_size = file.size("hidden_size", defaults.hidden_size)?;
    let heads = file.size("num_attention_heads", defaults.heads)?;
    let key_value_heads = file.nullable_size("num_key_value_heads", defaults.key_value_heads.unwrap_or(heads))?;
    let given = defaults
        .head_dim
        .map_or_else(|| file.optional_size("head_dim"), |head_dim| file.nullable_size("head_dim", head_dim))?;
    let head_dim = given.map_or_else(|| head_dim(hidden_size, heads), Ok)?;
    let num_hidden_layers = file.size("num_hidden_layers", defaults.layers)?;
    let initializer_range = file.float("initializer_range", 0.02)?;
    let rope_defaults = RopeDefaults {
        theta: defaults.theta,
        head_dim,
        longest: file.size("max_position_embeddings", defaults.max_positions)?,
        original: defaults.original_max_positions,
        may_be_partial: defaults.may_rotate_partly,
    };
    let ropes = match defaults.local_theta {
        None => {
            let rope = shared(file, &rope_defaults)?;
            [rope.clone(), rope]
        }
        Some((key, local)) => {
            let theta = file.optional_number("rope_theta")?.unwrap_or(defaults.theta);
            let local = file.optional_number(key)?.unwrap_or(local);
            by_layer_type(file, [theta, local], [true, false], &rope_defaults)?
        }
    };
    // Beyond the context of pretraining LongRoPE has other factors, which are not computed, and frequencies of the
    // dynamic kind depend on the longest text of a batch.
    let max_tokens = match ropes[0].scaling {
        RopeScaling::Long { original, .. } | RopeScaling::Dynamic { original } => Some(original),
        _ => None,
    };
    let mut layers = PreNormConfig {
        names: &NAMES,
        norm: NormKind::Rms,
        epsilon: file.float("rms_norm_eps", defaults.epsilon)?,
        query_key_value_bias: false,
        output_bias: false,
        query_key_norm: None,
        mlp_bias: false,
        is_causal: true,
        windows: vec![None; num_hidden_layers.min(1 << 12)],
        scale: (head_dim as f64).powf(-0.5) as f32,
        soft_cap: None,
        embedding_scale: 1.0,
        residual_scale: 1.0,
        rotates: vec![true; num_hidden_layers.min(1 << 12)],
        ropes,
    };
    let mut config = BackboneConfig {
        hidden_size,
        intermediate_size: file.size("intermediate_size", defaults.intermediate_size)?,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: key_value_heads.unwrap_or(heads),
        head_dim,
        vocab_size: file.size("vocab_size", defaults.vocab_size)?,
        max_tokens,
        initializer_range,
        empty_token: file.empty_token(defaults.tokens),
        padding_token: None,
        activation: file.activation("hidden_act", Activation::Silu)?,
        dropouts: Dropouts { attention: file.float("attention_dropout", 0.0)?, ..Dropouts::default() },
        prefix: "model.",
        default_targets: LINEAR,
        labels: file.labels(),
        layers: LayersConfig::PreNorm(Box::new(layers.clone())),
        head: HeadConfig {
            pooling: Pooling::Last { padding: file.token("pad_token_id", defaults.padding) },
            input_dropout: 0.0,
            dense: None,
            dropout: 0.0,
            classifier: "score",
            has_bias: false,
            classifier_std: initializer_range,
            cutoff: None,
            modules_to_save: &[],
        },
        language_head: Some(LanguageHeadConfig {
            is_tied: file.flag("tie_word_embeddings", defaults.is_tied)?,
            divisor: 1.0,
            soft_cap: None,
        }),
    };
    deviate(&mut config, &mut layers)?;
    // One that sees tokens on both sides does not go on with a text.
    config.language_head = config.language_head.filter(|_| layers.is_causal);
    config.layers = LayersConfig::PreNorm(Box::new(layers));
    Ok(config)
}

/// Refuses biases, which this family does not have in transformers.
pub(super) fn refuse_biases(file: &ConfigFile) -> Result<()> {
    file.refuse_unless("attention_bias", &[false.into()])?;
    file.refuse_unless("mlp_bias", &[false.into()])
}
