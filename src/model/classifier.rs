//! A frozen transformer, its adapters and its head: token ids to logits, `(B, L)`.

use std::cell::Cell;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;

use super::batch::{Batch, Pooled};
use super::builder::{BaseSize, Builder, Initial};
use super::config::{BackboneConfig, Pooling};
use super::frozen::Frozen;
use super::head::Head;
use super::held::HeldWeights;
use super::layers::{self, Layers};
use super::lora::LoraOptions;
use super::modules::Embedding;
use super::quantization::{Maxima, Quantization};
use super::weights::{BaseStorage, Weights};
use crate::config::data::WindowPooling;
use crate::config::model::ProblemType;
use crate::kernels::buffer::modify;
use crate::kernels::device::Device;
use crate::ops::adapter_routing::{Group, Routing, SharedAdapters};
use crate::ops::lora_linear::LoraLinear;
use crate::ops::loss::{BceWeights, bce_with_logits, cross_entropy};
use crate::ops::rows::{max_rows, mean_rows};
use crate::ops::tape::{Param, Tape, Value};
use crate::ops::to_host::to_host;
use crate::rng::{Purpose, Stream};

/// The relation between the labels of an example.
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

/// Options of a classifier.
#[derive(Clone, Debug)]
pub struct ClassifierOptions {
    /// L
    pub labels: usize,
    /// Rows of the base's own classifier from which the labels start, one a label; `None`: random numbers.
    pub base_rows: Option<Vec<usize>>,
    /// The relation between labels.
    pub problem: Problem,
    /// Storage of the base.
    pub storage: BaseStorage,
    /// The adapters.
    pub lora: LoraOptions,
    /// Weights of the terms of the training loss.
    pub weights: BceWeights,
    /// Keep one input a layer and compute the rest again in the backward.
    pub recompute: bool,
    /// Where the base and its adapters are, and compute.
    pub device: Device,
    /// How linear modules are built, for predicting.
    pub quantization: Quantization,
}

/// A frozen base, its adapters and its head.
pub struct Classifier {
    layers: Rc<Layers>,
    /// Its adapters, if the layers are shared with other classifiers and so hold none.
    shared: Option<(Rc<Routing>, SharedAdapters)>,
    pooling: Pooling,
    head: Head,
    classifier_name: &'static str,
    params: Vec<Rc<Param>>,
    first_of_head: usize,
    initial: Vec<Initial>,
    modules: Vec<String>,
    frozen: Vec<Frozen>,
    linears: Vec<(String, Rc<LoraLinear>)>,
    lora: LoraOptions,
    base: BaseSize,
    labels: usize,
    problem: Problem,
    weights: BceWeights,
    layer_count: usize,
    width: usize,
    drops_in_frozen: bool,
    temperature: Cell<f32>,
    window_pooling: Cell<WindowPooling>,
    device: Device,
}

impl Classifier {
    /// Builds the model. Its parameters are zero until [`Classifier::initialize`] or
    /// [`Classifier::set`].
    ///
    /// # Errors
    /// If a weight is missing or of another shape, or no module is a LoRA target.
    pub fn new(config: &BackboneConfig, weights: &Weights, options: &ClassifierOptions) -> Result<Self> {
        Self::on(config, (weights, None), options)
    }

    /// As [`Classifier::new`], with frozen matrices that other classifiers on the same base share.
    ///
    /// # Errors
    /// As [`Classifier::new`].
    pub fn on(
        config: &BackboneConfig,
        (weights, held): (&Weights, Option<&HeldWeights>),
        options: &ClassifierOptions,
    ) -> Result<Self> {
        let names = (config.prefix, layers::embedding(config));
        let mut builder = Builder::new(weights, names, options.storage, &options.lora, &options.device);
        builder.quantization = options.quantization.clone();
        builder.held = held;
        let layers = Rc::new(Layers::new(&mut builder, config, options.recompute)?);
        Self::with_head(builder, config, options, (layers, None))
    }

