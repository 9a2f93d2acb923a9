//! AdamW's moments in 8 bits (Dettmers et al., 2022, "8-bit Optimizers via Block-wise Quantization"),
//! by the rule of bitsandbytes' CUDA kernel.
//!
//! Each block of 256 moments is scaled by its largest magnitude; each moment is then the nearest of
//! the 256 values of a dynamic map, signed for the first moment, unsigned for the second. A step
//! uses the moments before they are rounded again.

use rayon::prelude::*;

use super::dynamic_map::DynamicMap;
use crate::kernels::adamw::{Maps, Step};

/// Moments that share a scale.
pub const BLOCK: usize = 256;

/// Running means of a tensor's gradient and of its square, in 2 bytes an element.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockwiseMoments {
    /// Codes in the signed map.
    pub first: Vec<u8>,
    /// Codes in the unsigned map.
    pub second: Vec<u8>,
    /// The scale of each block of `first`.
    pub first_scales: Vec<f32>,
    /// The scale of each block of `second`.
    pub second_scales: Vec<f32>,
}

impl BlockwiseMoments {
    pub(crate) fn zeros(len: usize, maps: &Maps) -> Self {
        let blocks = len.div_ceil(BLOCK);
        Self {
            first: vec![maps.first.nearest(0.0); len],
            second: vec![maps.second.nearest(0.0); len],
            first_scales: vec![0.0; blocks],
            second_scales: vec![0.0; blocks],
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.first.len() + self.second.len() + 4 * (self.first_scales.len() + self.second_scales.len())
    }

    /// Updates moments and `values` with `gradient`.
    pub(crate) fn step(&mut self, maps: &Maps, step: &Step, gradient: &[f32], values: &mut [f32]) {
        values
            .par_chunks_mut(BLOCK)
            .zip(gradient.par_chunks(BLOCK))
            .zip(self.first.par_chunks_mut(BLOCK).zip(&mut self.first_scales))
            .zip(self.second.par_chunks_mut(BLOCK).zip(&mut self.second_scales))
            .with_min_len(16)
            .for_each(|(((values, gradient), first), second)| {
                step_block(maps, step, gradient, values, first, second);
            });
    }
}

fn step_block(
    maps: &Maps,
    step: &Step,
    gradient: &[f32],
    values: &mut [f32],
    (first, first_scale): (&mut [u8], &mut f32),
    (second, second_scale): (&mut [u8], &mut f32),
) {
    let (mut m, mut v) = ([0.0; BLOCK], [0.0; BLOCK]);
    for (index, (&g, value)) in gradient.iter().zip(values.iter_mut()).enumerate() {
        let g = g * step.gradient_scale;
        if !g.is_finite() {
            continue;
        }
        m[index] = step.beta1 * (maps.first.value(first[index]) * *first_scale) + (1.0 - step.beta1) * g;
        v[index] = step.beta2 * (maps.second.value(second[index]) * *second_scale) + (1.0 - step.beta2) * g * g;
        *value -= step.learning_rate * step.correction2 / step.correction1 * m[index]
            / (v[index].sqrt() + step.correction2 * step.epsilon);
        *value *= step.decay;
    }
    let count = gradient.len();
    let largest = |moments: &[f32]| moments.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    *first_scale = largest(&m[..count]);
    *second_scale = largest(&v[..count]);
    let inverse = |scale: f32| if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let (by_first, by_second) = (inverse(*first_scale), inverse(*second_scale));
    for (index, (first, second)) in first.iter_mut().zip(second).enumerate() {
        *first = with_the_sign_of(m[index], maps.first.nearest(m[index] * by_first), &maps.first);
        *second = maps.second.nearest(v[index] * by_second);
    }
}

/// A code whose value has another sign than the moment would push the parameter the wrong way: the
/// next code has the right one. Zero counts as positive.
fn with_the_sign_of(moment: f32, code: u8, map: &DynamicMap) -> u8 {
    if map.value(code).is_sign_negative() == moment.is_sign_negative() {
        code
    } else if moment > 0.0 {
        code.saturating_add(1)
    } else {
        code.saturating_sub(1)
    }
}
