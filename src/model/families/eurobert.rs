//! EuroBERT: Llama's layers without a causal mask, and a head of two layers whose logits are the mean of those of all
//! tokens.

use anyhow::{Result, bail, ensure};

use super::file::ConfigFile;
use super::llama::{self, Defaults, decoder};
use crate::model::config::{BackboneConfig, DenseConfig, HeadConfig, Pooling};
use crate::ops::activation::Activation;

static DEFAULTS: Defaults = Defaults {
    hidden_size: 768,
    intermediate_size: 3072,
    layers: 12,
    heads: 12,
    vocab_size: 128_256,
    max_positions: 8192,
    epsilon: 1e-5,
    tokens: [Some(128_000), Some(128_001)],
    padding: Some(128_001),
    ..llama::DEFAULTS
};

pub(super) fn read(file: &ConfigFile) -> Result<BackboneConfig> {
    decoder(file, &DEFAULTS, |config, layers| {
        let has_bias = file.flag("attention_bias", false)?;
        layers.query_key_value_bias = has_bias;
        layers.output_bias = has_bias;
        layers.mlp_bias = file.flag("mlp_bias", false)?;
        layers.is_causal = false;
        config.padding_token = file.token("pad_token_id", DEFAULTS.padding);
        // Only the code on the Hub has it.
        file.refuse_unless("hidden_dropout", &[0.0.into(), 0.into()])?;
        config.head = HeadConfig {
            pooling: pooling(file)?,
            input_dropout: 0.0,
            dense: Some(DenseConfig {
                name: "dense",
                is_of_base: false,
                has_bias: true,
                std: config.initializer_range,
                activation: Activation::Gelu,
                norm: None,
            }),
            dropout: 0.0,
            classifier: "classifier",
            has_bias: true,
            classifier_std: config.initializer_range,
            cutoff: None,
            modules_to_save: &["dense"],
        };
        Ok(())
    })
}

fn pooling(file: &ConfigFile) -> Result<Pooling> {
    let given = file.text("classifier_pooling")?.unwrap_or("late");
    // The key of the code on the Hub, which transformers passes over.
    let former = file.text("clf_pooling")?.unwrap_or(given);
    ensure!(
        former == given,
        "`clf_pooling` is {former}, and transformers pools {given}: write `classifier_pooling` into the file"
    );
    match given {
        "late" => Ok(Pooling::Late),
        "mean" => Ok(Pooling::Mean),
        "bos" => Ok(Pooling::First),
        other => bail!("classifier_pooling `{other}` is not supported; supported: late, mean, bos"),
    }
}
