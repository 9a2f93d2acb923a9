//! Frozen layers with adapters: the low-rank part costs no passes over memory of its own.
//!
//! Rows of x are multiplied by A while they are packed for the frozen product, and what the adapter,
//! the bias and the residual add to y is what the product's sums start at, written when a part of y
//! is about to be computed. Layers with the same input share its packing.

#![expect(unsafe_code, reason = "an output is written once, by all cores")]

use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::gemm::{MatrixMut, NewMatrix, Start};
use super::low_rank::{Opening, OuterSum, Product, dots, outer_sums};
use crate::kernels::adapted::{Layer, LowRankBackward};
use crate::kernels::buffer::{Elements, Shared, elements, modify, tensor};
use crate::kernels::low_rank::LowRank;
use crate::kernels::mask::Bits;
use crate::kernels::matrix::{FrozenMatrix, PackedInput};

/// The outputs of layers that share the input x, each with `u = drop(x) Aᵀ` of its adapters; `residual` is
/// added to each.
pub(crate) fn adapted(
    x: &Tensor,
    layers: &[Layer<'_>],
    residual: Option<&Tensor>,
) -> Result<Vec<(Tensor, Vec<Tensor>)>> {
    let inputs = x.dim(1)?;
    let Some(first) = layers.first() else { return Ok(Vec::new()) };
    if first.weight.columns() != inputs {
        bail!("an input of {inputs} columns for a layer of {}", first.weight.columns());
    }
    if !layers.iter().all(|layer| layer.weight.shares_input_with(first.weight)) {
        let alone = |layer| adapted(x, std::slice::from_ref(layer), residual);
        return layers.iter().map(alone).collect::<Result<Vec<_>>>().map(|outputs| outputs.concat());
    }
    let (x, residual) = (elements(x)?, residual.map(elements).transpose()?);
    let pairs: Vec<_> = layers.iter().flat_map(|layer| &layer.low_rank).collect();
    let mut us: Vec<Vec<f32>> = pairs.iter().map(|(rows, pair)| vec![0.0; rows.len() * pair.rank]).collect();
    let parts = pairs.iter().zip(&mut us);
    let parts = parts.map(|((rows, pair), u)| UnderWay::new(rows.clone(), pair, u)).collect::<Result<Vec<_>>>()?;
    layers.iter().for_each(|layer| layer.weight.note(&x));
    let packed = first.weight.prepare(&x, &|rows| {
        parts.iter().for_each(|part| part.multiply(&x, &rows));
    });
    drop(parts);
    let mut us = us.into_iter();
    let output = |layer: &Layer<'_>| {
        let us: Vec<Vec<f32>> = us.by_ref().take(layer.low_rank.len()).collect();
        let output = multiplied(layer, &packed, residual.as_deref(), &us)?;
        let us = us.into_iter().zip(&layer.low_rank).map(|(u, (rows, pair))| tensor(u, (rows.len(), pair.rank)));
        Ok((output, us.collect::<Result<_>>()?))
    };
    layers.iter().map(output).collect()
}

/// The rows of x that are being multiplied by an A.
struct UnderWay<'a> {
    rows: Range<usize>,
    a: Elements<'a>,
    rank: usize,
    scale: f32,
    bits: Option<&'a Bits>,
    u: Shared<'a>,
}

impl<'a> UnderWay<'a> {
    fn new(rows: Range<usize>, pair: &'a LowRank, u: &'a mut [f32]) -> Result<Self> {
        let (a, bits) = (elements(&pair.a)?, pair.bits());
        Ok(Self { rows, a, rank: pair.rank, scale: pair.kept_scale(), bits, u: Shared::new(u) })
    }

    /// Those of `rows` that are among them.
    fn multiply(&self, x: &[f32], rows: &Range<usize>) {
        let rows = rows.start.max(self.rows.start)..rows.end.min(self.rows.end);
        if rows.is_empty() {
            return;
        }
        let part = (rows.start - self.rows.start) * self.rank..(rows.end - self.rows.start) * self.rank;
        // SAFETY: each row is packed once.
        let u = unsafe { self.u.part(part) };
        dots(u, x, rows, &self.a, self.scale, self.bits);
    }
}

/// The output of a layer.
fn multiplied(layer: &Layer<'_>, packed: &PackedInput, residual: Option<&[f32]>, us: &[Vec<f32>]) -> Result<Tensor> {
    let (rows, outputs) = (packed.rows(), layer.weight.rows());
    let mut output = NewMatrix::new(rows, outputs);
    let bias = layer.bias.map(|bias| &**bias);
    let bs = layer.low_rank.iter().map(|(_, pair)| elements(&pair.b)).collect::<Result<Vec<_>>>()?;
    let products = layer.low_rank.iter().zip(us).zip(&bs).map(|(((rows, pair), u), b)| Product {
        rows: rows.clone(),
        factors: u.iter().map(|u| pair.scaling * u).collect(),
        matrix: b,
    });
    let opening =
        Opening { residual, bias, products: products.collect(), bits: None, accumulate: false, width: outputs };
    let write = |row: usize, column: usize, block: MatrixMut<'_>| opening.write(row, column, block);
    let start = if bs.is_empty() { Start::given(bias, residual) } else { Start::Written(&write) };
    // SAFETY: a product that starts at zero, at what is given or at what is written, writes the whole of its output first.
    let output = unsafe {
        layer.weight.multiply(packed, output.view(), start);
        output.finish()
    };
    tensor(output, (rows, outputs))
}

