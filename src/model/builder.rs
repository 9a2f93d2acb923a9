//! Builds models: frozen modules by the names of their weights, adapters, norms.

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Result, bail, ensure};

use super::config::NormKind;
use super::frozen::{Frozen, FrozenKind};
use super::held::HeldWeights;
use super::lora::{AdapterShape, LoraOptions};
use super::modules::{Embedding, Linear, Norm};
use super::quantization::Quantization;
use super::weights::{BaseStorage, Precision, Weights};
use crate::kernels::constant::Constant;
use crate::kernels::device::Device;
use crate::kernels::matrix::FrozenMatrix;
use crate::ops::adapter_routing::{Routing, Slot};
use crate::ops::dropout::Dropout;
use crate::ops::layer_norm::LayerNorm;
use crate::ops::lora_linear::{Adapter, LoraLinear};
use crate::ops::rms_norm::RmsNorm;
use crate::ops::tape::Param;

/// A trained parameter's value at the start of training.
#[derive(Clone, Debug)]
pub(super) enum Initial {
    /// U(±bound)
    Uniform(f32),
    /// N(0, std), within `cutoff` deviations if there is one.
    Normal { std: f32, cutoff: Option<f32> },
    /// All the same.
    Constant(f32),
    /// Those of the base.
    Values(Vec<f32>),
    /// Those of the base, left in its file.
    Matrix(Rc<FrozenMatrix>),
}

/// Hands out modules while a model is built, in the order of its state dict.
pub(super) struct Builder<'a> {
    weights: &'a Weights,
    /// Frozen matrices that other classifiers on this base share.
    pub(super) held: Option<&'a HeldWeights>,
    /// Prefix of a base's names in the weights' files.
    prefix: &'static str,
    /// Prefix of a base's names in a classifier, which peft's names have.
    root: &'static str,
    storage: BaseStorage,
    lora: &'a LoraOptions,
    /// Where modules that are asked for next are to be.
    pub(super) device: Device,
    pub(super) params: Vec<Rc<Param>>,
    pub(super) initial: Vec<Initial>,
    /// Names of the linear modules of the base, and their outputs and inputs.
    pub(super) modules: Vec<String>,
    pub(super) shapes: Vec<(usize, usize)>,
    /// Where layers find the adapters of several classifiers, if these share the base.
    pub(super) routing: Option<Rc<Routing>>,
    /// How linear modules are built.
    pub(super) quantization: Quantization,
    /// The linear modules, unless they are trained.
    pub(super) linears: Vec<(String, Rc<LoraLinear>)>,
    /// Tensors of the base, in the order in which they were taken.
    pub(super) frozen: Vec<Frozen>,
    pub(super) size: BaseSize,
    dropouts: u32,
    /// Bytes of the trained parameters so far, and of the memory for them.
    trained_bytes: u64,
    memory: Option<u64>,
}

/// The frozen part of a model, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BaseSize {
    /// Number of frozen weights, embeddings included.
    pub parameters: usize,
    /// Size in bytes.
    pub bytes: usize,
    /// Bytes of the embeddings, contained in `bytes`.
    pub embedding_bytes: usize,
}

