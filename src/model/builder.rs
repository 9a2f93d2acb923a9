//! Builds models: frozen modules by the names of their weights, adapters, norms.

use std::rc::Rc;

use anyhow::{Result, ensure};

use super::config::NormKind;
use super::lora::{AdapterShape, Trains};
use super::modules::{Embedding, Linear, Norm};
use super::weights::{BaseStorage, Precision, Weights};
use crate::kernels::constant::Constant;
use crate::kernels::device::Device;
use crate::kernels::matrix::FrozenMatrix;
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
    /// What stands before a base's names in the weights' files.
    prefix: &'static str,
    /// What stands before them in a classifier: peft's names have it.
    root: &'static str,
    storage: BaseStorage,
    trains: &'a Trains,
    /// Where modules that are asked for next are to be.
    pub(super) device: Device,
    pub(super) params: Vec<Rc<Param>>,
    pub(super) initial: Vec<Initial>,
    /// Names of the linear modules of the base.
    pub(super) modules: Vec<String>,
    pub(super) size: BaseSize,
    dropouts: u32,
    /// Bytes of the trained parameters so far, and of the memory for them.
    trained_bytes: u64,
    memory: Option<u64>,
}

/// The frozen part of a model, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BaseSize {
    /// Frozen numbers, embeddings included.
    pub parameters: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Of these, the embeddings'.
    pub embedding_bytes: usize,
}

