//! DeBERTa-v2 and v3: BERT with attention to distances (He et al., 2021), which takes the place of positions.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::bert::{self, Defaults, encoder};
use super::file::ConfigFile;
use crate::model::config::{BackboneConfig, Disentangled, PostNormNames, Projection, RelativeConfig};
use crate::ops::activation::Activation;

static NAMES: PostNormNames = PostNormNames {
    query_key_value: ["attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"],
    ..bert::NAMES
};

static DEFAULTS: Defaults = Defaults {
    vocab_size: 128_100,
    hidden_size: 1536,
    intermediate_size: 6144,
    layers: 24,
    heads: 24,
    token_types: 0,
    epsilon: 1e-7,
    ..bert::DEFAULTS
};

pub(super) fn read(file: &ConfigFile) -> Result<BackboneConfig> {
    encoder(file, &DEFAULTS, |config, layers| {
        file.refuse_unless("conv_kernel_size", &[0.into()])?;
        file.refuse_unless("attention_head_size", &[config.head_dim.into()])?;
        file.refuse_unless("pooler_hidden_size", &[config.hidden_size.into()])?;
        config.prefix = "deberta.";
        layers.names = &NAMES;
        let positions = file.size("max_position_embeddings", 512)?;
        if !file.flag("position_biased_input", true)? {
            layers.embeddings.positions = None;
            config.max_tokens = None;
        }
        let width = file.size("embedding_size", config.hidden_size)?;
        layers.embeddings.width = width;
        if width != config.hidden_size {
            let projection = Projection { name: "embeddings.embed_proj", has_bias: false, is_before_norm: true };
            layers.embeddings.projection = Some(projection);
        }
        let kinds = kinds(file)?;
        let terms = 1 + kinds.iter().filter(|is_there| **is_there).count();
        layers.scale = ((config.head_dim * terms) as f32).sqrt().recip();
        if kinds != [false; 2] && file.flag("relative_attention", false)? {
            layers.relative = Some(RelativeConfig::Disentangled(disentangled(file, kinds, positions)?));
        }
        let head = &mut config.head;
        head.input_dropout = file.float("pooler_dropout", 0.0)?;
        head.dropout = file.float("cls_dropout", config.dropouts.embedding.into())?;
        head.modules_to_save = &["pooler"];
        if let Some(dense) = &mut head.dense {
            dense.is_of_base = false;
            dense.activation = file.activation("pooler_hidden_act", Activation::Gelu)?;
        }
        Ok(())
    })
}

/// Whether there are scores from contents to positions, and from positions to contents.
fn kinds(file: &ConfigFile) -> Result<[bool; 2]> {
    let names: Vec<String> = match file.value("pos_att_type") {
        None => Vec::new(),
        Some(Value::String(names)) => names.to_lowercase().split('|').map(|name| name.trim().to_owned()).collect(),
        Some(Value::Array(names)) => names.iter().map(|name| name.as_str().unwrap_or("?").to_owned()).collect(),
        Some(other) => bail!("`pos_att_type` is {other}, expected a list"),
    };
    for name in names.iter().filter(|name| !name.is_empty()) {
        ensure!(["c2p", "p2c"].contains(&name.as_str()), "`pos_att_type` names {name}; supported: c2p, p2c");
    }
    Ok(["c2p", "p2c"].map(|kind| names.iter().any(|name| name == kind)))
}

fn disentangled(file: &ConfigFile, [to_positions, to_contents]: [bool; 2], positions: usize) -> Result<Disentangled> {
    // 0 and −1 stand for what is absent.
    let count = |key: &str| -> Result<Option<usize>> {
        let Some(number) = file.optional_number(key)? else { return Ok(None) };
        ensure!(number.fract() == 0.0 && number <= 1e9, "`{key}` is {number}, expected a count");
        Ok(Some(number as usize).filter(|_| number >= 1.0))
    };
    let norms = file.text("norm_rel_ebd")?.unwrap_or("none").to_lowercase();
    let is_normed = norms.split('|').any(|name| name.trim() == "layer_norm");
    Ok(Disentangled {
        table: "encoder.rel_embeddings",
        norm: is_normed.then_some("encoder.LayerNorm"),
        buckets: count("position_buckets")?.unwrap_or(0),
        reach: count("max_relative_positions")?.unwrap_or(positions),
        keys: to_positions.then_some("attention.self.pos_key_proj"),
        queries: to_contents.then_some("attention.self.pos_query_proj"),
        is_shared: file.flag("share_att_key", false).context("`share_att_key`")?,
    })
}
