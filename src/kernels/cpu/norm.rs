//! Root-mean-square and layer normalisation, row by row.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::math::{dot, simd};
use crate::kernels::buffer::{Shared, elements, modify, new_rows, sum_rows, tensor};
use crate::kernels::constant::Constant;

/// Numbers of a scale's gradient that one task sums.
const COLUMNS: usize = 64;

/// Normalises each D-wide part of `x`; gives `1/√(mean(x²) + ε)` of each beside it.
pub(crate) fn rms_norm(x: &Tensor, weight: &Constant, epsilon: f32) -> Result<(Tensor, Tensor)> {
    let data = elements(x)?;
    let rows = data.len() / weight.len();
    let mut inverse = vec![0.0; rows];
    let output = scaled_rows(&data, weight, epsilon, &Shared::new(&mut inverse));
    Ok((tensor(output, x.shape().clone())?, tensor(inverse, rows)?))
}

/// The gradient of `x` in [`rms_norm`].
pub(crate) fn rms_norm_backward(
    g: &Tensor,
    sum: Option<Tensor>,
    x: &Tensor,
    weight: &Constant,
    inverse: &Tensor,
) -> Result<Tensor> {
    rms_norm_slopes(sum, x, &elements(g)?, &elements(x)?, weight, &elements(inverse)?)
}

/// Normalises each row of `x`; gives the means and `1/√(var(x) + ε)` of the rows beside it.
pub(crate) fn layer_norm(
    x: &Tensor,
    weight: &Constant,
    bias: Option<&Constant>,
    epsilon: f32,
) -> Result<(Tensor, [Tensor; 2])> {
    normalized(x, weight, bias.map(|bias| &**bias), epsilon)
}

/// [`layer_norm`] with a trained scale and shift.
pub(crate) fn trained_layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    epsilon: f32,
) -> Result<(Tensor, [Tensor; 2])> {
    normalized(x, &elements(weight)?, bias.map(elements).transpose()?.as_deref(), epsilon)
}

fn normalized(x: &Tensor, weight: &[f32], bias: Option<&[f32]>, epsilon: f32) -> Result<(Tensor, [Tensor; 2])> {
    let data = elements(x)?;
    let rows = data.len() / weight.len();
    let (mut means, mut inverse) = (vec![0.0; rows], vec![0.0; rows]);
    let output = normalized_rows(&data, [&Shared::new(&mut means), &Shared::new(&mut inverse)], epsilon, weight, bias);
    Ok((tensor(output, x.shape().clone())?, [tensor(means, rows)?, tensor(inverse, rows)?]))
}

/// The gradient of `x` in [`layer_norm`].
pub(crate) fn layer_norm_backward(
    g: &Tensor,
    sum: Option<Tensor>,
    x: &Tensor,
    weight: &Constant,
    [means, inverse]: &[Tensor; 2],
) -> Result<Tensor> {
    layer_norm_slopes(sum, x, &elements(g)?, &elements(x)?, weight, [&elements(means)?, &elements(inverse)?])
}

/// The gradient of `x` in [`trained_layer_norm`].
pub(crate) fn trained_layer_norm_backward(
    g: &Tensor,
    sum: Option<Tensor>,
    x: &Tensor,
    weight: &Tensor,
    [means, inverse]: &[Tensor; 2],
) -> Result<Tensor> {
    let moments = [&*elements(means)?, &*elements(inverse)?];
    layer_norm_slopes(sum, x, &elements(g)?, &elements(x)?, &elements(weight)?, moments)
}

/// The gradient of the scale in [`trained_layer_norm`], the sum of the rows of `g ∘ x̂`, to `sum`.
pub(crate) fn sum_gradient_of_scale(
    g: &Tensor,
    sum: &Tensor,
    accumulate: bool,
    x: &Tensor,
    [means, inverse]: &[Tensor; 2],
) -> Result<()> {
    let (g, x, means, inverse) = (elements(g)?, elements(x)?, elements(means)?, elements(inverse)?);
    modify(sum, |sum| {
        let width = sum.len();
        // Each task sums its own columns over all rows, so that the order of every sum is fixed.
        sum.par_chunks_mut(COLUMNS).enumerate().for_each(|(index, sum)| {
            if !accumulate {
                sum.fill(0.0);
            }
            let rows = g.chunks_exact(width).zip(x.chunks_exact(width)).zip(means.iter().zip(inverse.iter()));
            for ((g, x), (mean, inverse)) in rows {
                let numbers = g[index * COLUMNS..].iter().zip(&x[index * COLUMNS..]);
                sum.iter_mut().zip(numbers).for_each(|(sum, (g, x))| *sum += g * ((x - mean) * inverse));
            }
        });
    })
}

