//! Trained layers: those of the head, and all where every weight is trained. On the CPU wherever the base is.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::flops;
use super::gemm::{Compute, Direction, MatrixMut, Source, Weights, outer_products, product};
use crate::kernels::buffer::{elements, modify, tensor};

/// Numbers of a bias's gradient that one task sums.
const COLUMNS: usize = 64;

/// `y = x Wᵀ + b`, or `sum + x Wᵀ + b` in place of `sum`: `x` `(N, in)`, `weight` `(out, in)`, `bias` of out values.
/// The order of every sum is that of a frozen layer.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, sum: Option<Tensor>) -> Result<Tensor> {
    let (rows, (outputs, inputs)) = (x.dim(0)?, weight.dims2()?);
    flops::count(rows, inputs, outputs);
    let (x, w) = (elements(x)?, elements(weight)?);
    let bias = bias.map(elements).transpose()?;
    let multiply = |y: &mut [f32], accumulate| {
        let weights = whole(&w, (outputs, inputs), Direction::Forward);
        product(Compute::Float32, &weights, &x, MatrixMut::new(y, rows, outputs, outputs), accumulate);
        if let Some(bias) = &bias {
            y.par_chunks_mut(outputs).with_min_len(16).for_each(|y| {
                y.iter_mut().zip(bias.iter()).for_each(|(y, bias)| *y += bias);
            });
        }
    };
    summed(sum, (rows, outputs), multiply)
}

/// The gradient of `x` in [`linear`]: `g W`.
pub(crate) fn linear_backward(g: &Tensor, sum: Option<Tensor>, weight: &Tensor) -> Result<Tensor> {
    let (rows, (outputs, inputs)) = (g.dim(0)?, weight.dims2()?);
    flops::count(rows, outputs, inputs);
    let (g, w) = (elements(g)?, elements(weight)?);
    let multiply = |data: &mut [f32], accumulate| {
        let weights = whole(&w, (outputs, inputs), Direction::Backward);
        product(Compute::Float32, &weights, &g, MatrixMut::new(data, rows, inputs, inputs), accumulate);
    };
    summed(sum, (rows, inputs), multiply)
}

fn whole(data: &[f32], (rows, columns): (usize, usize), direction: Direction) -> Weights<'_> {
    Weights { source: Source::F32(data), rows, columns, stride: columns, direction }
}

/// Lets `f` overwrite a new tensor, or add to `sum`.
fn summed(sum: Option<Tensor>, shape: (usize, usize), f: impl Fn(&mut [f32], bool)) -> Result<Tensor> {
    let Some(sum) = sum else {
        let mut data = vec![0.0; shape.0 * shape.1];
        f(&mut data, false);
        return tensor(data, shape);
    };
    modify(&sum, |data| f(data, true))?;
    Ok(sum)
}

/// The gradient of the weight in [`linear`], `gᵀ x`, to `sum`.
pub(crate) fn sum_outer_products(g: &Tensor, sum: &Tensor, accumulate: bool, x: &Tensor) -> Result<()> {
    let ((rows, outputs), inputs) = (g.dims2()?, x.dim(1)?);
    flops::count(outputs, rows, inputs);
    let (g, x) = (elements(g)?, elements(x)?);
    modify(sum, |sum| outer_products(&g, &x, MatrixMut::new(sum, outputs, inputs, inputs), accumulate))
}

/// The gradient of a bias, the sum of the rows of `g`, to `sum`.
pub(crate) fn sum_columns(g: &Tensor, sum: &Tensor, accumulate: bool) -> Result<()> {
    let g = elements(g)?;
    modify(sum, |sum| {
        let width = sum.len();
        sum.par_chunks_mut(COLUMNS).enumerate().for_each(|(index, sum)| {
            clear_unless(accumulate, sum);
            for row in g.chunks_exact(width) {
                sum.iter_mut().zip(&row[index * COLUMNS..]).for_each(|(sum, x)| *sum += x);
            }
        });
    })
}

/// `numbers` to `sum`.
pub(crate) fn add_numbers(sum: &Tensor, accumulate: bool, numbers: &[f32]) -> Result<()> {
    if numbers.len() != sum.elem_count() {
        bail!("{} numbers for a gradient of shape {:?}", numbers.len(), sum.shape());
    }
    modify(sum, |sum| {
        clear_unless(accumulate, sum);
        sum.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += number);
    })
}

fn clear_unless(accumulate: bool, sum: &mut [f32]) {
    if !accumulate {
        sum.fill(0.0);
    }
}
