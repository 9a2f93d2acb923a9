//! Classification heads, as in transformers' `…ForSequenceClassification`.

use anyhow::Result;

use super::builder::{Builder, Initial};
use super::config::{BackboneConfig, DenseConfig, Pooling};
use super::modules::{Linear, Norm};
use crate::ops::activation::{Activation, activate};
use crate::ops::dropout::{Dropout, dropout};
use crate::ops::rows::mean_rows;
use crate::ops::tape::{Tape, Value};

/// `classifier(drop(norm(f(dense(drop(pooled))))))`; see [`super::config::HeadConfig`].
pub(super) struct Head {
    input_dropout: Dropout,
    dense: Option<Dense>,
    /// Whether each token passes through `dense`, and their mean goes on.
    is_late: bool,
    dropout: Dropout,
    classifier: Linear,
    /// Modules that peft must save whole.
    pub(super) modules_to_save: Vec<String>,
}

struct Dense {
    /// Frozen if the base has it.
    layer: Linear,
    activation: Activation,
    norm: Option<Norm>,
}

impl Head {
    /// `base_rows`: rows of the base's own classifier from which the labels start, one a label.
    pub(super) fn new(
        builder: &mut Builder<'_>,
        config: &BackboneConfig,
        labels: usize,
        base_rows: Option<&[usize]>,
    ) -> Result<Self> {
        let head = &config.head;
        let mut modules_to_save: Vec<String> = head.modules_to_save.iter().map(|name| (*name).to_owned()).collect();
        let dense = match &head.dense {
            None => None,
            Some(dense) => {
                let (dense, is_trained) = Dense::new(builder, dense, config.hidden_size, head.cutoff)?;
                // The pooler, if the base lacks it.
                if let (true, Some((module, _))) = (is_trained, dense_of_base(config)) {
                    modules_to_save.push(module.to_owned());
                }
                Some(dense)
            }
        };
        modules_to_save.extend(["classifier", "score"].map(str::to_owned));
        let std = Initial::Normal { std: head.classifier_std, cutoff: head.cutoff };
        let [weight, bias] = match base_rows {
            None => [std, Initial::Constant(0.0)],
            Some(rows) => {
                let count = config.labels.len();
                let pick = |name: &str, width: usize, initial: Initial| -> Result<Initial> {
                    let all = builder.stored(&format!("{}.{name}", head.classifier), (count, width))?;
                    let picked =
                        |all: Vec<f32>| rows.iter().flat_map(|row| all[row * width..][..width].to_vec()).collect();
                    Ok(all.map_or(initial, |all| Initial::Values(picked(all))))
                };
                [pick("weight", config.hidden_size, std)?, pick("bias", 1, Initial::Constant(0.0))?]
            }
        };
        Ok(Self {
            input_dropout: builder.dropout(head.input_dropout),
            dense,
            is_late: head.pooling == Pooling::Late,
            dropout: builder.dropout(head.dropout),
            classifier: trained(builder, head.classifier, (labels, config.hidden_size), head.has_bias, [weight, bias])?,
            modules_to_save,
        })
    }

    /// Pooled hidden states `(B, D)` to logits `(B, L)`; with [`Pooling::Late`] those of all tokens `(N, D)`, whose
    /// sequences start at `offsets`.
    pub(super) fn forward(&self, tape: &Tape, pooled: Value, offsets: &[usize]) -> candle_core::Result<Value> {
        let mut x = dropout(tape, pooled, &self.input_dropout)?;
        if let Some(dense) = &self.dense {
            x = dense.forward(tape, &x)?;
        }
        if self.is_late {
            x = mean_rows(tape, &x, offsets)?;
        }
        let x = dropout(tape, x, &self.dropout)?;
        self.classifier.forward(tape, &x, None)
    }
}

/// The outer module and the inner of a dense layer that belongs to the base.
fn dense_of_base(config: &BackboneConfig) -> Option<(&'static str, &'static str)> {
    let name = config.head.dense.as_ref().filter(|dense| dense.is_of_base)?.name;
    Some(name.split_once('.').unwrap_or((name, name)))
}

impl Dense {
    /// A frozen or trained layer. Training starts from the base's numbers if the base has them.
    fn new(builder: &mut Builder<'_>, config: &DenseConfig, width: usize, cutoff: Option<f32>) -> Result<(Self, bool)> {
        let (stored, name) = match config.is_of_base {
            true => (builder.prefixed(config.name), builder.rooted(config.name)),
            false => (config.name.to_owned(), config.name.to_owned()),
        };
        let is_frozen = match builder.saves_whole(&name) {
            // peft has an adapter in a layer of the base, or nothing.
            Some(is_whole) => !is_whole && builder.has(&stored) && (config.is_of_base || builder.is_target(&name)),
            None => config.is_of_base && builder.has(&stored) && !builder.trains_all(),
        };
        let layer = if is_frozen {
            builder.linear_named(&stored, name, width, width, config.has_bias)?
        } else {
            let weight = builder.initial(
                &format!("{stored}.weight"),
                (width, width),
                Initial::Normal { std: config.std, cutoff },
            )?;
            let bias = builder.initial(&format!("{stored}.bias"), (width, 1), Initial::Constant(0.0))?;
            trained(builder, &name, (width, width), config.has_bias, [weight, bias])?
        };
        let norm = match config.norm {
            None => None,
            Some((name, epsilon, has_bias)) => {
                let weight = builder.initial(&format!("{name}.weight"), (width, 1), Initial::Constant(1.0))?;
                let bias = builder.initial(&format!("{name}.bias"), (width, 1), Initial::Constant(0.0))?;
                Some(Norm::Trained {
                    weight: builder.vector(format!("{name}.weight"), width, weight)?,
                    bias: has_bias.then(|| builder.vector(format!("{name}.bias"), width, bias)).transpose()?,
                    epsilon,
                })
            }
        };
        Ok((Self { layer, activation: config.activation, norm }, !is_frozen))
    }

    fn forward(&self, tape: &Tape, x: &Value) -> candle_core::Result<Value> {
        let y = activate(tape, &self.layer.forward(tape, x, None)?, self.activation)?;
        match &self.norm {
            None => Ok(y),
            Some(norm) => norm.forward(tape, &y),
        }
    }
}

/// A trained linear layer.
fn trained(
    builder: &mut Builder<'_>,
    name: &str,
    shape: (usize, usize),
    has_bias: bool,
    [weight, bias]: [Initial; 2],
) -> Result<Linear> {
    let weight = builder.param(format!("{name}.weight"), shape, weight)?;
    let bias = has_bias.then(|| builder.vector(format!("{name}.bias"), shape.0, bias)).transpose()?;
    Ok(Linear::Trained { weight, bias })
}