simd! {
    /// Also writes `1/√(mean(x²) + ε)` of each row.
    fn scaled_rows(x: &[f32], weight: &[f32], epsilon: f32, inverse: &Shared<'_>) -> Vec<f32> {
        let width = weight.len();
        new_rows(x.len(), width, |first, block| {
            // SAFETY: blocks have rows of their own.
            #[expect(unsafe_code, reason = "written by all cores")]
            let inverse = unsafe { inverse.part(first..first + block.len() / width) };
            for ((row, inverse), y) in (first..).zip(inverse).zip(block.chunks_exact_mut(width)) {
                let x = &x[row * width..][..width];
                *inverse = 1.0 / (dot(x, x) / width as f32 + epsilon).sqrt();
                for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
                    *y = x * *inverse * weight;
                }
            }
        })
    }
}

simd! {
    /// With s = 1/√(mean(x²) + ε): `∂L/∂x = s·(g∘w) − x · s³/D · Σ g∘w∘x`.
    fn rms_norm_slopes(
        sum: Option<Tensor>,
        like: &Tensor,
        g: &[f32],
        x: &[f32],
        weight: &[f32],
        inverse: &[f32],
    ) -> Result<Tensor> {
        let width = weight.len();
        sum_rows(sum, like.shape().clone(), width, |first, block, _| {
            let mut weighted = vec![0.0; width];
            for (row, gradient) in (first..).zip(block.chunks_exact_mut(width)) {
                let (x, g) = (&x[row * width..][..width], &g[row * width..][..width]);
                for ((weighted, g), w) in weighted.iter_mut().zip(g).zip(weight) {
                    *weighted = g * w;
                }
                let scale = inverse[row];
                let pull = dot(&weighted, x) * scale * scale * scale / width as f32;
                for ((gradient, x), weighted) in gradient.iter_mut().zip(x).zip(&weighted) {
                    *gradient += scale * weighted - pull * x;
                }
            }
        })
    }
}

simd! {
    /// Also writes the mean of each row, and `1/√(var(x) + ε)`.
    fn normalized_rows(
        x: &[f32],
        moments: [&Shared<'_>; 2],
        epsilon: f32,
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> Vec<f32> {
        let width = weight.len();
        new_rows(x.len(), width, |first, block| {
            // SAFETY: blocks have rows of their own.
            #[expect(unsafe_code, reason = "written by all cores")]
            let [means, inverse] = moments.map(|moments| unsafe { moments.part(first..first + block.len() / width) });
            for (((row, mean), inverse), y) in (first..).zip(means).zip(inverse).zip(block.chunks_exact_mut(width)) {
                let x = &x[row * width..][..width];
                *mean = total(x) / width as f32;
                for (y, x) in y.iter_mut().zip(x) {
                    *y = x - *mean;
                }
                *inverse = 1.0 / (dot(y, y) / width as f32 + epsilon).sqrt();
                for (y, weight) in y.iter_mut().zip(weight) {
                    *y = *y * *inverse * weight;
                }
                for (y, bias) in y.iter_mut().zip(bias.into_iter().flatten()) {
                    *y += bias;
                }
            }
        })
    }
}

simd! {
    /// With x̂ the normalised row and h = g ∘ w: `∂L/∂x = s · (h − mean(h) − x̂ · mean(h ∘ x̂))`.
    fn layer_norm_slopes(
        sum: Option<Tensor>,
        like: &Tensor,
        g: &[f32],
        x: &[f32],
        weight: &[f32],
        moments: [&[f32]; 2],
    ) -> Result<Tensor> {
        let width = weight.len();
        sum_rows(sum, like.shape().clone(), width, |first, block, _| {
            let (mut weighted, mut normalized) = (vec![0.0; width], vec![0.0; width]);
            for (row, gradient) in (first..).zip(block.chunks_exact_mut(width)) {
                let [mean, inverse] = moments.map(|moments| moments[row]);
                for ((weighted, g), w) in weighted.iter_mut().zip(&g[row * width..]).zip(weight) {
                    *weighted = g * w;
                }
                for (normalized, x) in normalized.iter_mut().zip(&x[row * width..]) {
                    *normalized = (x - mean) * inverse;
                }
                let middle = total(&weighted) / width as f32;
                let pull = dot(&weighted, &normalized) / width as f32;
                for ((gradient, weighted), normalized) in gradient.iter_mut().zip(&weighted).zip(&normalized) {
                    *gradient += inverse * (weighted - middle - normalized * pull);
                }
            }
        })
    }
}

/// Σ x, in a fixed order that vectors can follow.
#[inline(always)]
fn total(x: &[f32]) -> f32 {
    const LANES: usize = 16;
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += chunk[lane];
        }
    }
    sums.iter().chain(rest).sum()
}
