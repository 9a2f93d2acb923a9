//! `config.json` of a pretrained model, as transformers 4 and 5 write it.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

/// What a decoder is made of. Field names are those of `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// D
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// H
    pub num_attention_heads: usize,
    /// K
    pub num_key_value_heads: usize,
    /// d
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence that the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// ε of every norm.
    pub rms_norm_eps: f32,
    /// Whether q, k and v have biases.
    pub query_key_value_bias: bool,
    /// Whether o has a bias.
    pub output_bias: bool,
    /// Whether each head's q and k are normalised (Qwen3).
    pub has_query_key_norm: bool,
    /// For each layer how many tokens a token sees, itself included; none: all before it.
    pub windows: Vec<Option<usize>>,
    /// Whether gate, up and down have biases.
    pub mlp_bias: bool,
    /// Deviation of random weights and of the `score` head.
    pub initializer_range: f32,
    /// Rotary frequencies.
    pub rope: Rope,
    /// Begin-of-text token, if the model names one.
    pub bos_token_id: Option<u32>,
    /// End-of-text token, if the model names one.
    pub eos_token_id: Option<u32>,
}

/// Rotary frequencies, `θ^(−2i/d)`, and how they are stretched.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// θ
    pub theta: f64,
    /// For contexts longer than those of pretraining.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3: low frequencies divided, high ones kept, those between blended.
    Llama3 {
        /// Divides low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Context length of pretraining, in tokens.
        original_max_position_embeddings: f64,
    },
}

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
    rms_norm_eps: Option<f32>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    mlp_bias: Option<bool>,
    initializer_range: Option<f32>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Scaling>,
    rope_parameters: Option<Scaling>,
    bos_token_id: Option<Value>,
    eos_token_id: Option<Value>,
    auto_map: Option<Value>,
    quantization_config: Option<Value>,
}

#[derive(Deserialize)]
struct Scaling {
    // transformers 4 had `type` first and `rope_type` later; files with both hold the same in both.
    rope_type: Option<String>,
    r#type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

/// The architectures that llmcls computes.
pub const SUPPORTED: &[&str] = &["llama", "mistral", "qwen2", "qwen3"];

impl DecoderConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// If it is not valid, or asks for something that llmcls does not compute.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
        Self::from_json(&text).with_context(|| format!("{}: not a usable model configuration", path.display()))
    }

    fn from_json(text: &str) -> Result<Self> {
        let model_type = serde_json::from_str::<Value>(text)?["model_type"].as_str().map(str::to_owned);
        let model_type = match model_type {
            Some(name) if SUPPORTED.contains(&name.as_str()) => name,
            Some(name) => bail!("model_type `{name}` is not supported; supported: {}", SUPPORTED.join(", ")),
            None => bail!("no model_type; supported: {}", SUPPORTED.join(", ")),
        };
        let file: File = serde_json::from_str(text)?;
        ensure!(file.auto_map.is_none(), "`auto_map` asks for custom code, which llmcls does not run");
        if let Some(quantization) = &file.quantization_config {
            check_quantization(quantization)?;
        }
        let activation = file.hidden_act.as_deref().unwrap_or("silu");
        ensure!(activation == "silu", "hidden_act `{activation}` is not supported; supported: silu");
        for (key, size, largest) in [
            ("hidden_size", file.hidden_size, 1 << 20),
            ("intermediate_size", file.intermediate_size, 1 << 22),
            ("num_hidden_layers", file.num_hidden_layers, 1 << 12),
            ("num_attention_heads", file.num_attention_heads, 1 << 16),
            ("num_key_value_heads", file.num_key_value_heads.unwrap_or(1), 1 << 16),
            ("head_dim", file.head_dim.unwrap_or(2), 1 << 16),
            ("vocab_size", file.vocab_size, 1 << 26),
        ] {
            ensure!((1..=largest).contains(&size), "{key} is {size}, expected 1 to {largest}");
        }
        let heads = file.num_attention_heads;
        let head_dim = match file.head_dim {
            Some(head_dim) => head_dim,
            None => {
                ensure!(
                    file.hidden_size.is_multiple_of(heads),
                    "hidden_size {} is not a multiple of num_attention_heads {heads}",
                    file.hidden_size
                );
                file.hidden_size / heads
            }
        };
        let key_value_heads = file.num_key_value_heads.unwrap_or(heads);
        ensure!(
            key_value_heads > 0 && heads.is_multiple_of(key_value_heads),
            "num_attention_heads {heads} is not a multiple of num_key_value_heads {key_value_heads}"
        );
        ensure!(head_dim > 0 && head_dim.is_multiple_of(2), "head_dim {head_dim} is not even");
        let max_position_embeddings = file.max_position_embeddings.unwrap_or(2048);
        Ok(Self {
            hidden_size: file.hidden_size,
            intermediate_size: file.intermediate_size,
            num_hidden_layers: file.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: key_value_heads,
            head_dim,
            vocab_size: file.vocab_size,
            max_position_embeddings,
            rms_norm_eps: file.rms_norm_eps.unwrap_or(1e-6),
            query_key_value_bias: model_type == "qwen2" || file.attention_bias.unwrap_or(false),
            output_bias: model_type != "qwen2" && file.attention_bias.unwrap_or(false),
            has_query_key_norm: model_type == "qwen3",
            windows: windows(&file, &model_type)?,
            mlp_bias: file.mlp_bias.unwrap_or(false),
            initializer_range: file.initializer_range.unwrap_or(0.02),
            rope: Rope::from_parts(file.rope_theta, file.rope_parameters.or(file.rope_scaling))?,
            bos_token_id: file.bos_token_id.as_ref().and_then(first_id),
            eos_token_id: file.eos_token_id.as_ref().and_then(first_id),
        })
    }
}

