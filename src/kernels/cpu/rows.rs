//! Rows and columns that move, and means of rows.

use std::ops::Range;

use candle_core::{Result, Tensor};

use crate::kernels::buffer::{elements, modify, new_rows, sum_rows, tensor};
use crate::kernels::constant::Constant;

/// Rows `indices` of `x`.
pub(crate) fn gather(x: &Tensor, indices: &Constant<u32>) -> Result<Tensor> {
    let width = x.dim(1)?;
    let input = elements(x)?;
    let mut output = Vec::with_capacity(indices.len() * width);
    for &index in indices.iter() {
        output.extend_from_slice(&input[index as usize * width..][..width]);
    }
    tensor(output, (indices.len(), width))
}

/// The gradient of `x`, of `rows` rows, in [`gather`] of distinct rows.
pub(crate) fn scatter(g: &Tensor, sum: Option<Tensor>, indices: &Constant<u32>, rows: usize) -> Result<Tensor> {
    let width = g.dim(1)?;
    let g = elements(g)?;
    let add = |sum: &mut [f32]| {
        for (g, &index) in g.chunks_exact(width).zip(indices.iter()) {
            for (sum, g) in sum[index as usize * width..][..width].iter_mut().zip(g) {
                *sum += g;
            }
        }
    };
    sum_or_new(sum, (rows, width), add)
}

/// Lets `add` add to `sum`, or to the zeros of a new tensor.
fn sum_or_new(sum: Option<Tensor>, (rows, width): (usize, usize), add: impl Fn(&mut [f32])) -> Result<Tensor> {
    let Some(sum) = sum else {
        let mut data = vec![0.0; rows * width];
        add(&mut data);
        return tensor(data, (rows, width));
    };
    modify(&sum, add)?;
    Ok(sum)
}

/// The mean row of each sequence, a range of rows of `x`.
pub(crate) fn mean_rows(x: &Tensor, sequences: &[Range<usize>]) -> Result<Tensor> {
    let width = x.dim(1)?;
    let x = elements(x)?;
    let mut output = vec![0.0; sequences.len() * width];
    for (out, rows) in output.chunks_exact_mut(width).zip(sequences) {
        for row in rows.clone() {
            out.iter_mut().zip(&x[row * width..]).for_each(|(sum, x)| *sum += x);
        }
        out.iter_mut().for_each(|sum| *sum /= rows.len() as f32);
    }
    tensor(output, (sequences.len(), width))
}

/// The gradient of `x` in [`mean_rows`], whose sequences end at its last row.
pub(crate) fn mean_rows_backward(g: &Tensor, sum: Option<Tensor>, sequences: &[Range<usize>]) -> Result<Tensor> {
    let (width, rows) = (g.dim(1)?, sequences.last().map_or(0, |rows| rows.end));
    let g = elements(g)?;
    let add = |sum: &mut [f32]| {
        for (g, rows) in g.chunks_exact(width).zip(sequences) {
            let share = 1.0 / rows.len() as f32;
            for row in rows.clone() {
                sum[row * width..][..width].iter_mut().zip(g).for_each(|(sum, g)| *sum += share * g);
            }
        }
    };
    sum_or_new(sum, (rows, width), add)
}

/// Some columns of `x`.
pub(crate) fn columns(x: &Tensor, columns: Range<usize>) -> Result<Tensor> {
    let ((rows, width), count) = (x.dims2()?, columns.len());
    let x = elements(x)?;
    let output = new_rows(rows * count, count, |first, block| {
        for (row, out) in (first..).zip(block.chunks_exact_mut(count)) {
            out.copy_from_slice(&x[row * width..][columns.clone()]);
        }
    });
    tensor(output, (rows, count))
}

/// The gradient of `x`, of `width` columns, in [`columns`]: zero beside those columns.
pub(crate) fn columns_backward(g: &Tensor, sum: Option<Tensor>, columns: Range<usize>, width: usize) -> Result<Tensor> {
    let (rows, count) = g.dims2()?;
    let g = elements(g)?;
    sum_rows(sum, (rows, width), width, |first, block, _| {
        for (row, sum) in (first..).zip(block.chunks_exact_mut(width)) {
            sum[columns.clone()].iter_mut().zip(&g[row * count..]).for_each(|(sum, g)| *sum += g);
        }
    })
}
