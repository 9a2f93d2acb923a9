//! `config.json` of a pretrained model, as transformers 4 and 5 write it.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::rope_config::Rope;
use super::{decoder_config, encoder_config};
use crate::ops::activation::{self, Activation};

/// What a pretrained model is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct BackboneConfig {
    /// `model_type`
    pub family: String,
    /// D
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// H
    pub num_attention_heads: usize,
    /// K
    pub num_key_value_heads: usize,
    /// d
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence that the model can take, in tokens, if there is a limit.
    pub max_tokens: Option<usize>,
    /// Deviation of random weights and of the classification head.
    pub initializer_range: f32,
    /// The token that stands for a text without any.
    pub empty_token: Option<u32>,
    /// The function inside the MLP.
    pub activation: Activation,
    /// What the model itself leaves out while it trains.
    pub dropouts: Dropouts,
    /// What stands before a base model's names in a classifier's.
    pub prefix: &'static str,
    /// How layers are built.
    pub layers: LayersConfig,
    /// What makes logits of hidden states.
    pub head: HeadConfig,
}

/// Probabilities of the base's own dropouts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Dropouts {
    /// After the embeddings.
    pub embedding: f32,
    /// Of attention's probabilities.
    pub attention: f32,
    /// Of attention's output, before it is added.
    pub attention_output: f32,
    /// Inside the MLP.
    pub inside_mlp: f32,
    /// Of the MLP's output, before it is added.
    pub mlp_output: f32,
}

/// How layers are built.
#[derive(Clone, Debug, PartialEq)]
pub enum LayersConfig {
    /// Norms before attention and MLP: decoders, and ModernBERT.
    PreNorm(Box<PreNormConfig>),
    /// Norms after the sums: BERT and its kin.
    PostNorm(PostNormConfig),
}

/// Layers with norms before attention and MLP.
#[derive(Clone, Debug, PartialEq)]
pub struct PreNormConfig {
    /// Names of the modules.
    pub names: &'static PreNormNames,
    /// What norms do.
    pub norm: NormKind,
    /// ε of every norm.
    pub epsilon: f32,
    /// Whether q, k and v have biases.
    pub query_key_value_bias: bool,
    /// Whether the output of attention has a bias.
    pub output_bias: bool,
    /// Whether each head's q and k are normalised (Qwen3).
    pub has_query_key_norm: bool,
    /// Whether the linear layers of the MLP have biases.
    pub mlp_bias: bool,
    /// Whether a token sees only those before it.
    pub is_causal: bool,
    /// For each layer how many tokens a token sees, as [`crate::ops::attention::AttentionKind`] counts
    /// them; none: all.
    pub windows: Vec<Option<usize>>,
    /// Multiplies attention's scores.
    pub scale: f32,
    /// Bends attention's scores (Gemma 2).
    pub soft_cap: Option<f32>,
    /// Multiplies embeddings (Gemma 2).
    pub embedding_scale: f32,
    /// Rotary embedding of the layers that see all tokens, and of those that have a window.
    pub ropes: [Rope; 2],
}

/// What a norm does to its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Divides by the root of the mean square.
    Rms,
    /// The same, with weights stored as their difference from 1 (Gemma).
    RmsFromOne,
    /// Centres, too.
    Layer {
        /// Whether there is a bias.
        has_bias: bool,
    },
}

/// Names of a base's modules, as its weights are stored.
#[derive(Debug, PartialEq, Eq)]
pub struct PreNormNames {
    /// Token embeddings.
    pub embedding: &'static str,
    /// A norm after them; then the first layer has none before its attention.
    pub embedding_norm: Option<&'static str>,
    /// The list of layers.
    pub layers: &'static str,
    /// Before attention.
    pub attention_norm: &'static str,
    /// q, k and v: three modules, or one.
    pub query_key_value: &'static [&'static str],
    /// Attention's output.
    pub output: &'static str,
    /// A norm after it, before the sum.
    pub after_attention: Option<&'static str>,
    /// Before the MLP.
    pub mlp_norm: &'static str,
    /// Gate and up: two modules, or one.
    pub gate_up: &'static [&'static str],
    /// The MLP's output.
    pub down: &'static str,
    /// A norm after it, before the sum.
    pub after_mlp: Option<&'static str>,
    /// After the last layer.
    pub last_norm: &'static str,
}

/// Layers with norms after the sums.
#[derive(Clone, Debug, PartialEq)]
pub struct PostNormConfig {
    /// Names of the modules.
    pub names: &'static PostNormNames,
    /// ε of every norm.
    pub epsilon: f32,
    /// Rows of the position embeddings.
    pub positions: usize,
    /// The row of the first token's position.
    pub first_position: usize,
    /// Rows of the token type embeddings, of which the first is added; none: there are none.
    pub token_types: Option<usize>,
}

