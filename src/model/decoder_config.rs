//! Configurations of decoders: Llama, Mistral, Qwen 2 and 3, Gemma 2, Phi-3.

use anyhow::{Result, bail, ensure};
use serde::Deserialize;

use super::config::{
    BackboneConfig, Dropouts, HeadConfig, LayersConfig, NormKind, Pooling, PreNormConfig, PreNormNames, activation,
    head_dim,
};
use super::rope_config::{Lengths, Rope, RopeScaling, Scaling};
use crate::ops::activation::Activation;

/// The file, with every field that decides what is computed.
#[derive(Deserialize)]
struct File {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: Option<usize>,
    original_max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f32>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    attention_bias: Option<bool>,
    attention_dropout: Option<f32>,
    embd_pdrop: Option<f32>,
    resid_pdrop: Option<f32>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    mlp_bias: Option<bool>,
    initializer_range: Option<f32>,
    query_pre_attn_scalar: Option<f64>,
    attn_logit_softcapping: Option<f32>,
    partial_rotary_factor: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Scaling>,
    rope_parameters: Option<Scaling>,
}

static LLAMA: PreNormNames = PreNormNames {
    embedding: "embed_tokens",
    embedding_norm: None,
    layers: "layers",
    attention_norm: "input_layernorm",
    query_key_value: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    output: "self_attn.o_proj",
    after_attention: None,
    mlp_norm: "post_attention_layernorm",
    gate_up: &["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
    after_mlp: None,
    last_norm: "norm",
};

static PHI3: PreNormNames =
    PreNormNames { query_key_value: &["self_attn.qkv_proj"], gate_up: &["mlp.gate_up_proj"], ..LLAMA };

static GEMMA2: PreNormNames = PreNormNames {
    after_attention: Some("post_attention_layernorm"),
    mlp_norm: "pre_feedforward_layernorm",
    after_mlp: Some("post_feedforward_layernorm"),
    ..LLAMA
};

pub(super) fn read(family: String, text: &str) -> Result<BackboneConfig> {
    let file: File = serde_json::from_str(text)?;
    let heads = file.num_attention_heads;
    let head_dim = file.head_dim.map_or_else(|| head_dim(file.hidden_size, heads), Ok)?;
    let is_gemma = family == "gemma2";
    let function = match is_gemma {
        true => activation("hidden_activation", file.hidden_activation.as_deref(), Activation::GeluTanh)?,
        false => activation("hidden_act", file.hidden_act.as_deref(), Activation::Silu)?,
    };
    let windows = windows(&file, &family)?;
    let scaling = file.rope_parameters.or(file.rope_scaling);
    let lengths = Lengths {
        longest: file.max_position_embeddings.unwrap_or(2048),
        original: file.original_max_position_embeddings,
    };
    let rotated = (head_dim as f64 * file.partial_rotary_factor.unwrap_or(1.0)) as usize;
    let rope = Rope::from_parts(file.rope_theta, scaling, rotated, lengths)?;
    // Beyond the context of pretraining LongRoPE has other factors, which are not computed.
    let max_tokens =
        matches!(rope.scaling, RopeScaling::Long { .. }).then(|| lengths.original.unwrap_or(lengths.longest));
    let initializer_range = file.initializer_range.unwrap_or(0.02);
    let attention_bias = file.attention_bias.unwrap_or(false);
    let scale = file.query_pre_attn_scalar.filter(|_| is_gemma).unwrap_or(head_dim as f64).powf(-0.5) as f32;
    let layers = PreNormConfig {
        names: match family.as_str() {
            "gemma2" => &GEMMA2,
            "phi3" => &PHI3,
            _ => &LLAMA,
        },
        norm: if is_gemma { NormKind::RmsFromOne } else { NormKind::Rms },
        epsilon: file.rms_norm_eps.unwrap_or(1e-6),
        query_key_value_bias: family == "qwen2" || attention_bias,
        output_bias: family != "qwen2" && attention_bias,
        has_query_key_norm: family == "qwen3",
        mlp_bias: file.mlp_bias.unwrap_or(false),
        is_causal: true,
        windows,
        scale,
        soft_cap: file.attn_logit_softcapping.filter(|_| is_gemma),
        embedding_scale: if is_gemma { (file.hidden_size as f32).sqrt() } else { 1.0 },
        ropes: [rope.clone(), rope],
    };
    let residual = file.resid_pdrop.unwrap_or(0.0);
    Ok(BackboneConfig {
        hidden_size: file.hidden_size,
        intermediate_size: file.intermediate_size,
        num_hidden_layers: file.num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: file.num_key_value_heads.unwrap_or(heads),
        head_dim,
        vocab_size: file.vocab_size,
        max_tokens,
        initializer_range,
        empty_token: None,
        activation: function,
        dropouts: Dropouts {
            embedding: file.embd_pdrop.unwrap_or(0.0),
            attention: file.attention_dropout.unwrap_or(0.0),
            attention_output: residual,
            inside_mlp: 0.0,
            mlp_output: residual,
        },
        prefix: "model.",
        layers: LayersConfig::PreNorm(Box::new(layers)),
        head: HeadConfig {
            pooling: Pooling::Last,
            input_dropout: 0.0,
            dense: None,
            dropout: 0.0,
            classifier: "score",
            has_bias: false,
            classifier_std: initializer_range,
            cutoff: None,
            modules_to_save: &[],
        },
        family,
    })
}

/// Each layer's window: of all layers for Mistral and Phi-3; of every other one for Gemma 2; for Qwen only
/// where it is switched on, and there of the layers that `layer_types` or `max_window_layers` name.
fn windows(file: &File, family: &str) -> Result<Vec<Option<usize>>> {
    let layers = file.num_hidden_layers.min(1 << 12);
    let is_used = match family {
        "mistral" | "phi3" | "gemma2" => true,
        "qwen2" | "qwen3" => file.use_sliding_window == Some(true),
        _ => false,
    };
    let usual = (family == "gemma2").then_some(4096);
    let Some(window) = file.sliding_window.or(usual).filter(|_| is_used) else { return Ok(vec![None; layers]) };
    ensure!(window > 0, "sliding_window is 0");
    if let Some(types) = &file.layer_types {
        ensure!(types.len() == layers, "{} layer_types for {layers} layers", types.len());
        return types
            .iter()
            .map(|name| match name.as_str() {
                "sliding_attention" => Ok(Some(window)),
                "full_attention" => Ok(None),
                other => bail!("layer type `{other}` is not supported; supported: full_attention, sliding_attention"),
            })
            .collect();
    }
    let has_window = |layer: usize| match family {
        "mistral" | "phi3" => true,
        "gemma2" => layer.is_multiple_of(2),
        _ => layer >= file.max_window_layers.unwrap_or(28),
    };
    Ok((0..layers).map(|layer| has_window(layer).then_some(window)).collect())
}