impl<'a> Builder<'a> {
    /// `embedding` names the token embeddings, by which it is told whether names in the files have
    /// their prefix: base models are saved without it.
    pub(super) fn new(
        weights: &'a Weights,
        (root, embedding): (&'static str, &str),
        storage: BaseStorage,
        trains: &'a Trains,
        device: &Device,
    ) -> Self {
        let prefix = if weights.has(&format!("{embedding}.weight")) { "" } else { root };
        Self {
            weights,
            prefix,
            root,
            storage,
            trains,
            device: device.clone(),
            params: Vec::new(),
            initial: Vec::new(),
            modules: Vec::new(),
            size: BaseSize::default(),
            dropouts: 0,
            trained_bytes: 0,
            memory: device.memory().map(|limits| limits.total),
        }
    }

    /// Whether the files have a module's weight, by its name in the files. Random weights have all.
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

    /// Whether peft saves a module whole, where an adapter says so.
    pub(super) fn saves_whole(&self, module: &str) -> Option<bool> {
        self.trains.lora().and_then(|lora| lora.saves_whole(module))
    }

    /// Whether a module gets an adapter.
    pub(super) fn is_target(&self, module: &str) -> bool {
        self.trains.lora().is_some_and(|lora| lora.shape_of(module).is_some())
    }

    /// A linear layer of the base: frozen, with an adapter if it is a target, or trained.
    pub(super) fn linear(&mut self, module: &str, outputs: usize, inputs: usize, has_bias: bool) -> Result<Linear> {
        self.linear_named(&self.prefixed(module), self.rooted(module), outputs, inputs, has_bias)
    }

    /// As [`Builder::linear`], with the module's names in the files and in a classifier.
    pub(super) fn linear_named(
        &mut self,
        stored: &str,
        module: String,
        outputs: usize,
        inputs: usize,
        has_bias: bool,
    ) -> Result<Linear> {
        let weights = self.weights;
        let weight = self.matrix(&format!("{stored}.weight"), (outputs, inputs), self.storage)?;
        let bias = weights.bias(&format!("{stored}.bias"), outputs, has_bias)?;
        self.modules.push(module.clone());
        if self.trains_all() {
            let weight = self.param(format!("{module}.weight"), (outputs, inputs), Initial::Matrix(Rc::new(weight)))?;
            let bias = bias.map(|bias| self.vector(format!("{module}.bias"), outputs, Initial::Values(bias)));
            return Ok(Linear::Trained { weight, bias: bias.transpose()? });
        }
        self.count(&weight);
        let weight = self.device.hold(weight)?;
        self.count_floats(bias.as_ref());
        let adapter = self.adapter(&module, outputs, inputs)?;
        Ok(Linear::Frozen(Rc::new(LoraLinear { weight, bias: bias.map(Constant::from), adapter })))
    }

    /// A matrix of the base. What is trained is read from its file once, and needs no other form of it.
    fn matrix(&self, name: &str, (rows, columns): (usize, usize), storage: BaseStorage) -> Result<FrozenMatrix> {
        let storage = match self.trains_all() {
            true => BaseStorage { precision: self.weights.precision(name), is_4bit: false },
            false => storage,
        };
        self.weights.matrix(name, rows, columns, storage)
    }

    fn adapter(&mut self, module: &str, outputs: usize, inputs: usize) -> Result<Option<Adapter>> {
        let Some(lora) = self.trains.lora() else { return Ok(None) };
        let Some(AdapterShape { rank, scaling, .. }) = lora.shape_of(module) else { return Ok(None) };
        let site = self.params.len() as u32;
        // peft's Kaiming uniform with a = √5.
        let bound = Initial::Uniform(1.0 / (inputs as f32).sqrt());
        Ok(Some(Adapter {
            a: self.param(format!("{module}.lora_A.weight"), (rank, inputs), bound)?,
            b: self.param(format!("{module}.lora_B.weight"), (outputs, rank), Initial::Constant(0.0))?,
            scaling: scaling as f32,
            dropout: lora.dropout as f32,
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
        let table = self.matrix(&format!("{}{module}.weight", self.prefix), (rows, width), storage)?;
        if self.trains_all() {
            let name = format!("{}.weight", self.rooted(module));
            let table = self.param(name, (rows, width), Initial::Matrix(Rc::new(table)))?;
            return Ok(Embedding::Trained { table, padding });
        }
        self.count(&table);
        self.size.embedding_bytes += table.bytes();
        Ok(Embedding::Frozen(table))
    }

    /// A norm of the base.
    pub(super) fn norm(&mut self, module: &str, width: usize, kind: NormKind, epsilon: f32) -> Result<Norm> {
        let name = format!("{}{module}", self.prefix);
        // Checkpoints from TensorFlow call them so still.
        let has_old_names = self.weights.has(&format!("{name}.gamma"));
        let [weight, bias] = if has_old_names { ["gamma", "beta"] } else { ["weight", "bias"] };
        let mut weight = self.weights.norm(&format!("{name}.{weight}"), width)?;
        let bias = match kind {
            NormKind::Layer { has_bias } => self.weights.bias(&format!("{name}.{bias}"), width, has_bias)?,
            NormKind::Rms | NormKind::RmsFromOne => None,
        };
        if self.trains_all() {
            ensure!(matches!(kind, NormKind::Layer { .. }), "{name}: only layer norms are trained");
            let root = self.rooted(module);
            let weight = self.vector(format!("{root}.weight"), width, Initial::Values(weight))?;
            let bias = bias.map(|bias| self.vector(format!("{root}.bias"), width, Initial::Values(bias)));
            return Ok(Norm::Trained { weight, bias: bias.transpose()?, epsilon });
        }
        self.count_floats(Some(&weight));
        self.count_floats(bias.as_ref());
        Ok(match kind {
            NormKind::Layer { .. } => {
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

    /// Whether every weight of the base is trained.
    pub(super) fn trains_all(&self) -> bool {
        matches!(self.trains, Trains::All)
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
                self.trains.lora().map_or("model.train is all: the weights".to_owned(), |lora| {
                    format!("model.lora_r is {}: adapters", lora.rank)
                }),
                2 * self.trained_bytes,
                match self.trains.lora() {
                    Some(_) => "lower model.lora_r, or name fewer model.lora_target_modules",
                    None => "use model.train=lora",
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
