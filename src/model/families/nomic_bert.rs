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

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys of nomic-ai/nomic-embed-text-v1.5 that its code on the Hub reads, with other sizes.
    const HUB: &str = r#"{
        "model_type": "nomic_bert", "activation_function": "swiglu", "attn_pdrop": 0.0, "bos_token_id": null,
        "causal": false, "dense_seq_output": true, "embd_pdrop": 0.1, "eos_token_id": null, "fused_bias_fc": true,
        "fused_dropout_add_ln": true, "initializer_range": 0.02, "layer_norm_epsilon": 1e-10,
        "max_trained_positions": 2048, "mlp_fc1_bias": false, "mlp_fc2_bias": false, "n_embd": 24, "n_head": 3,
        "n_inner": 60, "n_layer": 2, "n_positions": 8192, "pad_vocab_size_multiple": 64, "parallel_block": false,
        "parallel_block_tied_norm": false, "prenorm": false, "qkv_proj_bias": false, "reorder_and_upcast_attn": false,
        "resid_pdrop": 0.1, "rotary_emb_base": 900, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": false,
        "rotary_emb_scale_base": null, "rotary_scaling_factor": null, "scale_attn_by_inverse_layer_idx": false,
        "scale_attn_weights": true, "summary_type": "cls_index", "type_vocab_size": 2, "use_cache": true,
        "use_flash_attn": true, "use_rms_norm": false, "use_xentropy": true, "vocab_size": 90}"#;
    const CURRENT: &str = r#"{
        "model_type": "nomic_bert", "hidden_act": "silu", "hidden_size": 24, "num_attention_heads": 3,
        "intermediate_size": 60, "num_hidden_layers": 2, "max_position_embeddings": 8192, "layer_norm_eps": 1e-10,
        "hidden_dropout_prob": 0.1, "vocab_size": 90, "rope_parameters": {"rope_type": "default", "rope_theta": 900}}"#;

    fn read_text(text: &str) -> Result<BackboneConfig> {
        read(&ConfigFile::parse(text)?)
    }

    #[test]
    fn the_keys_of_the_code_on_the_hub_mean_what_those_of_transformers_do() {
        let current = read_text(CURRENT).unwrap();
        assert_eq!(read_text(HUB).unwrap(), current);
        assert_eq!((current.hidden_size, current.max_tokens), (24, Some(8192)));
        let scaled = HUB.replace(r#""rotary_scaling_factor": null"#, r#""rotary_scaling_factor": 2.0"#);
        let dynamic = CURRENT
            .replace("8192", "2048")
            .replace(r#""rope_type": "default""#, r#""rope_type": "dynamic", "factor": 2.0"#);
        let scaled = read_text(&scaled).unwrap();
        assert_eq!(scaled, read_text(&dynamic).unwrap());
        assert_eq!(scaled.max_tokens, Some(2048));
        // What is written has no key of the old spelling, and is read as it is.
        let current = in_current_keys(&serde_json::from_str(HUB).unwrap()).unwrap().unwrap();
        assert!(!current.keys().any(|key| is_former(key)), "{current:?}");
        assert!(in_current_keys(&current).unwrap().is_none());
    }

    #[test]
    fn what_the_code_on_the_hub_computes_and_transformers_does_not_is_refused() {
        for (usual, other, name) in [
            (r#""qkv_proj_bias": false"#, r#""qkv_proj_bias": true"#, "qkv_proj_bias"),
            (r#""mlp_fc1_bias": false, "#, "", "mlp_fc1_bias"),
            (r#""prenorm": false"#, r#""prenorm": true"#, "prenorm"),
            (r#""prenorm": false"#, r#""moe_every_n_layers": 2"#, "moe_every_n_layers"),
            (r#""rotary_emb_fraction": 1.0"#, r#""rotary_emb_fraction": 0.5"#, "rotary_emb_fraction"),
            (r#""rotary_emb_scale_base": null"#, r#""rotary_emb_scale_base": 512"#, "rotary_emb_scale_base"),
            ("swiglu", "gelu", "activation_function"),
            (r#""embd_pdrop": 0.1"#, r#""embd_pdrop": 0.2"#, "embd_pdrop"),
            (r#""n_layer": 2, "#, "", "n_layer"),
        ] {
            let error = format!("{:#}", read_text(&HUB.replace(usual, other)).unwrap_err());
            assert!(error.contains(name), "{name}: {error}");
        }
    }
}
