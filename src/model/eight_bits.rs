//! A base in 8 bits, for programs that carry it: each matrix as GGUF's Q8_0, 32 numbers and their scale in f16, in a
//! safetensors file. Its numbers are widened when they are read.

use std::borrow::Cow;
use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::classifier::Classifier;
use super::frozen::FrozenKind;
use super::weights::Weights;
use crate::gguf::q8_0::{BLOCK, BLOCK_BYTES, SUFFIX, quantize};

impl Classifier {
    /// The base's files as one safetensors file, the frozen matrices in 8 bits. Other tensors stay as they are, and
    /// matrices whose rows are not of whole blocks.
    ///
    /// # Errors
    /// If the base has random weights or weights in fewer than 16 bits.
    pub fn base_in_8_bits(&self, weights: &Weights) -> Result<Vec<u8>> {
        let Weights::Checkpoint(checkpoint) = weights else { bail!("the base has random weights") };
        let frozen = self.frozen().iter().filter(|frozen| matches!(frozen.kind, FrozenKind::Matrix { .. }));
        let matrices: BTreeSet<&str> = frozen.map(|frozen| frozen.stored.as_str()).collect();
        let mut parts = Vec::new();
        for (name, tensor) in checkpoint.tensors() {
            ensure!(tensor.is_plain() || !matrices.contains(name), "`{name}` is stored in fewer bits already");
            parts.push(match tensor.shape[..] {
                [rows, columns] if matrices.contains(name) && columns % BLOCK == 0 => {
                    let shape = vec![rows, columns / BLOCK * BLOCK_BYTES];
                    (format!("{name}{SUFFIX}"), Dtype::U8, shape, Cow::Owned(quantize(name, &tensor.to_f32())?))
                }
                _ => (name.to_owned(), tensor.dtype, tensor.shape.clone(), Cow::Borrowed(tensor.bytes())),
            });
        }
        let views = parts
            .iter()
            .map(|(name, dtype, shape, bytes)| Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?)));
        Ok(safetensors::serialize(views.collect::<Result<Vec<_>>>()?, None)?)
    }
}
