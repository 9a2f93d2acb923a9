//! A pretrained decoder as it was trained: tokens to the logits of the token that comes next.
//!
//! ```text
//! h = norm(layers(tokens))[last]          (B, D)
//! y = cap · tanh(E h / divisor / cap)     (B, V); divisor for Granite, cap for Gemma, neither for others
//! ```
//! E is the table of embeddings, or `lm_head`. It is never stored in 4 bits, as in transformers.

use anyhow::{Context, Result, bail, ensure};

use super::builder::Builder;
use super::config::{BackboneConfig, LanguageHeadConfig, LayersConfig};
use super::key_values::{Extension, KeyValues, Next};
use super::layers;
use super::lora::LoraOptions;
use super::pre_norm::PreNorm;
use super::weights::{BaseStorage, Weights};
use crate::kernels::buffer::elements;
use crate::kernels::device::Device;
use crate::kernels::matrix::FrozenMatrix;

/// A frozen decoder and its head for words.
pub struct LanguageModel {
    layers: PreNorm,
    head: FrozenMatrix,
    config: LanguageHeadConfig,
}

/// The logits of the next token of some texts.
#[derive(Clone, Debug)]
pub struct NextLogits {
    logits: Vec<f32>,
    vocabulary: usize,
}

impl NextLogits {
    /// Those of each text, V values.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.logits.chunks_exact(self.vocabulary)
    }
}

impl LanguageModel {
    /// Builds the model.
    ///
    /// # Errors
    /// If the model is no decoder, or its files lack a weight, such as the head.
    pub fn new(config: &BackboneConfig, weights: &Weights, storage: BaseStorage, device: &Device) -> Result<Self> {
        let (Some(head), LayersConfig::PreNorm(shape)) = (config.language_head, &config.layers) else {
            bail!("it is an encoder, without a language-model head; name a decoder, such as SmolLM2 or Qwen 3");
        };
        let lora = LoraOptions::none();
        let names = (config.prefix, layers::embedding(config));
        let mut builder = Builder::new(weights, names, storage, &lora, device);
        let name = match head.is_tied {
            true => builder.prefixed(&format!("{}.weight", names.1)),
            false => "lm_head.weight".to_owned(),
        };
        let classifier = format!("{}.weight", config.head.classifier);
        ensure!(
            !weights.has(&classifier),
            "it is a classifier, with a tensor `{classifier}`, and not the language model that it was made from; name that"
        );
        ensure!(
            head.is_tied || weights.has(&name),
            "there is no tensor `lm_head.weight`: these weights were saved without the language-model head, as those of a \
             classifier or of a bare base are; name the model that they were made from"
        );
        let layers = PreNorm::new(&mut builder, config, shape, false)?;
        let storage = BaseStorage { is_4bit: false, ..storage };
        let matrix = weights.matrix(&name, config.vocab_size, config.hidden_size, storage)?;
        Ok(Self { layers, head: device.hold(matrix)?, config: head })
    }

    /// V
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.head.rows()
    }

    /// Goes on with texts: the logits of the token after each, and the texts with their next tokens.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary, or a text has none.
    pub fn extend(&self, texts: &[Next<'_>]) -> Result<(NextLogits, Vec<KeyValues>)> {
        let (logits, kept) = self.pass(texts, true)?;
        Ok((logits, kept))
    }

    /// The logits of the token after each text, of which nothing is kept.
    ///
    /// # Errors
    /// As [`LanguageModel::extend`].
    pub fn next(&self, texts: &[Next<'_>]) -> Result<NextLogits> {
        self.pass(texts, false).map(|(logits, _)| logits)
    }

    fn pass(&self, texts: &[Next<'_>], keeps: bool) -> Result<(NextLogits, Vec<KeyValues>)> {
        ensure!(
            !texts.is_empty() && texts.iter().all(|text| !text.token_ids.is_empty()),
            "a text without a next token"
        );
        let mut extension = Extension::new(texts, keeps);
        let hidden = self.layers.extend(&mut extension)?;
        let product = self.head.product(hidden.tensor(), None)?;
        let mut logits = elements(&product)?.to_vec();
        self.shape_logits(&mut logits);
        let vocabulary = self.vocabulary();
        let bad = logits.iter().position(|logit| !logit.is_finite());
        if let Some(at) = bad {
            return Err(anyhow::anyhow!("the logit of token {} is {}", at % vocabulary, logits[at]))
                .context("a weight of the model is too large, or the text overflows model.torch_dtype");
        }
        Ok((NextLogits { logits, vocabulary }, extension.into_kept()))
    }

    fn shape_logits(&self, logits: &mut [f32]) {
        let LanguageHeadConfig { divisor, soft_cap, .. } = self.config;
        if divisor != 1.0 {
            logits.iter_mut().for_each(|logit| *logit /= divisor);
        }
        if let Some(cap) = soft_cap {
            logits.iter_mut().for_each(|logit| *logit = (*logit / cap).tanh() * cap);
        }
    }
}
