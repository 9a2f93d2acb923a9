//! A frozen base that several classifiers share: loaded once, each classifier adds its adapters and its head.

use std::rc::Rc;

use anyhow::Result;

use super::builder::Builder;
use super::classifier::{Classifier, ClassifierOptions};
use super::config::BackboneConfig;
use super::layers::{self, Layers};
use super::lora::LoraOptions;
use super::quantization::Quantization;
use super::weights::{BaseStorage, Weights};
use crate::kernels::device::Device;
use crate::ops::adapter_routing::{Routing, SharedAdapter, SharedAdapters};
use crate::ops::lora_linear::LoraLinear;

/// The layers of a base, without adapters of their own.
pub struct SharedBase {
    layers: Rc<Layers>,
    routing: Rc<Routing>,
    modules: Vec<String>,
    linears: Vec<(String, Rc<LoraLinear>)>,
    shapes: Vec<(usize, usize)>,
    bytes: usize,
}

impl SharedBase {
    /// Loads the layers.
    ///
    /// # Errors
    /// If a weight is missing or of another shape.
    pub fn new(
        config: &BackboneConfig,
        weights: &Weights,
        (storage, quantization): (BaseStorage, Quantization),
        device: &Device,
    ) -> Result<Self> {
        let lora = LoraOptions::none();
        let names = (config.prefix, layers::embedding(config));
        let mut builder = Builder::new(weights, names, storage, &lora, device);
        let routing = Rc::new(Routing::default());
        builder.quantization = quantization;
        builder.routing = Some(Rc::clone(&routing));
        let layers = Rc::new(Layers::new(&mut builder, config, false)?);
        let Builder { modules, linears, shapes, size, .. } = builder;
        Ok(Self { layers, routing, modules, linears, shapes, bytes: size.bytes })
    }

    /// Bytes of the frozen weights.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A classifier on these layers. Its parameters are zero until [`Classifier::set`].
    ///
    /// # Errors
    /// If a weight of the head is of another shape, or no module is a LoRA target.
    pub fn classifier(
        &self,
        config: &BackboneConfig,
        weights: &Weights,
        options: &ClassifierOptions,
    ) -> Result<Classifier> {
        let names = (config.prefix, layers::embedding(config));
        let mut builder = Builder::new(weights, names, options.storage, &options.lora, &options.device);
        let mut adapters = Vec::with_capacity(self.modules.len());
        for (module, &(outputs, inputs)) in self.modules.iter().zip(&self.shapes) {
            let adapter = builder.adapter(module, outputs, inputs)?;
            adapters.push(adapter.map(|adapter| SharedAdapter::new(adapter.a, adapter.b, adapter.scaling)));
        }
        builder.modules.clone_from(&self.modules);
        builder.linears.clone_from(&self.linears);
        builder.shapes.clone_from(&self.shapes);
        let shared: SharedAdapters = adapters.into();
        let own = (Rc::clone(&self.layers), Some((Rc::clone(&self.routing), shared)));
        Classifier::with_head(builder, config, options, own)
    }
}
