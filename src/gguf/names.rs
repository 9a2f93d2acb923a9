//! Architectures of GGUF files, and their tensors' names in transformers.

use anyhow::{Context, Result, bail, ensure};

use super::blocks::Layout;
use super::header::Header;

/// An architecture that is mapped back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    /// Llama, Mistral, SmolLM2.
    Llama,
    Qwen2,
    Qwen3,
    Gemma3,
}

const ARCHITECTURES: [(&str, Architecture); 4] = [
    ("llama", Architecture::Llama),
    ("qwen2", Architecture::Qwen2),
    ("qwen3", Architecture::Qwen3),
    ("gemma3", Architecture::Gemma3),
];

impl Architecture {
    pub(super) fn of(name: &str) -> Result<Self> {
        let found = ARCHITECTURES.iter().find(|(known, _)| *known == name).map(|(_, architecture)| *architecture);
        found.with_context(|| {
            let known: Vec<&str> = ARCHITECTURES.iter().map(|(name, _)| *name).collect();
            format!(
                "`general.architecture` is {name}, which is not read from GGUF; read are {}; use the directory with \
                 safetensors in its place",
                known.join(", ")
            )
        })
    }

    /// Its name, with which its keys begin.
    pub(super) fn key(self) -> &'static str {
        ARCHITECTURES.iter().find(|(_, architecture)| *architecture == self).map_or("", |(name, _)| name)
    }

    /// A key of this architecture.
    pub(super) fn own(self, key: &str) -> String {
        format!("{}.{key}", self.key())
    }

    /// A count that every file of it has.
    pub(super) fn need(self, file: &Header, key: &str) -> Result<usize> {
        let key = self.own(key);
        file.count(&key)?.with_context(|| format!("it has no `{key}`"))
    }

    /// The width of a head.
    pub(super) fn head_dim(self, file: &Header) -> Result<usize> {
        let heads = self.need(file, "attention.head_count")?;
        ensure!(heads > 0, "`{}` is 0", self.own("attention.head_count"));
        let usual = self.need(file, "embedding_length")? / heads;
        let head_dim = file.count(&self.own("attention.key_length"))?.unwrap_or(usual);
        ensure!(head_dim > 1 && head_dim.is_multiple_of(2), "heads of {head_dim}, expected an even number");
        Ok(head_dim)
    }

    /// A tensor's name in transformers, and what was changed in it; none for what is in `config.json` there.
    pub(super) fn name_of(self, stored: &str, file: &Header) -> Result<Option<(String, Layout)>> {
        let (module, ending) = stored.rsplit_once('.').context("it is unknown")?;
        let norm = if self == Self::Gemma3 { Layout::FromOne } else { Layout::Same };
        let (name, layout) = match module {
            "token_embd" => ("embed_tokens".to_owned(), Layout::Same),
            "output_norm" => ("norm".to_owned(), norm),
            "output" => return Ok(Some((format!("lm_head.{ending}"), Layout::Same))),
            // What `config` makes a scaling of.
            "rope_freqs" => return Ok(None),
            _ => {
                let (layer, part) =
                    module.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).context("it is unknown")?;
                let (part, layout) = self.part(part, norm, file)?;
                (format!("layers.{layer}.{part}"), layout)
            }
        };
        ensure!(["weight", "bias"].contains(&ending), "it is unknown");
        Ok(Some((format!("model.{name}.{ending}"), layout)))
    }

    fn part(self, part: &str, norm: Layout, file: &Header) -> Result<(&'static str, Layout)> {
        // llama.cpp rotates neighbours in models of this architecture, halves in the others.
        let rotated = match self {
            Self::Llama => Layout::Interleaved { head_dim: self.head_dim(file)? },
            _ => Layout::Same,
        };
        let is_gemma = self == Self::Gemma3;
        Ok(match part {
            "attn_norm" => ("input_layernorm", norm),
            "attn_q" => ("self_attn.q_proj", rotated),
            "attn_k" => ("self_attn.k_proj", rotated),
            "attn_v" => ("self_attn.v_proj", Layout::Same),
            "attn_output" => ("self_attn.o_proj", Layout::Same),
            "ffn_gate" => ("mlp.gate_proj", Layout::Same),
            "ffn_up" => ("mlp.up_proj", Layout::Same),
            "ffn_down" => ("mlp.down_proj", Layout::Same),
            "ffn_norm" if is_gemma => ("pre_feedforward_layernorm", norm),
            "ffn_norm" => ("post_attention_layernorm", norm),
            "attn_q_norm" if is_gemma || self == Self::Qwen3 => ("self_attn.q_norm", norm),
            "attn_k_norm" if is_gemma || self == Self::Qwen3 => ("self_attn.k_norm", norm),
            "post_attention_norm" if is_gemma => ("post_attention_layernorm", norm),
            "post_ffw_norm" if is_gemma => ("post_feedforward_layernorm", norm),
            _ => bail!("it is unknown in models of the architecture {}", self.key()),
        })
    }
}
