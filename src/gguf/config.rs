//! `config.json` of a GGUF file's metadata.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::header::Header;
use super::names::Architecture;

/// Context of pretraining of Llama 3's rotary embedding, and the bounds between its frequencies.
const LLAMA3: (f64, f64, f64) = (8192.0, 1.0, 4.0);

pub(super) fn of(file: &Header, architecture: Architecture) -> Result<Value> {
    let model_type = match architecture {
        Architecture::Gemma3 => "gemma3_text",
        other => other.key(),
    };
    for key in ["expert_count", "leading_dense_block_count"] {
        let key = architecture.own(key);
        ensure!(file.count(&key)?.unwrap_or(0) == 0, "`{key}`: mixtures of experts are not computed");
    }
    let head_dim = architecture.head_dim(file)?;
    let rotated = file.count(&architecture.own("rope.dimension_count"))?.unwrap_or(head_dim);
    ensure!(rotated == head_dim, "{rotated} of heads of {head_dim} are rotated, which is not read from GGUF");
    let heads = architecture.need(file, "attention.head_count")?;
    let epsilon = architecture.own("attention.layer_norm_rms_epsilon");
    let embedding = file.content.tensor_infos.get("token_embd.weight").context("it has no `token_embd.weight`")?;
    let mut config = json!({
        "model_type": model_type,
        "hidden_size": architecture.need(file, "embedding_length")?,
        "intermediate_size": architecture.need(file, "feed_forward_length")?,
        "num_hidden_layers": architecture.need(file, "block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": file.count(&architecture.own("attention.head_count_kv"))?.unwrap_or(heads),
        "head_dim": head_dim,
        "vocab_size": embedding.shape.dims().first().copied().unwrap_or(0),
        "max_position_embeddings": architecture.need(file, "context_length")?,
        "rms_norm_eps": file.float(&epsilon)?.with_context(|| format!("it has no `{epsilon}`"))?,
        "rope_theta": file.float(&architecture.own("rope.freq_base"))?.unwrap_or(10_000.0),
        "rope_scaling": scaling(file, architecture, head_dim)?,
        "bos_token_id": file.count("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": file.count("tokenizer.ggml.eos_token_id")?,
        "pad_token_id": file.count("tokenizer.ggml.padding_token_id")?,
        "tie_word_embeddings": !file.content.tensor_infos.contains_key("output.weight"),
    });
    let has_bias = file.content.tensor_infos.contains_key("blk.0.attn_q.bias");
    match architecture {
        Architecture::Llama => config["attention_bias"] = has_bias.into(),
        Architecture::Qwen2 | Architecture::Qwen3 => {}
        Architecture::Gemma3 => {
            let window = architecture.own("attention.sliding_window");
            config["sliding_window"] = file.count(&window)?.with_context(|| format!("it has no `{window}`"))?.into();
            // As llama.cpp: the model of 27 billion alone has another scale than its heads' width.
            let is_27b = architecture.need(file, "block_count")? == 62;
            config["query_pre_attn_scalar"] =
                if is_27b { architecture.need(file, "embedding_length")? / heads } else { head_dim }.into();
        }
    }
    Ok(config)
}

/// How the rotary embedding is stretched.
fn scaling(file: &Header, architecture: Architecture, head_dim: usize) -> Result<Value> {
    let (kind, factor) = (architecture.own("rope.scaling.type"), architecture.own("rope.scaling.factor"));
    let known = match file.text(&kind)? {
        None | Some("none" | "") => Value::Null,
        Some("linear") => {
            let factor = file.float(&factor)?.with_context(|| format!("it has no `{factor}`"))?;
            json!({"rope_type": "linear", "factor": factor})
        }
        Some(other) => bail!("`{kind}` is {other}, which is not computed"),
    };
    if !file.content.tensor_infos.contains_key("rope_freqs.weight") {
        return Ok(known);
    }
    ensure!(known.is_null(), "it has both `{kind}` and rope_freqs.weight");
    llama3(file, architecture, head_dim)
}

/// Llama 3's scaling, of which the file has what frequencies are divided by.
fn llama3(file: &Header, architecture: Architecture, head_dim: usize) -> Result<Value> {
    let info = &file.content.tensor_infos["rope_freqs.weight"];
    ensure!(info.shape.elem_count() == head_dim / 2, "rope_freqs.weight has {} numbers", info.shape.elem_count());
    let mut reader = std::io::BufReader::new(std::fs::File::open(&file.path)?);
    let tensor = info.read(&mut reader, file.content.tensor_data_offset, &candle_core::Device::Cpu)?;
    let factors: Vec<f32> = tensor.dequantize(&candle_core::Device::Cpu)?.to_vec1()?;
    let (original, low, high) = LLAMA3;
    let factor = factors.iter().copied().fold(1.0, f32::max);
    let theta = f64::from(file.float(&architecture.own("rope.freq_base"))?.unwrap_or(10_000.0));
    let is_llama3 = factors.iter().enumerate().all(|(i, &stored)| {
        let wavelength = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / head_dim as f64);
        let smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        let expected = 1.0 / ((1.0 - smooth) / f64::from(factor) + smooth);
        (f64::from(stored) - expected).abs() <= 1e-3 * expected
    });
    ensure!(is_llama3, "rope_freqs.weight is not the scaling of Llama 3, and others are not read");
    Ok(json!({
        "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }))
}
