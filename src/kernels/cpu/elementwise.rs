//! Sums of tensors.

use candle_core::{Result, Tensor};

use super::math::simd;
use super::{MAP_WIDTH, map_block, par_rows};
use crate::kernels::buffer::{elements, modify, new_rows, sum_rows, tensor};

/// `a + b`
pub(crate) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    tensor(sums(&elements(a)?, &elements(b)?), a.shape().clone())
}

/// `sum += x`
pub(crate) fn add_in_place(sum: &Tensor, x: &Tensor) -> Result<()> {
    let x = elements(x)?;
    modify(sum, |sum| add_to(sum, &x))
}

/// `scale · x`, or `sum + scale · x`.
pub(crate) fn scale(x: &Tensor, sum: Option<Tensor>, scale: f32) -> Result<Tensor> {
    let shape = x.shape().clone();
    let x = elements(x)?;
    sum_rows(sum, shape, MAP_WIDTH, |first, block, accumulate| scale_block(first, block, accumulate, &x, scale))
}

simd! {
    fn scale_block(first: usize, block: &mut [f32], accumulate: bool, x: &[f32], scale: f32) {
        map_block(first, block, accumulate, [x], |[x]| scale * x);
    }
}

simd! {
    fn sums(a: &[f32], b: &[f32]) -> Vec<f32> {
        new_rows(a.len(), MAP_WIDTH, |first, block| map_block(first, block, false, [a, b], |[a, b]| a + b))
    }
}

simd! {
    fn add_to(sum: &mut [f32], x: &[f32]) {
        par_rows(sum, MAP_WIDTH, |first, block| map_block(first, block, true, [x], |[x]| x));
    }
}
