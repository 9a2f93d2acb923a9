//! Predicting in int8: which columns of a layer's input are kept in bf16.

use std::collections::BTreeMap;
use std::rc::Rc;

/// Magnitude from which on a column of an input counts as an outlier (Dettmers et al., 2022, "LLM.int8()").
const OUTLIER: f32 = 6.0;

/// The outliers of linear modules, by their names.
pub type Outliers = BTreeMap<String, Vec<usize>>;

/// How a classifier's linear modules are built.
#[derive(Clone, Debug, Default)]
pub enum Quantization {
    /// As the device computes.
    #[default]
    Off,
    /// The same, and taking note of the largest magnitudes of inputs.
    Observe,
    /// In int8, except for modules that are not named.
    Int8(Rc<Outliers>),
}

impl Quantization {
    /// In int8, with these outliers.
    #[must_use]
    pub fn int8(outliers: Outliers) -> Self {
        Self::Int8(Rc::new(outliers))
    }

    /// The outliers of a module that is to be quantized.
    pub(super) fn outliers(&self, module: &str) -> Option<&[usize]> {
        match self {
            Self::Int8(outliers) => outliers.get(module).map(Vec::as_slice),
            Self::Off | Self::Observe => None,
        }
    }
}

/// The columns whose largest magnitude makes them outliers.
pub(super) fn outliers_of(maxima: &[f32]) -> Vec<usize> {
    (0..maxima.len()).filter(|&column| maxima[column] >= OUTLIER).collect()
}
