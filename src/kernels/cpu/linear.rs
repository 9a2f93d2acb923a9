//! Trained layers of the head: a few rows, so on one thread; on the CPU wherever the base is.

use candle_core::{Result, Tensor, bail};

use super::gemm::{Matrix, MatrixMut, matmul};
use crate::kernels::buffer::{elements, modify, tensor};

/// `y = x Wᵀ + b`: `x` `(N, in)`, `weight` `(out, in)`, `bias` of out values.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let ((rows, inputs), outputs) = (x.dims2()?, weight.dim(0)?);
    let (x, w) = (elements(x)?, elements(weight)?);
    let w = Matrix::new(&w, outputs, inputs, inputs).transposed();
    let mut output = vec![0.0; rows * outputs];
    let mut y = MatrixMut::new(&mut output, rows, outputs, outputs);
    matmul(&mut y, false, 1.0, Matrix::new(&x, rows, inputs, inputs), w);
    if let Some(bias) = bias {
        let bias = elements(bias)?;
        for y in output.chunks_exact_mut(outputs) {
            y.iter_mut().zip(bias.iter()).for_each(|(y, bias)| *y += bias);
        }
    }
    tensor(output, (rows, outputs))
}

/// The gradient of `x` in [`linear`]: `g W`.
pub(crate) fn linear_backward(g: &Tensor, sum: Option<Tensor>, weight: &Tensor) -> Result<Tensor> {
    let ((rows, outputs), inputs) = (g.dims2()?, weight.dim(1)?);
    let (g, w) = (elements(g)?, elements(weight)?);
    let multiply = |data: &mut [f32], accumulate| {
        let (g, w) = (Matrix::new(&g, rows, outputs, outputs), Matrix::new(&w, outputs, inputs, inputs));
        matmul(&mut MatrixMut::new(data, rows, inputs, inputs), accumulate, 1.0, g, w);
    };
    let Some(sum) = sum else {
        let mut data = vec![0.0; rows * inputs];
        multiply(&mut data, false);
        return tensor(data, (rows, inputs));
    };
    modify(&sum, |data| multiply(data, true))?;
    Ok(sum)
}

/// The gradient of the weight in [`linear`], `gᵀ x`, to `sum`.
pub(crate) fn sum_outer_products(g: &Tensor, sum: &Tensor, accumulate: bool, x: &Tensor) -> Result<()> {
    let ((rows, outputs), inputs) = (g.dims2()?, x.dim(1)?);
    let (g, x) = (elements(g)?, elements(x)?);
    modify(sum, |sum| {
        let (g, x) = (Matrix::new(&g, rows, outputs, outputs), Matrix::new(&x, rows, inputs, inputs));
        matmul(&mut MatrixMut::new(sum, outputs, inputs, inputs), accumulate, 1.0, g.transposed(), x);
    })
}

/// The gradient of a bias, the sum of the rows of `g`, to `sum`.
pub(crate) fn sum_columns(g: &Tensor, sum: &Tensor, accumulate: bool) -> Result<()> {
    let g = elements(g)?;
    modify(sum, |sum| {
        clear_unless(accumulate, sum);
        for row in g.chunks_exact(sum.len()) {
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
    })
}

/// Each row of `x` times `weight`, plus `bias`.
pub(crate) fn scale_and_shift(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (data, w) = (elements(x)?, elements(weight)?);
    let b = bias.map(elements).transpose()?;
    let mut output = vec![0.0; data.len()];
    for (y, x) in output.chunks_exact_mut(w.len()).zip(data.chunks_exact(w.len())) {
        for (column, y) in y.iter_mut().enumerate() {
            *y = x[column] * w[column] + b.as_ref().map_or(0.0, |b| b[column]);
        }
    }
    tensor(output, x.shape().clone())
}

/// The gradient of the weight in [`scale_and_shift`], the sum of the rows of `g ∘ x`, to `sum`.
pub(crate) fn sum_products(g: &Tensor, sum: &Tensor, accumulate: bool, x: &Tensor) -> Result<()> {
    let (g, x) = (elements(g)?, elements(x)?);
    modify(sum, |sum| {
        clear_unless(accumulate, sum);
        let width = sum.len();
        for (x, g) in x.chunks_exact(width).zip(g.chunks_exact(width)) {
            for (column, sum) in sum.iter_mut().enumerate() {
                *sum += x[column] * g[column];
            }
        }
    })
}

/// The gradient of `x` in [`scale_and_shift`].
pub(crate) fn scale_backward(g: &Tensor, sum: Option<Tensor>, weight: &Tensor) -> Result<Tensor> {
    let (data, w) = (elements(g)?, elements(weight)?);
    let products = data.chunks_exact(w.len()).flat_map(|g| g.iter().zip(w.iter()).map(|(g, w)| g * w));
    let Some(sum) = sum else { return tensor(products.collect(), g.shape().clone()) };
    modify(&sum, |sum| sum.iter_mut().zip(products.clone()).for_each(|(sum, product)| *sum += product))?;
    Ok(sum)
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
