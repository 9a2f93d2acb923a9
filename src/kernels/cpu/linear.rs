//! Trained layers: those of the head, and all where every weight is trained. On the CPU wherever the base is.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::flops;
use super::gemm::{Compute, Direction, MatrixMut, Source, Start, Weights, outer_products, pack, product};
use crate::kernels::buffer::{elements, modify, tensor};

/// Numbers of a bias's gradient that one task sums.
const COLUMNS: usize = 64;

/// `y = x Wᵀ + b`, and `residual` added if there is one: `x` `(N, in)`, `weight` `(out, in)`, `bias` of out values. Every
/// sum is taken as a frozen layer's is.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, residual: Option<&Tensor>) -> Result<Tensor> {
    let (rows, (outputs, inputs)) = (x.dim(0)?, weight.dims2()?);
    flops::count(rows, inputs, outputs);
    let (x, w) = (elements(x)?, elements(weight)?);
    let (bias, residual) = (bias.map(elements).transpose()?, residual.map(elements).transpose()?);
    let start = Start::given(bias.as_deref(), residual.as_deref());
    let mut output = vec![0.0; rows * outputs];
    let packed = pack(Compute::Float32, &x, inputs, &|_| {});
    let weights = whole(&w, (outputs, inputs), Direction::Forward);
    product(&weights, &packed, MatrixMut::new(&mut output, rows, outputs, outputs), start);
    tensor(output, (rows, outputs))
}

/// The gradient of `x` in [`linear`]: `g W`.
pub(crate) fn linear_backward(g: &Tensor, sum: Option<Tensor>, weight: &Tensor) -> Result<Tensor> {
    let (rows, (outputs, inputs)) = (g.dim(0)?, weight.dims2()?);
    flops::count(rows, outputs, inputs);
    let (g, w) = (elements(g)?, elements(weight)?);
    let packed = pack(Compute::Float32, &g, outputs, &|_| {});
    let weights = whole(&w, (outputs, inputs), Direction::Backward);
    let multiply = |data: &mut [f32], start: Start<'_>| {
        product(&weights, &packed, MatrixMut::new(data, rows, inputs, inputs), start);
    };
    let Some(sum) = sum else {
        let mut data = vec![0.0; rows * inputs];
        multiply(&mut data, Start::Zero);
        return tensor(data, (rows, inputs));
    };
    modify(&sum, |data| multiply(data, Start::Sum))?;
    Ok(sum)
}

fn whole(data: &[f32], (rows, columns): (usize, usize), direction: Direction) -> Weights<'_> {
    Weights { source: Source::F32(data), rows, columns, stride: columns, direction }
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
        let add = |(index, sum): (usize, &mut [f32])| {
            clear_unless(accumulate, sum);
            for row in g.chunks_exact(width) {
                sum.iter_mut().zip(&row[index * COLUMNS..]).for_each(|(sum, x)| *sum += x);
            }
        };
        if width <= COLUMNS {
            return add((0, sum));
        }
        sum.par_chunks_mut(COLUMNS).enumerate().for_each(add);
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