/// Names of a base's modules, as its weights are stored; those of a layer follow `layers.INDEX`.
#[derive(Debug, PartialEq, Eq)]
pub struct PostNormNames {
    /// The list of layers.
    pub layers: &'static str,
    /// q, k, v.
    pub query_key_value: [&'static str; 3],
    /// Attention's output.
    pub output: &'static str,
    /// After the first sum.
    pub attention_norm: &'static str,
    /// Into the MLP.
    pub up: &'static str,
    /// Out of it.
    pub down: &'static str,
    /// After the second sum.
    pub mlp_norm: &'static str,
}

/// Which hidden states go into the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Each sequence's first token.
    First,
    /// Each sequence's last token.
    Last,
    /// The mean of its tokens.
    Mean,
}

/// What makes logits of hidden states: `classifier(drop(norm(f(dense(drop(pooled))))))`, where only
/// pooling and classifier are in all of them.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadConfig {
    /// Which hidden states go in.
    pub pooling: Pooling,
    /// Left out before `dense`.
    pub input_dropout: f32,
    /// A layer before the classifier.
    pub dense: Option<DenseConfig>,
    /// Left out before the classifier.
    pub dropout: f32,
    /// The classifier's name.
    pub classifier: &'static str,
    /// Whether it has a bias.
    pub has_bias: bool,
    /// Deviation of the classifier's first weights.
    pub classifier_std: f32,
    /// Within how many deviations its first weights and those of `dense` lie; none: anywhere.
    pub cutoff: Option<f32>,
    /// Modules that peft must save whole, beside `classifier` and `score`.
    pub modules_to_save: &'static [&'static str],
}

/// A layer before the classifier.
#[derive(Clone, Debug, PartialEq)]
pub struct DenseConfig {
    /// Its name; a part of the base if the base's prefix belongs before it.
    pub name: &'static str,
    /// Whether base models bring it, and it stays frozen where they do.
    pub is_of_base: bool,
    /// Whether it has a bias.
    pub has_bias: bool,
    /// Deviation of its first weights.
    pub std: f32,
    /// After it.
    pub activation: Activation,
    /// A norm after that: its name, its ε, and whether it has a bias.
    pub norm: Option<(&'static str, f32, bool)>,
}

/// The architectures that llmcls computes.
pub const SUPPORTED: &[&str] = &[
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "phi3",
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "modernbert",
];

impl BackboneConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// If it is not valid, or asks for something that llmcls does not compute.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
        Self::from_json(&text).with_context(|| format!("{}: not a usable model configuration", path.display()))
    }

    pub(super) fn from_json(text: &str) -> Result<Self> {
        let json: Value = serde_json::from_str(text)?;
        let family = match json["model_type"].as_str() {
            Some(name) if SUPPORTED.contains(&name) => name.to_owned(),
            Some(name) => bail!("model_type `{name}` is not supported; supported: {}", SUPPORTED.join(", ")),
            None => bail!("no model_type; supported: {}", SUPPORTED.join(", ")),
        };
        ensure!(
            json["auto_map"].is_null() || is_own_code(&family, &json["auto_map"]),
            "`auto_map` asks for custom code, which llmcls does not run"
        );
        if !json["quantization_config"].is_null() {
            check_quantization(&json["quantization_config"])?;
        }
        let empty_token = first_id(&json["bos_token_id"]).or_else(|| first_id(&json["eos_token_id"]));
        let config = match family.as_str() {
            "bert" | "roberta" | "xlm-roberta" => encoder_config::bert(family, text)?,
            "distilbert" => encoder_config::distilbert(family, text)?,
            "modernbert" => encoder_config::modernbert(family, text)?,
            _ => decoder_config::read(family, text)?,
        };
        let config = Self { empty_token, ..config };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let (heads, key_value_heads) = (self.num_attention_heads, self.num_key_value_heads);
        for (key, size, largest) in [
            ("hidden_size", self.hidden_size, 1 << 20),
            ("intermediate_size", self.intermediate_size, 1 << 22),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 12),
            ("num_attention_heads", heads, 1 << 16),
            ("num_key_value_heads", key_value_heads, 1 << 16),
            ("head_dim", self.head_dim, 1 << 16),
            ("vocab_size", self.vocab_size, 1 << 26),
            ("max_position_embeddings", self.max_tokens.unwrap_or(1), 1 << 26),
        ] {
            ensure!((1..=largest).contains(&size), "{key} is {size}, expected 1 to {largest}");
        }
        ensure!(
            heads.is_multiple_of(key_value_heads),
            "num_attention_heads {heads} is not a multiple of num_key_value_heads {key_value_heads}"
        );
        for dropout in [
            self.dropouts.embedding,
            self.dropouts.attention,
            self.dropouts.attention_output,
            self.dropouts.inside_mlp,
            self.dropouts.mlp_output,
            self.head.dropout,
            self.head.input_dropout,
        ] {
            ensure!((0.0..1.0).contains(&dropout), "a dropout of {dropout}, expected at least 0 and below 1");
        }
        if let LayersConfig::PreNorm(layers) = &self.layers {
            for rope in &layers.ropes {
                ensure!(
                    rope.width >= 2 && rope.width.is_multiple_of(2) && rope.width <= self.head_dim,
                    "head_dim {} of which {} are rotated, expected an even number",
                    self.head_dim,
                    rope.width
                );
            }
        }
        Ok(())
    }

    /// Weights of the linear layers.
    #[must_use]
    pub fn linear_weights(&self) -> usize {
        let (d, mlp) = (self.hidden_size, self.intermediate_size);
        let (queries, keys) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let products = match self.layers {
            LayersConfig::PreNorm(_) => 3,
            LayersConfig::PostNorm(_) => 2,
        };
        self.num_hidden_layers * (2 * d * queries + 2 * d * keys + products * d * mlp)
    }

    /// Weights of the embeddings.
    #[must_use]
    pub fn embedding_weights(&self) -> usize {
        let positions = match &self.layers {
            LayersConfig::PreNorm(_) => 0,
            LayersConfig::PostNorm(layers) => layers.positions + layers.token_types.unwrap_or(0),
        };
        (self.vocab_size + positions) * self.hidden_size
    }
}