    /// Adds the head to layers whose modules and adapters `builder` has made.
    pub(super) fn with_head(
        mut builder: Builder<'_>,
        config: &BackboneConfig,
        options: &ClassifierOptions,
        (layers, shared): (Rc<Layers>, Option<(Rc<Routing>, SharedAdapters)>),
    ) -> Result<Self> {
        let (frozen, dropouts) = (layers.frozen_layers(), config.dropouts);
        let inside = [dropouts.attention, dropouts.attention_output, dropouts.inside_mlp, dropouts.mlp_output];
        // A few rows: not worth a GPU.
        builder.device = Device::cpu();
        let first_of_head = builder.params.len();
        let head = Head::new(&mut builder, config, options.labels, options.base_rows.as_deref())?;
        options.lora.check(&builder.modules)?;
        Ok(Self {
            layers,
            shared,
            pooling: config.head.pooling,
            head,
            classifier_name: config.head.classifier,
            params: builder.params,
            first_of_head,
            initial: builder.initial,
            modules: builder.modules,
            frozen: builder.frozen,
            linears: builder.linears,
            lora: options.lora.clone(),
            base: builder.size,
            labels: options.labels,
            problem: options.problem,
            weights: options.weights.clone(),
            layer_count: config.computed_layers(),
            width: config.hidden_size,
            drops_in_frozen: dropouts.embedding > 0.0 || frozen > 0 && inside.iter().any(|&p| p > 0.0),
            temperature: Cell::new(1.0),
            window_pooling: Cell::new(WindowPooling::Mean),
            device: options.device.clone(),
        })
    }

    /// What logits are divided by before they become probabilities.
    #[must_use]
    pub fn temperature(&self) -> f32 {
        self.temperature.get()
    }

    /// Sets what logits are divided by before they become probabilities. The loss is that of the logits themselves.
    pub fn set_temperature(&self, temperature: f32) {
        self.temperature.set(temperature);
    }

    /// Says how the logits of an example's windows make one.
    pub fn set_window_pooling(&self, pooling: WindowPooling) {
        self.window_pooling.set(pooling);
    }

    /// Logits of examples, `(B, L)`, from those of their windows; the logits themselves if `windows` is none.
    pub fn pool_windows(&self, tape: &Tape, logits: Value, windows: Option<&[usize]>) -> Result<Value> {
        Ok(match (windows, self.window_pooling.get()) {
            (None, _) => logits,
            (Some(starts), WindowPooling::Mean) => mean_rows(tape, &logits, starts)?,
            (Some(starts), WindowPooling::Max) => max_rows(tape, &logits, starts)?,
        })
    }

    /// Where the model computes.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The trained parameters, in order: a parameter's index is its random site.
    #[must_use]
    pub fn params(&self) -> &[Rc<Param>] {
        &self.params
    }

    /// The number of the first parameter that is the head's; the others follow.
    #[must_use]
    pub fn first_of_head(&self) -> usize {
        self.first_of_head
    }

    /// Changes the weights of the terms of the training loss.
    pub fn set_loss_weights(&mut self, weights: BceWeights) {
        self.weights = weights;
    }

    /// Sizes of the frozen part.
    #[must_use]
    pub fn base(&self) -> BaseSize {
        self.base
    }

    /// Layers of the base.
    #[must_use]
    pub fn layer_count(&self) -> usize {
        self.layer_count
    }

    /// Layers before the first with an adapter: their outputs for a text never change. Layers that are shared count
    /// all, wherever their adapters are.
    #[must_use]
    pub fn frozen_layers(&self) -> usize {
        self.layers.frozen_layers()
    }

