//! Predicting in int8: what is known of the inputs of linear modules.

use std::collections::BTreeMap;
use std::rc::Rc;

/// The largest magnitude of each column of the inputs of linear modules, by their names.
pub type Maxima = BTreeMap<String, Vec<f32>>;

/// How a classifier's linear modules are built.
#[derive(Clone, Debug, Default)]
pub enum Quantization {
    /// As the device computes.
    #[default]
    Off,
    /// The same, and taking note of the largest magnitudes of inputs.
    Observe,
    /// In int8, adapters merged, once the classifier was loaded.
    Int8(Rc<Maxima>),
}

impl Quantization {
    /// In int8 if magnitudes of inputs are given, else off.
    #[must_use]
    pub fn of(maxima: Option<&Maxima>) -> Self {
        maxima.map_or(Self::Off, |maxima| Self::Int8(Rc::new(maxima.clone())))
    }
}