impl<'a> Builder<'a> {
    /// `embedding` names the token embeddings, which shows whether names in the files have
    /// their prefix: base models are saved without it.
    pub(super) fn new(
        weights: &'a Weights,
        (root, embedding): (&'static str, &str),
        storage: BaseStorage,
        lora: &'a LoraOptions,
        device: &Device,
    ) -> Self {
        let prefix = if weights.has(&format!("{embedding}.weight")) { "" } else { root };
        weights.restart();
        Self {
            weights,
            held: None,
            prefix,
            root,
            storage,
            lora,
            device: device.clone(),
            params: Vec::new(),
            initial: Vec::new(),
            modules: Vec::new(),
            shapes: Vec::new(),
            routing: None,
            quantization: Quantization::Off,
            linears: Vec::new(),
            frozen: Vec::new(),
            size: BaseSize::default(),
            dropouts: 0,
            trained_bytes: 0,
            memory: device.memory().map(|limits| limits.total),
        }
    }

    /// Returns true if the files have a module's weight, by its name in the files. Random weights have all.
    pub(super) fn has(&self, stored: &str) -> bool {
        matches!(self.weights, Weights::Random { .. }) || self.weights.has(&format!("{stored}.weight"))
    }

    /// Numbers of a module of the head that the files have, by their name in the files.
    pub(super) fn stored(&self, name: &str, (rows, columns): (usize, usize)) -> Result<Option<Vec<f32>>> {
        if !self.weights.has(name) {
            return Ok(None);
        }
        if columns == 1 {
            return self.weights.norm(name, rows).map(Some);
        }
        let storage = BaseStorage { precision: Precision::Float32, is_4bit: false };
        let mut numbers = vec![0.0; rows * columns];
        self.weights.matrix(name, rows, columns, storage)?.read(0, &mut numbers);
        Ok(Some(numbers))
    }

    /// The numbers that training starts from: the base's if the files have them, else `fresh` ones.
    pub(super) fn initial(&self, name: &str, shape: (usize, usize), fresh: Initial) -> Result<Initial> {
        Ok(self.stored(name, shape)?.map_or(fresh, Initial::Values))
    }

    /// Tells if an adapter lists modules that are saved whole, and if this is one.
    pub(super) fn saves_whole(&self, module: &str) -> Option<bool> {
        self.lora.saves_whole(module)
    }

    /// Returns true if a module gets an adapter.
    pub(super) fn is_target(&self, module: &str) -> bool {
        self.lora.shape_of(module).is_some()
    }

    /// A linear layer of the base: frozen, with an adapter if it is a target, or trained.
    pub(super) fn linear(&mut self, module: &str, outputs: usize, inputs: usize, has_bias: bool) -> Result<Linear> {
        self.linear_named(&self.prefixed(module), self.rooted(module), outputs, inputs, has_bias)
    }

    /// Builds a linear layer as [`Builder::linear`] does, with the module's names in the files and in a classifier.
    pub(super) fn linear_named(
        &mut self,
        stored: &str,
        module: String,
        outputs: usize,
        inputs: usize,
        has_bias: bool,
    ) -> Result<Linear> {
        let bias = self.weights.bias(&format!("{stored}.bias"), outputs, has_bias)?;
        if self.trains_all() {
            let weight = self.matrix(&format!("{stored}.weight"), (outputs, inputs), self.storage)?;
            self.modules.push(module.clone());
            let weight = self.param(format!("{module}.weight"), (outputs, inputs), Initial::Matrix(Rc::new(weight)))?;
            let bias = bias.map(|bias| self.vector(format!("{module}.bias"), outputs, Initial::Values(bias)));
            return Ok(Linear::Trained { weight, bias: bias.transpose()? });
        }
        self.took_matrix(stored, &module, (outputs, inputs), true);
        if bias.is_some() {
            self.took(format!("{stored}.bias"), format!("{module}.bias"), FrozenKind::Bias { len: outputs });
        }
        let name = format!("{stored}.weight");
        let weight = self.frozen_matrix(&name, self.storage, (outputs, inputs), |weight| self.prepared(weight))?;
        self.count(&weight);
        self.count_floats(bias.as_ref());
        let adapter = self.adapter(&module, outputs, inputs)?;
        let slot = self.routing.as_ref().map(|routing| Slot { routing: Rc::clone(routing), index: self.modules.len() });
        let linear =
            Rc::new(LoraLinear { weight, bias: bias.map(Constant::from), adapter, slot, merged: OnceCell::new() });
        self.linears.push((module.clone(), Rc::clone(&linear)));
        self.modules.push(module);
        self.shapes.push((outputs, inputs));
        Ok(Linear::Frozen(linear))
    }

    /// A frozen matrix of the base: one that is held already, or one that `prepare` makes of what is read.
    fn frozen_matrix(
        &self,
        name: &str,
        storage: BaseStorage,
        (rows, columns): (usize, usize),
        prepare: impl FnOnce(FrozenMatrix) -> Result<FrozenMatrix>,
    ) -> Result<Arc<FrozenMatrix>> {
        let read = || prepare(self.matrix(name, (rows, columns), storage)?);
        // What is observed or merged is one classifier's own.
        match self.held.filter(|_| matches!(self.quantization, Quantization::Off)) {
            Some(held) => held.matrix(name, self.weights, read),
            None => Ok(Arc::new(read()?)),
        }
    }

    /// The matrix of a linear module where it computes. What is merged into another is not packed.
    fn prepared(&self, weight: FrozenMatrix) -> Result<FrozenMatrix> {
        let is_merged = matches!(self.quantization, Quantization::Int8(_));
        let mut weight = if is_merged { weight } else { self.device.hold(weight)? };
        if matches!(self.quantization, Quantization::Observe) {
            weight.observe();
        }
        Ok(weight)
    }

    /// A matrix of the base. What is trained is read from its file once, and needs no other form of it.
    fn matrix(&self, name: &str, (rows, columns): (usize, usize), storage: BaseStorage) -> Result<FrozenMatrix> {
        let storage = match self.trains_all() {
            true => BaseStorage { precision: self.weights.precision(name), is_4bit: false },
            false => storage,
        };
        self.weights.matrix(name, rows, columns, storage)
    }

    /// Returns true if every weight of the base is trained.
    pub(super) fn trains_all(&self) -> bool {
        self.lora.trains_base
    }

    /// The adapter of a linear layer, if it is a target.
    pub(super) fn adapter(&mut self, module: &str, outputs: usize, inputs: usize) -> Result<Option<Adapter>> {
        let Some(AdapterShape { rank, scaling, .. }) = self.lora.shape_of(module) else { return Ok(None) };
        let site = self.params.len() as u32;
        // peft's Kaiming uniform with a = √5.
        let bound = Initial::Uniform(1.0 / (inputs as f32).sqrt());
        Ok(Some(Adapter {
            a: self.param(format!("{module}.lora_A.weight"), (rank, inputs), bound)?,
            b: self.param(format!("{module}.lora_B.weight"), (outputs, rank), Initial::Constant(0.0))?,
            scaling: scaling as f32,
            dropout: self.lora.dropout as f32,
            site,
        }))
    }

    /// A table of embeddings. Row `padding` is never trained.
    pub(super) fn embedding(
        &mut self,
        module: &str,
        rows: usize,
        width: usize,
        padding: Option<u32>,
    ) -> Result<Embedding> {
        let storage = BaseStorage { is_4bit: false, ..self.storage };
        let stored = self.prefixed(module);
        if self.trains_all() {
            let table = self.matrix(&format!("{stored}.weight"), (rows, width), storage)?;
            let name = format!("{}.weight", self.rooted(module));
            let table = self.param(name, (rows, width), Initial::Matrix(Rc::new(table)))?;
            return Ok(Embedding::Trained { table, padding });
        }
        let table = self.frozen_matrix(&format!("{stored}.weight"), storage, (rows, width), Ok)?;
        self.took_matrix(&stored, &self.rooted(module), (rows, width), false);
        self.count(&table);
        self.size.embedding_bytes += table.bytes();
        Ok(Embedding::Frozen(table))
    }

    /// A frozen norm.
    pub(super) fn norm(&mut self, module: &str, width: usize, kind: NormKind, epsilon: f32) -> Result<Norm> {
        let name = format!("{}{module}", self.prefix);
        // Checkpoints from TensorFlow call them so still.
        let has_old_names = self.weights.has(&format!("{name}.gamma"));
        let [weight, bias] = if has_old_names { ["gamma", "beta"] } else { ["weight", "bias"] };
        let (stored_weight, stored_bias) = (format!("{name}.{weight}"), format!("{name}.{bias}"));
        let mut weight = self.weights.norm(&stored_weight, width)?;
        let rooted = self.rooted(module);
        if self.trains_all() {
            let NormKind::Layer { has_bias } = kind else { bail!("{name}: only layer norms are trained") };
            let bias = self.weights.bias(&stored_bias, width, has_bias)?;
            let weight = self.vector(format!("{rooted}.weight"), width, Initial::Values(weight))?;
            let bias = bias.map(|bias| self.vector(format!("{rooted}.bias"), width, Initial::Values(bias)));
            return Ok(Norm::Trained { weight, bias: bias.transpose()?, epsilon });
        }
        self.count_floats(Some(&weight));
        let is_from_one = kind == NormKind::RmsFromOne;
        self.took(stored_weight, format!("{rooted}.weight"), FrozenKind::Scale { len: width, is_from_one });
        Ok(match kind {
            NormKind::Layer { has_bias } => {
                let bias = self.weights.bias(&stored_bias, width, has_bias)?;
                if has_bias {
                    self.took(stored_bias, format!("{rooted}.bias"), FrozenKind::Bias { len: width });
                }
                self.count_floats(bias.as_ref());
                Norm::Layer(Rc::new(LayerNorm { weight: weight.into(), bias: bias.map(Constant::from), epsilon }))
            }
            NormKind::Rms => Norm::Rms(Rc::new(RmsNorm { weight: weight.into(), epsilon })),
            NormKind::RmsFromOne => {
                if !matches!(self.weights, Weights::Random { .. }) {
                    weight.iter_mut().for_each(|weight| *weight += 1.0);
                }
                Norm::Rms(Rc::new(RmsNorm { weight: weight.into(), epsilon }))
            }
        })
    }

    /// Builds layers; returns them, and how many come before the first with a trained parameter.
    pub(super) fn layers<T>(
        &mut self,
        count: usize,
        mut build: impl FnMut(&mut Self, usize) -> Result<T>,
    ) -> Result<(Vec<T>, usize)> {
        let (mut layers, mut frozen) = (Vec::with_capacity(count), 0);
        for index in 0..count {
            layers.push(build(self, index)?);
            if self.params.is_empty() {
                frozen = layers.len();
            }
        }
        Ok((layers, frozen))
    }

    /// A site where the base drops elements with probability `p`.
    pub(super) fn dropout(&mut self, p: f32) -> Dropout {
        self.dropouts += 1;
        Dropout { p, site: self.dropouts - 1 }
    }

    /// A trained parameter.
    ///
    /// # Errors
    /// If the trained numbers and their gradients alone are more than the memory that there is: allocating them
    /// would end the program.
    pub(super) fn param(&mut self, name: String, shape: (usize, usize), initial: Initial) -> Result<Rc<Param>> {
        self.trained_bytes += 4 * shape.0 as u64 * shape.1 as u64;
        if let Some(total) = self.memory {
            ensure!(
                2 * self.trained_bytes <= total,
                "{} and their gradients take more than {} bytes, and there are {total}; {}",
                match self.lora.trains_base {
                    true => "model.train is all: the weights".to_owned(),
                    false => format!("model.lora_r is {}: adapters", self.lora.rank),
                },
                2 * self.trained_bytes,
                match self.lora.trains_base {
                    true => "use model.train=lora",
                    false => "lower model.lora_r, or name fewer model.lora_target_modules",
                }
            );
        }
        self.push(Param::new(name, self.device.zeros(shape)?)?, initial)
    }

    /// A trained vector.
    pub(super) fn vector(&mut self, name: String, len: usize, initial: Initial) -> Result<Rc<Param>> {
        self.push(Param::new(name, self.device.zeros(len)?)?, initial)
    }

    fn push(&mut self, param: Rc<Param>, initial: Initial) -> Result<Rc<Param>> {
        self.params.push(Rc::clone(&param));
        self.initial.push(initial);
        Ok(param)
    }

    /// The name of a base's module in the weights' files.
    pub(super) fn prefixed(&self, module: &str) -> String {
        format!("{}{module}", self.prefix)
    }

    /// The name of a base's module in a classifier.
    pub(super) fn rooted(&self, module: &str) -> String {
        format!("{}{module}", self.root)
    }

    fn took_matrix(&mut self, stored: &str, module: &str, (rows, columns): (usize, usize), is_linear: bool) {
        let is_matrix = |frozen: &&Frozen| matches!(frozen.kind, FrozenKind::Matrix { .. });
        let made = self.frozen.iter().filter(is_matrix).count() as u32;
        let kind = FrozenKind::Matrix { rows, columns, is_linear, made };
        self.took(format!("{stored}.weight"), format!("{module}.weight"), kind);
    }

    fn took(&mut self, stored: String, name: String, kind: FrozenKind) {
        self.frozen.push(Frozen { stored, name, kind });
    }

    fn count(&mut self, matrix: &FrozenMatrix) {
        self.size.parameters += matrix.rows() * matrix.columns();
        self.size.bytes += matrix.bytes();
    }

    fn count_floats(&mut self, floats: Option<&Vec<f32>>) {
        let len = floats.map_or(0, Vec::len);
        self.size.parameters += len;
        self.size.bytes += 4 * len;
    }
}