    /// Whether only the head is trained.
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.frozen_layers() == self.layer_count
    }

    /// Whether [`Classifier::frozen_output`] has a row for each token, not for each sequence.
    #[must_use]
    pub fn keeps_tokens(&self) -> bool {
        !self.is_probe() || self.pooling == Pooling::Late
    }

    /// Whether the frozen layers drop elements in training, so that their outputs differ each time.
    #[must_use]
    pub fn drops_in_frozen(&self) -> bool {
        self.drops_in_frozen
    }

    /// D
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Names of the base's linear modules.
    #[must_use]
    pub fn modules(&self) -> &[String] {
        &self.modules
    }

    /// The largest inputs of every linear module, after batches went through a classifier that observes them.
    #[must_use]
    pub fn maxima(&self) -> Maxima {
        let of = |linear: &LoraLinear| linear.weight.maxima().unwrap_or_default();
        self.linears.iter().map(|(module, linear)| (module.clone(), of(linear))).collect()
    }

    /// Packs the frozen weights once for training. Linear modules before the first adapter stay as they are: gradients do
    /// not reach them.
    pub fn pack_weights(&self) {
        for (_, linear) in self.linears.iter().skip_while(|(_, linear)| linear.adapter.is_none()) {
            linear.weight.pack_both_ways();
        }
    }

    /// The linear modules, unless they are trained.
    pub(super) fn linears(&self) -> &[(String, Rc<LoraLinear>)] {
        &self.linears
    }

    /// The base's tensors.
    pub(super) fn frozen(&self) -> &[Frozen] {
        &self.frozen
    }

    /// The factor of the product of a module's adapter.
    pub(super) fn scaling_of(&self, module: &str) -> Option<f32> {
        self.lora.shape_of(module).map(|shape| shape.scaling as f32)
    }

    /// The name of the last layer, whose rows are the labels'.
    #[must_use]
    pub fn classifier_name(&self) -> &'static str {
        self.classifier_name
    }

    /// The base's numbers for a parameter of the head, if it has them.
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

    /// How many labels there are.
    #[must_use]
    pub fn labels(&self) -> usize {
        self.labels
    }

    /// The relation between labels.
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
    /// the head that the base contains start from the base's.
    pub fn initialize(&self, seed: u32) -> Result<()> {
        for ((site, param), initial) in (0..).zip(&self.params).zip(&self.initial) {
            let stream = Stream::new(seed, site, 0, Purpose::Trainable);
            modify(param.value(), |values| match *initial {
                Initial::Uniform(bound) => stream.uniform(0, bound, values),
                Initial::Normal { std, cutoff: None } => stream.normal(0, std, values),
                Initial::Normal { std, cutoff: Some(cutoff) } => stream.truncated_normal(std, cutoff * std, values),
                Initial::Constant(value) => values.fill(value),
                Initial::Values(ref base) => values.copy_from_slice(base),
                Initial::Matrix(ref base) => {
                    base.read(0, values);
                    base.release();
                }
            })?;
            param.clear_gradient();
        }
        Ok(())
    }

    /// Sets every parameter to the number that the base's files have for it.
    ///
    /// # Errors
    /// Names the first parameter that they do not have.
    pub fn set_to_base(&self) -> Result<()> {
        let of_base = |(index, param): (usize, &Rc<Param>)| {
            let values = self.base_values(index).map(<[f32]>::to_vec);
            values.with_context(|| format!("there is no tensor `{}` for these labels", param.name()))
        };
        let values = self.params.iter().enumerate().map(of_base).collect::<Result<Vec<_>>>()?;
        self.set(&values)
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
        if self.shared.is_some() {
            ensure!(!tape.is_recording(), "a classifier on a shared base cannot be trained");
            let mut logits = Self::logits_of_several(&[(self, batch.len())], batch)?;
            return self.pool_windows(tape, logits.pop().context("no logits")?, batch.windows.as_deref());
        }
        let Some(frozen) = &batch.frozen else { return self.logits_of(tape, &self.embed(tape, batch)?, batch) };
        let x = match self.is_probe() {
            true => Value::constant(frozen.clone()),
            false => {
                let x = Value::constant(self.device.put(frozen.clone())?);
                self.after_frozen(tape, x, batch, batch.pooled(self.pooling).as_ref())?
            }
        };
        self.logits_of_head(tape, x, batch)
    }

    /// Logits, `(B, L)`, from the head's input.
    fn logits_of_head(&self, tape: &Tape, x: Value, batch: &Batch) -> Result<Value> {
        let logits = self.head.forward(tape, x, &batch.sequences.offsets)?;
        self.pool_windows(tape, logits, batch.windows.as_deref())
    }

    /// The frozen layers' output for a batch, on the CPU: each token's hidden state, `(N, D)`; or the input of the head,
    /// mostly `(B, D)`, if only the head is trained. On the CPU a sequence's rows are the same bytes in any batch.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary.
    pub fn frozen_output(&self, batch: &Batch) -> Result<Tensor> {
        let (tape, pooled) = (Tape::off(), batch.pooled(self.pooling));
        let x = self.layers.frozen(&tape, &self.embed(&tape, batch)?, batch, pooled.as_ref())?;
        let x = match self.is_probe() {
            true => self.after_frozen(&tape, x, batch, pooled.as_ref())?,
            false => to_host(&tape, x)?,
        };
        Ok(x.tensor().clone())
    }

    /// The head's input, `(B, D)`, or with [`Pooling::Late`] `(N, D)`, from the frozen layers' output.
    fn after_frozen(&self, tape: &Tape, x: Value, batch: &Batch, pooled: Option<&Rc<Pooled>>) -> Result<Value> {
        let x = to_host(tape, self.layers.trained(tape, x, batch, pooled)?)?;
        match pooled {
            Some(_) => Ok(x),
            None if self.pooling == Pooling::Late => Ok(x),
            None => Ok(mean_rows(tape, &x, &batch.sequences.offsets)?),
        }
    }

    /// The embedded tokens, `(N, D)`.
    pub(super) fn embed(&self, tape: &Tape, batch: &Batch) -> Result<Value> {
        self.layers.embed(tape, batch)
    }

    /// The table of token embeddings, and what its rows are multiplied by.
    pub(super) fn words(&self) -> (&Embedding, f32) {
        self.layers.words()
    }

    /// Logits, `(B, L)`, of tokens that are embedded already.
    pub(super) fn logits_of(&self, tape: &Tape, embedded: &Value, batch: &Batch) -> Result<Value> {
        let x = match &self.shared {
            None => self.pooled(tape, embedded, batch)?,
            Some((routing, adapters)) => {
                let (tokens, sequences) = (0..batch.token_ids.len(), 0..batch.len());
                let group = Group { adapters: Rc::clone(adapters), tokens, sequences };
                routing.with(vec![group], || self.pooled(tape, embedded, batch))?
            }
        };
        self.logits_of_head(tape, x, batch)
    }

    /// Logits of classifiers that share their layers, `(rows, L)` each, a row for each sequence: the batch has rows of the first, then of the
    /// second and so on.
    ///
    /// # Errors
    /// If the classifiers do not share their layers, or as [`Classifier::logits`].
    pub fn logits_of_several(parts: &[(&Self, usize)], batch: &Batch) -> Result<Vec<Value>> {
        let offsets = &batch.sequences.offsets;
        let (mut groups, mut first) = (Vec::new(), 0);
        for (classifier, rows) in parts {
            let sequences = first..first + rows;
            ensure!(sequences.end <= batch.len(), "a batch of {} for {} rows", batch.len(), sequences.end);
            let (_, adapters) = classifier.shared.as_ref().context("a classifier of its own in a mixed batch")?;
            let tokens = offsets[sequences.start]..offsets[sequences.end];
            groups.push(Group { adapters: Rc::clone(adapters), tokens, sequences });
            first += rows;
        }
        let Some((model, _)) = parts.first() else { return Ok(Vec::new()) };
        ensure!(
            parts.iter().all(|(other, _)| Rc::ptr_eq(&model.layers, &other.layers)),
            "classifiers of several bases"
        );
        if parts.len() > 1 && !model.layers.can_mix() {
            return Self::logits_one_by_one(parts, batch);
        }
        let (routing, _) = model.shared.as_ref().context("a classifier of its own in a mixed batch")?;
        let tape = Tape::off();
        let x = routing.with(groups, || model.pooled(&tape, &model.embed(&tape, batch)?, batch))?;
        let mut first = 0;
        parts
            .iter()
            .map(|(classifier, rows)| {
                let starts = &offsets[first..=first + rows];
                let (from, count) = match classifier.pooling {
                    Pooling::Late => (starts[0], starts[*rows] - starts[0]),
                    _ => (first, *rows),
                };
                let own = Value::constant(x.tensor().narrow(0, from, count)?);
                first += rows;
                let starts: Vec<usize> = starts.iter().map(|start| start - starts[0]).collect();
                Ok(classifier.head.forward(&tape, own, &starts)?)
            })
            .collect()
    }

    /// The same, a batch for each classifier.
    fn logits_one_by_one(parts: &[(&Self, usize)], batch: &Batch) -> Result<Vec<Value>> {
        let (mut logits, mut first) = (Vec::with_capacity(parts.len()), 0);
        for (classifier, rows) in parts {
            logits.extend(Self::logits_of_several(&[(classifier, *rows)], &batch.part(first..first + rows)?)?);
            first += rows;
        }
        Ok(logits)
    }

    /// The head's input of each sequence, `(B, D)`, or with [`Pooling::Late`] of each token, `(N, D)`.
    fn pooled(&self, tape: &Tape, embedded: &Value, batch: &Batch) -> Result<Value> {
        let pooled = batch.pooled(self.pooling);
        let x = self.layers.frozen(tape, embedded, batch, pooled.as_ref())?;
        self.after_frozen(tape, x, batch, pooled.as_ref())
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
            Problem::SingleLabel => cross_entropy(tape, logits, labels, weights.smoothing),
        }
        .context("the loss cannot be computed")
    }
}
