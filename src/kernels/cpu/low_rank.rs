//! Products with A and B are r numbers wide: they are done row by row, while the row is in cache.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::gemm::MatrixMut;
use super::math::{add_rows, dot_rows, simd};
use super::par_rows;
use crate::kernels::buffer::{elements, modify, tensor};
use crate::kernels::low_rank::LowRank;
use crate::kernels::mask::{Bits, Mask};

/// Columns of a gradient that one task sums: with 16 ranks, 32 KiB of sums.
const COLUMNS: usize = 512;

/// A and B for products with rows like `x`.
pub(crate) fn low_rank(_x: &Tensor, a: &Tensor, b: &Tensor, scaling: f32, mask: Option<Mask>) -> Result<LowRank> {
    let ((rank, inputs), outputs) = (a.dims2()?, b.dim(0)?);
    let numbers = elements(b)?;
    let mut transposed = vec![0.0; rank * outputs];
    for (r, row) in transposed.chunks_exact_mut(outputs).enumerate() {
        for (out, value) in row.iter_mut().enumerate() {
            *value = numbers[out * rank + r];
        }
    }
    Ok(LowRank { a: a.clone(), b: tensor(transposed, (rank, outputs))?, inputs, outputs, rank, scaling, mask })
}

/// `y += s · drop(x) Aᵀ Bᵀ`; gives u = drop(x) Aᵀ, `(N, r)`.
pub(crate) fn low_rank_product(x: &Tensor, y: &Tensor, pair: &LowRank) -> Result<Tensor> {
    let (rows, x) = (x.dim(0)?, elements(x)?);
    let mut u = vec![0.0; rows * pair.rank];
    dot_all(&mut u, &x, &elements(&pair.a)?, pair.inputs, pair.kept_scale(), pair.bits());
    let b = elements(&pair.b)?;
    modify(y, |y| add_all(y, &u, &b, pair.outputs, pair.scaling, None))?;
    tensor(u, (rows, pair.rank))
}

/// ∂L/∂u = s · g B, `(N, r)`.
pub(crate) fn gradient_of_u(g: &Tensor, pair: &LowRank) -> Result<Tensor> {
    let (rows, g) = (g.dim(0)?, elements(g)?);
    let mut of_u = vec![0.0; rows * pair.rank];
    dot_all(&mut of_u, &g, &elements(&pair.b)?, pair.outputs, pair.scaling, None);
    tensor(of_u, (rows, pair.rank))
}

/// ∂L/∂B = s · gᵀ u, `(out, r)`, to `sum`.
pub(crate) fn sum_gradient_of_b(g: &Tensor, sum: &Tensor, accumulate: bool, u: &Tensor, pair: &LowRank) -> Result<()> {
    let mut transposed = vec![0.0; pair.rank * pair.outputs];
    sum_outer(&mut transposed, &elements(g)?, &elements(u)?, pair.outputs, pair.scaling, None);
    modify(sum, |sum| {
        for (out, sum) in sum.chunks_exact_mut(pair.rank).enumerate() {
            for (r, sum) in sum.iter_mut().enumerate() {
                let before = if accumulate { *sum } else { 0.0 };
                *sum = before + transposed[r * pair.outputs + out];
            }
        }
    })
}

/// ∂L/∂A = (∂L/∂u)ᵀ drop(x), `(r, in)`, to `sum`.
pub(crate) fn sum_gradient_of_a(
    of_u: &Tensor,
    sum: &Tensor,
    accumulate: bool,
    x: &Tensor,
    pair: &LowRank,
) -> Result<()> {
    let mut new = vec![0.0; pair.rank * pair.inputs];
    sum_outer(&mut new, &elements(x)?, &elements(of_u)?, pair.inputs, pair.kept_scale(), pair.bits());
    modify(sum, |sum| {
        for (sum, new) in sum.iter_mut().zip(&new) {
            let before = if accumulate { *sum } else { 0.0 };
            *sum = before + new;
        }
    })
}

/// `∂L/∂x += mask(∂L/∂u · A)`
pub(crate) fn add_gradient_of_x(of_u: &Tensor, sum: &Tensor, pair: &LowRank) -> Result<()> {
    let (of_u, a) = (elements(of_u)?, elements(&pair.a)?);
    modify(sum, |sum| add_all(sum, &of_u, &a, pair.inputs, pair.kept_scale(), pair.bits()))
}

