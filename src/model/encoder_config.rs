//! Configurations of encoders: BERT, RoBERTa, XLM-RoBERTa, DistilBERT, ModernBERT.

use anyhow::{Result, bail, ensure};
use serde::Deserialize;

use super::config::{
    BackboneConfig, DenseConfig, Dropouts, HeadConfig, LayersConfig, NormKind, Pooling, PostNormConfig, PostNormNames,
    PreNormConfig, PreNormNames, activation, head_dim,
};
use super::rope_config::{Lengths, Rope, Scaling};
use crate::ops::activation::Activation;

#[derive(Deserialize)]
struct BertFile {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    type_vocab_size: Option<usize>,
    layer_norm_eps: Option<f32>,
    hidden_act: Option<String>,
    hidden_dropout_prob: Option<f32>,
    attention_probs_dropout_prob: Option<f32>,
    classifier_dropout: Option<f32>,
    initializer_range: Option<f32>,
    pad_token_id: Option<usize>,
    position_embedding_type: Option<String>,
    is_decoder: Option<bool>,
}

static BERT: PostNormNames = PostNormNames {
    layers: "encoder.layer",
    query_key_value: ["attention.self.query", "attention.self.key", "attention.self.value"],
    output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    mlp_norm: "output.LayerNorm",
};

/// BERT, and RoBERTa in both its languages.
pub(super) fn bert(family: String, text: &str) -> Result<BackboneConfig> {
    let file: BertFile = serde_json::from_str(text)?;
    let kind = file.position_embedding_type.as_deref().unwrap_or("absolute");
    ensure!(kind == "absolute", "position_embedding_type `{kind}` is not supported; supported: absolute");
    ensure!(file.is_decoder != Some(true), "is_decoder is set: as a decoder this model is not supported");
    let is_bert = family == "bert";
    // RoBERTa counts its positions from behind the padding token's.
    let first_position = if is_bert { 0 } else { file.pad_token_id.unwrap_or(1) + 1 };
    ensure!(
        file.max_position_embeddings > first_position,
        "max_position_embeddings {} leaves no position",
        file.max_position_embeddings
    );
    let hidden = file.hidden_dropout_prob.unwrap_or(0.1);
    let initializer_range = file.initializer_range.unwrap_or(0.02);
    let classifier_dropout = file.classifier_dropout.unwrap_or(hidden);
    let dense = DenseConfig {
        name: if is_bert { "pooler.dense" } else { "classifier.dense" },
        is_of_base: is_bert,
        has_bias: true,
        std: initializer_range,
        activation: Activation::Tanh,
        norm: None,
    };
    Ok(BackboneConfig {
        prefix: if is_bert { "bert." } else { "roberta." },
        hidden_size: file.hidden_size,
        intermediate_size: file.intermediate_size,
        num_hidden_layers: file.num_hidden_layers,
        num_attention_heads: file.num_attention_heads,
        num_key_value_heads: file.num_attention_heads,
        head_dim: head_dim(file.hidden_size, file.num_attention_heads)?,
        vocab_size: file.vocab_size,
        max_tokens: Some(file.max_position_embeddings - first_position),
        initializer_range,
        empty_token: None,
        activation: activation("hidden_act", file.hidden_act.as_deref(), Activation::Gelu)?,
        dropouts: Dropouts {
            embedding: hidden,
            attention: file.attention_probs_dropout_prob.unwrap_or(0.1),
            attention_output: hidden,
            inside_mlp: 0.0,
            mlp_output: hidden,
        },
        layers: LayersConfig::PostNorm(PostNormConfig {
            names: &BERT,
            epsilon: file.layer_norm_eps.unwrap_or(1e-12),
            positions: file.max_position_embeddings,
            first_position,
            token_types: Some(file.type_vocab_size.unwrap_or(2)),
        }),
        head: HeadConfig {
            pooling: Pooling::First,
            input_dropout: if is_bert { 0.0 } else { classifier_dropout },
            dense: Some(dense),
            dropout: classifier_dropout,
            classifier: if is_bert { "classifier" } else { "classifier.out_proj" },
            has_bias: true,
            classifier_std: initializer_range,
            cutoff: None,
            modules_to_save: &[],
        },
        family,
    })
}

