//! A frozen transformer, its adapters and its head: token ids to logits, `(B, L)`.

use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;

use super::batch::Batch;
use super::builder::{BaseSize, Builder, Initial};
use super::config::{BackboneConfig, LayersConfig, Pooling};
use super::embeddings;
use super::head::Head;
use super::lora::LoraOptions;
use super::post_norm::PostNorm;
use super::pre_norm::PreNorm;
use super::weights::{BaseStorage, Weights};
use crate::config::model::ProblemType;
use crate::kernels::buffer::modify;
use crate::kernels::device::Device;
use crate::ops::loss::{BceWeights, bce_with_logits, cross_entropy};
use crate::ops::rows::mean_rows;
use crate::ops::tape::{Param, Tape, Value};
use crate::ops::to_host::to_host;
use crate::rng::{Purpose, Stream};

/// What the labels of an example are to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Independent: sigmoid and binary cross-entropy.
    MultiLabel,
    /// Exactly one holds: softmax and cross-entropy.
    SingleLabel,
}

impl From<ProblemType> for Problem {
    fn from(problem_type: ProblemType) -> Self {
        match problem_type {
            ProblemType::MultiLabel => Self::MultiLabel,
            ProblemType::SingleLabel => Self::SingleLabel,
        }
    }
}

/// How a classifier is built.
#[derive(Clone, Debug)]
pub struct ClassifierOptions {
    /// L
    pub labels: usize,
    /// Rows of the base's own classifier that the labels go on from, one a label; none: fresh numbers.
    pub base_rows: Option<Vec<usize>>,
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
    /// Where the base and its adapters are, and compute.
    pub device: Device,
}

/// A frozen base, its adapters and its head.
pub struct Classifier {
    layers: Layers,
    pooling: Pooling,
    head: Head,
    classifier_name: &'static str,
    params: Vec<Rc<Param>>,
    initial: Vec<Initial>,
    modules: Vec<String>,
    base: BaseSize,
    problem: Problem,
    weights: BceWeights,
}

enum Layers {
    PreNorm(Box<PreNorm>),
    PostNorm(Box<PostNorm>),
}

impl Classifier {
    /// Builds the model. Its parameters are zero until [`Classifier::initialize`] or
    /// [`Classifier::set`].
    ///
    /// # Errors
    /// If a weight is missing or of another shape, or no module is a LoRA target.
    pub fn new(config: &BackboneConfig, weights: &Weights, options: &ClassifierOptions) -> Result<Self> {
        let embedding = match &config.layers {
            LayersConfig::PreNorm(layers) => layers.names.embedding,
            LayersConfig::PostNorm(_) => embeddings::WORDS,
        };
        let mut builder =
            Builder::new(weights, (config.prefix, embedding), options.storage, &options.lora, &options.device);
        let layers = match &config.layers {
            LayersConfig::PreNorm(layers) => {
                Layers::PreNorm(Box::new(PreNorm::new(&mut builder, config, layers, options.recompute)?))
            }
            LayersConfig::PostNorm(layers) => {
                Layers::PostNorm(Box::new(PostNorm::new(&mut builder, config, layers, options.recompute)?))
            }
        };
        // A few rows: not worth a GPU.
        builder.device = Device::cpu();
        let head = Head::new(&mut builder, config, options.labels, options.base_rows.as_deref())?;
        options.lora.check(&builder.modules)?;
        Ok(Self {
            layers,
            pooling: config.head.pooling,
            head,
            classifier_name: config.head.classifier,
            params: builder.params,
            initial: builder.initial,
            modules: builder.modules,
            base: builder.size,
            problem: options.problem,
            weights: options.weights.clone(),
        })
    }

    /// The trained parameters, in order: a parameter's index is its random site.
    #[must_use]
    pub fn params(&self) -> &[Rc<Param>] {
        &self.params
    }

    /// The frozen part, counted.
    #[must_use]
    pub fn base(&self) -> BaseSize {
        self.base
    }

    /// Names of the base's linear modules.
    #[must_use]
    pub fn modules(&self) -> &[String] {
        &self.modules
    }

    /// The name of the last layer, whose rows are the labels'.
    #[must_use]
    pub fn classifier_name(&self) -> &'static str {
        self.classifier_name
    }

    /// The numbers that the base brings for a parameter of the head.
    #[must_use]
    pub fn base_values(&self, index: usize) -> Option<&[f32]> {
        match self.initial.get(index) {
            Some(Initial::Values(values)) => Some(values),
            _ => None,
        }
    }

    /// Modules beside the adapters that peft must save whole.
    #[must_use]
    pub fn modules_to_save(&self) -> &[String] {
        &self.head.modules_to_save
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
    /// B = 0, weights of the head ~ N(0, σ) with the σ and the cutoff of its family, biases 0, norms 1; modules of
    /// the head that the base brings start from the base's.
    ///
    /// # Errors
    /// If a tensor cannot be written.
    pub fn initialize(&self, seed: u32) -> Result<()> {
        for ((site, param), initial) in (0..).zip(&self.params).zip(&self.initial) {
            let stream = Stream::new(seed, site, 0, Purpose::Trainable);
            modify(param.value(), |values| match *initial {
                Initial::Uniform(bound) => stream.uniform(0, bound, values),
                Initial::Normal { std, cutoff: None } => stream.normal(0, std, values),
                Initial::Normal { std, cutoff: Some(cutoff) } => stream.truncated_normal(std, cutoff * std, values),
                Initial::Constant(value) => values.fill(value),
                Initial::Values(ref base) => values.copy_from_slice(base),
            })?;
            param.clear_gradient();
        }
        Ok(())
    }

    /// Sets every parameter, in the order of [`Classifier::params`].
    ///
    /// # Errors
    /// If a number is not finite, or a parameter has another count of numbers.
    pub fn set(&self, values: &[Vec<f32>]) -> Result<()> {
        ensure!(values.len() == self.params.len(), "{} values for {} parameters", values.len(), self.params.len());
        for (param, data) in self.params.iter().zip(values) {
            let name = param.name();
            ensure!(data.iter().all(|x| x.is_finite()), "tensor `{name}` holds numbers that are not finite");
            ensure!(data.len() == param.value().elem_count(), "tensor `{name}` has {} numbers", data.len());
        }
        for (param, data) in self.params.iter().zip(values) {
            modify(param.value(), |values| values.copy_from_slice(data))?;
        }
        Ok(())
    }

    /// Logits, `(B, L)`.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary.
    pub fn logits(&self, tape: &Tape, batch: &Batch) -> Result<Value> {
        let pooled = batch.pooled(self.pooling);
        let mut x = match &self.layers {
            Layers::PreNorm(layers) => layers.forward(tape, batch, pooled.as_ref())?,
            Layers::PostNorm(layers) => layers.forward(tape, batch, pooled.as_ref())?,
        };
        x = to_host(tape, x)?;
        if pooled.is_none() {
            x = mean_rows(tape, &x, &batch.sequences.offsets)?;
        }
        Ok(self.head.forward(tape, x)?)
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