/// The gradients of A and B, and, if it is wanted, of x: `of_x` has what is there to add to, if anything.
pub(crate) fn adapted_backward(
    g: &Tensor,
    weight: &FrozenMatrix,
    low_rank: Option<LowRankBackward<'_>>,
    of_x: Option<Option<Tensor>>,
) -> Result<Option<Tensor>> {
    let ((rows, outputs), inputs) = (g.dims2()?, weight.columns());
    let g = elements(g)?;
    let Some(LowRankBackward { pair, x, u, of_a, of_b }) = low_rank else {
        let Some(sum) = of_x else { return Ok(None) };
        let packed = weight.prepare_transposed(&g, &|_| {});
        let start = if sum.is_some() { Start::Sum } else { Start::Zero };
        let multiply = |y: MatrixMut<'_>| weight.multiply_transposed(&packed, y, start);
        // SAFETY: a product that starts at zero writes the whole of its output first.
        return unsafe { summed(sum, (rows, inputs), multiply) }.map(Some);
    };
    // ∂L/∂u = s · g B.
    let (a, b, rank) = (elements(&pair.a)?, elements(&pair.b)?, pair.rank);
    let mut of_u = vec![0.0; rows * rank];
    let (to, scaling) = (Shared::new(&mut of_u), pair.scaling);
    let slope = |rows: Range<usize>| {
        // SAFETY: each row is taken once.
        let of_u = unsafe { to.part(rows.start * rank..rows.end * rank) };
        dots(of_u, &g, rows, &b, scaling, None);
    };
    let packed = match of_x {
        Some(_) => Some(weight.prepare_transposed(&g, &slope)),
        None => {
            let count = rows.div_ceil(16);
            (0..count).into_par_iter().for_each(|part| slope(16 * part..(16 * part + 16).min(rows)));
            None
        }
    };
    let (x, u) = (elements(x)?, elements(u)?);
    // ∂L/∂B = s · gᵀ u, and ∂L/∂A = (∂L/∂u)ᵀ drop(x).
    let [new_b, new_a] = outer_sums([
        OuterSum::new(&u, &g, outputs, pair.scaling, None),
        OuterSum::new(&of_u, &x, inputs, pair.kept_scale(), pair.bits()),
    ]);
    add_gradients(of_a, of_b, &new_a, &new_b, rank)?;
    let (Some(sum), Some(packed)) = (of_x, packed) else { return Ok(None) };
    // ∂L/∂x = g W + drop(∂L/∂u · A).
    let factors = of_u.iter().map(|x| pair.kept_scale() * x).collect();
    let opening = Opening {
        residual: None,
        bias: None,
        products: vec![Product { rows: 0..rows, factors, matrix: &a }],
        bits: pair.bits(),
        accumulate: sum.is_some(),
        width: inputs,
    };
    let write = |row: usize, column: usize, block: MatrixMut<'_>| opening.write(row, column, block);
    let multiply = |y: MatrixMut<'_>| weight.multiply_transposed(&packed, y, Start::Written(&write));
    // SAFETY: what is written before the product is the whole of its output.
    unsafe { summed(sum, (rows, inputs), multiply) }.map(Some)
}

fn add_gradients(
    (of_a, add_a): (&Tensor, bool),
    (of_b, add_b): (&Tensor, bool),
    new_a: &[f32],
    new_b: &[f32],
    rank: usize,
) -> Result<()> {
    modify(of_a, |sum| {
        for (sum, new) in sum.iter_mut().zip(new_a) {
            *sum = if add_a { *sum } else { 0.0 } + new;
        }
    })?;
    // The new one is transposed: `(r, out)`.
    let outputs = new_b.len() / rank;
    modify(of_b, |sum| {
        for (out, sum) in sum.chunks_exact_mut(rank).enumerate() {
            for (r, sum) in sum.iter_mut().enumerate() {
                *sum = if add_b { *sum } else { 0.0 } + new_b[r * outputs + out];
            }
        }
    })
}

/// Lets `multiply` write a new matrix, or add to `sum`.
///
/// # Safety
/// Without a sum, it must write each element before it reads it.
unsafe fn summed(
    sum: Option<Tensor>,
    (rows, columns): (usize, usize),
    multiply: impl Fn(MatrixMut<'_>),
) -> Result<Tensor> {
    let Some(sum) = sum else {
        let mut output = NewMatrix::new(rows, columns);
        // SAFETY: the caller's promise.
        let output = unsafe {
            multiply(output.view());
            output.finish()
        };
        return tensor(output, (rows, columns));
    };
    modify(&sum, |data| multiply(MatrixMut::new(data, rows, columns, columns)))?;
    Ok(sum)
}