#[derive(Deserialize)]
struct DistilBertFile {
    dim: usize,
    hidden_dim: usize,
    n_layers: usize,
    n_heads: usize,
    vocab_size: usize,
    max_position_embeddings: Option<usize>,
    activation: Option<String>,
    dropout: Option<f32>,
    attention_dropout: Option<f32>,
    seq_classif_dropout: Option<f32>,
    initializer_range: Option<f32>,
}

static DISTILBERT: PostNormNames = PostNormNames {
    layers: "transformer.layer",
    query_key_value: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    mlp_norm: "output_layer_norm",
};

pub(super) fn distilbert(family: String, text: &str) -> Result<BackboneConfig> {
    let file: DistilBertFile = serde_json::from_str(text)?;
    let positions = file.max_position_embeddings.unwrap_or(512);
    let hidden = file.dropout.unwrap_or(0.1);
    let initializer_range = file.initializer_range.unwrap_or(0.02);
    Ok(BackboneConfig {
        family,
        prefix: "distilbert.",
        hidden_size: file.dim,
        intermediate_size: file.hidden_dim,
        num_hidden_layers: file.n_layers,
        num_attention_heads: file.n_heads,
        num_key_value_heads: file.n_heads,
        head_dim: head_dim(file.dim, file.n_heads)?,
        vocab_size: file.vocab_size,
        max_tokens: Some(positions),
        initializer_range,
        empty_token: None,
        activation: activation("activation", file.activation.as_deref(), Activation::Gelu)?,
        dropouts: Dropouts {
            embedding: hidden,
            attention: file.attention_dropout.unwrap_or(0.1),
            mlp_output: hidden,
            ..Dropouts::default()
        },
        layers: LayersConfig::PostNorm(PostNormConfig {
            names: &DISTILBERT,
            epsilon: 1e-12,
            positions,
            first_position: 0,
            token_types: None,
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
            dropout: file.seq_classif_dropout.unwrap_or(0.2),
            classifier: "classifier",
            has_bias: true,
            classifier_std: initializer_range,
            cutoff: None,
            modules_to_save: &["pre_classifier"],
        },
    })
}

#[derive(Deserialize)]
struct ModernBertFile {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    vocab_size: usize,
    hidden_activation: Option<String>,
    norm_eps: Option<f32>,
    norm_bias: Option<bool>,
    attention_bias: Option<bool>,
    attention_dropout: Option<f32>,
    embedding_dropout: Option<f32>,
    mlp_bias: Option<bool>,
    mlp_dropout: Option<f32>,
    max_position_embeddings: Option<usize>,
    initializer_range: Option<f32>,
    #[serde(default = "default_cutoff")]
    initializer_cutoff_factor: Option<f32>,
    global_rope_theta: Option<f64>,
    local_rope_theta: Option<f64>,
    global_attn_every_n_layers: Option<usize>,
    local_attention: Option<usize>,
    layer_types: Option<Vec<String>>,
    rope_parameters: Option<LayerRopes>,
    classifier_pooling: Option<String>,
    classifier_dropout: Option<f32>,
    classifier_bias: Option<bool>,
    classifier_activation: Option<String>,
}

fn default_cutoff() -> Option<f32> {
    Some(2.0)
}

/// As transformers 5 writes them.
#[derive(Clone, Deserialize)]
struct LayerRopes {
    full_attention: Option<Scaling>,
    sliding_attention: Option<Scaling>,
}

static MODERNBERT: PreNormNames = PreNormNames {
    embedding: "embeddings.tok_embeddings",
    embedding_norm: Some("embeddings.norm"),
    layers: "layers",
    attention_norm: "attn_norm",
    query_key_value: &["attn.Wqkv"],
    output: "attn.Wo",
    after_attention: None,
    mlp_norm: "mlp_norm",
    gate_up: &["mlp.Wi"],
    down: "mlp.Wo",
    after_mlp: None,
    last_norm: "final_norm",
};

pub(super) fn modernbert(family: String, text: &str) -> Result<BackboneConfig> {
    let file: ModernBertFile = serde_json::from_str(text)?;
    let head_dim = head_dim(file.hidden_size, file.num_attention_heads)?;
    let has_bias = file.norm_bias.unwrap_or(false);
    let epsilon = file.norm_eps.unwrap_or(1e-5);
    let initializer_range = file.initializer_range.unwrap_or(0.02);
    let cutoff = file.initializer_cutoff_factor.unwrap_or(3.0);
    ensure!(cutoff >= 0.1, "initializer_cutoff_factor is {cutoff}, expected at least 0.1");
    let attention_dropout = file.attention_dropout.unwrap_or(0.0);
    let attention_bias = file.attention_bias.unwrap_or(false);
    let longest = file.max_position_embeddings.unwrap_or(8192);
    let lengths = Lengths { longest, original: None };
    let ropes = file.rope_parameters.clone();
    let (global, local) = ropes.map_or((None, None), |ropes| (ropes.full_attention, ropes.sliding_attention));
    let global_theta = file.global_rope_theta.unwrap_or(160_000.0);
    let layers = PreNormConfig {
        names: &MODERNBERT,
        norm: NormKind::Layer { has_bias },
        epsilon,
        query_key_value_bias: attention_bias,
        output_bias: attention_bias,
        has_query_key_norm: false,
        mlp_bias: file.mlp_bias.unwrap_or(false),
        is_causal: false,
        windows: modernbert_windows(&file)?,
        scale: (head_dim as f32).powf(-0.5),
        soft_cap: None,
        embedding_scale: 1.0,
        ropes: [
            Rope::from_parts(Some(global_theta), global, head_dim, lengths)?,
            Rope::from_parts(Some(file.local_rope_theta.unwrap_or(10_000.0)), local, head_dim, lengths)?,
        ],
    };
    let dense = DenseConfig {
        name: "head.dense",
        is_of_base: false,
        has_bias: file.classifier_bias.unwrap_or(false),
        std: initializer_range / (2.0 * file.num_hidden_layers as f32).sqrt(),
        activation: activation("classifier_activation", file.classifier_activation.as_deref(), Activation::Gelu)?,
        norm: Some(("head.norm", epsilon, has_bias)),
    };
    let pooling = match file.classifier_pooling.as_deref() {
        None | Some("cls") => Pooling::First,
        Some("mean") => Pooling::Mean,
        Some(other) => bail!("classifier_pooling `{other}` is not supported; supported: cls, mean"),
    };
    Ok(BackboneConfig {
        family,
        prefix: "model.",
        hidden_size: file.hidden_size,
        intermediate_size: file.intermediate_size,
        num_hidden_layers: file.num_hidden_layers,
        num_attention_heads: file.num_attention_heads,
        num_key_value_heads: file.num_attention_heads,
        head_dim,
        vocab_size: file.vocab_size,
        max_tokens: Some(longest),
        initializer_range,
        empty_token: None,
        activation: activation("hidden_activation", file.hidden_activation.as_deref(), Activation::Gelu)?,
        dropouts: Dropouts {
            embedding: file.embedding_dropout.unwrap_or(0.0),
            attention: attention_dropout,
            attention_output: attention_dropout,
            inside_mlp: file.mlp_dropout.unwrap_or(0.0),
            mlp_output: 0.0,
        },
        layers: LayersConfig::PreNorm(Box::new(layers)),
        head: HeadConfig {
            pooling,
            input_dropout: 0.0,
            dense: Some(dense),
            dropout: file.classifier_dropout.unwrap_or(0.0),
            classifier: "classifier",
            has_bias: true,
            classifier_std: (file.hidden_size as f32).powf(-0.5),
            cutoff: Some(cutoff),
            modules_to_save: &["head"],
        },
    })
}

/// Every third layer sees all tokens, the others those within half of `local_attention` on either side.
fn modernbert_windows(file: &ModernBertFile) -> Result<Vec<Option<usize>>> {
    let layers = file.num_hidden_layers.min(1 << 12);
    let window = file.local_attention.unwrap_or(128) / 2 + 1;
    if let Some(types) = &file.layer_types {
        ensure!(types.len() == layers, "{} layer_types for {layers} layers", types.len());
        return Ok(types.iter().map(|name| (name == "sliding_attention").then_some(window)).collect());
    }
    let every = file.global_attn_every_n_layers.unwrap_or(3);
    ensure!(every > 0, "global_attn_every_n_layers is 0");
    Ok((0..layers).map(|layer| (!layer.is_multiple_of(every)).then_some(window)).collect())
}
