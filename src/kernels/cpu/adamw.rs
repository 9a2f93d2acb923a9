//! AdamW's step on one parameter, and the norm of gradients.

use rayon::prelude::*;

use super::blockwise::{BLOCK, BlockwiseMoments};
use crate::kernels::adamw::{Maps, MomentStorage, Step};

/// Tensors of fewer elements keep f32 moments, as in bitsandbytes: they are few, and small ones
/// suffer most from a shared scale.
const MIN_8BIT_ELEMENTS: usize = 4096;

/// Running means of a tensor's gradient and of its square.
#[derive(Clone, Debug, PartialEq)]
pub enum Moments {
    /// Moments in f32.
    Float32 {
        /// First moments: of the gradient.
        first: Vec<f32>,
        /// Second moments: of its square.
        second: Vec<f32>,
    },
    /// Moments as 8-bit codes.
    Blockwise(BlockwiseMoments),
}

impl Moments {
    /// All of it as bytes, for copies.
    pub fn parts_mut(&mut self) -> Vec<&mut [u8]> {
        match self {
            Self::Float32 { first, second } => {
                vec![bytemuck::cast_slice_mut(first), bytemuck::cast_slice_mut(second)]
            }
            Self::Blockwise(moments) => vec![
                &mut moments.first,
                &mut moments.second,
                bytemuck::cast_slice_mut(&mut moments.first_scales),
                bytemuck::cast_slice_mut(&mut moments.second_scales),
            ],
        }
    }

    /// The moments of `len` numbers before the first step.
    pub(crate) fn zeros(len: usize, storage: MomentStorage, maps: &Maps) -> Self {
        if is_8bit(len, storage) {
            Self::Blockwise(BlockwiseMoments::zeros(len, maps))
        } else {
            Self::Float32 { first: vec![0.0; len], second: vec![0.0; len] }
        }
    }

    /// Bytes of the moments of `len` numbers.
    pub(crate) fn bytes_for(len: usize, storage: MomentStorage) -> usize {
        if is_8bit(len, storage) { 2 * len + 8 * len.div_ceil(BLOCK) } else { 8 * len }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Float32 { first, second } => 4 * (first.len() + second.len()),
            Self::Blockwise(moments) => moments.bytes(),
        }
    }

    /// Updates the moments and `values` with `gradient`.
    pub(crate) fn step(&mut self, maps: &Maps, step: &Step, gradient: &[f32], values: &mut [f32]) {
        match self {
            Self::Float32 { first, second } => step_float32(step, gradient, values, first, second),
            Self::Blockwise(moments) => moments.step(maps, step, gradient, values),
        }
    }
}

fn is_8bit(len: usize, storage: MomentStorage) -> bool {
    storage == MomentStorage::EightBit && len >= MIN_8BIT_ELEMENTS
}

fn step_float32(step: &Step, gradient: &[f32], values: &mut [f32], first: &mut [f32], second: &mut [f32]) {
    const PIECE: usize = 16_384;
    let step_size = step.learning_rate / step.correction1;
    values
        .par_chunks_mut(PIECE)
        .zip(gradient.par_chunks(PIECE))
        .zip(first.par_chunks_mut(PIECE).zip(second.par_chunks_mut(PIECE)))
        .for_each(|((values, gradient), (first, second))| {
            for (((p, g), m), v) in values.iter_mut().zip(gradient).zip(first).zip(second) {
                let g = g * step.gradient_scale;
                *m += (1.0 - step.beta1) * (g - *m);
                *v = step.beta2 * *v + (1.0 - step.beta2) * g * g;
                *p = *p * step.decay - step_size * *m / (v.sqrt() / step.correction2 + step.epsilon);
            }
        });
}

/// Σ x², in f64.
pub(crate) fn sum_of_squares(x: &[f32]) -> f64 {
    /// Numbers that one task sums: more than an adapter has.
    const PIECE: usize = 1 << 20;
    let sum = |x: &[f32]| x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
    // The order of the sums does not depend on the threads.
    x.par_chunks(PIECE).map(sum).collect::<Vec<_>>().into_iter().sum()
}