/// Whether custom code is what transformers has built in by now: Phi-3's repositories came before that, and
/// name their own files still.
fn is_own_code(family: &str, auto_map: &Value) -> bool {
    let is_own = |class: &Value| {
        let class = class.as_str().unwrap_or_default();
        class.starts_with("configuration_phi3.Phi3") || class.starts_with("modeling_phi3.Phi3")
    };
    family == "phi3" && auto_map.as_object().is_some_and(|classes| classes.values().all(is_own))
}

/// Width of a head, where the configuration does not tell it.
pub(super) fn head_dim(hidden_size: usize, heads: usize) -> Result<usize> {
    ensure!(
        heads > 0 && hidden_size.is_multiple_of(heads),
        "hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}"
    );
    Ok(hidden_size / heads)
}

/// An activation by its name under `key`.
pub(super) fn activation(key: &str, name: Option<&str>, default: Activation) -> Result<Activation> {
    let Some(name) = name else { return Ok(default) };
    Activation::from_name(name)
        .with_context(|| format!("{key} `{name}` is not supported; supported: {}", activation::NAMES))
}

/// Accepts weights that bitsandbytes quantized to NF4 with double quantization.
fn check_quantization(config: &Value) -> Result<()> {
    for (key, expected) in [
        ("quant_method", Value::from("bitsandbytes")),
        ("load_in_4bit", Value::from(true)),
        ("bnb_4bit_quant_type", Value::from("nf4")),
        ("bnb_4bit_use_double_quant", Value::from(true)),
    ] {
        ensure!(
            config[key] == expected,
            "quantization_config: {key} is {}, and only {expected} is read; use the original weights with model.use_4bit",
            config[key]
        );
    }
    Ok(())
}

/// A token id, or the first of a list of them.
fn first_id(value: &Value) -> Option<u32> {
    value.as_array().map_or(Some(value), |list| list.first())?.as_u64()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: &str = r#""model_type": "llama", "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2,
        "num_attention_heads": 6, "vocab_size": 40"#;

    fn parse(more: &str) -> Result<BackboneConfig> {
        BackboneConfig::from_json(&format!("{{{SIZES}{more}}}"))
    }

    #[test]
    fn both_spellings_of_rope_mean_the_same() {
        let llama3 = r#""rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64"#;
        let old = parse(&format!(r#", "rope_theta": 500000.0, "rope_scaling": {{{llama3}}}"#)).unwrap();
        let new = parse(&format!(r#", "rope_parameters": {{"rope_theta": 500000.0, {llama3}}}, "pad_token_id": null"#));
        assert_eq!(old, new.unwrap());
        assert_ne!(old.layers, parse("").unwrap().layers);
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for (more, name) in [
            (r#", "hidden_act": "xielu""#, "xielu"),
            (r#", "rope_scaling": {"type": "yarn", "factor": 2.0}"#, "yarn"),
            (r#", "auto_map": {"AutoModel": "x.py"}"#, "auto_map"),
            (r#", "num_key_value_heads": 4"#, "num_key_value_heads 4"),
            (r#", "quantization_config": {"quant_method": "gptq"}"#, "gptq"),
        ] {
            let error = parse(more).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        let error = BackboneConfig::from_json(r#"{"model_type": "gpt2"}"#).unwrap_err().to_string();
        assert!(error.contains("gpt2") && error.contains("supported: llama, mistral"), "{error}");
    }

    /// As in microsoft/Phi-3-mini-4k-instruct.
    #[test]
    fn phi3_may_name_the_code_that_it_came_with() {
        let parse = |class: &str| {
            let phi3 = SIZES.replace("llama", "phi3");
            BackboneConfig::from_json(&format!(r#"{{{phi3}, "auto_map": {{"AutoModelForCausalLM": "{class}"}}}}"#))
        };
        parse("modeling_phi3.Phi3ForCausalLM").unwrap();
        parse("modeling_other.Phi3ForCausalLM").unwrap_err();
    }

    #[test]
    fn a_list_of_end_tokens_gives_its_first() {
        assert_eq!(parse(r#", "eos_token_id": [7, 8]"#).unwrap().empty_token, Some(7));
    }
}
