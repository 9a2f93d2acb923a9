//! A classifier's tensors as transformers stores them, adapters merged: `W + s · B A` (Hu et al., 2021, section 4.2).
//!
//! Names, shapes and numbers are those of the family's `…ForSequenceClassification`. What that class lacks (the head of
//! a language model, tied or not) is left out.

use anyhow::{Result, ensure};
use candle_core::Tensor;
use rayon::prelude::*;

use super::classifier::Classifier;
use super::frozen::FrozenKind;
use super::quantization::Maxima;
use super::weights::{BaseStorage, Weights};
use crate::kernels::buffer::elements;
use crate::kernels::matrix::FrozenMatrix;

/// A tensor by its name in transformers.
pub struct NamedTensor<'a> {
    /// Such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Row-major.
    pub shape: Vec<usize>,
    values: Box<dyn Fn() -> Result<Vec<f32>> + 'a>,
}

impl<'a> NamedTensor<'a> {
    /// A tensor whose numbers are made when they are asked for.
    pub fn new(name: String, shape: Vec<usize>, values: impl Fn() -> Result<Vec<f32>> + 'a) -> Self {
        Self { name, shape, values: Box::new(values) }
    }

    /// The numbers.
    ///
    /// # Errors
    /// If the base's files cannot be read.
    pub fn values(&self) -> Result<Vec<f32>> {
        (self.values)()
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns true if there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Classifier {
    /// All tensors of the model, adapters merged into their modules, in f32. `weights` and `storage` are those that it
    /// was built with: a base that is held in fewer bits is merged from the numbers that it then stands for.
    #[must_use]
    pub fn merged<'a>(&'a self, weights: &'a Weights, storage: BaseStorage) -> Vec<NamedTensor<'a>> {
        let of_base = self.frozen().iter().map(|frozen| {
            let shape = match frozen.kind {
                FrozenKind::Matrix { rows, columns, .. } => vec![rows, columns],
                FrozenKind::Scale { len, .. } | FrozenKind::Bias { len } => vec![len],
            };
            NamedTensor::new(frozen.name.clone(), shape, move || {
                let mut values = frozen.read(weights, storage)?;
                if let Some(adapter) = self.adapter_of(&frozen.name) {
                    adapter.add_to(&mut values)?;
                }
                Ok(values)
            })
        });
        let trained = self.params().iter().filter(|param| !is_of_adapter(param.name())).map(|param| {
            let shape = param.value().dims().to_vec();
            NamedTensor::new(param.name().to_owned(), shape, || Ok(elements(param.value())?.to_vec()))
        });
        of_base.chain(trained).collect()
    }

    /// From now on computes the linear modules that are named in int8, adapters merged.
    ///
    /// # Errors
    /// If the magnitudes are of other modules.
    pub fn quantize(&self, maxima: &Maxima) -> Result<()> {
        for (module, linear) in self.linears() {
            let (rows, columns) = (linear.weight.rows(), linear.weight.columns());
            let of_module = maxima.get(module).map_or(&[][..], Vec::as_slice);
            ensure!(
                of_module.len() == columns,
                "int8.json has magnitudes of {} columns of `{module}`, which has {columns}; measure again with `llmcls eval \
                 --split validation --precision int8`",
                of_module.len()
            );
            // Set before for another name of the same classifier.
            if linear.merged.get().is_none() {
                let mut values = vec![0.0; rows * columns];
                linear.weight.read(0, &mut values);
                linear.weight.release();
                if let Some(adapter) = self.adapter_of(&format!("{module}.weight")) {
                    adapter.add_to(&mut values)?;
                }
                let merged = FrozenMatrix::in_int8(values, (rows, columns), of_module);
                let _ = linear.merged.set(merged);
            }
        }
        Ok(())
    }

    /// The adapter of the module that a weight belongs to.
    fn adapter_of(&self, weight: &str) -> Option<MergeableAdapter<'_>> {
        let module = weight.strip_suffix(".weight")?;
        let at = self.params().iter().position(|param| param.name().strip_suffix(A) == Some(module))?;
        let b = self.params().get(at + 1).filter(|param| param.name().strip_suffix(B) == Some(module))?;
        let scaling = self.scaling_of(module)?;
        Some(MergeableAdapter { a: self.params()[at].value(), b: b.value(), scaling })
    }
}

const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";

fn is_of_adapter(name: &str) -> bool {
    name.ends_with(A) || name.ends_with(B)
}

struct MergeableAdapter<'a> {
    /// `(r, in)`
    a: &'a Tensor,
    /// `(out, r)`
    b: &'a Tensor,
    scaling: f32,
}

impl MergeableAdapter<'_> {
    /// Adds `s · B A` to a weight of `(out, in)`.
    fn add_to(&self, weight: &mut [f32]) -> Result<()> {
        let (rank, inputs) = self.a.dims2()?;
        let (a, b) = (elements(self.a)?, elements(self.b)?);
        ensure!(weight.len() * rank == b.len() * inputs, "an adapter does not fit its module");
        let (a, b): (&[f32], &[f32]) = (&a, &b);
        weight.par_chunks_exact_mut(inputs).zip(b.par_chunks_exact(rank)).for_each_init(
            || vec![0.0_f32; inputs],
            |product, (row, b)| {
                product.fill(0.0);
                for (b, a) in b.iter().zip(a.chunks_exact(inputs)) {
                    product.iter_mut().zip(a).for_each(|(product, a)| *product += b * a);
                }
                row.iter_mut().zip(&*product).for_each(|(weight, product)| *weight += self.scaling * product);
            },
        );
        Ok(())
    }
}
