//! Models computed in another way than their family's are: other tokens pooled, attention to both sides.

use anyhow::{Result, bail, ensure};

use super::config::{BackboneConfig, LayersConfig, Pooling, PreNormConfig};
use crate::config::model::{AttentionMode, Form, PoolingMode};

impl BackboneConfig {
    /// Has the model computed in a form; returns what differs from its family.
    ///
    /// # Errors
    /// If the model has no such form, or it makes no sense for it.
    pub fn set_form(&mut self, form: Form) -> Result<Form> {
        let attention = self.set_attention(form)?;
        let mut changed = Form { attention, ..Form::default() };
        if attention.is_some() {
            changed.bidirectional_from_layer = form.bidirectional_from_layer.filter(|&layer| layer > 0);
        }
        if let Some(pooling) = form.pooling.filter(|pooling| self.set_pooling(*pooling)) {
            ensure!(
                pooling != PoolingMode::First || self.sees_both_sides(),
                "model.pooling is first, and the first token of a causal model sees no other: use last or mean, or \
                 model.attention=bidirectional"
            );
            changed.pooling = Some(pooling);
        }
        Ok(changed)
    }

    /// Returns true if the pooled tokens are others than the family's.
    fn set_pooling(&mut self, pooling: PoolingMode) -> bool {
        let head = &mut self.head;
        let wanted = match (pooling, head.pooling) {
            (PoolingMode::First, Pooling::First)
            | (PoolingMode::Last, Pooling::Last { .. })
            | (PoolingMode::Mean, Pooling::Mean) => return false,
            (PoolingMode::First, _) => Pooling::First,
            (PoolingMode::Last, _) => Pooling::Last { padding: None },
            (PoolingMode::Mean, _) => Pooling::Mean,
        };
        head.pooling = wanted;
        // The base's own pooler was trained on the token that its family pools.
        head.dense = head.dense.take().filter(|dense| !dense.is_of_base);
        true
    }

    fn set_attention(&mut self, form: Form) -> Result<Option<AttentionMode>> {
        let Some(attention) = form.attention else { return Ok(None) };
        let layers = self.num_hidden_layers;
        let causal: Option<&mut Box<PreNormConfig>> = match &mut self.layers {
            LayersConfig::PreNorm(layers) if layers.is_causal => Some(layers),
            _ => None,
        };
        match (attention, causal) {
            (AttentionMode::Causal, Some(_)) | (AttentionMode::Bidirectional, None) => Ok(None),
            (AttentionMode::Causal, None) => {
                bail!("model.attention is causal, and this model's tokens see both sides: leave the key out")
            }
            (AttentionMode::Bidirectional, Some(config)) => {
                ensure!(
                    config.windows.iter().all(Option::is_none),
                    "model.attention is bidirectional, and this model has layers with a sliding window; that is computed \
                     only for models in which every layer sees all tokens"
                );
                let first = form.bidirectional_from_layer.unwrap_or(0);
                ensure!(
                    first < layers,
                    "model.bidirectional_from_layer is {first}, and the last of the {layers} layers is {}",
                    layers - 1
                );
                config.bidirectional_from = Some(first);
                Ok(Some(attention))
            }
        }
    }

    /// Whether the tokens of the last layer see those behind them.
    fn sees_both_sides(&self) -> bool {
        match &self.layers {
            LayersConfig::PreNorm(layers) => !layers.is_causal || layers.bidirectional_from.is_some(),
            LayersConfig::PostNorm(_) => true,
        }
    }
}
