//! NomicBERT: BERT with rotated q and k in place of positions, a gate in the MLP, and no biases.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::bert::{self, Defaults, encoder};
use super::file::ConfigFile;
use super::rope::{RopeDefaults, shared};
use crate::model::config::{BackboneConfig, PostNormNames};
use crate::model::rope::RopeScaling;
use crate::ops::activation::Activation;

static NAMES: PostNormNames = PostNormNames {
    query_key_value: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    output: "self_attn.o_proj",
    attention_norm: "post_attention_layernorm",
    gate: Some("mlp.gate_proj"),
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    mlp_norm: "post_mlp_layernorm",
};

static DEFAULTS: Defaults =
    Defaults { vocab_size: 30_528, dropout: 0.0, activation: Activation::Silu, ..bert::DEFAULTS };

pub(super) fn read(file: &ConfigFile) -> Result<BackboneConfig> {
    let current = in_current_keys(file.keys())?.map(ConfigFile::new);
    let file = current.as_ref().unwrap_or(file);
    encoder(file, &DEFAULTS, |config, layers| {
        config.prefix = "nomic_bert.";
        config.head_dim = file.size("head_dim", config.head_dim)?;
        let longest = file.size("max_position_embeddings", 2048)?;
        config.max_tokens = Some(longest);
        let (head_dim, theta) = (config.head_dim, 1000.0);
        let rope = RopeDefaults { theta, head_dim, longest, original: None, may_be_partial: false };
        let rope = shared(file, &rope)?;
        if let RopeScaling::Long { original, .. } = rope.scaling {
            config.max_tokens = Some(original);
        }
        layers.rope = Some(rope);
        layers.names = &NAMES;
        layers.scale = (head_dim as f32).powf(-0.5);
        layers.has_bias = false;
        layers.embeddings.positions = None;
        layers.stored = (0..layers.order.len()).map(|layer| format!("layers.{layer}")).collect();
        Ok(())
    })
}

/// The keys of a file whose keys are those of the code on the Hub, which are GPT-2's, in transformers' own; none if they
/// are that already.
///
/// # Errors
/// If a key is missing, or asks for something that transformers' class does not compute.
pub(super) fn in_current_keys(keys: &Map<String, Value>) -> Result<Option<Map<String, Value>>> {
    if !keys.contains_key("n_embd") || keys.contains_key("hidden_size") {
        return Ok(None);
    }
    let need = |key: &str| {
        let value = keys.get(key).filter(|value| !value.is_null());
        value.with_context(|| format!("`{key}` is missing beside `n_embd`: the model's other sizes are not known"))
    };
    for (key, usual) in [
        ("causal", json!(false)),
        ("mlp_fc1_bias", json!(false)),
        ("mlp_fc2_bias", json!(false)),
        ("moe_every_n_layers", json!(0)),
        ("parallel_block", json!(false)),
        ("prenorm", json!(false)),
        ("qkv_proj_bias", json!(false)),
        ("rotary_emb_fraction", json!(1.0)),
        ("rotary_emb_interleaved", json!(false)),
        ("rotary_emb_scale_base", Value::Null),
        ("scale_attn_by_inverse_layer_idx", json!(false)),
        ("use_rms_norm", json!(false)),
    ] {
        // Of these the code on the Hub has other defaults.
        let is_needed = key.ends_with("_bias") || key == "rotary_emb_fraction";
        let value = if is_needed { need(key)? } else { keys.get(key).unwrap_or(&usual) };
        let is_usual = value.is_null() || *value == usual || value.as_f64().is_some_and(|x| usual.as_f64() == Some(x));
        ensure!(is_usual, "`{key}` is {value}, which llmcls does not compute; supported: {usual}");
    }
    let activation = match need("activation_function")?.as_str() {
        Some("swiglu") => "silu",
        Some("geglu") => "gelu",
        other => bail!("`activation_function` is {other:?}; supported: swiglu, geglu"),
    };
    let dropout = |key: &str| keys.get(key).and_then(Value::as_f64).unwrap_or(0.0);
    ensure!(
        dropout("embd_pdrop") == dropout("resid_pdrop"),
        "`embd_pdrop` and `resid_pdrop` differ, and transformers has one key for both"
    );
    let mut rope = Map::from_iter([
        ("rope_type".to_owned(), json!("default")),
        ("rope_theta".to_owned(), need("rotary_emb_base")?.clone()),
    ]);
    let mut longest = need("n_positions")?.clone();
    if let Some(factor) = keys.get("rotary_scaling_factor").filter(|factor| !factor.is_null()) {
        rope.insert("rope_type".to_owned(), json!("dynamic"));
        rope.insert("factor".to_owned(), factor.clone());
        longest = keys.get("max_trained_positions").cloned().unwrap_or(json!(2048));
    }
    let mut current = keys.clone();
    current.retain(|key, _| !is_former(key));
    for (key, value) in [
        ("hidden_size", need("n_embd")?.clone()),
        ("num_hidden_layers", need("n_layer")?.clone()),
        ("num_attention_heads", need("n_head")?.clone()),
        ("intermediate_size", need("n_inner")?.clone()),
        ("layer_norm_eps", need("layer_norm_epsilon")?.clone()),
        ("max_position_embeddings", longest),
        ("hidden_act", json!(activation)),
        ("hidden_dropout_prob", json!(dropout("resid_pdrop"))),
        ("attention_probs_dropout_prob", json!(dropout("attn_pdrop"))),
        ("rope_parameters", Value::Object(rope)),
    ] {
        current.insert(key.to_owned(), value);
    }
    Ok(Some(current))
}

/// Whether transformers has another key for it, or no use.
fn is_former(key: &str) -> bool {
    let beginnings = ["n_", "rotary_", "mlp_fc", "summary_", "scale_attn", "fused_", "parallel_block", "use_"];
    let whole = [
        "activation_function",
        "attn_pdrop",
        "causal",
        "dense_seq_output",
        "embd_pdrop",
        "layer_norm_epsilon",
        "max_trained_positions",
        "moe_every_n_layers",
        "pad_vocab_size_multiple",
        "prenorm",
        "qkv_proj_bias",
        "reorder_and_upcast_attn",
        "resid_pdrop",
    ];
    whole.contains(&key) || beginnings.iter().any(|beginning| key.starts_with(beginning))
}
