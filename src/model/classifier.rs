//! A decoder with a `score` head: token ids to logits, `(B, L)`.

use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;

use super::batch::Batch;
use super::config::DecoderConfig;
use super::decoder::{Builder, Decoder};
use super::lora::LoraOptions;
use super::weights::{BaseStorage, Checkpoint, Weights};
use crate::ops::buffer::{modify, tensor};
use crate::ops::linear::linear;
use crate::ops::loss::{BceWeights, bce_with_logits, cross_entropy};
use crate::ops::tape::{Param, Tape, Value};
use crate::rng::{Purpose, Stream};

/// What the labels of an example are to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Independent: sigmoid and binary cross-entropy.
    MultiLabel,
    /// Exactly one holds: softmax and cross-entropy.
    SingleLabel,
}

/// How a classifier is built.
#[derive(Clone, Debug)]
pub struct ClassifierOptions {
    /// L
    pub labels: usize,
    /// What the labels are to each other.
    pub problem: Problem,
    /// How the base is held.
    pub storage: BaseStorage,
    /// The adapters.
    pub lora: LoraOptions,
    /// How the terms of the training loss are weighted.
    pub weights: BceWeights,
    /// Keep one input a layer and compute the rest again in the backward.
    pub recompute: bool,
}

/// A frozen base, its adapters and its head.
pub struct Classifier {
    decoder: Decoder,
    score: Rc<Param>,
    params: Vec<Rc<Param>>,
    problem: Problem,
    weights: BceWeights,
    initializer_range: f32,
}

impl Classifier {
    /// Builds the model. Its parameters are zero until [`Classifier::initialize`] or
    /// [`Classifier::load`].
    ///
    /// # Errors
    /// If a weight is missing or of another shape, or no module is a LoRA target.
    pub fn new(config: &DecoderConfig, weights: &Weights, options: &ClassifierOptions) -> Result<Self> {
        let mut builder =
            Builder { weights, storage: options.storage, lora: &options.lora, params: Vec::new(), modules: Vec::new() };
        let decoder = Decoder::new(&mut builder, config, options.recompute)?;
        options.lora.targets.check(&builder.modules)?;
        let shape = (options.labels, config.hidden_size);
        let score = Param::new("score.weight", tensor(vec![0.0; shape.0 * shape.1], shape)?)?;
        let mut params = builder.params;
        params.push(Rc::clone(&score));
        Ok(Self {
            decoder,
            score,
            params,
            problem: options.problem,
            weights: options.weights.clone(),
            initializer_range: config.initializer_range,
        })
    }

    /// The trained parameters, in order: a parameter's place is its random site.
    #[must_use]
    pub fn params(&self) -> &[Rc<Param>] {
        &self.params
    }

    /// The frozen part.
    #[must_use]
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// What the labels are to each other.
    #[must_use]
    pub fn problem(&self) -> Problem {
        self.problem
    }

    /// The number of trained numbers.
    #[must_use]
    pub fn trained_parameters(&self) -> usize {
        self.params.iter().map(|param| param.value().elem_count()).sum()
    }

    /// Sets the parameters as training starts: A ~ U(±1/√in) (peft's Kaiming uniform with a = √5),
    /// B = 0, `score` ~ N(0, initializer_range).
    ///
    /// # Errors
    /// If a tensor cannot be written.
    pub fn initialize(&self, seed: u32) -> Result<()> {
        for (site, param) in (0..).zip(&self.params) {
            let stream = Stream::new(seed, site, 0, Purpose::Trainable);
            let inputs = param.value().dim(1)?;
            modify(param.value(), |values| {
                if param.name().contains(".lora_A.") {
                    stream.uniform(0, 1.0 / (inputs as f32).sqrt(), values);
                } else if param.name().contains(".lora_B.") {
                    values.fill(0.0);
                } else {
                    stream.normal(0, self.initializer_range, values);
                }
            })?;
            param.clear_gradient()?;
        }
        Ok(())
    }

    /// Sets every parameter from `tensors`, whose names are `prefix` + the parameter's.
    ///
    /// # Errors
    /// If one is missing or of another shape, holds a number that is not finite, or if a tensor is
    /// left over.
    pub fn load(&self, tensors: &Checkpoint, prefix: &str) -> Result<()> {
        let mut values = Vec::with_capacity(self.params.len());
        for param in &self.params {
            let name = format!("{prefix}{}", param.name());
            let data = tensors.floats(&name, param.value().dims())?;
            ensure!(data.iter().all(|x| x.is_finite()), "tensor `{name}` holds numbers that are not finite");
            values.push(data);
        }
        let known: std::collections::HashSet<String> =
            self.params.iter().map(|param| format!("{prefix}{}", param.name())).collect();
        if let Some(extra) = tensors.names().find(|name| !known.contains(*name)) {
            anyhow::bail!("tensor `{extra}` has no place in this model: another base, or other target modules?");
        }
        for (param, data) in self.params.iter().zip(values) {
            modify(param.value(), |values| values.copy_from_slice(&data))?;
        }
        Ok(())
    }

    /// Logits, `(B, L)`.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary.
    pub fn logits(&self, tape: &Tape, batch: &Batch) -> Result<Value> {
        let pooled = self.decoder.forward(tape, batch)?;
        Ok(linear(tape, &pooled, &self.score)?)
    }

    /// The mean loss of logits, a scalar, without weights: what evaluation reports.
    ///
    /// # Errors
    /// If `labels` has another shape.
    pub fn loss(&self, tape: &Tape, logits: &Value, labels: &Tensor) -> Result<Value> {
        self.weighted_loss(tape, logits, labels, &BceWeights::default())
    }

    /// The mean loss that training lowers, a scalar.
    ///
    /// # Errors
    /// If `labels` has another shape.
    pub fn training_loss(&self, tape: &Tape, logits: &Value, labels: &Tensor) -> Result<Value> {
        self.weighted_loss(tape, logits, labels, &self.weights)
    }

    fn weighted_loss(&self, tape: &Tape, logits: &Value, labels: &Tensor, weights: &BceWeights) -> Result<Value> {
        match self.problem {
            Problem::MultiLabel => bce_with_logits(tape, logits, labels, weights),
            Problem::SingleLabel => cross_entropy(tape, logits, labels),
        }
        .context("the loss cannot be computed")
    }
}