impl LowRank {
    fn bits(&self) -> Option<&Bits> {
        self.mask.as_ref().map(Mask::bits)
    }

    /// Scales kept elements up, so that the expected sum stays the same.
    fn kept_scale(&self) -> f32 {
        self.mask.as_ref().map_or(1.0, |mask| mask.choice.scale())
    }
}

simd! {
    /// `out = scale · mask(x) · matrixᵀ`: `x` `(N, width)`, `matrix` `(r, width)`, `out` `(N, r)`.
    fn dot_all(out: &mut [f32], x: &[f32], matrix: &[f32], width: usize, scale: f32, bits: Option<&Bits>) {
        let rank = matrix.len() / width;
        // Blocks of rows by the work they are, not by the size of the output.
        let rows = (16_384 / width).max(1);
        out.par_chunks_mut(rows * rank).enumerate().for_each(|(index, block)| {
            let mut kept = vec![0.0; if bits.is_some() { width } else { 0 }];
            for (row, out) in (index * rows..).zip(block.chunks_exact_mut(rank)) {
                let mut x = &x[row * width..][..width];
                if let Some(bits) = bits {
                    kept.copy_from_slice(x);
                    bits.apply(row, 0, &mut kept);
                    x = &kept;
                }
                dot_rows(matrix, x, out);
                for out in out {
                    *out *= scale;
                }
            }
        });
    }
}

simd! {
    /// `y += mask(scale · c · matrix)`: `c` `(N, r)`, `matrix` `(r, width)`, `y` `(N, width)`.
    fn add_all(y: &mut [f32], c: &[f32], matrix: &[f32], width: usize, scale: f32, bits: Option<&Bits>) {
        let rank = matrix.len() / width;
        par_rows(y, width, |first, block| {
            let mut scaled = vec![0.0; rank];
            let mut product = vec![0.0; if bits.is_some() { width } else { 0 }];
            for (row, y) in (first..).zip(block.chunks_exact_mut(width)) {
                for (scaled, c) in scaled.iter_mut().zip(&c[row * rank..]) {
                    *scaled = scale * c;
                }
                let Some(bits) = bits else {
                    add_rows(y, &scaled, matrix, width);
                    continue;
                };
                product.fill(0.0);
                add_rows(&mut product, &scaled, matrix, width);
                bits.apply(row, 0, &mut product);
                for (y, product) in y.iter_mut().zip(&product) {
                    *y += product;
                }
            }
        });
    }
}

simd! {
    /// `sums += scale · cᵀ · mask(x)`: `c` `(N, r)`, `x` `(N, width)`, `sums` `(r, width)`. Each task
    /// sums its own columns over all rows, so that the order of every sum is fixed.
    fn sum_outer(sums: &mut [f32], x: &[f32], c: &[f32], width: usize, scale: f32, bits: Option<&Bits>) {
        /// Rows taken together: each sum is loaded and stored once for all of them.
        const GROUP: usize = 4;
        let (count, rank) = (x.len() / width, sums.len() / width);
        MatrixMut::new(sums, rank, width, width).par_columns(COLUMNS, |column, mut sums| {
            let columns = COLUMNS.min(width - column);
            let mut kept = [0.0; GROUP * COLUMNS];
            for first in (0..count).step_by(GROUP) {
                let members = GROUP.min(count - first);
                let source = &x[first * width + column..];
                let (data, stride) = if let Some(bits) = bits {
                    for member in 0..members {
                        let out = &mut kept[member * COLUMNS..][..columns];
                        out.copy_from_slice(&source[member * width..][..columns]);
                        bits.apply(first + member, column, out);
                    }
                    (&kept[..], COLUMNS)
                } else {
                    (source, width)
                };
                for r in 0..rank {
                    let mut scaled = [0.0; GROUP];
                    for (member, scaled) in scaled[..members].iter_mut().enumerate() {
                        *scaled = scale * c[(first + member) * rank + r];
                    }
                    add_rows(sums.row(r), &scaled[..members], data, stride);
                }
            }
        });
    }
}
