//! Rows and columns that move: see `rows.cu`.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::launch::{Code, Flag, Grid, kernels, ptx};
use super::memory::{Activations, Address, activations, address_of, clear, device_of, scratch, sum_or_new};
use crate::kernels::constant::Constant;

const CODE: Code = Code { name: "rows", ptx: ptx::ROWS };

kernels! { CODE:
    fn add_bias<T>(x: Address<Activations>, bias: Address<f32>, n: usize, width: u32);
    fn gather<T>(out: Address<Activations>, x: Address<Activations>, indices: Address<u32>, n: usize, width: u32);
    fn scatter<T>(out: Address<Activations>, x: Address<Activations>, indices: Address<u32>, n: usize, width: u32);
    fn columns<T>(
        out: Address<Activations>, x: Address<Activations>, n: usize, width: u32, first: u32, count: u32,
    );
    fn columns_backward<T>(
        gradient: Address<Activations>, g: Address<Activations>, n: usize, width: u32, first: u32, count: u32,
        accumulate: Flag,
    );
}

/// `y += bias`, row by row.
pub(in crate::kernels) fn add_bias(y: &Tensor, bias: &Constant) -> Result<()> {
    let (device, n) = (device_of(y)?, y.elem_count());
    let numbers = address_of(bias.on(&device)?);
    kernel::add_bias(&device, y.dtype(), Grid::over(n), activations(y)?, numbers, n, bias.len() as u32)
}

/// Rows `indices` of `x`.
pub(in crate::kernels) fn gather(x: &Tensor, indices: &Constant<u32>) -> Result<Tensor> {
    let (device, width) = (device_of(x)?, x.dim(1)?);
    let output = scratch(&device, x.dtype(), (indices.len(), width))?;
    let (n, of_indices) = (output.elem_count(), address_of(indices.on(&device)?));
    let [out, x_address] = [activations(&output)?, activations(x)?];
    kernel::gather(&device, x.dtype(), Grid::over(n), out, x_address, of_indices, n, width as u32)?;
    Ok(output)
}

/// The gradient of `x`, of `rows` rows, in [`gather`] of distinct rows.
pub(in crate::kernels) fn scatter(
    g: &Tensor,
    sum: Option<Tensor>,
    indices: &Constant<u32>,
    rows: usize,
) -> Result<Tensor> {
    let (device, width, n) = (device_of(g)?, g.dim(1)?, g.elem_count());
    let (sum, accumulate) = sum_or_new(sum, g, (rows, width))?;
    if !accumulate {
        clear(&sum)?;
    }
    let of_indices = address_of(indices.on(&device)?);
    kernel::scatter(
        &device,
        g.dtype(),
        Grid::over(n),
        activations(&sum)?,
        activations(g)?,
        of_indices,
        n,
        width as u32,
    )?;
    Ok(sum)
}

/// Some columns of `x`.
pub(in crate::kernels) fn columns(x: &Tensor, columns: Range<usize>) -> Result<Tensor> {
    let (device, (rows, width)) = (device_of(x)?, x.dims2()?);
    let output = scratch(&device, x.dtype(), (rows, columns.len()))?;
    let (n, [out, from]) = (output.elem_count(), [activations(&output)?, activations(x)?]);
    let [width, first, count] = [width, columns.start, columns.len()].map(|size| size as u32);
    kernel::columns(&device, x.dtype(), Grid::over(n), out, from, n, width, first, count)?;
    Ok(output)
}

/// The gradient of `x`, of `width` columns, in [`columns`]: zero beside those columns.
pub(in crate::kernels) fn columns_backward(
    g: &Tensor,
    sum: Option<Tensor>,
    columns: Range<usize>,
    width: usize,
) -> Result<Tensor> {
    let (device, dtype) = (device_of(g)?, g.dtype());
    let (sum, accumulate) = sum_or_new(sum, g, (g.dim(0)?, width))?;
    let (n, [out, g]) = (sum.elem_count(), [activations(&sum)?, activations(g)?]);
    let [width, first, count] = [width, columns.start, columns.len()].map(|size| size as u32);
    kernel::columns_backward(&device, dtype, Grid::over(n), out, g, n, width, first, count, accumulate)?;
    Ok(sum)
}
