//! A base in 8 bits, for programs that carry it: each matrix as GGUF's Q8_0, 32 numbers and their scale in f16, in a
//! safetensors file. Its numbers are widened when they are read.

use std::borrow::Cow;
use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};
use half::f16;
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::classifier::Classifier;
use super::frozen::FrozenKind;
use super::weights::Weights;

/// What the name of a tensor in 8 bits ends with; its shape is that of its bytes.
pub(super) const SUFFIX: &str = ".q8_0";
/// Numbers that share a scale.
const BLOCK: usize = 32;
/// The scale and the numbers.
const BLOCK_BYTES: usize = 2 + BLOCK;

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

/// The shape of the matrix that a tensor of bytes stands for.
pub(super) fn shape(stored: &[usize]) -> Option<Vec<usize>> {
    match *stored {
        [rows, bytes] if bytes % BLOCK_BYTES == 0 => Some(vec![rows, bytes / BLOCK_BYTES * BLOCK]),
        _ => None,
    }
}

fn quantize(name: &str, values: &[f32]) -> Result<Vec<u8>> {
    let mut bytes = vec![0; values.len() / BLOCK * BLOCK_BYTES];
    let blocks = bytes.par_chunks_exact_mut(BLOCK_BYTES).zip(values.par_chunks_exact(BLOCK));
    let is_finite = blocks.map(|(bytes, values)| {
        let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let scale = f16::from_f32(largest / 127.0);
        bytes[..2].copy_from_slice(&scale.to_le_bytes());
        let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
        for (byte, value) in bytes[2..].iter_mut().zip(values) {
            *byte = (value * inverse).round().clamp(-127.0, 127.0) as i8 as u8;
        }
        scale.is_finite()
    });
    ensure!(is_finite.reduce(|| true, |a, b| a & b), "`{name}` holds numbers too large for 8 bits");
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Blocks;

    #[test]
    fn numbers_come_back_within_half_a_step_of_their_block() {
        // Blocks of unequal sizes, one of zeros, and one with its largest number below zero.
        let values: Vec<f32> = (0..5 * BLOCK)
            .map(|i| match i / BLOCK {
                2 => 0.0,
                block => ((i * 37 % 101) as f32 - 60.0) * 10_f32.powi(block as i32 - 3),
            })
            .collect();
        let bytes = quantize("w", &values).unwrap();
        assert_eq!(shape(&[1, bytes.len()]), Some(vec![1, values.len()]));
        let mut read = vec![0.0; values.len()];
        Blocks::q8_0(values.len()).read(&bytes, 0, &mut read);
        for (block, read) in values.chunks(BLOCK).zip(read.chunks(BLOCK)) {
            let largest = block.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
            // The scale is rounded to f16, by a part in 2048 at most.
            let most = largest / 127.0 * 0.5 * 1.001;
            assert!(block.iter().zip(read).all(|(a, b)| (a - b).abs() <= most), "{block:?} {read:?}");
        }
        // From the middle of a block.
        let mut part = vec![0.0; 50];
        Blocks::q8_0(values.len()).read(&bytes, 7, &mut part);
        assert_eq!(part, read[7..57]);
        assert!(quantize("w", &[1e9; BLOCK]).is_err());
    }
}