impl Rope {
    fn from_parts(theta: Option<f64>, scaling: Option<Scaling>) -> Result<Self> {
        let theta = scaling.as_ref().and_then(|s| s.rope_theta).or(theta).unwrap_or(10_000.0);
        let Some(scaling) = scaling else {
            return Ok(Self { theta, scaling: RopeScaling::None });
        };
        let need = |value: Option<f64>, key: &str| value.with_context(|| format!("rope scaling lacks `{key}`"));
        let scaling = match scaling.rope_type.or(scaling.r#type).as_deref() {
            None | Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear { factor: need(scaling.factor, "factor")? },
            Some("llama3") => RopeScaling::Llama3 {
                factor: need(scaling.factor, "factor")?,
                low_freq_factor: need(scaling.low_freq_factor, "low_freq_factor")?,
                high_freq_factor: need(scaling.high_freq_factor, "high_freq_factor")?,
                original_max_position_embeddings: need(
                    scaling.original_max_position_embeddings,
                    "original_max_position_embeddings",
                )?,
            },
            Some(other) => bail!("rope type `{other}` is not supported; supported: default, linear, llama3"),
        };
        Ok(Self { theta, scaling })
    }

    /// The d/2 frequencies for heads of width `head_dim`.
    #[must_use]
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|i| {
                let frequency = self.theta.powf(-2.0 * i as f64 / head_dim as f64);
                self.scaling.apply(frequency) as f32
            })
            .collect()
    }
}

impl RopeScaling {
    fn apply(&self, frequency: f64) -> f64 {
        match *self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let wavelength = std::f64::consts::TAU / frequency;
                if wavelength < original_max_position_embeddings / high_freq_factor {
                    frequency
                } else if wavelength > original_max_position_embeddings / low_freq_factor {
                    frequency / factor
                } else {
                    let turns = original_max_position_embeddings / wavelength;
                    let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}

/// Each layer's window: of all layers for Mistral; for Qwen only where it is switched on, and there of
/// the layers that `layer_types` or `max_window_layers` name.
fn windows(file: &File, model_type: &str) -> Result<Vec<Option<usize>>> {
    let layers = file.num_hidden_layers;
    let is_used = model_type == "mistral" || model_type.starts_with("qwen") && file.use_sliding_window == Some(true);
    let Some(window) = file.sliding_window.filter(|_| is_used) else { return Ok(vec![None; layers]) };
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
    let first = if model_type == "mistral" { 0 } else { file.max_window_layers.unwrap_or(28) };
    Ok((0..layers).map(|layer| (layer >= first).then_some(window)).collect())
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

    fn parse(more: &str) -> Result<DecoderConfig> {
        DecoderConfig::from_json(&format!("{{{SIZES}{more}}}"))
    }

    #[test]
    fn both_spellings_of_rope_mean_the_same() {
        let llama3 = r#""rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64"#;
        let old = parse(&format!(r#", "rope_theta": 500000.0, "rope_scaling": {{{llama3}}}"#)).unwrap();
        let new = parse(&format!(r#", "rope_parameters": {{"rope_theta": 500000.0, {llama3}}}, "pad_token_id": null"#));
        assert_eq!(old, new.unwrap());
        assert_ne!(old.rope, parse("").unwrap().rope);
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for (more, name) in [
            (r#", "hidden_act": "gelu""#, "gelu"),
            (r#", "rope_scaling": {"type": "yarn", "factor": 2.0}"#, "yarn"),
            (r#", "auto_map": {"AutoModel": "x.py"}"#, "auto_map"),
            (r#", "num_key_value_heads": 4"#, "num_key_value_heads 4"),
            (r#", "quantization_config": {"quant_method": "gptq"}"#, "gptq"),
        ] {
            let error = parse(more).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        let error = DecoderConfig::from_json(r#"{"model_type": "gpt2"}"#).unwrap_err().to_string();
        assert!(error.contains("gpt2") && error.contains("supported: llama, mistral"), "{error}");
    }

    #[test]
    fn a_list_of_end_tokens_gives_its_first() {
        assert_eq!(parse(r#", "eos_token_id": [7, 8]"#).unwrap().eos_token_id, Some(7));
    }
}
